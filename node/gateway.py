"""The gateway as agents see it: post and read signed messages, move blobs. Nothing that it says is believed.

Envelopes are for their reader to verify; a blob's index is held up to the blob's id before a byte of it is allocated,
and every chunk to the index. Transfers resume: an upload sends only the chunks that the gateway lacks, a download
into a file keeps the chunks that are already right. A gateway that is busy or gone is tried again with growing
pauses; one that stays away is an UnreachableError.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar, overload

import httpx2
from eth_account.signers.local import LocalAccount
from pydantic import BaseModel, ValidationError

from proofs.blob import CHUNK_BYTES, BlobFormatError, BlobIndex, check_chunk, index_of
from protocol.errors import AvenueError, BlobError, ReplayError, StateError, UnreachableError
from protocol.json_types import to_hex
from protocol.messages import DEFAULT_TTL_S, BlobAnnounce, Domain, Payload, SignedMessage, sign_message
from protocol.types import ZERO32, BlobId
from protocol.wire import (
    API_PREFIX,
    BlobAnnounced,
    BlobInfo,
    ErrorAnswer,
    GatewayStatus,
    MailItem,
    MailPage,
    MessagePosted,
)

_TRIES = 5
_PAUSE_S = 0.25
_MAX_PAUSE_S = 10.0
_TRY_AGAIN = {429, 502, 503, 504}
_MAX_ANSWER_BYTES = 64 << 20
MAIL_PAGE = 200

AnswerT = TypeVar("AnswerT", bound=BaseModel)


class GatewayClient:
    """One gateway, one signing account (None: reads only). Safe to use from several threads."""

    def __init__(
        self,
        base_url: str,
        account: LocalAccount | None,
        domain: Domain,
        *,
        timeout_s: float = 30.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._account = account
        self._domain = domain
        self._pause = pause
        # No compression: a small answer must not unpack into a large one. No proxy from the environment, as for the
        # RPC endpoints: the doctor and the agents then see the same gateway.
        headers = {"Accept-Encoding": "identity"}
        base_url = self._base_url + API_PREFIX
        self._http = httpx2.Client(base_url=base_url, timeout=timeout_s, headers=headers, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def status(self) -> GatewayStatus:
        """Whom the gateway serves, and how far its index is. Raises UnreachableError."""
        return self._get("/status", GatewayStatus)

    # --- messages ---

    def post_message(self, task: bytes, payload: Payload, *, ttl_s: int = DEFAULT_TTL_S) -> int | None:
        """Signs `payload` for `task` and delivers it. Returns its id, or None if only the answer was lost on the way.

        Raises what the gateway refuses with (protocol/errors.py) and UnreachableError.
        """
        message = self._signed(task, payload, ttl_s)
        answer = self._deliver(message, MessagePosted)
        return None if answer is None else answer.id

    def messages(
        self, task: bytes | None = None, kind: str | None = None, after: int = 0, limit: int = MAIL_PAGE
    ) -> list[MailItem]:
        """The items of `mail_page`, if nobody minds which mailbox they are from."""
        return list(self.mail_page(task, kind, after, limit).items)

    def mail_page(
        self, task: bytes | None = None, kind: str | None = None, after: int = 0, limit: int = MAIL_PAGE
    ) -> MailPage:
        """The next mail with id > `after`, in the order of arrival; empty when there is nothing new.

        Ask again with the last item's id: a page may be shorter than `limit`. Unverified: `item.envelope()` goes
        through `protocol.messages.verify_stored_message`, because a gateway can make up an item, though not a
        signature.
        """
        query: dict[str, str | int] = {"after": after, "limit": limit}
        if task is not None:
            query["task"] = to_hex(task)
        if kind is not None:
            query["kind"] = kind
        page = self._get("/messages", MailPage, query)
        if any(item.id <= after for item in page.items):
            raise UnreachableError(f"{self._base_url} repeats its mailbox", code="N-31", hint="use another gateway")
        return page

    # --- blobs ---

    def upload_blob(self, data: bytes, task: bytes = ZERO32) -> BlobId:
        """Announces a blob and sends the chunks that the gateway lacks. Returns its id. Repeat it to resume.

        Raises BlobError, StandingError, StateError (S-70: no space there), UnreachableError.
        """
        index = index_of(data)
        announcement = BlobAnnounce(blob=index.blob_id, size=index.size, index=index.leaves)
        message = self._signed(task, announcement)
        answer = self._deliver(message, BlobAnnounced)
        missing = self.blob_info(index.blob_id).missing if answer is None else answer.missing
        for position in missing:
            if not 0 <= position < index.chunks:
                raise BlobError(f"the gateway asks for chunk {position} of {index.chunks}", code="V-11")
            self._request("PUT", f"/blobs/{to_hex(index.blob_id)}/chunks/{position}", content=_chunk(data, position))
        return BlobId(index.blob_id)

    def blob_info(self, blob_id: bytes) -> BlobInfo:
        """What the gateway says of a blob, unchecked. Raises StateError S-71 if it has none."""
        return self._get(f"/blobs/{to_hex(blob_id)}", BlobInfo)

    @overload
    def download_blob(self, blob_id: bytes, max_size: int, dest_path: None = None) -> bytes: ...

    @overload
    def download_blob(self, blob_id: bytes, max_size: int, dest_path: Path) -> Path: ...

    def download_blob(self, blob_id: bytes, max_size: int, dest_path: Path | None = None) -> bytes | Path:
        """A blob's bytes, or, with `dest_path`, the file into which they were put, whole or not at all.

        Size and index are checked against the id, and the size against `max_size` bytes, before anything is allocated;
        every chunk is checked before it is kept. With `dest_path`, what an earlier try left in `<dest_path>.partial` is
        checked and kept. Raises BlobError naming the chunk, StateError S-71 if the gateway lacks some of it,
        UnreachableError.
        """
        index, missing = self._checked_index(blob_id, max_size)
        if dest_path is None:
            if missing:
                raise _not_here(index, min(missing))
            data = bytearray(index.size)
            for position in range(index.chunks):
                start = position * CHUNK_BYTES
                data[start : start + index.chunk_size(position)] = self._checked_chunk(index, position)
            return bytes(data)
        return self._download_into(index, missing, dest_path)

    def _checked_index(self, blob_id: bytes, max_size: int) -> tuple[BlobIndex, frozenset[int]]:
        """The index that hashes to the id, and the chunks that the gateway says it lacks."""
        name = to_hex(blob_id)
        # 70 bytes are a hash in JSON; what is longer cannot be the index of a blob that we would take.
        max_answer = 65536 + 70 * 2 * (max_size // CHUNK_BYTES + 1)
        info = self._get(f"/blobs/{name}", BlobInfo, max_bytes=min(max_answer, _MAX_ANSWER_BYTES))
        if info.size > max_size:
            raise BlobError(f"blob {name} has {info.size} bytes, at most {max_size} expected", code="V-12")
        try:
            index = BlobIndex(size=info.size, leaves=info.index)
        except BlobFormatError as error:
            raise BlobError(f"the index of blob {name} does not fit its size: {error}") from error
        if index.blob_id != blob_id:
            raise BlobError(f"the index that the gateway gives for blob {name} is of {to_hex(index.blob_id)}")
        return index, frozenset(info.missing)

    def _checked_chunk(self, index: BlobIndex, position: int) -> bytes:
        size = index.chunk_size(position)
        data = self._request("GET", f"/blobs/{to_hex(index.blob_id)}/chunks/{position}", max_bytes=size)
        _check(index, position, data)
        return data

    def _download_into(self, index: BlobIndex, missing: frozenset[int], dest_path: Path) -> Path:
        partial = dest_path.with_name(dest_path.name + ".partial")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(index.size)
            for position in range(index.chunks):
                file.seek(position * CHUNK_BYTES)
                if _is_chunk(index, position, file.read(index.chunk_size(position))):
                    continue
                if position in missing:
                    raise _not_here(index, position)
                data = self._checked_chunk(index, position)
                file.seek(position * CHUNK_BYTES)
                file.write(data)
                file.flush()
            os.fsync(file.fileno())
        partial.replace(dest_path)
        return dest_path

    def _signed(self, task: bytes, payload: Payload, ttl_s: int = DEFAULT_TTL_S) -> SignedMessage:
        if self._account is None:
            raise TypeError("this client was made without a key: it only reads")
        return sign_message(self._account, payload.kind, task, payload, self._domain, ttl_s)

    # --- HTTP ---

    def _deliver(self, message: SignedMessage, model: type[AnswerT]) -> AnswerT | None:
        """None if a first try got through though its answer did not: the gateway then knows the nonce."""
        tries = 0

        def count() -> None:
            nonlocal tries
            tries += 1

        headers = {"Content-Type": "application/json"}
        try:
            body = self._request("POST", "/messages", content=message.to_json(), headers=headers, on_try=count)
        except ReplayError:
            if tries > 1:
                return None
            raise
        return _parsed(model, body, self._base_url)

    def _get(
        self,
        path: str,
        model: type[AnswerT],
        params: dict[str, str | int] | None = None,
        *,
        max_bytes: int = _MAX_ANSWER_BYTES,
    ) -> AnswerT:
        return _parsed(model, self._request("GET", path, params=params, max_bytes=max_bytes), self._base_url)

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str | int] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
        max_bytes: int = _MAX_ANSWER_BYTES,
        on_try: Callable[[], None] = lambda: None,
    ) -> bytes:
        """The body of a 2xx answer, at most `max_bytes`; tried again while the gateway is busy or away."""
        reason = ""
        for number in range(_TRIES):
            on_try()
            wait_s = _PAUSE_S * 2**number * random.uniform(0.5, 1.5)
            try:
                request = self._http.stream(method, path, params=params, content=content, headers=headers)
                with request as response:
                    body = _bounded(response, max_bytes if response.is_success else 65536, path)
                    if response.is_success:
                        return body
                    if response.status_code not in _TRY_AGAIN:
                        raise _refusal(response.status_code, body, self._base_url)
                    reason = str(_refusal(response.status_code, body, self._base_url))
                    wait_s = max(wait_s, _retry_after_s(response))
            except httpx2.HTTPError as error:
                reason = f"{type(error).__name__}: {error}"
            if number + 1 < _TRIES:
                self._pause(min(wait_s, _MAX_PAUSE_S))
        raise UnreachableError(
            f"gateway {self._base_url} does not serve {method} {path} after {_TRIES} tries: {reason}",
            code="N-30",
            hint="is it running? `avenue doctor` checks gateway_url",
        )


def _chunk(data: bytes, position: int) -> bytes:
    return data[position * CHUNK_BYTES : (position + 1) * CHUNK_BYTES]


def _bounded(response: httpx2.Response, max_bytes: int, path: str) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        if len(body) + len(piece) > max_bytes:
            raise BlobError(f"the answer to {path} is larger than the {max_bytes} bytes it may have", code="V-12")
        body += piece
    return bytes(body)


def _refusal(status: int, body: bytes, base_url: str) -> AvenueError:
    try:
        return ErrorAnswer.model_validate_json(body).error.to_exception()
    except ValidationError:
        return UnreachableError(
            f"{base_url} answers HTTP {status} and nothing that a gateway would say",
            code="N-31",
            hint="is gateway_url the address of an Avenue gateway?",
        )


def _parsed(model: type[AnswerT], body: bytes, base_url: str) -> AnswerT:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UnreachableError(
            f"{base_url} does not answer like a gateway: {first['msg']} at {first['loc']}",
            code="N-31",
            hint="is gateway_url the address of an Avenue gateway?",
        ) from error


def _retry_after_s(response: httpx2.Response) -> float:
    text = response.headers.get("Retry-After", "0")
    return float(text) if text.isdecimal() else 0.0


def _not_here(index: BlobIndex, position: int) -> StateError:
    return StateError(
        f"chunk {position} of blob {to_hex(index.blob_id)} is not uploaded yet",
        code="S-71",
        hint="wait for its uploader, or ask it to upload again",
    )


def _is_chunk(index: BlobIndex, position: int, data: bytes) -> bool:
    try:
        check_chunk(index, position, data)
    except BlobFormatError:
        return False
    return True


def _check(index: BlobIndex, position: int, data: bytes) -> None:
    try:
        check_chunk(index, position, data)
    except BlobFormatError as error:
        raise BlobError(
            f"blob {to_hex(index.blob_id)}: {error}",
            code="V-11",
            hint="the gateway's copy is damaged; try another gateway, or ask for another upload",
        ) from error
