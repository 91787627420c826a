"""The checked-in contract artefacts are what the sources give, on any machine and in any directory."""

import shutil
from pathlib import Path

import pytest

from scripts.build_contracts import OUTPUT, ROOT, BuildError, BuiltContract, build, stale, write


def copied_to(folder: Path) -> Path:
    """The sources in another directory."""
    shutil.copytree(ROOT / "contracts", folder / "contracts")
    shutil.copy(ROOT / "foundry.toml", folder)
    (folder / "node_modules").symlink_to(ROOT / "node_modules")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return copied_to(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[BuiltContract]:
    """The sources, built in another directory; a build takes seconds."""
    return build(copied_to(tmp_path_factory.mktemp("elsewhere")))


def test_rebuilding_in_another_directory_gives_the_checked_in_artefacts(built: list[BuiltContract]) -> None:
    assert stale(built, OUTPUT) == [], "run `make build` and commit protocol/abi"


def test_a_changed_source_makes_its_artefact_stale_and_a_changed_comment_none(elsewhere: Path) -> None:
    faucet, token = (elsewhere / "contracts" / f"{name}.sol" for name in ("Faucet", "AvenueToken"))
    faucet.write_text(faucet.read_text().replace("block.chainid != 1", "block.chainid != 2"))
    token.write_text(token.read_text() + "\n// A comment.\n")
    assert stale(build(elsewhere), OUTPUT) == ["Faucet.json"]


def test_writing_removes_what_is_left_over(built: list[BuiltContract], tmp_path: Path) -> None:
    output = tmp_path / "abi"
    output.mkdir()
    (output / "Gone.json").write_text("{}")
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
