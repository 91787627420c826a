"""Sealed blobs and wrapped keys: who can read, and what no one can alter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BlobError
from protocol.sealing import OVERHEAD_BYTES, EncryptionKey, open_sealed, seal, unwrap, wrap

PLAINTEXT = b"weights of somebody's model " * 40


def test_reader_with_a_grant_opens_and_others_do_not() -> None:
    granted, stranger = EncryptionKey.generate(), EncryptionKey.generate()
    key, sealed = seal(PLAINTEXT)
    wrapped = wrap(key, granted.public)

    assert open_sealed(sealed, unwrap(wrapped, granted)) == PLAINTEXT
    with pytest.raises(BlobError, match="V-14"):
        unwrap(wrapped, stranger)


def test_two_readers_open_the_same_blob_with_their_own_keys() -> None:
    readers = [EncryptionKey.generate() for _ in range(2)]
    key, sealed = seal(PLAINTEXT)

    assert {open_sealed(sealed, unwrap(wrap(key, reader.public), reader)) for reader in readers} == {PLAINTEXT}


def test_sealed_blob_has_the_documented_layout_and_shows_no_plaintext() -> None:
    _key, sealed = seal(PLAINTEXT)

    assert sealed.startswith(b"avenue1")
    assert len(sealed) == len(PLAINTEXT) + OVERHEAD_BYTES
    assert not any(PLAINTEXT[i : i + 8] in sealed for i in range(len(PLAINTEXT) - 8))


def test_sealing_twice_gives_other_keys_and_other_bytes() -> None:
    first, second = seal(PLAINTEXT), seal(PLAINTEXT)

    assert first[0] != second[0]
    assert first[1] != second[1]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60 * 8 - 1))
def test_any_flipped_bit_keeps_the_blob_shut(bit: int) -> None:
    key, sealed = seal(b"0123456789abc")
    assert len(sealed) == 60
    damaged = bytearray(sealed)
    damaged[bit // 8] ^= 1 << bit % 8

    with pytest.raises(BlobError):
        open_sealed(bytes(damaged), key)


@pytest.mark.parametrize("kept", [0, 6, 7, 30, 46, 47, 50])
def test_truncated_blob_stays_shut(kept: int) -> None:
    key, sealed = seal(PLAINTEXT)
    with pytest.raises(BlobError, match="V-13"):
        open_sealed(sealed[:kept], key)


def test_another_blobs_key_does_not_open() -> None:
    other_key, _ = seal(PLAINTEXT)
    _, sealed = seal(PLAINTEXT)
    with pytest.raises(BlobError, match="V-13"):
        open_sealed(sealed, other_key)


def test_plaintext_larger_than_expected_is_refused_before_opening() -> None:
    key, sealed = seal(PLAINTEXT)
    with pytest.raises(BlobError, match="V-12"):
        open_sealed(sealed, key, max_size=len(PLAINTEXT) - 1)
    assert open_sealed(sealed, key, max_size=len(PLAINTEXT)) == PLAINTEXT


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_a_wrong_length_are_refused(length: int) -> None:
    key, sealed = seal(PLAINTEXT)
    with pytest.raises(BlobError, match="V-14"):
        open_sealed(sealed, bytes(length))
    with pytest.raises(BlobError, match="V-14"):
        wrap(key, bytes(length))
    with pytest.raises(BlobError, match="V-14"):
        EncryptionKey.from_bytes(bytes(length))


def test_reader_key_of_low_order_is_refused() -> None:
    key, _ = seal(PLAINTEXT)
    with pytest.raises(BlobError, match="V-14"):
        wrap(key, bytes(32))


@pytest.mark.parametrize("wrapped", [b"", bytes(79), bytes(80), bytes(81)])
def test_garbled_wrapped_key_is_refused(wrapped: bytes) -> None:
    with pytest.raises(BlobError, match="V-14"):
        unwrap(wrapped, EncryptionKey.generate())


def test_key_pair_comes_back_from_its_private_bytes() -> None:
    pair = EncryptionKey.generate()
    assert EncryptionKey.from_bytes(pair.private) == pair


def test_private_key_is_never_printed() -> None:
    pair = EncryptionKey.from_bytes(b"\x42" * 32)
    assert repr(pair.private) not in repr(pair)
    assert pair.private.hex() not in repr(pair)
