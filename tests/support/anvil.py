"""A real Anvil on a free loopback port, started by its binary's real path (the npm launcher loses exit codes).

    with anvil() as chain:            # AnvilProcess: url, accounts, keys
        ...
    with avenue_chain(tmp_path) as chain:   # AvenueChain: also client, deployment, sender(account)

As pytest fixtures (tests/conftest.py): `chain` (a fresh Anvil), `avenue` (a fresh Anvil with Avenue on it).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.types import RPCEndpoint

from protocol.chain import ChainClient
from protocol.deploy import deploy
from protocol.deployments import Deployment
from protocol.fees import SendPolicy
from protocol.journal import Journal
from protocol.rpc import connect
from protocol.sender import Sender
from scripts.demo.stage import anvil_binary

ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 30.0
# The well-known development mnemonic; Anvil prints these keys on every start.
MNEMONIC = "test test test test test test test test test test test junk"
_LISTENING = re.compile(r"Listening on 127\.0\.0\.1:(\d+)")


@cache  # deriving ten keys costs more than starting Anvil
def _account(index: int) -> LocalAccount:
    Account.enable_unaudited_hdwallet_features()
    account: LocalAccount = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return account


@dataclass
class AnvilProcess:
    """A running Anvil. `accounts` sign; `keys` are their private keys, 0x-hex."""

    url: str
    accounts: list[LocalAccount]
    process: subprocess.Popen[str]

    @property
    def keys(self) -> list[str]:
        return ["0x" + bytes(account.key).hex() for account in self.accounts]

    def connect(self) -> Web3:
        """A Web3 of `protocol.rpc` to this chain."""
        return connect(self.url)

    def rpc(self, method: str, *params: Any) -> Any:
        """One raw JSON-RPC call, such as `rpc("anvil_mine", "0x10")`. Raises `RuntimeError` on a JSON-RPC error."""
        w3 = self.connect()
        try:
            answer = w3.provider.make_request(RPCEndpoint(method), list(params))
        finally:
            w3.provider.close()  # type: ignore[attr-defined]
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def mine(self, blocks: int = 1) -> None:
        self.rpc("anvil_mine", hex(blocks))

    def increase_time(self, seconds: int) -> None:
        """Moves the chain's clock forward and mines a block, so that the next call sees it."""
        self.rpc("evm_increaseTime", hex(seconds))
        self.mine()

    def set_automine(self, on: bool) -> None:
        self.rpc("evm_setAutomine", on)

    def kill(self) -> None:
        """As a crash would: at once."""
        self.process.kill()
        self.process.wait()


@contextmanager
def anvil(
    block_time: int | None = None,
    chain_id: int = 31337,
    *,
    accounts: int = 10,
    port: int = 0,
    arguments: tuple[str, ...] = (),
) -> Iterator[AnvilProcess]:
    """Starts Anvil, waits until it listens, stops it at the end.

    `block_time` in seconds; without it, every transaction gets a block at once.

    Raises `RuntimeError` with Anvil's own output if it does not start.
    """
    command = [str(anvil_binary()), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id)]
    command += ["--accounts", str(accounts), "--mnemonic", MNEMONIC, *arguments]
    if block_time is not None:
        command += ["--block-time", str(block_time)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        environment = {**os.environ, "FOUNDRY_DISABLE_NIGHTLY_WARNING": "1", "RAYON_NUM_THREADS": "2"}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment
        )
        try:
            found = _wait_for_port(process, output)
            yield AnvilProcess(f"http://127.0.0.1:{found}", [_account(index) for index in range(accounts)], process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_port(process: subprocess.Popen[str], output: Any) -> int:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        # The child writes through its own descriptor of the same file: read without moving the shared offset.
        printed = os.pread(output.fileno(), 1 << 20, 0).decode("utf-8", "replace")
        match = _LISTENING.search(printed)
        if match:
            return int(match.group(1))
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"Anvil did not start: {os.pread(output.fileno(), 1 << 20, 0).decode('utf-8', 'replace')}")


@dataclass
class AvenueChain:
    """A chain with Avenue on it. Account 0 deployed. Close what `sender` and `client` open by leaving the fixture."""

    anvil: AnvilProcess
    deployment: Deployment
    home: Path
    client: ChainClient
    _stack: ExitStack = field(repr=False)

    @property
    def url(self) -> str:
        return self.anvil.url

    @property
    def accounts(self) -> list[LocalAccount]:
        return self.anvil.accounts

    def sender(self, account: LocalAccount | int, policy: SendPolicy | None = None) -> Sender:
        """A sender for an account (or the index of one), all on one journal in `home`."""
        signer = self.accounts[account] if isinstance(account, int) else account
        journal = self._stack.enter_context(Journal(self.home / "journal.sqlite"))
        return Sender(self.client, signer, journal, policy or SendPolicy())


@contextmanager
def avenue_chain(home: Path, **options: Any) -> Iterator[AvenueChain]:
    """A fresh Anvil with Avenue deployed by `protocol.deploy`, its record in `home`. Options as for `anvil`."""
    with anvil(**options) as process, ExitStack() as stack:
        w3 = process.connect()
        stack.callback(w3.provider.close)  # type: ignore[attr-defined]
        bare = ChainClient(w3)
        with Journal(home / "deployer.sqlite") as journal:
            deployment = deploy(bare, Sender(bare, process.accounts[0], journal), home)
        yield AvenueChain(process, deployment, home, ChainClient(w3, deployment), stack)
