"""Server-sent events: a nudge whenever the index or the mailbox moved. What changed is then asked for like anything
else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from marketplace.deps import Gateway, GatewayDep

router = APIRouter(tags=["market"])

_LOOK_S = 0.5
_KEEPALIVE_LOOKS = 30


@router.get("/stream", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def stream(request: Request, gateway: GatewayDep) -> StreamingResponse:
    """`event: change`, whose id names the index's and the mailbox's position. The first comes at once."""
    events = _changes(request, gateway)
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _changes(request: Request, gateway: Gateway) -> AsyncIterator[str]:
    seen = request.headers.get("last-event-id")
    quiet = 0
    while not gateway.closing.is_set() and not await request.is_disconnected():
        position = _position(gateway)
        if position != seen:
            seen, quiet = position, 0
            yield f"event: change\nid: {position}\ndata: {position}\n\n"
        elif (quiet := quiet + 1) % _KEEPALIVE_LOOKS == 0:
            yield ": still here\n\n"
        await asyncio.sleep(_LOOK_S)


def _position(gateway: Gateway) -> str:
    progress = gateway.indexer.progress
    error = "!" if progress.error else ""
    return f"{progress.head_block}-{progress.indexed_block}-{gateway.mailbox.last_id}{error}"
