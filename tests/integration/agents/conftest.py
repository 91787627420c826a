"""A whole market on this machine: Anvil, contracts, gateway, and as many agents as a test wants."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from marketplace.app import create_app
from marketplace.config import Settings
from node.compute.agent import ComputeAgent
from node.compute.desk import Desk
from node.compute.view import WorkKey
from node.config import Role, load_config
from node.context import NodeContext
from node.request.agent import RequestAgent
from node.request.submit import plan_submission
from node.request.view import Policy as RequestPolicy
from protocol.types import TaskId, TaskSpec, Unit, UnitStatus
from tests.support.anvil import ROOT, AvenueChain, avenue_chain
from tests.support.market import AVN, give_tokens

WAIT_S = 60.0
REQUESTER = 1
FIRST_NODE = 2
POLL_S = 0.1


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Fails the test with `what` if the condition does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        threading.Event().wait(0.1)


@dataclass
class Running:
    """An agent in a thread of the test's process."""

    stop: threading.Event
    thread: threading.Thread
    failures: list[BaseException] = field(default_factory=list)

    def end(self, timeout_s: float = WAIT_S) -> None:
        self.stop.set()
        self.join(timeout_s)

    def join(self, timeout_s: float = WAIT_S) -> None:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), f"{self.thread.name} does not end"
        if self.failures:
            raise self.failures[0]


class Gateway:
    """A gateway in a thread, on a port that it keeps when it is stopped and started again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.port = 0

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(self._settings), log_level="warning", timeout_graceful_shutdown=2)
        )
        arguments = {"sockets": [listener]}
        self._thread = threading.Thread(target=self._server.run, kwargs=arguments, name="gateway", daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, "the gateway starts")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the gateway does not stop"

    def lose_mail(self) -> None:
        """Its database is gone; its blobs are still there."""
        for path in self._settings.data_dir.glob("gateway.sqlite*"):
            path.unlink()


@dataclass
class Market:
    """Chain, gateway and homes. Dev account 0 deployed, 1 requests, 2.. are nodes."""

    avenue: AvenueChain
    gateway: Gateway
    folder: Path
    stack: ExitStack

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def context(self, account: int, role: Role, **flags: Any) -> NodeContext:
        """The home of one dev account."""
        home = self.folder / f"home-{account}"
        settings = {
            "role": str(role),
            "rpc_urls": [self.avenue.url],
            "gateway_url": self.gateway_url,
            "networks.local.deployments_dir": str(self.avenue.home),
            "compute.poll_interval_s": POLL_S,
            "request.poll_interval_s": POLL_S,
            "compute.stake": "1000",
            **flags,
        }
        loaded = load_config(home, flags=settings, environ={})
        return self.stack.enter_context(NodeContext(loaded, role=role, dev_account_index=account))

    @property
    def requester(self) -> NodeContext:
        return self.context(REQUESTER, Role.REQUEST)

    def submit(self, text: str) -> TaskId:
        """Posts the task file `text` with tokens for its escrow."""
        path = self.folder / "task.toml"
        path.write_text(text, encoding="utf-8")
        give_tokens(self.avenue, self.avenue.accounts[REQUESTER], 1000 * AVN)
        return plan_submission(self.requester, path).execute()

    def _run(self, name: str, run: Callable[[threading.Event], None]) -> Running:
        stop = threading.Event()
        running = Running(stop, threading.Thread(name=name, daemon=True))

        def body() -> None:
            try:
                run(stop)
            except BaseException as error:  # noqa: BLE001 (handed to the test's thread)
                running.failures.append(error)

        running.thread = threading.Thread(target=body, name=name, daemon=True)
        running.thread.start()
        self.stack.callback(running.stop.set)
        return running

    def node(self, index: int, **flags: Any) -> Running:
        """A Compute Node in a thread."""
        context = self.context(FIRST_NODE + index, Role.COMPUTE, **flags)
        return self._run(f"node {index}", ComputeAgent(context).run)

    def node_process(self, index: int) -> subprocess.Popen[bytes]:
        """A Compute Node in a process of its own, to be killed. Its log is `node-<index>.log`."""
        home = self.folder / f"home-{FIRST_NODE + index}"
        command = [sys.executable, "-m", "tests.integration.agents.run_node"]
        command += [self.avenue.url, self.gateway_url, str(self.avenue.home), str(home)]
        command += [str(FIRST_NODE + index)]
        log = self.stack.enter_context((self.folder / f"node-{index}.log").open("ab"))
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def steps_done(self, index: int, spec: TaskSpec, unit: int, attempt: int = 0) -> int:
        """Steps behind the checkpoint on a node's disk."""
        desk = Desk(self.context(FIRST_NODE + index, Role.COMPUTE).data_dir)
        return desk.steps_done(WorkKey(TaskId(spec.task_id), unit, attempt))

    def log_of(self, index: int) -> str:
        return (self.folder / f"node-{index}.log").read_text(encoding="utf-8")

    def request_agent(self, task: TaskId, policy: RequestPolicy | None = None) -> Running:
        return self._run("requester", RequestAgent(self.requester, task, policy=policy).run)

    def units(self, spec: TaskSpec) -> list[Unit]:
        return [unit for units in self.avenue.client.rounds(spec, range(spec.rounds)) for unit in units]

    def unit(self, spec: TaskSpec, index: int) -> Unit:
        return self.avenue.client.unit(TaskId(spec.task_id), index)

    def count(self, spec: TaskSpec, status: UnitStatus) -> int:
        return sum(unit.status is status for unit in self.units(spec))


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    """Transactions are mined at once, and a block comes four times a second besides, so that time passes."""
    with ExitStack() as stack:
        arguments = ("--block-time", "0.25", "--mixed-mining")
        avenue = stack.enter_context(avenue_chain(tmp_path / "deployer", arguments=arguments))
        settings = Settings(
            port=0,
            data_dir=tmp_path / "gateway",
            rpc_urls=(avenue.url,),
            deployment_dir=avenue.home,
            poll_interval_s=0.2,
        )
        gateway = Gateway(settings)
        gateway.start()
        stack.callback(gateway.stop)
        market_stack = ExitStack()
        yield Market(avenue, gateway, tmp_path, market_stack)
        market_stack.close()
