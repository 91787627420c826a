"""The batch order: a keyed permutation of the data set for every epoch, computed one position at a time.

Nobody stores or sends an order; position p of a unit's endless stream of samples is

    epoch = p // n        index = permuted(seed, epoch, p mod n, n)

where `permuted` is a balanced Feistel network of `ROUNDS` rounds over the least even number of bits that covers n,
walked until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, cycle walking). Its
round function is the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
2014): multiplications and shifts of 64-bit words, which the EVM does cheaply. It mixes; it does not keep secrets.
"""

from __future__ import annotations

ROUNDS = 6
MAX_SAMPLES = 2**40
"""Half of the bits then fit below the round number, which sits at bit 32 of the round function's input."""

MASK64 = 2**64 - 1


def mix64(word: int) -> int:
    """splitmix64 of one step: a bijection of 64-bit words. Any integer is taken modulo 2^64."""
    z = (word + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def half_bits(n: int) -> int:
    """Half of the least even number of bits that covers 0..n-1, at least 1."""
    return max(1, ((n - 1).bit_length() + 1) // 2)


def permuted(seed: int, epoch: int, position: int, n: int) -> int:
    """Where `position` (0..n-1) goes in this epoch: a bijection of 0..n-1 for each seed and epoch. 1 <= n <= 2^40."""
    half = half_bits(n)
    mask = (1 << half) - 1
    key = mix64(mix64(seed) ^ (epoch & MASK64))
    index = position
    while True:
        left, right = index >> half, index & mask
        for round_ in range(ROUNDS):
            left, right = right, left ^ (mix64(key ^ (round_ << 32 | right)) & mask)
        index = left << half | right
        if index < n:
            return index


def batch_indices(seed: int, t: int, n: int, batch: int) -> list[int]:
    """The samples of step t: positions t * batch to t * batch + batch - 1. Negative t runs the epochs backwards."""
    positions = range(t * batch, t * batch + batch)
    return [permuted(seed, position // n, position % n, n) for position in positions]
