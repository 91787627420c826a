"""Blobs, chunk by chunk. An upload needs no other credentials than its announcement: each chunk is checked by its
hash."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from marketplace.deps import BlobIdDep, GatewayDep, bounded_body
from proofs.blob import CHUNK_BYTES
from protocol.wire import BlobInfo, ErrorAnswer

router = APIRouter(tags=["blobs"])

Position = Annotated[int, Path(ge=0, lt=1 << 32, description="chunk number, from 0")]


@router.put(
    "/blobs/{blob_id}/chunks/{position}",
    status_code=204,
    responses={
        404: {"model": ErrorAnswer, "description": "not announced"},
        413: {"model": ErrorAnswer, "description": "more than a chunk"},
        422: {"model": ErrorAnswer, "description": "not the chunk that the index names"},
        507: {"model": ErrorAnswer, "description": "no space; nothing was stored"},
    },
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
async def put_chunk(request: Request, blob_id: BlobIdDep, position: Position, gateway: GatewayDep) -> Response:
    """Stores one 256 KiB chunk of an announced blob (the last may be shorter). Idempotent."""
    data = await bounded_body(request, CHUNK_BYTES)
    await run_in_threadpool(gateway.store.put_chunk, blob_id, position, data)
    gateway.metrics.chunk_bytes.labels("in").inc(len(data))
    return Response(status_code=204)


@router.get("/blobs/{blob_id}", responses={404: {"model": ErrorAnswer}})
def blob_info(blob_id: BlobIdDep, gateway: GatewayDep) -> BlobInfo:
    """A blob's index, and which of its chunks are not here. Check that size and index hash to the id."""
    index = gateway.store.find(blob_id)
    missing = gateway.store.missing(blob_id)
    return BlobInfo(blob=blob_id, size=index.size, index=index.leaves, complete=not missing, missing=tuple(missing))


@router.get(
    "/blobs/{blob_id}/chunks/{position}",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 404: {"model": ErrorAnswer}},
)
def get_chunk(blob_id: BlobIdDep, position: Position, gateway: GatewayDep) -> Response:
    """One chunk's bytes, which never change."""
    data = gateway.store.read_chunk(blob_id, position)
    gateway.metrics.chunk_bytes.labels("out").inc(len(data))
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type="application/octet-stream", headers=headers)
