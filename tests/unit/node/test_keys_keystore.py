"""Keys on disk: private, verified, and refused when others could have read them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from eth_account import Account

from node.keys import (
    ANVIL_ACCOUNTS,
    LIGHT_SCRYPT_N,
    Keystore,
    PasswordSource,
    dev_account,
    dev_encryption_key,
    x25519_public_key,
)
from protocol.errors import ConfigError

PASSWORD = "correct horse battery"


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    return Keystore(tmp_path, scrypt_n=LIGHT_SCRYPT_N)


def code_of(action: object, *arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        action(*arguments)  # type: ignore[operator]
    assert caught.value.hint
    return caught.value.code


def test_a_new_key_opens_and_is_private(store: Keystore) -> None:
    info = store.create("operator", PASSWORD)
    assert store.load_account("operator", PASSWORD).address == info.public
    assert stat.S_IMODE(info.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(info.path.parent.stat().st_mode) == 0o700


def test_modes_do_not_depend_on_the_umask(store: Keystore) -> None:
    before = os.umask(0)
    try:
        info = store.create("owner", PASSWORD)
    finally:
        os.umask(before)
    assert stat.S_IMODE(info.path.stat().st_mode) == 0o600


def test_the_file_is_a_v3_keystore_that_eth_account_reads(store: Keystore) -> None:
    info = store.create("owner", PASSWORD)
    document = json.loads(info.path.read_text())
    assert document["version"] == 3
    assert document["crypto"]["kdf"] == "scrypt"
    key = Account.decrypt(document, PASSWORD)
    assert Account.from_key(key).address == info.public
    assert bytes(key).hex() not in info.path.read_text()


def test_the_encryption_key_is_stored_the_same_way(store: Keystore) -> None:
    info = store.create("encryption", PASSWORD)
    private = store.load_encryption_key(PASSWORD)
    assert info.public == "0x" + x25519_public_key(private).hex()
    assert "address" not in json.loads(info.path.read_text())


@pytest.mark.parametrize("text", ["0x" + "11" * 32, "11" * 32 + "\n"])
def test_a_private_key_can_be_imported(store: Keystore, text: str) -> None:
    info = store.import_hex("requester", text, PASSWORD)
    assert info.public == Account.from_key(bytes([0x11]) * 32).address


@pytest.mark.parametrize("text", ["", "0x12", "zz" * 32, "00" * 32, "ff" * 32, "11" * 33])
def test_what_is_no_private_key_is_not_imported(store: Keystore, text: str) -> None:
    assert code_of(store.import_hex, "requester", text, PASSWORD) == "C-55"
    assert not store.has("requester")


def test_a_wrong_password_is_named_as_such(store: Keystore) -> None:
    store.create("operator", PASSWORD)
    assert code_of(store.load_account, "operator", PASSWORD + "x") == "C-52"
    assert code_of(store.verify, "operator", "") == "C-52"


def test_a_short_password_is_refused(store: Keystore) -> None:
    assert code_of(store.create, "operator", "short") == "C-52"
    assert not store.has("operator")


def test_a_key_is_never_overwritten(store: Keystore) -> None:
    first = store.create("operator", PASSWORD)
    assert code_of(store.create, "operator", PASSWORD) == "C-54"
    assert code_of(store.import_hex, "operator", "11" * 32, PASSWORD) == "C-54"
    assert store.info("operator").public == first.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(store: Keystore, mode: int) -> None:
    info = store.create("operator", PASSWORD)
    info.path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        store.load_account("operator", PASSWORD)
    assert caught.value.code == "C-51"
    assert caught.value.hint == f"chmod 600 {info.path}"
    info.path.chmod(0o600)
    assert store.load_account("operator", PASSWORD)


def test_a_directory_that_others_can_read_is_refused(store: Keystore) -> None:
    info = store.create("operator", PASSWORD)
    info.path.parent.chmod(0o755)
    with pytest.raises(ConfigError) as caught:
        store.list()
    assert caught.value.code == "C-51"
    assert caught.value.hint == f"chmod 700 {info.path.parent}"


@pytest.mark.parametrize("text", ["", "{}", "[]", "not json", '{"version": 3, "crypto": {}}', '{"version": 9}'])
def test_a_damaged_file_is_named_as_such(store: Keystore, text: str) -> None:
    info = store.create("operator", PASSWORD)
    info.path.write_text(text)
    assert code_of(store.load_account, "operator", PASSWORD) == "C-56"


def test_a_file_that_lies_about_its_address_does_not_verify(store: Keystore) -> None:
    info = store.create("operator", PASSWORD)
    document = json.loads(info.path.read_text())
    document["address"] = "11" * 20
    info.path.write_text(json.dumps(document))
    assert code_of(store.verify, "operator", PASSWORD) == "C-56"


def test_a_missing_or_unknown_key_is_named(store: Keystore) -> None:
    assert code_of(store.info, "operator") == "C-50"
    assert code_of(store.info, "../../etc/passwd") == "C-50"


def test_a_backup_opens_with_the_same_password(store: Keystore, tmp_path: Path) -> None:
    info = store.create("operator", PASSWORD)
    copy = store.backup("operator", tmp_path / "copy.json")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert Account.from_key(Account.decrypt(json.loads(copy.read_text()), PASSWORD)).address == info.public
    assert code_of(store.backup, "operator", copy) == "C-54"


def test_the_list_shows_public_halves_only(store: Keystore) -> None:
    store.create("operator", PASSWORD)
    store.create("encryption", PASSWORD)
    assert [info.name for info in store.list()] == ["operator", "encryption"]
    secret = bytes(store.load_account("operator", PASSWORD).key).hex()
    assert secret not in repr(store.list())


def test_the_password_comes_from_the_flag_then_the_environment_then_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flag").write_text("from flag\n")
    (tmp_path / "env").write_text("from env\n")
    monkeypatch.delenv("AVENUE_PASSWORD_FILE", raising=False)
    assert PasswordSource(None, lambda purpose: f"asked to {purpose}").read("test") == "asked to test"
    assert code_of(PasswordSource().read, "test") == "C-53"
    monkeypatch.setenv("AVENUE_PASSWORD_FILE", str(tmp_path / "env"))
    assert PasswordSource(None, lambda purpose: "asked").read("test") == "from env"
    assert PasswordSource(tmp_path / "flag").read("test") == "from flag"
    assert code_of(PasswordSource(tmp_path / "nowhere").read, "test") == "C-01"


def test_development_accounts_are_anvils_and_stay_local() -> None:
    assert dev_account(0, 31337).address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert dev_account(1, 31337).address == "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
    for chain_id in (1, 11155111, 31338):
        assert code_of(dev_account, 0, chain_id) == "C-57"
    for index in (-1, ANVIL_ACCOUNTS):
        assert code_of(dev_account, index, 31337) == "C-58"


def test_development_encryption_keys_are_stable_and_distinct() -> None:
    first, second = dev_account(0, 31337), dev_account(1, 31337)
    assert dev_encryption_key(first) == dev_encryption_key(first) != dev_encryption_key(second)
    assert len(dev_encryption_key(first)) == 32
