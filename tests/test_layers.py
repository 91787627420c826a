"""Imports run one way: node | marketplace -> protocol -> proofs. The gateway and the protocol never load torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("node", "marketplace", "protocol", "proofs")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for room in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(room).__path__, room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print("torch" in sys.modules)
"""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(folder), NO_COLOR="1")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_rooms_import_downwards_only() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("marketplace/wrong.py", "import node"),
        ("node/wrong.py", "import marketplace"),
        ("protocol/wrong.py", "import torch"),
        ("proofs/wrong.py", "import protocol"),
    ],
)
def test_an_import_the_wrong_way_is_caught(tmp_path: Path, file: str, line: str) -> None:
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).write_text(f"{line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert file.removesuffix(".py").replace("/", ".") in done.stdout, done.stdout


@pytest.mark.parametrize("room", ["protocol", "marketplace"])
def test_importing_every_module_of_the_room_loads_no_torch(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, room], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
