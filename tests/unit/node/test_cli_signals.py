"""Ctrl+C: the first asks, the second insists, and nobody waits longer than the grace."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, threading
from node.cli.output import Output
from node.cli.signals import stop_on_signals
with stop_on_signals(Output(), grace_s={grace_s}) as request:
    print("working", flush=True)
    if {stubborn}:
        threading.Event().wait()
    request.event.wait()
print("saved", flush=True)
sys.exit(request.exit_code)
"""


def start(*, stubborn: bool, grace_s: float = 60) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(stubborn=stubborn, grace_s=grace_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_first_signal_lets_the_work_finish(number: signal.Signals, code: int) -> None:
    process = start(stubborn=False)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (code, "saved\n")
    assert "once more stops at once" in stderr


def test_the_second_signal_stops_at_once() -> None:
    process = start(stubborn=True)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "once more stops at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")


def test_work_that_does_not_finish_is_left_after_the_grace() -> None:
    process = start(stubborn=True, grace_s=0.2)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert "still busy after 0.2 s" in stderr
    assert time.monotonic() - started < 10
