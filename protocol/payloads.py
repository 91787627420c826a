"""What a message says: one strict model for each kind of payload (the table in docs/protocol.md section 4).

A payload that exists fits its kind; whether its sender may say it, and for which task, is for protocol/messages.py.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from protocol.json_types import Bytes32, HexData, HexUint, WireModel

MAX_INDEX_LEAVES = 32768
"""Chunks of the largest blob that can be announced: 8 GiB in 256 KiB chunks, an index of 2.2 MB in JSON."""

MAX_LOSS = 1e18
"""About what 64-bit integers hold; sums of many stay finite."""

WRAPPED_KEY_BYTES = 80
"""A 32-byte key in a libsodium sealed box: 32 bytes of ephemeral public key, 16 of tag."""


class Kind(StrEnum):
    """What a message says."""

    BLOB_ANNOUNCE = "blob.announce"
    ADMISSION_REQUEST = "admission.request"
    ADMISSION_GRANT = "admission.grant"
    KEY_GRANT = "key.grant"
    UNIT_PROGRESS = "unit.progress"
    UNIT_RESULT = "unit.result"
    UNIT_ACCEPTANCE = "unit.acceptance"


NodeNumber = Annotated[int, Field(ge=1, lt=1 << 64)]
UnitNumber = Annotated[int, Field(ge=0, lt=1 << 32)]
SignatureBytes = Annotated[HexData, Field(min_length=65, max_length=65)]


class Payload(WireModel):
    """What is inside an envelope. Each kind has its own model; unknown keys are refused."""

    kind: ClassVar[Kind]


class BlobAnnounce(Payload):
    """I am about to upload this blob. The index is the leaf hash of each 256 KiB chunk."""

    kind = Kind.BLOB_ANNOUNCE
    blob: Bytes32
    size: Annotated[int, Field(ge=1)]
    """Bytes."""
    index: Annotated[tuple[Bytes32, ...], Field(min_length=1, max_length=MAX_INDEX_LEAVES)]


class AdmissionRequest(Payload):
    """Let my node work on your private task."""

    kind = Kind.ADMISSION_REQUEST
    node: NodeNumber


class AdmissionGrant(Payload):
    """The admission that the node passes to `TaskMarket.claim`."""

    kind = Kind.ADMISSION_GRANT
    node: NodeNumber
    shards: HexUint
    """Bit s = shard s."""
    deadline: Annotated[int, Field(ge=0, lt=1 << 64)]
    """Unix s."""
    signature: SignatureBytes


class Grant(WireModel):
    """A blob's content key, wrapped to one reader."""

    blob: Bytes32
    reader: Annotated[int, Field(ge=0, lt=1 << 64)]
    """Node id; 0 is the requester."""
    wrapped_key: Annotated[HexData, Field(min_length=WRAPPED_KEY_BYTES, max_length=WRAPPED_KEY_BYTES)]


class KeyGrant(Payload):
    """Keys of sealed blobs for their readers."""

    kind = Kind.KEY_GRANT
    grants: Annotated[tuple[Grant, ...], Field(min_length=1, max_length=4096)]


class UnitProgress(Payload):
    """How far a unit is. For people to watch; nothing depends on it."""

    kind = Kind.UNIT_PROGRESS
    unit: UnitNumber
    node: NodeNumber
    step: Annotated[int, Field(ge=0, lt=1 << 32)]
    steps: Annotated[int, Field(ge=1, lt=1 << 32)]
    loss: float | None = None
    """Mean loss of the batch at `step`, in nats; absent for aggregation."""

    @field_validator("loss")
    @classmethod
    def _finite(cls, loss: float | None) -> float | None:
        if loss is not None and not abs(loss) < MAX_LOSS:
            raise ValueError(f"a loss is a finite number below {MAX_LOSS:.0e}")
        return loss

    @model_validator(mode="after")
    def _step_within_steps(self) -> Self:
        if self.step > self.steps:
            raise ValueError(f"step {self.step} of {self.steps}")
        return self


class UnitResult(Payload):
    """Where the final state of a revealed unit is found, and every checkpoint root under its commitment."""

    kind = Kind.UNIT_RESULT
    unit: UnitNumber
    node: NodeNumber
    state_blob: Bytes32
    final_state_root: Bytes32
    result_root: Bytes32
    checkpoint_roots: Annotated[tuple[Bytes32, ...], Field(min_length=2, max_length=65536)]

    @model_validator(mode="after")
    def _last_checkpoint_is_final(self) -> Self:
        if self.checkpoint_roots[-1] != self.final_state_root:
            raise ValueError("the last checkpoint root is not the final state root")
        return self


class UnitAcceptance(Payload):
    """The requester's word that a result is good: whoever submits it finalises the unit at once."""

    kind = Kind.UNIT_ACCEPTANCE
    unit: UnitNumber
    result_root: Bytes32
    signature: SignatureBytes


PAYLOADS: dict[Kind, type[Payload]] = {
    model.kind: model
    for model in (BlobAnnounce, AdmissionRequest, AdmissionGrant, KeyGrant, UnitProgress, UnitResult, UnitAcceptance)
}
