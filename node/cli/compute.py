"""avenue compute: run a compute node, see what it does and earns, take it out of service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.chain_view import hex_id
from node.cli.compute_view import decide_now, earnings_blocks, earnings_document, status_blocks, status_document
from node.cli.doctor import failure
from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Block, Fields, Table
from node.cli.sending import confirm_calls, outcome_document
from node.cli.signals import stop_on_signals
from protocol.errors import FundsError, UsageError

if TYPE_CHECKING:
    from node.compute.account import Step
    from node.context import NodeContext

app = typer.Typer(help="Run a compute node.", no_args_is_help=True, rich_markup_mode=None)

_AS_NODE = Needs.NETWORK | Needs.KEYS
_AS_NODE_SENDS = _AS_NODE | Needs.SENDS


@command(app, "start", needs=_AS_NODE)
def start(
    call: Invocation,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the tensor kernels.", min=1)] = None,
    no_checks: Annotated[bool, typer.Option("--no-checks", help="Start without the doctor's checks.")] = False,
) -> int:
    """Check this machine, register and stake if need be, then find work, train, commit and be paid. Stops on Ctrl+C."""
    from node.config import Role
    from node.doctor import Status, examine

    call = call.with_flags({"compute.threads": threads})
    with call.context(Role.COMPUTE, agent=True) as context, stop_on_signals(call.out) as request:
        account = context.account  # a wrong password is said before anything else
        if not no_checks:
            findings = list(examine(context))
            for finding in findings:
                if finding.status is Status.WARNING:
                    call.out.note(f"{finding.name}: {finding.detail}" + (f" ({finding.hint})" if finding.hint else ""))
            if any(finding.status is Status.FAILED for finding in findings):
                raise failure(findings)

        from node.compute.agent import ComputeAgent

        call.out.note(f"compute node {account.address} on {context.config.network}; Ctrl+C stops it")
        ComputeAgent(context).run(request.event)
        call.out.emit(
            {"operator": account.address, "stopped": True, "interrupted": request.event.is_set()},
            Fields("stopped", [("operator", account.address)]),
        )
        return request.exit_code


@command(app, "status", needs=_AS_NODE)
def status(call: Invocation) -> None:
    """Show stake, money, units in hand, and what is at risk."""
    from node.config import Role

    with call.context(Role.COMPUTE) as context:
        from node.compute.account import status as read_status

        found = read_status(context)
        call.out.emit(status_document(found), *status_blocks(found))


@command(app, "earnings", needs=_AS_NODE)
def earnings(call: Invocation) -> None:
    """Show what the node earned and lost, per task and unit."""
    from node.config import Role

    with call.context(Role.COMPUTE) as context:
        from node.compute.account import earnings as read_earnings

        found = read_earnings(context)
        call.out.emit(earnings_document(found), *earnings_blocks(found))


@command(app, "tasks", needs=_AS_NODE)
def tasks(
    call: Invocation,
    explain: Annotated[bool, typer.Option("--explain", help="Also what is left alone, and why.")] = False,
) -> None:
    """Show what the agent would do now; with --explain, what it leaves alone and why. Does nothing."""
    from node.config import Role

    with call.context(Role.COMPUTE) as context:
        decision = decide_now(context)
        actions = [f"{type(action).__name__.lower()} {_where(action)}" for action in decision.actions]
        skips = [
            {"task": hex_id(s.task), "unit": s.unit, "reason": s.reason, "have": s.have, "need": s.need}
            for s in decision.skips
        ]
        blocks: list[Block] = ["would do now:\n" + "\n".join(f"  {each}" for each in actions or ["nothing"])]
        if explain:
            columns = ("task", "unit", "reason", "have", "need")
            rows = [[str(skip[key])[:18] if key == "task" else str(skip[key]) for key in columns] for skip in skips]
            blocks.append(Table(columns, rows, "nothing is left alone"))
        call.out.emit({"actions": actions, "skips": skips}, *blocks)


@command(app, "withdraw", needs=_AS_NODE_SENDS)
def withdraw(call: Invocation) -> None:
    """Send earnings and matured stake to the owner, tips to the operator."""
    from node.config import Role

    with call.context(Role.COMPUTE) as context:
        from node.compute.account import plan_stake_withdrawal, plan_withdrawal

        steps = plan_withdrawal(context)
        if context.owner_account is not None:
            steps += plan_stake_withdrawal(context)
        _send(call, context, steps, nothing="nothing to withdraw")


@command(app, "stake", needs=_AS_NODE_SENDS)
def stake(call: Invocation, amount: Annotated[str, typer.Argument(help="AVN to add, such as 250.5.")]) -> None:
    """Add stake to the node, from the owner's tokens (the operator's if the owner's key is not here)."""
    from node.config import Role
    from protocol import transactions
    from protocol.amounts import parse_avn, show_avn

    wei = parse_avn(amount)
    with call.context(Role.COMPUTE) as context:
        from node.compute.account import Step, node_of

        node, deployment, payer = node_of(context), context.deployment, context.owner_account or context.account
        have = context.client.token_balance(payer.address)
        if wei == 0:
            raise UsageError("nothing to stake: 0 AVN", code="U-20", hint="give a positive amount")
        if have < wei:
            said = f"{payer.address} has {show_avn(have)}, {show_avn(wei)} asked"
            raise FundsError(said, code="F-13", hint="choose another amount, or send tokens there")
        allow = transactions.approve(deployment, deployment.registry, wei)
        call_ = transactions.stake(deployment, node, wei)
        owner = context.client.node(node).owner
        _send(call, context, (Step(payer, allow, wei, deployment.registry), Step(payer, call_, wei, owner)))


