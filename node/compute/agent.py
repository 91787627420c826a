"""The Compute Node: every tick, load the view, decide, perform. Nothing it knows would be lost by a restart.

Time is the chain's. Transactions of one tick are submitted first and waited for together; training and fetching run in
threads of their own, so the agent never misses a deadline for a matrix product.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog
from web3.exceptions import Web3Exception

from node.compute import inputs, work
from node.compute.actions import (
    Abandon,
    Accept,
    Action,
    AskAdmission,
    Claim,
    Commit,
    Disclose,
    Expire,
    Finalise,
    Prepare,
    Publish,
    ShareKeys,
    Train,
)
from node.compute.decide import Decision, Skip, decide
from node.compute.desk import Desk
from node.compute.load import Loader, UnitKey
from node.compute.reporter import Reporter
from node.compute.start import AGENT_ROLE, drain_marker, ensure_node
from node.compute.view import ComputeView, Policy, TaskView, WorkKey
from node.compute.workshop import Cooldown, Progress, Stop, Workshop
from node.context import NodeContext
from node.gateway import GatewayClient
from node.naming import name_of_action
from node.taskbook import TaskBook
from proofs import results
from protocol import transactions
from protocol.errors import AvenueError, StateError, TransactionError, UnreachableError
from protocol.fees import SendPolicy
from protocol.journal import Intent
from protocol.locks import sole_agent
from protocol.messages import AdmissionRequest, KeyGrant
from protocol.reverts import RevertedError
from protocol.sender import Sender
from protocol.transactions import Call
from protocol.types import BlobId, NodeId, TaskId, UnitStatus, Wei

STOP_WITHIN_S = 4.0
"""Ctrl+C ends in less than 5 s: the step that runs is finished and saved in this time."""
SEND_TIMEOUT_S = 30.0
"""A transaction that is not mined by then no longer holds up the tick; its outcome is read from the chain."""

LOST_RACES = ("WrongStatus", "InputNotKnown", "TaskNotOpen")
"""Reverts that say that somebody else was faster."""

log = structlog.get_logger(__name__)


class ComputeAgent:
    """One node. `run` returns when `stop` is set, or when a drain is complete.

    `on_view` is called with every view and decision (for a display); it runs in the agent's thread.
    """

    def __init__(
        self,
        context: NodeContext,
        *,
        policy: Policy | None = None,
        on_view: Callable[[ComputeView, Decision], None] | None = None,
    ) -> None:
        self._context = context
        config = context.config.compute
        self._policy = policy or Policy(
            max_parallel=config.max_parallel_units,
            min_unit_price=Wei(max(config.min_unit_price_wei, 1)),
            min_gas_wei=config.min_gas_balance_wei,
        )
        self._on_view = on_view
        self._poll_s = config.poll_interval_s
        self._may_overflow = config.may_overflow
        self._desk = Desk(context.data_dir)
        self._training: Workshop[WorkKey] = Workshop("training")
        self._fetching: Workshop[UnitKey] = Workshop("fetching")
        self._talking: Workshop[Action] = Workshop("talking to the gateway")
        self._cooling: Cooldown[UnitKey] = Cooldown()
        self._held: Cooldown[Action] = Cooldown()
        self._skips: dict[tuple[TaskId, int | None, str], Skip] = {}
        self._idle = False
        self._reporter = Reporter(self._training)

    @property
    def progress(self) -> dict[WorkKey, Progress]:
        """Of the units that train now."""
        return self._training.progress

    def run(self, stop: threading.Event) -> None:
        """Registers if need be, then works.

        Raises StateError S-20 if this identity runs already, S-41 or FundsError if it cannot be registered and staked,
        ConfigError, UnreachableError before the first tick only.
        """
        context = self._context
        with sole_agent(context.data_dir, context.network.chain_id, context.account.address, AGENT_ROLE):
            self._desk.sweep()
            node = ensure_node(context, stop)
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
            self._loader = Loader(
                context, self._gateway, node, self._desk, self._training, self._fetching, self._cooling, owns_desk=True
            )
            log.info("compute node starts", node=node, operator=context.account.address)
            self._reporter.start(self._gateway, node, stop)
            try:
                self._work(stop)
            finally:
                saved = self._training.stop_all(STOP_WITHIN_S)
                self._fetching.stop_all(0)
                self._talking.stop_all(0)
                log.info("compute node stops", node=node, saved=saved)
                self._gateway.close()

    # --- the loop ---

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            started = time.monotonic()
            self._training.done.clear()
            self._talking.done.clear()
            try:
                if self.tick(stop):
                    return
            except (UnreachableError, StateError, TransactionError, Web3Exception) as error:
                # The view could not be read whole: an endpoint is away, behind, or lost the block. Nothing was decided.
                log.warning("chain cannot be read", why=str(error))
            # A job that ends wakes the agent; otherwise the chain is looked at every poll interval.
            while not stop.is_set() and time.monotonic() < started + self._poll_s:
                if self._training.done.wait(min(0.1, self._poll_s)) or self._talking.done.is_set():
                    break

    def tick(self, stop: threading.Event) -> bool:
        """One look and what follows from it. Returns whether a drain is complete. Raises UnreachableError."""
        view = self._loader.load()
        draining = self._policy.draining or drain_marker(self._context).exists()
        policy = self._policy if not draining else _draining(self._policy)
        decision = decide(view, policy)
        self._log_skips(view, decision)
        if self._on_view is not None:
            self._on_view(view, decision)
        pending: list[tuple[Action, Intent]] = []
        for action in decision.actions:
            if stop.is_set():
                return False
            if not self._held.holds(action):
                with self._may_fail(action):
                    intent = self._perform(view, action)
                    if intent is not None:
                        pending.append((action, intent))
        for action, intent in pending:
            with self._may_fail(action):
                outcome = self._sender.wait(intent)
                self._held.succeeded(action)
                log.info(
                    intent.description, tx="0x" + outcome.hash.hex()[:8], block=outcome.block, gas=outcome.gas_used
                )
        if draining and decision.in_flight == 0 and not pending:
            log.info("drained", awaiting_payment=_awaiting_payment(view))
            drain_marker(self._context).unlink(missing_ok=True)
            return True
        return False

    @contextmanager
    def _may_fail(self, action: Action) -> Iterator[None]:
        """An action that fails is left alone for a while; the next view tells whether it is still the one to take."""
        try:
            yield
        except (AvenueError, OSError) as error:
            if isinstance(action, Claim | Prepare):
                self._cooling.failed((action.task, action.unit))
            pause_s = self._held.failed(action)
            if isinstance(error, RevertedError) and error.error_name in LOST_RACES:
                log.info("somebody was faster", action=type(action).__name__.lower(), why=error.error_name)
            else:
                level = (
                    log.warning if isinstance(error, UnreachableError | TransactionError | StateError) else log.error
                )
                level("action failed", action=name_of_action(action), why=str(error), again_in_s=pause_s)

    def _perform(self, view: ComputeView, action: Action) -> Intent | None:
        """Does it, or hands its transaction in. Raises AvenueError, OSError."""
        match action:
            case Abandon(key):
                log.warning("unit lost, work abandoned", task=key.task.hex()[:8], unit=key.unit)
                self._training.stop(key)
            case Train(key):
                self._start(view, key)
            case Prepare(task, unit):
                tv, book = _task(view, task), self._loader.book(task)
                needs = self._loader.needs(tv, unit)
                self._fetching.start(
                    (task, unit),
                    lambda _stop: inputs.prepare(book, self._desk, unit, needs, may_overflow=self._may_overflow),
                )
            case AskAdmission(task):
                book = self._loader.book(task)
                self._talking.start(action, lambda _stop: self._ask(book, view.me))
                self._loader.note_asked(_task(view, task), view.block.timestamp)
            case ShareKeys(task, grants):
                self._share(action, task, grants)
            case Publish(key):
                self._publish(view, action, key)
            case _:
                return self._submit(view, action)
        return None

    def _submit(self, view: ComputeView, action: Action) -> Intent:
        deployment = self._context.deployment
        match action:
            case Claim(task, unit, admission):
                call = transactions.claim(deployment, _task(view, task).spec, unit, admission)
                return self._send(call, "claim", _present(view, task, unit))
            case Commit(key):
                outcome = self._outcome(view, key)
                self._check_with_chain(view, key, outcome)
                salt = work.salt_of(self._context.account, key, outcome.result_root)
                self._desk.put_salt(key, salt)
                commitment = results.commitment(outcome.result_root, salt)
                return self._send(transactions.commit(deployment, key.task, key.unit, commitment), "commit", key)
            case Disclose(key):
                outcome, tv = self._outcome(view, key), _task(view, key.task)
                commitment = tv.units[key.unit].result
                salt = work.salt_that_opens(self._desk, self._context.account, key, outcome.result_root, commitment)
                call = transactions.reveal(deployment, tv.spec, key.unit, work.opening_of(outcome, salt))
                return self._send(call, "reveal", key)
            case Accept(task, unit, signature):
                call = transactions.accept(deployment, _task(view, task).spec, unit, signature)
                return self._send(call, f"accept-{signature.hex()[:16]}", _present(view, task, unit))
            case Finalise(task, unit):
                call = transactions.finalise(deployment, _task(view, task).spec, unit)
                return self._send(call, "finalise", _present(view, task, unit))
            case Expire(task, unit):
                call = transactions.expire(deployment, _task(view, task).spec, unit)
                return self._send(call, "expire", _present(view, task, unit))
            case _:
                raise TypeError(f"not a transaction: {action}")

    def _send(self, call: Call, move: str, key: WorkKey) -> Intent:
        """Journalled under the attempt: neither a crash between two moves nor a full chain makes it send one twice."""
        return self._sender.submit(call, f"{move}:{key.task.hex()}:{key.unit}:{key.attempt}")

    # --- work ---

    def _start(self, view: ComputeView, key: WorkKey) -> None:
        tv = _task(view, key.task)
        book, needs = self._loader.book(key.task), self._loader.needs(tv, key.unit)
        done = self._desk.steps_done(key)
        log.info(
            "training", task=key.task.hex()[:8], unit=key.unit, from_step=done, steps=work.steps_of(tv.spec, key.unit)
        )

        def job(stop: Stop) -> None:
            # Normally all is here since before the claim; after a lost disk it is fetched again.
            inputs.prepare(book, self._desk, key.unit, needs, may_overflow=True)
            if tv.spec.is_aggregation(key.unit):
                work.average(self._desk, tv.spec, key, needs)
            else:
                work.train(
                    self._desk,
                    tv.spec,
                    key,
                    needs,
                    lambda at: self._reporter.note(key, at),
                    stop,
                )

        self._training.start(key, job)

    def _outcome(self, view: ComputeView, key: WorkKey) -> work.Outcome:
        tv = _task(view, key.task)
        unit = tv.units[key.unit]
        if unit.status >= UnitStatus.REVEALED:
            return work.revealed_outcome(self._desk, key, unit)
        return work.outcome_of(self._desk, tv.spec, key, view.me, self._loader.needs(tv, key.unit))

    def _check_with_chain(self, view: ComputeView, key: WorkKey, outcome: work.Outcome) -> None:
        """What we are about to bind our stake to must be what the contract will compute at the reveal."""
        spec = _task(view, key.task).spec
        checkpoints_root = results.checkpoints_root(outcome.roots)
        if self._context.client.result_root_of(spec, key.unit, view.me, checkpoints_root) != outcome.result_root:
            self._desk.drop_attempt(key)
            raise StateError(
                f"unit {key.unit}: the result on disk is not about the unit that the chain has",
                code="S-42",
                hint="the agent computes it again",
            )

    def _ask(self, book: TaskBook, me: NodeId) -> None:
        book.say(AdmissionRequest(node=me))
        log.info("asked for admission", task=book.task.hex()[:8], node=me)

    def _readers(self, tv: TaskView, book: TaskBook, me: NodeId) -> dict[NodeId, bytes]:
        """Who may read a state of a private task: the requester and every admitted node, this one included."""
        if not tv.spec.is_private:
            return {}
        requester = {NodeId(0): bytes(self._loader.require_manifest(tv.task).requester_encryption_key)}
        return requester | self._encryption_keys({me, *book.admitted})

    def _encryption_keys(self, nodes: set[NodeId]) -> dict[NodeId, bytes]:
        """As registered. A node that does not exist has none: an admission may name any number."""
        count = self._context.client.node_count()
        records = self._context.client.nodes(sorted(node for node in nodes if 1 <= node <= count))
        return {record.node: record.encryption_key for record in records}

    def _publish(self, view: ComputeView, action: Action, key: WorkKey) -> None:
        tv, outcome, book = _task(view, key.task), self._outcome(view, key), self._loader.book(key.task)
        readers = self._readers(tv, book, view.me)

        def job(_stop: Stop) -> None:
            blob = work.publish(book, self._desk, key, view.me, outcome, readers)
            log.info("result published", task=key.task.hex()[:8], unit=key.unit, blob=blob.hex()[:8])

        self._talking.start(replace(action, deadline=0) if isinstance(action, Publish) else action, job)

    def _share(self, action: Action, task: TaskId, pairs: frozenset[tuple[BlobId, NodeId]]) -> None:
        book = self._loader.book(task)
        publics = self._encryption_keys({reader for _, reader in pairs})
        publics[NodeId(0)] = bytes(book.manifest.requester_encryption_key)
        grants = [grant for blob, reader in sorted(pairs) if (grant := book.rewrap(blob, reader, publics.get(reader)))]

        def job(_stop: Stop) -> None:
            if grants:
                book.say(KeyGrant(grants=tuple(grants)))
            self._loader.note_shared(task, pairs)
            log.info("keys handed on", task=task.hex()[:8], grants=len(grants))

        self._talking.start(action, job)

    # --- talk ---

    def _log_skips(self, view: ComputeView, decision: Decision) -> None:
        """Each reason once, until it changes; that there is nothing at all, too."""
        if self._idle != (idle := not view.tasks):
            self._idle = idle
            if idle:
                log.info("no open task on the market: waiting")
        now = {(skip.task, skip.unit, skip.reason): skip for skip in decision.skips}
        for name, skip in now.items():
            if name not in self._skips:
                log.info(
                    "skip", task=skip.task.hex()[:8], unit=skip.unit, reason=skip.reason, have=skip.have, need=skip.need
                )
        self._skips = now


def _task(view: ComputeView, task: TaskId) -> TaskView:
    return next(tv for tv in view.tasks if tv.task == task)


def _present(view: ComputeView, task: TaskId, unit: int) -> WorkKey:
    """The unit's attempt of now."""
    return WorkKey(task, unit, _task(view, task).units[unit].attempt)


def _draining(policy: Policy) -> Policy:
    return replace(policy, draining=True)


def _awaiting_payment(view: ComputeView) -> int:
    return sum(
        unit.node == view.me and unit.status is UnitStatus.REVEALED for tv in view.tasks for unit in tv.units.values()
    )


def _wait(stop: threading.Event, pause_s: float) -> None:
    """A pause that a stop cuts short."""
    stop.wait(pause_s)
