"""The checked-in contract artefacts are what the sources give, on any machine and in any directory."""

import shutil
from pathlib import Path

import pytest

from scripts.build_contracts import OUTPUT, ROOT, BuildError, build, stale, write


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The sources in another directory."""
    shutil.copytree(ROOT / "contracts", tmp_path / "contracts")
    shutil.copy(ROOT / "foundry.toml", tmp_path)
    (tmp_path / "node_modules").symlink_to(ROOT / "node_modules")
    return tmp_path


def test_rebuilding_in_another_directory_gives_the_checked_in_artefacts(elsewhere: Path) -> None:
    assert stale(build(elsewhere), OUTPUT) == [], "run `make build` and commit protocol/abi"


def test_a_changed_source_makes_its_artefact_stale(elsewhere: Path) -> None:
    source = elsewhere / "contracts" / "Faucet.sol"
    source.write_text(source.read_text().replace("block.chainid != 1", "block.chainid != 2"))
    assert stale(build(elsewhere), OUTPUT) == ["Faucet.json"]


def test_a_changed_comment_changes_no_bytecode(elsewhere: Path) -> None:
    source = elsewhere / "contracts" / "Faucet.sol"
    source.write_text(source.read_text() + "\n// A comment.\n")
    assert stale(build(elsewhere), OUTPUT) == []


def test_writing_removes_what_is_left_over(elsewhere: Path, tmp_path: Path) -> None:
    output = tmp_path / "abi"
    output.mkdir()
    (output / "Gone.json").write_text("{}")
    built = build(elsewhere)
    assert "Gone.json" in stale(built, output)
    write(built, output)
    assert stale(built, output) == []


def test_a_source_that_does_not_compile_is_an_error_with_the_compilers_words(elsewhere: Path) -> None:
    (elsewhere / "contracts" / "Faucet.sol").write_text("pragma solidity 0.8.37; contract Faucet { uint x = y; }")
    with pytest.raises(BuildError, match="Undeclared identifier"):
        build(elsewhere)


def test_a_setting_that_changes_bytecode_must_be_written_down(elsewhere: Path) -> None:
    profile = elsewhere / "foundry.toml"
    profile.write_text(profile.read_text().replace('evm_version = "prague"', ""))
    with pytest.raises(BuildError, match="evm_version"):
        build(elsewhere)
