"""The live page. Whole without JavaScript; with it, `/live` (the page's inside) is fetched again when something
moved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.templating import Jinja2Templates

from marketplace.deps import Gateway, GatewayDep
from marketplace.queries import LossPoint
from marketplace.status import status_of
from protocol.wire import AccountView, GatewayStatus, NodeView, PaymentView, SlashView, TaskView, UnitView

router = APIRouter(include_in_schema=False)

HERE = Path(__file__).resolve().parents[1]
TASKS_SHOWN = 8
ROUNDS_SHOWN = 12
UNITS_SHOWN = 300
"""Of one task: with 256 shards, one round."""
CHART_WIDTH, CHART_HEIGHT = 320, 72


@dataclass(frozen=True, slots=True)
class TaskPanel:
    """A task with the rounds around the current one and its loss as an SVG path."""

    task: TaskView
    rounds: tuple[tuple[UnitView, ...], ...]
    hidden_rounds: int
    chart: str
    first_loss: float | None
    last_loss: float | None


@dataclass(frozen=True, slots=True)
class Page:
    """Everything on the page."""

    status: GatewayStatus
    panels: tuple[TaskPanel, ...]
    nodes: tuple[NodeView, ...]
    payments: tuple[PaymentView, ...]
    slashes: tuple[SlashView, ...]
    accounts: tuple[AccountView, ...]


@router.get("/", response_class=HTMLResponse)
def page(request: Request, gateway: GatewayDep) -> HTMLResponse:
    """The whole page."""
    return _render(request, gateway, "page.html")


@router.get("/live", response_class=HTMLResponse)
def live(request: Request, gateway: GatewayDep) -> HTMLResponse:
    """The page's inside."""
    return _render(request, gateway, "live.html")


def _render(request: Request, gateway: Gateway, template: str) -> HTMLResponse:
    headers = {
        "Cache-Control": "no-store",
        # Names, endpoints and the like come from strangers: nothing but our own two files may run or style.
        "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return _templates.TemplateResponse(request, template, {"page": load_page(gateway)}, headers=headers)


def load_page(gateway: Gateway) -> Page:
    """What the page shows, from the same answers as the JSON API."""
    queries = gateway.queries
    return Page(
        status=status_of(gateway),
        panels=tuple(_panel(gateway, task) for task in queries.tasks(limit=TASKS_SHOWN).items),
        nodes=queries.nodes(limit=100).items,
        payments=queries.payments(limit=12).items,
        slashes=queries.slashes(limit=12).items,
        accounts=queries.accounts(limit=50).items,
    )


def _panel(gateway: Gateway, task: TaskView) -> TaskPanel:
    per_round = task.units // task.rounds
    shown = min(ROUNDS_SHOWN, task.rounds, max(1, UNITS_SHOWN // per_round))
    first = max(0, min(task.round - shown // 2, task.rounds - shown))
    units = gateway.queries.units(task.task, after=first * per_round - 1, limit=shown * per_round).items
    rounds = tuple(units[start : start + per_round] for start in range(0, len(units), per_round))
    curve = gateway.queries.loss_curve(task)
    return TaskPanel(
        task=task,
        rounds=rounds,
        hidden_rounds=task.rounds - len(rounds),
        chart=_chart(curve, task.rounds * task.steps),
        first_loss=curve[0].loss if curve else None,
        last_loss=curve[-1].loss if curve else None,
    )


def _chart(curve: list[LossPoint], steps: int) -> str:
    """An SVG path; empty with fewer than two points. From zero, so that a flat curve looks flat."""
    if len(curve) < 2:
        return ""
    top = max(point.loss for point in curve) or 1.0
    points = (
        f"{CHART_WIDTH * point.step / max(1, steps):.1f} {CHART_HEIGHT * (1 - max(0.0, point.loss) / top):.1f}"
        for point in curve
    )
    return "M" + " L".join(points)


def _avn(wei: int) -> str:
    """Tokens with as many decimals as matter; exact amounts are in the JSON and in the title."""
    tokens = wei / 10**18
    if tokens and tokens < 0.01:
        return f"{tokens:.2g}"
    return f"{tokens:,.2f}".removesuffix(".00")


def _size(number: int) -> str:
    if number < 1024:
        return f"{number} B"
    power = min(4, int(math.log(number, 1024)))
    return f"{number / 1024**power:.1f} {' KMGT'[power]}iB"


def _short(value: bytes | str) -> str:
    text = value if isinstance(value, str) else "0x" + value.hex()
    return f"{text[:8]}…{text[-4:]}"


_templates = Jinja2Templates(directory=HERE / "templates")
_templates.env.filters |= {"avn": _avn, "size": _size, "short": _short, "hex": lambda value: "0x" + value.hex()}
_templates.env.globals |= {"chart_width": CHART_WIDTH, "chart_height": CHART_HEIGHT}
