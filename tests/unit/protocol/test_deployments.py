"""protocol.deployments: records are found, whole, and about the right chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.deployments import Deployment, load, path_in, save, save_in_checkout
from protocol.errors import ConfigError

A, B, C, D = ("0x" + digit * 40 for digit in "1234")
RECORD = Deployment(31337, 5, A, B, C, D, {"token": "0x00"})  # type: ignore[arg-type]


@pytest.mark.parametrize("record", [RECORD, replace(RECORD, faucet=None)])
def test_saved_record_is_loaded(tmp_path: Path, record: Deployment) -> None:
    assert save(record, tmp_path / "new" / "folder") == path_in(tmp_path / "new" / "folder", 31337)
    assert load(31337, tmp_path / "new" / "folder") == record


def test_saving_leaves_no_temporary_file_and_replaces_the_old(tmp_path: Path) -> None:
    save(RECORD, tmp_path)
    save(replace(RECORD, block=6), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["31337.json"]
    assert load(31337, tmp_path).block == 6


@pytest.mark.parametrize("directory", [True, False])
def test_chain_without_a_record_is_named(tmp_path: Path, directory: bool) -> None:
    with pytest.raises(ConfigError, match="not deployed on chain 31337") as caught:
        load(31337, tmp_path if directory else None)
    assert caught.value.code == "C-30" and "avenue deploy" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        RECORD.to_json()[:-20],
        RECORD.to_json().replace('"version": 1', '"version": 2'),
        RECORD.to_json().replace(A, "0x12"),
        RECORD.to_json().replace('"chain_id": 31337', '"chain_id": 1'),
    ],
)
def test_damaged_record_names_its_file(tmp_path: Path, text: str) -> None:
    path_in(tmp_path, 31337).write_text(text)
    with pytest.raises(ConfigError, match=r"31337\.json") as caught:
        load(31337, tmp_path)
    assert caught.value.code == "C-31"


def test_addresses_are_listed_by_name() -> None:
    assert RECORD.addresses == {"token": A, "registry": B, "market": C, "faucet": D}
    assert "faucet" not in replace(RECORD, faucet=None).addresses


@pytest.mark.parametrize(
    ("chain_id", "checkout", "written"), [(11155111, True, True), (31337, True, False), (1, False, False)]
)
def test_record_is_put_into_a_checkout_unless_the_chain_forgets(
    tmp_path: Path, chain_id: int, checkout: bool, written: bool
) -> None:
    package = tmp_path / "protocol" / "deployments"
    package.mkdir(parents=True)
    if checkout:
        (tmp_path / ".git").mkdir()
    record = replace(RECORD, chain_id=chain_id)
    path = save_in_checkout(record, package)
    assert (path is not None) == written
    assert (package / f"{chain_id}.json").exists() == written
