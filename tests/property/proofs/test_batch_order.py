"""The keyed permutation: every epoch visits every sample once, and the compiled form is the defined one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proofs.exact.permutation import MASK64, batch_indices, half_bits, mix64, permuted
from proofs.exact.permutation_bulk import fill_indices

seeds = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from((0, 1, 2**63 - 1)))


@given(seeds, st.integers(-5, 2**40), st.integers(1, 70))
def test_every_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert sorted(permuted(seed, epoch, position, n) for position in range(n)) == list(range(n))


@given(seeds, st.integers(-(2**31), 2**31), st.integers(1, 2**40), st.integers(1, 20))
def test_the_compiled_order_is_the_defined_one(seed: int, t: int, n: int, batch: int) -> None:
    out = np.empty(batch, dtype=np.int64)
    fill_indices(np.uint64(seed), t * batch, n, np.uint64(half_bits(n)), out)
    assert out.tolist() == batch_indices(seed, t, n, batch)


@given(seeds, st.integers(1, 40), st.integers(1, 12))
def test_batches_run_through_an_epoch_without_gap_or_repetition(seed: int, n: int, batch: int) -> None:
    steps = -(-2 * n // batch)
    stream = [index for t in range(steps) for index in batch_indices(seed, t, n, batch)]
    assert sorted(stream[:n]) == sorted(stream[n : 2 * n]) == list(range(n))


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = {tuple(permuted(seed, epoch, p, 50) for p in range(50)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_every_sample_comes_first_about_equally_often() -> None:
    n, draws = 10, 5000
    counts = np.bincount([permuted(seed, 0, 0, n) for seed in range(draws)], minlength=n)
    chi_squared = float(((counts - draws / n) ** 2 / (draws / n)).sum())
    assert chi_squared < 27.9  # 0.1 % point of chi-squared with 9 degrees of freedom; the counts are the same every run


@given(st.integers(0, MASK64))
def test_mix64_is_undone_by_its_inverse(word: int) -> None:
    z = mix64(word)
    z ^= z >> 31 ^ z >> 62
    z = z * pow(0x94D049BB133111EB, -1, 2**64) & MASK64
    z ^= z >> 27 ^ z >> 54
    z = z * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK64
    z ^= z >> 30 ^ z >> 60
    assert (z - 0x9E3779B97F4A7C15) & MASK64 == word
