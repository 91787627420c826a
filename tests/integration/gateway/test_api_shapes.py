"""One error shape, one list shape, documented routes; and the page says the same as the JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest

from protocol.messages import UnitProgress
from protocol.wire import ErrorAnswer
from tests.support.gateway import Market, RunningGateway, running_gateway, settings_in, wait_until

ABSENT = "0x" + "99" * 32


@pytest.fixture(scope="module")
def served(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(settings_in(tmp_path_factory.mktemp("gateway")), market.chain.client) as gateway:
        gateway.parts.indexer.catch_up()
        yield gateway


@pytest.mark.parametrize(
    "path",
    [
        "/tasks",
        "/tasks/{task}/units",
        "/nodes",
        "/payments",
        "/slashes",
        "/accounts",
        "/messages",
        "/messages?task={task}&kind=key.grant&after=3&limit=5",
    ],
)
def test_every_list_has_one_shape(served: RunningGateway, market: Market, path: str) -> None:
    answer = httpx2.get(served.url + "/api/v1" + path.format(task="0x" + market.task.hex()))

    assert answer.status_code == 200
    document = answer.json()
    more = ["mailbox"] if path.startswith("/messages") else []
    assert list(document) == ["ok", "items", "next", "as_of_block", *more]
    assert document["ok"] is True
    assert isinstance(document["items"], list)
    assert document["as_of_block"] == served.parts.indexer.indexed_block


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/api/v1/tasks/{ABSENT}", 404, "S-73"),
        ("GET", f"/api/v1/tasks/{ABSENT}/units", 404, "S-73"),
        ("GET", "/api/v1/tasks/0x12", 400, "U-71"),
        ("GET", f"/api/v1/tasks?after={ABSENT}", 404, "S-73"),
        ("GET", "/api/v1/tasks?limit=0", 422, "U-70"),
        ("GET", "/api/v1/tasks?limit=501", 422, "U-70"),
        ("GET", "/api/v1/nodes/99", 404, "S-73"),
        ("GET", "/api/v1/nodes/abc", 422, "U-70"),
        ("GET", "/api/v1/nodes/99999999999999999999999", 422, "U-70"),
        ("GET", "/api/v1/payments?payee=me", 422, "U-70"),
        ("GET", "/api/v1/messages?task=zz", 400, "U-71"),
        ("GET", "/api/v1/messages?after=-1", 422, "U-70"),
        ("GET", f"/api/v1/blobs/{ABSENT}", 404, "S-71"),
        ("GET", f"/api/v1/blobs/{ABSENT}/chunks/0", 404, "S-71"),
        ("GET", "/api/v1/blobs/..%2f..%2fetc/chunks/0", 404, "U-404"),
        ("PUT", f"/api/v1/blobs/{ABSENT}/chunks/0", 404, "S-71"),
        ("POST", "/api/v1/messages", 422, "V-04"),
        ("GET", "/api/v1/nothing", 404, "U-404"),
        ("DELETE", "/api/v1/tasks", 405, "U-405"),
        ("GET", "/static/..%2f..%2fapp.py", 404, "U-404"),
    ],
)
def test_every_refusal_has_one_shape(served: RunningGateway, method: str, path: str, status: int, code: str) -> None:
    answer = httpx2.request(method, served.url + path)

    assert answer.status_code == status
    document = answer.json()
    assert list(document) == ["ok", "error"]
    assert list(document["error"]) == ["code", "message", "hint"]
    assert ErrorAnswer.model_validate(document).error.code == code


def test_bug_is_answered_in_the_same_shape_without_its_details(served: RunningGateway) -> None:
    def broken(*_arguments: object, **_options: object) -> Any:
        raise RuntimeError("the secret of the house")

    queries = served.parts.queries
    queries.nodes = broken  # type: ignore[method-assign]
    try:
        answer = httpx2.get(served.url + "/api/v1/nodes")
    finally:
        del queries.nodes
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "X-00"
    assert "secret" not in answer.text


def test_lists_are_paged_without_loss_or_repetition(served: RunningGateway, market: Market) -> None:
    path = f"{served.url}/api/v1/tasks/0x{market.task.hex()}/units"
    seen, after = [], "-1"
    while after is not None:
        page = httpx2.get(path, params={"after": after, "limit": 2}).json()
        seen += [unit["unit"] for unit in page["items"]]
        after = page["next"]
    assert seen == [0, 1, 2]

    nodes = httpx2.get(f"{served.url}/api/v1/nodes", params={"limit": 1}).json()
    assert ([node["node"] for node in nodes["items"]], nodes["next"]) == ([1], 1)


def test_amounts_are_decimal_strings_and_ids_hex(served: RunningGateway, market: Market) -> None:
    (task,) = httpx2.get(f"{served.url}/api/v1/tasks").json()["items"]
    assert task["task"] == "0x" + market.task.hex()
    assert task["escrow"] == str(market.spec.escrow)
    assert task["requester"] == market.requester.address
    assert task["private"] is True


def test_openapi_describes_every_route_with_its_answer(served: RunningGateway) -> None:
    document = httpx2.get(f"{served.url}/openapi.json").json()
    assert {
        "/api/v1/messages",
        "/api/v1/blobs/{blob_id}",
        "/api/v1/blobs/{blob_id}/chunks/{position}",
        "/api/v1/tasks",
        "/api/v1/tasks/{task_id}",
        "/api/v1/tasks/{task_id}/units",
        "/api/v1/nodes",
        "/api/v1/nodes/{node_id}",
        "/api/v1/payments",
        "/api/v1/status",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= set(document["paths"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], f"{method} {path} says nothing"
    envelope = document["paths"]["/api/v1/messages"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert envelope["examples"][0]["kind"] == "admission.request"
    assert set(envelope["properties"]) == set(envelope["examples"][0])


def test_documented_api_is_the_served_api(served: RunningGateway) -> None:
    """Every route that docs/architecture.md lists is there."""
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    section = text.split("## The gateway's API")[1].split("\n## ")[0].split("\n", 1)[1]
    listed = set(re.findall(r"(/[a-z]+(?:/\{[a-z]+\})?(?:/[a-z]+)?(?:/\{i\})?)", section)) - {"/api"}
    served_paths = {
        re.sub(r"\{[a-z_]+\}", "{}", path) for path in httpx2.get(f"{served.url}/openapi.json").json()["paths"]
    }
    for path in listed:
        plain = re.sub(r"\{[a-z]+\}", "{}", path)
        assert f"/api/v1{plain}" in served_paths or plain in served_paths, path


def test_metrics_are_prometheus_text(served: RunningGateway) -> None:
    answer = httpx2.get(f"{served.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line and not line.startswith("#"))
    assert float(values["avenue_indexed_block"]) == served.parts.indexer.indexed_block
    assert float(values["avenue_index_lag_blocks"]) == 0
    assert float(values["avenue_blob_quota_bytes"]) == served.parts.settings.limits.quota_bytes


class Reader(HTMLParser):
    """Collects texts by data-testid, and what would run or be fetched from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.foreign: list[str] = []
        self.inline: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self.feed(html)
        assert not self._open, f"unclosed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        self.foreign += [str(given[name]) for name in ("src", "href") if "//" in (given.get(name) or "")]
        name = given.get("data-testid")
        if name is not None:
            self.texts.setdefault(name, []).append("")
        if tag == "script" and "src" not in given:
            self.inline.append("script")
        if tag not in {"meta", "link", "img", "line", "path", "br"} or tag in {"line", "path"}:
            self._open.append((tag, name))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        assert opened == tag, f"<{opened}> closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        for _, name in self._open:
            if name is not None:
                self.texts[name][-1] += data


