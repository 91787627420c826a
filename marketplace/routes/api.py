"""The index as JSON: what the chain said, as far as this gateway has read it."""

from __future__ import annotations

from typing import Annotated, Any

from eth_utils.address import to_checksum_address
from fastapi import APIRouter, Path, Query

from marketplace.deps import GatewayDep, TaskIdDep, parse_bytes32
from marketplace.status import status_of
from protocol.wire import (
    AccountView,
    ErrorAnswer,
    GatewayStatus,
    ListAnswer,
    NodeView,
    PageLimit,
    PaymentView,
    SlashView,
    TaskView,
    UnitView,
)

router = APIRouter(tags=["market"])

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer}}


@router.get("/status")
def status(gateway: GatewayDep) -> GatewayStatus:
    """Which market this gateway serves, how far its index is, and how full it is."""
    return status_of(gateway)


@router.get("/tasks")
def tasks(
    gateway: GatewayDep,
    after: Annotated[str | None, Query(description="`next` of the page before")] = None,
    limit: PageLimit = 100,
) -> ListAnswer[TaskView]:
    """Tasks, the newest first."""
    return gateway.queries.tasks(after=None if after is None else parse_bytes32(after), limit=limit)


@router.get("/tasks/{task_id}", responses=_NOT_FOUND)
def task(task_id: TaskIdDep, gateway: GatewayDep) -> TaskView:
    """One task."""
    return gateway.queries.task(task_id)


@router.get("/tasks/{task_id}/units", responses=_NOT_FOUND)
def units(
    task_id: TaskIdDep,
    gateway: GatewayDep,
    after: Annotated[int, Query(ge=-1, lt=1 << 32, description="`next` of the page before")] = -1,
    limit: PageLimit = 500,
) -> ListAnswer[UnitView]:
    """A task's units by number, those that nobody claimed yet included."""
    return gateway.queries.units(task_id, after=after, limit=limit)


@router.get("/nodes")
def nodes(
    gateway: GatewayDep,
    after: Annotated[int, Query(ge=0, lt=1 << 63, description="`next` of the page before")] = 0,
    limit: PageLimit = 100,
) -> ListAnswer[NodeView]:
    """Compute nodes by number."""
    return gateway.queries.nodes(after=after, limit=limit)


@router.get("/nodes/{node_id}", responses=_NOT_FOUND)
def node(node_id: Annotated[int, Path(ge=1, lt=1 << 63)], gateway: GatewayDep) -> NodeView:
    """One node."""
    return gateway.queries.node(node_id)


@router.get("/payments")
def payments(
    gateway: GatewayDep,
    payee: Annotated[str | None, Query(pattern="^0x[0-9a-fA-F]{40}$", description="only to this address")] = None,
    after: Annotated[int | None, Query(ge=1, lt=1 << 63, description="`next` of the page before")] = None,
    limit: PageLimit = 100,
) -> ListAnswer[PaymentView]:
    """Credits and withdrawals, the newest first."""
    to = None if payee is None else to_checksum_address(payee)
    return gateway.queries.payments(payee=to, before=after, limit=limit)


@router.get("/accounts")
def accounts(
    gateway: GatewayDep,
    after: Annotated[str, Query(max_length=42, description="`next` of the page before")] = "",
    limit: PageLimit = 100,
) -> ListAnswer[AccountView]:
    """What each address was credited, and what of it was sent, by address."""
    return gateway.queries.accounts(after=after, limit=limit)


@router.get("/slashes")
def slashes(
    gateway: GatewayDep,
    after: Annotated[int | None, Query(ge=1, lt=1 << 63, description="`next` of the page before")] = None,
    limit: PageLimit = 100,
) -> ListAnswer[SlashView]:
    """Stake lost and where it went, the newest first."""
    return gateway.queries.slashes(before=after, limit=limit)
