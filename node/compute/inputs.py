"""What a unit starts from: which roots, where their blobs were announced, and how they come to this machine.

A node binds its stake only to a unit whose program, input state and data it has opened and checked against the
chain. So fetching is a step of its own, before the claim. A root that is here once serves every later unit that
needs it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from node.compute.desk import Desk
from node.compute.speed import measure, measure_average
from node.states import fetch_state
from node.taskbook import TaskBook, blobs_of
from proofs.exact.encoding import decode_program
from proofs.exact.opcodes import Opcode
from proofs.exact.plan import peak_bytes
from proofs.exact.program import Program
from proofs.exact.state import decode_state
from protocol.errors import BlobError, StateError
from protocol.types import BlobId, TaskSpec, Unit, UnitStatus

AVERAGE_STATES = 4
"""States that an average holds beside those of the shards: input, sum, doubled, mean."""
ATTEMPT_STATES = 4
"""States that an attempt writes: checkpoint, the next one beside it, result, the result sealed."""
SPARE_DISK_BYTES = 256 << 20
MEMORY_PART = 2
"""A unit is taken if what it holds at once fits into this part of the machine's memory: the other half is for encoded
states, kernels' scratch space and everything else. A process that the system kills for its hunger would start again,
fetch the same task and be killed again."""

log = structlog.get_logger(__name__)


class InputKind(StrEnum):
    PROGRAM = "program"
    STATE = "state"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a unit starts from, known by its root; `blobs` are where it was announced to be."""

    kind: InputKind
    root: bytes
    blobs: tuple[BlobId, ...]


def needs_of(
    book: TaskBook, unit: int, input_root: bytes, units: Mapping[int, Unit], producer: Unit | None
) -> tuple[Need, ...]:
    """What `unit` of the present round starts from, program first.

    `producer` is the unit that ended in `input_root` (None in round 0). Raises what TaskBook.manifest raises.
    """
    spec, manifest = book.spec, book.manifest
    round_ = spec.round_of(unit)
    if producer is None:
        state_blobs: tuple[BlobId, ...] = (BlobId(manifest.initial_state_blob),)
    else:
        state_blobs = _state_blobs(book, round_ * spec.units_per_round - 1, producer)
    needs = [
        Need(InputKind.PROGRAM, spec.program_root, (BlobId(manifest.program_blob),)),
        Need(InputKind.STATE, input_root, state_blobs),
    ]
    if spec.is_aggregation(unit):
        for shard in range(spec.shards):
            index = spec.unit_index(round_, shard)
            needs.append(Need(InputKind.STATE, units[index].final_state_root, _state_blobs(book, index, units[index])))
    else:
        shard_entry = manifest.shards[spec.shard_of(unit)]
        needs.append(Need(InputKind.DATA, shard_entry.data_root, (BlobId(shard_entry.data_blob),)))
    return tuple(needs)


def _state_blobs(book: TaskBook, index: int, unit: Unit) -> tuple[BlobId, ...]:
    """Where the worker of a revealed unit says its final state is."""
    if unit.status < UnitStatus.REVEALED:
        return ()
    said = book.results_of(index, unit.node)
    return blobs_of(result for result in said if result.final_state_root == unit.final_state_root)


def is_ready(desk: Desk, book: TaskBook, needs: tuple[Need, ...]) -> bool:
    return all(desk.has_input(book.task, need.root) for need in needs)


def is_reachable(desk: Desk, book: TaskBook, needs: tuple[Need, ...]) -> bool:
    """Whether everything that is not here yet was announced, and can be opened."""
    return all(
        desk.has_input(book.task, need.root)
        or need.kind is InputKind.PROGRAM
        or any(book.readable(blob) for blob in need.blobs)
        for need in needs
    )


