"""What `avenue compute` shows of a node: status, earnings, and why it takes a unit or leaves it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from node.cli.chain_view import hex_id
from node.cli.output import Block, Fields, Table, format_duration, format_time
from node.cli.sending import show_gas_money

if TYPE_CHECKING:
    from node.compute.account import Earnings, NodeStatus
    from node.compute.decide import Decision
    from node.context import NodeContext


def status_document(status: NodeStatus) -> dict[str, Any]:
    record = status.record
    return {
        "node": status.node,
        "block": status.block,
        "owner": record.owner,
        "operator": record.operator,
        "active": status.active,
        "draining": status.draining,
        "leaving": record.leaving,
        "stake_wei": str(record.stake),
        "locked_wei": str(record.locked),
        "free_stake_wei": str(record.free_stake),
        "min_stake_wei": str(status.min_stake),
        "unbonding": [{"amount_wei": str(t.amount), "matures_at": t.matures_at} for t in status.tranches],
        "gas_balance_wei": str(status.gas_balance),
        "min_gas_balance_wei": str(status.min_gas),
        "open_tasks": status.open_tasks,
        "withdrawable_wei": str(status.owner_credit),
        "tips_wei": str(status.operator_tips),
        "units": [
            {
                "task": hex_id(unit.task),
                "unit": unit.unit,
                "status": unit.status.name.lower(),
                "attempt": unit.attempt,
                "seconds_left": unit.seconds_left,
                "price_wei": str(unit.price),
                "at_risk": unit.at_risk,
            }
            for unit in status.units
        ],
        "at_risk": risks(status),
    }


def status_blocks(status: NodeStatus) -> tuple[Block, ...]:
    """What is wrong comes first."""
    from protocol.amounts import show_avn

    record = status.record
    state = "draining" if status.draining else "active" if status.active else "not active"
    rows = [
        ("state", "leaving" if record.leaving else state),
        ("owner", record.owner),
        ("operator", record.operator),
        (
            "stake",
            f"{show_avn(record.stake)} (at least {show_avn(status.min_stake)}), {show_avn(record.free_stake)} free",
        ),
        ("gas money", show_gas_money(status.gas_balance)),
        ("to withdraw", f"{show_avn(status.owner_credit)} for the owner, {show_avn(status.operator_tips)} in tips"),
    ]
    rows += [
        ("unbonding", f"{show_avn(t.amount)} until {format_time(t.matures_at)}")
        if t.matures_at > status.timestamp
        else ("unbonded", f"{show_avn(t.amount)}: avenue compute withdraw")
        for t in status.tranches
    ]
    why = "`avenue compute tasks --explain` says what this node would do and why" if status.open_tasks else "none to do"
    rows.append(("open tasks", f"{status.open_tasks}; {why}"))
    units = [
        (
            hex_id(unit.task)[:18],
            str(unit.unit),
            unit.status.name.lower(),
            show_avn(unit.price),
            "over" if unit.seconds_left < 0 else format_duration(unit.seconds_left),
        )
        for unit in status.units
    ]
    table = Table(("task", "unit", "status", "pays", "time left"), units, "no units in hand")
    return (*[f"AT RISK: {risk}" for risk in risks(status)], Fields(f"node {status.node}", rows), table)


def risks(status: NodeStatus) -> list[str]:
    """What may soon cost money, each with what to do."""
    from protocol.amounts import show_avn

    found = [
        f"unit {unit.unit} of {hex_id(unit.task)[:10]}: {unit.seconds_left} s left; is the agent running?"
        for unit in status.units
        if unit.at_risk
    ]
    record = status.record
    if not status.active and not record.leaving:
        missing = show_avn(max(status.min_stake - record.stake, 0))
        found.append(f"the stake is {missing} short: avenue compute stake AMOUNT")
    if status.gas_balance < status.min_gas:
        have, least = show_gas_money(status.gas_balance), show_gas_money(status.min_gas)
        found.append(f"{have} of gas money, nothing new is claimed below {least}: send some to {record.operator}")
    return found


def earnings_document(earnings: Earnings) -> dict[str, Any]:
    return {
        "node": earnings.node,
        "earned_wei": str(earnings.earned),
        "awaiting_wei": str(earnings.awaiting),
        "withdrawable_wei": str(earnings.withdrawable),
        "lost_wei": str(earnings.lost),
        "expired_units": earnings.expired_units,
        "by_task": [{"task": hex_id(task), "earned_wei": str(amount)} for task, amount in earnings.by_task.items()],
        "units": [
            {
                "task": hex_id(unit.task),
                "unit": unit.unit,
                "paid_wei": str(unit.paid),
                "accepted": unit.accepted,
                "block": unit.block,
                "time": unit.timestamp,
                "payee": unit.payee,
            }
            for unit in earnings.units
        ],
    }


def earnings_blocks(earnings: Earnings) -> tuple[Block, ...]:
    from protocol.amounts import show_avn

    rows = [
        ("earned", show_avn(earnings.earned)),
        ("awaiting", f"{show_avn(earnings.awaiting)} for revealed units"),
        ("to withdraw", show_avn(earnings.withdrawable)),
    ]
    if earnings.lost or earnings.expired_units:
        rows.append(("lost", f"{show_avn(earnings.lost)} of stake, {earnings.expired_units} units expired"))
    units = [
        (
            format_time(unit.timestamp),
            hex_id(unit.task)[:18],
            str(unit.unit),
            show_avn(unit.paid),
            "accepted" if unit.accepted else "after its window",
        )
        for unit in earnings.units
    ]
    table = Table(("time", "task", "unit", "paid", "final"), units, "nothing earned yet")
    return Fields(f"node {earnings.node}", rows), table


def decide_now(context: NodeContext) -> Decision:
    """What the agent would do now, and what it leaves alone. Nothing is done.

    Raises StateError S-41 if the operator serves no node, UnreachableError.
    """
    from node.compute.account import node_of
    from node.compute.agent import ComputeAgent
    from node.compute.decide import decide
    from node.compute.desk import Desk
    from node.compute.load import Loader
    from node.compute.start import drain_marker
    from node.compute.workshop import Cooldown, Workshop

    node, desk = node_of(context), Desk(context.data_dir)
    loader = Loader(context, context.gateway, node, desk, Workshop("training"), Workshop("fetching"), Cooldown())
    policy = replace(ComputeAgent(context)._policy, draining=drain_marker(context).exists())
    return decide(loader.load(), policy)
