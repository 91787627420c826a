"""A chain's JSON-RPC through a list of endpoints, none of which is trusted to be up, in time or on the right chain.

    connect(["https://a.example/KEY", "https://b.example"], expected_chain_id=11155111) -> Web3

- The first endpoint is used until it fails; then the next one. 429, 5xx, time-outs and refused connections are tried
  again after a growing pause, a few times over.
- An endpoint's chain id is checked before its first answer is used.
- The highest head ever seen is remembered. An endpoint more than `max_lag_blocks` behind it is not believed.
- `eth_sendRawTransaction` is never sent twice behind the caller's back: after a broken answer nobody knows whether the
  transaction got through, and the caller settles that by reading the chain (protocol/sender.py). "Already known" is
  success if and only if the endpoint indeed knows the transaction with the hash of our bytes.
- URLs lose user, password, path and query (where API keys live) before they reach a message or a log.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2
from eth_utils.crypto import keccak
from web3 import Web3
from web3.middleware import AttributeDictMiddleware
from web3.providers.base import JSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from protocol.errors import ConfigError, LaggingRpcError, UnreachableError

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_MAX_LAG_BLOCKS = 3
# Each pass goes once through the whole list; the pause before pass n is _PAUSE_S * 2^(n-1): 0.2 + 0.4 + 0.8 s in all.
_PASSES = 4
_PAUSE_S = 0.2
# How long a head that an endpoint showed vouches for it. Shorter than the block time of every chain we deploy to.
_HEAD_VALID_S = 2.0
_SEND = "eth_sendRawTransaction"
# What may be asked twice without harm. Everything else (anvil_mine, evm_increaseTime, ...) is sent once.
_IDEMPOTENT = ("eth_", "net_", "web3_")
# What is the same at any head, or tells the head itself.
_NO_HEAD_NEEDED = ("eth_blockNumber", "eth_chainId", "web3_clientVersion")
_ALREADY_KNOWN = ("already known", "already imported", "known transaction", "already in mempool")
_RATE_LIMIT_CODES = (429, -32029)
# No key, no money, no right: another endpoint may have them.
_NOT_SERVED = (401, 402, 403)


class SendOutcomeUnknownError(UnreachableError):
    """The connection broke after a transaction was handed over: it may be in the pool, or not. Read the chain."""

    default_code = "N-03"
    default_hint = (
        "nothing is lost: the transaction is in the journal, and its outcome is read from the chain on the next try"
    )


def redact(url: str) -> str:
    """`https://user:pw@host:8545/v3/KEY?k=1` -> `https://host:8545/...`: safe to print and to log."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or "?"
    port = f":{parts.port}" if parts.port else ""
    hidden = "/..." if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{host}{port}{hidden}"


@dataclass
class _Endpoint:
    url: str
    chain_checked: bool = False
    head: int = -1
    head_seen_s: float = float("-inf")

    @property
    def name(self) -> str:
        return redact(self.url)


def _head_in(method: str, params: Any, answer: Any) -> int | None:
    """The newest block's number, if that is what was asked for and given."""
    result = answer.get("result") if isinstance(answer, dict) else None
    if method == "eth_blockNumber" and isinstance(result, str):
        return int(result, 16)
    if method == "eth_getBlockByNumber" and list(params)[:1] == ["latest"] and isinstance(result, dict):
        return int(result["number"], 16)
    return None


def _is_answer(document: Any) -> bool:
    """Whether it has the shape of a JSON-RPC answer. Proxies in front of a node send all sorts of other JSON."""
    return (
        isinstance(document, dict)
        and document.get("jsonrpc") == "2.0"
        and ("result" in document or isinstance(document.get("error"), dict))
    )


