"""Private keys: encrypted on disk, refused when others could read them, never shown.

A key is a Web3 Secret Storage V3 file (scrypt), $AVENUE_HOME/keystore/<name>.json, mode 0600 in a directory of mode
0700. After writing, the file is read back and decrypted before anybody relies on it (staking-deposit-cli does the
same). The password comes from a prompt, `--password-file` or AVENUE_PASSWORD_FILE; never from a flag's value, which
would land in the shell's history and the process list.

Names: `owner` (cold: gets the money), `operator` (hot: works and signs), `requester`, `deployer`: Ethereum keys;
`encryption`: the X25519 key to which content keys are wrapped (docs/protocol.md section 5), same file format, its
public key noted beside instead of an address.

The accounts of Anvil's well-known mnemonic exist for local chains only: `dev_account` refuses any other chain id.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.config import LOCAL_CHAIN_ID
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

ETHEREUM_KEY_NAMES = ("owner", "operator", "requester", "deployer")
ENCRYPTION_KEY_NAME = "encryption"
KEY_NAMES = (*ETHEREUM_KEY_NAMES, ENCRYPTION_KEY_NAME)

PASSWORD_FILE_VARIABLE = "AVENUE_PASSWORD_FILE"
KEYSTORE_DIRECTORY_NAME = "keystore"

SCRYPT_N = 2**18
"""Work factor of the V3 standard: 256 MiB and about a second for each guess."""
LIGHT_SCRYPT_N = 2**12
"""geth's `--lightkdf`: for small machines and tests; a weak password falls sooner."""

MIN_PASSWORD_LENGTH = 8
_MAX_KEYSTORE_BYTES = 64 * 1024
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

