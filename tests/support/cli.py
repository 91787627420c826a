"""The command line as a person runs it: a process of its own, its real exit code, stdout and stderr apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; json.loads fails on anything more."""
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> dict[str, str]:
        found: dict[str, str] = self.document["error"]
        assert set(found) == {"code", "message", "hint"}
        assert "\n" not in found["message"]
        return found


class Cli:
    """Runs `avenue` with a home of its own. `environ` goes on top of a clean environment."""

    def __init__(self, home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.home = home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.password_file = home / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.password_file.chmod(0o600)
        self.environ = dict(environ or {})

    def environment(self, with_password: bool = True) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AVENUE_")}
        kept |= {"AVENUE_HOME": str(self.home), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::ResourceWarning"}
        if with_password:
            kept["AVENUE_PASSWORD_FILE"] = str(self.password_file)
        return kept | self.environ

    def run(self, *arguments: str, stdin: str = "", with_password: bool = True, timeout_s: float = 60) -> Ran:
        """Runs to the end, without a terminal."""
        done = subprocess.run(
            [sys.executable, "-m", "node", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment(with_password),
            timeout=timeout_s,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def first_document(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """The JSON document that a command prints and then goes on."""
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.rstrip() == "}":
                break
        found = json.loads(text)
        assert isinstance(found, dict)
        return found

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command that goes on; the caller stops it."""
        return subprocess.Popen(
            [sys.executable, "-m", "node", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )


def answers(url: str) -> bool:
    """Whether an HTTP server says 200 there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 60) -> None:
    """Polls until `condition` holds. Fails at once if `process` ends, with what it said."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
