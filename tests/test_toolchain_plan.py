"""Brownie and `avenue deploy` read one plan, and arrive at the same contracts."""

import re
import subprocess
from pathlib import Path

from eth_utils.address import to_checksum_address

from protocol.deploy import read_plan, resolve_plan

ROOT = Path(__file__).resolve().parent.parent

ANVIL_ACCOUNT_0 = to_checksum_address("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
ANVIL_CHAIN_ID = 31337


def test_brownie_deploys_to_the_addresses_of_the_plan() -> None:
    command = [ROOT / ".venv-brownie" / "bin" / "python", ROOT / "scripts" / "run_brownie.py", "run", "deploy"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"^(\w+) +\w+ at (0x[0-9a-fA-F]{40})$", done.stdout, re.MULTILINE))
    planned = resolve_plan(read_plan(), ANVIL_CHAIN_ID, ANVIL_ACCOUNT_0)
    assert found == {contract.name: contract.address for contract in planned.contracts}
