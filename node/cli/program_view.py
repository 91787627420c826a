"""What a person may want to know of a tensor program, as facts: one model for the terminal, --json and the page.

Works on a Program alone, so that a program from a stranger's file or from the chain can be read too. Where the compiler
said which line of the user's step each operation came from, the facts are grouped by that line.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from proofs.exact.compiler.errors import Origin
from proofs.exact.encoding import encode_program, root_of_encoding
from proofs.exact.opcodes import SPECS, Opcode
from proofs.exact.program import Op, Program
from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import INT64_MAX, INT64_MIN


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive operations of one line and module: numbers `first` to `last` of their values. None: unknown."""

    origin: Origin | None
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Figures:
    """A program in numbers. Bytes of state are in canonical form; `widest` is the value with the most bits."""

    operations: int
    by_opcode: tuple[tuple[str, int], ...]
    macs: int
    widest: int
    widest_bits: int
    state_bytes: int
    data_bytes: int
    constants: int
    constant_bytes: int
    program_bytes: int
    root: bytes


@dataclass(frozen=True, slots=True)
class ProgramView:
    """A program and, for each of its operations, where it came from (empty if nobody knows)."""

    program: Program
    origins: tuple[Origin, ...] = ()

    def origin(self, number: int) -> Origin | None:
        """Of the value of that number; None for inputs and constants, and where nothing is known."""
        place = number - self.program.first_op
        found = self.origins[place] if 0 <= place < len(self.origins) else None
        return found if found is not None and found.location.file else None

    def name(self, number: int) -> str:
        """How a listing calls a value: an input's name, a scalar constant's integer, else `%number`."""
        if number < len(self.program.inputs):
            return self.program.inputs[number].name
        if number < self.program.first_op:
            info = self.program.values[number]
            return f"table%{number}" if info.shape else str(info.lo)
        return f"%{number}"

    def groups(self) -> Iterator[Group]:
        """Runs of operations of the same source line and module, in program order."""
        first, last = self.program.first_op, len(self.program.values) - 1
        for number in range(first, last + 1):
            if number == last or _line(self.origin(number)) != _line(self.origin(number + 1)):
                yield Group(self.origin(number), first, number)
                first = number + 1

    def figures(self) -> Figures:
        program = self.program
        encoded = encode_program(program)
        count = Counter(opcode_name(op) for op in program.ops)
        numbers = range(program.first_op, len(program.values))
        widest = max(numbers, key=lambda number: program.values[number].bits, default=0)
        return Figures(
            operations=len(program.ops),
            by_opcode=tuple(sorted(count.items(), key=lambda item: (-item[1], item[0]))),
            macs=sum(macs(op, program.values) for op in program.ops),
            widest=widest,
            widest_bits=program.values[widest].bits,
            state_bytes=sum(type_.nbytes for type_ in program.state_types.values()),
            data_bytes=sum(type_.nbytes for type_ in program.data_types.values()),
            constants=len(program.constants),
            constant_bytes=sum(constant.type.nbytes for constant in program.constants),
            program_bytes=len(encoded),
            root=root_of_encoding(encoded),
        )

    def document(self) -> dict[str, Any]:
        """The whole program for --json. An operation's `source` is an index into `sources`."""
        program = self.program
        known = [self.origin(number) for number, _ in program.numbered_ops()]
        numbered = {origin: i for i, origin in enumerate(dict.fromkeys(filter(None, known)))}
        inputs, constants = range(len(program.inputs)), range(len(program.inputs), program.first_op)
        return {
            "figures": figures_document(self.figures()),
            "inputs": [
                {"number": n, "name": program.inputs[n].name, "kind": program.inputs[n].kind.name.lower()}
                | describe(program.values[n])
                for n in inputs
            ],
            "constants": [{"number": n} | describe(program.values[n]) for n in constants],
            "operations": [
                {"number": n, "opcode": opcode_name(op), "operands": list(op.operands)}
                | {"attributes": list(op.attributes)}
                | describe(program.values[n])
                | {"source": numbered[origin] if origin else None}
                for (n, op), origin in zip(program.numbered_ops(), known, strict=True)
            ],
            "outputs": dict(zip(program.state_types, program.outputs, strict=True)),
            "sources": [origin_document(origin) for origin in numbered],
        }

    def listing(self) -> Iterator[str]:
        """The program, a value a line, under the lines of the user's step."""
        program = self.program
        yield "inputs"
        for number, given in enumerate(program.inputs):
            yield _row(number, f"{given.kind.name.lower()} {given.name}", "", program.values[number])
        tables = [number for number in range(len(program.inputs), program.first_op) if program.values[number].shape]
        if tables:
            yield "\ntables"
        for number in tables:
            yield _row(number, "constant", "", program.values[number])
        becomes = {number: name for name, number in zip(program.state_types, program.outputs, strict=True)}
        for group in self.groups():
            yield "\noperations" if group.origin is None else f"\n{place(group.origin)}  {group.origin.location.code}"
            for number in range(group.first, group.last + 1):
                op = program.ops[number - program.first_op]
                operands = " ".join(self.name(operand) for operand in op.operands)
                row = _row(number, spelled(op), operands, program.values[number])
                yield f"{row}  -> {becomes[number]}" if number in becomes else row


