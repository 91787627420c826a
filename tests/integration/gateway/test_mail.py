"""The mailbox's door: who gets in, who does not and why, with standing read from a real chain."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx2
import pytest
from eth_account.signers.local import LocalAccount

from protocol.errors import ReplayError, StandingError
from protocol.messages import (
    MAX_TTL_S,
    AdmissionGrant,
    AdmissionRequest,
    Domain,
    Grant,
    KeyGrant,
    Kind,
    Payload,
    SignedMessage,
    UnitAcceptance,
    UnitProgress,
    UnitResult,
    sign_message,
    verify_stored_message,
)
from protocol.signatures import sign_acceptance, sign_admission
from protocol.types import NodeId
from protocol.wire import ErrorAnswer
from tests.support.gateway import Market, RunningGateway, running_gateway, settings_in


def post(gateway: RunningGateway, message: SignedMessage | dict[str, Any]) -> httpx2.Response:
    body = message.to_json() if isinstance(message, SignedMessage) else json.dumps(message).encode()
    return httpx2.post(f"{gateway.url}/api/v1/messages", content=body)


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    error = ErrorAnswer.model_validate_json(answer.content)
    return answer.status_code, error.error.code


def request_of(gateway: RunningGateway, market: Market, **options: Any) -> SignedMessage:
    return sign_message(
        market.operators[0], Kind.ADMISSION_REQUEST, market.task, AdmissionRequest(node=1), gateway.domain, **options
    )


def one_of_each(market: Market, domain: Domain) -> list[tuple[LocalAccount, Payload]]:
    """What the parts of a task really send, each from whom may send it."""
    task, requester, operator = market.spec.task_id, market.requester, market.operators[0]
    admission = sign_admission(requester, domain, task, NodeId(1), 0b11, 2_000_000_000)
    result = b"\x04" * 32
    return [
        (operator, AdmissionRequest(node=1)),
        (requester, AdmissionGrant(node=1, shards=0b11, deadline=admission.deadline, signature=admission.signature)),
        (requester, KeyGrant(grants=(Grant(blob=b"\x01" * 32, reader=1, wrapped_key=b"\x02" * 80),))),
        (operator, KeyGrant(grants=(Grant(blob=b"\x01" * 32, reader=0, wrapped_key=b"\x02" * 80),))),
        (operator, UnitProgress(unit=0, node=1, step=5, steps=10, loss=1.5)),
        (
            operator,
            UnitResult(
                unit=0,
                node=1,
                state_blob=b"\x01" * 32,
                final_state_root=b"\x03" * 32,
                result_root=result,
                checkpoint_roots=(b"\x02" * 32, b"\x03" * 32),
            ),
        ),
        (
            requester,
            UnitAcceptance(unit=0, result_root=result, signature=sign_acceptance(requester, domain, task, 0, result)),
        ),
    ]


def test_every_kind_arrives_in_order_and_is_verified_by_its_reader(gateway: RunningGateway, market: Market) -> None:
    sent = one_of_each(market, gateway.domain)
    ids = [gateway.client(account).post_message(market.task, payload) for account, payload in sent]

    mail = gateway.client(market.stranger).messages(market.task)

    assert [item.id for item in mail] == ids == sorted(id_ or 0 for id_ in ids)
    read = [verify_stored_message(item.envelope(), gateway.domain, standing=lambda _m, _p: True) for item in mail]
    assert read == [payload for _, payload in sent]


def test_reader_goes_on_from_where_it_was(gateway: RunningGateway, market: Market) -> None:
    client = gateway.client(market.operators[0])
    for step in range(1, 6):
        client.post_message(market.task, UnitProgress(unit=0, node=1, step=step, steps=10))
    client.post_message(market.task, AdmissionRequest(node=1))

    first = client.messages(market.task, limit=4)
    rest = client.messages(market.task, after=first[-1].id)

    assert [len(first), len(rest)] == [4, 2]
    assert client.messages(market.task, after=rest[-1].id) == []
    assert [item.kind for item in client.messages(market.task, Kind.ADMISSION_REQUEST)] == ["admission.request"]
    assert client.messages(b"\x66" * 32) == []


def test_content_hash_is_checked_first(gateway: RunningGateway, market: Market) -> None:
    message = request_of(gateway, market).model_copy(update={"payload": {"node": 2}, "signature": "0x"})
    assert refusal(post(gateway, message)) == (400, "V-01")


def test_malformed_signature_is_refused(gateway: RunningGateway, market: Market) -> None:
    message = request_of(gateway, market).model_copy(update={"signature": "0x1234"})
    assert refusal(post(gateway, message)) == (400, "V-02")


def test_message_signed_by_somebody_else_is_refused(gateway: RunningGateway, market: Market) -> None:
    message = request_of(gateway, market).model_copy(update={"sender": market.operators[1].address})
    assert refusal(post(gateway, message)) == (401, "V-03")


def test_message_signed_for_another_market_is_refused(gateway: RunningGateway, market: Market) -> None:
    elsewhere = Domain(gateway.domain.chain_id, market.chain.deployment.registry)
    message = sign_message(
        market.operators[0], Kind.ADMISSION_REQUEST, market.task, AdmissionRequest(node=1), elsewhere
    )
    assert refusal(post(gateway, message)) == (401, "V-03")


def test_payload_of_another_kind_is_refused(gateway: RunningGateway, market: Market) -> None:
    message = sign_message(
        market.operators[0], Kind.ADMISSION_REQUEST, bytes(32), AdmissionRequest(node=1), gateway.domain
    )
    assert refusal(post(gateway, message)) == (422, "V-04")


@pytest.mark.parametrize("what", ["not JSON", [], {"kind": "admission.request"}, {"note": "hello"}])
def test_what_is_no_envelope_is_refused(gateway: RunningGateway, what: Any) -> None:
    assert refusal(post(gateway, what)) == (422, "V-04")


def test_envelope_over_the_size_limit_is_refused(market: Market, tmp_path: Any) -> None:
    with running_gateway(settings_in(tmp_path, max_message_bytes=500), market.chain.client) as gateway:
        answer = httpx2.post(f"{gateway.url}/api/v1/messages", content=b" " * 501)
    assert refusal(answer) == (413, "V-12")


def test_stranger_has_no_standing(gateway: RunningGateway, market: Market) -> None:
    for account, payload in one_of_each(market, gateway.domain):
        if payload.kind in (Kind.ADMISSION_GRANT, Kind.UNIT_ACCEPTANCE):
            continue  # the signature inside fails before
        with pytest.raises(StandingError):
            gateway.client(market.stranger).post_message(market.task, payload)
        assert account is not market.stranger
    assert gateway.client(market.stranger).messages(market.task) == []


def test_operator_does_not_speak_for_another_node(gateway: RunningGateway, market: Market) -> None:
    for payload in (AdmissionRequest(node=2), UnitProgress(unit=0, node=2, step=1, steps=10)):
        with pytest.raises(StandingError):
            gateway.client(market.operators[0]).post_message(market.task, payload)


def test_operator_does_not_speak_for_the_requester(gateway: RunningGateway, market: Market) -> None:
    operator = market.operators[0]
    signature = sign_acceptance(operator, gateway.domain, market.spec.task_id, 0, b"\x04" * 32)
    with pytest.raises(StandingError):
        gateway.client(operator).post_message(
            market.task, UnitAcceptance(unit=0, result_root=b"\x04" * 32, signature=signature)
        )


def test_nobody_has_standing_in_a_task_that_was_never_posted(gateway: RunningGateway, market: Market) -> None:
    for account in (market.requester, market.operators[0]):
        with pytest.raises(StandingError):
            gateway.client(account).post_message(
                b"\x77" * 32, KeyGrant(grants=(Grant(blob=b"\x01" * 32, reader=1, wrapped_key=b"\x02" * 80),))
            )


def test_expired_message_is_refused(gateway: RunningGateway, market: Market) -> None:
    late = request_of(gateway, market, ttl_s=10, now=int(time.time()) - 11)
    early = request_of(gateway, market, ttl_s=MAX_TTL_S, now=int(time.time()) + 60)
    assert refusal(post(gateway, late)) == (400, "V-06")
    assert refusal(post(gateway, early)) == (400, "V-06")


def test_replayed_message_is_refused_even_after_a_restart(market: Market, tmp_path: Any) -> None:
    settings = settings_in(tmp_path)
    with running_gateway(settings, market.chain.client) as first:
        message = request_of(first, market)
        assert post(first, message).status_code == 201
        assert refusal(post(first, message)) == (409, "V-07")
    with running_gateway(settings, market.chain.client) as second:
        assert refusal(post(second, message)) == (409, "V-07")
        assert len(second.client(market.stranger).messages(market.task)) == 1


def test_two_deliveries_at_once_leave_one_message(gateway: RunningGateway, market: Market) -> None:
    """The check before the insert can be raced; the database's key cannot."""
    message = request_of(gateway, market)
    mailbox = gateway.parts.mailbox
    mailbox._seen_nonce = lambda _sender, _nonce: False  # type: ignore[method-assign,assignment]  # both pass
    mailbox.post(message)
    with pytest.raises(ReplayError):
        mailbox.post(message)
    assert len(gateway.client(market.stranger).messages(market.task)) == 1


