"""A group of operations as one function in LLVM's language.

    void kernel(ptr *pointers, i64 begin, i64 end)      begin..end of the outermost loop: what threads share out

The loop nest has as few loops as the strides of all accesses allow; the innermost is the one that LLVM vectorises. A
group with rows has one inner nest per phase: a phase ends where a reduction along the row must be complete. What a
later phase needs again is computed again if that is cheap, read again if it was stored, and kept in a scratch row
otherwise. Pointers are numbered in the order of first use and nothing carries a value's number, so equal work in
another layer is equal text, and compiled once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proofs.exact.backend import emit
from proofs.exact.backend.emit import Code, Word, width
from proofs.exact.backend.graph import Node
from proofs.exact.backend.groups import Group
from proofs.exact.backend.layouts import Float64, Layout, Plain, Product, Slices, plane_dtypes
from proofs.exact.backend.memory import Slot
from proofs.exact.backend.views import Dim, View, contiguous, nest, strides_in
from proofs.exact.opcodes import Opcode
from proofs.exact.ranges import ValueInfo

CHEAP = 4
"""Instructions that are sooner done again than kept: a store and a load of the scratch row, which compete with the
streams from memory."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One pointer of a kernel: a plane of a stored value; `base` None is the flag that a failed CHECK sets."""

    base: int | None
    layout: Layout
    plane: int
    written: bool


@dataclass(frozen=True, slots=True)
class Fold:
    """A reduction that a kernel adds (or maximises) into memory, which must hold the neutral element before."""

    base: int
    opcode: Opcode


