"""A node's money and duties: what it is doing, what it earned, how to take it out of service. All of it from the chain.

What moves money is planned first (`plan_...` gives inert steps to show and confirm) and sent by `send`. Earnings always
go to the owner, whoever asks for it; tips for expiring others' units are the operator's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress

from node.compute.start import AGENT_ROLE, drain_marker
from node.compute.view import IN_WORK
from node.context import NodeContext
from node.files import write_whole
from node.rounds import RoundReader
from node.taskfeed import TaskFeed
from protocol import transactions
from protocol.amounts import show_avn
from protocol.errors import FundsError, StateError
from protocol.events import EventFollower, Slashed, UnitExpired, UnitFinalised
from protocol.fees import SendPolicy
from protocol.locks import sole_agent
from protocol.sender import Sender, TxOutcome
from protocol.transactions import Call
from protocol.types import NodeId, NodeRecord, TaskId, TaskStatus, Tranche, Unit, UnitStatus, Wei

AT_RISK_S = 60
"""A unit with less time left than this is marked."""


@dataclass(frozen=True, slots=True)
class UnitInHand:
    """A unit of this node that is not final."""

    task: TaskId
    unit: int
    status: UnitStatus
    attempt: int
    seconds_left: int
    """Until the present status may be ended by anybody; negative when that time is over."""
    price: Wei

    @property
    def at_risk(self) -> bool:
        return self.status in IN_WORK and self.seconds_left < AT_RISK_S


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Everything about a node at one block. Gas money in wei of the chain's coin, the rest in token wei."""

    block: int
    timestamp: int
    record: NodeRecord
    active: bool
    min_stake: Wei
    tranches: tuple[Tranche, ...]
    gas_balance: Wei
    min_gas: Wei
    """With less the agent claims nothing new."""
    owner_credit: Wei
    """Earnings, withdrawable to the owner."""
    operator_tips: Wei
    """Tips for expired units and the like, collectable by the operator."""
    units: tuple[UnitInHand, ...]
    open_tasks: int
    """On the market, of anybody: posted and neither cancelled nor closed."""
    draining: bool

    @property
    def node(self) -> NodeId:
        return self.record.node


@dataclass(frozen=True, slots=True)
class EarnedUnit:
    """A unit that was finalised for this node."""

    task: TaskId
    unit: int
    paid: Wei
    accepted: bool
    """By the requester's signature; else after the challenge window."""
    block: int
    timestamp: int
    payee: ChecksumAddress


@dataclass(frozen=True, slots=True)
class Earnings:
    """All that a node earned and lost since it was registered, from events."""

    node: NodeId
    units: tuple[EarnedUnit, ...]
    awaiting: Wei
    """Of revealed units that are not final yet."""
    lost: Wei
    """Collateral slashed."""
    expired_units: int
    withdrawable: Wei

    @property
    def earned(self) -> Wei:
        return Wei(sum(unit.paid for unit in self.units))

    @property
    def by_task(self) -> dict[TaskId, Wei]:
        totals: dict[TaskId, Wei] = {}
        for unit in self.units:
            totals[unit.task] = Wei(totals.get(unit.task, 0) + unit.paid)
        return totals


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction to be: who signs it, what it does, what it brings (token wei) to whom."""

    signer: LocalAccount
    call: Call
    amount: Wei
    to: ChecksumAddress


def node_of(context: NodeContext) -> NodeId:
    """The node that this home's operator key serves. Raises StateError S-41 if it serves none."""
    node = context.client.node_of(context.address)
    if node is None:
        raise StateError(
            f"operator {context.address} serves no node", code="S-41", hint="`avenue compute start` registers it"
        )
    return node


def status(context: NodeContext) -> NodeStatus:
    """Raises StateError S-41 if not registered, UnreachableError."""
    node = node_of(context)
    head = context.client.latest_block()
    chain = context.client.at(head.number)
    record = chain.node(node)
    minimum = context.client.constants.min_stake
    states = context.client.tasks([TaskId(spec.task_id) for spec in TaskFeed(context).poll()])
    return NodeStatus(
        block=head.number,
        timestamp=head.timestamp,
        record=record,
        active=not record.leaving and record.stake >= minimum,
        min_stake=minimum,
        tranches=chain.tranches(node),
        gas_balance=chain.gas_balance(record.operator),
        min_gas=context.config.compute.min_gas_balance_wei,
        owner_credit=chain.market_credit(record.owner),
        operator_tips=chain.registry_credit(record.operator),
        units=tuple(
            UnitInHand(task, index, unit.status, unit.attempt, unit.deadline - head.timestamp, price)
            for task, index, unit, price in _units_in_hand(context, node)
        ),
        open_tasks=sum(state.status is TaskStatus.POSTED for state in states),
        draining=drain_marker(context).exists(),
    )


def earnings(context: NodeContext) -> Earnings:
    """Raises StateError S-41 if not registered, UnreachableError."""
    node = node_of(context)
    units: list[EarnedUnit] = []
    lost, expired = 0, 0
    follower = EventFollower(context.client, kinds=[UnitFinalised, UnitExpired, Slashed])
    for batch in follower.follow(follower.start()):
        for event in batch.events:
            if isinstance(event, UnitFinalised) and event.node == node:
                at = event.at
                units.append(
                    EarnedUnit(
                        event.task, event.unit, event.paid, event.accepted, at.block_number, at.timestamp, event.payee
                    )
                )
            elif isinstance(event, UnitExpired) and event.node == node:
                expired += 1
            elif isinstance(event, Slashed) and event.node == node:
                lost += event.amount
    owner = context.client.node(node).owner
    revealed = [price for _, _, unit, price in _units_in_hand(context, node) if unit.status is UnitStatus.REVEALED]
    return Earnings(node, tuple(units), Wei(sum(revealed)), Wei(lost), expired, context.client.market_credit(owner))


