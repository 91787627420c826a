"""Where Avenue's contracts are, per chain: one small JSON file, `<chainId>.json`.

A record in the user's own directory wins over the one in the package. The record of chain 31337 (a local chain that
forgets) is never shipped. Files are written whole or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from eth_typing import ChecksumAddress
from eth_utils.address import is_address, to_checksum_address

from protocol.errors import ConfigError

LOCAL_CHAIN_ID = 31337
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment. `block` is where to start reading events; `faucet` is None outside test networks."""

    chain_id: int
    block: int
    token: ChecksumAddress
    registry: ChecksumAddress
    market: ChecksumAddress
    faucet: ChecksumAddress | None = None
    code_hashes: Mapping[str, str] = field(default_factory=dict)
    """keccak256 of each contract's runtime code (0x-hex, by name) when it was deployed; the doctor compares."""

    @property
    def addresses(self) -> dict[str, ChecksumAddress]:
        """Contract addresses by name, those that exist."""
        named = {"token": self.token, "faucet": self.faucet, "registry": self.registry, "market": self.market}
        return {name: address for name, address in named.items() if address is not None}

    def to_json(self) -> str:
        document = {
            "version": _FORMAT_VERSION,
            "chain_id": self.chain_id,
            "block": self.block,
            "addresses": {"token": self.token, "faucet": self.faucet, "registry": self.registry, "market": self.market},
            "code_hashes": dict(self.code_hashes),
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "deployment record") -> Deployment:
        """Raises `ConfigError` C-31 that names `source` if the text is not a deployment record."""
        try:
            document = json.loads(text)
            if document["version"] != _FORMAT_VERSION:
                raise ConfigError(f"{source} has version {document['version']}, not {_FORMAT_VERSION}", code="C-31")
            addresses = document["addresses"]
            return cls(
                chain_id=int(document["chain_id"]),
                block=int(document["block"]),
                token=_address(addresses["token"]),
                registry=_address(addresses["registry"]),
                market=_address(addresses["market"]),
                faucet=_address(addresses["faucet"]) if addresses["faucet"] is not None else None,
                code_hashes=dict(document.get("code_hashes", {})),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{source} is not a deployment record: {error!r}",
                code="C-31",
                hint="deploy again with `avenue deploy`, or copy the record from whoever deployed",
            ) from error


def _address(value: Any) -> ChecksumAddress:
    if not is_address(value):
        raise ValueError(f"not an address: {value!r}")
    return to_checksum_address(value)


def path_in(directory: Path, chain_id: int) -> Path:
    """The file that holds the record of `chain_id` in a user's directory."""
    return directory / f"{chain_id}.json"


def load(chain_id: int, directory: Path | None = None) -> Deployment:
    """The deployment on `chain_id`: from `directory` if it has one, else from the package.

    Raises `ConfigError`: C-30 if there is none, C-31 if the file is damaged or is about another chain.
    """
    own = path_in(directory, chain_id) if directory is not None else None
    if own is not None and own.is_file():
        source, text = str(own), own.read_text(encoding="utf-8")
    else:
        packaged = resources.files("protocol") / "deployments" / f"{chain_id}.json"
        if not packaged.is_file():
            raise ConfigError(
                f"Avenue is not deployed on chain {chain_id}, as far as this machine knows",
                code="C-30",
                hint="deploy with `avenue deploy`, or choose another network with `avenue config set network`",
            )
        source, text = f"packaged {chain_id}.json", packaged.read_text(encoding="utf-8")
    deployment = Deployment.from_json(text, source)
    if deployment.chain_id != chain_id:
        raise ConfigError(f"{source} is about chain {deployment.chain_id}, not {chain_id}", code="C-31")
    return deployment


def save(deployment: Deployment, directory: Path) -> Path:
    """Writes the record, atomically and durably. Returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = path_in(directory, deployment.chain_id)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=directory, prefix=path.name, delete=False) as file:
        file.write(deployment.to_json())
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    return path


def save_in_checkout(deployment: Deployment, package: Path = Path(__file__).parent / "deployments") -> Path | None:
    """In a source checkout, also writes the record where it ships with the package, ready to be committed.

    Gives its path, or None outside a checkout, and for the local chain, whose record is worth nothing tomorrow.
    """
    in_checkout = (package.parent.parent / ".git").exists()
    if deployment.chain_id == LOCAL_CHAIN_ID or not in_checkout:
        return None
    return save(deployment, package)
