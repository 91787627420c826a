"""What a person or an agent sends: one builder per contract function, each giving a `Call`.

A `Call` is inert data: where to, which function, which arguments, how much gas money goes with it, and the sentence to
show before anybody signs. `protocol.sender.Sender` sends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from protocol.abi import artifact
from protocol.amounts import show_avn
from protocol.deployments import Deployment
from protocol.errors import ConfigError
from protocol.types import NO_ADMISSION, Admission, NodeId, Permit, Reveal, TaskId, TaskSpec, Wei


@dataclass(frozen=True, slots=True)
class Call:
    """A transaction to be: `data` is the whole calldata, `value` is gas money that goes with it (wei)."""

    to: ChecksumAddress
    data: bytes
    description: str
    contract: str = ""
    function: str = ""
    args: tuple[Any, ...] = ()
    value: int = 0

    @property
    def kind(self) -> str:
        """Short name for journals and logs, such as `TaskMarket.claim`."""
        return f"{self.contract}.{self.function}" if self.contract else "raw"


def call(to: ChecksumAddress, contract: str, function: str, *args: Any, description: str) -> Call:
    """A call of any function of any of our contracts, encoded.

    Raises `ConfigError` for a function that the contract lacks, eth-abi's `EncodingError` for arguments that don't fit.
    """
    return Call(to, artifact(contract).function(function).encode(args), description, contract, function, args)


def transfer_gas_money(to: ChecksumAddress, value: Wei) -> Call:
    """Sends the chain's own coin, `value` wei of it."""
    return Call(to, b"", f"send {value} wei of gas money to {to}", value=value)


# --- tokens ---


def approve(deployment: Deployment, spender: ChecksumAddress, amount: Wei) -> Call:
    """Lets `spender` take up to `amount` of the caller's tokens."""
    description = f"allow {spender} to take {show_avn(amount)}"
    return call(deployment.token, "AvenueToken", "approve", spender, amount, description=description)


def transfer(deployment: Deployment, to: ChecksumAddress, amount: Wei) -> Call:
    description = f"send {show_avn(amount)} to {to}"
    return call(deployment.token, "AvenueToken", "transfer", to, amount, description=description)


def drip(deployment: Deployment, to: ChecksumAddress) -> Call:
    """Test tokens for `to`. Raises `ConfigError` C-32 where there is no faucet."""
    if deployment.faucet is None:
        raise ConfigError(
            f"chain {deployment.chain_id} has no faucet",
            code="C-32",
            hint="faucets exist on test networks only; buy or receive AVN instead",
        )
    return call(deployment.faucet, "Faucet", "drip", to, description=f"ask the faucet to give tokens to {to}")


# --- nodes and stake (NodeRegistry) ---


def _registry(deployment: Deployment, function: str, *args: Any, description: str) -> Call:
    return call(deployment.registry, "NodeRegistry", function, *args, description=description)


def register(
    deployment: Deployment,
    operator: ChecksumAddress,
    encryption_key: bytes,
    endpoint: str,
    capabilities_hash: bytes,
    deadline: int,
    operator_signature: bytes,
) -> Call:
    """Registers a node owned by the caller. `operator_signature`: `signatures.sign_operator_authorization`."""
    return _registry(
        deployment,
        "register",
        operator,
        encryption_key,
        endpoint,
        capabilities_hash,
        deadline,
        operator_signature,
        description=f"register a node with operator {operator}",
    )


def update_node(
    deployment: Deployment, node: NodeId, encryption_key: bytes, endpoint: str, capabilities_hash: bytes
) -> Call:
    return _registry(
        deployment,
        "update",
        node,
        encryption_key,
        endpoint,
        capabilities_hash,
        description=f"update node {node}: endpoint {endpoint or 'none'}",
    )


def rotate_operator(
    deployment: Deployment, node: NodeId, new_operator: ChecksumAddress, deadline: int, operator_signature: bytes
) -> Call:
    return _registry(
        deployment,
        "rotateOperator",
        node,
        new_operator,
        deadline,
        operator_signature,
        description=f"make {new_operator} the operator of node {node}",
    )


def stake(deployment: Deployment, node: NodeId, amount: Wei) -> Call:
    """Needs an allowance for the registry of at least `amount`."""
    return _registry(deployment, "stake", node, amount, description=f"stake {show_avn(amount)} for node {node}")


def stake_with_permit(deployment: Deployment, node: NodeId, amount: Wei, permit: Permit) -> Call:
    return _registry(
        deployment,
        "stakeWithPermit",
        node,
        amount,
        *permit.to_abi(),
        description=f"stake {show_avn(amount)} for node {node}",
    )


