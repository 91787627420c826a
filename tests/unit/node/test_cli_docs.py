"""The pages that document the command line are what the code says today."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from node.cli.app import app
from node.config import load_config
from scripts import gen_docs

ROOT = Path(__file__).resolve().parents[3]
PEOPLE_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_command_line_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == gen_docs.cli_page(), "run python -m scripts.gen_docs"


def test_the_configuration_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == gen_docs.configuration_page(), "run scripts/gen_docs.py"


def test_the_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert gen_docs.cli_page() == (ROOT / "docs" / "cli.md").read_text()


def test_the_sample_configuration_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    (sample,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert tomllib.loads(sample)["network"] == "sepolia"
    (tmp_path / "config.toml").write_text(sample)
    config = load_config(tmp_path, environ={}).config
    assert len(config.selected_network().rpc_urls) == 2
    assert config.fees.max_fee_wei == 30 * 10**9


def test_every_code_in_the_tree_is_on_the_errors_page() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    missing = [code for code in sorted(gen_docs.codes_in_tree()) if f"| {code} |" not in page]
    assert not missing, "run python -m scripts.gen_docs"


def test_the_errors_page_has_no_code_that_is_gone() -> None:
    listed = re.findall(r"^\| ([A-Z]-[0-9]{2}) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert not set(listed) - set(gen_docs.codes_in_tree()), "run python -m scripts.gen_docs"


def commands_in(text: str) -> list[str]:
    """Each `avenue ...` that a page shows: in a code span or at the start of a line of a code block."""
    spans = re.findall(r"`(avenue [^`\n]+)`", text)
    lines = re.findall(r"^(?:\$ )?(avenue [a-z][^\n]*)$", text, re.MULTILINE)
    return [each.partition("#")[0].strip() for each in spans + lines]


@pytest.mark.parametrize("page", PEOPLE_PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_that_a_page_shows_exists(page: Path) -> None:
    unknown = [shown for shown in commands_in(page.read_text()) if not exists(shown)]
    assert not unknown


def exists(shown: str) -> bool:
    level = typer.main.get_command(app)
    for word in shlex.split(shown.partition("|")[0].replace("...", ""))[1:]:
        if word.startswith("-"):
            names = {option for parameter in level.params for option in parameter.opts} | {"-h", "--help"}
            if word.partition("=")[0] not in names:
                return False
        elif hasattr(level, "commands"):
            if word not in level.commands:
                return False
            level = level.commands[word]
    return True


def test_a_command_that_is_gone_would_be_noticed() -> None:
    assert exists("avenue task submit examples/mnist.toml --yes")
    assert not exists("avenue task sbumit examples/mnist.toml")
    assert not exists("avenue task submit --oops")
