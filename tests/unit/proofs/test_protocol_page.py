"""docs/protocol.md lists the operations that there are, under their numbers."""

from __future__ import annotations

import re
from pathlib import Path

from proofs.exact.opcodes import SPECS, Opcode

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()


def test_the_table_of_operations_is_the_closed_set() -> None:
    lines = re.findall(r"^\| \d+ \|.*$", PAGE, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines]
    assert {int(number): name for number, name, _, _ in rows} == {code: f"`{code.name.lower()}`" for code in Opcode}
    for number, _, _, attributes in rows:
        assert tuple(filter(None, attributes.split(", "))) == SPECS[Opcode(int(number))].attributes
