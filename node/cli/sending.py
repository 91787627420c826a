"""Before anything is sent: what, where to, what it may cost, who pays. Then yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from node.cli.invocation import Invocation
from node.cli.output import Fields

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

    from node.context import NodeContext
    from protocol.sender import TxOutcome
    from protocol.transactions import Call


def confirm_calls(
    call: Invocation, context: NodeContext, account: LocalAccount, calls: Sequence[Call], actions: Sequence[str] = ()
) -> None:
    """Shows `calls` and asks, unless --yes. The first is simulated, so that one bound to fail is never agreed to.

    `actions`: what each does, where its description does not say it all.

    Raises what Sender.simulate raises; UsageError U-02 or U-03.
    """
    gas = context.sender_for(account).simulate(calls[0])
    balance = context.client.gas_balance(account.address)
    price = context.client.latest_block().base_fee_wei
    rows = [("action", action) for action in actions or [each.description for each in calls]]
    rows += [
        ("network", f"{context.config.network} (chain {context.network.chain_id})"),
        ("contract", calls[0].to),
        ("from", account.address),
        ("gas", f"about {gas} in the first transaction, {show_gas_money(gas * price)} at the present base fee"),
        ("fee cap", f"{context.config.fees.max_fee_gwei} gwei"),
        ("gas money", show_gas_money(balance)),
    ]
    call.out.confirm(Fields("about to send", rows), "send it?", yes=call.yes)


def show_gas_money(wei: int) -> str:
    """Coins for people: six decimals, and never 0 for what is not nothing."""
    return "less than 0.000001 ETH" if 0 < wei < 10**12 else f"{wei / 10**18:.6f} ETH"


def outcome_document(outcome: TxOutcome) -> dict[str, Any]:
    """A mined transaction, for JSON."""
    return {
        "hash": "0x" + outcome.hash.hex(),
        "block": outcome.block,
        "gas_used": outcome.gas_used,
        "cost_wei": str(outcome.cost_wei),
    }
