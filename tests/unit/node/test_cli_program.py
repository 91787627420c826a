"""The `avenue program` commands, as a person runs them, and the page that `show` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from node.cli.app import run
from node.cli.program_page import group_tree, page
from node.cli.program_view import Group, ProgramView, interval
from proofs.exact.compiler.errors import Location, Origin
from proofs.exact.encoding import encode_program
from proofs.exact.program import Program
from proofs.exact.ranges import ValueInfo
from tests.support.programs import linear_regression, mlp

ROOT = Path(__file__).resolve().parents[3]


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "regression.bin"
    path.write_bytes(encode_program(linear_regression()))
    return path


def test_show_lists_every_operation_of_an_encoded_program(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = linear_regression()
    assert run(["program", "show", str(file), "--json"]) == 0
    shown = document(capsys)
    assert [row["opcode"] for row in shown["operations"]] == [op.opcode.name.lower() for op in program.ops]
    assert [row["hi"] for row in shown["operations"]] == [info.hi for info in program.values[program.first_op :]]
    assert shown["figures"]["program_root"] == "0x" + program.root().hex()
    assert shown["figures"]["multiply_accumulates"] == 2 * 8 * 3  # forward and gradient: 8 rows of 3 features
    assert shown["outputs"] == dict(zip(program.state_types, program.outputs, strict=True))


def test_show_names_the_state_that_an_operation_becomes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["program", "show", str(file)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"rescale shift=0 bits=32 .*-> w$", text, re.MULTILINE)
    assert "permute n=32 batch=8" in text


def test_a_cut_program_and_a_foreign_file_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = file.read_bytes()
    for wrong in (whole[:-1], whole + b"\0", b"AVPR", b"\x7fELF", b""):
        file.write_bytes(wrong)
        assert run(["program", "show", str(file), "--json"]) == 2
        assert document(capsys)["error"]["code"] == "U-51"
    for name, code in (("none.bin", "U-50"), ("none.py", "U-44")):
        assert run(["program", "show", str(file.parent / name), "--json"]) == 2
        assert document(capsys)["error"]["code"] == code


def test_a_page_is_one_file_that_asks_the_network_for_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = file.with_suffix(".html")
    assert run(["program", "show", str(file), "--html", str(target)]) == 0
    text = target.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", text)
    assert "{{" not in text
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert embedded
    data = json.loads(embedded[1])
    assert len(data["values"]) == len(linear_regression().values)


def test_a_page_survives_hostile_source_text() -> None:
    program = linear_regression()
    evil = Origin(Location("</script><script>alert(1)</script>.py", 1, "<!--<script>{{data}}"))
    text = page(ProgramView(program, (evil,) * len(program.ops)), "<b>&")
    assert text.count("</script>") == 2
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert "<!--" not in text


def lines_of(program: Program, *numbers: int) -> tuple[Origin, ...]:
    """Operation i comes from line numbers[i]; the last line goes on."""
    given = [*numbers, *[numbers[-1]] * (len(program.ops) - len(numbers))]
    return tuple(Origin(Location("step.py", line, f"code {line}"), module=f"m{line // 10}") for line in given)


def test_operations_are_grouped_by_consecutive_lines() -> None:
    program = linear_regression()
    first = program.first_op
    groups = list(ProgramView(program, lines_of(program, 1, 1, 2, 1)).groups())
    assert [(group.first - first, group.last - first) for group in groups[:3]] == [
        (0, 1),
        (2, 2),
        (3, len(program.ops) - 1),
    ]
    assert list(ProgramView(program).groups()) == [Group(None, first, len(program.values) - 1)]


@pytest.mark.parametrize("known", [True, False])
def test_the_groups_of_a_page_cover_every_operation_once(known: bool) -> None:
    program = mlp(16, (8, 8, 8, 4), 4)
    origins = lines_of(program, *[1 + i // 3 for i in range(len(program.ops))]) if known else ()

    def leaves(group: dict[str, Any]) -> list[int]:
        inner = [number for each in group.get("groups", []) for number in leaves(each)]
        return inner if "groups" in group else list(range(group["first"], group["last"] + 1))

    tree = group_tree(ProgramView(program, origins), "mlp")
    assert "groups" in tree
    assert leaves(tree) == list(range(program.first_op, len(program.values)))


def test_a_crowd_of_groups_is_bundled() -> None:
    program = mlp(16, (8,) * 12 + (4,), 4)
    origins = lines_of(program, *[100 * i for i in range(len(program.ops))])
    assert len(program.ops) > 300
    assert len(group_tree(ProgramView(program, origins), "mlp")["groups"]) <= 160


@pytest.mark.parametrize(
    ("lo", "hi", "text"),
    [
        (-128, 127, "-128..127"),
        (-(2**31), 2**31 - 1, "-2^31..2^31-1"),
        (-(2**31) + 1, 2**31, "-(2^31-1)..2^31"),
        (-(2**63), 2**63 - 1, "-2^63..2^63-1"),
        (0, 1234567, "0..1234567"),
    ],
)
def test_intervals_read_well_and_stay_exact(lo: int, hi: int, text: str) -> None:
    assert interval(ValueInfo((), 0, lo, hi)) == text


@pytest.fixture
def step_file(tmp_path: Path) -> Path:
    """The step that docs/exact-training.md shows to a newcomer."""
    guide = (ROOT / "docs" / "exact-training.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "def step(" in block]
    path = tmp_path / "my_step.py"
    path.write_text(code)
    return path


def test_the_step_of_the_guide_compiles_and_says_what_it_costs(
    step_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["program", "check", str(step_file), "--json"]) == 0
    found = document(capsys)
    assert found["parameters"] == 20 * 32 + 32 + 32 * 3 + 3
    assert found["multiply_accumulates"] == 64 * (2 * 20 * 32 + 3 * 32 * 3)  # no gradient of the input is needed
    assert 16 < found["widest_bits"] < 64
    assert found["seconds_per_step"] > 0
    assert found["peak_bytes"] > found["state_bytes"]


def test_a_program_is_shown_under_the_lines_of_its_step(step_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = step_file.with_suffix(".bin")
    assert run(["program", "show", str(step_file)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^my_step.py:\d+  return F.cross_entropy\(functional_call", text, re.MULTILINE)
    assert re.search(r"^my_step.py:\d+  momenta = .*0.9", text, re.MULTILINE)
    assert run(["program", "show", str(step_file), "--save", str(saved), "--json"]) == 0
    root = document(capsys)["figures"]["program_root"]
    assert run(["program", "show", str(saved), "--json"]) == 0
    assert document(capsys)["figures"]["program_root"] == root


def test_every_problem_of_a_step_is_told_at_once(step_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = step_file.read_text().replace(
        "    return params, momenta, loss\n",
        "    strange = torch.special.bessel_j0(loss)\n    other = torch.linalg.det(params['2.weight'][:, :3])\n"
        "    return params, momenta, loss + strange + other\n",
    )
    step_file.write_text(wrong)
    assert run(["program", "check", str(step_file), "--json"]) == 2
    found = document(capsys)
    assert found["error"]["code"] == "U-55"
    lines = wrong.splitlines()
    told = {lines[problem["line"] - 1].strip() for problem in found["problems"]}
    assert told >= {"strange = torch.special.bessel_j0(loss)", "other = torch.linalg.det(params['2.weight'][:, :3])"}
    assert all(problem["why"] for problem in found["problems"])
    assert run(["program", "show", str(step_file), "--json"]) == 2
    assert document(capsys)["error"]["code"] == "U-55"


def test_float32_and_exact_are_trained_beside_each_other(step_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = step_file.with_suffix(".png")
    arguments = ["--steps", "60", "--every", "25", "--seeds", "2", "--plot", str(plot), "--json"]
    assert run(["program", "compare", str(step_file), *arguments]) == 0
    runs = document(capsys)["runs"]
    assert [each["seed"] for each in runs] == [0, 1]
    assert runs[0]["float32"]["losses"] != runs[1]["float32"]["losses"]
    for each in runs:
        assert each["steps"] == [0, 25, 50, 60]
        for side in ("float32", "exact"):
            assert each[side]["losses"][-1] < each[side]["losses"][0] / 4
            assert each[side]["metrics"][-1]["accuracy"] > 0.95
        assert abs(each["gap"]["training_loss"]) < 0.01
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_step_without_data_says_what_to_give(step_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step_file.write_text(step_file.read_text().partition("def example_batch")[0])
    for arguments in (["check"], ["compare"]):
        assert run(["program", *arguments, str(step_file), "--json"]) == 2
        error = document(capsys)["error"]
        assert (error["code"], "example_batch()" in error["hint"]) == ("U-52", True)
    assert run(["program", "check", str(step_file), "--data", "digits", "--batch", "2000", "--json"]) == 2
    assert document(capsys)["error"]["code"] == "U-53"
