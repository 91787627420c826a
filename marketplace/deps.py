"""What routes ask for by signature: the gateway's parts, and request bodies that are bounded before they are in
memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Engine

from marketplace.config import Settings
from marketplace.content import ContentStore
from marketplace.indexer import Indexer
from marketplace.limits import RateLimiter
from marketplace.mailbox import Mailbox
from marketplace.metrics import Metrics
from marketplace.queries import Queries
from protocol.deployments import Deployment
from protocol.errors import BlobError, UsageError
from protocol.json_types import Bytes32


@dataclass(frozen=True)
class Gateway:
    """The parts of a running gateway."""

    settings: Settings
    deployment: Deployment
    store: ContentStore
    mailbox: Mailbox
    indexer: Indexer
    queries: Queries
    metrics: Metrics
    posts: RateLimiter
    closing: threading.Event
    """Set when the server stops, so that endless answers end."""
    engine: Engine


def get_gateway(request: Request) -> Gateway:
    return cast(Gateway, request.app.state.gateway)


GatewayDep = Annotated[Gateway, Depends(get_gateway)]

_BYTES32: TypeAdapter[bytes] = TypeAdapter(Bytes32)


def parse_bytes32(text: str) -> bytes:
    """32 bytes from a URL. Raises UsageError U-71."""
    try:
        return _BYTES32.validate_python(text)
    except ValidationError as error:
        raise UsageError(f"{text[:80]!r} is not 0x and 64 hex digits", code="U-71") from error


_HEX_ID = Path(description="0x and 64 hex digits", examples=["0x" + "ab" * 32])


def _blob_id(blob_id: Annotated[str, _HEX_ID]) -> bytes:
    return parse_bytes32(blob_id)


def _task_id(task_id: Annotated[str, _HEX_ID]) -> bytes:
    return parse_bytes32(task_id)


BlobIdDep = Annotated[bytes, Depends(_blob_id)]
TaskIdDep = Annotated[bytes, Depends(_task_id)]


async def bounded_body(request: Request, max_bytes: int) -> bytes:
    """The body, of which no more than `max_bytes` are ever held. Raises BlobError V-12 when there is more."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for piece in request.stream():
        if len(body) + len(piece) > max_bytes:
            raise _too_large(max_bytes)
        body += piece
    return bytes(body)


def _too_large(max_bytes: int) -> BlobError:
    return BlobError(f"the body is larger than {max_bytes} bytes", code="V-12")
