"""A red contract test makes `make test` red.

That is not a matter of course: npm's launcher of Forge loses the exit code.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TEST = """// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

contract OneTest {
    function test_colour() public pure {
        assert(%s);
    }
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project under the same Makefile, scripts and settings, with the same tools."""
    for name in ("Makefile", "foundry.toml", "package.json", "package-lock.json", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "scripts").mkdir()
    for name in ("forge", "solc", "setup.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    for name in ("node_modules", ".setup", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "contracts").mkdir()
    (tmp_path / "tests" / "solidity").mkdir(parents=True)
    return tmp_path


def make(project: Path, target: str, condition: str) -> subprocess.CompletedProcess[str]:
    (project / "tests" / "solidity" / "One.t.sol").write_text(TEST % condition)
    # This very test may run under make, whose settings must not reach the inner one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", target],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_failing_forge_test_makes_make_test_fail(project: Path) -> None:
    done = make(project, "test", "false")
    assert done.returncode != 0
    assert "[FAIL: panic: assertion failed" in done.stdout, done.stdout + done.stderr
    assert "test_colour" in done.stdout


def test_the_same_test_in_green_passes(project: Path) -> None:
    done = make(project, "test-contracts", "true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 tests passed, 0 failed" in done.stdout