@dataclass(frozen=True, slots=True)
class KernelSource:
    """`text` is complete LLVM assembly defining `symbol`; `extent` is where the outermost loop ends."""

    symbol: str
    text: str
    parameters: tuple[Parameter, ...]
    extent: int
    folds: tuple[Fold, ...]


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a group's values lie: `reads` the layout of each value it reads, `writes` those in which it has to store
    each value it makes; `constants` the values of one known element; `plane_bounds` of each Product it reads;
    `in_place` the input whose memory a stored value takes, element by element: then both are one pointer."""

    infos: Mapping[int, ValueInfo]
    reads: Mapping[int, Layout]
    writes: Mapping[int, tuple[Layout, ...]]
    constants: Mapping[int, int]
    plane_bounds: Mapping[int, int]
    in_place: Mapping[Slot, int]


def generate(group: Group, storage: Storage) -> KernelSource:
    """The kernel of a fused group."""
    return _Generator(group, storage).source()


@dataclass(slots=True)
class _Walk:
    """A stream of addresses: strides for each loop of the nest, and the running offset while the nest is written."""

    strides: tuple[int, ...]
    offset: int
    running: list[str] = field(default_factory=list)


class _Generator:
    def __init__(self, group: Group, storage: Storage) -> None:
        self._group = group
        self._storage = storage
        self._code = Code()
        self._made = {node.number: node for node in group.nodes}
        self._parameters: dict[Parameter, int] = {}
        self._one_name: dict[Parameter, Parameter] = {}
        """Both names of memory that is read and written over: LLVM is told that different pointers never meet."""
        for slot, given in storage.in_place.items():
            shared = Parameter(given, slot.layout, 0, True)
            self._one_name[Parameter(slot.base, slot.layout, 0, True)] = shared
            self._one_name[Parameter(given, slot.layout, 0, False)] = shared
        self._element: dict[int, bool] = {node.number: group.per_element(node) for node in group.nodes}
        """Whether a node iterates element by element."""
        self._phase: dict[int, int] = {}
        self._folds: list[Fold] = []
        self._scratch: dict[int, str] = {}
        self._accumulators: dict[int, str] = {}
        self._row_words: dict[int, Word] = {}
        self._words: dict[object, Word] = {}
        self._walks: dict[tuple[View | tuple[Dim, ...], bool], _Walk] = {}
        self._rows: tuple[int, ...] = ()
        self._inner: tuple[int, ...] = ()
        self._current_phase = 0
        self._stored_in_phase: dict[int, tuple[int, Layout]] = {}

    # The plan of the nest

    def source(self) -> KernelSource:
        self._set_phases()
        self._lay_out()
        self._choose_scratch()
        extent = self._write_body()
        return self._assemble(extent)

    def _in_row(self, number: int) -> bool:
        node = self._made[number]
        return node.fold is not None and self._group.in_row(node)

    def _set_phases(self) -> None:
        """An element value: the first loop that can compute it. A row value: the first loop that can read it."""
        for node in self._group.nodes:
            phase = max((self._phase[view.base] for view in node.walked if view.base in self._made), default=0)
            self._phase[node.number] = phase + 1 if self._in_row(node.number) else phase

    def _is_element(self, number: int) -> bool:
        """Whether a value made here has one number per element of the iteration (and not one per row)."""
        return self._element[number] and self._made[number].fold is None

    def _lay_out(self) -> None:
        group = self._group
        sizes = nest(group.cuts | {group.size})
        assert sizes is not None
        split = len(sizes)
        if group.row is not None:
            inside = 1
            while inside < group.row:
                split -= 1
                inside *= sizes[split]
            assert inside == group.row
        walks: dict[tuple[View | tuple[Dim, ...], bool], tuple[int, tuple[int, ...]]] = {}
        for node in group.nodes:
            per_element = self._element[node.number]
            for view in node.walked:
                if view.base not in self._made:
                    walks[view, per_element] = (view.offset, self._strides(view.dims, per_element, sizes, split))
            for walk in (node.fold, node.position):
                if walk is not None:
                    walks[walk, per_element] = (0, self._strides(walk, per_element, sizes, split))
            value_per_element = self._is_element(node.number)
            own = contiguous(group.size if value_per_element else group.size // (group.row or 1))
            if node.fold is None or self._in_row(node.number):
                walks[own, value_per_element] = (0, self._strides(own, value_per_element, sizes, split))
        along = contiguous(group.row or 1)
        if group.row is not None:
            inner_only = strides_in(along, sizes[split:])
            walks[("row",), True] = (0, (*(0,) * split, *inner_only))  # type: ignore[index]
        merged_sizes, places = _collapse(sizes, split, [strides for _, strides in walks.values()])
        merged_split = sum(place < split for place in places)
        self._walks = {
            key: _Walk(tuple(strides[place] for place in places), offset) for key, (offset, strides) in walks.items()
        }
        if group.row is None:
            merged_split = max(len(merged_sizes) - 1, 0)
        self._rows, self._inner = merged_sizes[:merged_split], merged_sizes[merged_split:]

    def _strides(self, dims: tuple[Dim, ...], per_element: bool, sizes: tuple[int, ...], split: int) -> tuple[int, ...]:
        if per_element:
            return strides_in(dims, sizes)
        return (*strides_in(dims, sizes[:split]), *(0,) * (len(sizes) - split))

    # What is computed when

    def _roots(self, phase: int) -> list[Node]:
        """Element nodes that this phase must compute: to store, to reduce, to check, to keep."""
        found = []
        for node in self._group.nodes:
            number = node.number
            if not self._element[number]:
                continue
            own = self._phase[number] - (1 if self._in_row(number) else 0)
            needed = (
                node.fold is not None
                or self._storage.writes.get(number)
                or node.opcode is Opcode.CHECK
                or number in self._scratch
            )
            if own == phase and needed:
                found.append(node)
        return found

    @property
    def _phases(self) -> int:
        last = 0
        for node in self._group.nodes:
            if self._element[node.number]:
                last = max(last, self._phase[node.number] - (1 if self._in_row(node.number) else 0))
        return last + 1

    def _choose_scratch(self) -> None:
        """From the last phase back: what an earlier one computed and is not cheap is kept in a row."""
        for phase in reversed(range(self._phases)):
            seen: set[int] = set()
            pending = [view.base for node in self._roots(phase) for view in node.walked]
            while pending:
                number = pending.pop()
                if number in seen or number not in self._made or not self._is_element(number):
                    continue
                seen.add(number)
                node = self._made[number]
                if self._phase[number] < phase and self._kept(node):
                    continue
                pending += [view.base for view in node.walked]

    def _kept(self, node: Node) -> bool:
        """Whether a later phase reads the node's value from memory, and if so makes sure that it is there."""
        if node.number in self._scratch or self._readable_store(node.number) is not None:
            return True
        if self._cost(node) <= CHEAP:
            return False
        self._scratch[node.number] = f"%scratch{len(self._scratch)}"
        return True

    def _readable_store(self, number: int) -> Plain | None:
        plain = [layout for layout in self._storage.writes.get(number, ()) if isinstance(layout, Plain)]
        return min(plain, key=lambda layout: layout.bits) if plain else None

    def _cost(self, node: Node) -> int:
        own = {Opcode.DIV_FLOOR: 20, Opcode.ISQRT: 20, Opcode.LOOKUP: 10, Opcode.RANDOM: 20}.get(node.opcode, 1)
        total = own
        for view in node.walked:
            if view.base not in self._made:
                layout = self._storage.reads.get(view.base)
                total += 0 if layout is None or isinstance(layout, Plain) else 2 * len(plane_dtypes(layout)) - 1
            elif self._is_element(view.base):
                total += self._cost(self._made[view.base])
            if total > CHEAP:
                break
        return total

    # Writing

    def _write_body(self) -> int:
        code, rows, inner = self._code, self._rows, self._inner
        for walk in self._walks.values():
            walk.running = [str(walk.offset)]
        whole_range = not rows and self._group.row is None
        if whole_range:
            self._loops(inner, 0, lambda: self._inner_block(0), ranged=True)
            return inner[0] if inner else 1
        if not rows:
            # A single row: the outermost loop runs once, for whoever gets 0..1.
            self._loops((1,), -1, self._row_block, ranged=True)
            return 1
        self._loops(rows, 0, self._row_block, ranged=True)
        assert code.lines
        return rows[0]

    def _loops(self, sizes: tuple[int, ...], depth: int, inside: Callable[[], None], *, ranged: bool = False) -> None:
        """Nested loops over `sizes`, the walks' offsets following; `depth` is the place of the first in the nest, -1
        for a loop that moves no walk."""
        code = self._code
        if not sizes:
            inside()
            return
        tag = code.fresh()[1:]
        counter = f"%i.{tag}"
        begin, end = ("%begin", "%end") if ranged else ("0", str(sizes[0]))
        before = f"before.{tag}"
        code.line(f"br label %{before}")
        code.label(before)
        if ranged:
            empty = code.assign(f"icmp sge i64 {begin}, {end}")
            code.line(f"br i1 {empty}, label %done.{tag}, label %loop.{tag}")
        else:
            code.line(f"br label %loop.{tag}")
        code.label(f"loop.{tag}")
        code.line(f"{counter} = phi i64 [ {begin}, %{before} ], [ {counter}.next, %next.{tag} ]")
        for walk in self._walks.values():
            stride = walk.strides[depth] if depth >= 0 else 0
            if stride == 0:
                walk.running.append(walk.running[-1])
                continue
            moved = counter if stride == 1 else code.assign(f"mul nsw i64 {counter}, {stride}")
            first = walk.running[-1]
            walk.running.append(moved if first == "0" else code.assign(f"add nsw i64 {first}, {moved}"))
        self._loops(sizes[1:], depth + 1 if depth >= 0 else depth, inside)
        for walk in self._walks.values():
            walk.running.pop()
        code.line(f"br label %next.{tag}")
        code.label(f"next.{tag}")
        code.line(f"{counter}.next = add nuw nsw i64 {counter}, 1")
        again = code.assign(f"icmp slt i64 {counter}.next, {end}")
        code.line(f"br i1 {again}, label %loop.{tag}, label %done.{tag}")
        code.label(f"done.{tag}")

    def _row_block(self) -> None:
        """Everything of one row (or, in a group without rows, of one run of the innermost loop)."""
        code = self._code
        self._row_words = {}
        if self._group.row is None:
            self._loops(self._inner, len(self._rows), lambda: self._inner_block(0))
            return
        for phase in range(self._phases + 1):
            self._row_level(phase)
            roots = self._roots(phase) if phase < self._phases else []
            if not roots:
                continue
            folds = [node for node in roots if self._in_row(node.number)]
            for node in folds:
                bits = width(node.info.lo, node.info.hi)
                slot = self._accumulators.setdefault(node.number, f"%sum{len(self._accumulators)}")
                code.line(f"store i{bits} {neutral(node.opcode, bits)}, ptr {slot}")
            self._loops(self._inner, len(self._rows), lambda phase=phase: self._inner_block(phase))  # type: ignore[misc]
            for node in folds:
                bits = width(node.info.lo, node.info.hi)
                slot = self._accumulators[node.number]
                word = Word(code.assign(f"load i{bits}, ptr {slot}"), bits)
                self._row_words[node.number] = word
                self._store(node, word)

    def _row_level(self, phase: int) -> None:
        """Values of one number per row that the reductions before this phase make known."""
        self._words = {}
        for node in self._group.nodes:
            if node.fold is None and not self._element[node.number] and self._phase[node.number] == phase:
                word = self._compute(node)
                self._row_words[node.number] = word
                self._store(node, word)

    def _inner_block(self, phase: int) -> None:
        self._words = {}
        self._current_phase = phase
        for given in self._storage.in_place.values():
            # Read before anything is stored: another value of this element may need what is about to be written over.
            views = [view for node in self._group.nodes for view in node.walked if view.base == given]
            if views:
                self._value(views[0], True)
        for node in self._roots(phase):
            if node.fold is None:
                word = self._value(View.whole(node.number, node.info.shape), True)
                self._store(node, word)
                if node.number in self._scratch:
                    address = self._scratch_address(node)
                    self._code.line(f"store i{word.bits} {word.name}, ptr {address}")
                continue
            bits = width(node.info.lo, node.info.hi)
            word = self._code.wide(self._value(node.operands[0], True), bits)
            if self._in_row(node.number):
                address = self._accumulators[node.number]
            else:
                layout = self._storage.writes[node.number][0]
                address, bits = self._fold_address(node, layout)
                word = self._code.wide(word, 64 if bits == 64 else 32)
            before = Word(self._code.assign(f"load i{bits}, ptr {address}"), bits)
            folded = (
                self._code.binary("add", before, word)
                if node.opcode is Opcode.REDUCE_SUM
                else self._code.greatest(before, word)
            )
            self._code.line(f"store i{bits} {folded.name}, ptr {address}")

    def _fold_address(self, node: Node, layout: Layout) -> tuple[str, int]:
        assert isinstance(layout, Plain) and layout.bits >= 32 and node.fold is not None
        fold = Fold(node.number, node.opcode)
        if fold not in self._folds:
            self._folds.append(fold)
        pointer = self._pointer(Parameter(node.number, layout, 0, True))
        return self._address(pointer, f"i{layout.bits}", self._walks[node.fold, True]), layout.bits

    # Values

    def _value(self, view: View, per_element: bool) -> Word:
        """What `view` shows at the place where the loops are."""
        number = view.base
        if number in self._storage.constants:
            constant = self._storage.constants[number]
            return Word(str(constant), width(constant, constant))
        if number in self._row_words:
            return self._row_words[number]
        made = self._made.get(number)
        key: object = (number, "made") if made is not None else (view, per_element)
        if key in self._words:
            return self._words[key]
        if made is None:
            word = self._load(view, self._walks[view, per_element])
        elif self._phase[number] < self._current_phase and self._is_element(number) and self._remembered(made):
            word = self._recall(made)
        else:
            word = self._compute(made)
        self._words[key] = word
        return word

    def _remembered(self, node: Node) -> bool:
        return node.number in self._scratch or self._readable_store(node.number) is not None

    def _recall(self, node: Node) -> Word:
        if node.number in self._scratch:
            bits = width(node.info.lo, node.info.hi)
            return Word(self._code.assign(f"load i{bits}, ptr {self._scratch_address(node)}"), bits)
        layout = self._readable_store(node.number)
        assert layout is not None
        pointer = self._pointer(Parameter(node.number, layout, 0, True))
        return self._load_plain(pointer, layout.bits, self._walks[contiguous(self._group.size), True], node.info)

    def _scratch_address(self, node: Node) -> str:
        bits = width(node.info.lo, node.info.hi)
        return self._address(self._scratch[node.number], f"i{bits}", self._walks[("row",), True])  # type: ignore[index]

    def _compute(self, node: Node) -> Word:
        code, per_element = self._code, self._element[node.number]
        if node.opcode is Opcode.RESCALE:
            word = self._rescaled_product(node)
            if word is not None:
                return word
        words = [self._value(view, per_element) for view in node.walked]
        match node.opcode:
            case Opcode.LOOKUP:
                table = node.operands[1].base
                layout = self._storage.reads[table]
                assert isinstance(layout, Plain)
                pointer = self._pointer(Parameter(table, layout, 0, False))
                index = code.wide(words[0], 64)
                address = code.assign(f"getelementptr inbounds i{layout.bits}, ptr {pointer}, i64 {index.name}")
                loaded = Word(code.assign(f"load i{layout.bits}, ptr {address}"), layout.bits)
                return code.wide(loaded, width(node.info.lo, node.info.hi))
            case Opcode.ONE_HOT:
                equal = code.compare("eq", code.wide(words[0], 64), self._position(node))
                return Word(code.assign(f"zext i1 {equal} to i32"), 32)
            case Opcode.RANDOM:
                stream, bits, *_ = node.attributes
                return emit.random(code, words[0], words[1], stream, bits, self._position(node))
            case Opcode.CHECK:
                return self._checked(node, words[0])
        return emit.emit(code, node.opcode, node.attributes, words, node.infos, node.info)

    def _rescaled_product(self, node: Node) -> Word | None:
        view = node.operands[0]
        layout = self._storage.reads.get(view.base) if view.base not in self._made else None
        if not isinstance(layout, Product) or len(layout.shifts) == 1:
            return None
        walk = self._walks[view, self._element[node.number]]
        planes = self._planes(view.base, layout, walk)
        shift, bits = node.attributes
        info = node.infos[0]
        bound = self._storage.plane_bounds[view.base]
        return emit.combined_and_rescaled(self._code, planes, layout.shifts, bound, shift, info.lo, info.hi, bits)

    def _position(self, node: Node) -> Word:
        assert node.position is not None
        return Word(self._walks[node.position, self._element[node.number]].running[-1], 64)

    def _checked(self, node: Node, word: Word) -> Word:
        """Notes whether the element is out of bounds; goes on with the nearest bound, so that no table is left."""
        code, a = self._code, node.infos[0]
        lo, hi = node.attributes
        kept = emit.clamp(code, word, a.lo, a.hi, lo, hi)
        differs = code.compare("ne", word, code.wide(kept, word.bits))
        before = code.assign("load i32, ptr %failed")
        flagged = code.assign(f"zext i1 {differs} to i32")
        code.line(f"store i32 {code.assign(f'or i32 {before}, {flagged}')}, ptr %failed")
        return kept

    # Memory

    def _pointer(self, parameter: Parameter) -> str:
        parameter = self._one_name.get(parameter, parameter)
        place = self._parameters.setdefault(parameter, len(self._parameters))
        return f"%p{place}"

    def _address(self, pointer: str, kind: str, walk: _Walk) -> str:
        return self._code.assign(f"getelementptr inbounds {kind}, ptr {pointer}, i64 {walk.running[-1]}")

    def _load_plain(self, pointer: str, bits: int, walk: _Walk, info: ValueInfo) -> Word:
        name = self._code.assign(f"load i{bits}, ptr {self._address(pointer, f'i{bits}', walk)}")
        if bits < 32:
            return Word(self._code.assign(f"sext i{bits} {name} to i32"), 32)
        return self._code.wide(Word(name, bits), width(info.lo, info.hi))

    def _planes(self, base: int, layout: Layout, walk: _Walk) -> list[Word]:
        """int8 or int32 planes, each at 32 bits."""
        words = []
        kind = "i8" if isinstance(layout, Slices) else "i32"
        for plane in range(len(plane_dtypes(layout))):
            pointer = self._pointer(Parameter(base, layout, plane, False))
            name = self._code.assign(f"load {kind}, ptr {self._address(pointer, kind, walk)}")
            words.append(Word(self._code.assign(f"sext i8 {name} to i32"), 32) if kind == "i8" else Word(name, 32))
        return words

    def _load(self, view: View, walk: _Walk) -> Word:
        info = self._storage.infos[view.base]
        layout = self._storage.reads[view.base]
        bits = width(info.lo, info.hi)
        match layout:
            case Plain():
                return self._load_plain(self._pointer(Parameter(view.base, layout, 0, False)), layout.bits, walk, info)
            case Float64():
                pointer = self._pointer(Parameter(view.base, layout, 0, False))
                name = self._code.assign(f"load double, ptr {self._address(pointer, 'double', walk)}")
                return Word(self._code.assign(f"fptosi double {name} to i{bits}"), bits)
            case Slices(count):
                shifts = tuple(8 * place for place in range(count))
            case Product(shifts):
                pass
        return emit.combined(self._code, self._planes(view.base, layout, walk), shifts, bits)

    def _store(self, node: Node, word: Word) -> None:
        per_element = self._is_element(node.number)
        count = self._group.size if per_element else self._group.size // (self._group.row or 1)
        for layout in self._storage.writes.get(node.number, ()):
            walk = self._walks[contiguous(count), per_element]
            match layout:
                case Plain(bits):
                    pointer = self._pointer(Parameter(node.number, layout, 0, True))
                    if bits < 32:
                        name = self._code.assign(f"trunc i{word.bits} {word.name} to i{bits}")
                    else:
                        name = self._code.wide(word, bits).name
                    self._code.line(f"store i{bits} {name}, ptr {self._address(pointer, f'i{bits}', walk)}")
                case Float64():
                    pointer = self._pointer(Parameter(node.number, layout, 0, True))
                    name = self._code.to_double(word)
                    self._code.line(f"store double {name}, ptr {self._address(pointer, 'double', walk)}")
                case Slices(count=slices):
                    rest = word
                    for plane in range(slices):
                        if plane:
                            rest = self._code.binary("ashr", self._code.binary("add", rest, 128), 8)
                        pointer = self._pointer(Parameter(node.number, layout, plane, True))
                        name = self._code.assign(f"trunc i{rest.bits} {rest.name} to i8")
                        self._code.line(f"store i8 {name}, ptr {self._address(pointer, 'i8', walk)}")
                case Product():
                    raise ValueError("only a product leaves planes unsummed")

    # The module

    def _assemble(self, extent: int) -> KernelSource:
        code = self._code
        checks = any(node.opcode is Opcode.CHECK for node in self._group.nodes)
        if checks:
            flag = self._pointer(Parameter(None, Plain(32), 0, True))
            old = code.assign("load i32, ptr %failed")
            code.line(f"{code.fresh()} = icmp eq i32 {old}, 0")
            code.line(f"br i1 %v{code.names}, label %fine, label %bad")
            code.label("bad")
            code.line(f"store i32 1, ptr {flag}")
            code.line("br label %fine")
            code.label("fine")
        slots = ["  %failed = alloca i32", "  store i32 0, ptr %failed"] if checks else []
        for number, name in self._scratch.items():
            info = self._made[number].info
            slots.append(f"  {name} = alloca [{self._group.row} x i{width(info.lo, info.hi)}], align 64")
        for number, name in self._accumulators.items():
            info = self._made[number].info
            slots.append(f"  {name} = alloca i{width(info.lo, info.hi)}")
        count = len(self._parameters)
        pointers = "".join(f"ptr noalias %p{i}, " for i in range(count))
        body = [
            f"define internal void @body({pointers}i64 %begin, i64 %end) #0 {{",
            "entry:",
            *slots,
            *code.lines,
            "  ret void",
            "}",
        ]
        loads = []
        for i in range(count):
            loads.append(f"  %s{i} = getelementptr inbounds ptr, ptr %pointers, i64 {i}")
            loads.append(f"  %p{i} = load ptr, ptr %s{i}")
        given = "".join(f"ptr %p{i}, " for i in range(count))
        text = "\n".join([*sorted(code.intrinsics), *body])
        symbol = f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        wrapper = [
            f"define void @{symbol}(ptr %pointers, i64 %begin, i64 %end) #0 {{",
            "entry:",
            *loads,
            f"  call void @body({given}i64 %begin, i64 %end)",
            "  ret void",
            "}",
            'attributes #0 = { nounwind "prefer-vector-width"="512" "no-trapping-math"="true" }',
            "",
        ]
        return KernelSource(symbol, "\n".join([text, *wrapper]), tuple(self._parameters), extent, tuple(self._folds))


def neutral(opcode: Opcode, bits: int) -> int:
    """What a reduction starts from."""
    return 0 if opcode is Opcode.REDUCE_SUM else -(1 << (bits - 1))


def _collapse(sizes: tuple[int, ...], split: int, walks: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[int]]:
    """Neighbouring loops on one side of `split` made one wherever every walk can follow: sizes, and for each the old
    loop whose stride it has."""
    merged = list(sizes)
    places = list(range(len(sizes)))
    for outer in reversed(range(len(sizes) - 1)):
        after = outer + 1
        if after == split:
            continue
        if all(walk[outer] == merged[after] * walk[places[after]] for walk in walks):
            merged[after] *= merged[outer]
            del merged[outer], places[outer]
    return tuple(merged), places
