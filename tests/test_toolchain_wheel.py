"""The wheel carries everything that a node or a gateway reads at run time, and nothing that only we need."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("node", "marketplace", "proofs", "protocol")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("avenue-*.whl"))) as file:
        yield file


def test_every_file_that_is_read_at_run_time_is_shipped(wheel: zipfile.ZipFile) -> None:
    needed = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for prefix in ("protocol/abi/TaskMarket.json", "protocol/deployments/plan.json", "marketplace/templates/"):
        assert any(name.startswith(prefix) for name in needed), f"{prefix} is gone from the repository"
    # A record of a chain that forgets is written by a local run, and ignored by git.
    assert needed - set(wheel.namelist()) <= {"protocol/deployments/31337.json"}


def test_nothing_but_the_rooms_is_shipped(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {*ROOMS, "avenue-0.1.0.dist-info"}


def test_the_command_is_named_avenue(wheel: zipfile.ZipFile) -> None:
    assert "avenue = node.cli:main" in wheel.read("avenue-0.1.0.dist-info/entry_points.txt").decode()
    assert wheel.read("avenue-0.1.0.dist-info/licenses/LICENSE").decode().count("Apache License") > 0
