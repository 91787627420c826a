"""What log lines call an action or a job: `claim task b8e9921f unit 1`, never the repr of its bytes."""

from __future__ import annotations

from dataclasses import is_dataclass

_NAMED = ("key", "task", "unit", "attempt", "node", "reader")


def name_of(thing: object) -> str:
    """Which task, unit and node `thing` is about: a key of work, an action, an id."""
    if isinstance(thing, bytes):
        return thing.hex()[:8]
    if isinstance(thing, tuple):
        return " ".join(name_of(part) for part in thing)
    if is_dataclass(thing):
        parts = [(name, getattr(thing, name)) for name in _NAMED if hasattr(thing, name)]
        return " ".join(name_of(value) if name == "key" else f"{name} {name_of(value)}" for name, value in parts)
    return str(thing)


def name_of_action(action: object) -> str:
    """What is done, and to what."""
    return f"{type(action).__name__.lower()} {name_of(action)}".strip()
