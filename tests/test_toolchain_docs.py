"""The documents name commands, flags and files that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from node.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced and indented code, and inline code."""
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    for block in fenced.findall(text):
        yield from block.splitlines()[1:-1]
    text = fenced.sub("", text)
    yield from re.findall(r"^ {4}(.*)$", text, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", text)


def avenue_commands(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in code_lines(path.read_text("utf-8")))
    return [line for line in lines if re.match(r"avenue( |$)", line)]


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def problem(line: str) -> str | None:
    """What is wrong with a command line; None if its command and its flags exist."""
    command: Any = typer.main.get_command(app)
    words = line.split()[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        # "compute status|earnings" names several commands.
        for name in (names := words.pop(0).split("|")):
            if name not in command.commands:
                return f"{line}: no command {name!r}"
        command = command.commands[names[-1]]
    flags = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    unknown = flags - options(command) - {"--help", "-h"}
    return f"{line}: no flag {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_avenue_command_in_the_document_exists(path: Path) -> None:
    assert list(filter(None, map(problem, avenue_commands(path)))) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_make_target_in_the_document_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"help", "setup", "build", "test", "lint", "demo", "bench", "brownie", "clean"} <= targets
    lines = code_lines(path.read_text("utf-8"))
    assert {target for line in lines for target in re.findall(r"^\s*make ([a-z-]+)", line)} <= targets


def test_every_variable_that_people_are_told_to_give_make_reaches_a_command() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    told = "\n".join(path.read_text("utf-8") for path in (*DOCUMENTS, ROOT / "scripts" / "demo" / "__main__.py"))
    variables = set(re.findall(r"make [a-z-]+ ([A-Z_]+)=", told))
    assert variables >= {"DEMO_ARGS"}
    assert all(f"$({name})" in makefile for name in variables)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert problem("avenue tsak list") is not None
    assert problem("avenue deploy --no-such-flag") is not None
    assert problem("avenue deploy --yes") is None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_the_readme_leads_a_newcomer_through_the_three_roles() -> None:
    commands = "\n".join(avenue_commands(ROOT / "README.md"))
    for step in (
        "avenue deploy",
        "avenue compute start",
        "avenue task submit",
        "avenue task watch",
        "avenue task result",
    ):
        assert step in commands
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
