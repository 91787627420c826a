"""Writing a program by hand, one readable call per operation.

    b = ProgramBuilder()
    w = b.state("w", TensorType((1, 3), bits=32, frac=24))
    x = b.data("x", TensorType((100, 3), bits=16, frac=12))
    z = b.matmul_nt(x, b.rescale(w, frac=12, bits=16))     # [100, 1], 24 fraction bits
    ...
    b.update("w", b.rescale(new_w, frac=24, bits=32))      # saturates to the state's type
    program = b.build()

Methods take and return handles. Each is checked at once by the static range analysis: an operation that could overflow,
leave a table or divide by zero raises ProgramError on the line that wrote it, naming the operation and the ranges. The
binary operations broadcast as NumPy does, by inserting reshape and broadcast operations.
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
from proofs.exact.tensor_type import TensorType, bits_for


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """A value of the program being built, and what is known of it: shape, frac, lo, hi, bits."""

    info: ValueInfo
    source: Input | Constant | Op
    owner: ProgramBuilder
    operands: tuple[Handle, ...] = ()

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
        self._inputs: dict[str, Handle] = {}
        self._constants: dict[Constant, Handle] = {}
        self._ops: list[Handle] = []
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
        listed = (values,) if isinstance(values, int) else tuple(values)
        if not listed:
            raise ProgramError("a constant without values")
        default: tuple[int, ...] = () if isinstance(values, int) else (len(listed),)
        bits = bits_for(min(listed), max(listed))
        if bits > 64:
            raise ProgramError(f"a constant in {min(listed)}..{max(listed)} needs {bits} bits")
        constant = Constant(TensorType(default if shape is None else shape, bits, frac), listed)
        return self._constants.setdefault(constant, Handle(constant.info, constant, self))

    # Linear algebra

    def matmul_nt(self, a: Handle, b: Handle) -> Handle:
        """a · bᵀ: [m, k], [n, k] -> [m, n]; frac adds. Fast (float64) while k * |a| * |b| < 2^53, refused from 2^63
        on."""
        return self._op(Opcode.MATMUL_NT, a, b)

    def transpose(self, a: Handle) -> Handle:
        """[m, n] -> [n, m]."""
        return self._op(Opcode.TRANSPOSE, a)

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
        return self._op(Opcode.RESCALE, a, attributes=(a.frac - frac, bits))

    def saturate(self, a: Handle, *, bits: int) -> Handle:
        """The same scale, within `bits`."""
        return self.rescale(a, frac=a.frac, bits=bits)

    def widen(self, a: Handle, *, frac: int) -> Handle:
        """To more fraction bits, without loss: times 2^(frac - a.frac)."""
        if frac < a.frac:
            raise ProgramError(f"widen {a} to frac {frac}: that is a rescale")
        return self.mul(a, self.constant(1 << (frac - a.frac), frac=frac - a.frac))

    def clamp(self, a: Handle, lo: int, hi: int) -> Handle:
        """min(max(a, lo), hi) of the integers."""
        return self._op(Opcode.CLAMP, a, attributes=(lo, hi))

    def relu(self, a: Handle) -> Handle:
        """max(a, 0)."""
        return self._op(Opcode.RELU, a)

    def positive(self, a: Handle) -> Handle:
        """1 where a > 0, else 0; frac 0."""
        return self._op(Opcode.POSITIVE, a)

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
        return self._op(Opcode.RESHAPE, a, attributes=shape)

    def broadcast(self, a: Handle, shape: tuple[int, ...]) -> Handle:
        """Repeated along new leading axes and axes of length 1, as NumPy does."""
        if len(a.shape) < len(shape):
            a = self.reshape(a, (1,) * (len(shape) - len(a.shape)) + a.shape)
        return a if a.shape == shape else self._op(Opcode.BROADCAST, a, attributes=shape)

    def gather(self, a: Handle, index: Handle) -> Handle:
        """[n, ...], [b] -> [b, ...]: rows of a. 0 <= index < n must be known."""
        return self._op(Opcode.GATHER, a, index)

    def permute(self, t: Handle, *, samples: int, batch: int) -> Handle:
        """[batch] indices of the samples of step `t` (a scalar): a keyed permutation of all samples in every epoch."""
        return self._op(Opcode.PERMUTE, self.seed(), t, attributes=(samples, batch))

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
        numbers: dict[int, int] = {}
        for handle in (*inputs, *self._constants.values(), *self._ops):
            numbers[id(handle)] = len(numbers)
        ops = []
        for handle in self._ops:
            assert isinstance(handle.source, Op)
            operands = tuple(numbers[id(operand)] for operand in handle.operands)
            ops.append(Op(handle.source.opcode, operands, handle.source.attributes))
        sources = [handle.source for handle in inputs if isinstance(handle.source, Input)]
        names = [source.name for source in sources if source.kind is InputKind.STATE]
        missing = [name for name in names if name not in self._updates]
        if missing:
            raise ProgramError(f"state {', '.join(missing)} has no update")
        outputs = tuple(numbers[id(self._updates[name])] for name in names)
        return Program(tuple(sources), tuple(self._constants), tuple(ops), outputs)

    def _input(self, source: Input) -> Handle:
        check_name(source.name)
        if source.name in self._inputs:
            raise ProgramError(f"two inputs named {source.name!r}")
        return self._inputs.setdefault(source.name, Handle(ValueInfo.of(source.type), source, self))

    def _op(self, opcode: Opcode, *operands: Handle, attributes: tuple[int, ...] = ()) -> Handle:
        if any(operand.owner is not self for operand in operands):
            raise ProgramError(f"{opcode.name.lower()} reads a handle of another builder")
        op = Op(opcode, tuple(range(len(operands))), attributes)
        info = infer_op(op, [operand.info for operand in operands], len(self._ops))
        handle = Handle(info, op, self, operands)
        self._ops.append(handle)
        return handle

    def _same_shape(self, a: Handle, b: Handle) -> tuple[Handle, Handle]:
        if a.shape == b.shape:
            return a, b
        rank = max(len(a.shape), len(b.shape))
        padded = [(1,) * (rank - len(x.shape)) + x.shape for x in (a, b)]
        shape = tuple(max(x, y) for x, y in zip(*padded, strict=True))
        return self.broadcast(a, shape), self.broadcast(b, shape)


def _order(source: Input | Constant | Op) -> tuple[int, bytes]:
    assert isinstance(source, Input)
    return source.kind, source.name.encode()
