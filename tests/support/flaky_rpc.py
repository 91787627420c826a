"""A real HTTP server between a client and a chain, which misbehaves on order.

    with flaky_rpc(chain.url) as rpc:
        rpc.fail("eth_sendRawTransaction", Fault.SWALLOW_ANSWER, times=1)   # it arrives; nobody hears so
        client = connect(rpc.url)

It listens on a loopback port of its own, forwards JSON-RPC to the real endpoint, and logs what it was asked.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2


class Fault(Enum):
    """What to do to a request instead of answering it."""

    CLOSE = auto()
    """Close the connection; the request goes nowhere."""
    SWALLOW_ANSWER = auto()
    """Forward the request, then close the connection without the answer."""
    RATE_LIMIT = auto()
    """HTTP 429."""
    SERVER_ERROR = auto()
    """HTTP 503 without a body of JSON."""
    REFUSE_RANGE = auto()
    """A JSON-RPC error, as endpoints give for too wide an eth_getLogs."""
    ODD = auto()
    """Whatever `odd` says: what no node would answer, but a proxy in front of one does."""


@dataclass
class _Rule:
    method: str
    fault: Fault
    times: int | None


@dataclass
class FlakyRpc:
    """Handle of the proxy. `asked` lists the JSON-RPC methods in the order in which they came."""

    url: str
    upstream: str
    asked: list[str] = field(default_factory=list)
    lag_blocks: int = 0
    """How far behind the true head the answers to eth_blockNumber are."""
    stale_blocks: int = 0
    """How many of the newest blocks it has not got yet, like a node that lags: neither headers nor logs of them."""
    odd: tuple[int, bytes] = (200, b"")
    """HTTP status and body of `Fault.ODD`."""
    delay_s: float = 0.0
    max_range_blocks: int | None = None
    """Widest eth_getLogs range that is answered."""
    _rules: list[_Rule] = field(default_factory=list)
    _interruption: tuple[int, Callable[[], None]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, fault: Fault, times: int | None = None) -> None:
        """Requests of `method` ("*": any, "batch": any batch) meet `fault`, the next `times` times or until `heal`."""
        with self._lock:
            self._rules.append(_Rule(method, fault, times))

    def heal(self) -> None:
        """Behaves from now on."""
        with self._lock:
            self._rules.clear()
            self.lag_blocks, self.stale_blocks, self.delay_s, self.max_range_blocks = 0, 0, 0.0, None

    def interrupt(self, after: int, action: Callable[[], None]) -> None:
        """Runs `action` once: after `after` more requests, before the next one is forwarded."""
        with self._lock:
            self._interruption = (len(self.asked) + after, action)

    def _interrupt(self) -> None:
        with self._lock:
            due = self._interruption is not None and len(self.asked) > self._interruption[0]
            action = self._interruption[1] if due and self._interruption is not None else None
            self._interruption = None if due else self._interruption
        if action is not None:
            action()

    def _fault(self, request: Any) -> Fault | None:
        methods = [one["method"] for one in request] if isinstance(request, list) else [request["method"]]
        with self._lock:
            self.asked.extend(methods)
            for rule in self._rules:
                if rule.method in ("*", *methods) or (rule.method == "batch" and isinstance(request, list)):
                    if rule.times is not None:
                        rule.times -= 1
                        if rule.times <= 0:
                            self._rules.remove(rule)
                    return rule.fault
        if self.max_range_blocks is not None and methods == ["eth_getLogs"]:
            wanted = request["params"][0]
            if int(wanted["toBlock"], 16) - int(wanted["fromBlock"], 16) >= self.max_range_blocks:
                return Fault.REFUSE_RANGE
        return None

    def _aged(self, request: Any, upstream: httpx2.Client) -> Any:
        """The request as a node has to read it that has not got the newest blocks."""
        if not self.stale_blocks or isinstance(request, list):
            return request
        ask = {"jsonrpc": "2.0", "id": 0, "method": "eth_blockNumber", "params": []}
        head = max(int(upstream.post(self.upstream, json=ask).json()["result"], 16) - self.stale_blocks, 0)
        method, params = request["method"], list(request["params"])
        if method == "eth_blockNumber":
            return {**request, "method": "eth_getBlockByNumber", "params": [hex(head), False]}
        if method == "eth_getBlockByNumber":
            known = params[0] == "latest" or int(params[0], 16) <= head
            params[0] = hex(head) if params[0] == "latest" else params[0] if known else hex(2**40)
        if method == "eth_getLogs":
            params[0] = {**params[0], "toBlock": hex(min(int(params[0]["toBlock"], 16), head))}
        return {**request, "params": params}

    def _bent(self, request: Any, answer: bytes) -> bytes:
        """The answer, with the head moved back where a lagging endpoint would show an older one."""
        lags = self.lag_blocks or self.stale_blocks
        if not lags or isinstance(request, list) or request["method"] != "eth_blockNumber":
            return answer
        document = json.loads(answer)
        if self.stale_blocks:
            document["result"] = document["result"]["number"]
        else:
            document["result"] = hex(max(int(document["result"], 16) - self.lag_blocks, 0))
        return json.dumps(document).encode()


def _handler(proxy: FlakyRpc, upstream: httpx2.Client) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(body)
            fault = proxy._fault(request)
            proxy._interrupt()
            if proxy.delay_s:
                time.sleep(proxy.delay_s)
            if fault is Fault.CLOSE:
                return
            if fault is Fault.RATE_LIMIT:
                self._answer(429, b"slow down")
                return
            if fault is Fault.SERVER_ERROR:
                self._answer(503, b"<html>try later</html>")
                return
            if fault is Fault.REFUSE_RANGE:
                error = {"code": -32005, "message": "query returned more than 10000 results"}
                self._answer(200, json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode())
                return
            if fault is Fault.ODD:
                self._answer(*proxy.odd)
                return
            answer = upstream.post(proxy.upstream, json=proxy._aged(request, upstream))
            if fault is not Fault.SWALLOW_ANSWER:
                self._answer(answer.status_code, proxy._bent(request, answer.content))

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
            """Quiet: `asked` is the log."""

    return Handler


@contextmanager
def flaky_rpc(upstream: str) -> Iterator[FlakyRpc]:
    """Starts the proxy to `upstream`, well-behaved at first; stops it at the end."""
    proxy = FlakyRpc("", upstream)
    with httpx2.Client(trust_env=False) as client:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy, client))
        server.daemon_threads = True
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
