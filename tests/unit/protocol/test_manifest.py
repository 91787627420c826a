"""The manifest: one byte form, strict fields, never believed against the chain."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from proofs.results import data_root
from protocol.errors import BlobError, VerificationError
from protocol.manifest import ManifestShard, ModelCard, TaskManifest
from protocol.types import TaskSpec, Wei

SHARD_ROOTS = [bytes([i]) * 32 for i in (1, 2, 3)]

MANIFEST = TaskManifest(
    name="digits",
    requester_encryption_key=b"\x09" * 32,
    program_blob=b"\x0a" * 32,
    initial_state_blob=b"\x0b" * 32,
    shards=tuple(ManifestShard(data_blob=b"\x0c" * 32, data_root=root, samples=100) for root in SHARD_ROOTS),
    model=ModelCard(kind="mlp", layers=(64, 32, 10)),
    private=True,
)

SPEC = TaskSpec(
    requester="0x70997970C51812dc3A010C7d01b50e0d17dc79C8",  # type: ignore[arg-type]
    program_root=b"\x01" * 32,
    aggregation_root=b"\x02" * 32,
    initial_state_root=b"\x03" * 32,
    data_root=data_root(SHARD_ROOTS),
    manifest=b"\x04" * 32,
    seed=1,
    unit_price=Wei(1),
    aggregation_price=Wei(1),
    collateral=Wei(1),
    rounds=1,
    shards=3,
    steps=1,
    checkpoint_interval=1,
    deadline=1,
    compute_window_s=1,
    reveal_window_s=1,
    challenge_window_s=1,
    is_private=True,
)


def edited(**changes: Any) -> bytes:
    document = json.loads(MANIFEST.to_bytes()) | changes
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_manifest_comes_back_from_its_bytes() -> None:
    assert TaskManifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST


def test_bytes_are_canonical_json() -> None:
    document = json.loads(MANIFEST.to_bytes())
    assert list(document) == sorted(document)
    assert document["version"] == 1
    assert document["shards"][0] == {"data_blob": "0x" + "0c" * 32, "data_root": "0x" + "01" * 32, "samples": 100}


def test_second_form_of_the_same_manifest_is_refused() -> None:
    spaced = json.dumps(json.loads(MANIFEST.to_bytes())).encode()
    with pytest.raises(BlobError, match="canonical"):
        TaskManifest.from_bytes(spaced)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"version": 2},
        {"name": ""},
        {"shards": []},
        {"program_blob": "0x00"},
        {"private": "yes"},
        {"model": {"kind": "mlp", "layers": [0]}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_manifest_outside_the_schema_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BlobError, match="V-15"):
        TaskManifest.from_bytes(edited(**changes))


def test_manifest_that_agrees_with_the_chain_passes() -> None:
    MANIFEST.check_against(SPEC)


@pytest.mark.parametrize(
    "spec",
    [replace(SPEC, shards=2), replace(SPEC, is_private=False), replace(SPEC, data_root=b"\x05" * 32)],
    ids=["shards", "private", "data root"],
)
def test_manifest_that_contradicts_the_chain_is_refused(spec: TaskSpec) -> None:
    with pytest.raises(VerificationError, match="V-16"):
        MANIFEST.check_against(spec)