def request_unbond(deployment: Deployment, node: NodeId, amount: Wei) -> Call:
    return _registry(
        deployment, "requestUnbond", node, amount, description=f"start unbonding {show_avn(amount)} of node {node}"
    )


def withdraw_stake(deployment: Deployment, node: NodeId) -> Call:
    """Sends every matured tranche to the node's owner."""
    return _registry(deployment, "withdraw", node, description=f"withdraw the matured stake of node {node}")


def deregister(deployment: Deployment, node: NodeId) -> Call:
    return _registry(deployment, "deregister", node, description=f"deregister node {node} and unbond all its stake")


def collect(deployment: Deployment) -> Call:
    """Collects the caller's shares of slashed stake."""
    return _registry(deployment, "collect", description="collect shares of slashed stake")


# --- tasks and units (TaskMarket) ---


def _market(deployment: Deployment, function: str, *args: Any, description: str) -> Call:
    return call(deployment.market, "TaskMarket", function, *args, description=description)


def _name(task: TaskId) -> str:
    return f"0x{task.hex()[:8]}"


def post(deployment: Deployment, spec: TaskSpec) -> Call:
    """Needs an allowance for the market of at least `spec.escrow`: send `approve_escrow` first."""
    return _market(
        deployment,
        "post",
        spec.to_abi(),
        description=f"post task {_name(spec.task_id)}: {spec.units} units, escrow {show_avn(spec.escrow)}",
    )


def approve_escrow(deployment: Deployment, spec: TaskSpec) -> Call:
    """Lets the market take the escrow of `spec`."""
    return approve(deployment, deployment.market, spec.escrow)


def post_with_permit(deployment: Deployment, spec: TaskSpec, permit: Permit) -> Call:
    """Posting and allowance in one transaction."""
    return _market(
        deployment,
        "postWithPermit",
        spec.to_abi(),
        *permit.to_abi(),
        description=f"post task {_name(spec.task_id)}: {spec.units} units, escrow {show_avn(spec.escrow)}",
    )


def cancel(deployment: Deployment, spec: TaskSpec) -> Call:
    return _market(deployment, "cancel", spec.to_abi(), description=f"cancel task {_name(spec.task_id)}")


def close(deployment: Deployment, spec: TaskSpec) -> Call:
    return _market(deployment, "close", spec.to_abi(), description=f"close task {_name(spec.task_id)}")


def claim(deployment: Deployment, spec: TaskSpec, unit: int, admission: Admission = NO_ADMISSION) -> Call:
    return _market(
        deployment,
        "claim",
        spec.to_abi(),
        unit,
        admission.to_abi(),
        description=f"claim unit {unit} of task {_name(spec.task_id)}, collateral {show_avn(spec.collateral)}",
    )


def commit(deployment: Deployment, task: TaskId, unit: int, commitment: bytes) -> Call:
    return _market(
        deployment, "commit", task, unit, commitment, description=f"commit to unit {unit} of task {_name(task)}"
    )


def reveal(deployment: Deployment, spec: TaskSpec, unit: int, opening: Reveal) -> Call:
    return _market(
        deployment,
        "reveal",
        spec.to_abi(),
        unit,
        opening.to_abi(),
        description=f"reveal unit {unit} of task {_name(spec.task_id)}",
    )


def accept(deployment: Deployment, spec: TaskSpec, unit: int, signature: bytes = b"") -> Call:
    """Finalises at once. The signature may be empty if the requester itself sends this."""
    return _market(
        deployment,
        "accept",
        spec.to_abi(),
        unit,
        signature,
        description=f"finalise unit {unit} of task {_name(spec.task_id)} with the requester's acceptance",
    )


def finalise(deployment: Deployment, spec: TaskSpec, unit: int) -> Call:
    return _market(
        deployment,
        "finalise",
        spec.to_abi(),
        unit,
        description=f"finalise unit {unit} of task {_name(spec.task_id)} after its challenge window",
    )


def expire(deployment: Deployment, spec: TaskSpec, unit: int) -> Call:
    return _market(
        deployment, "expire", spec.to_abi(), unit, description=f"re-open unit {unit} of task {_name(spec.task_id)}"
    )


def withdraw(deployment: Deployment, payee: str) -> Call:
    """Sends the payee's whole credit in the market to it."""
    return _market(deployment, "withdraw", to_checksum_address(payee), description=f"withdraw the earnings of {payee}")