@command(app, "unstake", needs=_AS_NODE_SENDS)
def unstake(
    call: Invocation,
    amount: Annotated[str | None, typer.Argument(help="AVN; without it, all that is free.")] = None,
) -> None:
    """Start to unbond stake. It stays slashable until it is withdrawn, after the unbonding time."""
    from node.config import Role
    from protocol.amounts import parse_avn

    wei = parse_avn(amount) if amount is not None else None
    with call.context(Role.COMPUTE) as context:
        from node.compute.account import plan_unbonding

        _send(call, context, plan_unbonding(context, wei))


@command(app, "drain", needs=_AS_NODE)
def drain(
    call: Invocation, undo: Annotated[bool, typer.Option("--undo", help="Take new units again.")] = False
) -> None:
    """Let the node take nothing new, finish what is in flight, and end."""
    from node.config import Role

    with call.context(Role.COMPUTE) as context:
        from node.compute import account

        if undo:
            account.undrain(context)
            call.out.emit({"draining": False}, "the node takes units again")
            return
        running = account.drain(context)
        agent = "the running agent" if running else "no agent runs; the next start"
        said = f"draining: {agent} takes nothing new, finishes what is in flight, and ends"
        call.out.emit({"draining": True, "running": running}, said)


def _send(call: Invocation, context: NodeContext, steps: tuple[Step, ...], nothing: str = "nothing to do") -> None:
    """Shows the steps, asks, sends them. No steps is no error."""
    if not steps:
        call.out.emit({"transactions": []}, nothing)
        return
    from node.compute.account import send

    actions = [_action(step) for step in steps]
    confirm_calls(call, context, steps[0].signer, [step.call for step in steps], actions)
    outcomes = send(context, steps)
    document = [
        {"action": step.call.description, "amount_wei": str(step.amount), "to": step.to} | outcome_document(outcome)
        for step, outcome in zip(steps, outcomes, strict=True)
    ]
    rows = [(action, "0x" + outcome.hash.hex()) for action, outcome in zip(actions, outcomes, strict=True)]
    call.out.emit({"transactions": document}, Fields("done", rows))


def _action(step: Step) -> str:
    """What a step does and how much it moves."""
    from protocol.amounts import show_avn

    amount, said = show_avn(step.amount), step.call.description
    return said if amount in said else f"{said}: {amount}"


def _where(action: Any) -> str:
    """Task and unit of an action, as far as it has them."""
    key = getattr(action, "key", action)
    task, unit = getattr(key, "task", None), getattr(key, "unit", None)
    return " ".join([hex_id(task)[:18] if task is not None else "", f"unit {unit}" if unit is not None else ""]).strip()
