"""The chain's events as rows: written as JSON, read back as the frozen dataclasses of protocol/events.py.

Generic over their fields (bytes, int, bool, str, nested dataclasses), so a new kind of event needs nothing here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from marketplace.tables import EventRow
from protocol.events import EVENTS, ChainEvent

_KINDS: dict[str, type[ChainEvent]] = {kind.__name__: kind for group in EVENTS.values() for kind in group}


def to_row(event: ChainEvent) -> EventRow:
    """The row of one event."""
    return EventRow(
        block=event.at.block_number,
        log_index=event.at.log_index,
        kind=type(event).__name__,
        task=getattr(event, "task", None),
        node=getattr(event, "node", None),
        event=json.dumps(_encode(event)),
    )


def from_row(row: EventRow) -> ChainEvent:
    """The event of one row. Raises KeyError for a kind that this version does not know."""
    kind = _KINDS[row.kind]
    event = _decode(kind, json.loads(row.event))
    assert isinstance(event, ChainEvent)
    return event


def from_rows(rows: Iterable[EventRow]) -> list[ChainEvent]:
    """Events in the order of the rows."""
    return [from_row(row) for row in rows]


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    return value.hex() if isinstance(value, bytes) else value


def _decode(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return kind(**{name: _decode(hint, value[name]) for name, hint in _hints(kind).items()})
    plain = getattr(kind, "__supertype__", kind)  # a NewType of bytes, int or str
    return bytes.fromhex(value) if plain is bytes else value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
