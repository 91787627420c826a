"""Whole programs nobody would write: any operations in any order, on any shapes, all of them valid.

What `programs` makes is what any backend must get right: every opcode; views of views; broadcasts; reductions along any
axis; rows that a vector register holds and rows that it doesn't; values of 1 to 64 bits; batches of products of all
widths; chains as real steps have them (softmax, normalisation, Adam's root); states that pass through, change places or
are never read; operations without effect, made twice or made for nothing; several results, each value that nothing else
reads being one, so that no operation is computed unseen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from hypothesis import strategies as st

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Op, Program
from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import TensorType

MAX_ELEMENTS: Final = 160
SIDES: Final = (1, 2, 3, 4, 5, 8, 17, 33)
LONG_ELEMENTS: Final = 4000
LONG_SIDES: Final = tuple(range(1, 201))
"""Rows that fill several vectors and have tails of every length: too many elements for the reference."""
WIDTHS: Final = (1, 4, 8, 9, 16, 17, 24, 31, 32, 33, 40, 52, 64)
SMALL_WIDTHS: Final = (2, 8, 9, 16, 17, 24, 29)
SAME: Final = TensorType((3, 5), 16, 4)
"""Of two states that may change places."""


class Writer:
    """Writes one program. Each move makes a value out of values that there are; whatever doesn't fit is made to."""

    def __init__(self, draw: st.DrawFn, sides: Sequence[int] = SIDES, most_elements: int = MAX_ELEMENTS) -> None:
        self.draw = draw
        self.sides = sides
        self.most_elements = most_elements
        self.b = ProgramBuilder()
        self.states: dict[str, TensorType] = {"t": TensorType((), 20), "p": SAME, "q": SAME}
        for number in range(draw(st.integers(1, 3))):
            self.states[f"s{number}"] = self.some_type()
        self.pool = [self.b.state(name, type_) for name, type_ in self.states.items()]
        self.step = self.pool[0]
        self.pool += [self.b.data(f"x{number}", self.some_type()) for number in range(draw(st.integers(1, 3)))]
        self.inputs = self.pool[1:]
        self.used: set[Handle] = set(self.pool)

    # What is drawn

    def choose(self, *choices: int) -> int:
        return self.draw(st.sampled_from(choices))

    def upto(self, greatest: int) -> int:
        return self.draw(st.integers(0, greatest))

    def some_shape(self, greatest_rank: int = 4) -> tuple[int, ...]:
        rank = self.draw(st.integers(1, greatest_rank)) if self.upto(9) else 0
        shape = [self.choose(*self.sides) for _ in range(rank)]
        while math.prod(shape) > self.most_elements:
            shape[shape.index(max(shape))] //= 2
        return tuple(shape)

    def some_type(self) -> TensorType:
        return TensorType(self.some_shape(), self.choose(*WIDTHS), self.choose(0, 0, 4, -3))

    def value(self) -> Handle:
        """Recent values are likelier to be read, and to be read for the last time. Half of the time it is one that
        can say much, lest everything end in scalars and zeros; now and then an input, which is full of extremes."""
        kind = self.upto(5)
        rich = [value for value in self.pool if value.info.elements > 3 and value.bits > 5]
        among = self.inputs if kind == 0 else rich if kind < 4 and rich else self.pool
        chosen = among[-1 - min(self.upto(5) if self.upto(2) else self.upto(99), len(among) - 1)]
        self.used.add(chosen)
        return chosen

    def partner(self, x: Handle) -> Handle:
        """Mostly one of the shape of `x`: real steps are chains over few shapes."""
        like = [value for value in self.pool if value.shape == x.shape]
        if not like or self.upto(3) == 0:
            return self.value()
        chosen = like[-1 - min(self.upto(3), len(like) - 1)]
        self.used.add(chosen)
        return chosen

    # Making things fit

    def shaped(self, x: Handle, shape: tuple[int, ...]) -> Handle:
        """The elements of `x` in this shape: reshaped, broadcast or, where nothing else will do, gathered."""
        b = self.b
        if x.shape == shape:
            return x
        if x.info.elements == math.prod(shape):
            return b.reshape(x, shape)
        padded = (1,) * (len(shape) - len(x.shape)) + x.shape
        if len(padded) == len(shape) and all(old in (1, new) for old, new in zip(padded, shape, strict=True)):
            return b.broadcast(x, shape)
        size, step = math.prod(shape), 1 + self.upto(3)
        index = b.constant([i * step % x.info.elements for i in range(size)])
        return b.reshape(b.gather(b.reshape(x, (x.info.elements,)), index), shape)

    def matrix(self, x: Handle, shape: tuple[int, ...]) -> Handle:
        """As `shaped`, perhaps as a transposed view."""
        if self.upto(1):
            return self.shaped(x, shape)
        return self.b.transpose(self.shaped(x, (*shape[:-2], shape[-1], shape[-2])))

    def scaled(self, x: Handle, frac: int) -> Handle:
        """The same integers, taken for others."""
        return x if x.frac == frac else self.b.mul(x, self.b.constant(1, frac=frac - x.frac))

    def within(self, x: Handle, bits: int) -> Handle:
        """Of at most `bits`: rounded, saturated or clamped."""
        if x.bits <= bits:
            return x
        how = self.upto(2)
        if how == 0 and x.hi < 2**62:
            return self.b.rescale(x, frac=x.frac - min(x.bits - bits, 62), bits=bits)
        if how == 1:
            return self.b.clamp(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1 - self.upto(1))
        return self.b.saturate(x, bits=bits)

    def whole(self, x: Handle, lo: int, hi: int) -> Handle:
        return self.b.clamp(self.scaled(x, 0), lo, hi)

    def two(self, x: Handle, y: Handle) -> tuple[Handle, Handle]:
        """Of one shape, or of shapes that broadcast, and one scale."""
        y = self.scaled(y, x.frac)
        rank = max(len(x.shape), len(y.shape))
        sides = list(zip(*((1,) * (rank - len(z.shape)) + z.shape for z in (x, y)), strict=True))
        fits = all(1 in pair or pair[0] == pair[1] for pair in sides)
        if fits and math.prod(max(pair) for pair in sides) <= self.most_elements:
            return x, y
        return x, self.shaped(y, x.shape)

    def with_axis(self, x: Handle) -> tuple[Handle, int]:
        x = x if x.shape else self.b.reshape(x, (1,))
        return x, self.upto(len(x.shape) - 1)

    # Moves

    def matmul_nt(self) -> Handle:
        batch = tuple(self.choose(1, 2, 3) for _ in range(self.upto(2)))
        m, n, k = self.choose(1, 2, 5, 9), self.choose(1, 3, 4), self.choose(1, 3, 8, 17)
        x, y = (
            self.within(self.value(), self.choose(*SMALL_WIDTHS)),
            self.within(self.value(), self.choose(*WIDTHS[:7])),
        )
        a = self.matrix(x, (*batch, m, k))
        return self.b.matmul_nt(a, a if self.upto(4) == 0 else self.matrix(y, (*batch, n, k)))

    def linear(self) -> Handle:
        """A layer as real steps have it: operands of two int8 slices or one, a product, one rounding, perhaps ReLU."""
        b, (m, n, k) = self.b, (self.choose(1, 4, 9), self.choose(3, 8, 17), self.choose(2, 8, 33))
        x, w = (self.within(self.value(), self.choose(8, 16, 16)) for _ in range(2))
        z = b.matmul_nt(self.matrix(x, (m, k)), self.matrix(w, (n, k)))
        z = b.rescale(z, frac=z.frac - self.choose(1, 7, 8, 9, 15, 16, 17), bits=self.choose(8, 16, 32))
        return b.relu(z) if self.upto(1) else z

    def transpose(self) -> Handle:
        x = self.value()
        return self.b.transpose(x, self.draw(st.permutations(range(len(x.shape)))))

    def add(self) -> Handle:
        x = self.value()
        return self.b.add(*self.two(self.within(x, 63), self.within(self.partner(x), 63)))

    def sub(self) -> Handle:
        x = self.value()
        return self.b.sub(*self.two(self.within(x, 63), self.within(self.partner(x), 63)))

    def mul(self) -> Handle:
        x, bits = self.value(), self.choose(8, 16, 24, 32, 40)
        return self.b.mul(*self.two(self.within(x, bits), self.within(self.partner(x), 63 - bits)))

    def square(self) -> Handle:
        x = self.within(self.value(), self.choose(8, 16, 26, 32))
        return self.b.mul(x, x)

    def rescale(self) -> Handle:
        x = self.within(self.value(), 63)
        shift = self.choose(0, 1, 2, 7, 12, 31) if x.hi < 2**62 else 0
        return self.b.rescale(x, frac=x.frac - shift, bits=self.choose(*WIDTHS))

    def clamp(self) -> Handle:
        return self.b.clamp(self.value(), -(1 << self.upto(40)), 1 << self.upto(40))

    def relu(self) -> Handle:
        return self.b.relu(self.value())

    def positive(self) -> Handle:
        return self.b.positive(self.value())

    def lookup(self) -> Handle:
        entries = self.choose(1, 2, 7, 40)
        table = [(i * i * 7919 - 31 * i) << self.choose(0, 12, 39) for i in range(entries)]
        return self.b.lookup(self.whole(self.value(), 0, entries - 1), self.b.constant(table, frac=4))

    def reduce_sum(self) -> Handle:
        return self.b.reduce_sum(*self.with_axis(self.within(self.value(), self.choose(8, 16, 32, 56))))

    def reduce_max(self) -> Handle:
        return self.b.reduce_max(*self.with_axis(self.value()))

    def div_floor(self) -> Handle:
        x = self.within(self.value(), self.choose(20, 52, 53, 54, 61, 64))
        divisor = self.b.clamp(self.partner(x), 1, 1 << self.choose(1, 20, 40, 62))
        return self.b.div_floor(*self.two(x, divisor))

    def div_floor_beside_a_multiple(self) -> Handle:
        """Where a quotient in double precision is rounded to the next integer."""
        b, bits = self.b, self.choose(16, 30, 54, 58)
        x = self.within(self.value(), 62 - bits)
        divisor = b.clamp(self.within(self.partner(x), bits), 1, 2**bits)
        x, divisor = self.two(x, divisor)
        multiple = b.mul(x, divisor)
        return b.div_floor(b.add(multiple, b.constant(self.choose(-1, 0, 1), frac=multiple.frac)), divisor)

    def broadcast(self) -> Handle:
        x = self.value()
        shape = tuple(self.choose(1, 2, 3) if side == 1 else side for side in (1, *x.shape)[:6])
        return self.shaped(x, shape) if math.prod(shape) <= self.most_elements else x

    def reshape(self) -> Handle:
        return self.shaped(self.value(), self.some_shape(greatest_rank=6))

    def gather(self) -> Handle:
        x, axis = self.with_axis(self.value())
        if self.upto(1):
            index = self.b.permute(self.whole(self.scalar(), -9, 9), samples=x.shape[axis], batch=self.choose(1, 3, 8))
        else:
            index = self.whole(self.shaped(self.value(), (self.choose(1, 4, 9),)), 0, x.shape[axis] - 1)
        return self.small(self.b.gather(x, index, axis))

    def one_hot(self) -> Handle:
        x = self.value()
        x = x if x.info.elements <= 40 else self.shaped(x, (8,))
        x = x if len(x.shape) < 6 else self.b.reshape(x, (x.info.elements,))
        return self.b.one_hot(self.scaled(x, 0), self.choose(1, 2, 4))

    def scatter_add(self) -> Handle:
        x, _ = self.with_axis(self.within(self.value(), 52))
        size = self.choose(1, 2, 5, 9)
        if self.upto(1):
            index = self.b.constant([i * 3 % size for i in range(x.shape[-1])])
        else:
            index = self.whole(self.shaped(self.value(), x.shape[-1:]), 0, size - 1)
        return self.small(self.b.scatter_add(x, index, size))

    def slice(self) -> Handle:
        x, axis = self.with_axis(self.value())
        start = self.upto(x.shape[axis] - 1)
        return self.b.slice(x, axis, start, start + 1 + self.upto(x.shape[axis] - 1 - start))

    def concat(self) -> Handle:
        x, axis = self.with_axis(self.value())
        y = self.scaled(self.value(), x.frac)
        y = self.shaped(y, (*x.shape[:axis], self.choose(1, 2, x.shape[axis]), *x.shape[axis + 1 :]))
        return self.small(self.b.concat(*((x, y) if self.upto(1) else (y, x)), axis))

    def select(self) -> Handle:
        condition = self.value()
        x, y = self.two(self.partner(condition), self.partner(condition))
        if condition.frac or not 0 <= condition.lo <= condition.hi <= 1:
            condition = self.b.positive(condition)
        return self.b.select(self.shaped(condition, x.shape), x, self.shaped(y, x.shape))

    def isqrt(self) -> Handle:
        x = self.b.relu(self.value())
        return self.b.isqrt(x if x.frac % 2 == 0 else self.scaled(x, x.frac - 1))

    def isqrt_beside_a_square(self) -> Handle:
        b, x = self.b, self.within(self.value(), 31)
        root = b.add(x, b.constant(1_963_000_000, frac=x.frac))  # up to 2^31.5, as far as squares fit
        square = b.mul(root, root)
        return b.isqrt(b.relu(b.sub(square, b.constant(self.upto(1), frac=square.frac))))

    def beside_its_own_view(self) -> Handle:
        """One memory under two names in one operation, which must not write over it."""
        b, (x, axis) = self.b, self.with_axis(self.within(self.value(), 40))
        x, length = b.mul(x, b.constant(3)), x.shape[axis]
        if length > 1 and self.upto(1):
            return b.sub(b.slice(x, axis, 1, length), b.slice(x, axis, 0, length - 1))
        side = math.isqrt(x.info.elements)
        square = b.reshape(b.slice(b.reshape(x, (x.info.elements,)), 0, 0, side * side), (side, side))
        return b.sub(square, b.transpose(square))

    def random(self) -> Handle:
        stream, bits = self.choose(0, 1, 2**63 - 1), self.choose(1, 8, 16, 31, 32)
        return self.b.random(self.scalar(), stream=stream, bits=bits, shape=self.some_shape())

    def check(self) -> Handle:
        x = self.value()
        shift = self.choose(0, 0, 0, 1, 12)
        return self.b.check(x, min(x.lo >> shift, x.hi), max(x.hi >> shift, x.lo))

    def nothing(self) -> Handle:
        """An operation without effect: the builder leaves it out, but a stranger's program may have it."""
        x = self.value()
        top = (1 << 63) - 1
        changes: dict[Opcode, tuple[int, ...]] = {
            Opcode.TRANSPOSE: tuple(range(len(x.shape))),
            Opcode.RESCALE: (0, 64),
            Opcode.CLAMP: (x.lo - (x.lo > ~top), top),
            Opcode.CHECK: (x.lo, x.hi),
            Opcode.BROADCAST: x.shape,
            Opcode.RESHAPE: x.shape,
        }
        if x.lo >= 0:
            changes[Opcode.RELU] = ()
        if x.shape:
            changes[Opcode.SLICE] = (len(x.shape) - 1, 0, x.shape[-1])
        opcode = self.draw(st.sampled_from(sorted(changes)))
        return self.b._op(opcode, x, attributes=changes[opcode])

    def softmax(self) -> Handle:
        b = self.b
        x, axis = self.with_axis(self.within(self.value(), 32))
        below = b.clamp(self.scaled(b.sub(b.reduce_max(x, axis), x), 0), 0, 63)
        e = b.lookup(below, b.constant([round(2**16 * math.exp(-i / 8)) for i in range(64)], frac=16))
        return b.div_floor(b.widen(e, frac=28), b.clamp(b.reduce_sum(e, axis), 1, 2**30))

    def normalise(self) -> Handle:
        b = self.b
        x, axis = self.with_axis(self.within(self.value(), 20))
        centred = b.sub(b.mul(x, b.constant(x.shape[axis])), b.reduce_sum(x, axis))
        root = b.isqrt(b.reduce_sum(b.mul(centred, centred), axis))
        return b.div_floor(b.widen(centred, frac=centred.frac + 12), b.clamp(root, 1, 2**40))

    def scalar(self) -> Handle:
        """The step number, or whatever else has one element or can be made to."""
        if self.upto(1):
            return self.step
        x = self.scaled(self.value(), 0)
        return self.b.reshape(x if x.info.elements == 1 else self.shaped(x, (1,)), ())

    def small(self, x: Handle) -> Handle:
        return x if x.info.elements <= self.most_elements else self.shaped(x, (self.most_elements,))

    # The whole

    def grow(self) -> None:
        """One more value."""
        made: Handle = self.draw(st.sampled_from(MOVES))(self)
        if abs(made.frac) > 40:
            made = self.scaled(made, 0)
        self.pool.append(made)

    def finish(self) -> Program:
        b, swapped = self.b, self.upto(1)
        for name, type_ in self.states.items():
            if name in ("p", "q") and swapped:
                b.update(name, self.pool[2 if name == "p" else 1])
            else:
                given = b.saturate(self.scaled(self.shaped(self.value(), type_.shape), type_.frac), bits=type_.bits)
                b.update(name, given)
        for number, value in enumerate(value for value in self.pool if value not in self.used):
            name = f"out{number}"  # exactly as wide as the value: an error in any bit of it shows
            b.state(name, value.info.type)
            b.update(name, value)
        return b.build()


