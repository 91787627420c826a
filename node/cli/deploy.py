"""avenue deploy: the contracts onto the configured chain. Run again after anything at all, it carries on."""

from __future__ import annotations

from typing import Any

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, Table


def add_to(app: typer.Typer) -> None:
    command(app, "deploy", needs=Needs.NETWORK | Needs.KEYS | Needs.SENDS)(deploy)


def deploy(call: Invocation) -> None:
    """Deploy the contracts and check them. Idempotent.

    Addresses follow from code and arguments (CREATE2): a run that was killed is taken up where it stopped.
    """
    from node.config import Role
    from protocol import deployments
    from protocol.chain import ChainClient
    from protocol.deploy import deploy as deploy_by_plan
    from protocol.deploy import network_class, read_plan, resolve_plan
    from protocol.sender import Sender

    with call.context(Role.DEPLOYER) as context:
        client = ChainClient(context.w3)
        account = context.account
        document = read_plan()
        plan = resolve_plan(document, client.chain_id, account.address)
        there = {contract.name: bool(client.code(contract.address)) for contract in plan.contracts}
        kind = network_class(document, client.chain_id)
        state = {True: "there already", False: "to be created"}
        rows = [
            ("network", f"{context.config.network} (chain {client.chain_id}, {kind})"),
            ("deployer", account.address),
            ("gas money", f"{client.gas_balance(account.address) / 10**18:.6f} ETH"),
            ("fee cap", f"{context.config.fees.max_fee_gwei} gwei"),
        ]
        rows += [(each.artifact, f"{each.address}, {state[there[each.name]]}") for each in plan.contracts]
        record = deployments.path_in(context.deployments_dir, client.chain_id)
        finished = all(there.values()) and record.exists()
        if not finished:
            call.out.confirm(Fields("about to deploy", rows), "deploy?", yes=call.yes)
        sender = Sender(client, account, context.journal, context.send_policy)
        deployment = deploy_by_plan(client, sender, context.deployments_dir, progress=call.out.note)
        shipped = deployments.save_in_checkout(deployment)
        result: dict[str, Any] = {
            "network": context.config.network,
            "chain_id": deployment.chain_id,
            "block": deployment.block,
            "contracts": dict(deployment.addresses),
            "record": str(record),
            "shipped_record": None if shipped is None else str(shipped),
            "already_deployed": finished,
        }
        call.out.emit(
            result,
            Table(("contract", "address"), list(deployment.addresses.items())),
            f"record: {record}" + ("" if shipped is None else f"\nto commit: {shipped}"),
        )
