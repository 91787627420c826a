"""Who may say what: the standing of a message's sender, read from the chain at the moment of delivery.

| kind                                          | sender                                                               |
|-----------------------------------------------|----------------------------------------------------------------------|
| admission.request, unit.progress, unit.result | the operator of the very node that the payload names
| | admission.grant, unit.acceptance              | the requester of the task
| | key.grant                                     | the requester of the task, or the operator of a registered node
| | blob.announce with a task                     | the same
| | blob.announce without a task                  | the operator of a registered node, or a holder of enough tokens
|
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.messages import (
    AdmissionGrant,
    AdmissionRequest,
    BlobAnnounce,
    KeyGrant,
    Payload,
    SignedMessage,
    UnitAcceptance,
    UnitProgress,
    UnitResult,
)
from protocol.types import ZERO32


@dataclass(frozen=True, slots=True)
class Roll:
    """What standing is read from. Addresses are EIP-55."""

    node_of: Callable[[str], int | None]
    """Node whose operator the address is; None if it serves none."""
    requester_of: Callable[[bytes], str | None]
    """Who posted the task; None if nobody did."""
    balance_of: Callable[[str], int]
    """Tokens of the address, wei."""
    upload_min_balance_wei: int


def has_standing(roll: Roll, message: SignedMessage, payload: Payload) -> bool:
    """Whether the sender may send this. Raises what the chain reads raise (UnreachableError) when the chain is not
    there."""
    match payload:
        case AdmissionRequest(node=node) | UnitProgress(node=node) | UnitResult(node=node):
            return roll.node_of(message.sender) == node and roll.requester_of(message.task) is not None
        case AdmissionGrant() | UnitAcceptance():
            return roll.requester_of(message.task) == message.sender
        case BlobAnnounce() if message.task == ZERO32:
            return (
                roll.balance_of(message.sender) >= roll.upload_min_balance_wei
                or roll.node_of(message.sender) is not None
            )
        case BlobAnnounce() | KeyGrant():
            requester = roll.requester_of(message.task)
            return requester == message.sender or (requester is not None and roll.node_of(message.sender) is not None)
        case _:
            return False
