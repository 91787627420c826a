"""Cuts a data set into equal shards by a keyed permutation.

Promises: the cut follows from the data and the seed alone; shards are disjoint and equally large, because one program
with one static number of samples trains them all. Fewer than `shards` samples are left over and belong to no shard.
"""

from __future__ import annotations

import numpy as np
from eth_abi.abi import encode

from node.training.datasets import Split
from proofs.exact.permutation import batch_indices
from proofs.hashing import keccak, tag
from protocol.errors import UsageError


def split_into_shards(samples: Split, shards: int, seed: int) -> tuple[Split, ...]:
    """`shards` disjoint shards of `samples // shards` samples each.

    Raises:
        UsageError: U-37, more shards than samples.
    """
    if shards > samples.samples:
        raise UsageError(
            f"{shards} shards of {samples.samples} samples: some would be empty",
            code="U-37",
            hint=f"use at most {samples.samples} shards, or bring more data",
        )
    size = samples.samples // shards
    order = np.array(batch_indices(derived_seed("avenue.shards.v1", seed), 0, samples.samples, size * shards))
    return tuple(samples.take(part) for part in order.reshape(shards, size))


def derived_seed(purpose: str, seed: int) -> int:
    """63 bits of H(abi.encode(tag(purpose), uint64 seed)): no two uses of a task's seed share a stream."""
    return int.from_bytes(keccak(encode(["bytes32", "uint64"], [tag(purpose), seed]))[-8:], "big") >> 1
