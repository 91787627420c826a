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

from proofs.exact.backend import emit
from proofs.exact.backend.emit import Code, Word, width
from proofs.exact.backend.graph import Node
from proofs.exact.backend.groups import Group
from proofs.exact.backend.kernel_source import Fold, KernelSource, Parameter, Storage, neutral
from proofs.exact.backend.layouts import Float64, Layout, Plain, Product, Slices, plane_dtypes
from proofs.exact.backend.nests import ROW, SCALAR_LOOP, Walk, lay_out
from proofs.exact.backend.phases import Phases
from proofs.exact.backend.views import View, contiguous
from proofs.exact.opcodes import Opcode
from proofs.exact.ranges import ValueInfo


def generate(group: Group, storage: Storage) -> KernelSource:
    """The kernel of a fused group."""
    return _Generator(group, storage).source()


class _Generator:
    def __init__(self, group: Group, storage: Storage) -> None:
        self._group = group
        self._storage = storage
        self._code = Code()
        self._phases = Phases(group, storage)
        self._nest = lay_out(self._phases)
        self._parameters: dict[Parameter, int] = {}
        self._one_name: dict[Parameter, Parameter] = {}
        """Both names of memory that is read and written over: LLVM is told that different pointers never meet."""
        for slot, given in storage.in_place.items():
            shared = Parameter(given, slot.layout, 0, True)
            self._one_name[Parameter(slot.base, slot.layout, 0, True)] = shared
            self._one_name[Parameter(given, slot.layout, 0, False)] = shared
        self._folds: list[Fold] = []
        self._accumulators: dict[int, str] = {}
        self._row_words: dict[int, Word] = {}
        self._words: dict[object, Word] = {}
        self._current_phase = 0

    def source(self) -> KernelSource:
        extent = self._write_body()
        return self._assemble(extent)

    # The loops

    def _write_body(self) -> int:
        code, rows, inner = self._code, self._nest.rows, self._nest.inner
        for walk in self._nest.walks.values():
            walk.running = [str(walk.offset)]
        whole_range = not rows and self._group.row is None
        if whole_range:
            self._nest.loops(code, inner, 0, lambda: self._inner_block(0), ranged=True)
            return inner[0] if inner else 1
        if not rows:
            # A single row: the outermost loop runs once, for whoever gets 0..1.
            self._nest.loops(code, (1,), -1, self._row_block, ranged=True)
            return 1
        self._nest.loops(code, rows, 0, self._row_block, ranged=True)
        assert code.lines
        return rows[0]

    def _row_block(self) -> None:
        """Everything of one row (or, in a group without rows, of one run of the innermost loop)."""
        code = self._code
        self._row_words = {}
        if self._group.row is None:
            self._nest.loops(code, self._nest.inner, len(self._nest.rows), lambda: self._inner_block(0))
            return
        for phase in range(self._phases.count + 1):
            self._row_level(phase)
            roots = self._phases.roots(phase) if phase < self._phases.count else []
            if not roots:
                continue
            folds = [node for node in roots if self._phases.in_row(node.number)]
            for node in folds:
                bits = width(node.info.lo, node.info.hi)
                slot = self._accumulators.setdefault(node.number, f"%sum{len(self._accumulators)}")
                code.line(f"store i{bits} {neutral(node.opcode, bits)}, ptr {slot}")
            self._nest.loops(code, self._nest.inner, len(self._nest.rows), lambda phase=phase: self._inner_block(phase))  # type: ignore[misc]
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
            if (
                node.fold is None
                and not self._phases.per_element[node.number]
                and self._phases.phase[node.number] == phase
            ):
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
        for node in self._phases.roots(phase):
            if node.fold is None:
                word = self._value(View.whole(node.number, node.info.shape), True)
                self._store(node, word)
                if node.number in self._phases.scratch:
                    address = self._scratch_address(node)
                    self._code.line(f"store i{word.bits} {word.name}, ptr {address}")
                continue
            bits = width(node.info.lo, node.info.hi)
            word = self._code.wide(self._value(node.operands[0], True), bits)
            if self._phases.in_row(node.number):
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
        return self._address(pointer, f"i{layout.bits}", self._nest.walks[node.fold, True]), layout.bits

    # Values

    def _value(self, view: View, per_element: bool) -> Word:
        """What `view` shows at the place where the loops are."""
        number = view.base
        if number in self._storage.constants:
            constant = self._storage.constants[number]
            return Word(str(constant), width(constant, constant))
        if number in self._row_words:
            return self._row_words[number]
        made = self._phases.made.get(number)
        key: object = (number, "made") if made is not None else (view, per_element)
        if key in self._words:
            return self._words[key]
        if made is None:
            word = self._load(view, self._nest.walks[view, per_element])
        elif (
            self._phases.phase[number] < self._current_phase
            and self._phases.is_element(number)
            and self._remembered(made)
        ):
            word = self._recall(made)
        else:
            word = self._compute(made)
        self._words[key] = word
        return word

    def _remembered(self, node: Node) -> bool:
        return node.number in self._phases.scratch or self._phases.readable_store(node.number) is not None

    def _recall(self, node: Node) -> Word:
        if node.number in self._phases.scratch:
            bits = width(node.info.lo, node.info.hi)
            return Word(self._code.assign(f"load i{bits}, ptr {self._scratch_address(node)}"), bits)
        layout = self._phases.readable_store(node.number)
        assert layout is not None
        pointer = self._pointer(Parameter(node.number, layout, 0, True))
        return self._load_plain(pointer, layout.bits, self._nest.walks[contiguous(self._group.size), True], node.info)

    def _scratch_address(self, node: Node) -> str:
        bits = width(node.info.lo, node.info.hi)
        return self._address(self._phases.scratch[node.number], f"i{bits}", self._nest.walks[ROW])

    def _compute(self, node: Node) -> Word:
        code, per_element = self._code, self._phases.per_element[node.number]
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
        layout = self._storage.reads.get(view.base) if view.base not in self._phases.made else None
        if not isinstance(layout, Product) or len(layout.shifts) == 1:
            return None
        walk = self._nest.walks[view, self._phases.per_element[node.number]]
        planes = self._planes(view.base, layout, walk)
        shift, bits = node.attributes
        info = node.infos[0]
        bound = self._storage.plane_bounds[view.base]
        return emit.combined_and_rescaled(self._code, planes, layout.shifts, bound, shift, info.lo, info.hi, bits)

    def _position(self, node: Node) -> Word:
        assert node.position is not None
        return Word(self._nest.walks[node.position, self._phases.per_element[node.number]].running[-1], 64)

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

    def _address(self, pointer: str, kind: str, walk: Walk) -> str:
        return self._code.assign(f"getelementptr inbounds {kind}, ptr {pointer}, i64 {walk.running[-1]}")

    def _load_plain(self, pointer: str, bits: int, walk: Walk, info: ValueInfo) -> Word:
        name = self._code.assign(f"load i{bits}, ptr {self._address(pointer, f'i{bits}', walk)}")
        if bits < 32:
            return Word(self._code.assign(f"sext i{bits} {name} to i32"), 32)
        return self._code.wide(Word(name, bits), width(info.lo, info.hi))

    def _planes(self, base: int, layout: Layout, walk: Walk) -> list[Word]:
        """int8 or int32 planes, each at 32 bits."""
        words = []
        kind = "i8" if isinstance(layout, Slices) else "i32"
        for plane in range(len(plane_dtypes(layout))):
            pointer = self._pointer(Parameter(base, layout, plane, False))
            name = self._code.assign(f"load {kind}, ptr {self._address(pointer, kind, walk)}")
            words.append(Word(self._code.assign(f"sext i8 {name} to i32"), 32) if kind == "i8" else Word(name, 32))
        return words

    def _load(self, view: View, walk: Walk) -> Word:
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
        per_element = self._phases.is_element(node.number)
        count = self._group.size if per_element else self._group.size // (self._group.row or 1)
        for layout in self._storage.writes.get(node.number, ()):
            walk = self._nest.walks[contiguous(count), per_element]
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
        for number, name in self._phases.scratch.items():
            info = self._phases.made[number].info
            slots.append(f"  {name} = alloca [{self._group.row} x i{width(info.lo, info.hi)}], align 64")
        for number, name in self._accumulators.items():
            info = self._phases.made[number].info
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
            *SCALAR_LOOP,
            "",
        ]
        return KernelSource(symbol, "\n".join([text, *wrapper]), tuple(self._parameters), extent, tuple(self._folds))
