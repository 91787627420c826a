"""What `avenue task` shows: the cost before posting, where a task stands, its events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.cli.chain_view import hex_id
from node.cli.output import Fields, Table, format_duration, format_time
from node.cli.sending import show_gas_money

if TYPE_CHECKING:
    from node.context import NodeContext
    from node.request.submit import Submission
    from node.request.watch import Snapshot


def cost_rows(context: NodeContext, submission: Submission) -> list[tuple[str, str]]:
    """What is about to be posted, and what it costs."""
    from protocol.amounts import show_avn

    spec, cost = submission.spec, submission.cost
    return [
        ("task", f"{submission.prepared.name}, {'private' if spec.is_private else 'public'}"),
        ("model", submission.prepared.model),
        ("network", f"{context.config.network} (chain {context.network.chain_id})"),
        ("contract", context.deployment.market),
        ("from", spec.requester),
        ("plan", f"{spec.rounds} rounds x {spec.shards} shards x {spec.steps} steps: {spec.units} units"),
        ("unit price", show_avn(spec.unit_price)),
        ("escrow", f"{show_avn(cost.escrow)}, what is not earned comes back"),
        ("balance after", f"{show_avn(cost.balance_after)} of {show_avn(cost.balance)}"),
        ("gas", f"at most {cost.gas}, {show_gas_money(cost.gas_cost)} of {show_gas_money(cost.gas_balance)}"),
        ("upload", f"{submission.prepared.upload_bytes / 2**20:.1f} MiB"),
        ("no claim after", format_time(spec.deadline)),
    ]


def progress_of(snapshot: Snapshot) -> tuple[int, int, str]:
    """Units with a result, units in all, and the rest in words."""
    from protocol.amounts import show_avn
    from protocol.types import TaskStatus, UnitStatus

    done = sum(number for status, number in snapshot.by_status.items() if status >= UnitStatus.REVEALED)
    loss = "" if snapshot.loss is None else f", loss {snapshot.loss:.4f}"
    now = min(snapshot.round + 1, snapshot.rounds)
    at_work = any(snapshot.by_status.get(status) for status in (UnitStatus.CLAIMED, UnitStatus.COMMITTED))
    waits = "" if at_work or snapshot.trained or snapshot.status is not TaskStatus.POSTED else ", no node at work"
    note = f"round {now}/{snapshot.rounds}{loss}, paid {show_avn(snapshot.paid)}{waits}"
    return done, sum(snapshot.by_status.values()), note


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """Where a task stands, for JSON."""
    return {
        "task": hex_id(snapshot.task),
        "block": snapshot.block,
        "status": snapshot.status.name.lower(),
        "round": snapshot.round,
        "rounds": snapshot.rounds,
        "trained": snapshot.trained,
        "loss": snapshot.loss,
        "escrow_wei": str(snapshot.escrow),
        "paid_wei": str(snapshot.paid),
        "elapsed_s": snapshot.elapsed_s,
        "by_status": {status.name.lower(): number for status, number in snapshot.by_status.items()},
        "units": [
            {
                "unit": unit.unit,
                "shard": unit.shard,
                "status": unit.status.name.lower(),
                "node": unit.node,
                "step": unit.step,
                "steps": unit.steps,
                "loss": unit.loss,
            }
            for unit in snapshot.units
        ],
    }


def snapshot_blocks(snapshot: Snapshot) -> tuple[Fields, Table]:
    """Where a task stands, for people."""
    from protocol.amounts import show_avn

    counts = ", ".join(f"{number} {status.name.lower()}" for status, number in sorted(snapshot.by_status.items()))
    rows = [
        ("status", snapshot.status.name.lower()),
        ("rounds", f"{snapshot.round} of {snapshot.rounds} trained"),
        ("units", counts),
        ("loss", "not known" if snapshot.loss is None else f"{snapshot.loss:.4f}"),
        ("paid", f"{show_avn(snapshot.paid)} of {show_avn(snapshot.escrow)}"),
        ("running for", format_duration(snapshot.elapsed_s)),
    ]
    units = [
        (
            str(unit.unit),
            unit.status.name.lower(),
            str(unit.node or ""),
            "" if unit.step is None else f"{unit.step}/{unit.steps}",
            "" if unit.loss is None else f"{unit.loss:.4f}",
        )
        for unit in snapshot.units
    ]
    return Fields(f"task {hex_id(snapshot.task)}", rows), Table(("unit", "status", "node", "step", "loss"), units)


def events_of_task(context: NodeContext, task: bytes) -> list[dict[str, Any]]:
    """Every event of a task, oldest first."""
    from protocol.events import EventFollower

    follower = EventFollower(context.client, confirmations=0)
    found: list[dict[str, Any]] = []
    for batch in follower.follow(follower.start()):
        for event in batch.events:
            if getattr(event, "task", None) == task:
                line = {"time": event.at.timestamp, "block": event.at.block_number, "event": type(event).__name__}
                line["transaction"] = hex_id(event.at.tx_hash)
                line |= {key: getattr(event, key) for key in ("unit", "node") if hasattr(event, key)}
                found.append(line)
    return found
