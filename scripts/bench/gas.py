"""What each move costs on a chain, in gas of whole transactions, on an Anvil of its own; exit 1 if a target is missed.

    python -m scripts.bench.gas [--json]

Calldata, the 21,000 of any transaction and cold storage are in the figures, refunds are taken off. Storage that is
written for the first time (a payee's credit, a task's slot) is dear; each move is shown at its first, dearest time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from proofs.results import commitment
from protocol import transactions
from protocol.journal import Journal
from protocol.signatures import sign_acceptance, sign_admission
from protocol.transactions import Call
from protocol.types import NO_ADMISSION, Admission, TaskSpec, Wei
from tests.support.anvil import AvenueChain, avenue_chain
from tests.support.market import AVN, FAR, Worker, give_tokens, make_spec, register_node, work_on

TARGETS = {
    "post, 1 round x 1 shard": 150_000,
    "post, 1000 rounds x 256 shards": 150_000,
    "claim, public": 130_000,
    "claim, private": 130_000,
    "commit": 75_000,
}
DEPLOYER, REQUESTER, OWNER, OPERATOR, STRANGER = range(5)
PRICE = Wei(AVN // 10)


@dataclass
class Meter:
    """Sends as anybody, and writes down what it cost under a name, once."""

    avenue: AvenueChain
    gas: dict[str, int] = field(default_factory=dict)

    def send(self, account: int, call: Call, name: str | None = None) -> None:
        outcome = self.avenue.sender(account).send(call)
        if name is not None:
            self.gas.setdefault(name, outcome.gas_used)

    def post(self, name: str | None = None, **changes: object) -> TaskSpec:
        requester = self.avenue.accounts[REQUESTER]
        prices = {"unit_price": PRICE, "aggregation_price": PRICE, "collateral": PRICE}
        spec = make_spec(self.avenue, requester, **{**prices, **changes})
        give_tokens(self.avenue, requester, spec.escrow)
        self.send(REQUESTER, transactions.approve_escrow(self.avenue.deployment, spec), "approve")
        self.send(REQUESTER, transactions.post(self.avenue.deployment, spec), name)
        return spec

    def claim(self, spec: TaskSpec, unit: int, name: str | None = None, admission: Admission = NO_ADMISSION) -> None:
        self.send(OPERATOR, transactions.claim(self.avenue.deployment, spec, unit, admission), name)

    def work(self, worker: Worker, spec: TaskSpec, unit: int, reveal: str | None = None) -> bytes:
        """Commit and reveal of a claimed unit; gives the result root."""
        deployment, work = self.avenue.deployment, work_on(self.avenue, spec, unit)
        root = self.avenue.client.result_root_of(spec, unit, worker.node, work.opening.checkpoints_root)
        self.send(OPERATOR, transactions.commit(deployment, spec.task_id, unit, commitment(root, work.salt)), "commit")
        self.send(OPERATOR, transactions.reveal(deployment, spec, unit, work.opening), reveal)
        return root


def deployment_gas(avenue: AvenueChain) -> dict[str, int]:
    """By step of the deployment plan, from the deployer's journal."""
    with Journal(avenue.home / "deployer.sqlite") as journal:
        steps = journal.mined_since(avenue.client.chain_key, avenue.accounts[DEPLOYER].address, 0)
    gas = {}
    for step in steps:
        assert step.mined_hash is not None
        receipt = avenue.client.w3.eth.get_transaction_receipt("0x" + step.mined_hash.hex())  # type: ignore[arg-type]
        gas[f"deploy: {step.kind.removeprefix('CREATE2.')}"] = int(receipt["gasUsed"])
    return {**gas, "deploy, all steps": sum(gas.values())}


def a_task_of_three_shards(meter: Meter, worker: Worker) -> None:
    """Private, from the post to the empty escrow; the last unit is left lying."""
    avenue, deployment, requester = meter.avenue, meter.avenue.deployment, meter.avenue.accounts[REQUESTER]
    spec = meter.post(shards=3, rounds=2, is_private=True)
    admission = sign_admission(requester, deployment, spec.task_id, worker.node, 0b111, FAR)
    roots = {}
    for unit in range(4):
        meter.claim(spec, unit, "claim, private", admission)
        roots[unit] = meter.work(worker, spec, unit, "reveal, training" if unit < 3 else "reveal, aggregation of 3")
    signature = sign_acceptance(requester, deployment, spec.task_id, 0, roots[0])
    meter.send(STRANGER, transactions.accept(deployment, spec, 0, signature), "accept")
    avenue.anvil.increase_time(spec.challenge_window_s + 1)
    for unit in (1, 2, 3):
        meter.send(STRANGER, transactions.finalise(deployment, spec, unit), "finalise")
    meter.claim(spec, 4, None, admission)
    avenue.anvil.increase_time(spec.compute_window_s + 1)
    meter.send(STRANGER, transactions.expire(deployment, spec, 4), "expire")
    meter.send(REQUESTER, transactions.cancel(deployment, spec), "cancel")
    meter.send(STRANGER, transactions.close(deployment, spec), "close")
    meter.send(STRANGER, transactions.withdraw(deployment, avenue.accounts[OWNER].address), "withdraw")


def measure(avenue: AvenueChain) -> dict[str, int]:
    """Gas by move, in the order of a task's life."""
    meter, deployment = Meter(avenue, deployment_gas(avenue)), avenue.deployment
    owner, operator = avenue.accounts[OWNER], avenue.accounts[OPERATOR]
    before = avenue.client.latest_block().number
    worker = Worker(avenue, register_node(avenue, owner, operator, stake=0), avenue.sender(operator))
    (registration,) = avenue.client.w3.eth.get_block(before + 1)["transactions"]
    meter.gas["register"] = int(avenue.client.w3.eth.get_transaction_receipt(registration)["gasUsed"])  # type: ignore[arg-type]
    give_tokens(avenue, owner, 1000 * AVN)
    meter.send(OWNER, transactions.approve(deployment, deployment.registry, Wei(1000 * AVN)), "approve")
    meter.send(OWNER, transactions.stake(deployment, worker.node, Wei(1000 * AVN)), "stake")
    small = meter.post("post, 1 round x 1 shard", rounds=1, shards=1, aggregation_root=bytes(32), aggregation_price=0)
    meter.post("post, 1000 rounds x 256 shards", rounds=1000, shards=256)
    meter.claim(small, 0, "claim, public")
    a_task_of_three_shards(meter, worker)
    wide = meter.post(shards=64, rounds=1)
    for unit in range(wide.units):
        meter.claim(wide, unit)
        meter.work(worker, wide, unit, "reveal, aggregation of 64" if wide.is_aggregation(unit) else None)
    return meter.gas


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, avenue_chain(Path(folder)) as avenue:
        gas = measure(avenue)
    missed = [name for name, most in TARGETS.items() if gas[name] > most]
    if options.json:
        print(json.dumps({"gas": gas, "targets": TARGETS, "missed": missed}, indent=2))
    else:
        print(f"{'move':34} {'gas':>10} {'target':>10}")
        for name, used in gas.items():
            target = f"{TARGETS[name]:,}" if name in TARGETS else ""
            print(f"{name:34} {used:>10,} {target:>10}{'  MISSED' if name in missed else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
