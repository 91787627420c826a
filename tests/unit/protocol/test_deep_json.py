"""An endpoint that answers with opening brackets alone meets an exception, not the end of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

READ = """
import json
try:
    json.loads("[" * 200_000)
except RecursionError:
    print("refused")
"""


@pytest.mark.parametrize("first", ["protocol.signatures", "node.cli.app", "marketplace.app", "eth_account, protocol"])
def test_deep_json_is_refused_whatever_was_imported(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {first}{READ}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
