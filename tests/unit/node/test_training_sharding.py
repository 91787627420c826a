"""Shards are equal, disjoint, and follow from the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.training.datasets import Split
from node.training.sharding import derived_seed, split_into_shards
from protocol.errors import UsageError


def numbered(samples: int) -> Split:
    """Each sample carries its own number."""
    return Split.labelled(np.arange(samples).reshape(-1, 1), np.arange(samples))


@given(samples=st.integers(1, 300), shards=st.integers(1, 20), seed=st.integers(0, 2**63 - 1))
def test_shards_are_equal_and_disjoint(samples: int, shards: int, seed: int) -> None:
    if shards > samples:
        with pytest.raises(UsageError) as caught:
            split_into_shards(numbered(samples), shards, seed)
        assert caught.value.code == "U-37"
        assert str(samples) in caught.value.hint
        return
    parts = split_into_shards(numbered(samples), shards, seed)
    assert [part.samples for part in parts] == [samples // shards] * shards
    seen = np.concatenate([part.y for part in parts])
    assert len(set(seen.tolist())) == len(seen)
    for part in parts:
        assert np.array_equal(part.x[:, 0], part.y), "samples lost their labels"


def test_cut_follows_from_the_seed() -> None:
    first, again, other = (split_into_shards(numbered(1000), 3, seed)[0].y for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sorted_classes_are_spread_over_shards() -> None:
    labels = np.repeat(np.arange(10), 300)
    for part in split_into_shards(Split.labelled(labels.reshape(-1, 1), labels), 3, 1):
        assert np.bincount(part.y, minlength=10).min() > 60


def test_purposes_do_not_share_a_seed() -> None:
    assert derived_seed("avenue.shards.v1", 1) != derived_seed("avenue.weights.v1", 1)
    assert 0 <= derived_seed("avenue.shards.v1", 2**64 - 1) < 2**63
