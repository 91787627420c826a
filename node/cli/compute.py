"""avenue compute: run a compute node, see what it does and earns, take it out of service."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli.doctor import failure
from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields
from node.cli.signals import stop_on_signals

app = typer.Typer(help="Run a compute node.", no_args_is_help=True, rich_markup_mode=None)

_AS_NODE = Needs.NETWORK | Needs.KEYS


@command(app, "start", needs=_AS_NODE)
def start(
    call: Invocation,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the tensor kernels.", min=1)] = None,
    no_checks: Annotated[bool, typer.Option("--no-checks", help="Start without the doctor's checks.")] = False,
) -> int:
    """Check this machine, register and stake if need be, then find work, train, commit and be paid. Stops on Ctrl+C."""
    from node.cli.logs import configure_logs
    from node.config import Role
    from node.doctor import Status, examine
    from node.threads import pin_threads

    call = call.with_flags({"compute.threads": threads})
    loaded = call.load()
    pin_threads(loaded.config.compute.threads)
    configure_logs(loaded.config.log)
    with call.context(Role.COMPUTE) as context, stop_on_signals(call.out) as request:
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
