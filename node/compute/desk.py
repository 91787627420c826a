"""What a Compute Node has on disk: inputs by root, checkpoints by attempt, sealed results by attempt.

    <data_dir>/compute/<task>/inputs/<root>           a state, shard, program or manifest, verified before it came here
    <data_dir>/compute/<task>/units/<unit>-<attempt>/ checkpoint   state, step and roots; at the last step: the result
                                                      salt         of the commitment, for a later operator's reveal
                                                      content_key  of a private task's sealed blob
                                                      sealed       that blob, before it is uploaded
                                                      published    id of the blob, name of the mailbox that has it
    <data_dir>/compute/<task>/overflows/<unit>        where the unit overflowed: no attempt at it can end otherwise
    <data_dir>/compute/speed.json                     seconds per step and per checkpoint, by program, as measured here

Every file is written whole or not at all (temporary file, fsync, rename, fsync of the directory): after `kill -9` at
any point a file is absent, old or new. A name with a root in it is only ever given to bytes that hash to it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from node.compute.view import OverflowNote, Speed, WorkKey
from node.files import write_whole
from protocol.types import TaskId

_MAGIC = b"avenue checkpoint 1\n"
_HEADER = struct.Struct("<II32s")  # steps done, number of roots, BLAKE2b-256 of what follows

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where an attempt is: `roots` are the state roots so far, input state first; `state`, encoded, is after `step`."""

    step: int
    roots: tuple[bytes, ...]
    state: bytes

    def to_bytes(self) -> bytes:
        body = b"".join(self.roots) + self.state
        return _MAGIC + _HEADER.pack(self.step, len(self.roots), _digest(body)) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint | None:
        """None if the bytes are no checkpoint of this version, or a disk has damaged them."""
        if not data.startswith(_MAGIC) or len(data) < len(_MAGIC) + _HEADER.size:
            return None
        step, count, digest = _HEADER.unpack_from(data, len(_MAGIC))
        first = len(_MAGIC) + _HEADER.size
        if count < 1 or len(data) <= first + 32 * count or _digest(data[first:]) != digest:
            return None
        roots = tuple(data[first + 32 * i : first + 32 * (i + 1)] for i in range(count))
        return cls(step, roots, data[first + 32 * count :])


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


