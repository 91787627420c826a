"""A program as the fused backend sees it: real operations on views of stored values, and who wants which layout.

Views are gone (they are walks over what other operations stored), rescales and clamps that change nothing are gone,
dead operations are gone except CHECK, which can end a unit. What is left is of three kinds: fused (generated code),
matrix products, and library operations, which run their torch kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from math import prod

from proofs.exact.backend.layouts import Layout, Plain, plain_for
from proofs.exact.backend.views import Dim, View, normal
from proofs.exact.kernels import may_saturate
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Op, Program
from proofs.exact.ranges import ValueInfo

ELEMENTWISE = frozenset(
    {
        Opcode.ADD,
        Opcode.SUB,
        Opcode.MUL,
        Opcode.RESCALE,
        Opcode.CLAMP,
        Opcode.RELU,
        Opcode.POSITIVE,
        Opcode.LOOKUP,
        Opcode.DIV_FLOOR,
        Opcode.SELECT,
        Opcode.ISQRT,
        Opcode.ONE_HOT,
        Opcode.RANDOM,
        Opcode.CHECK,
    }
)
REDUCTIONS = frozenset({Opcode.REDUCE_SUM, Opcode.REDUCE_MAX})
VIEWS = frozenset({Opcode.TRANSPOSE, Opcode.RESHAPE, Opcode.BROADCAST, Opcode.SLICE})
COPY = (Opcode.RESCALE, (0, 64))
"""The operation that changes nothing: how a value is stored again in another order or layout."""


class Kind(Enum):
    FUSED = auto()
    MATMUL = auto()
    LIBRARY = auto()


@dataclass(frozen=True, slots=True)
class MatmulLayouts:
    """What a product takes and leaves."""

    a: Layout
    b: Layout
    out: Layout


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation. `operands` walk in the order of the iteration: the result's elements, or for a reduction the
    operand's, whose place in the result `fold` walks."""

    number: int
    kind: Kind
    opcode: Opcode
    attributes: tuple[int, ...]
    operands: tuple[View, ...]
    infos: tuple[ValueInfo, ...]
    info: ValueInfo
    fold: tuple[Dim, ...] | None = None
    position: tuple[Dim, ...] | None = None
    """The walk of the counter that ONE_HOT and RANDOM look at."""

    @property
    def size(self) -> int:
        """How many elements the operation goes through."""
        return self.infos[0].elements if self.fold is not None else self.info.elements

    @property
    def walked(self) -> tuple[View, ...]:
        """The operands that are read in step with the iteration: all but a table."""
        return self.operands[:1] if self.opcode is Opcode.LOOKUP else self.operands

    @property
    def row_length(self) -> int | None:
        """n, if this reduction folds each n consecutive elements into one."""
        if self.fold is None:
            return None
        return View(0, 0, self.fold).repeats_rows_of()


