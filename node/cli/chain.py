"""avenue chain info, avenue faucet: what the chain says, and test tokens from it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, format_duration, format_time
from node.cli.sending import confirm_calls, outcome_document
from protocol.errors import UsageError

if TYPE_CHECKING:
    from eth_typing import ChecksumAddress

app = typer.Typer(help="Look at the chain.", no_args_is_help=True, rich_markup_mode=None)


@command(app, "info", needs=Needs.NETWORK)
def info(call: Invocation) -> None:
    """Show the chain's head, the contracts and the parameters that they were deployed with."""
    from protocol.amounts import format_avn, show_avn

    with call.context() as context:
        client = context.client
        head, constants, faucet = client.latest_block(), client.constants, client.faucet()
        addresses = context.deployment.addresses
        document: dict[str, Any] = {
            "network": context.config.network,
            "chain_id": client.chain_id,
            "block": head.number,
            "block_time": head.timestamp,
            "base_fee_wei": str(head.base_fee_wei),
            "contracts": dict(addresses),
            "min_stake_wei": str(constants.min_stake),
            "unbonding_s": constants.unbonding_s,
            "compensation_bps": constants.compensation_bps,
            "tip_bps": constants.tip_bps,
            "faucet": None
            if faucet is None
            else {
                "amount_wei": str(faucet.amount),
                "cooldown_s": faucet.cooldown_s,
                "balance_wei": str(faucet.balance),
            },
        }
        age = format_duration(time.time() - head.timestamp)
        rows = [
            ("chain id", str(client.chain_id)),
            ("head", f"{head.number}, {format_time(head.timestamp)}, {age} ago"),
            ("base fee", f"{format_avn(head.base_fee_wei * 10**9)} gwei"),
        ]
        rows += list(addresses.items())
        rows += [
            ("least stake", show_avn(constants.min_stake)),
            ("unbonding", format_duration(constants.unbonding_s)),
        ]
        if faucet is not None:
            cooldown = format_duration(faucet.cooldown_s)
            rows.append(("faucet", f"{format_avn(faucet.amount)} of {show_avn(faucet.balance)}, every {cooldown}"))
        call.out.emit(document, Fields(f"network {context.config.network}", rows))


def add_to(app: typer.Typer) -> None:
    command(app, "faucet", needs=Needs.NETWORK | Needs.KEYS | Needs.SENDS)(faucet)


def faucet(
    call: Invocation,
    address: Annotated[
        str | None, typer.Argument(help="Who gets the tokens; default: this home's own key, a compute node's owner.")
    ] = None,
) -> None:
    """Ask the faucet of a test network for tokens."""
    from node.config import Role
    from protocol import transactions
    from protocol.amounts import show_avn

    with call.context() as context:
        own = (context.role is Role.COMPUTE and context.owner_address) or context.address  # the owner stakes
        to = _address(address) if address else own
        drip = transactions.drip(context.deployment, to)
        confirm_calls(call, context, context.account, [drip])
        outcome = context.sender_for(context.account).send(drip)
        balance = context.client.token_balance(to)
        call.out.emit(
            {"to": to, "balance_wei": str(balance), "transaction": outcome_document(outcome)},
            Fields("tokens received", [("to", to), ("balance", show_avn(balance))]),
        )


def _address(text: str) -> ChecksumAddress:
    from eth_utils.address import is_hex_address, to_checksum_address

    if not is_hex_address(text):
        raise UsageError(f"{text!r} is no address", code="U-06", hint="give 0x and 40 hex digits")
    return to_checksum_address(text)
