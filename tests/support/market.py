"""Moves in the market as short sentences, for tests that need a task or a worked unit on a real chain.

Roots are arbitrary hashes: the market never looks inside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from proofs.results import checkpoint_proof, checkpoints_root, commitment
from protocol import transactions
from protocol.events import NodeRegistered, events_of
from protocol.sender import Sender, TxOutcome
from protocol.signatures import sign_operator_authorization
from protocol.types import NO_ADMISSION, ZERO32, Admission, NodeId, Reveal, TaskSpec, Wei
from tests.support.anvil import AvenueChain

AVN = 10**18
FAR = 2**40 - 1


def h(name: str) -> bytes:
    """Some 32 bytes, the same for the same name."""
    return keccak(text=name)


def make_spec(avenue: AvenueChain, requester: LocalAccount, **changes: Any) -> TaskSpec:
    """Two shards, two rounds, a day to go, collateral 20 AVN; any field may be changed by name."""
    spec = TaskSpec(
        requester=requester.address,
        program_root=h("program"),
        aggregation_root=h("aggregation"),
        initial_state_root=h("initial state"),
        data_root=h("data"),
        manifest=h("manifest"),
        seed=1,
        unit_price=Wei(10 * AVN),
        aggregation_price=Wei(1 * AVN),
        collateral=Wei(20 * AVN),
        rounds=2,
        shards=2,
        steps=10,
        checkpoint_interval=4,
        deadline=avenue.client.latest_block().timestamp + 86_400,
        compute_window_s=600,
        reveal_window_s=300,
        challenge_window_s=900,
        is_private=False,
    )
    return replace(spec, **changes)


def give_tokens(avenue: AvenueChain, to: LocalAccount, amount: int) -> None:
    avenue.sender(0).send(transactions.transfer(avenue.deployment, to.address, Wei(amount)))


def post_task(avenue: AvenueChain, requester: LocalAccount, **changes: Any) -> TaskSpec:
    """Gives the requester the escrow and posts the task."""
    spec = make_spec(avenue, requester, **changes)
    give_tokens(avenue, requester, spec.escrow)
    sender = avenue.sender(requester)
    sender.send(transactions.approve_escrow(avenue.deployment, spec))
    sender.send(transactions.post(avenue.deployment, spec))
    return spec


def register_node(avenue: AvenueChain, owner: LocalAccount, operator: LocalAccount, stake: int = 1000 * AVN) -> NodeId:
    """Registers and stakes a node; gives the owner the stake first."""
    sender, deployment = avenue.sender(owner), avenue.deployment
    signature = sign_operator_authorization(
        operator, deployment, owner.address, avenue.client.operator_nonce(operator.address), FAR
    )
    outcome = sender.send(
        transactions.register(deployment, operator.address, h("key"), "http://node", h("capabilities"), FAR, signature)
    )
    (registered,) = events_of(avenue.client, outcome)
    assert isinstance(registered, NodeRegistered)
    if stake:
        give_tokens(avenue, owner, stake)
        sender.send(transactions.approve(deployment, deployment.registry, Wei(stake)))
        sender.send(transactions.stake(deployment, registered.node, Wei(stake)))
    return registered.node


@dataclass(frozen=True, slots=True)
class Work:
    """A result for one unit, as a node would have it after training."""

    checkpoints: tuple[bytes, ...]
    salt: bytes

    @property
    def final_state_root(self) -> bytes:
        return self.checkpoints[-1]

    @property
    def opening(self) -> Reveal:
        proof = checkpoint_proof(self.checkpoints, len(self.checkpoints) - 1)
        return Reveal(checkpoints_root(self.checkpoints), self.final_state_root, tuple(proof), self.salt)


def work_on(avenue: AvenueChain, spec: TaskSpec, unit: int) -> Work:
    """A result that begins at the input state the chain knows."""
    start = avenue.client.input_state_root(spec, spec.round_of(unit))
    assert start != ZERO32, "the unit's input is not known yet"
    count = 2 if spec.is_aggregation(unit) else spec.checkpoints
    # Shards of a round end in different states; their mean is what it is.
    later = tuple(h(f"state after {unit}/{step}") for step in range(1, count))
    return Work((start, *later), h(f"salt {unit}"))


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered node and its operator's sender."""

    avenue: AvenueChain
    node: NodeId
    sender: Sender

    def claim(self, spec: TaskSpec, unit: int, admission: Admission = NO_ADMISSION) -> TxOutcome:
        return self.sender.send(transactions.claim(self.avenue.deployment, spec, unit, admission))

    def commit(self, spec: TaskSpec, unit: int, work: Work) -> bytes:
        """Commits; gives the result root."""
        root = self.avenue.client.result_root_of(spec, unit, self.node, work.opening.checkpoints_root)
        call = transactions.commit(self.avenue.deployment, spec.task_id, unit, commitment(root, work.salt))
        self.sender.send(call)
        return root

    def reveal(self, spec: TaskSpec, unit: int, work: Work) -> TxOutcome:
        return self.sender.send(transactions.reveal(self.avenue.deployment, spec, unit, work.opening))

    def do(self, spec: TaskSpec, unit: int, admission: Admission = NO_ADMISSION) -> bytes:
        """Claims, commits and reveals; gives the result root."""
        self.claim(spec, unit, admission)
        work = work_on(self.avenue, spec, unit)
        root = self.commit(spec, unit, work)
        self.reveal(spec, unit, work)
        return root


def make_worker(avenue: AvenueChain, owner: LocalAccount, operator: LocalAccount) -> Worker:
    return Worker(avenue, register_node(avenue, owner, operator), avenue.sender(operator))
