"""avenue task: post training tasks, follow them, fetch the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.chain_view import find_task, hex_id, list_tasks, resolve_task_id, unit_rows
from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, Table, format_time
from node.cli.sending import confirm_calls, outcome_document
from node.cli.signals import stop_on_signals

if TYPE_CHECKING:
    from node.context import NodeContext
    from node.request.submit import Submission
    from protocol.transactions import Call

app = typer.Typer(help="Post and follow training tasks.", no_args_is_help=True, rich_markup_mode=None)

TaskArgument = Annotated[str, typer.Argument(help="Task id, or the beginning of it.", metavar="ID")]
_READS = Needs.NETWORK | Needs.KEYS
_SENDS = Needs.NETWORK | Needs.KEYS | Needs.SENDS


@command(app, "submit", needs=_SENDS)
def submit(
    call: Invocation,
    file: Annotated[Path, typer.Argument(help="Task file (TOML); examples/ has some.")],
    detach: Annotated[bool, typer.Option("--detach", help="Post and leave; `avenue task run` goes on.")] = False,
) -> int:
    """Prepare a task, show what it costs, post it, then see it through.

    Seeing it through: admit nodes, hand out keys, accept results, close, collect what is left. Ctrl+C leaves that to a
    later `avenue task run ID`; units that are claimed go on without it.
    """
    with _prepared(call) as context, stop_on_signals(call.out) as request:
        from node.request.submit import plan_submission

        _ = context.account  # a wrong password is said before the data is prepared
        submission = plan_submission(context, file)
        call.out.confirm(Fields("about to post", _cost_rows(context, submission)), "post it?", yes=call.yes)
        with call.out.progress("upload") as progress:
            task = submission.execute(lambda what, done, total: progress.update(done, total, what))
        call.out.note(f"posted task {hex_id(task)}")
        if not detach:
            _run_agent(context, task, request.event)
        state = context.client.task(task)
        document = {
            "task": hex_id(task),
            "escrow_wei": str(submission.cost.escrow),
            "escrow_left_wei": str(state.escrow),
            "status": state.status.name.lower(),
            "detached": detach,
        }
        next_step = (
            f"avenue task run {hex_id(task)}" if state.status.name == "POSTED" else f"avenue task result {hex_id(task)}"
        )
        rows = [("status", state.status.name.lower()), ("next", next_step)]
        call.out.emit(document, Fields(f"task {hex_id(task)}", rows))
        return request.exit_code


@command(app, "run", needs=_READS)
def run(call: Invocation, task: TaskArgument) -> int:
    """See a posted task through: admit nodes, hand out keys, accept results, close, collect."""
    with _prepared(call) as context, stop_on_signals(call.out) as request:
        task_id = resolve_task_id(context, task)
        _run_agent(context, task_id, request.event)
        state = context.client.task(task_id)
        status = state.status.name.lower()
        call.out.emit({"task": hex_id(task_id), "status": status}, f"task {hex_id(task_id)}: {status}")
        return request.exit_code


@command(app, "list", needs=_READS)
def list_(
    call: Invocation,
    everyone: Annotated[bool, typer.Option("--all", help="Everybody's tasks, not only one's own.")] = False,
) -> None:
    """List tasks: one's own, or everybody's."""
    from node.config import Role
    from protocol.amounts import show_avn

    with call.context(Role.REQUEST) as context:
        tasks = list_tasks(context, None if everyone else context.address)
        rows = [
            (
                hex_id(shown.task_id)[:18],
                shown.state.status.name.lower(),
                f"{shown.spec.rounds} x {shown.spec.shards}",
                f"{shown.state.finalised}/{shown.spec.units}",
                show_avn(shown.state.escrow),
                format_time(shown.spec.deadline),
            )
            for shown in tasks
        ]
        columns = ("task", "status", "rounds x shards", "units final", "escrow left", "no claim after")
        empty = "no tasks" if everyone else "no tasks of yours; --all shows everybody's"
        call.out.emit({"items": [shown.document() for shown in tasks]}, Table(columns, rows, empty))


@command(app, "show", needs=Needs.NETWORK)
def show(
    call: Invocation,
    task: TaskArgument,
    timeline: Annotated[bool, typer.Option("--timeline", help="Every event of the task.")] = False,
) -> None:
    """Show a task: plan, money, units; with --timeline every event."""
    with call.context() as context:
        shown = find_task(context, task)
        units = unit_rows(context, shown.spec)
        document = shown.document() | {"unit_list": units}
        blocks: list[Fields | Table] = [
            Fields(f"task {hex_id(shown.task_id)}", shown.rows()),
            Table(
                ("round", "shard", "unit", "status", "node", "attempt"),
                [[str(row[key]) for key in ("round", "shard", "unit", "status", "node", "attempt")] for row in units],
            ),
        ]
        if timeline:
            events = _events(context, shown.task_id)
            document["events"] = events
            keys = ("time", "block", "event", "unit", "node")
            rows = [[str(event.get(key, "")) for key in keys] for event in events]
            blocks.append(Table(keys, [[format_time(int(row[0])), *row[1:]] for row in rows]))
        call.out.emit(document, *blocks)


@command(app, "cancel", needs=_SENDS)
def cancel(call: Invocation, task: TaskArgument) -> None:
    """Allow no further claim. Units in flight finish and are paid; the rest of the escrow comes back at the close."""
    from node.config import Role
    from protocol import transactions

    with call.context(Role.REQUEST) as context:
        shown = find_task(context, task)
        _send(call, context, hex_id(shown.task_id), [transactions.cancel(context.deployment, shown.spec)])


@command(app, "close", needs=_SENDS)
def close(call: Invocation, task: TaskArgument) -> None:
    """Close a task that can make no more progress, and send what is left of the escrow to the requester."""
    from node.config import Role
    from protocol import transactions

    with call.context(Role.REQUEST) as context:
        shown = find_task(context, task)
        calls = [transactions.close(context.deployment, shown.spec)]
        if shown.state.escrow or context.client.market_credit(shown.spec.requester):
            calls.append(transactions.withdraw(context.deployment, shown.spec.requester))
        _send(call, context, hex_id(shown.task_id), calls)


def _prepared(call: Invocation) -> NodeContext:
    """A requester's context; threads pinned and logs set up, as everything that may import torch needs."""
    from node.cli.logs import configure_logs
    from node.config import Role
    from node.threads import pin_threads

    config = call.load().config
    pin_threads(config.request.threads)
    configure_logs(config.log)
    return call.context(Role.REQUEST)


