"""avenue keys: make, import, list, show, back up and check keys. Private halves are never shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, Table
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from node.keys import KeyInfo, Keystore

app = typer.Typer(help="Make, import, list, show, back up and check keys.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="owner, operator, requester, deployer or encryption.")]
LightKdf = Annotated[
    bool, typer.Option("--light-kdf", help="Cheap key derivation (4 MiB): for small machines and tests.")
]

_MAX_KEY_TEXT = 1024  # bytes read from a file that should hold 64 hex digits


@command(app, "new", needs=Needs.KEYS)
def new(call: Invocation, name: Name, light_kdf: LightKdf = False) -> None:
    """Make a fresh key, encrypted with a password."""
    store = _keystore(call, light_kdf)
    _refuse_dev_account(call)
    store.path_of(name)
    info = store.create(name, new_password(call, f"protect the key {name!r}"))
    call.out.emit(describe(info), Fields(f"new key {name}", _rows(info)))


@command(app, "import", needs=Needs.KEYS)
def import_(
    call: Invocation,
    name: Name,
    source: Annotated[Path, typer.Argument(help="File with the private key, 64 hex digits; - reads stdin.")],
    light_kdf: LightKdf = False,
) -> None:
    """Encrypt a private key from a file or from stdin."""
    store = _keystore(call, light_kdf)
    _refuse_dev_account(call)
    store.path_of(name)
    info = store.import_hex(name, _read_key(source), new_password(call, f"protect the key {name!r}"))
    call.out.emit(describe(info), Fields(f"imported key {name}", _rows(info)))


@command(app, "ls", hidden=True)
@command(app, "list")
def list_(call: Invocation) -> None:
    """List the keys of this home."""
    infos = _keystore(call).list()
    table = Table(
        ("name", "kind", "public", "file"),
        [(info.name, info.kind, info.public, str(info.path)) for info in infos],
        empty="no keys yet; make some with `avenue init`",
    )
    call.out.emit({"items": [describe(info) for info in infos]}, table)


@command(app, "show")
def show(call: Invocation, name: Name) -> None:
    """Show the public half of a key."""
    info = _keystore(call).info(name)
    call.out.emit(describe(info), Fields(name, _rows(info)))


@command(app, "backup")
def backup(
    call: Invocation, name: Name, target: Annotated[Path, typer.Argument(help="File or directory to copy to.")]
) -> None:
    """Copy an encrypted key file. It opens with the same password."""
    path = _keystore(call).backup(name, target)
    call.out.emit({"name": name, "backup": str(path)}, f"{name} is backed up in {path}")


@command(app, "verify", needs=Needs.KEYS)
def verify(call: Invocation, name: Name) -> None:
    """Check that a key opens and is the one its file says."""
    store = _keystore(call)
    store.info(name)
    info = store.verify(name, call.passwords.read(f"open the key {name!r}"))
    call.out.emit({**describe(info), "verified": True}, Fields(f"{name} opens, and is what it says", _rows(info)))


def new_password(call: Invocation, purpose: str) -> str:
    """A password for something new: from its file, or asked for twice. Raises ConfigError C-53 without a source."""
    from node.keys import PasswordSource

    prompt = call.out.ask_new_password if call.out.interactive else None
    return PasswordSource(call.password_file, prompt).read(purpose)


def describe(info: KeyInfo) -> dict[str, Any]:
    """What may be said of a key, for JSON."""
    return {"name": info.name, "kind": info.kind, "public": info.public, "path": str(info.path)}


def _rows(info: KeyInfo) -> list[tuple[str, str]]:
    label = "public key" if info.kind == "x25519" else "address"
    return [(label, info.public), ("file", str(info.path))]


def _keystore(call: Invocation, light_kdf: bool = False) -> Keystore:
    from node.keys import LIGHT_SCRYPT_N, SCRYPT_N, Keystore

    return Keystore(call.home, scrypt_n=LIGHT_SCRYPT_N if light_kdf else SCRYPT_N)


def _refuse_dev_account(call: Invocation) -> None:
    if call.dev_account is not None:
        raise ConfigError(
            "development accounts are never stored", code="C-58", hint="leave --dev-account out, or use it without keys"
        )


def _read_key(source: Path) -> str:
    if str(source) == "-":
        return sys.stdin.read(_MAX_KEY_TEXT)
    try:
        with source.expanduser().open(encoding="ascii") as file:
            return file.read(_MAX_KEY_TEXT)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read {source}: {reason}", code="C-01", hint="check the path") from error
