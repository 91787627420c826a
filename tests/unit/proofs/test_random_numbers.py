"""RANDOM looks random where dropout would notice: in every bit, and between neighbouring steps, streams and seeds."""

from __future__ import annotations

import pytest
import torch

from proofs.exact.kernels import Buffer, Call, random
from proofs.exact.ranges import ValueInfo

COUNT = 2**16
SIGMAS = 6
"""Of a count of COUNT fair coins: exceeded by chance once in 10^9 looks."""


def words(seed: int = 3, t: int = 100, stream: int = 1, bits: int = 32) -> torch.Tensor:
    """[COUNT] numbers."""
    scalar = ValueInfo((), 0, -(2**63), 2**63 - 1)
    call = Call((stream, bits, COUNT), (scalar, scalar), ValueInfo((COUNT,), 0, 0, 2**bits - 1))
    return random([Buffer(torch.tensor(seed)), Buffer(torch.tensor(t))], call).int64


def assert_fair(coins: torch.Tensor, what: str) -> None:
    """0 or 1, [COUNT, ...]: every column is about half ones."""
    off = (coins.double().sum(dim=0) - COUNT / 2).abs().max()
    assert off < SIGMAS * COUNT**0.5 / 2, f"{what}: {off:.0f} off {COUNT // 2}"


def bits_of(numbers: torch.Tensor) -> torch.Tensor:
    """[COUNT] -> [COUNT, 32]."""
    return numbers[:, None] >> torch.arange(32) & 1


def test_every_bit_is_a_fair_coin_and_so_is_every_pair_of_neighbours() -> None:
    bits = bits_of(words())
    assert_fair(bits, "a bit")
    assert_fair(bits ^ bits.roll(1, dims=0), "a bit and that of the element before")
    assert_fair(bits ^ bits.roll(1, dims=1), "a bit and the one beside it")


@pytest.mark.parametrize("other", [{"t": 101}, {"t": -100}, {"stream": 2}, {"stream": 0}, {"seed": 4}, {"seed": 2**62}])
def test_other_steps_streams_and_seeds_are_unrelated(other: dict[str, int]) -> None:
    assert_fair(bits_of(words()) ^ bits_of(words(**other)), str(other))


def test_a_narrow_draw_is_the_top_of_a_wide_one() -> None:
    assert torch.equal(words(bits=7), words() >> 25)


def test_no_stretch_of_one_step_comes_again_in_the_next() -> None:
    seen = set(torch.cat([words(t=t) for t in range(4)]).tolist())
    assert len(seen) > 4 * COUNT - 64  # of 2^18 among 2^32, about 8 meet by chance
