"""The work on one attempt of a unit: train or average, and make the result public in the right order.

Every step of it may be cut off by `kill -9` and is taken up from the disk. What goes on chain is derived from what is
on disk alone: the result from the checkpoint, the salt from the operator's signature over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from eth_abi.abi import encode
from eth_account.messages import encode_defunct
from eth_account.signers.local import LocalAccount

from node.compute.desk import Checkpoint, Desk
from node.compute.inputs import Need
from node.compute.speed import Stopwatch
from node.compute.view import OverflowNote, WorkKey
from node.compute.workshop import Progress
from node.taskbook import TaskBook
from node.threads import run_settings
from proofs import results
from proofs.blob import index_of
from proofs.exact.aggregate import aggregate, aggregation_program
from proofs.exact.encoding import decode_program, program_root
from proofs.exact.execute import LiveState, Overflowed, Stopped, run_unit
from proofs.exact.state import State, decode_state, encode_state, state_root
from proofs.hashing import keccak, tag
from protocol.errors import StateError
from protocol.messages import KeyGrant, UnitResult
from protocol.sealing import KEY_BYTES, seal
from protocol.types import BlobId, NodeId, Reveal, TaskSpec, Unit

log = structlog.get_logger(__name__)

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished attempt says on chain."""

    roots: tuple[bytes, ...]
    """Checkpoint roots, input state first."""
    result_root: bytes

    @property
    def final_state_root(self) -> bytes:
        return self.roots[-1]


def steps_of(spec: TaskSpec, unit: int) -> int:
    """Program steps of a unit: an aggregation is one."""
    return 1 if spec.is_aggregation(unit) else spec.steps


def is_done(desk: Desk, spec: TaskSpec, key: WorkKey) -> bool:
    return desk.steps_done(key) == steps_of(spec, key.unit)


# --- computing ------------------------------------------------------------------------------------------------------


def train(
    desk: Desk, spec: TaskSpec, key: WorkKey, needs: tuple[Need, ...], on_progress: OnProgress, stop: Callable[[], bool]
) -> None:
    """Runs a training unit from its last checkpoint to the end, saving every checkpoint. Returns early if stopped, and
    if the program overflows: then the last good state, its roots and the place are on disk, and in the log.

    Raises FileNotFoundError if an input is not on disk, ValueError if one does not fit the program, OSError on a full
    disk.
    """
    task, unit = key.task, key.unit
    input_root, data_root = needs[1].root, needs[2].root
    program = decode_program(desk.get_input(task, spec.program_root))
    data = decode_state(desk.get_input(task, data_root))
    saved = desk.get_checkpoint(key)
    if saved is None or saved.roots[0] != input_root or saved.step > spec.steps:
        saved = Checkpoint(0, (input_root,), desk.get_input(task, input_root))
    watch = Stopwatch()

    def on_step(done: int, state: LiveState) -> None:
        watch.step()
        at = state.progress
        on_progress(Progress(done, spec.steps, loss_in(state), at.steps_per_s, at.left_s))

    def on_checkpoint(done: int, state: State, roots: tuple[bytes, ...]) -> None:
        desk.put_checkpoint(key, Checkpoint(done, roots, encode_state(state)))
        watch.checkpoint()

    try:
        run = run_unit(
            program,
            decode_state(saved.state),
            data,
            results.unit_seed(spec.seed, spec.shard_of(unit)),
            spec.steps,
            spec.checkpoint_interval,
            start_step=saved.step,
            checkpoint_roots=saved.roots,
            on_step=on_step,
            on_checkpoint=on_checkpoint,
            stop=stop,
            settings=run_settings(),
        )
    except Stopped as stopped:
        desk.put_checkpoint(key, Checkpoint(stopped.step, stopped.checkpoint_roots, encode_state(stopped.state)))
        return
    except Overflowed as over:
        _keep_overflow(desk, key, input_root, over)
        return
    if watch.speed is not None:
        desk.put_speed(spec.program_root, watch.speed)
    desk.put_input(task, run.checkpoint_roots[-1], encode_state(run.final_state))


def _keep_overflow(desk: Desk, key: WorkKey, input_root: bytes, over: Overflowed) -> None:
    """The state first: a note without it would lose the partial result."""
    desk.put_checkpoint(key, Checkpoint(over.step, over.checkpoint_roots, encode_state(over.state)))
    place = (over.step, over.operation, over.element, over.value)
    desk.put_overflow(key, OverflowNote(input_root.hex(), *place, over.root.hex()))
    log.error(
        "program overflows, unit cannot be finished by anybody",
        task=key.task.hex()[:8],
        unit=key.unit,
        step=over.step + 1,
        operation=over.operation,
        element=over.element,
        value=over.value,
        overflow_root=over.root.hex(),
    )


def average(desk: Desk, spec: TaskSpec, key: WorkKey, needs: tuple[Need, ...]) -> None:
    """Runs an aggregation unit: the exact mean of the round's shards. Raises as `train`."""
    input_state, *shard_states = (decode_state(desk.get_input(key.task, need.root)) for need in needs[1:])
    program = aggregation_program({name: tensor.type for name, tensor in input_state.items()}, spec.shards)
    if program_root(program) != spec.aggregation_root:
        raise ValueError("the task's aggregation program is not the mean of its states")
    mean = aggregate(program, input_state, shard_states)
    roots = (needs[1].root, state_root(mean))
    desk.put_input(key.task, roots[-1], encode_state(mean))
    desk.put_checkpoint(key, Checkpoint(1, roots, encode_state(mean)))


