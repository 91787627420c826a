"""protocol.locks: one agent per identity, between threads and between processes, and none left behind by the dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import StateError
from protocol.locks import sole_agent

ADDRESS = "0x" + "Ab" * 20
HOLD = (
    "import sys; from pathlib import Path; from protocol.locks import sole_agent\n"
    "with sole_agent(Path(sys.argv[1]), 31337, sys.argv[2], 'compute'):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def test_second_start_of_one_identity_is_refused(tmp_path: Path) -> None:
    with sole_agent(tmp_path, 31337, ADDRESS, "compute"):
        with pytest.raises(StateError, match="another compute agent is running") as caught:
            sole_agent(tmp_path, 31337, ADDRESS.lower(), "compute").__enter__()
        assert caught.value.code == "S-20" and caught.value.hint
    with sole_agent(tmp_path, 31337, ADDRESS, "compute"):
        pass


def test_other_roles_keys_and_chains_are_other_identities(tmp_path: Path) -> None:
    with (
        sole_agent(tmp_path, 31337, ADDRESS, "compute"),
        sole_agent(tmp_path, 31337, ADDRESS, "request"),
        sole_agent(tmp_path, 1, ADDRESS, "compute"),
        sole_agent(tmp_path, 31337, "0x" + "cd" * 20, "compute"),
    ):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), ADDRESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(StateError):
            sole_agent(tmp_path, 31337, ADDRESS, "compute").__enter__()
        other.kill()
        other.wait()
        with sole_agent(tmp_path, 31337, ADDRESS, "compute"):
            pass
