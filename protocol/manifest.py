"""The task manifest: where program, initial state and data of a task are found (docs/protocol.md section 6).

It is a public blob, so nothing in it is secret; and nothing in it is believed: `check_against` holds it up to the
specification that the chain has the hash of. Its canonical bytes are what the blob id in `TaskSpec.manifest` names.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from proofs.results import data_root
from protocol.errors import BlobError, VerificationError
from protocol.json_types import Bytes32, WireModel, canonical_json
from protocol.types import TaskSpec

MAX_MANIFEST_BYTES = 16 << 20
"""Bounds what a reader downloads before it has checked anything: 65535 shards fit."""


class ManifestShard(WireModel):
    """One data shard."""

    data_blob: Bytes32
    data_root: Bytes32
    """State root of the shard's tensors (`x`, `y`)."""
    samples: Annotated[int, Field(ge=1, lt=1 << 48)]


class ModelCard(WireModel):
    """What the trained state is a model of; for people and for exporting, no root depends on it."""

    kind: Annotated[str, Field(min_length=1, max_length=64)]
    layers: Annotated[tuple[Annotated[int, Field(ge=1, lt=1 << 32)], ...], Field(max_length=1024)]
    """Widths, input first."""


class TaskManifest(WireModel):
    """See docs/protocol.md section 6."""

    version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200)]
    requester_encryption_key: Bytes32
    """X25519 public key of the requester."""
    program_blob: Bytes32
    initial_state_blob: Bytes32
    shards: Annotated[tuple[ManifestShard, ...], Field(min_length=1, max_length=65535)]
    model: ModelCard
    private: bool

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> TaskManifest:
        """Raises BlobError (V-15) on anything that is not exactly a manifest's canonical bytes."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise BlobError(f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, not {len(data)}", code="V-12")
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BlobError(f"not a task manifest: {where}: {first['msg']}", code="V-15") from error
        if manifest.to_bytes() != data:
            raise BlobError("the manifest is not in canonical form", code="V-15")
        return manifest

    def check_against(self, spec: TaskSpec) -> None:
        """Raises VerificationError (V-16) where the manifest contradicts the specification on chain."""
        if len(self.shards) != spec.shards:
            raise _contradiction(f"it lists {len(self.shards)} shards, the task has {spec.shards}")
        if self.private != spec.is_private:
            raise _contradiction(f"it says private = {self.private}, the task says {spec.is_private}")
        if data_root([shard.data_root for shard in self.shards]) != spec.data_root:
            raise _contradiction("its shards' data roots are not under the task's data root")


def _contradiction(what: str) -> VerificationError:
    return VerificationError(f"the manifest contradicts the task: {what}", code="V-16", hint="do not work on this task")
