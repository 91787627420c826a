"""Before the first tick: the node exists, is staked, and its record names the keys that this process holds.

With the owner's key at hand and `auto_register` on, what is missing is done; otherwise the error says exactly what
the owner must do. On a local chain the faucet gives tokens and the owner lends the operator its first gas money.
"""

from __future__ import annotations

import threading
from pathlib import Path

import structlog
from eth_account.signers.local import LocalAccount

from node.config import LOCAL_CHAIN_ID
from node.context import NodeContext
from proofs.hashing import tag
from protocol import signatures, transactions
from protocol.amounts import show_avn
from protocol.errors import FundsError, StateError
from protocol.fees import SendPolicy
from protocol.sender import Sender
from protocol.types import NodeId, NodeRecord, Wei

AUTHORISATION_TTL_S = 3600
CAPABILITIES_HASH = tag("avenue.capabilities.exact.v1")
"""What this build can run: exact programs, first version."""
MAX_DRIPS = 10
AGENT_ROLE = "compute"
"""The name of the lock that a running agent holds (protocol/locks.py)."""

log = structlog.get_logger(__name__)


def drain_marker(context: NodeContext) -> Path:
    """While this file exists the agent takes nothing new; it removes it when it has finished what was in flight."""
    return context.data_dir / "compute" / "drain"


def ensure_node(context: NodeContext, stop: threading.Event | None = None) -> NodeId:
    """The node that this operator key serves, registered and staked.

    Raises StateError S-41 (not registered) or FundsError F-11 (below the minimum stake) with what the owner must do,
    FundsError F-01 and F-10 if gas money or tokens are missing.
    """
    node = context.client.node_of(context.account.address)
    if node is None:
        node = _register(context, stop)
    record = context.client.node(node)
    if record.encryption_key != context.encryption_key.public:
        _update_keys(context, record, stop)
    minimum = context.client.constants.min_stake
    if record.stake < minimum and not record.leaving:
        _stake(context, record, Wei(max(minimum, context.config.compute.stake_wei) - record.stake), stop)
    return node


def _sender(context: NodeContext, account: LocalAccount, stop: threading.Event | None) -> Sender:
    policy = SendPolicy(fee_cap_wei=context.config.fees.max_fee_wei)
    return Sender(context.client, account, context.journal, policy, stop=stop)


def _owner(context: NodeContext, missing: str, code: str, error: type[StateError | FundsError]) -> LocalAccount:
    owner = context.owner_account
    if owner is not None and context.config.compute.auto_register:
        return owner
    why = "compute.auto_register is off" if owner is not None else "its key is not in this keystore"
    raise error(
        f"{missing}, and this process may not act for the owner: {why}",
        code=code,
        hint=f"as the owner: register operator {context.account.address} with encryption key"
        f" 0x{context.encryption_key.public.hex()} and stake {show_avn(Wei(context.config.compute.stake_wei))}"
        " (`avenue init` with the owner's key at hand does both)",
    )


def _register(context: NodeContext, stop: threading.Event | None) -> NodeId:
    operator, client, deployment = context.account, context.client, context.deployment
    owner = _owner(context, f"operator {operator.address} serves no node", "S-41", StateError)
    _lend_gas_money(context, owner, stop)
    deadline = client.latest_block().timestamp + AUTHORISATION_TTL_S
    nonce = client.operator_nonce(operator.address)
    proof = signatures.sign_operator_authorization(operator, deployment, owner.address, nonce, deadline)
    call = transactions.register(
        deployment,
        operator.address,
        context.encryption_key.public,
        context.config.compute.endpoint,
        CAPABILITIES_HASH,
        deadline,
        proof,
    )
    outcome = _sender(context, owner, stop).send(call)
    client.at_least_block(outcome.block)
    node = client.node_of(operator.address)
    if node is None:
        raise StateError("the registration was mined, yet the node is not there", code="S-41", hint="start again")
    log.info("registered", node=node, owner=owner.address, operator=operator.address)
    return node


def _update_keys(context: NodeContext, record: NodeRecord, stop: threading.Event | None) -> None:
    """The operator may do this itself. Keys wrapped to the old key are lost; requesters wrap to the new one."""
    call = transactions.update_node(
        context.deployment, record.node, context.encryption_key.public, record.endpoint, record.capabilities_hash
    )
    _sender(context, context.account, stop).send(call)
    log.info("encryption key updated", node=record.node)


def _stake(context: NodeContext, record: NodeRecord, amount: Wei, stop: threading.Event | None) -> None:
    client, deployment = context.client, context.deployment
    owner = _owner(context, f"node {record.node} has {show_avn(record.stake)} at stake", "F-11", FundsError)
    _find_tokens(context, owner, amount, stop)
    permit = signatures.sign_permit(
        owner,
        deployment,
        deployment.registry,
        amount,
        client.permit_nonce(owner.address),
        client.latest_block().timestamp + AUTHORISATION_TTL_S,
    )
    outcome = _sender(context, owner, stop).send(
        transactions.stake_with_permit(deployment, record.node, amount, permit)
    )
    client.at_least_block(outcome.block)
    log.info("staked", node=record.node, amount=show_avn(amount))


def _find_tokens(context: NodeContext, owner: LocalAccount, amount: Wei, stop: threading.Event | None) -> None:
    """On a local chain, from the faucet. Raises FundsError F-10 if the owner has less than `amount`."""
    client = context.client
    sender = _sender(context, owner, stop)
    for _ in range(MAX_DRIPS):
        if client.token_balance(owner.address) >= amount:
            return
        if context.network.chain_id != LOCAL_CHAIN_ID or context.deployment.faucet is None:
            break
        outcome = sender.send(transactions.drip(context.deployment, owner.address))
        client.at_least_block(outcome.block)
    have = client.token_balance(owner.address)
    if have < amount:
        raise FundsError(
            f"owner {owner.address} has {show_avn(have)} and is to stake {show_avn(amount)}",
            code="F-10",
            hint=f"send it {show_avn(Wei(amount - have))}, or lower compute.stake",
        )


def _lend_gas_money(context: NodeContext, owner: LocalAccount, stop: threading.Event | None) -> None:
    """On a local chain only: elsewhere coins move when a person says so."""
    need = context.config.compute.min_gas_balance_wei
    have = context.client.gas_balance(context.account.address)
    if context.network.chain_id != LOCAL_CHAIN_ID or have >= 2 * need or owner.address == context.account.address:
        return
    if context.client.gas_balance(owner.address) > 20 * need:
        _sender(context, owner, stop).send(transactions.transfer_gas_money(context.account.address, Wei(10 * need)))