class _TryNext(Exception):  # noqa: N818 - control flow inside this file, never seen outside
    """This endpoint can't serve the request now. `sent` says whether the request may have been received."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class FailoverProvider(JSONBaseProvider):
    """A web3 provider over several HTTP endpoints; see the module docstring. Safe to use from several threads."""

    # EIP-3668 would let any contract make us fetch any URL.
    global_ccip_read_enabled = False

    def __init__(
        self,
        urls: Sequence[str],
        expected_chain_id: int | None,
        timeout_s: float,
        max_lag_blocks: int,
    ) -> None:
        super().__init__()
        if not urls:
            raise ConfigError("no RPC URL is configured", code="C-10", hint="set rpc_urls in the configuration")
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise ConfigError(
                    f"RPC URL {redact(url)} is not http or https",
                    code="C-10",
                    hint="correct rpc_urls in the configuration",
                )
        self._endpoints = [_Endpoint(url) for url in urls]
        self._expected_chain_id = expected_chain_id
        self._max_lag_blocks = max_lag_blocks
        self._lock = Lock()
        self._current = 0
        self._best_head = -1
        # trust_env=False: a proxy in the environment must not see or reroute an operator's transactions unasked.
        self._http = httpx2.Client(timeout=timeout_s, trust_env=False, headers={"content-type": "application/json"})
        self._finaliser = weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Closes the connections. Also happens when the provider is garbage."""
        self._finaliser()

    @property
    def names(self) -> str:
        """The endpoints, redacted, for messages."""
        return ", ".join(endpoint.name for endpoint in self._endpoints)

    @property
    def best_head(self) -> int:
        """The highest block number that any endpoint has shown; -1 before the first."""
        return self._best_head

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        def ask(endpoint: _Endpoint) -> Any:
            answer = self._post(endpoint, self.encode_rpc_request(method, params))
            head = _head_in(method, params, answer)
            if head is not None:
                self._believe(endpoint, head)
            return answer

        response = self._serve(method, ask)
        if method == _SEND and "error" in response:
            return self._judge_send(response, params)
        return cast(RPCResponse, response)

    def make_batch_request(self, requests: list[tuple[RPCEndpoint, Any]]) -> list[RPCResponse] | RPCResponse:
        if any(method == _SEND for method, _ in requests):
            raise ValueError("transactions are not sent in batches")
        body = self.encode_batch_rpc_request(requests)
        answer = self._serve("batch", lambda endpoint: self._post(endpoint, body))
        if not isinstance(answer, list):
            return cast(RPCResponse, answer)
        by_id = {item["id"]: item for item in answer if _is_answer(item) and isinstance(item.get("id"), int)}
        if not len(by_id) == len(answer) == len(requests):
            refusal = {"code": -32603, "message": "the batch was not answered one for one"}
            return cast(RPCResponse, {"jsonrpc": "2.0", "id": None, "error": refusal})
        return cast(list[RPCResponse], [by_id[id_] for id_ in sorted(by_id)])

    def _serve(self, method: str, ask: Callable[[_Endpoint], Any]) -> Any:
        """Asks one endpoint after the other until one answers.

        Raises `UnreachableError` N-01, `LaggingRpcError` N-02, `SendOutcomeUnknownError` N-03, `ConfigError` C-11.
        """
        repeatable = method != _SEND and (method == "batch" or method.startswith(_IDEMPOTENT))
        reasons: dict[str, str] = {}
        lagging = 0
        for number in range(_PASSES):
            if number:
                time.sleep(_PAUSE_S * 2 ** (number - 1))
            lagging = 0
            for offset in range(len(self._endpoints)):
                index = (self._current + offset) % len(self._endpoints) if offset else self._current
                endpoint = self._endpoints[index]
                try:
                    self._check(endpoint, needs_head=method not in _NO_HEAD_NEEDED)
                    answer = ask(endpoint)
                except LaggingRpcError as error:
                    reasons[endpoint.name] = error.message
                    lagging += 1
                    continue
                except _TryNext as failure:
                    reasons[endpoint.name] = str(failure)
                    if failure.sent and not repeatable:
                        raise self._broken_off(method, endpoint, failure) from failure
                    continue
                self._current = index
                return answer
        detail = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        if lagging == len(self._endpoints):
            raise LaggingRpcError(f"every RPC endpoint is behind block {self._best_head}: {detail}")
        raise UnreachableError(
            f"no RPC endpoint answers: {detail}",
            code="N-01",
            hint="is the chain running? `avenue doctor` checks rpc_urls",
        )

    def _broken_off(self, method: str, endpoint: _Endpoint, failure: _TryNext) -> UnreachableError:
        if method == _SEND:
            return SendOutcomeUnknownError(f"{endpoint.name} broke off while a transaction was sent: {failure}")
        return UnreachableError(f"{endpoint.name} broke off during {method}: {failure}", code="N-01")

    def _check(self, endpoint: _Endpoint, *, needs_head: bool) -> None:
        """The endpoint is on the expected chain and, as far as known, near its head."""
        if not endpoint.chain_checked and self._expected_chain_id is not None:
            chain_id = int(self._ask(endpoint, "eth_chainId"), 16)
            if chain_id != self._expected_chain_id:
                raise ConfigError(
                    f"{endpoint.name} serves chain {chain_id}, not chain {self._expected_chain_id}",
                    code="C-11",
                    hint="correct rpc_urls or the network in the configuration",
                )
            endpoint.chain_checked = True
        if needs_head and time.monotonic() - endpoint.head_seen_s > _HEAD_VALID_S:
            self._believe(endpoint, int(self._ask(endpoint, "eth_blockNumber"), 16))

    def _believe(self, endpoint: _Endpoint, head: int) -> None:
        """Raises `LaggingRpcError` if `head` is too far behind the best that was ever seen."""
        with self._lock:
            self._best_head = max(self._best_head, head)
            behind = self._best_head - head
        if behind > self._max_lag_blocks:
            endpoint.head_seen_s = float("-inf")
            raise LaggingRpcError(f"{endpoint.name} is at block {head}, {behind} behind")
        endpoint.head, endpoint.head_seen_s = head, time.monotonic()

    def _ask(self, endpoint: _Endpoint, method: str) -> str:
        answer = self._post(endpoint, self.encode_rpc_request(RPCEndpoint(method), []))
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), str):
            raise _TryNext(f"no usable answer to {method}", sent=False)
        return str(answer["result"])

    def _post(self, endpoint: _Endpoint, body: bytes) -> Any:
        try:
            response = self._http.post(endpoint.url, content=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise _TryNext(f"cannot connect ({type(error).__name__})", sent=False) from error
        except httpx2.HTTPError as error:
            raise _TryNext(f"no answer ({type(error).__name__})", sent=True) from error
        if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            raise _TryNext("rate limit (HTTP 429)", sent=False)
        try:
            answer = self.decode_rpc_response(response.content)
        except ValueError as error:
            raise _TryNext(f"HTTP {response.status_code} without JSON-RPC", sent=True) from error
        if response.status_code in _NOT_SERVED:
            raise _TryNext(f"refuses us (HTTP {response.status_code})", sent=False)
        if not (_is_answer(answer) or (isinstance(answer, list) and body.startswith(b"["))):
            raise _TryNext(f"HTTP {response.status_code} without JSON-RPC", sent=True)
        if response.status_code >= httpx2.codes.INTERNAL_SERVER_ERROR:
            raise _TryNext(f"HTTP {response.status_code}", sent=True)
        refusal = answer.get("error") if isinstance(answer, dict) else None
        if isinstance(refusal, dict) and refusal.get("code") in _RATE_LIMIT_CODES:
            raise _TryNext("rate limit", sent=False)
        return answer

    def _judge_send(self, response: Any, params: Any) -> RPCResponse:
        error = response["error"]
        text = str(error.get("message", "") if isinstance(error, dict) else error).lower()
        if any(phrase in text for phrase in _ALREADY_KNOWN):
            wanted = "0x" + keccak(hexstr=str(params[0])).hex()
            known = self.make_request(RPCEndpoint("eth_getTransactionByHash"), [wanted]).get("result")
            if isinstance(known, dict) and str(known.get("hash")).lower() == wanted:
                return cast(RPCResponse, {"jsonrpc": "2.0", "id": response.get("id"), "result": wanted})
        return cast(RPCResponse, response)


def connect(
    urls: Sequence[str] | str,
    expected_chain_id: int | None = None,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_lag_blocks: int = DEFAULT_MAX_LAG_BLOCKS,
) -> Web3:
    """A Web3 over the endpoints `urls`, the first that answers preferred. Makes one request, to know that one does.

    Raises `ConfigError` C-10 (no or bad URL) or C-11 (wrong chain id), `UnreachableError` N-01 naming each endpoint.
    """
    listed = [urls] if isinstance(urls, str) else list(urls)
    provider = FailoverProvider(listed, expected_chain_id, timeout_s, max_lag_blocks)
    try:
        provider.make_request(RPCEndpoint("eth_blockNumber"), [])
    except Exception:
        provider.close()
        raise
    # Attribute dictionaries only: accounts sign here; names, gas prices and filters are not the server's business.
    return Web3(provider, middleware=[(AttributeDictMiddleware, "attrdict")])