def _units_in_hand(context: NodeContext, node: NodeId) -> list[tuple[TaskId, int, Unit, Wei]]:
    """Units that this node revealed or holds, in tasks that are not closed: (task, unit index, unit, price)."""
    client = context.client
    specs = TaskFeed(context).poll()
    states = client.tasks([TaskId(spec.task_id) for spec in specs])
    found: list[tuple[TaskId, int, Unit, Wei]] = []
    for spec, state in zip(specs, states, strict=True):
        if state.status in (TaskStatus.NONE, TaskStatus.CLOSED) or state.in_flight == 0:
            continue
        rounds = RoundReader(spec)
        rounds.read(client)
        for index, unit in rounds.units.items():
            if unit.node == node and unit.status in (*IN_WORK, UnitStatus.REVEALED):
                found.append((TaskId(spec.task_id), index, unit, spec.price_of(index)))
    return found


# --- money ----------------------------------------------------------------------------------------------------------


def plan_withdrawal(context: NodeContext) -> tuple[Step, ...]:
    """What there is to collect: earnings to the owner, tips to the operator, compensation to the owner if its key is
    here. Empty if there is nothing. Raises StateError S-41, UnreachableError."""
    client, deployment, operator = context.client, context.deployment, context.account
    owner = client.node(node_of(context)).owner
    steps: list[Step] = []
    if credit := client.market_credit(owner):
        steps.append(Step(operator, transactions.withdraw(deployment, owner), credit, owner))
    if tips := client.registry_credit(operator.address):
        steps.append(Step(operator, transactions.collect(deployment), tips, operator.address))
    owner_account = context.owner_account
    owner_is_here = owner_account is not None and owner_account.address == owner != operator.address
    if owner_account is not None and owner_is_here and (shares := client.registry_credit(owner)):
        steps.append(Step(owner_account, transactions.collect(deployment), shares, owner))
    return tuple(steps)


def plan_unbonding(context: NodeContext, amount: Wei | None = None) -> tuple[Step, ...]:
    """Starts to unbond `amount` of free stake; all of it without `amount`. The owner signs.

    Raises FundsError F-12 if less is free, StateError S-47 if the owner's key is not here, S-41.
    """
    client = context.client
    record = client.node(node_of(context))
    owner = _owner_account(context, record)
    wanted = record.free_stake if amount is None else amount
    if record.stake == 0:
        raise FundsError(
            f"node {record.node} has no stake that is not unbonding already",
            code="F-12",
            hint="`avenue compute status` says when it matures; then `avenue compute withdraw`",
        )
    if wanted == 0 or wanted > record.free_stake:
        raise FundsError(
            f"node {record.node} has {show_avn(record.free_stake)} free, {show_avn(wanted)} asked",
            code="F-12",
            hint="drain the node first: stake of units in flight stays locked",
        )
    call = transactions.request_unbond(context.deployment, record.node, wanted)
    return (Step(owner, call, wanted, record.owner),)


def plan_stake_withdrawal(context: NodeContext) -> tuple[Step, ...]:
    """Sends what has matured to the owner; empty if nothing has. Raises StateError S-47, S-41."""
    client = context.client
    record = client.node(node_of(context))
    now = client.latest_block().timestamp
    matured = sum(tranche.amount for tranche in client.tranches(record.node) if tranche.matures_at <= now)
    if matured == 0:
        return ()
    owner = _owner_account(context, record)
    return (Step(owner, transactions.withdraw_stake(context.deployment, record.node), Wei(matured), record.owner),)


def _owner_account(context: NodeContext, record: NodeRecord) -> LocalAccount:
    owner = context.owner_account
    if owner is None or owner.address != record.owner:
        raise StateError(
            f"only the owner {record.owner} may do this, and its key is not in this keystore",
            code="S-47",
            hint="run this in the home that holds the owner's key",
        )
    return owner


def send(context: NodeContext, steps: tuple[Step, ...]) -> tuple[TxOutcome, ...]:
    """Sends the steps, in order. Raises as Sender.send."""
    policy = SendPolicy(fee_cap_wei=context.config.fees.max_fee_wei)
    return tuple(Sender(context.client, step.signer, context.journal, policy).send(step.call) for step in steps)


# --- out of service -------------------------------------------------------------------------------------------------


def drain(context: NodeContext) -> bool:
    """The running agent, or the next one, takes nothing new, finishes what is in flight and ends.

    Returns whether one is running. Raises ConfigError C-50 for a home without an operator, OSError.
    """
    operator = context.address  # first: nothing would come of a request to nobody
    write_whole(drain_marker(context), b"")
    try:
        with sole_agent(context.data_dir, context.network.chain_id, operator, AGENT_ROLE):
            return False
    except StateError:
        return True


def undrain(context: NodeContext) -> None:
    """Takes the request back."""
    drain_marker(context).unlink(missing_ok=True)
