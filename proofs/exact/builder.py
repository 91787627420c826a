"""Writing a program by hand, one readable call per operation.

    b = ProgramBuilder()
    w = b.state("w", TensorType((1, 3), bits=32, frac=24))
    x = b.data("x", TensorType((100, 3), bits=16, frac=12))
    z = b.matmul_nt(x, b.rescale(w, frac=12, bits=16))     # [100, 1], 24 fraction bits
    ...
    b.update("w", b.rescale(new_w, frac=24, bits=32))      # saturates to the state's type
    program = b.build()

Methods take and return handles. Each is checked at once by the static range analysis: an operation that could overflow,
leave a table or divide by zero raises ProgramError on the line that wrote it, naming the operation and the ranges.
Operations on two or three elements broadcast as NumPy does, by inserting reshape and broadcast operations.

Programs come out small: the same operation on the same operands is one handle (two draws of one random stream are the
same numbers, too), a method that would change nothing returns its operand, and `build` leaves out what no update
depends on. Checks stay: they can end a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proofs.exact.opcodes import Opcode
from proofs.exact.program import (
    SEED_NAME,
    SEED_TYPE,
    Constant,
    Input,
    InputKind,
    Op,
    Program,
    ProgramError,
    check_name,
    infer_op,
)
from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import MAX_BITS, TensorType, bits_for


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """A value of the program being built, and what is known of it: shape, frac, lo, hi, bits."""

    info: ValueInfo
    source: Input | Constant | Op
    owner: ProgramBuilder
    operands: tuple[Handle, ...] = ()
    origin: object = None
    """What the builder's `origin` was when the value was first asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def frac(self) -> int:
        return self.info.frac

    @property
    def bits(self) -> int:
        return self.info.bits

    @property
    def lo(self) -> int:
        return self.info.lo

    @property
    def hi(self) -> int:
        return self.info.hi

    def __str__(self) -> str:
        return str(self.info)