def test_page_is_whole_without_javascript_and_says_what_the_json_says(served: RunningGateway, market: Market) -> None:
    answer = httpx2.get(served.url)
    page = Reader(answer.text)
    status = httpx2.get(f"{served.url}/api/v1/status").json()

    assert page.texts["head-block"] == [str(status["head_block"])]
    assert page.texts["index-lag"] == ["0 blocks"]
    assert page.texts["task-status"] == ["posted"]
    assert page.texts["task-units"] == ["0 of 3"]
    assert [text.strip() for text in page.texts["unit"]] == ["open"] * 3
    assert len(page.texts["node"]) == 2
    assert page.texts["node-earned"] == ["0", "0"]
    assert page.texts["task-paid"] == ["0 AVN"]
    assert f'data-task="0x{market.task.hex()}"' in answer.text


def test_page_runs_and_fetches_nothing_but_its_own_files(served: RunningGateway) -> None:
    answer = httpx2.get(served.url)
    page = Reader(answer.text)
    assert page.inline == []
    assert page.foreign == []
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text):
        assert httpx2.get(served.url + path).status_code == 200
    script = httpx2.get(f"{served.url}/static/live.js").text
    for path in re.findall(r'(?:fetch|EventSource)\("([^"]+)"\)', script):
        with httpx2.stream("GET", served.url + path) as live:
            assert live.status_code == 200


def test_stream_tells_when_something_moved(served: RunningGateway, market: Market) -> None:
    with httpx2.stream("GET", f"{served.url}/stream", timeout=10) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(lines) == "event: change"
        first = next(lines)
        served.client(market.operators[0]).post_message(
            market.task, UnitProgress(unit=0, node=1, step=1, steps=10, loss=1.0)
        )
        second = next(line for line in lines if line.startswith("id:"))
    assert second != first

    resumed = {"Last-Event-ID": second.removeprefix("id: ")}
    market.chain.anvil.mine()
    with httpx2.stream("GET", f"{served.url}/stream", timeout=10, headers=resumed) as stream:
        third = next(line for line in stream.iter_lines() if line.startswith("id:"))
    assert third not in (first, second)


def test_empty_market_has_a_page_too(avenue: Any, tmp_path: Path) -> None:
    with running_gateway(settings_in(tmp_path / "gateway"), avenue.client) as gateway:
        wait_until(lambda: gateway.parts.indexer.indexed_block is not None, "the first look at the chain")
        page = Reader(httpx2.get(gateway.url).text)
    assert "No task was posted yet" in page.texts["no-tasks"][0]


def test_answers_are_json_that_anybody_parses(served: RunningGateway) -> None:
    for path in ("/status", "/tasks", "/nodes"):
        json.loads(httpx2.get(f"{served.url}/api/v1{path}").content)
