"""For machines that watch this one."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from marketplace.deps import GatewayDep
from marketplace.failures import error_response
from marketplace.status import status_of
from protocol.wire import ErrorBody

router = APIRouter(tags=["health"])

READY_LAG_BLOCKS = 10
"""Further behind the head than this, the index misleads whoever looks at it."""


@router.get("/healthz")
def healthz() -> dict[str, bool]:
    """The process answers."""
    return {"ok": True}


@router.get("/readyz", responses={503: {"description": "not ready, in the one error shape"}})
def readyz(gateway: GatewayDep) -> JSONResponse:
    """The chain is read and the index is near its head."""
    status = status_of(gateway)
    if status.index_error is not None:
        return error_response(503, ErrorBody(code="N-33", message=status.index_error, hint="is the chain reachable?"))
    if status.lag_blocks is None or status.lag_blocks > READY_LAG_BLOCKS:
        behind = "not read yet" if status.lag_blocks is None else f"{status.lag_blocks} blocks behind"
        return error_response(503, ErrorBody(code="N-34", message=f"the index is {behind}", hint="wait a little"))
    return JSONResponse({"ok": True, "indexed_block": status.indexed_block})


@router.get("/metrics", response_class=Response)
def metrics(gateway: GatewayDep) -> Response:
    """Prometheus text format."""
    status, gauges = status_of(gateway), gateway.metrics
    gauges.blobs.set(status.blobs)
    gauges.reserved_bytes.set(status.stored_bytes)
    gauges.quota_bytes.set(status.quota_bytes)
    for gauge, value in (
        (gauges.head_block, status.head_block),
        (gauges.indexed_block, status.indexed_block),
        (gauges.lag_blocks, status.lag_blocks),
    ):
        if value is not None:
            gauge.set(value)
    return Response(gauges.render(), media_type="text/plain; version=0.0.4")