def test_sender_that_floods_is_slowed_and_others_are_not(market: Market, tmp_path: Any) -> None:
    with running_gateway(settings_in(tmp_path, messages_per_minute=3), market.chain.client) as gateway:
        answers = [post(gateway, request_of(gateway, market)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert refusal(answers[3]) == (429, "N-32")
        assert int(answers[3].headers["Retry-After"]) >= 1
        assert gateway.client(market.operators[1]).post_message(market.task, AdmissionRequest(node=2))


def test_progress_is_thinned_out_and_its_newest_kept(market: Market, tmp_path: Any) -> None:
    with running_gateway(settings_in(tmp_path, progress_per_unit=8), market.chain.client) as gateway:
        client = gateway.client(market.operators[0])
        for step in range(1, 21):
            client.post_message(market.task, UnitProgress(unit=0, node=1, step=step, steps=20))
        steps = [item.payload["step"] for item in client.messages(market.task)]
    assert len(steps) <= 8
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 20)


def test_share_of_a_mailbox_has_an_end(market: Market, tmp_path: Any) -> None:
    with running_gateway(settings_in(tmp_path, mail_per_sender_and_task=2), market.chain.client) as gateway:
        answers = [post(gateway, request_of(gateway, market)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]


def test_share_of_a_mailbox_is_counted_in_bytes_too_and_again_after_a_restart(market: Market, tmp_path: Any) -> None:
    size = 2000
    for answers in ([201, 201, 429], [429]):
        with running_gateway(
            settings_in(tmp_path, mail_bytes_per_sender_and_task=size), market.chain.client
        ) as gateway:
            keys = KeyGrant(grants=(Grant(blob=b"\x01" * 32, reader=1, wrapped_key=b"\x02" * 80),))
            mail = [sign_message(market.operators[0], keys.kind, market.task, keys, gateway.domain) for _ in answers]
            assert size // 3 < len(mail[0].to_json()) < size // 2
            assert [post(gateway, message).status_code for message in mail] == answers
            assert post(gateway, request_of(gateway, market)).status_code == (201 if len(answers) > 1 else 429)


def test_progress_on_made_up_units_does_not_fill_the_mailbox(market: Market, tmp_path: Any) -> None:
    with running_gateway(settings_in(tmp_path, mail_per_sender_and_task=8), market.chain.client) as gateway:
        client = gateway.client(market.operators[0])
        for unit in range(30):
            client.post_message(market.task, UnitProgress(unit=unit, node=1, step=1, steps=20))
        kept = [item.payload["unit"] for item in client.messages(market.task)]
    assert len(kept) <= 8
    assert kept[-1] == 29


def test_mailbox_keeps_its_name_until_it_is_lost(market: Market, tmp_path: Any) -> None:
    names = []
    for folder in ("a", "a", "b"):
        with running_gateway(settings_in(tmp_path / folder), market.chain.client) as gateway:
            names.append(gateway.client(market.stranger).mail_page(market.task).mailbox)
    assert names[0] == names[1] != names[2]