MOVES: Final[tuple[Callable[[Writer], Handle], ...]] = (
    Writer.matmul_nt,
    Writer.transpose,
    Writer.add,
    Writer.sub,
    Writer.mul,
    Writer.square,
    Writer.rescale,
    Writer.clamp,
    Writer.relu,
    Writer.positive,
    Writer.lookup,
    Writer.reduce_sum,
    Writer.reduce_max,
    Writer.div_floor,
    Writer.div_floor_beside_a_multiple,
    Writer.broadcast,
    Writer.reshape,
    Writer.gather,
    Writer.one_hot,
    Writer.scatter_add,
    Writer.slice,
    Writer.concat,
    Writer.select,
    Writer.isqrt,
    Writer.isqrt_beside_a_square,
    Writer.random,
    Writer.check,
    Writer.nothing,
    Writer.beside_its_own_view,
    Writer.softmax,
    Writer.normalise,
    Writer.linear,
    # What real steps have most of, once more:
    Writer.linear,
    Writer.linear,
    Writer.transpose,
    Writer.add,
    Writer.sub,
    Writer.mul,
    Writer.rescale,
    Writer.slice,
    Writer.concat,
)


@st.composite
def programs(
    draw: st.DrawFn, moves: int = 28, sides: Sequence[int] = SIDES, most_elements: int = MAX_ELEMENTS
) -> Program:
    """A valid program of `moves` moves or fewer, each of one to ten operations, on axes of these lengths."""
    writer = Writer(draw, sides, most_elements)
    for _ in range(draw(st.integers(moves // 4, moves))):
        writer.grow()
    program = writer.finish()
    return wasteful(draw, program) if draw(st.booleans()) else program


def wasteful(draw: st.DrawFn, program: Program) -> Program:
    """The same results with some operations made twice, and one of the two read by nothing: what the builder never
    writes and the decoder admits."""
    numbers = list(range(program.first_op))
    ops: list[Op] = []
    for op in program.ops:
        made = Op(op.opcode, tuple(numbers[operand] for operand in op.operands), op.attributes)
        copies, read = (2, draw(st.integers(0, 1))) if draw(st.integers(0, 9)) == 0 else (1, 0)
        numbers.append(program.first_op + len(ops) + read)
        ops += [made] * copies
    return Program(program.inputs, program.constants, tuple(ops), tuple(numbers[number] for number in program.outputs))


def hostile_state(types: Mapping[str, TensorType], seed: int) -> State:
    """Elements at both ends of their types, at zero and beside powers of two, and any others."""
    chance = random.Random(seed)
    return {name: ExactTensor(type_, _hostile(type_, chance)) for name, type_ in types.items()}


def _hostile(type_: TensorType, chance: random.Random) -> torch.Tensor:
    def element() -> int:
        power = chance.choice((-1, 1)) << chance.randrange(type_.bits)
        uniform = chance.randint(type_.lo, type_.hi)
        picked = chance.choice((type_.lo, type_.hi, 0, -1, 1, power + chance.randint(-1, 1), uniform, uniform))
        return min(max(picked, type_.lo), type_.hi)

    return torch.tensor([element() for _ in range(type_.elements)], dtype=torch.int64).reshape(type_.shape)
