"""Private blobs: a fresh content key seals the bytes, sealed boxes carry the key to each reader (docs/protocol.md
section 5).

    sealed blob  = "avenue1" || nonce (24) || XChaCha20-Poly1305(key, plaintext, aad = "avenue.blob.v1")
    wrapped key  = libsodium sealed box (X25519, XSalsa20-Poly1305) of the 32-byte key, 80 bytes

Nonces are random: at 192 bits they do not repeat, and a key seals one blob only. Opening fails closed: a flipped bit,
a cut or a wrong key raises BlobError and yields no bytes. A sealed box names no sender; who granted a key is said by
the signed `key.grant` around it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.utils import random as random_bytes

from protocol.errors import BlobError

MAGIC = b"avenue1"
AAD = b"avenue.blob.v1"
KEY_BYTES = 32
NONCE_BYTES = 24
TAG_BYTES = 16
OVERHEAD_BYTES = len(MAGIC) + NONCE_BYTES + TAG_BYTES
MAX_PLAINTEXT_BYTES = 4 << 30
"""Sealing is all in memory (plaintext and ciphertext at once); larger things are cut into several blobs."""


@dataclass(frozen=True, slots=True)
class EncryptionKey:
    """An X25519 key pair of a reader. `repr` never shows the private half."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def generate(cls) -> EncryptionKey:
        """A fresh pair from the system's randomness."""
        return cls.from_bytes(bytes(PrivateKey.generate()))

    @classmethod
    def from_bytes(cls, private: bytes) -> EncryptionKey:
        """The pair of a stored 32-byte private key. Raises BlobError on another length."""
        if len(private) != KEY_BYTES:
            raise BlobError(f"an encryption key has {KEY_BYTES} bytes, not {len(private)}", code="V-14")
        return cls(private=private, public=bytes(PrivateKey(private).public_key))


def seal(plaintext: bytes, *, key: bytes | None = None) -> tuple[bytes, bytes]:
    """Returns (content key, sealed blob), the blob OVERHEAD_BYTES longer than `plaintext`.

    The key is fresh unless given; give one only to write down the key before the blob is made, never to seal twice.
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise BlobError(f"{len(plaintext)} bytes are too many for one sealed blob", code="V-12", hint="cut the data")
    content_key = random_bytes(KEY_BYTES) if key is None else key
    _check_key(content_key)
    nonce = random_bytes(NONCE_BYTES)
    ciphertext = crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, AAD, nonce, content_key)
    return content_key, MAGIC + nonce + ciphertext


def open_sealed(sealed: bytes, key: bytes, *, max_size: int = MAX_PLAINTEXT_BYTES) -> bytes:
    """The plaintext. Raises BlobError if it is no sealed blob, was altered or cut, or the key is another blob's.

    `max_size` (bytes of plaintext) is checked before anything is allocated.
    """
    _check_key(key)
    if len(sealed) < OVERHEAD_BYTES or not sealed.startswith(MAGIC):
        raise BlobError("not a sealed blob", code="V-13", hint="this blob is public, or was cut short")
    if len(sealed) - OVERHEAD_BYTES > max_size:
        raise BlobError(f"{len(sealed) - OVERHEAD_BYTES} bytes are sealed, at most {max_size} expected", code="V-12")
    nonce = sealed[len(MAGIC) : len(MAGIC) + NONCE_BYTES]
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed[len(MAGIC) + NONCE_BYTES :], AAD, nonce, key)
    except CryptoError as error:
        raise BlobError(
            "the sealed blob does not open: it was altered, or the key is not its key",
            code="V-13",
            hint="ask the requester for a new key.grant",
        ) from error


def wrap(key: bytes, reader_public: bytes) -> bytes:
    """The content key in a sealed box that only the holder of `reader_public` opens; 80 bytes.

    Raises BlobError if `reader_public` is no usable X25519 key (wrong length, or a point of low order).
    """
    _check_key(key)
    if len(reader_public) != KEY_BYTES:
        raise BlobError(f"a reader's public key has {KEY_BYTES} bytes, not {len(reader_public)}", code="V-14")
    try:
        return bytes(SealedBox(PublicKey(reader_public)).encrypt(key))
    except (CryptoError, RuntimeError) as error:
        raise BlobError("the reader's public key is not usable", code="V-14") from error


def unwrap(wrapped: bytes, reader: EncryptionKey) -> bytes:
    """The content key. Raises BlobError if it was wrapped to somebody else or altered."""
    try:
        key = bytes(SealedBox(PrivateKey(reader.private)).decrypt(wrapped))
    except (CryptoError, ValueError, TypeError) as error:
        raise BlobError("the wrapped key does not open with this encryption key", code="V-14") from error
    _check_key(key)
    return key


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise BlobError(f"a content key has {KEY_BYTES} bytes, not {len(key)}", code="V-14")
