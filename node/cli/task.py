"""avenue task: post training tasks, follow them, fetch the trained model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.chain_view import find_task, hex_id, list_tasks, resolve_task_id, unit_rows
from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, Table, format_time
from node.cli.sending import confirm_calls, outcome_document
from node.cli.signals import stop_on_signals
from node.cli.task_view import cost_rows, events_of_task, progress_of, snapshot_blocks, snapshot_document

if TYPE_CHECKING:
    from node.context import NodeContext
    from node.request.watch import Snapshot
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
    from node.config import Role

    with call.context(Role.REQUEST, agent=True) as context, stop_on_signals(call.out) as request:
        from node.request.submit import plan_submission

        _ = context.account  # a wrong password is said before the data is prepared
        submission = plan_submission(context, file)
        call.out.confirm(Fields("about to post", cost_rows(context, submission)), "post it?", yes=call.yes)
        with call.out.progress("upload") as progress:
            task = submission.execute(lambda what, done, total: progress.update(done, total, what))
        call.out.note(f"posted task {hex_id(task)}")
        if not detach:
            _run_agent(context, task, request.event)
        state = context.client.task(task)
        trained = any(context.client.input_state_root(submission.spec, submission.spec.rounds))
        document = {
            "task": hex_id(task),
            "escrow_wei": str(submission.cost.escrow),
            "escrow_left_wei": str(state.escrow),
            "status": state.status.name.lower(),
            "trained": trained,
            "detached": detach,
        }
        if trained:
            follow = f"avenue task result {hex_id(task)}"
        elif state.status.name == "POSTED":
            follow = f"avenue task run {hex_id(task)}"
        else:
            follow = f"not trained to the end; what became of it: avenue task show {hex_id(task)} --timeline"
        rows = [("status", state.status.name.lower()), ("next", follow)]
        call.out.emit(document, Fields(f"task {hex_id(task)}", rows))
        return request.exit_code


@command(app, "run", needs=_READS)
def run(call: Invocation, task: TaskArgument) -> int:
    """See a posted task through: admit nodes, hand out keys, accept results, close, collect."""
    from node.config import Role

    with call.context(Role.REQUEST, agent=True) as context, stop_on_signals(call.out) as request:
        task_id = resolve_task_id(context, task)
        _run_agent(context, task_id, request.event)
        state = context.client.task(task_id)
        status = state.status.name.lower()
        call.out.emit({"task": hex_id(task_id), "status": status}, f"task {hex_id(task_id)}: {status}")
        return request.exit_code


@command(app, "watch", needs=_READS)
def watch(
    call: Invocation,
    task: TaskArgument,
    once: Annotated[bool, typer.Option("--once", help="Say where it stands now, and leave.")] = False,
) -> int:
    """Follow anybody's task until it is closed: rounds, units, loss, spent. Needs no key; leaving changes nothing."""
    with call.context() as context, stop_on_signals(call.out) as request:
        from node.request.watch import watch as snapshots

        last: Snapshot | None = None
        with call.out.progress("task") as progress:
            for last in snapshots(context, resolve_task_id(context, task), stop=request.event):
                done, total, note = progress_of(last)
                progress.update(done, total, note)
                if once:
                    break
        if last is not None:
            call.out.emit(snapshot_document(last), *snapshot_blocks(last))
        return request.exit_code


@command(app, "result", needs=_READS)
def result(
    call: Invocation,
    task: TaskArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("model.safetensors"),
) -> None:
    """Fetch the trained model, check it against the chain, write it as safetensors."""
    from node.config import Role

    with call.context(Role.REQUEST) as context:
        from node.request.result import save_result

        saved = save_result(context, resolve_task_id(context, task), output)
        document = {
            "task": hex_id(saved.task),
            "path": str(saved.path),
            "state_root": hex_id(saved.state_root),
            "parameters": saved.parameters,
            "tensors": {name: list(shape) for name, shape in saved.shapes.items()},
            "bytes": saved.bytes_written,
        }
        rows = [("file", f"{saved.path}, {saved.bytes_written / 2**10:.1f} KiB")]
        rows += [
            ("parameters", f"{saved.parameters:,} in {len(saved.shapes)} tensors: {_some_names(saved.shapes)}"),
            ("state root", hex_id(saved.state_root)),
            ("load it", saved.how_to_load),
        ]
        call.out.emit(document, Fields("the trained model, equal to the chain's state root", rows))


@command(app, "ls", needs=_READS, hidden=True)
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
            events = events_of_task(context, shown.task_id)
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


def _some_names(names: Iterable[str], most: int = 4) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def _run_agent(context: NodeContext, task: Any, stop: Any) -> None:
    from node.request.agent import RequestAgent

    RequestAgent(context, task).run(stop)


def _send(call: Invocation, context: NodeContext, task: str, calls: list[Call]) -> None:
    confirm_calls(call, context, context.account, calls)
    sender = context.sender_for(context.account)
    outcomes = [outcome_document(sender.send(each)) for each in calls]
    rows = [(each.description, outcome["hash"]) for each, outcome in zip(calls, outcomes, strict=True)]
    call.out.emit({"task": task, "transactions": outcomes}, Fields("done", rows))