def figures_document(figures: Figures) -> dict[str, Any]:
    return {
        "operations": figures.operations,
        "by_opcode": dict(figures.by_opcode),
        "multiply_accumulates": figures.macs,
        "widest_bits": figures.widest_bits,
        "widest_value": figures.widest,
        "state_bytes": figures.state_bytes,
        "data_bytes": figures.data_bytes,
        "constants": figures.constants,
        "constant_bytes": figures.constant_bytes,
        "program_bytes": figures.program_bytes,
        "program_root": "0x" + figures.root.hex(),
    }


def describe(info: ValueInfo) -> dict[str, Any]:
    """Shape, width, scale and interval of a value. Integers are exact, beyond 2^53 too."""
    return {"shape": list(info.shape), "bits": info.bits, "frac": info.frac, "lo": info.lo, "hi": info.hi}


def origin_document(origin: Origin) -> dict[str, Any]:
    return {
        "file": origin.location.file,
        "line": origin.location.line,
        "code": origin.location.code,
        "module": origin.module,
        "backward": origin.backward,
        "target": origin.target,
    }


def place(origin: Origin) -> str:
    """`gpt.py:31 (blocks.0.qkv, backward)`: the line, the module, and whether it is the line's derivative."""
    notes = [origin.module] * bool(origin.module) + ["backward"] * origin.backward
    here = f"{Path(origin.location.file).name}:{origin.location.line}"
    return f"{here} ({', '.join(notes)})" if notes else here


def opcode_name(op: Op) -> str:
    return op.opcode.name.lower()


def macs(op: Op, values: Sequence[ValueInfo]) -> int:
    """Multiply-accumulates of one operation: only matrix products have any."""
    if op.opcode is not Opcode.MATMUL_NT:
        return 0
    a, b = (values[operand].shape for operand in op.operands)
    return prod(a) * b[-2]


def spelled(op: Op) -> str:
    """Opcode and attributes, as in `rescale shift=12 bits=16`."""
    words, rest = [opcode_name(op)], list(op.attributes)
    for name in SPECS[op.opcode].attributes:
        if name.startswith("*"):
            words.append(f"{name[1:]}={rest}".replace(" ", ""))
        else:
            words.append(f"{name}={rest.pop(0)}")
    return " ".join(words)


def interval(info: ValueInfo) -> str:
    """`-128..127`; the ends of long intervals as powers of two where they are: `-2^31..2^31-1`."""
    return f"{_end(info.lo)}..{_end(info.hi)}"


def real_interval(info: ValueInfo) -> str:
    """The numbers that the interval stands for, to four digits."""
    scale = 2.0**-info.frac
    return f"{info.lo * scale:.4g} .. {info.hi * scale:.4g}"


def quantity(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.3g}"


def data_size(count: int) -> str:
    """Bytes for people: "64.0 KiB"."""
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {name}"
    return f"{count} B"


def function_finder(path: Path) -> Callable[[int], str]:
    """From a line of a Python file to the qualified name of the function around it; "" where there is none."""
    try:
        spans = _functions(str(path), path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return lambda line: ""
    return lambda line: next((name for first, last, name in spans if first <= line <= last), "")


@lru_cache(maxsize=64)
def _functions(path: str, _: int) -> tuple[tuple[int, int, str], ...]:
    """First line, last line and name of every function, the innermost first."""
    found: list[tuple[int, int, str]] = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                name = f"{prefix}.{child.name}" if prefix else child.name
                if not isinstance(child, ast.ClassDef):
                    found.append((child.lineno, child.end_lineno or child.lineno, name))
                walk(child, name)
            else:
                walk(child, prefix)

    walk(ast.parse(Path(path).read_text(encoding="utf-8")), "")
    return tuple(sorted(found, key=lambda span: span[1] - span[0]))


def _line(origin: Origin | None) -> tuple[str, int, str, bool] | None:
    return None if origin is None else (origin.location.file, origin.location.line, origin.module, origin.backward)


def _row(number: int, what: str, operands: str, info: ValueInfo) -> str:
    shape = "x".join(map(str, info.shape)) or "scalar"
    return (
        f"{number:>7}  {what:<34} {operands:<24} {shape:<16} {info.bits:>2} bits  frac {info.frac:>3}  {interval(info)}"
    )


def _end(value: int) -> str:
    if -99_999 <= value <= 99_999:
        return str(value)
    if value in (INT64_MIN, INT64_MAX):
        return "-2^63" if value < 0 else "2^63-1"
    sign, magnitude = ("-", -value) if value < 0 else ("", value)
    if magnitude & (magnitude - 1) == 0:
        return f"{sign}2^{magnitude.bit_length() - 1}"
    if magnitude & (magnitude + 1) == 0:
        return f"{sign}(2^{magnitude.bit_length()}-1)" if sign else f"2^{magnitude.bit_length()}-1"
    return str(value)