def loss_in(state: State) -> float | None:
    """The training loss that a state carries in its scalar `loss`, nats per sample."""
    tensor = state.get("loss")
    return None if tensor is None or tensor.type.shape else int(tensor.values) * 2.0**-tensor.type.frac


# --- what it says on chain ------------------------------------------------------------------------------------------


def outcome_of(desk: Desk, spec: TaskSpec, key: WorkKey, node: NodeId, needs: tuple[Need, ...]) -> Outcome:
    """From the checkpoint on disk. Raises StateError S-40 if the attempt is not finished."""
    saved = desk.get_checkpoint(key)
    if saved is None or saved.step != steps_of(spec, key.unit):
        raise StateError(f"unit {key.unit} is not finished on this disk", code="S-40", hint="the agent trains it again")
    if spec.is_aggregation(key.unit):
        data_root, program = results.aggregation_data_root([need.root for need in needs[2:]]), spec.aggregation_root
    else:
        data_root, program = spec.data_root, spec.program_root
    return Outcome(
        saved.roots,
        results.result_root(
            task=key.task,
            unit=key.unit,
            node=node,
            input_state_root=saved.roots[0],
            data_root=data_root,
            program_root=program,
            steps=steps_of(spec, key.unit),
            checkpoints_root=results.checkpoints_root(saved.roots),
        ),
    )


def revealed_outcome(desk: Desk, key: WorkKey, unit: Unit) -> Outcome:
    """Of a unit that is revealed already. Raises StateError S-40 if the disk has another result, or none."""
    saved = desk.get_checkpoint(key)
    if saved is None or saved.roots[-1] != unit.final_state_root:
        raise StateError(f"the result of unit {key.unit} is not on this disk", code="S-40")
    return Outcome(saved.roots, unit.result)


def salt_of(operator: LocalAccount, key: WorkKey, result_root: bytes) -> bytes:
    """32 bytes that only the operator can make, the same each time: deterministic ECDSA (RFC 6979), hashed.

    Bound to the attempt, so that a unit taken a second time does not show that its commitment is the old one.
    """
    what = encode(
        ["bytes32", "bytes32", "uint32", "uint16", "bytes32"],
        [tag("avenue.salt.v1"), key.task, key.unit, key.attempt, result_root],
    )
    return keccak(bytes(operator.sign_message(encode_defunct(what)).signature))


def salt_that_opens(desk: Desk, operator: LocalAccount, key: WorkKey, result_root: bytes, commitment: bytes) -> bytes:
    """The salt of the commitment on chain: made again, or, if the operator key was rotated since, from the disk."""
    made = salt_of(operator, key, result_root)
    kept = desk.get_salt(key)
    return kept if kept is not None and results.commitment(result_root, kept) == commitment else made


def opening_of(outcome: Outcome, salt: bytes) -> Reveal:
    """What the reveal carries."""
    last = len(outcome.roots) - 1
    return Reveal(
        checkpoints_root=results.checkpoints_root(outcome.roots),
        final_state_root=outcome.final_state_root,
        proof=tuple(results.checkpoint_proof(outcome.roots, last)),
        salt=salt,
    )


# --- publishing -----------------------------------------------------------------------------------------------------


def publish(
    book: TaskBook, desk: Desk, key: WorkKey, node: NodeId, outcome: Outcome, readers: Mapping[NodeId, bytes]
) -> BlobId:
    """Uploads the final state (sealed to `readers` in a private task) and announces it. Repeat it to resume.

    `readers` maps node ids (0: the requester) to X25519 keys. Raises UnreachableError, BlobError, StateError.
    """
    saved = desk.get_checkpoint(key)
    if saved is None:
        raise StateError(f"unit {key.unit} is not finished on this disk", code="S-40", hint="the agent trains it again")
    blob, content_key = _blob_of(book, desk, key, saved.state)
    blob_id = book.gateway.upload_blob(blob, book.task)
    if content_key is not None and book.keyring is not None:
        book.keyring.put(blob_id, content_key)
        made = [book.rewrap(blob_id, reader, public) for reader, public in sorted(readers.items())]
        grants = tuple(grant for grant in made if grant is not None)
        if grants:
            book.say(KeyGrant(grants=grants))
    book.say(
        UnitResult(
            unit=key.unit,
            node=node,
            state_blob=blob_id,
            final_state_root=outcome.final_state_root,
            result_root=outcome.result_root,
            checkpoint_roots=outcome.roots,
        )
    )
    desk.put_published(key, blob_id, book.mailbox or "")
    return blob_id


def _blob_of(book: TaskBook, desk: Desk, key: WorkKey, state: bytes) -> tuple[bytes, bytes | None]:
    """The blob to upload, and its content key in a private task: on disk before anybody else sees any of it."""
    if not book.spec.is_private:
        return state, None
    content_key, sealed = desk.get_content_key(key), desk.get_sealed(key)
    if content_key is None or len(content_key) != KEY_BYTES or sealed is None:
        content_key, sealed = seal(state)
        desk.put_content_key(key, content_key)
        desk.put_sealed(key, sealed)
    return sealed, content_key


def blob_on_disk(desk: Desk, key: WorkKey) -> BlobId | None:
    """Id of the sealed blob of an attempt."""
    sealed = desk.get_sealed(key)
    return None if sealed is None else BlobId(index_of(sealed).blob_id)
