"""The trained model: fetched, checked against the chain, and written so that ordinary PyTorch loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from node.context import NodeContext
from node.files import write_whole
from node.request.check import program_of
from node.request.prepare import load_content_keys
from node.request.view import REQUESTER
from node.states import fetch_state
from node.taskbook import TaskBook, blobs_of
from node.taskfeed import TaskFeed
from proofs.exact.state import State, decode_state
from proofs.exact.state_dict import PARAMS, WeightsError, safetensors_bytes
from protocol.errors import ConfigError, StateError
from protocol.types import ZERO32, TaskId, TaskSpec, TaskStatus


@dataclass(frozen=True, slots=True)
class SavedResult:
    """What was written, and which state on chain it is."""

    path: Path
    task: TaskId
    state_root: bytes
    shapes: Mapping[str, tuple[int, ...]]
    """Of the parameters, by the names that the file has them under."""
    bytes_written: int

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def how_to_load(self) -> str:
        return f'module.load_state_dict(safetensors.torch.load_file("{self.path.name}"))'


def save_result(context: NodeContext, task_id: TaskId, path: Path | str) -> SavedResult:
    """Writes the trained parameters as safetensors, float32, under the names that the step gave them.

    The metadata name the task and the state root. Raises as `fetch_result`, StateError S-50 if the state has no
    parameters, and ConfigError C-01 if `path` cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(
            f"cannot write {path}: it is a directory", code="C-01", hint=f"-o {path / 'model.safetensors'}"
        )
    root, state = fetch_result(context, task_id)
    metadata = {"avenue.task": "0x" + task_id.hex(), "avenue.state_root": "0x" + root.hex()}
    try:
        data = safetensors_bytes(state, metadata)
    except WeightsError as error:
        raise StateError(
            f"the task trained no parameters: {error}",
            code="S-50",
            hint="it was not made by `avenue task submit` of this version",
        ) from error
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", code="C-01", hint="choose another file with -o"
        ) from error
    shapes = {name.removeprefix(PARAMS): tensor.type.shape for name, tensor in state.items() if name.startswith(PARAMS)}
    return SavedResult(path, task_id, root, shapes, len(data))


def fetch_result(context: NodeContext, task_id: TaskId) -> tuple[bytes, State]:
    """The root of the trained state on chain, and the state that has it.

    Raises StateError S-43 (no such task), S-44 (not trained to the end yet), S-46 (not announced), BlobError if the key
    is missing or the blob is not that state, UnreachableError.
    """
    spec = TaskFeed(context).posted(task_id).spec
    root = context.client.input_state_root(spec, spec.rounds)
    if root == ZERO32 and context.client.task(task_id).status is TaskStatus.CLOSED:
        raise StateError(
            f"task 0x{task_id.hex()[:8]} was closed before it was trained to the end: there is no result",
            code="S-44",
            hint="what was not earned of the escrow came back; post it again on other terms",
        )
    if root == ZERO32:
        raise StateError(
            f"task 0x{task_id.hex()[:8]} is not trained to the end yet",
            code="S-44",
            hint=f"avenue task watch 0x{task_id.hex()}",
        )
    book = open_book(context, spec)
    book.poll()
    last = spec.units - 1
    producer = context.client.unit(task_id, last)
    blobs = blobs_of(r for r in book.results_of(last, producer.node) if r.final_state_root == root)
    if not blobs:
        raise StateError(
            f"node {producer.node} has not announced where the final state is",
            code="S-46",
            hint="its agent announces it before it reveals; is the gateway the one that the node uses?",
        )
    return root, decode_state(fetch_state(book, root, blobs, program_of(book).state_types))


def open_book(context: NodeContext, spec: TaskSpec) -> TaskBook:
    """The task's mailbox as the requester reads it, with the keys that it made itself."""
    book = TaskBook(spec, context.gateway, context.domain, context.client.node_of, context.encryption_key, REQUESTER)
    if book.keyring is not None:
        for blob, key in load_content_keys(context.data_dir, book.task).items():
            book.keyring.put(blob, key)
    return book
