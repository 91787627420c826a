"""In which order groups run, in which layouts their values lie, from when to when, and what is written over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proofs.exact.backend.arena import Need
from proofs.exact.backend.graph import Graph, MatmulLayouts, build, constant_layout, folded_layout
from proofs.exact.backend.groups import Group, group_nodes
from proofs.exact.backend.kernel_source import Storage
from proofs.exact.backend.layouts import Float64, Layout, Plain, Product, Slices, plain_for
from proofs.exact.backend.memory import Slot, stored_bytes
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Program
from proofs.exact.ranges import ValueInfo


@dataclass(frozen=True, slots=True)
class Schedule:
    """What runs in which order, in which layouts, and where in the arena."""

    graph: Graph
    groups: tuple[Group, ...]
    stores: Mapping[int, tuple[Layout, ...]]
    """For each stored value the layouts in which it lies, widest choice first."""
    needs: Mapping[Slot, Need]
    in_place: Mapping[Slot, int]
    """Outputs that are written over the state tensor (its input's number) that they replace, if a caller lets us."""

    def read_layout(self, base: int) -> Layout:
        """The layout from which generated code reads a value."""
        return min(self.stores[base], key=_reading_cost)

    @property
    def output_slots(self) -> tuple[Slot, ...]:
        """In the order of the state tensors."""
        types = self.graph.program.state_types.values()
        return tuple(Slot(base, Plain(8 * type_.width)) for base, type_ in zip(self.graph.outputs, types, strict=True))


def _reading_cost(layout: Layout) -> tuple[int, int]:
    match layout:
        case Plain(bits):
            return (0, bits)
        case Slices(count):
            return (1, count)
        case Float64():
            return (2, 0)
        case Product(shifts):
            return (3, len(shifts))


def schedule(
    program: Program, layouts: Callable[[ValueInfo, ValueInfo], MatmulLayouts], fusable: frozenset[Opcode]
) -> Schedule:
    """The order, the layouts and the lifetimes of a program's values."""
    graph = build(program, layouts, fusable)
    outputs = set(graph.outputs)
    groups = group_nodes(graph)
    stores: dict[int, tuple[Layout, ...]] = {}
    for number, given in enumerate(program.inputs):
        stores[number] = (Plain(8 * given.type.width),)
    for number, constant in enumerate(program.constants, start=len(program.inputs)):
        stores[number] = (constant_layout(constant.info),)
    of = {node.number: index for index, group in enumerate(groups) for node in group.nodes}
    last_read: dict[int, int] = {}
    read_elsewhere: set[int] = set()
    for index, group in enumerate(groups):
        for node in group.nodes:
            for view in node.operands:
                last_read[view.base] = index
                if of.get(view.base) != index:
                    read_elsewhere.add(view.base)
    for node in graph.nodes.values():
        wanted = set(graph.stores.get(node.number, ()))
        if node.number in read_elsewhere or node.number in outputs:
            wanted = wanted or {plain_for(node.info)}
        if node.fold is not None:
            in_memory = node.number in read_elsewhere or node.number in outputs
            wanted = {folded_layout(node.info)} if in_memory or not groups[of[node.number]].in_row(node) else set()
        stores[node.number] = tuple(sorted(wanted, key=_reading_cost))
    state_types = program.state_types.values()
    of_state = {(base, Plain(8 * t.width)) for base, t in zip(graph.outputs, state_types, strict=True)}
    needs = {}
    for number, placed in stores.items():
        if number < program.first_op:
            continue
        for layout in placed:
            if (number, layout) not in of_state:
                made = of[number]
                size = stored_bytes(layout, graph.nodes[number].info.elements)
                needs[Slot(number, layout)] = Need(size, made, max(made, last_read.get(number, made)))
    return Schedule(graph, tuple(groups), stores, needs, outputs_in_place(graph, groups, of, last_read))


def outputs_in_place(
    graph: Graph, groups: Sequence[Group], of: Mapping[int, int], last_read: Mapping[int, int]
) -> dict[Slot, int]:
    """New state tensors whose kernel is the last to read the old one, each element just before it writes it. None in
    a program with a CHECK: if that fails, the old state must still be there."""
    if any(node.opcode is Opcode.CHECK for node in graph.nodes.values()):
        return {}
    found = {}
    times = Counter(graph.outputs)
    for given, (base, type_) in enumerate(zip(graph.outputs, graph.program.state_types.values(), strict=True)):
        if base not in of or times[base] > 1 or given in times:
            continue
        group = groups[of[base]]
        node = graph.nodes[base]
        if not group.fused or group.row is not None or node.fold is not None or last_read.get(given, -1) > of[base]:
            continue
        views = [view for other in group.nodes for view in other.operands if view.base == given]
        if group.size == type_.elements and all(view.is_whole and view.size == group.size for view in views):
            found[Slot(base, Plain(8 * type_.width))] = given
    return found


def storage_of(plan: Schedule, group: Group) -> Storage:
    """Where the values of a group lie."""
    program, graph = plan.graph.program, plan.graph
    made = {node.number for node in group.nodes}
    reads = {
        view.base: plan.read_layout(view.base)
        for node in group.nodes
        for view in node.operands
        if view.base not in made
    }
    first = len(program.inputs)
    constants = {
        number: program.constants[number - first].bounds[0]
        for number in reads
        if first <= number < program.first_op and program.constants[number - first].type.elements == 1
    }
    bounds = {
        base: graph.nodes[base].infos[0].shape[-1] * 2**14
        for base, layout in reads.items()
        if isinstance(layout, Product)
    }
    writes = {node.number: plan.stores[node.number] for node in group.nodes}
    slots = [Slot(number, layout) for number in made for layout in plan.stores[number]]
    in_place = {slot: plan.in_place[slot] for slot in slots if slot in plan.in_place}
    return Storage(graph.infos, reads, writes, constants, bounds, in_place)
