"""The stage of the demo: a chain, a gateway and one `avenue` process for each actor, all on loopback.

Whatever was started is stopped at the end. Each actor has a home of its own (configuration, keystore, journal, data)
and is driven by the same commands that a person types. Nothing is shared between them but the chain and the gateway.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from web3 import HTTPProvider, Web3
from web3.exceptions import Web3Exception

REPO = Path(__file__).resolve().parents[2]
AVENUE = [sys.executable, "-m", "node"]
LOOPBACK = "127.0.0.1"
STOP_GRACE_S = 8.0
ANVIL_MNEMONIC_ACCOUNTS = 10


class CommandFailedError(RuntimeError):
    """An `avenue` command that should have worked did not."""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, ready: Callable[[], Any], *, timeout_s: float, every_s: float = 0.2) -> Any:
    """Polls `ready` until it returns something true, and returns that. Raises TimeoutError naming `what`."""
    give_up = time.monotonic() + timeout_s
    while True:
        value = ready()
        if value:
            return value
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(every_s)


@dataclass
class Actor:
    """One person or machine: a home, a password file, and how to run `avenue` as them."""

    name: str
    home: Path
    env: dict[str, str]
    log: Path
    addresses: dict[str, str] = field(default_factory=dict)
    """Of its Ethereum keys, by name."""

    def run(self, *arguments: str, timeout_s: float = 300.0) -> Any:
        """Runs `avenue ARGUMENTS --json` to its end and returns the JSON document. Raises CommandFailedError."""
        command = [*AVENUE, *arguments, "--json"]
        with self.log.open("ab") as log:
            done = subprocess.run(
                command, env=self.env, stdout=subprocess.PIPE, stderr=log, cwd=REPO, timeout=timeout_s, check=False
            )
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip()
            raise CommandFailedError(f"{self.name}: avenue {' '.join(arguments)} -> exit {done.returncode}: {said}")
        return json.loads(done.stdout)


@dataclass
class Stage:
    """Use in a `with`: whatever was started is stopped on the way out."""

    root: Path
    chain_url: str = ""
    gateway_url: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    actors: dict[str, Actor] = field(default_factory=dict)
    _logs: list[IO[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name)
        for log in self._logs:
            log.close()

    @property
    def w3(self) -> Web3:
        return Web3(HTTPProvider(self.chain_url))

    def start_chain(self, *, block_time_s: int) -> None:
        """A fresh Anvil with a block every `block_time_s` seconds."""
        port = free_port()
        self.chain_url = f"http://{LOOPBACK}:{port}"
        self._spawn(
            "anvil",
            [
                str(anvil_binary()),
                *("--host", LOOPBACK, "--port", str(port), "--chain-id", "31337"),
                *("--block-time", str(block_time_s), "--hardfork", "prague"),
                *("--accounts", str(ANVIL_MNEMONIC_ACCOUNTS), "--silent"),
            ],
        )
        wait_until("Anvil", self._chain_answers, timeout_s=20)

    def _chain_answers(self) -> bool:
        self._must_live("anvil")
        try:
            return bool(self.w3.eth.chain_id == 31337)
        except (OSError, Web3Exception):
            return False

    def actor(self, name: str, role: str) -> Actor:
        """A new home with fresh encrypted keys (`avenue init`), and gas money on each of its addresses."""
        actor = self.keyless_actor(name)
        made = actor.run("init", "--role", role, "--network", "local", "--light-kdf", "--yes")
        actor.addresses = {key["name"]: key["public"] for key in made["keys"] if key["kind"] != "x25519"}
        for address in actor.addresses.values():
            self.send_gas_money(address)
        return actor

    def keyless_actor(self, name: str) -> Actor:
        """A new home, empty."""
        home = self.root / name
        home.mkdir(mode=0o700, parents=True)
        password = home / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
        env = {
            **os.environ,
            "AVENUE_HOME": str(home),
            "AVENUE_PASSWORD_FILE": str(password),
            "AVENUE_RPC_URLS": self.chain_url,
            "AVENUE_LOG__FORMAT": "json",
            "AVENUE_COMPUTE__POLL_INTERVAL_S": "0.5",
            "AVENUE_REQUEST__POLL_INTERVAL_S": "0.5",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }
        if self.gateway_url:
            env["AVENUE_GATEWAY_URL"] = self.gateway_url
        actor = Actor(name, home, env, self.root / f"{name}.log")
        self.actors[name] = actor
        return actor

    def send_gas_money(self, address: str) -> None:
        """From Anvil's first unlocked account; on a real network a person does this."""
        w3 = self.w3
        tx = w3.eth.send_transaction(
            {"from": w3.eth.accounts[0], "to": Web3.to_checksum_address(address), "value": Web3.to_wei(10, "ether")}
        )
        w3.eth.wait_for_transaction_receipt(tx, timeout=30)

    def start(self, actor: Actor, *arguments: str, name: str | None = None) -> subprocess.Popen[bytes]:
        """Starts `avenue ARGUMENTS` as a long-running process of `actor`, output to its log."""
        return self._spawn(name or actor.name, [*AVENUE, *arguments], env=actor.env, log=actor.log)

    def kill(self, name: str) -> None:
        """kill -9, as a power cut would."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> None:
        """Interrupt, then kill what does not leave in time."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def check_all_live(self) -> None:
        """Raises CommandFailedError if a process has ended with an error."""
        for name in self.processes:
            self._must_live(name)

    def _must_live(self, name: str) -> None:
        code = self.processes[name].poll()
        if code:
            log = self.root / f"{name}.log"
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise CommandFailedError(f"{name} ended with exit code {code}; the end of {log}:\n{tail}")

    def _spawn(
        self, name: str, command: list[str], *, env: dict[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        handle = (log or self.root / f"{name}.log").open("ab")
        self._logs.append(handle)
        process = subprocess.Popen(
            command,
            env=env,
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes[name] = process
        return process


def anvil_binary() -> Path:
    """The native binary inside the npm package (npm's launcher loses signals and exit codes), or `anvil` on PATH."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    packaged = REPO / "node_modules" / "@foundry-rs" / f"anvil-{platform.system().lower()}-{machine}" / "bin" / "anvil"
    if packaged.is_file():
        return packaged
    found = shutil.which("anvil")
    if found is None:
        raise FileNotFoundError(f"no anvil at {packaged} nor on PATH: run `make setup`")
    return Path(found)
