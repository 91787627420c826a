"""One program as one page: a graph to walk through, a search, and the facts of every tensor.

Promises: the page is a single file that asks the network for nothing (its own policy forbids it), and stays quick with
10,000 operations, because it draws one group of them at a time: the functions of the user's step, then a function's
lines, then a line's operations.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from node.cli.program_view import (
    Group,
    ProgramView,
    data_size,
    function_finder,
    interval,
    macs,
    opcode_name,
    place,
    quantity,
    real_interval,
    spelled,
)
from proofs.exact.compiler.errors import Origin
from proofs.exact.opcodes import Opcode

_FOLDER = Path(__file__).parent / "page"
_FLAT = 48
"""A group with no more operations than this is drawn as operations at once."""
_CROWD = 160
"""More than this many nodes side by side are first bundled."""
_BUNDLE = 24
_BLOCK = re.compile(r"^(\w+(?:\.\d+)?)[\w.]*")
"""The first word of a module path, with its number: "blocks.3" of "blocks.3.qkv"."""


def page(view: ProgramView, title: str) -> str:
    """The page's HTML."""
    text = (_FOLDER / "program.html").read_text(encoding="utf-8")
    # In a script element only "</" can end it, and "<!--" change its meaning; < is "<" to JSON.
    data = json.dumps(_data(view, title), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "style": (_FOLDER / "program.css").read_text(encoding="utf-8"),
        "script": (_FOLDER / "program.js").read_text(encoding="utf-8"),
        "data": data,
    }
    head, *rest = text.split("{{")
    return head + "".join(parts[piece.partition("}}")[0]] + piece.partition("}}")[2] for piece in rest)


def _data(view: ProgramView, title: str) -> dict[str, Any]:
    program, figures = view.program, view.figures()
    known = [view.origin(number) for number, _ in program.numbered_ops()]
    origins = {origin: i for i, origin in enumerate(dict.fromkeys(filter(None, known)))}
    figure_rows = [
        ("operations", f"{figures.operations:,}"),
        ("multiply-accumulates", quantity(figures.macs)),
        ("widest", f"{figures.widest_bits} bits"),
        ("state", data_size(figures.state_bytes)),
        ("data", data_size(figures.data_bytes)),
        ("constants", f"{figures.constants} ({data_size(figures.constant_bytes)})"),
        ("program", data_size(figures.program_bytes)),
        ("root", "0x" + figures.root.hex()),
    ]
    return {
        "figures": figure_rows,
        "opcodes": figures.by_opcode,
        "first": program.first_op,
        "outputs": list(zip(program.state_types, program.outputs, strict=True)),
        "sources": [_source(origin) for origin in origins],
        "values": [_value(view, number, origins) for number in range(len(program.values))],
        "groups": group_tree(view, title),
    }


def _source(origin: Origin) -> dict[str, Any]:
    return {
        "place": place(origin),
        "line": origin.location.line,
        "code": origin.location.code,
        "module": origin.module,
        "target": origin.target,
    }


def _value(view: ProgramView, number: int, origins: dict[Origin, int]) -> dict[str, Any]:
    program = view.program
    info = program.values[number]
    fact: dict[str, Any] = {
        "shape": "x".join(map(str, info.shape)) or "scalar",
        "elements": info.type.elements,
        "bits": info.bits,
        "bytes_each": info.type.width,
        "size": data_size(info.type.nbytes),
        "frac": info.frac,
        "interval": interval(info),
        "real": real_interval(info),
        "operands": (),
        "macs": 0,
        "source": -1,
    }
    if number < len(program.inputs):
        given = program.inputs[number]
        kind = given.kind.name.lower()
        return fact | {"opcode": kind, "spelled": f"{kind} {given.name}", "name": given.name}
    if number < program.first_op:
        return fact | {"opcode": "constant", "spelled": "constant", "name": view.name(number)}
    op, origin = program.ops[number - program.first_op], view.origin(number)
    return fact | {
        "opcode": opcode_name(op),
        "spelled": spelled(op),
        "operands": op.operands,
        "macs": macs(op, program.values),
        "source": origins[origin] if origin else -1,
    }


def group_tree(view: ProgramView, title: str) -> dict[str, Any]:
    """Nested ranges of operations: {label, where, first, last, groups}; a leaf has no `groups`.

    By block ("blocks.3"), by module ("blocks.3.qkv"), by line. Where no module is known, by function of the step file,
    or by another file's name; without any origins, stretches that begin at matrix products.
    """
    root = _range(title, "", view.program.first_op, len(view.program.values) - 1)
    lines = list(view.groups())
    if len(lines) == 1:
        lines = list(_stretches(view))
    step_file = next((group.origin.location.file for group in lines if group.origin), "")

    def module(group: Group) -> str:
        return _stage(group.origin, step_file)

    def block(group: Group) -> str:
        named = group.origin is not None and group.origin.module
        return _BLOCK.sub(r"\1", module(group)) if named else module(group)

    def line(group: Group) -> str:
        return _label(group, view)

    return _filled(root, lines, [block, module, line])


def _filled(
    parent: dict[str, Any], members: Sequence[Group], levels: Sequence[Callable[[Group], str]]
) -> dict[str, Any]:
    """`parent` with its members below it, grouped by the first level that parts them, unless they are few."""
    if parent["last"] - parent["first"] < _FLAT or not levels:
        return parent
    runs = [(label, list(run)) for label, run in groupby(members, key=levels[0])]
    if len(runs) == 1:
        return _filled(parent, members, levels[1:])
    ranges = []
    for label, run in runs:
        here = _range(label or "…", _where(run[0]), run[0].first, run[-1].last)
        ranges.append(_filled(here, run, levels[1:]))
    return parent | {"groups": _bundled(ranges)}


def _stage(origin: Origin | None, step_file: str) -> str:
    """The module that an operation belongs to, or else the function or file that its line stands in."""
    if origin is None:
        return ""
    location = origin.location
    name = origin.module
    if not name and location.file == step_file:
        name = function_finder(Path(location.file))(location.line)
    name = name or Path(location.file).name
    return f"{name} (backward)" if origin.backward else name


def _label(group: Group, view: ProgramView) -> str:
    if group.origin is not None:
        return f"{group.origin.location.line}: {group.origin.location.code.strip()}"
    first, last = (
        opcode_name(view.program.ops[number - view.program.first_op]) for number in (group.first, group.last)
    )
    return f"%{group.first} {first} … %{group.last} {last}"


def _where(group: Group) -> str:
    return place(group.origin) if group.origin else ""


def _range(label: str, where: str, first: int, last: int) -> dict[str, Any]:
    return {"label": label, "where": where, "first": first, "last": last}


def _bundled(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """No more than `_CROWD` side by side: neighbours are put together until they are few enough."""
    while len(groups) > _CROWD:
        groups = [_bundle(groups[i : i + _BUNDLE]) for i in range(0, len(groups), _BUNDLE)]
    return groups


def _bundle(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if len(groups) == 1:
        return groups[0]
    head, tail = groups[0], groups[-1]
    label = f"{head['label']} … {tail['label']}"
    return {
        "label": label,
        "where": head["where"],
        "first": head["first"],
        "last": tail["last"],
        "groups": list(groups),
    }


def _stretches(view: ProgramView) -> Iterable[Group]:
    """Stretches of operations, each beginning at a matrix product."""
    program = view.program
    starts = [program.first_op]
    starts += [number for number, op in program.numbered_ops() if op.opcode is Opcode.MATMUL_NT and number > starts[0]]
    for start, end in zip(starts, [*starts[1:], len(program.values)], strict=True):
        yield Group(None, start, end - 1)
