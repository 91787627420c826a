"""The Request Node: lets nodes in, hands out keys, signs for results, settles, closes, collects.

Its absence stops nobody who is admitted already: nodes hand keys on to each other, units finalise after their challenge
windows, and anybody may expire and close. It can be killed and started again at any time, on any machine that has the
requester's keys.

An acceptance under the policy "available" says only that the announced final state is there and has the root that the
chain has: the next round can build on it. It does not check the computation; "recompute" does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from web3.exceptions import Web3Exception

from node.compute.workshop import Cooldown, Stop, Workshop
from node.context import NodeContext
from node.gateway import GatewayClient
from node.naming import name_of_action
from node.request.check import check_available, recompute
from node.request.decide import (
    Action,
    Admit,
    Close,
    Collect,
    Expire,
    Finalise,
    Finished,
    GrantKeys,
    HandIn,
    SignAcceptance,
    Withdraw,
    decide,
    wants_workers,
)
from node.request.load import Loader, find_spec
from node.request.view import REQUESTER, AcceptPolicy, Policy, RequestView
from protocol import signatures, transactions
from protocol.amounts import show_avn
from protocol.errors import AvenueError, StateError, TransactionError, UnreachableError, VerificationError
from protocol.fees import SendPolicy
from protocol.locks import sole_agent
from protocol.messages import AdmissionGrant, KeyGrant, UnitAcceptance
from protocol.reverts import RevertedError
from protocol.sender import Sender
from protocol.transactions import Call
from protocol.types import BlobId, NodeId, TaskId, Unit

ResultKey = tuple[int, bytes]
"""Unit and result root."""

STOP_WITHIN_S = 4.0
SEND_TIMEOUT_S = 60.0
BLIND_PAUSE_S = 3.0
QUIET_S = 30
"""After so long with open units and nobody at work (chain time) the requester is told, and then every so often."""

log = structlog.get_logger(__name__)


class RequestAgent:
    """One task. `run` returns when the task is closed and its credit collected, or when `stop` is set."""

    def __init__(self, context: NodeContext, task_id: TaskId, *, policy: Policy | None = None) -> None:
        self._context = context
        self._task = task_id
        config = context.config.request
        self._policy = policy or Policy(accept=AcceptPolicy(config.accept))
        self._poll_s = config.poll_interval_s
        self._checks: Workshop[ResultKey] = Workshop("checking")
        self._held: Cooldown[Action] = Cooldown()
        self._seen: object = None
        self._quiet_since = 0

    def run(self, stop: threading.Event) -> None:
        """Raises StateError S-43 (no such task), S-45 (somebody else's), S-20 (an agent for it runs already)."""
        context = self._context
        spec = find_spec(context, self._task)
        role = f"request-{self._task.hex()[:16]}"
        with sole_agent(context.data_dir, context.network.chain_id, context.account.address, role):
            self._gateway = GatewayClient(
                context.network.gateway_url, context.account, context.domain, pause=lambda pause_s: _wait(stop, pause_s)
            )
            self._sender = Sender(
                context.client,
                context.account,
                context.journal,
                SendPolicy(fee_cap_wei=context.config.fees.max_fee_wei, timeout_s=SEND_TIMEOUT_S),
                stop=stop,
            )
            self._loader = Loader(context, self._gateway, spec)
            log.info("request node starts", task=self._task.hex()[:8], accept=str(self._policy.accept))
            try:
                self._work(stop)
            finally:
                self._checks.stop_all(STOP_WITHIN_S)
                self._gateway.close()
                log.info("request node stops", task=self._task.hex()[:8])

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = time.monotonic()
            try:
                if self.tick(stop):
                    return
            except (UnreachableError, StateError, TransactionError, VerificationError, Web3Exception) as error:
                log.warning("cannot see the task", why=str(error))
                stop.wait(BLIND_PAUSE_S)
            stop.wait(max(0.0, started + self._poll_s - time.monotonic()))

    def tick(self, stop: threading.Event) -> bool:
        """One look and what follows from it. Returns whether nothing is left to do."""
        view = self._loader.load(self._looked_at())
        self._say_if_nobody_comes(view)
        for action in decide(view, self._policy):
            if isinstance(action, Finished):
                return True
            if stop.is_set():
                return False
            if not self._held.holds(action):
                with self._may_fail(action):
                    self._perform(view, action)
                    self._held.succeeded(action)
        return False

    def _say_if_nobody_comes(self, view: RequestView) -> None:
        seen = view.round, {index: unit.status for index, unit in view.units.items()}
        if not wants_workers(view) or seen != self._seen:
            self._seen, self._quiet_since = seen, view.timestamp
        elif view.timestamp >= self._quiet_since + QUIET_S:
            self._quiet_since = view.timestamp
            spec = view.spec
            log.warning(
                "no node takes the open units",
                pays=show_avn(spec.unit_price),
                collateral=show_avn(spec.collateral),
                compute_window=f"{spec.compute_window_s} s",
                nodes_heard_of=len(view.heard),
                hint="other terms may suit them; `avenue task cancel` and the escrow comes back",
            )

    def _looked_at(self) -> frozenset[int]:
        units = self._loader.rounds.units
        return frozenset(
            index
            for index, unit in units.items()
            if (key := (index, unit.result)) in self._checks.running or self._checks.failed(key)
        )

    @contextmanager
    def _may_fail(self, action: Action) -> Iterator[None]:
        try:
            yield
        except (AvenueError, OSError) as error:
            pause_s = self._held.failed(action)
            if isinstance(error, RevertedError) and error.error_name in ("WrongStatus", "TaskNotOpen"):
                log.info("somebody was faster", action=type(action).__name__.lower(), why=error.error_name)
            else:
                log.warning("action failed", action=name_of_action(action), why=str(error), again_in_s=pause_s)

    def _perform(self, view: RequestView, action: Action) -> None:
        deployment, spec = self._context.deployment, view.spec
        match action:
            case GrantKeys(reader, blobs):
                self._grant(reader, blobs)
            case Admit(node, shards, blobs):
                self._admit(view, node, shards, blobs)
            case SignAcceptance(unit, recompute=again):
                self._check(view, unit, again)
            case HandIn(unit):
                signature = self._loader.book.acceptance(unit, view.units[unit].result)
                if signature is not None:
                    call = transactions.accept(deployment, spec, unit, signature)
                    self._send(call, f"accept-{signature.hex()[:16]}:{unit}")
            case Expire(unit):
                self._send(transactions.expire(deployment, spec, unit), f"expire:{unit}:{view.units[unit].attempt}")
            case Finalise(unit):
                self._send(transactions.finalise(deployment, spec, unit), f"finalise:{unit}")
            case Close():
                self._send(transactions.close(deployment, spec), "close")
            case Withdraw():
                self._send(transactions.withdraw(deployment, spec.requester))
            case Collect():
                self._send(transactions.collect(deployment))

    def _send(self, call: Call, move: str | None = None) -> None:
        """`move` names what happens once in a task: while it waits for a cheaper block it is not sent a second time."""
        outcome = self._sender.send(call, None if move is None else f"{move}:{self._task.hex()}")
        log.info(call.description, tx="0x" + outcome.hash.hex()[:8], block=outcome.block, gas=outcome.gas_used)

    # --- letting in ---

    def _grant(self, reader: NodeId, blobs: tuple[BlobId, ...]) -> None:
        if reader == REQUESTER:
            public = self._context.encryption_key.public
        else:
            public = self._context.client.node(reader).encryption_key
        made = [self._loader.book.rewrap(blob, reader, public) for blob in blobs]
        grants = tuple(grant for grant in made if grant is not None)
        if grants:
            self._loader.book.say(KeyGrant(grants=grants))
            log.info("keys granted", task=self._task.hex()[:8], reader=reader, blobs=len(grants))

    def _admit(self, view: RequestView, node: NodeId, shards: int, blobs: tuple[BlobId, ...]) -> None:
        """Keys first: an admission binds nobody to what it cannot read."""
        if blobs:
            self._grant(node, blobs)
        admission = signatures.sign_admission(
            self._context.account, self._context.domain, self._task, node, shards, view.spec.deadline
        )
        self._loader.book.say(
            AdmissionGrant(
                node=node, shards=admission.shards, deadline=admission.deadline, signature=admission.signature
            )
        )
        log.info("node admitted", task=self._task.hex()[:8], node=node, shards=bin(shards))

    # --- signing for results ---

    def _check(self, view: RequestView, index: int, again: bool) -> None:
        """In a thread: results are large, and nodes that ask must not wait for them."""
        book, unit, said = self._loader.book, view.units[index], view.announced[index]

        def job(_stop: Stop) -> None:
            check_available(book, said.blob, unit)
            if again:
                recompute(book, self._context.client, index, unit)
            self._accept(index, unit)

        self._checks.start((index, unit.result), job)

    def _accept(self, index: int, unit: Unit) -> None:
        signature = signatures.sign_acceptance(
            self._context.account, self._context.domain, self._task, index, unit.result
        )
        self._loader.book.say(UnitAcceptance(unit=index, result_root=unit.result, signature=signature))
        log.info("result accepted", task=self._task.hex()[:8], unit=index, node=unit.node)


def _wait(stop: threading.Event, pause_s: float) -> None:
    stop.wait(pause_s)