class Desk:
    """One node's files. Different attempts may be written by different threads."""

    def __init__(self, data_dir: Path) -> None:
        self.root = data_dir / "compute"
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._speed_lock = threading.Lock()

    def sweep(self) -> None:
        """Removes what a killed process left half written. For the one agent that owns the desk, before it starts."""
        for left_over in self.root.rglob(".writing-*"):
            left_over.unlink(missing_ok=True)

    # --- inputs ---

    def _input(self, task: TaskId, root: bytes) -> Path:
        return self.root / task.hex() / "inputs" / root.hex()

    def has_input(self, task: TaskId, root: bytes) -> bool:
        return self._input(task, root).exists()

    def put_input(self, task: TaskId, root: bytes, data: bytes) -> None:
        """The caller has checked that `data` hashes to `root`."""
        write_whole(self._input(task, root), data)

    def get_input(self, task: TaskId, root: bytes) -> bytes:
        """Raises FileNotFoundError."""
        return self._input(task, root).read_bytes()

    def drop_inputs(self, task: TaskId, keep: set[bytes]) -> None:
        """Deletes inputs of a task but those in `keep`: states of past rounds are not needed again."""
        folder = self.root / task.hex() / "inputs"
        names = {root.hex() for root in keep}
        for path in folder.iterdir() if folder.exists() else ():
            if path.name not in names and not path.name.startswith("."):
                path.unlink(missing_ok=True)

    # --- attempts ---

    def _attempt(self, key: WorkKey) -> Path:
        return self.root / key.task.hex() / "units" / f"{key.unit}-{key.attempt}"

    def put_checkpoint(self, key: WorkKey, checkpoint: Checkpoint) -> None:
        write_whole(self._attempt(key) / "checkpoint", checkpoint.to_bytes())

    def get_checkpoint(self, key: WorkKey) -> Checkpoint | None:
        """The last one; None if there is none. One that a disk has damaged, if only by a bit, is said and put aside:
        the unit is computed again from its start."""
        path = self._attempt(key) / "checkpoint"
        try:
            found = Checkpoint.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        if found is None:
            log.error("checkpoint is damaged, unit starts again", file=str(path), hint="check this disk")
            path.replace(path.with_name("damaged"))
        return found

    def steps_done(self, key: WorkKey) -> int:
        """Steps behind the last checkpoint, without reading its state; 0 if there is none."""
        try:
            with (self._attempt(key) / "checkpoint").open("rb") as file:
                head = file.read(len(_MAGIC) + _HEADER.size)
        except FileNotFoundError:
            return 0
        if len(head) < len(_MAGIC) + _HEADER.size or not head.startswith(_MAGIC):
            return 0
        return int(_HEADER.unpack_from(head, len(_MAGIC))[0])

    def put_overflow(self, key: WorkKey, note: OverflowNote) -> None:
        """Kept beside the attempts: whoever claims the unit again ends in the same place."""
        write_whole(self._overflow(key.task, key.unit), json.dumps(asdict(note)).encode())

    def overflow(self, task: TaskId, unit: int) -> OverflowNote | None:
        """Where a unit overflowed on this machine. Anything else in the file counts as nothing."""
        try:
            return OverflowNote(**json.loads(self._overflow(task, unit).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _overflow(self, task: TaskId, unit: int) -> Path:
        return self.root / task.hex() / "overflows" / str(unit)

    def put_salt(self, key: WorkKey, salt: bytes) -> None:
        """Written before the commitment that it is part of."""
        write_whole(self._attempt(key) / "salt", salt)

    def get_salt(self, key: WorkKey) -> bytes | None:
        try:
            return (self._attempt(key) / "salt").read_bytes()
        except FileNotFoundError:
            return None

    def put_sealed(self, key: WorkKey, blob: bytes) -> None:
        write_whole(self._attempt(key) / "sealed", blob)

    def get_sealed(self, key: WorkKey) -> bytes | None:
        try:
            return (self._attempt(key) / "sealed").read_bytes()
        except FileNotFoundError:
            return None

    def put_content_key(self, key: WorkKey, content_key: bytes) -> None:
        """Written before the blob that it seals."""
        write_whole(self._attempt(key) / "content_key", content_key)

    def get_content_key(self, key: WorkKey) -> bytes | None:
        try:
            return (self._attempt(key) / "content_key").read_bytes()
        except FileNotFoundError:
            return None

    def put_published(self, key: WorkKey, blob: bytes, mailbox: str) -> None:
        """`mailbox`: where it was announced."""
        write_whole(self._attempt(key) / "published", blob + mailbox.encode())

    def published(self, key: WorkKey, mailbox: str | None = None) -> bool:
        """Whether it was announced in `mailbox`; None: anywhere."""
        try:
            said_in = (self._attempt(key) / "published").read_bytes()[32:].decode()
        except FileNotFoundError:
            return False
        return mailbox is None or said_in in ("", mailbox)

    def attempts(self, task: TaskId) -> Iterator[WorkKey]:
        """Every attempt of which there is anything."""
        folder = self.root / task.hex() / "units"
        for path in sorted(folder.iterdir()) if folder.exists() else ():
            unit, _, attempt = path.name.partition("-")
            if unit.isdigit() and attempt.isdigit():
                yield WorkKey(task, int(unit), int(attempt))

    def drop_attempt(self, key: WorkKey) -> None:
        shutil.rmtree(self._attempt(key), ignore_errors=True)

    def forget(self, task: TaskId) -> None:
        """Everything about a task that is over."""
        shutil.rmtree(self.root / task.hex(), ignore_errors=True)

    # --- speed ---

    def rehearse(self, task: TaskId, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint as `put_checkpoint` does, and removes it: to see how long that takes."""
        path = self.root / task.hex() / "rehearsal"
        try:
            write_whole(path, checkpoint.to_bytes())
        finally:
            path.unlink(missing_ok=True)

    def put_speed(self, program_root: bytes, speed: Speed) -> None:
        with self._speed_lock:
            speeds = self._speeds()
            speeds[program_root.hex()] = speed
            write_whole(self.root / "speed.json", json.dumps({k: asdict(s) for k, s in speeds.items()}).encode())

    def speed(self, program_root: bytes) -> Speed | None:
        """What a program takes on this machine; None until it ran here."""
        return self._speeds().get(program_root.hex())

    def _speeds(self) -> dict[str, Speed]:
        """Anything else in the file counts as nothing measured."""
        try:
            found = json.loads((self.root / "speed.json").read_bytes())
            return {root: Speed(float(s["step_s"]), float(s["checkpoint_s"])) for root, s in found.items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return {}
