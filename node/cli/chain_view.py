"""Tasks as the chain has them, for showing: found by id or its beginning, described once for people and for JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node.cli.output import format_time
from protocol.errors import UsageError

if TYPE_CHECKING:
    from node.context import NodeContext
    from protocol.types import TaskId, TaskSpec, TaskState

_LEAST_PREFIX = 6  # hex digits


@dataclass(frozen=True, slots=True)
class ShownTask:
    """A task and where it stands."""

    spec: TaskSpec
    state: TaskState

    @property
    def task_id(self) -> TaskId:
        return self.spec.task_id

    def document(self) -> dict[str, Any]:
        spec, state = self.spec, self.state
        return {
            "task": hex_id(self.task_id),
            "status": state.status.name.lower(),
            "requester": spec.requester,
            "private": spec.is_private,
            "rounds": spec.rounds,
            "shards": spec.shards,
            "steps": spec.steps,
            "units": spec.units,
            "finalised": state.finalised,
            "in_flight": state.in_flight,
            "unit_price_wei": str(spec.unit_price),
            "aggregation_price_wei": str(spec.aggregation_price),
            "collateral_wei": str(spec.collateral),
            "escrow_wei": str(spec.escrow),
            "escrow_left_wei": str(state.escrow),
            "deadline": spec.deadline,
        }

    def rows(self) -> list[tuple[str, str]]:
        from protocol.amounts import show_avn

        spec, state = self.spec, self.state
        kind = "private" if spec.is_private else "public"
        return [
            ("status", f"{state.status.name.lower()}, {kind}"),
            ("requester", spec.requester),
            ("plan", f"{spec.rounds} rounds x {spec.shards} shards x {spec.steps} steps"),
            ("units", f"{state.finalised} of {spec.units} final, {state.in_flight} in flight"),
            ("unit price", show_avn(spec.unit_price)),
            ("collateral", show_avn(spec.collateral)),
            ("escrow", f"{show_avn(state.escrow)} of {show_avn(spec.escrow)} left"),
            ("no claim after", format_time(spec.deadline)),
        ]


def hex_id(task: bytes) -> str:
    return "0x" + task.hex()


def parse_task_id(text: str) -> TaskId:
    """Raises UsageError U-07 if `text` is not a whole task id."""
    from protocol.types import TaskId

    digits = text.strip().lower().removeprefix("0x")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise UsageError(f"{text!r} is no task id", code="U-07", hint="64 hex digits; `avenue task list` shows them")
    return TaskId(bytes.fromhex(digits))


def resolve_task_id(context: NodeContext, text: str) -> TaskId:
    """A whole id, or the beginning of one that only one posted task has.

    Raises UsageError U-07 if it is neither.
    """
    digits = text.strip().lower().removeprefix("0x")
    if len(digits) == 64 or not re.fullmatch(rf"[0-9a-f]{{{_LEAST_PREFIX},}}", digits):
        return parse_task_id(text)
    from node.taskfeed import TaskFeed

    found = [spec.task_id for spec in TaskFeed(context).poll() if spec.task_id.hex().startswith(digits)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} tasks begin with {text}", code="U-07", hint="give more digits; `avenue task list` shows them"
        )
    return found[0]


def find_task(context: NodeContext, text: str) -> ShownTask:
    """The task that `text` names. Raises UsageError U-07, StateError S-43 if it was never posted."""
    from node.taskfeed import TaskFeed

    task = resolve_task_id(context, text)
    spec = TaskFeed(context).posted(task).spec
    return ShownTask(spec, context.client.task(task))


def list_tasks(context: NodeContext, requester: str | None) -> list[ShownTask]:
    """Every task, or those of one requester, in the order of posting."""
    from node.taskfeed import TaskFeed

    specs = [spec for spec in TaskFeed(context).poll() if requester is None or spec.requester == requester]
    states = context.client.tasks([spec.task_id for spec in specs])
    return [ShownTask(spec, state) for spec, state in zip(specs, states, strict=True)]


def unit_rows(context: NodeContext, spec: TaskSpec) -> list[dict[str, Any]]:
    """Each unit of the plan, in order, as the chain has it."""
    rows: list[dict[str, Any]] = []
    for units in context.client.rounds(spec, range(spec.rounds)):
        rows += [
            {"unit": len(rows) + i, "status": unit.status.name.lower(), "node": unit.node, "attempt": unit.attempt}
            | {"deadline": unit.deadline}
            for i, unit in enumerate(units)
        ]
    for row in rows:
        row["round"] = spec.round_of(row["unit"])
        row["shard"] = "aggregation" if spec.is_aggregation(row["unit"]) else spec.shard_of(row["unit"])
    return rows
