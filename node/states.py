"""States from the gateway: fetched, opened, and believed only once they have the root that the chain has."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from node.taskbook import TaskBook
from proofs.exact.state import State, decode_state, state_root
from proofs.exact.tensor_type import TensorType
from protocol.errors import AvenueError, BlobError
from protocol.types import BlobId

STATE_OVERHEAD_BYTES = 1 << 16
"""Names and types in an encoded state, beside its elements."""

log = structlog.get_logger(__name__)


def fetch_state(book: TaskBook, root: bytes, blobs: tuple[BlobId, ...], types: Mapping[str, TensorType]) -> bytes:
    """The encoded state with this root, from the first blob that has it. `types` bound what is downloaded.

    Raises the last failure if none has it (BlobError, StateError), BlobError V-22 if there is no blob,
    UnreachableError.
    """
    max_bytes = STATE_OVERHEAD_BYTES + sum(type_.nbytes for type_ in types.values())
    failure: AvenueError = BlobError(f"state {root.hex()[:8]} was not announced", code="V-22")
    for blob in blobs:
        try:
            data = book.open(blob, max_bytes)
            check_state(data, root, types)
        except BlobError as error:
            failure = error
            log.warning("blob refused", task=book.task.hex()[:8], blob=blob.hex()[:8], why=str(error))
            continue
        return data
    raise failure


def check_state(data: bytes, root: bytes, types: Mapping[str, TensorType]) -> State:
    """The state in `data`. Raises BlobError V-22 if it is malformed, of other types, or has another root."""
    try:
        state = decode_state(data)
    except ValueError as error:
        raise BlobError(f"not a state: {error}", code="V-22") from error
    if {name: tensor.type for name, tensor in state.items()} != dict(types):
        raise BlobError("the state's tensors are not those of the program", code="V-22")
    if state_root(state) != root:
        raise BlobError(f"the state's root is not {root.hex()[:8]}", code="V-22", hint="its uploader is at fault")
    return state