_ANVIL_MNEMONIC = "test test test test test test test test test test test junk"
ANVIL_ACCOUNTS = 10


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be shown of a key. `public` is an address, or for `encryption` a 32-byte public key, 0x-hex."""

    name: str
    kind: str
    public: str
    path: Path


@dataclass(frozen=True)
class PasswordSource:
    """Where the keystore password comes from, asked at most once.

    `prompt` asks a person (None when nobody is there: --json, no terminal).
    """

    file: Path | None = None
    prompt: Callable[[str], str] | None = None

    def read(self, purpose: str) -> str:
        """The password. Raises ConfigError C-53 if there is no source for one, C-01 if its file cannot be read."""
        path = self.file
        if path is None and os.environ.get(PASSWORD_FILE_VARIABLE):
            path = Path(os.environ[PASSWORD_FILE_VARIABLE])
        if path is not None:
            try:
                text = path.expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"cannot read the password file {path}: {error}", code="C-01", hint="check the path and its mode"
                ) from error
            return text.removesuffix("\n").removesuffix("\r")
        if self.prompt is None:
            raise ConfigError(
                f"no password to {purpose}",
                code="C-53",
                hint=f"give --password-file FILE or set {PASSWORD_FILE_VARIABLE}",
            )
        return self.prompt(purpose)


class Keystore:
    """The keys in one directory. Every read checks the modes first."""

    def __init__(self, home: Path, *, scrypt_n: int = SCRYPT_N) -> None:
        self.directory = home / KEYSTORE_DIRECTORY_NAME
        self._scrypt_n = scrypt_n

    def path_of(self, name: str) -> Path:
        """Raises ConfigError C-50 for a name that is none of KEY_NAMES."""
        if name not in KEY_NAMES:
            raise ConfigError(f"no key is called {name!r}", code="C-50", hint=f"names: {', '.join(KEY_NAMES)}")
        return self.directory / f"{name}.json"

    def has(self, name: str) -> bool:
        return self.path_of(name).exists()

    def list(self) -> tuple[KeyInfo, ...]:
        """Every key here, without decrypting any. Raises ConfigError C-51 or C-56."""
        return tuple(self.info(name) for name in KEY_NAMES if self.has(name))

    def info(self, name: str) -> KeyInfo:
        """What the file says in the clear. Raises ConfigError C-50 missing, C-51 too open, C-56 damaged."""
        document = self._read(name)
        kind = "x25519" if name == ENCRYPTION_KEY_NAME else "ethereum"
        return KeyInfo(name, kind, _public_of(name, document, self.path_of(name)), self.path_of(name))

    def create(self, name: str, password: str) -> KeyInfo:
        """A fresh random key. Raises ConfigError C-52 for a password that is too short, C-54 if the name is taken."""
        return self._store(name, _random_key(), password)

    def import_hex(self, name: str, text: str, password: str) -> KeyInfo:
        """Stores a private key given as 64 hex digits, 0x or not. Raises ConfigError C-55 if it is no private key."""
        digits = text.strip().removeprefix("0x")
        try:
            key = bytes.fromhex(digits)
        except ValueError:
            key = b""
        if len(key) != 32 or not 0 < int.from_bytes(key, "big") < _SECP256K1_ORDER:
            raise ConfigError("this is no private key", code="C-55", hint="give 64 hex digits on one line")
        return self._store(name, key, password)

    def load_account(self, name: str, password: str) -> LocalAccount:
        """The Ethereum account. Raises ConfigError C-50 missing, C-51 too open, C-52 wrong password, C-56 damaged."""
        from eth_account import Account  # half a second: only commands that sign pay it

        account: LocalAccount = Account.from_key(self._decrypt(name, password))
        return account

    def load_encryption_key(self, password: str) -> bytes:
        """The 32-byte X25519 private key. Raises as `load_account`."""
        return self._decrypt(ENCRYPTION_KEY_NAME, password)

    def verify(self, name: str, password: str) -> KeyInfo:
        """Decrypts and checks that the private key is that of the public one in the file. Raises as `load_account`."""
        key = self._decrypt(name, password)
        info = self.info(name)
        if _derive_public(name, key).lower() != info.public.lower():
            raise ConfigError(
                f"{info.path} holds another key than it says", code="C-56", hint="restore it from a backup"
            )
        return info

    def backup(self, name: str, target: Path) -> Path:
        """Copies the encrypted file to `target`, mode 0600. Raises ConfigError C-54 if the target exists."""
        data = json.dumps(self._read(name), indent=2).encode() + b"\n"
        if target.is_dir():
            target = target / f"avenue-{name}.json"
        _write_private(target, data)
        return target

    def _store(self, name: str, key: bytes, password: str) -> KeyInfo:
        from eth_keyfile import keyfile

        path = self.path_of(name)
        if len(password) < MIN_PASSWORD_LENGTH:
            raise ConfigError(
                f"the password is shorter than {MIN_PASSWORD_LENGTH} characters",
                code="C-52",
                hint="choose a longer one",
            )
        if path.exists():
            raise _already_there(path)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_open_mode(self.directory)
        document: dict[str, Any] = dict(
            keyfile.create_keyfile_json(key, password.encode(), kdf="scrypt", iterations=self._scrypt_n)
        )
        if name == ENCRYPTION_KEY_NAME:
            del document["address"]
            document["x25519"] = _derive_public(name, key)
        _write_private(path, json.dumps(document, indent=2).encode() + b"\n")
        if self._decrypt(name, password) != key:  # a full disk or a bad one shows now, not when money depends on it
            path.unlink()
            raise ConfigError(
                f"{path} did not read back as written", code="C-56", hint="check the disk, then try again"
            )
        return self.info(name)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path_of(name)
        if not path.exists():
            raise ConfigError(
                f"there is no key {name!r} in {self.directory}", code="C-50", hint=f"make one: avenue keys new {name}"
            )
        _refuse_open_mode(self.directory)
        _refuse_open_mode(path)
        if path.stat().st_size > _MAX_KEYSTORE_BYTES:
            raise _damaged(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(path) from error
        if not isinstance(document, dict):
            raise _damaged(path)
        return document

    def _decrypt(self, name: str, password: str) -> bytes:
        from eth_keyfile import keyfile

        path, document = self.path_of(name), self._read(name)
        try:
            return bytes(keyfile.decode_keyfile_json(document, password.encode()))
        except ValueError as error:
            if "MAC mismatch" in str(error):
                raise ConfigError(
                    f"wrong password for the key {name!r}",
                    code="C-52",
                    hint=f"try again, or check the file given by --password-file or {PASSWORD_FILE_VARIABLE}",
                ) from None
            raise _damaged(path) from error
        except (KeyError, TypeError, NotImplementedError) as error:
            raise _damaged(path) from error


def dev_account(index: int, chain_id: int) -> LocalAccount:
    """Account `index` (0 to 9) of Anvil's public mnemonic. `chain_id` must come from the live chain.

    Raises ConfigError C-57 on any chain but 31337: everybody has these keys. C-58 for an index out of range.
    """
    if chain_id != LOCAL_CHAIN_ID:
        raise ConfigError(
            f"the development accounts are public; they are refused on chain {chain_id}",
            code="C-57",
            hint=f"only chain {LOCAL_CHAIN_ID} takes --dev-account; elsewhere make your own: avenue keys new",
        )
    if not 0 <= index < ANVIL_ACCOUNTS:
        raise ConfigError(
            f"there is no development account {index}", code="C-58", hint=f"choose 0 to {ANVIL_ACCOUNTS - 1}"
        )
    from eth_account import Account

    Account.enable_unaudited_hdwallet_features()
    account: LocalAccount = Account.from_mnemonic(_ANVIL_MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return account


def dev_encryption_key(account: LocalAccount) -> bytes:
    """X25519 private key of a development account: derived, so that it survives a restart; as public as the account."""
    from eth_utils.crypto import keccak

    return keccak(b"avenue.dev.x25519" + bytes(account.key))


def x25519_public_key(private_key: bytes) -> bytes:
    from nacl.public import PrivateKey

    return bytes(PrivateKey(private_key).public_key)


def _random_key() -> bytes:
    while True:
        key = secrets.token_bytes(32)
        if 0 < int.from_bytes(key, "big") < _SECP256K1_ORDER:
            return key


def _derive_public(name: str, key: bytes) -> str:
    if name == ENCRYPTION_KEY_NAME:
        return "0x" + x25519_public_key(key).hex()
    from eth_keys.datatypes import PrivateKey

    return str(PrivateKey(key).public_key.to_checksum_address())


def _public_of(name: str, document: dict[str, Any], path: Path) -> str:
    value = document.get("x25519" if name == ENCRYPTION_KEY_NAME else "address")
    if not isinstance(value, str):
        raise _damaged(path)
    if name == ENCRYPTION_KEY_NAME:
        return value
    from eth_utils.address import is_hex_address, to_checksum_address

    if not is_hex_address(value):
        raise _damaged(path)
    return str(to_checksum_address(value))


def _refuse_open_mode(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        fix = "700" if path.is_dir() else "600"
        raise ConfigError(f"others can read {path} (mode {mode:04o})", code="C-51", hint=f"chmod {fix} {path}")


def _write_private(path: Path, data: bytes) -> None:
    """Creates `path` with mode 0600 whatever the umask, durable before it returns; never replaces a file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise _already_there(path) from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", code="C-01", hint="check the directory") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _already_there(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} exists; a key is never overwritten", code="C-54", hint="move it away first if you are sure"
    )


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"{path} is no V3 keystore", code="C-56", hint="restore it from a backup")
