"""What the contracts' structs are in Python: frozen models with units in their names. No torch, no web3.

Field order is the Solidity order (contracts/types/Task.sol); `to_abi` and `from_abi` are the only places that know it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from enum import IntEnum
from typing import Any, NewType

from eth_abi.abi import encode
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

Wei = NewType("Wei", int)
"""An amount of AVN in its smallest unit (10^-18), or of gas money where a name says so."""

TaskId = NewType("TaskId", bytes)
BlobId = NewType("BlobId", bytes)
NodeId = NewType("NodeId", int)

ZERO32 = bytes(32)

TASK_SPEC_ABI = (
    "(address,bytes32,bytes32,bytes32,bytes32,bytes32,uint64,uint96,uint96,uint96,"
    "uint32,uint16,uint32,uint32,uint40,uint32,uint32,uint32,bool)"
)


class TaskStatus(IntEnum):
    NONE = 0
    POSTED = 1
    CANCELLED = 2
    CLOSED = 3


class UnitStatus(IntEnum):
    OPEN = 0
    CLAIMED = 1
    COMMITTED = 2
    REVEALED = 3
    FINALISED = 4


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A training task, whole. See contracts/types/Task.sol for what each field promises."""

    requester: ChecksumAddress
    program_root: bytes
    aggregation_root: bytes
    initial_state_root: bytes
    data_root: bytes
    manifest: bytes
    seed: int
    unit_price: Wei
    aggregation_price: Wei
    collateral: Wei
    rounds: int
    shards: int
    steps: int
    checkpoint_interval: int
    deadline: int
    compute_window_s: int
    reveal_window_s: int
    challenge_window_s: int
    is_private: bool

    def to_abi(self) -> tuple[Any, ...]:
        """The tuple that web3 and eth-abi take for `TaskSpec`."""
        return astuple(self)

    @classmethod
    def from_abi(cls, values: tuple[Any, ...]) -> TaskSpec:
        """From the tuple that web3 and eth-abi give for `TaskSpec`."""
        names = [field.name for field in fields(cls)]
        named = dict(zip(names, values, strict=True))
        named["requester"] = to_checksum_address(named["requester"])
        return cls(**named)

    @property
    def task_id(self) -> TaskId:
        """H(abi.encode(spec)), docs/protocol.md section 1."""
        return TaskId(keccak(encode([TASK_SPEC_ABI], [self.to_abi()])))

    @property
    def units_per_round(self) -> int:
        return self.shards + (1 if self.shards > 1 else 0)

    @property
    def units(self) -> int:
        return self.rounds * self.units_per_round

    @property
    def escrow(self) -> Wei:
        per_round = self.shards * self.unit_price + (self.aggregation_price if self.shards > 1 else 0)
        return Wei(self.rounds * per_round)

    @property
    def checkpoints(self) -> int:
        """State roots that a training unit commits to, input state included."""
        return 1 + -(-self.steps // self.checkpoint_interval)

    def round_of(self, unit: int) -> int:
        return unit // self.units_per_round

    def shard_of(self, unit: int) -> int:
        """Shard of a training unit; equals `shards` for an aggregation unit."""
        return unit % self.units_per_round

    def is_aggregation(self, unit: int) -> bool:
        return self.shards > 1 and self.shard_of(unit) == self.shards

    def price_of(self, unit: int) -> Wei:
        return self.aggregation_price if self.is_aggregation(unit) else self.unit_price

    def unit_index(self, round_: int, shard: int) -> int:
        return round_ * self.units_per_round + shard


@dataclass(frozen=True, slots=True)
class TaskState:
    escrow: Wei
    in_flight: int
    finalised: int
    status: TaskStatus


@dataclass(frozen=True, slots=True)
class Unit:
    """A work unit as the chain remembers it. `node` is 0 while never claimed."""

    node: NodeId
    status: UnitStatus
    attempt: int
    deadline: int
    commit_block: int
    reveal_window_s: int
    result: bytes
    final_state_root: bytes


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as the registry has it."""

    node: NodeId
    owner: ChecksumAddress
    operator: ChecksumAddress
    registered_at: int
    leaving: bool
    stake: Wei
    locked: Wei
    encryption_key: bytes
    capabilities_hash: bytes
    endpoint: str

    @property
    def free_stake(self) -> Wei:
        return Wei(self.stake - self.locked)


@dataclass(frozen=True, slots=True)
class Tranche:
    """Stake on its way out: `amount` may be withdrawn at `matures_at` (unix s)."""

    amount: Wei
    matures_at: int


@dataclass(frozen=True, slots=True)
class Admission:
    """The requester's word that a node holds the keys of the shards in the bit set. Empty for a public task."""

    shards: int
    deadline: int
    signature: bytes

    def to_abi(self) -> tuple[int, int, bytes]:
        return (self.shards, self.deadline, self.signature)


NO_ADMISSION = Admission(0, 0, b"")


@dataclass(frozen=True, slots=True)
class Reveal:
    """The opening of a commitment."""

    checkpoints_root: bytes
    final_state_root: bytes
    proof: tuple[bytes, ...]
    salt: bytes

    def to_abi(self) -> tuple[bytes, bytes, list[bytes], bytes]:
        return (self.checkpoints_root, self.final_state_root, list(self.proof), self.salt)


@dataclass(frozen=True, slots=True)
class Permit:
    """A signed ERC-2612 allowance, as the `...WithPermit` functions take it."""

    deadline: int
    v: int
    r: bytes
    s: bytes

    def to_abi(self) -> tuple[int, int, bytes, bytes]:
        return (self.deadline, self.v, self.r, self.s)


@dataclass(frozen=True, slots=True)
class Block:
    """A block header, as far as anybody here needs it. `timestamp` in unix seconds."""

    number: int
    hash: bytes
    timestamp: int
    base_fee_wei: Wei
