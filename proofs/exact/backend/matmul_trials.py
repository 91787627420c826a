"""Matrix products computed in perverse orders, to see whether anything depends on the order.

    Settings(matmul=variant("float64", "tiles", seed=7))

puts such a product in the place of every product of a program. If the bounds of matmul_kernels.py hold, the state roots
stay what they are; if one accumulator were too narrow, rounding or wrapping would show. For tests and
scripts/bench/exact_step.py; nothing that trains uses it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from itertools import product as every_pair
from random import Random
from typing import Literal

from proofs.exact.backend import matmul_choice
from proofs.exact.backend.matmul import MatmulKernel, kernels_for
from proofs.exact.backend.matmul_kernels import LEAST_INT8_K, Planes, Product
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import MatmulChoice, Settings

Order = Literal["plain", "reversed", "tiles"]
ORDERS: tuple[Order, ...] = ("plain", "reversed", "tiles")
MAX_CUTS = 2
"""Cuts of one side into tiles, at most."""


@cache
def kernels_here() -> tuple[str, ...]:
    """The kernels that this machine has and computes rightly: without VNNI `torch._int_mm` saturates and is absent."""
    sides = ValueInfo((40, 512), 0, -32768, 32639)
    product = Product(sides, sides)
    return tuple(name for name, kernel in kernels_for(product, 1).items() if matmul_choice.answers(kernel, product))


def variant(name: str, order: Order, seed: int = 0) -> MatmulChoice:
    """A choice that takes the kernel `name` ("float64", "int64", "int8", "amx") wherever its bound admits it, then
    float64, then int64, and runs it with k `reversed`, or on random `tiles` added up in random order.
    """
    random = Random(seed)

    def choose(a: ValueInfo, b: ValueInfo, settings: Settings) -> MatmulKernel:
        kernels = kernels_for(Product(a, b), settings.threads)
        return perverted(next(kernels[each] for each in (name, "float64", "int64") if each in kernels), order, random)

    return choose


def perverted(kernel: MatmulKernel, order: Order, random: Random) -> MatmulKernel:
    """The kernel, running in another order."""

    def reverse(a: Planes, b: Planes, out: Planes) -> None:
        kernel.run(tuple(plane.flip(-1) for plane in a), tuple(plane.flip(-1) for plane in b), out)

    def tile(a: Planes, b: Planes, out: Planes) -> None:
        for plane in out:
            plane.zero_()
        m, n = out[0].shape[-2:]
        k = a[0].shape[-1]
        tiles = list(every_pair(_cut(m, 1, random), _cut(n, 1, random), _cut(k, LEAST_INT8_K, random)))
        random.shuffle(tiles)
        for (top, bottom), (left, right), (first, last) in tiles:
            part = kernel.empty((*out[0].shape[:-2], bottom - top, right - left))
            rows = tuple(plane[..., top:bottom, first:last] for plane in a)
            columns = tuple(plane[..., left:right, first:last] for plane in b)
            kernel.run(rows, columns, part)
            for plane, more in zip(out, part, strict=True):
                plane[..., top:bottom, left:right] += more

    if order == "plain":
        return kernel
    return replace(kernel, name=f"{kernel.name} {order}", run=reverse if order == "reversed" else tile)


def _cut(side: int, least: int, random: Random) -> list[tuple[int, int]]:
    """A side as a row of random pieces, none shorter than `least` (or one piece)."""
    cuts = random.randint(1, MAX_CUTS) if side >= 2 * least else 0
    places = {least * random.randrange(1, side // least) for _ in range(cuts)}
    return list(pairwise((0, *sorted(places), side)))