def _run_agent(context: NodeContext, task: Any, stop: Any) -> None:
    from node.request.agent import RequestAgent

    RequestAgent(context, task).run(stop)


def _send(call: Invocation, context: NodeContext, task: str, calls: list[Call]) -> None:
    confirm_calls(call, context, context.account, calls)
    sender = context.sender_for(context.account)
    outcomes = [outcome_document(sender.send(each)) for each in calls]
    rows = [(each.description, outcome["hash"]) for each, outcome in zip(calls, outcomes, strict=True)]
    call.out.emit({"task": task, "transactions": outcomes}, Fields("done", rows))


def _cost_rows(context: NodeContext, submission: Submission) -> list[tuple[str, str]]:
    from protocol.amounts import show_avn

    spec, cost = submission.spec, submission.cost
    return [
        ("task", f"{submission.prepared.name}, {'private' if spec.is_private else 'public'}"),
        ("network", f"{context.config.network} (chain {context.network.chain_id})"),
        ("contract", context.deployment.market),
        ("from", spec.requester),
        ("plan", f"{spec.rounds} rounds x {spec.shards} shards x {spec.steps} steps: {spec.units} units"),
        ("unit price", show_avn(spec.unit_price)),
        ("escrow", f"{show_avn(cost.escrow)}, what is not earned comes back"),
        ("balance after", f"{show_avn(cost.balance_after)} of {show_avn(cost.balance)}"),
        ("gas", f"at most {cost.gas}, {cost.gas_cost / 10**18:.6f} of {cost.gas_balance / 10**18:.6f} ETH"),
        ("upload", f"{submission.prepared.upload_bytes / 2**20:.1f} MiB"),
        ("no claim after", format_time(spec.deadline)),
    ]


def _events(context: NodeContext, task: bytes) -> list[dict[str, Any]]:
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
