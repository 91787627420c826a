"""avenue doctor: is everything here that the role needs? Exit code 9 if not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Table
from protocol.errors import DoctorError, UsageError

if TYPE_CHECKING:
    from node.config import Role
    from node.doctor import Finding


def add_to(app: typer.Typer) -> None:
    command(app, "doctor", needs=Needs.NETWORK | Needs.KEYS)(doctor)


def doctor(
    call: Invocation,
    role: Annotated[
        str | None, typer.Option(help="Check for compute, request or deployer; default: as configured.")
    ] = None,
) -> int:
    """Check everything that the role needs; exit code 9 if it fails.

    Python, kernels, configuration, keys, disk, chain, clock, contracts, gas money, tokens, stake, gateway: each with
    what to do about it.
    """
    from node.doctor import Status, examine

    with call.context(parse_role(role) if role is not None else None) as context:
        findings = list(examine(context))
        chosen = context.role.value
    failed = [finding for finding in findings if finding.status is Status.FAILED]
    document: dict[str, Any] = {"ok": not failed, "role": chosen, "checks": [describe(each) for each in findings]}
    if failed:
        error = failure(findings)
        document["error"] = {"code": error.code, "message": error.message, "hint": error.hint}
    rows = [(each.name, each.status.value, each.detail, each.hint) for each in findings]
    verdict = f"{len(failed)} of {len(findings)} checks failed" if failed else "everything is ready"
    call.out.emit(document, Table(("check", "", "found", "what to do"), rows), verdict)
    return DoctorError.exit_code if failed else 0


def failure(findings: list[Finding]) -> DoctorError:
    """The error that a start stops with: names what failed; the first failure's code and hint."""
    from node.doctor import Status

    failed = [finding for finding in findings if finding.status is Status.FAILED]
    names = ", ".join(f"{each.name} ({each.detail})" for each in failed)
    return DoctorError(f"checks failed: {names}", code=failed[0].code or "D-00", hint=failed[0].hint)


def describe(finding: Finding) -> dict[str, str]:
    document = {"name": finding.name, "status": finding.status.value, "detail": finding.detail, "hint": finding.hint}
    return document | ({"code": finding.code} if finding.code else {})


def parse_role(text: str) -> Role:
    """Raises UsageError U-05 for a role that does not exist."""
    from node.config import Role

    try:
        return Role(text)
    except ValueError as error:
        known = ", ".join(each.value for each in Role)
        raise UsageError(f"there is no role {text!r}", code="U-05", hint=f"choose one of {known}") from error
