"""protocol.rpc against real sockets: endpoints that are down, slow, rate-limited, behind, or on another chain."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.types import RPCEndpoint

from protocol.chain import ChainClient, Read
from protocol.errors import ConfigError, LaggingRpcError, UnreachableError
from protocol.rpc import FailoverProvider, SendOutcomeUnknownError, connect
from tests.support.anvil import AnvilProcess, AvenueChain, anvil
from tests.support.flaky_rpc import Fault, flaky_rpc
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are as many as ever, and a hundredth as long."""
    monkeypatch.setattr("protocol.rpc._PAUSE_S", 0.002)


@contextmanager
def connected(*urls: str, chain_id: int | None = None, timeout_s: float = 5.0) -> Iterator[Web3]:
    w3 = connect(urls, chain_id, timeout_s=timeout_s)
    try:
        yield w3
    finally:
        provider_of(w3).close()


def provider_of(w3: Web3) -> FailoverProvider:
    assert isinstance(w3.provider, FailoverProvider)
    return w3.provider


@contextmanager
def closed_port() -> Iterator[str]:
    """A URL on which nobody listens, and nobody will: the port is bound, not listened on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"


def raw_transfer(chain: AnvilProcess, sender: LocalAccount, nonce: int) -> bytes:
    return bytes(
        sender.sign_transaction(
            {
                "type": 2,
                "chainId": 31337,
                "nonce": nonce,
                "to": chain.accounts[1].address,
                "value": 1,
                "gas": 21_000,
                "maxFeePerGas": 10**11,
                "maxPriorityFeePerGas": 10**9,
            }
        ).raw_transaction
    )


def test_endpoint_that_is_down_is_passed_over(chain: AnvilProcess) -> None:
    with closed_port() as dead, connected(dead, chain.url) as w3:
        assert w3.eth.block_number == 0


def test_all_endpoints_down_names_each_without_its_key() -> None:
    with closed_port() as dead, pytest.raises(UnreachableError) as caught:
        connect([dead.replace("http://", "http://alice:secret@") + "/v3/APIKEY"], timeout_s=1)
    assert caught.value.code == "N-01"
    assert dead + "/..." in caught.value.message
    assert "secret" not in str(caught.value) and "APIKEY" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("fault", [Fault.RATE_LIMIT, Fault.SERVER_ERROR, Fault.CLOSE, Fault.SWALLOW_ANSWER])
def test_read_is_repeated_until_the_endpoint_recovers(chain: AnvilProcess, fault: Fault) -> None:
    with flaky_rpc(chain.url) as rpc, connected(rpc.url) as w3:
        rpc.fail("eth_getBalance", fault, times=2)
        assert w3.eth.get_balance(chain.accounts[0].address) > 0
        assert rpc.asked.count("eth_getBalance") == 3


def test_slow_endpoint_is_left_for_the_next(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as slow, connected(slow.url, chain.url, timeout_s=0.2) as w3:
        slow.delay_s = 1.0
        assert w3.eth.get_balance(chain.accounts[0].address) > 0


def test_rate_limit_moves_on_and_stays_with_the_endpoint_that_answers(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as first, flaky_rpc(chain.url) as second, connected(first.url, second.url) as w3:
        first.fail("*", Fault.RATE_LIMIT)
        for _ in range(3):
            assert w3.eth.get_balance(chain.accounts[0].address) > 0
        assert second.asked.count("eth_getBalance") == 3
        assert first.asked.count("eth_getBalance") == 1


def test_batch_goes_to_the_next_endpoint_too(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as rpc, connected(rpc.url, chain.url) as w3:
        rpc.fail("*", Fault.SERVER_ERROR)
        requests: list[tuple[RPCEndpoint, Any]] = [
            (RPCEndpoint("eth_chainId"), []),
            (RPCEndpoint("eth_blockNumber"), []),
        ]
        answers = provider_of(w3).make_batch_request(requests)
        assert isinstance(answers, list)
        assert [answer["result"] for answer in answers] == ["0x7a69", "0x0"]


ODD_ANSWERS = [
    (200, b"null"),
    (200, b'"busy"'),
    (200, b"[]"),
    (200, b'{"jsonrpc":"2.0","id":1}'),
    (403, b'{"message":"invalid key"}'),
    (401, b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"project id is missing"}}'),
]


@pytest.mark.parametrize("odd", ODD_ANSWERS)
def test_answer_that_is_none_is_left_for_the_next_endpoint(chain: AnvilProcess, odd: tuple[int, bytes]) -> None:
    with flaky_rpc(chain.url) as rpc, connected(rpc.url, chain.url) as w3:
        rpc.odd = odd
        rpc.fail("eth_getBalance", Fault.ODD)
        assert w3.eth.get_balance(chain.accounts[0].address) > 0


def test_endpoint_that_says_nothing_sensible_is_unreachable(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as rpc, connected(rpc.url) as w3:
        rpc.odd = (200, b"null")
        rpc.fail("eth_getBalance", Fault.ODD)
        with pytest.raises(UnreachableError, match="without JSON-RPC"):
            w3.eth.get_balance(chain.accounts[0].address)


REFUSAL = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no batches"}}'


@pytest.mark.parametrize("answer", [b"[]", b"[" + REFUSAL + b"]", b"[" + REFUSAL + b"," + REFUSAL + b"]", b'["x","y"]'])
def test_batch_that_is_not_answered_one_for_one_is_asked_one_by_one(avenue: AvenueChain, answer: bytes) -> None:
    with flaky_rpc(avenue.url) as rpc, connected(rpc.url) as w3:
        rpc.odd = (200, answer)
        rpc.fail("batch", Fault.ODD)
        reads = [Read("registry", "nodeCount"), Read("market", "COMPENSATION_BPS")]
        assert ChainClient(w3, avenue.deployment).read_many(reads) == [0, 5000]


def test_wrong_chain_id_is_a_configuration_error(chain: AnvilProcess) -> None:
    with pytest.raises(ConfigError, match="serves chain 31337, not chain 11155111") as caught:
        connect([chain.url], 11155111)
    assert caught.value.code == "C-11" and caught.value.hint


def test_later_endpoint_on_another_chain_is_never_read() -> None:
    with (
        anvil() as ours,
        anvil(chain_id=1337) as other,
        flaky_rpc(ours.url) as rpc,
        connected(rpc.url, other.url, chain_id=31337, timeout_s=2) as w3,
    ):
        rpc.fail("*", Fault.SERVER_ERROR)
        with pytest.raises(ConfigError, match="serves chain 1337"):
            w3.eth.get_balance(ours.accounts[0].address)


def test_lagging_endpoint_is_not_believed(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as behind, connected(behind.url) as w3:
        chain.mine(10)
        assert w3.eth.block_number == 10
        behind.lag_blocks = 6
        with pytest.raises(LaggingRpcError, match="6 behind") as caught:
            w3.eth.block_number  # noqa: B018
        assert caught.value.code == "N-02"
        # State is not read from it either: the head it shows now is what counts, not the one it showed before.
        with pytest.raises(LaggingRpcError):
            w3.eth.get_balance(chain.accounts[0].address)


def test_endpoint_in_time_is_used_instead_of_a_lagging_one(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as behind, connected(behind.url, chain.url) as w3:
        chain.mine(10)
        assert w3.eth.block_number == 10
        behind.lag_blocks = 6
        assert w3.eth.block_number == 10


def test_newest_block_counts_as_a_head_too(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as behind, connected(behind.url) as w3:
        chain.mine(10)
        assert w3.eth.get_block("latest")["number"] == 10
        behind.lag_blocks = 6
        with pytest.raises(LaggingRpcError):
            w3.eth.block_number  # noqa: B018


def test_small_lag_is_tolerated(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as behind, connected(behind.url) as w3:
        chain.mine(10)
        assert w3.eth.block_number == 10
        behind.lag_blocks = 3
        assert w3.eth.block_number == 7


def test_broken_send_is_not_repeated(chain: AnvilProcess) -> None:
    with flaky_rpc(chain.url) as rpc, connected(rpc.url, chain.url) as w3:
        rpc.fail("eth_sendRawTransaction", Fault.SWALLOW_ANSWER)
        with pytest.raises(SendOutcomeUnknownError):
            w3.eth.send_raw_transaction(raw_transfer(chain, chain.accounts[0], 0))
        assert rpc.asked.count("eth_sendRawTransaction") == 1
        wait_until(lambda: w3.eth.get_transaction_count(chain.accounts[0].address) == 1)  # it had arrived


def test_send_goes_to_the_next_endpoint_if_the_first_never_received_it(chain: AnvilProcess) -> None:
    with closed_port() as dead, connected(dead, chain.url) as w3:
        w3.eth.send_raw_transaction(raw_transfer(chain, chain.accounts[0], 0))
        wait_until(lambda: w3.eth.get_transaction_count(chain.accounts[0].address) == 1)


def test_already_known_is_success_with_the_hash_of_our_bytes(chain: AnvilProcess) -> None:
    with connected(chain.url) as w3:
        chain.set_automine(False)
        raw = raw_transfer(chain, chain.accounts[0], 0)
        assert w3.eth.send_raw_transaction(raw) == w3.eth.send_raw_transaction(raw) == Web3.keccak(raw)


def test_no_url_and_odd_url_are_configuration_errors() -> None:
    for urls in ([], ["ws://127.0.0.1:1"], ["not a url"]):
        with pytest.raises(ConfigError) as caught:
            connect(urls)
        assert caught.value.code == "C-10"