@dataclass(slots=True)
class Graph:
    """`nodes` in an order in which they can run; `stores` the layouts in which each value has to lie in memory;
    `outputs` for each state tensor the value that is its new content (a node, or an input or constant as it is)."""

    program: Program
    nodes: dict[int, Node] = field(default_factory=dict)
    infos: dict[int, ValueInfo] = field(default_factory=dict)
    stores: dict[int, set[Layout]] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)

    def consumers(self) -> dict[int, list[Node]]:
        """By stored value."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes.values():
            for base in dict.fromkeys(view.base for view in node.operands):
                found.setdefault(base, []).append(node)
        return found


Choose = Callable[[ValueInfo, ValueInfo], MatmulLayouts]


def build(program: Program, choose: Choose, fusable: frozenset[Opcode]) -> Graph:
    """The graph of a program. `fusable` are the operations for which generated code may be used."""
    return _Builder(program, choose, fusable).graph()


class _Builder:
    def __init__(self, program: Program, choose: Choose, fusable: frozenset[Opcode]) -> None:
        self._program = program
        self._choose = choose
        self._fusable = fusable
        self._graph = Graph(program)
        self._graph.infos = dict(enumerate(program.values))
        self._views: dict[int, View] = {}
        self._copies: dict[View, int] = {}
        self._natural: dict[int, Layout] = {}
        """Layouts that are not ours to choose: inputs, constants, products, reductions, library results."""

    def graph(self) -> Graph:
        program = self._program
        for number, given in enumerate(program.inputs):
            self._views[number] = View.whole(number, given.type.shape)
            self._natural[number] = Plain(8 * given.type.width)
        for number, constant in enumerate(program.constants, start=len(program.inputs)):
            self._views[number] = View.whole(number, constant.type.shape)
            self._natural[number] = constant_layout(constant.info)
        live = live_operations(program)
        for number, op in program.numbered_ops():
            if number in live:
                self._operation(number, op)
        for (_, type_), number in zip(program.state_types.items(), program.outputs, strict=True):
            self._graph.outputs.append(self._output(number, Plain(8 * type_.width)))
        return self._graph

    def _operation(self, number: int, op: Op) -> None:
        program = self._program
        infos = tuple(program.values[operand] for operand in op.operands)
        info = program.values[number]
        views = tuple(self._views[operand] for operand in op.operands)
        if op.opcode in VIEWS:
            self._views[number] = self._viewed(op, views[0], infos[0], info)
        elif changes_nothing(op, infos[0], info):
            self._views[number] = views[0]
        else:
            self._views[number] = View.whole(number, info.shape)
            if op.opcode is Opcode.MATMUL_NT:
                self._matmul(number, op, views, infos, info)
            elif op.opcode in self._fusable:
                self._fused(number, op, views, infos, info)
            else:
                for view in views:
                    self._want_plain(view.base)
                self._natural[number] = plain_for(info)
                self._add(Node(number, Kind.LIBRARY, op.opcode, op.attributes, views, infos, info))

    def _viewed(self, op: Op, view: View, before: ValueInfo, after: ValueInfo) -> View:
        moved = walk(op, view, before, after)
        if moved is None:
            moved = walk(op, View.whole(self._copy(view, before), before.shape), before, after)
            assert moved is not None, f"{op} on a whole value"
        return moved

    def _fused(
        self, number: int, op: Op, views: tuple[View, ...], infos: tuple[ValueInfo, ...], info: ValueInfo
    ) -> None:
        fold: tuple[Dim, ...] | None = None
        position: tuple[Dim, ...] | None = None
        match op.opcode:
            case Opcode.REDUCE_SUM | Opcode.REDUCE_MAX:
                (axis,) = op.attributes
                inner = prod(infos[0].shape[axis + 1 :])
                outer = prod(infos[0].shape[:axis])
                fold = normal(((outer, inner), (infos[0].shape[axis], 0), (inner, 1)))
                self._natural[number] = folded_layout(info)
            case Opcode.ONE_HOT:
                (classes,) = op.attributes
                repeated = View(views[0].base, views[0].offset, normal((*views[0].dims, (classes, 0))))
                views, position = (repeated,), normal(((infos[0].elements, 0), (classes, 1)))
            case Opcode.RANDOM:
                everywhere = normal(((info.elements, 0),))
                views = tuple(View(view.base, view.offset, everywhere) for view in views)
                position = normal(((info.elements, 1),))
        self._add(Node(number, Kind.FUSED, op.opcode, op.attributes, views, infos, info, fold, position))

    def _matmul(
        self, number: int, op: Op, views: tuple[View, ...], infos: tuple[ValueInfo, ...], info: ValueInfo
    ) -> None:
        layouts = self._choose(*infos)
        placed = tuple(
            self._placed(view, operand, layout)
            for view, operand, layout in zip(views, infos, (layouts.a, layouts.b), strict=True)
        )
        self._natural[number] = layouts.out
        self._add(Node(number, Kind.MATMUL, op.opcode, op.attributes, placed, infos, info))
        self._graph.stores[number] = {layouts.out}

    def _placed(self, view: View, info: ValueInfo, layout: Layout) -> View:
        """The operand in the layout wanted, one stride an axis."""
        natural = self._natural.get(view.base)
        strides = view.strided(info.shape)
        repeats = strides is not None and any(
            stride == 0 and side > 1 for stride, side in zip(strides, info.shape, strict=True)
        )
        if strides is None or repeats or (natural is not None and natural != layout):
            view = View.whole(self._copy(view, info), info.shape)
        if view.base not in self._natural:
            self._graph.stores.setdefault(view.base, set()).add(layout)
        return view

    def _copy(self, view: View, info: ValueInfo) -> int:
        """A value of its own with the elements of a view."""
        if view not in self._copies:
            number = len(self._graph.infos)
            self._graph.infos[number] = info
            opcode, attributes = COPY
            self._add(Node(number, Kind.FUSED, opcode, attributes, (view,), (info,), info))
            self._copies[view] = number
        return self._copies[view]

    def _want_plain(self, base: int) -> None:
        if base not in self._natural:
            stores = self._graph.stores.setdefault(base, set())
            if not any(isinstance(layout, Plain) for layout in stores):
                stores.add(plain_for(self._graph.infos[base]))

    def _output(self, number: int, layout: Plain) -> int:
        """The value that holds an output, whole and in the layout of its state tensor."""
        view, info = self._views[number], self._program.values[number]
        as_it_is = view.is_whole and view.size == self._graph.infos[view.base].elements
        if as_it_is and self._natural.get(view.base) == layout:
            return view.base
        base = view.base if as_it_is and view.base not in self._natural else self._copy(view, info)
        self._graph.stores.setdefault(base, set()).add(layout)
        return base

    def _add(self, node: Node) -> None:
        self._graph.nodes[node.number] = node
        if node.kind is Kind.LIBRARY:
            self._graph.stores[node.number] = {self._natural[node.number]}


def walk(op: Op, view: View, before: ValueInfo, after: ValueInfo) -> View | None:
    """The result of a view operation, if strides can say it."""
    match op.opcode:
        case Opcode.TRANSPOSE:
            return view.transposed(before.shape, op.attributes)
        case Opcode.BROADCAST:
            return view.broadcast(before.shape, after.shape)
        case Opcode.SLICE:
            return view.sliced(before.shape, *op.attributes)
        case _:
            return view


def changes_nothing(op: Op, a: ValueInfo, result: ValueInfo) -> bool:
    """Whether the ranges prove that the result is the operand itself."""
    match op.opcode:
        case Opcode.RESCALE:
            shift, bits = op.attributes
            return shift == 0 and not may_saturate(a, shift, bits)
        case Opcode.CLAMP | Opcode.CHECK:
            lo, hi = op.attributes
            return lo <= a.lo and a.hi <= hi
        case Opcode.RELU:
            return a.lo >= 0
        case Opcode.REDUCE_SUM | Opcode.REDUCE_MAX:
            return a.shape == result.shape
        case _:
            return False


def live_operations(program: Program) -> set[int]:
    """Operations that an output or a CHECK depends on."""
    ops: Mapping[int, Op] = dict(program.numbered_ops())
    live: set[int] = set()
    pending = [number for number in program.outputs if number in ops]
    pending += [number for number, op in ops.items() if op.opcode is Opcode.CHECK]
    while pending:
        number = pending.pop()
        if number not in live:
            live.add(number)
            pending += [operand for operand in ops[number].operands if operand in ops]
    return live


def folded_layout(info: ValueInfo) -> Plain:
    """Reductions lie as int32 or int64: kernels may add them up in memory."""
    return Plain(max(32, plain_for(info).bits))


def constant_layout(info: ValueInfo) -> Plain:
    """Constants lie as int32 or int64: what vector code can gather."""
    return Plain(max(32, plain_for(info).bits))