class ProgramBuilder:
    """Collects operations; `build` numbers them. A builder makes one program."""

    def __init__(self) -> None:
        self.origin: object = None
        """Whoever writes a program may set this, at any time, to where the next operations come from."""
        self._inputs: dict[str, Handle] = {}
        self._constants: dict[Constant, Handle] = {}
        self._ops: dict[tuple[Opcode, tuple[Handle, ...], tuple[int, ...]], Handle] = {}
        self._updates: dict[str, Handle] = {}

    # What a step reads

    def state(self, name: str, type_: TensorType) -> Handle:
        """A tensor that every step reads and replaces (see `update`): parameters, optimiser state, step counter."""
        return self._input(Input(name, InputKind.STATE, type_))

    def data(self, name: str, type_: TensorType) -> Handle:
        """A tensor of the shard, the same in every step."""
        return self._input(Input(name, InputKind.DATA, type_))

    def seed(self) -> Handle:
        """The unit's seed: a scalar of 64 bits that the executor gives. Call it again for the same handle."""
        given = self._inputs.get(SEED_NAME)
        if given is not None and isinstance(given.source, Input) and given.source.kind is InputKind.SEED:
            return given
        return self._input(Input(SEED_NAME, InputKind.SEED, SEED_TYPE))

    def constant(self, values: int | Sequence[int], *, frac: int = 0, shape: tuple[int, ...] | None = None) -> Handle:
        """A scalar, a list, or with `shape` any tensor in row-major order; bits are the least that hold it. A real
        number r is written round(r * 2^frac)."""
        listed = (values,) if isinstance(values, int) else values
        if not len(listed):
            raise ProgramError("a constant without values")
        default: tuple[int, ...] = () if isinstance(values, int) else (len(listed),)
        bits = bits_for(min(listed), max(listed))
        if bits > MAX_BITS:
            raise ProgramError(f"a constant in {min(listed)}..{max(listed)} needs {bits} bits")
        constant = Constant.of(TensorType(default if shape is None else shape, bits, frac), listed)
        given = self._constants.get(constant)
        if given is None:
            given = self._constants[constant] = Handle(constant.info, constant, self, origin=self.origin)
        return given

    # Linear algebra

    def matmul_nt(self, a: Handle, b: Handle) -> Handle:
        """a · bᵀ: [..., m, k], [..., n, k] -> [..., m, n], for up to two equal leading axes; frac adds. Fast while
        k * |a| * |b| < 2^53, refused from 2^63 on."""
        return self._op(Opcode.MATMUL_NT, a, b)

    def transpose(self, a: Handle, axes: Sequence[int] | None = None) -> Handle:
        """Axis i of the result is axis axes[i] of `a`; without `axes` the last two change places."""
        rank = len(a.shape)
        if axes is None:
            if rank < 2:
                raise ProgramError(f"transpose {a}: there are no two axes")
            axes = (*range(rank - 2), rank - 1, rank - 2)
        return a if tuple(axes) == tuple(range(rank)) else self._op(Opcode.TRANSPOSE, a, attributes=tuple(axes))

    # Element by element

    def add(self, a: Handle, b: Handle) -> Handle:
        """a + b, of equal frac."""
        return self._op(Opcode.ADD, *self._same_shape(a, b))

    def sub(self, a: Handle, b: Handle) -> Handle:
        """a - b, of equal frac."""
        return self._op(Opcode.SUB, *self._same_shape(a, b))

    def mul(self, a: Handle, b: Handle) -> Handle:
        """a * b; frac adds."""
        return self._op(Opcode.MUL, *self._same_shape(a, b))

    def div_floor(self, a: Handle, b: Handle) -> Handle:
        """floor(a / b) of the integers; frac subtracts. b >= 1 must be known: clamp it."""
        return self._op(Opcode.DIV_FLOOR, *self._same_shape(a, b))

    def rescale(self, a: Handle, *, frac: int, bits: int) -> Handle:
        """To fewer (or equal) fraction bits, halves rounded up, saturating to `bits`."""
        if frac == a.frac and a.bits <= bits <= MAX_BITS:
            return a
        return self._op(Opcode.RESCALE, a, attributes=(a.frac - frac, bits))

    def saturate(self, a: Handle, *, bits: int) -> Handle:
        """The same scale, within `bits`."""
        return self.rescale(a, frac=a.frac, bits=bits)

    def widen(self, a: Handle, *, frac: int) -> Handle:
        """To more fraction bits, without loss: times 2^(frac - a.frac)."""
        if frac < a.frac:
            raise ProgramError(f"widen {a} to frac {frac}: that is a rescale")
        return a if frac == a.frac else self.mul(a, self.constant(1 << (frac - a.frac), frac=frac - a.frac))

    def clamp(self, a: Handle, lo: int, hi: int) -> Handle:
        """min(max(a, lo), hi) of the integers."""
        return a if lo <= a.lo and a.hi <= hi else self._op(Opcode.CLAMP, a, attributes=(lo, hi))

    def check(self, a: Handle, lo: int, hi: int) -> Handle:
        """`a` itself, within lo..hi from here on: an element outside ends the unit in the OVERFLOW state. A check
        stays in the program even if nothing reads its result."""
        return a if lo <= a.lo and a.hi <= hi else self._op(Opcode.CHECK, a, attributes=(lo, hi))

    def relu(self, a: Handle) -> Handle:
        """max(a, 0)."""
        return a if a.lo >= 0 else self._op(Opcode.RELU, a)

    def positive(self, a: Handle) -> Handle:
        """1 where a > 0, else 0; frac 0."""
        return self._op(Opcode.POSITIVE, a)

    def select(self, condition: Handle, a: Handle, b: Handle) -> Handle:
        """`a` where the condition (0..1, frac 0) is 1, `b` where it is 0; a and b of equal frac."""
        return self._op(Opcode.SELECT, *self._same_shape(condition, a, b))

    def isqrt(self, a: Handle) -> Handle:
        """floor(sqrt(a)) of the integers; frac, which must be even, halves. a >= 0 must be known."""
        return self._op(Opcode.ISQRT, a)

    def lookup(self, index: Handle, table: Handle) -> Handle:
        """table[index] at every element; the table is a constant with one axis. 0 <= index < len(table) must be
        known."""
        return self._op(Opcode.LOOKUP, index, table)

    def one_hot(self, a: Handle, classes: int) -> Handle:
        """[...] -> [..., classes], 1 at place a and 0 elsewhere; frac 0."""
        return self._op(Opcode.ONE_HOT, a, attributes=(classes,))

    # Across an axis

    def reduce_sum(self, a: Handle, axis: int) -> Handle:
        """Sum along an axis, which stays with length 1."""
        return self._op(Opcode.REDUCE_SUM, a, attributes=(axis,))

    def reduce_max(self, a: Handle, axis: int) -> Handle:
        """Greatest element along an axis, which stays with length 1."""
        return self._op(Opcode.REDUCE_MAX, a, attributes=(axis,))

    # Shape and choice of rows

    def reshape(self, a: Handle, shape: tuple[int, ...]) -> Handle:
        """The same elements in row-major order."""
        return a if shape == a.shape else self._op(Opcode.RESHAPE, a, attributes=shape)

    def broadcast(self, a: Handle, shape: tuple[int, ...]) -> Handle:
        """Repeated along new leading axes and axes of length 1, as NumPy does."""
        if len(a.shape) < len(shape):
            a = self.reshape(a, (1,) * (len(shape) - len(a.shape)) + a.shape)
        return a if a.shape == shape else self._op(Opcode.BROADCAST, a, attributes=shape)

    def slice(self, a: Handle, axis: int, start: int, stop: int) -> Handle:
        """a[.., start:stop, ..] at this axis, for 0 <= start < stop <= its length."""
        whole = 0 <= axis < len(a.shape) and (start, stop) == (0, a.shape[axis])
        return a if whole else self._op(Opcode.SLICE, a, attributes=(axis, start, stop))

    def concat(self, a: Handle, b: Handle, axis: int) -> Handle:
        """`a`, then `b`, along this axis; equal frac and equal shapes beside it."""
        return self._op(Opcode.CONCAT, a, b, attributes=(axis,))

    def gather(self, a: Handle, index: Handle, axis: int = 0) -> Handle:
        """[.., n, ..], [b] -> [.., b, ..]: out[.., i, ..] = a[.., index[i], ..]. 0 <= index < n must be known."""
        return self._op(Opcode.GATHER, a, index, attributes=(axis,))

    def scatter_add(self, a: Handle, index: Handle, size: int) -> Handle:
        """[..., n], [n] -> [..., size]: out[.., j] = sum of a[.., i] over all i with index[i] = j. 0 <= index < size
        must be known. Where the index is a constant, the bound on the sums counts how often each j occurs in it."""
        return self._op(Opcode.SCATTER_ADD, a, index, attributes=(size,))

    def permute(self, t: Handle, *, samples: int, batch: int) -> Handle:
        """[batch] indices of the samples of step `t` (a scalar): a keyed permutation of all samples in every epoch."""
        return self._op(Opcode.PERMUTE, self.seed(), t, attributes=(samples, batch))

    def random(self, t: Handle, *, stream: int, bits: int, shape: tuple[int, ...]) -> Handle:
        """Uniform integers in 0..2^bits - 1 (1 <= bits <= 32), others for every step `t` (a scalar), seed and
        stream; frac 0."""
        return self._op(Opcode.RANDOM, self.seed(), t, attributes=(stream, bits, *shape))

    # What a step writes

    def update(self, name: str, value: Handle) -> None:
        """The new value of a state tensor: its shape and frac, within its bits. Each state tensor needs one."""
        given = self._inputs.get(name)
        if given is None or not isinstance(given.source, Input) or given.source.kind is not InputKind.STATE:
            raise ProgramError(f"{name!r} is not a state tensor of this program")
        if value.owner is not self:
            raise ProgramError(f"the update of {name!r} is a handle of another builder")
        if name in self._updates:
            raise ProgramError(f"state {name!r} is updated twice")
        type_ = given.source.type
        if (value.shape, value.frac) != (type_.shape, type_.frac) or value.lo < type_.lo or value.hi > type_.hi:
            raise ProgramError(f"state {name!r} is {type_}; {value} may not fit it: rescale or saturate")
        self._updates[name] = value

    def build(self) -> Program:
        """The program. Raises ProgramError if a state tensor has no update."""
        inputs = sorted(self._inputs.values(), key=lambda handle: _order(handle.source))
        sources = [handle.source for handle in inputs if isinstance(handle.source, Input)]
        names = [source.name for source in sources if source.kind is InputKind.STATE]
        missing = [name for name in names if name not in self._updates]
        if missing:
            raise ProgramError(f"state {', '.join(missing)} has no update")
        needed = self._needed()
        constants = [constant for constant, handle in self._constants.items() if handle in needed]
        kept = self.operations()
        numbers = {handle: number for number, handle in enumerate(inputs)}
        for handle in (*(self._constants[constant] for constant in constants), *kept):
            numbers[handle] = len(numbers)
        ops = []
        for handle in kept:
            assert isinstance(handle.source, Op)
            operands = tuple(numbers[operand] for operand in handle.operands)
            ops.append(Op(handle.source.opcode, operands, handle.source.attributes))
        outputs = tuple(numbers[self._updates[name]] for name in names)
        return Program(tuple(sources), tuple(constants), tuple(ops), outputs)

    def operations(self) -> tuple[Handle, ...]:
        """The operations that `build` keeps, in its order: what updates and checks depend on."""
        needed = self._needed()
        return tuple(handle for handle in self._ops.values() if handle in needed)

    def _needed(self) -> set[Handle]:
        checks = (handle for (opcode, _, _), handle in self._ops.items() if opcode is Opcode.CHECK)
        waiting = [*self._updates.values(), *checks]
        needed = set(waiting)
        while waiting:
            fresh = set(waiting.pop().operands) - needed
            needed |= fresh
            waiting.extend(fresh)
        return needed

    def _input(self, source: Input) -> Handle:
        check_name(source.name)
        if source.name in self._inputs:
            raise ProgramError(f"two inputs named {source.name!r}")
        made = Handle(ValueInfo.of(source.type), source, self, origin=self.origin)
        return self._inputs.setdefault(source.name, made)

    def _op(self, opcode: Opcode, *operands: Handle, attributes: tuple[int, ...] = ()) -> Handle:
        key = (opcode, operands, attributes)
        given = self._ops.get(key)
        if given is not None:
            return given
        if any(operand.owner is not self for operand in operands):
            raise ProgramError(f"{opcode.name.lower()} reads a handle of another builder")
        op = Op(opcode, tuple(operands.index(operand) for operand in operands), attributes)
        info = infer_op(op, [operand.info for operand in operands], len(self._ops))
        made = self._ops[key] = Handle(info, op, self, operands, self.origin)
        return made

    def _same_shape(self, *handles: Handle) -> tuple[Handle, ...]:
        shape = _broadcast_shape([handle.shape for handle in handles])
        return tuple(self.broadcast(handle, shape) for handle in handles)


def _broadcast_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The least shape that all of these may broadcast to; if there is none, one that `broadcast` will refuse."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sides) for sides in zip(*padded, strict=True))


def _order(source: Input | Constant | Op) -> tuple[int, bytes]:
    assert isinstance(source, Input)
    return source.kind, source.name.encode()
