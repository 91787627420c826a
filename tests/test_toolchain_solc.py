"""scripts/solc answers like the native compiler, from any directory and through any link."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def solc(program: Path, *arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, check=False)


def test_a_link_elsewhere_finds_the_compiler(tmp_path: Path) -> None:
    link = tmp_path / "solc-v0.8.37"
    link.symlink_to(ROOT / "scripts" / "solc")
    done = solc(link, "--version", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("Version: 0.8.37+commit.")


def test_imports_are_read_relative_to_the_base_path(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "B.sol").write_text("pragma solidity 0.8.37; contract B {}")
    request = {
        "language": "Solidity",
        "sources": {"A.sol": {"content": 'pragma solidity 0.8.37; import {B} from "B.sol"; contract A is B {}'}},
        "settings": {"outputSelection": {"*": {"*": ["abi"]}}},
    }
    arguments = ("--standard-json", "--base-path", str(tmp_path / "base"))
    answer = json.loads(solc(ROOT / "scripts" / "solc", *arguments, cwd=tmp_path, stdin=json.dumps(request)).stdout)
    assert answer["contracts"].keys() == {"A.sol", "B.sol"}


def test_an_import_that_is_nowhere_is_a_compile_error(tmp_path: Path) -> None:
    request = {"language": "Solidity", "sources": {"A.sol": {"content": 'import "Nowhere.sol";'}}}
    done = solc(ROOT / "scripts" / "solc", "--standard-json", cwd=tmp_path, stdin=json.dumps(request))
    assert "File not found: Nowhere.sol" in done.stdout


def test_other_uses_are_refused_not_ignored(tmp_path: Path) -> None:
    done = solc(ROOT / "scripts" / "solc", "--bin", "A.sol", cwd=tmp_path)
    assert done.returncode == 1
    assert "--standard-json" in done.stderr
