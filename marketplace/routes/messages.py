"""The mailbox over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool

from marketplace.deps import GatewayDep, bounded_body, parse_bytes32
from protocol.messages import SignedMessage
from protocol.wire import BlobAnnounced, ErrorAnswer, MailPage, MessagePosted, PageLimit

router = APIRouter(tags=["messages"])

_ENVELOPE = {"content": {"application/json": {"schema": SignedMessage.model_json_schema()}}, "required": True}


@router.post(
    "/messages",
    status_code=201,
    responses={
        400: {"model": ErrorAnswer, "description": "content hash, signature form, or freshness"},
        401: {"model": ErrorAnswer, "description": "not signed by its sender"},
        403: {"model": ErrorAnswer, "description": "no standing"},
        409: {"model": ErrorAnswer, "description": "replayed"},
        422: {"model": ErrorAnswer, "description": "the payload does not fit its kind"},
        429: {"model": ErrorAnswer, "description": "too many"},
    },
    openapi_extra={"requestBody": _ENVELOPE},
)
async def post_message(request: Request, gateway: GatewayDep) -> MessagePosted | BlobAnnounced:
    """Takes a signed envelope (docs/protocol.md section 4). An announcement of a blob is answered with its missing
    chunks."""
    gateway.posts.take(request.client.host if request.client else "unknown")
    body = await bounded_body(request, gateway.settings.limits.max_message_bytes)
    answer = await run_in_threadpool(lambda: gateway.mailbox.post(SignedMessage.from_json(body)))
    gateway.metrics.messages.inc()
    return answer


@router.get("/messages")
def list_messages(
    gateway: GatewayDep,
    task: Annotated[str | None, Query(description="only of this task, 0x-hex")] = None,
    kind: Annotated[str | None, Query(max_length=64, description="only of this kind", examples=["key.grant"])] = None,
    after: Annotated[int, Query(ge=0, lt=1 << 63, description="the last id that you have")] = 0,
    limit: PageLimit = 100,
) -> MailPage:
    """Messages in the order of arrival. Verify them: this gateway's word is not worth a key."""
    return gateway.mailbox.read(
        task=None if task is None else parse_bytes32(task),
        kind=kind,
        after=after,
        limit=limit,
        as_of_block=gateway.indexer.indexed_block,
    )
