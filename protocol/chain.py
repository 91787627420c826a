"""Reads of the chain, typed: what the contracts answer, as the models of `protocol.types`.

A `ChainClient` reads at the latest block, or, after `client.at(number)`, everything at that one block, so that an
agent's view of the chain is of one moment. Nothing is cached but what can never change. Batches go out as one HTTP
request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from eth_utils.address import to_checksum_address
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import BlockNotFound, Web3Exception
from web3.providers.base import JSONBaseProvider
from web3.types import RPCEndpoint, TxParams

from protocol.abi import artifact
from protocol.deployments import Deployment
from protocol.errors import ConfigError, LaggingRpcError, StateError
from protocol.reverts import RevertedError, explain
from protocol.types import (
    Block,
    NodeId,
    NodeRecord,
    TaskId,
    TaskSpec,
    TaskState,
    TaskStatus,
    Tranche,
    Unit,
    UnitStatus,
    Wei,
)

_CONTRACTS = {"token": "AvenueToken", "faucet": "Faucet", "registry": "NodeRegistry", "market": "TaskMarket"}
# How many calls go into one batch: public endpoints commonly refuse more than 100.
_BATCH = 50
_CATCH_UP_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Constants:
    """What the contracts were deployed with. Amounts in wei, times in seconds, shares in basis points."""

    min_stake: Wei
    unbonding_s: int
    max_tranches: int
    compensation_bps: int
    tip_bps: int


@dataclass(frozen=True, slots=True)
class FaucetState:
    """What the faucet gives, how often, and what it has left."""

    amount: Wei
    cooldown_s: int
    balance: Wei


@dataclass(frozen=True, slots=True)
class Read:
    """One call of a view function: `on` is "token", "faucet", "registry" or "market"."""

    on: str
    function: str
    args: tuple[Any, ...] = ()


class ChainClient:
    """Typed reads over one deployment. Safe to use from several threads.

    Every method raises `UnreachableError` or `LaggingRpcError` if the chain can't be read, `RevertedError` if a view
    function reverts, and `ConfigError` C-33 if there is no contract at a deployment's address.
    """

    def __init__(self, w3: Web3, deployment: Deployment | None = None, *, block: int | None = None) -> None:
        self.w3 = w3
        self._deployment = deployment
        self._block = block

    @property
    def deployment(self) -> Deployment:
        """Raises `ConfigError` C-30 if this client was made without one (before deploying)."""
        if self._deployment is None:
            raise ConfigError("no deployment is loaded", code="C-30", hint="deploy first with `avenue deploy`")
        return self._deployment

    def at(self, block: int) -> ChainClient:
        """The same client, reading everything at one block."""
        pinned = ChainClient(self.w3, self._deployment, block=block)
        pinned.__dict__.update(
            {name: self.__dict__[name] for name in ("chain_id", "chain_key") if name in self.__dict__}
        )
        return pinned

    # --- the chain itself ---

    @cached_property
    def chain_id(self) -> int:
        return int(self.w3.eth.chain_id)

    @cached_property
    def chain_key(self) -> str:
        """Names this very chain: chain id and genesis hash. Two runs of a local chain differ, though both are 31337."""
        return f"{self.chain_id}:{self.block(0).hash.hex()[:16]}"

    def latest_block(self) -> Block:
        """The newest block, or the pinned one."""
        return self.block("latest" if self._block is None else self._block)

    def block(self, which: int | str | bytes) -> Block:
        """A header by number, hash or tag. Raises `StateError` S-11 if the endpoint has no such block."""
        try:
            header = self.w3.eth.get_block(cast(Any, which))
        except BlockNotFound as error:
            shown = f"0x{which.hex()}" if isinstance(which, bytes) else which
            raise StateError(f"no block {shown}", code="S-11", hint="the chain may have been reorganised") from error
        return Block(
            int(header["number"]),
            bytes(header["hash"]),
            int(header["timestamp"]),
            Wei(int(header.get("baseFeePerGas", 0))),
        )

    def at_least_block(self, number: int, timeout_s: float = 10.0) -> Block:
        """Waits until the endpoint has block `number`; returns its newest block.

        For reading what one knows has happened. Raises `LaggingRpcError` if the endpoint is behind after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while (head := self.block("latest")).number < number:
            if time.monotonic() > deadline:
                raise LaggingRpcError(f"the RPC endpoint is at block {head.number}, block {number} is known to exist")
            time.sleep(_CATCH_UP_POLL_S)
        return head

    def gas_balance(self, address: str) -> Wei:
        """The chain's own coin, wei."""
        return Wei(int(self.w3.eth.get_balance(to_checksum_address(address), self._identifier)))

    def code(self, address: str) -> bytes:
        return bytes(self.w3.eth.get_code(to_checksum_address(address), self._identifier))

    # --- any view function ---

    @property
    def _identifier(self) -> Any:
        return "latest" if self._block is None else self._block

    def read(self, on: str, function: str, *args: Any) -> Any:
        """One view call, decoded. `on` is "token", "faucet", "registry" or "market"."""
        return self._one(Read(on, function, args))

    def read_many(self, reads: Sequence[Read]) -> list[Any]:
        """Several view calls in one HTTP request (per 50), answers in order. The first revert is raised."""
        provider = cast(JSONBaseProvider, self.w3.provider)
        answers: list[Any] = []
        for start in range(0, len(reads), _BATCH):
            chunk = reads[start : start + _BATCH]
            requests = [(RPCEndpoint("eth_call"), [self._transaction(read), self._hex_block]) for read in chunk]
            responses = provider.make_batch_request(cast(Any, requests))
            if not isinstance(responses, list) or len(responses) != len(chunk):
                # Endpoints that know no batches answer with one error: ask one by one.
                answers.extend(self._one(read) for read in chunk)
                continue
            for read, response in zip(chunk, responses, strict=True):
                # A failed one is asked again alone: web3 knows the many shapes in which endpoints report a revert.
                failed = "error" in response
                answers.append(self._one(read) if failed else self._decode(read, HexBytes(str(response["result"]))))
        return answers

    @property
    def _hex_block(self) -> str:
        return "latest" if self._block is None else hex(self._block)

    def _transaction(self, read: Read) -> dict[str, str]:
        address = self.deployment.addresses.get(read.on)
        if address is None:
            raise ConfigError(f"chain {self.deployment.chain_id} has no {read.on}", code="C-32")
        data = artifact(_CONTRACTS[read.on]).function(read.function).encode(read.args)
        return {"to": address, "data": "0x" + data.hex()}

    def _one(self, read: Read) -> Any:
        try:
            answer = self.w3.eth.call(cast(TxParams, self._transaction(read)), self._identifier)
        except Web3Exception as error:
            raise explain(error, f"reading {read.on}.{read.function}") from error
        return self._decode(read, bytes(answer))

    def _decode(self, read: Read, data: bytes) -> Any:
        function = artifact(_CONTRACTS[read.on]).function(read.function)
        if not data and function.outputs:
            raise ConfigError(
                f"no contract at {self.deployment.addresses[read.on]} on chain {self.deployment.chain_id}",
                code="C-33",
                hint="the deployment record is of another chain, or the local chain was restarted: `avenue deploy`",
            )
        return function.decode(data)

    # --- tasks and units ---

    def task(self, task: TaskId) -> TaskState:
        """Status NONE if it was never posted."""
        return _task(self.read("market", "getTask", task))

    def tasks(self, tasks: Iterable[TaskId]) -> list[TaskState]:
        return [_task(answer) for answer in self.read_many([Read("market", "getTask", (task,)) for task in tasks])]

    def unit(self, task: TaskId, unit: int) -> Unit:
        return _unit(self.read("market", "getUnit", task, unit))

    def units(self, task: TaskId, units: Iterable[int]) -> list[Unit]:
        return [_unit(answer) for answer in self.read_many([Read("market", "getUnit", (task, i)) for i in units])]

    def round(self, spec: TaskSpec, round_: int) -> tuple[Unit, ...]:
        """Every unit of a round: training units by shard, the aggregation unit (if any) last."""
        return tuple(_unit(answer) for answer in self.read("market", "getRound", spec.to_abi(), round_))

    def rounds(self, spec: TaskSpec, rounds: Iterable[int]) -> list[tuple[Unit, ...]]:
        reads = [Read("market", "getRound", (spec.to_abi(), round_)) for round_ in rounds]
        return [tuple(_unit(unit) for unit in answer) for answer in self.read_many(reads)]

    def input_state_root(self, spec: TaskSpec, round_: int) -> bytes:
        """State root that `round_` starts from, 32 zero bytes while unknown; at `spec.rounds`, the trained model's."""
        return cast(bytes, self.read("market", "inputStateRoot", spec.to_abi(), round_))

    def result_root_of(self, spec: TaskSpec, unit: int, node: NodeId, checkpoints_root: bytes) -> bytes:
        """The result root that `node` would have to commit to."""
        return cast(bytes, self.read("market", "resultRootOf", spec.to_abi(), unit, node, checkpoints_root))

    def market_credit(self, payee: str) -> Wei:
        """Earnings and refunds that `withdraw` would send, wei."""
        return Wei(self.read("market", "credit", to_checksum_address(payee)))

    # --- nodes ---

    def node(self, node: NodeId) -> NodeRecord:
        """Raises `StateError` S-10 if no such node was ever registered."""
        try:
            return _node(node, self.read("registry", "getNode", node))
        except RevertedError as error:
            if error.error_name != "UnknownNode":
                raise
            raise StateError(
                f"there is no node {node}", code="S-10", hint="`avenue compute status` shows yours"
            ) from error

    def nodes(self, nodes: Iterable[NodeId]) -> list[NodeRecord]:
        """Records of nodes that exist. An unknown id reverts the whole read (`RevertedError`)."""
        wanted = list(nodes)
        answers = self.read_many([Read("registry", "getNode", (node,)) for node in wanted])
        return [_node(node, answer) for node, answer in zip(wanted, answers, strict=True)]

    def node_of(self, operator: str) -> NodeId | None:
        """The node that this operator key serves, None if it serves none."""
        node = int(self.read("registry", "nodeOf", to_checksum_address(operator)))
        return NodeId(node) if node else None

    def node_count(self) -> int:
        """Ids run from 1 to this number."""
        return int(self.read("registry", "nodeCount"))

    def is_active(self, node: NodeId) -> bool:
        return bool(self.read("registry", "isActive", node))

    def tranches(self, node: NodeId) -> tuple[Tranche, ...]:
        return tuple(Tranche(Wei(amount), matures) for amount, matures in self.read("registry", "tranches", node))

    def registry_credit(self, payee: str) -> Wei:
        """Shares of slashed stake that `collect` would send, wei."""
        return Wei(self.read("registry", "credit", to_checksum_address(payee)))

    def operator_nonce(self, operator: str) -> int:
        """Nonce of the operator's next `OperatorAuthorization`."""
        return int(self.read("registry", "nonces", to_checksum_address(operator)))

    # --- tokens ---

    def token_balance(self, address: str) -> Wei:
        return Wei(self.read("token", "balanceOf", to_checksum_address(address)))

    def allowance(self, owner: str, spender: str) -> Wei:
        return Wei(self.read("token", "allowance", to_checksum_address(owner), to_checksum_address(spender)))

    def permit_nonce(self, owner: str) -> int:
        return int(self.read("token", "nonces", to_checksum_address(owner)))

    def faucet(self) -> FaucetState | None:
        """None where there is no faucet."""
        address = self.deployment.faucet
        if address is None:
            return None
        amount, cooldown_s, balance = self.read_many(
            [Read("faucet", "AMOUNT"), Read("faucet", "COOLDOWN_S"), Read("token", "balanceOf", (address,))]
        )
        return FaucetState(Wei(amount), cooldown_s, Wei(balance))

    def next_drip_at(self, address: str) -> int:
        """When the faucet serves `address` again, unix s; 0 if it never did."""
        return int(self.read("faucet", "nextDripAt", to_checksum_address(address)))

    @cached_property
    def constants(self) -> Constants:
        """Parameters that the contracts can never change."""
        stake, unbonding_s, tranches, compensation, tip = self.read_many(
            [
                Read("registry", "MIN_STAKE"),
                Read("registry", "UNBONDING_S"),
                Read("registry", "MAX_TRANCHES"),
                Read("market", "COMPENSATION_BPS"),
                Read("market", "TIP_BPS"),
            ]
        )
        return Constants(Wei(stake), unbonding_s, tranches, compensation, tip)


def _task(values: Any) -> TaskState:
    escrow, in_flight, finalised, status = values
    return TaskState(Wei(escrow), in_flight, finalised, TaskStatus(status))


def _unit(values: Any) -> Unit:
    node, status, *rest = values
    return Unit(NodeId(node), UnitStatus(status), *rest)


def _node(node: NodeId, values: Any) -> NodeRecord:
    owner, operator, registered_at, leaving, stake, locked, encryption_key, capabilities_hash, endpoint = values
    return NodeRecord(
        node=node,
        owner=owner,
        operator=operator,
        registered_at=registered_at,
        leaving=leaving,
        stake=Wei(stake),
        locked=Wei(locked),
        encryption_key=encryption_key,
        capabilities_hash=capabilities_hash,
        endpoint=endpoint,
    )
