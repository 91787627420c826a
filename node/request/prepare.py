"""From a task file to what is uploaded and posted: blobs, manifest, specification. Sends nothing.

The program is public in every task: it says what is computed, not on what. Shards and the initial state of a private
task are sealed, each with a key of its own; the keys are on disk, readable by this user only, before anything leaves
the machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eth_typing import ChecksumAddress

from node.files import write_whole
from node.request.task_file import TaskFile
from node.training.plan import Plan
from proofs.blob import index_of
from proofs.exact.encoding import encode_program, program_root
from proofs.exact.state import State, encode_state, state_root
from proofs.results import data_root
from protocol.errors import ConfigError
from protocol.manifest import ManifestShard, ModelCard, TaskManifest
from protocol.sealing import seal
from protocol.types import ZERO32, BlobId, TaskId, TaskSpec


@dataclass(frozen=True, slots=True)
class OutgoingBlob:
    """Bytes to upload; `key` seals them in a private task."""

    what: str
    data: bytes
    blob: BlobId
    key: bytes | None


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """All that a task is, before it is posted."""

    name: str
    spec: TaskSpec
    manifest: TaskManifest
    blobs: tuple[OutgoingBlob, ...]
    """Program, initial state, shards; the manifest last."""
    model: str
    """What is trained, in words."""

    @property
    def upload_bytes(self) -> int:
        return sum(len(blob.data) for blob in self.blobs)


def prepare_task(
    file: TaskFile, plan: Plan, requester: ChecksumAddress, encryption_key: bytes, now: int
) -> PreparedTask:
    """Quantised data and program as blobs, and the specification that names their roots. `now`: chain time, unix s.

    Raises UsageError U-36 if the deadline does not leave room for a unit.
    """
    private = file.task.private
    program = _public("program", encode_program(plan.program))
    initial = _state("initial state", plan.initial_state, private)
    shards: list[OutgoingBlob] = []
    entries: list[ManifestShard] = []
    for shard in range(len(plan.shards)):
        state = plan.shard_state(shard)
        shards.append(_state(f"shard {shard}", state, private))
        entries.append(
            ManifestShard(data_blob=shards[-1].blob, data_root=state_root(state), samples=plan.shards[shard].samples)
        )
    manifest = TaskManifest(
        name=file.task.name,
        requester_encryption_key=encryption_key,
        program_blob=program.blob,
        initial_state_blob=initial.blob,
        shards=tuple(entries),
        model=model_card(file, plan),
        private=private,
    )
    manifest_blob = _public("manifest", manifest.to_bytes())
    spec = TaskSpec(
        requester=requester,
        program_root=program_root(plan.program),
        aggregation_root=program_root(plan.aggregation) if plan.aggregation is not None else ZERO32,
        initial_state_root=state_root(plan.initial_state),
        data_root=data_root([entry.data_root for entry in entries]),
        manifest=manifest_blob.blob,
        seed=plan.seed,
        unit_price=file.pay.unit_price,
        aggregation_price=file.aggregation_price,
        collateral=file.pay.collateral,
        rounds=plan.rounds,
        shards=len(plan.shards),
        steps=plan.steps,
        checkpoint_interval=plan.checkpoint_interval,
        deadline=file.task.deadline_at(now),
        compute_window_s=file.task.compute_window_s,
        reveal_window_s=file.task.reveal_window_s,
        challenge_window_s=file.task.challenge_window_s,
        is_private=private,
    )
    model = f"{plan.step.name}: {plan.parameters:,} parameters, {len(plan.program.ops):,} operations a step"
    return PreparedTask(file.task.name, spec, manifest, (program, initial, *shards, manifest_blob), model)


def model_card(file: TaskFile, plan: Plan) -> ModelCard:
    """What the manifest says of the model, for people: the built-in MLP and its widths, or the step file's name."""
    if file.model.hidden is None:
        return ModelCard(kind=plan.step.name[:64], layers=())
    return ModelCard(kind="mlp", layers=(plan.dataset.features, *file.model.hidden, plan.dataset.classes))


def _public(what: str, data: bytes) -> OutgoingBlob:
    return OutgoingBlob(what, data, BlobId(index_of(data).blob_id), None)


def _state(what: str, state: State, private: bool) -> OutgoingBlob:
    if not private:
        return _public(what, encode_state(state))
    key, sealed = seal(encode_state(state))
    return OutgoingBlob(what, sealed, BlobId(index_of(sealed).blob_id), key)


# --- keys on disk ---


def _keys_path(data_dir: Path, task: TaskId) -> Path:
    return data_dir / "request" / f"{task.hex()}.keys.json"


def save_content_keys(data_dir: Path, task: TaskId, blobs: tuple[OutgoingBlob, ...]) -> None:
    """Mode 0600, whole or not at all. Raises OSError."""
    keys = {blob.blob.hex(): blob.key.hex() for blob in blobs if blob.key is not None}
    write_whole(_keys_path(data_dir, task), json.dumps(keys, indent=1).encode())


def load_content_keys(data_dir: Path, task: TaskId) -> dict[BlobId, bytes]:
    """Empty if the task was submitted from another machine; its keys are then in the mailbox, wrapped to the requester.

    Raises ConfigError C-41 if the file is damaged.
    """
    path = _keys_path(data_dir, task)
    try:
        document = json.loads(path.read_bytes())
        return {BlobId(bytes.fromhex(blob)): bytes.fromhex(key) for blob, key in document.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is not a key file", code="C-41", hint="restore it from a backup") from error
