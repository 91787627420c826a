"""The tasks that were ever posted, with their specifications, from the market's events. Survives reorganisations.

Replayed from the deployment's block by each process: the chain remembers only a hash of a specification, so the
event is where it is found.
"""

from __future__ import annotations

from node.context import NodeContext
from protocol.errors import StateError
from protocol.events import Cursor, EventFollower, Rollback, TaskPosted
from protocol.types import TaskId, TaskSpec


class TaskFeed:
    """Follows `TaskPosted`."""

    def __init__(self, context: NodeContext) -> None:
        self._client = context.client
        self._follower = EventFollower(context.client, confirmations=context.network.confirmations, kinds=[TaskPosted])
        self._cursor: Cursor = self._follower.start()
        self._posted: dict[TaskId, TaskPosted] = {}

    def poll(self) -> list[TaskSpec]:
        """Every task so far, in the order of posting. Raises UnreachableError."""
        for batch in self._follower.follow(self._cursor):
            for item in batch.items:
                if isinstance(item, Rollback):
                    kept = {t: p for t, p in self._posted.items() if p.at.block_number <= item.to_block}
                    self._posted = kept
                elif isinstance(item, TaskPosted):
                    self._posted[item.task] = item
            self._cursor = batch.cursor
        return [posted.spec for posted in self._posted.values()]

    def posted(self, task: TaskId) -> TaskPosted:
        """One task's event, also of one that was posted a moment ago: its id is the hash of its specification, so no
        reorganisation makes that another one.

        Raises StateError S-43 if no such task was posted as far as this endpoint knows.
        """
        self.poll()
        posted = self._posted.get(task) or self._unconfirmed(task)
        if posted is None:
            raise StateError(
                f"no task 0x{task.hex()} was posted here", code="S-43", hint="`avenue task list` shows what was"
            )
        return posted

    def _unconfirmed(self, task: TaskId) -> TaskPosted | None:
        follower = EventFollower(self._client, confirmations=0, kinds=[TaskPosted])
        for batch in follower.follow(self._cursor):
            for item in batch.items:
                if isinstance(item, TaskPosted) and item.task == task:
                    return item
        return None