def prepare(book: TaskBook, desk: Desk, unit: int, needs: tuple[Need, ...], *, may_overflow: bool = False) -> None:
    """Fetches what is missing, opens it, checks it against its root, and measures the program once. `may_overflow`:
    even if units of the program may end in the OVERFLOW state.

    Raises BlobError, StateError or UnreachableError; nothing wrong is ever kept.
    """
    if not desk.has_input(book.task, book.spec.manifest):
        desk.put_input(book.task, book.spec.manifest, book.manifest.to_bytes())
    program: Program | None = None
    for need in needs:
        if need.kind is InputKind.PROGRAM:
            if not desk.has_input(book.task, need.root):
                desk.put_input(book.task, need.root, book.program())
            program = decode_program(desk.get_input(book.task, need.root))
            check_size(program, book.spec, unit)
            if not may_overflow:
                check_end(program)
            if not is_ready(desk, book, needs):
                check_room(program, needs, shutil.disk_usage(desk.root).free)
        elif not desk.has_input(book.task, need.root):
            assert program is not None, "needs_of puts the program first"
            types = program.state_types if need.kind is InputKind.STATE else program.data_types
            desk.put_input(book.task, need.root, fetch_state(book, need.root, need.blobs, types))
    spec = book.spec
    if spec.is_aggregation(unit):
        if desk.speed(spec.aggregation_root) is None:
            state = decode_state(desk.get_input(book.task, needs[1].root))
            desk.put_speed(spec.aggregation_root, measure_average(desk, state, spec))
    elif program is not None and desk.speed(spec.program_root) is None:
        state, data = (decode_state(desk.get_input(book.task, need.root)) for need in needs[1:3])
        desk.put_speed(spec.program_root, measure(desk, program, state, data, spec))


def check_size(program: Program, spec: TaskSpec, unit: int, memory: int | None = None) -> None:
    """Raises BlobError V-23 for a unit that does not fit `memory` bytes (this machine's): it is not even tried."""
    memory = memory_bytes() if memory is None else memory
    if spec.is_aggregation(unit):
        state = 8 * sum(type_.elements for type_ in program.state_types.values())
        need = (spec.shards + AVERAGE_STATES) * state
    else:
        need = peak_bytes(program)
    if need > memory // MEMORY_PART:
        raise BlobError(
            f"unit {unit} holds {need / 2**30:.1f} GiB at once, at most {memory / MEMORY_PART / 2**30:.1f} are taken",
            code="V-23",
            hint="leave this task to a larger machine",
        )


def check_end(program: Program) -> None:
    """Raises BlobError V-24 for a program that asserts bounds: version 0.1 of the contracts has no move for a unit that
    breaks them, so its worker's collateral would be lost, half of it to the requester, who chose the program."""
    checks = sum(op.opcode is Opcode.CHECK for op in program.ops)
    if checks:
        raise BlobError(
            f"the program asserts bounds in {checks} places; a unit that breaks one cannot be settled yet",
            code="V-24",
            hint="leave this task, or trust its requester: avenue config set compute.may_overflow true",
        )


def check_room(program: Program, needs: tuple[Need, ...], free: int) -> None:
    """Raises StateError S-48 if the disk, with `free` bytes, has no room for a unit beside what is in work already: a
    task that nobody may ever train here must not cost another its checkpoints."""
    state = sum(type_.nbytes for type_ in program.state_types.values())
    data = sum(type_.nbytes for type_ in program.data_types.values())
    inputs = sum({InputKind.STATE: state, InputKind.DATA: data}.get(need.kind, 0) for need in needs)
    need_bytes = inputs + ATTEMPT_STATES * state + SPARE_DISK_BYTES
    if need_bytes > free:
        raise StateError(
            f"a unit needs {need_bytes / 2**30:.1f} GiB of disk, {free / 2**30:.1f} are free",
            code="S-48",
            hint="free some space, or set data_dir to another disk",
        )


def memory_bytes() -> int:
    """What this process may use: the machine's memory, or less if its control group has less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(text)) if text.isdecimal() else physical
