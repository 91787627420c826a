"""The command line `avenue`. Light on purpose: web3 and torch are imported by the commands that need them."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code (protocol/errors.py has the list)."""
    from node.cli.app import run

    return run(arguments)
