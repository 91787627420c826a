"""Prometheus metrics of one gateway, in a registry of its own so that two gateways in one process do not collide."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """Counters and gauges. Names carry their units."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.messages = Counter("avenue_messages", "Messages taken", registry=self.registry)
        self.chunk_bytes = Counter("avenue_chunk_bytes", "Bytes of blobs moved", ["direction"], registry=self.registry)
        self.requests = Counter("avenue_requests", "Requests answered", ["method", "status"], registry=self.registry)
        self.blobs = Gauge("avenue_blobs", "Blobs announced or stored", registry=self.registry)
        self.reserved_bytes = Gauge("avenue_blob_reserved_bytes", "Sizes of those blobs", registry=self.registry)
        self.quota_bytes = Gauge("avenue_blob_quota_bytes", "Most that may be reserved", registry=self.registry)
        self.head_block = Gauge("avenue_head_block", "Newest block of the chain", registry=self.registry)
        self.indexed_block = Gauge("avenue_indexed_block", "Newest block in the index", registry=self.registry)
        self.lag_blocks = Gauge("avenue_index_lag_blocks", "Blocks between the two", registry=self.registry)
        self.reorgs = Counter("avenue_index_rollbacks", "Reorganisations rolled back", registry=self.registry)
        self.index_errors = Counter("avenue_index_errors", "Looks at the chain that failed", registry=self.registry)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
