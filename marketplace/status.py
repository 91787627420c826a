"""How the gateway is: one model for `/api/v1/status`, the page's header, readiness and the gauges."""

from __future__ import annotations

from marketplace.deps import Gateway
from protocol.wire import GatewayStatus


def status_of(gateway: Gateway) -> GatewayStatus:
    """Cheap: no chain read, two counts in the database."""
    deployment, limits, progress = gateway.deployment, gateway.settings.limits, gateway.indexer.progress
    tasks, nodes = gateway.queries.counts()
    return GatewayStatus(
        chain_id=deployment.chain_id,
        market=deployment.market,
        registry=deployment.registry,
        token=deployment.token,
        head_block=progress.head_block,
        indexed_block=progress.indexed_block,
        lag_blocks=progress.lag_blocks,
        index_error=progress.error,
        tasks=tasks,
        nodes=nodes,
        blobs=gateway.store.blob_count,
        stored_bytes=gateway.store.reserved_bytes,
        quota_bytes=limits.quota_bytes,
        max_blob_bytes=limits.max_blob_bytes,
        upload_min_balance=limits.upload_min_balance_wei,
    )
