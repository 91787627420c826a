"""What the requester looks at before it signs for a result.

    check_available   the final state is there, opens, and has the root that the chain has
    recompute         running the unit again gives the same result root

The first costs a download, and is enough for the next round to start; it says nothing about how the state came about.
"""

from __future__ import annotations

from functools import lru_cache

from node.states import fetch_state
from node.taskbook import TaskBook, blobs_of
from node.threads import run_settings
from proofs import results
from proofs.exact.aggregate import aggregate, aggregation_program
from proofs.exact.encoding import decode_program
from proofs.exact.execute import Overflowed, run_unit
from proofs.exact.program import Program
from proofs.exact.state import State, decode_state, state_root
from protocol.chain import ChainClient
from protocol.errors import VerificationError
from protocol.types import BlobId, TaskSpec, Unit


@lru_cache(maxsize=4)
def program_of(book: TaskBook) -> Program:
    """The task's program, fetched once per book. Raises as TaskBook.program."""
    return decode_program(book.program())


def check_available(book: TaskBook, blob: BlobId, unit: Unit) -> State:
    """The final state of a revealed unit. Raises BlobError, StateError or UnreachableError if it isn't there."""
    return decode_state(fetch_state(book, unit.final_state_root, (blob,), program_of(book).state_types))


def recompute(book: TaskBook, chain: ChainClient, index: int, unit: Unit) -> None:
    """Runs the unit again. Raises VerificationError V-30 if its result is another, else as `check_available`."""
    spec, program = book.spec, program_of(book)
    round_ = spec.round_of(index)
    input_root, input_state = _input_state(book, chain, round_)
    if spec.is_aggregation(index):
        shard_units = chain.round(spec, round_)[: spec.shards]
        states = [
            _announced_state(book, spec.unit_index(round_, shard), shard_unit)
            for shard, shard_unit in enumerate(shard_units)
        ]
        mean = aggregate(aggregation_program(program.state_types, spec.shards), input_state, states)
        roots: tuple[bytes, ...] = (input_root, state_root(mean))
        data_root = results.aggregation_data_root([shard_unit.final_state_root for shard_unit in shard_units])
    else:
        shard = book.manifest.shards[spec.shard_of(index)]
        data = decode_state(fetch_state(book, shard.data_root, (BlobId(shard.data_blob),), program.data_types))
        seed = results.unit_seed(spec.seed, spec.shard_of(index))
        try:
            roots = run_unit(
                program, input_state, data, seed, spec.steps, spec.checkpoint_interval, settings=run_settings()
            ).checkpoint_roots
        except Overflowed as over:
            roots = over.committed_roots(spec.steps, spec.checkpoint_interval)
        data_root = spec.data_root
    if _result_root(spec, index, unit, roots, data_root) != unit.result:
        raise VerificationError(
            f"unit {index} of task 0x{book.task.hex()[:8]}: node {unit.node}'s result is not what the program gives",
            code="V-30",
            hint="keep the evidence: program, input and checkpoint roots are public to whoever may read the task",
        )


def _input_state(book: TaskBook, chain: ChainClient, round_: int) -> tuple[bytes, State]:
    spec = book.spec
    if round_ == 0:
        blobs = (BlobId(book.manifest.initial_state_blob),)
        types = program_of(book).state_types
        return spec.initial_state_root, decode_state(fetch_state(book, spec.initial_state_root, blobs, types))
    index = round_ * spec.units_per_round - 1
    producer = chain.unit(book.task, index)
    return producer.final_state_root, _announced_state(book, index, producer)


def _announced_state(book: TaskBook, index: int, unit: Unit) -> State:
    blobs = blobs_of(r for r in book.results_of(index, unit.node) if r.final_state_root == unit.final_state_root)
    return decode_state(fetch_state(book, unit.final_state_root, blobs, program_of(book).state_types))


def _result_root(spec: TaskSpec, index: int, unit: Unit, roots: tuple[bytes, ...], data_root: bytes) -> bytes:
    aggregation = spec.is_aggregation(index)
    return results.result_root(
        task=spec.task_id,
        unit=index,
        node=unit.node,
        input_state_root=roots[0],
        data_root=data_root,
        program_root=spec.aggregation_root if aggregation else spec.program_root,
        steps=1 if aggregation else spec.steps,
        checkpoints_root=results.checkpoints_root(roots),
    )
