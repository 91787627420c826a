"""A real gateway on a real port, and a small market for it to serve.

with running_gateway(Settings(...), client) as gateway:   # RunningGateway: url, app, client(account)
market = small_market(avenue)                             # two nodes, one posted task, a stranger
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from eth_account.signers.local import LocalAccount
from fastapi import FastAPI

from marketplace.app import create_app, listen
from marketplace.config import Limits, Settings
from marketplace.deps import Gateway
from node.gateway import GatewayClient
from protocol import transactions
from protocol.chain import ChainClient
from protocol.messages import Domain
from protocol.sealing import EncryptionKey
from protocol.signatures import sign_operator_authorization
from protocol.types import NodeId, TaskSpec, Wei
from tests.support.anvil import AvenueChain

AVN = 10**18
WAIT_S = 20.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Returns as soon as `condition` holds. Raises AssertionError after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.02)


@dataclass
class RunningGateway:
    """A gateway that answers at `url`."""

    url: str
    app: FastAPI
    domain: Domain
    _stack: ExitStack = field(repr=False)
    pauses_s: list[float] = field(default_factory=list)
    """How long clients wanted to wait before they tried again."""

    @property
    def parts(self) -> Gateway:
        gateway: Gateway = self.app.state.gateway
        return gateway

    def client(self, account: LocalAccount, url: str | None = None) -> GatewayClient:
        """A client that notes its pauses instead of sleeping through them."""
        made = GatewayClient(url or self.url, account, self.domain, pause=self.pauses_s.append)
        self._stack.callback(made.close)
        return made


@contextmanager
def running_gateway(settings: Settings, client: ChainClient) -> Iterator[RunningGateway]:
    """Serves on a free loopback port until the block ends."""
    app = create_app(settings, client=client)
    with listen("127.0.0.1", 0) as server_socket, ExitStack() as stack:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: server.run(sockets=[server_socket]), name="gateway")
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the gateway to start")
            assert server.started, "the gateway did not start"
            deployment = client.deployment
            url = f"http://127.0.0.1:{server_socket.getsockname()[1]}"
            yield RunningGateway(url, app, Domain(deployment.chain_id, deployment.market), stack)
        finally:
            app.state.gateway.closing.set()
            server.should_exit = True
            thread.join()


def settings_in(directory: Path, **limits: int) -> Settings:
    """Settings of a gateway that looks at its chain often."""
    return Settings(data_dir=directory, poll_interval_s=0.1, limits=Limits(**limits))


@dataclass(frozen=True)
class Market:
    """Nodes 1 and 2, operated by different keys of one owner, and a private task of one round with two shards."""

    chain: AvenueChain
    spec: TaskSpec
    requester: LocalAccount
    owner: LocalAccount
    operators: tuple[LocalAccount, LocalAccount]
    stranger: LocalAccount
    """Holds gas money, but no tokens, no node and no task."""
    node_keys: tuple[EncryptionKey, EncryptionKey]
    requester_key: EncryptionKey

    @property
    def task(self) -> bytes:
        return self.spec.task_id

    def send(self, account: LocalAccount, call: transactions.Call) -> None:
        self.chain.sender(account).send(call)


def small_market(chain: AvenueChain, *, manifest: bytes = b"\x0f" * 32) -> Market:
    """Registers, stakes, posts: eleven transactions, a second or two."""
    requester, owner, first, second, stranger = chain.accounts[1:6]
    keys = (EncryptionKey.generate(), EncryptionKey.generate())
    now = chain.client.latest_block().timestamp
    deployment = chain.deployment
    for account in (requester, owner):
        chain.sender(account).send(transactions.drip(deployment, account.address))
    for operator, key in zip((first, second), keys, strict=True):
        signature = sign_operator_authorization(
            operator,
            deployment,
            owner.address,
            chain.client.operator_nonce(operator.address),
            now + 600,
        )
        registration = transactions.register(
            deployment, operator.address, key.public, "http://node.example", b"\x01" * 32, now + 600, signature
        )
        chain.sender(owner).send(registration)
    stake = chain.client.constants.min_stake
    chain.sender(owner).send(transactions.approve(deployment, deployment.registry, Wei(4 * stake)))
    for node in (1, 2):
        chain.sender(owner).send(transactions.stake(deployment, NodeId(node), Wei(2 * stake)))
    spec = TaskSpec(
        requester=requester.address,
        program_root=b"\x0a" * 32,
        aggregation_root=b"\x0b" * 32,
        initial_state_root=b"\x0c" * 32,
        data_root=b"\x0d" * 32,
        manifest=manifest,
        seed=1,
        unit_price=Wei(2 * AVN),
        aggregation_price=Wei(AVN),
        collateral=Wei(3 * AVN),
        rounds=1,
        shards=2,
        steps=10,
        checkpoint_interval=5,
        deadline=now + 24 * 3600,
        compute_window_s=600,
        reveal_window_s=600,
        challenge_window_s=600,
        is_private=True,
    )
    chain.sender(requester).send(transactions.approve_escrow(deployment, spec))
    chain.sender(requester).send(transactions.post(deployment, spec))
    return Market(chain, spec, requester, owner, (first, second), stranger, keys, EncryptionKey.generate())
