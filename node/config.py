"""What a node is told: one model, every key documented, unknown keys refused with the nearest valid one.

Where a value comes from, first match wins:

    command-line flag  >  environment AVENUE_<SECTION>__<KEY>  >  $AVENUE_HOME/config.toml  >  default

Short names in the environment: AVENUE_NETWORK, AVENUE_ROLE, AVENUE_DATA_DIR (top-level keys), AVENUE_RPC_URLS (comma
separated) and AVENUE_GATEWAY_URL (both of the selected network). AVENUE_HOME says where the file is. Secrets are
not configuration: node/keys.py. Importable without torch and web3, because every command starts here.

docs/configuration.md carries the sample; a test loads it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from protocol.amounts import parse_avn
from protocol.errors import ConfigError, UsageError
from protocol.types import Wei

LOCAL_CHAIN_ID = 31337
SEPOLIA_CHAIN_ID = 11155111

CONFIG_FILE_NAME = "config.toml"
ENV_PREFIX = "AVENUE_"
_TOP_LEVEL_ENV = {"AVENUE_NETWORK": "network", "AVENUE_ROLE": "role", "AVENUE_DATA_DIR": "data_dir"}
_NETWORK_ENV = {"AVENUE_RPC_URLS": "rpc_urls", "AVENUE_GATEWAY_URL": "gateway_url"}


class Role(StrEnum):
    """What this home is for; decides which keys `init` makes and which checks `doctor` runs."""

    COMPUTE = "compute"
    REQUEST = "request"
    DEPLOYER = "deployer"


def _check_url(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def _split_list(value: object) -> object:
    """A list from the environment or a flag: comma separated."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _check_amount(value: str) -> str:
    try:
        parse_avn(value)
    except UsageError as error:
        raise ValueError(error.message) from error
    return value


def _gwei_to_wei(value: str) -> int:
    wei = Decimal(value) * 10**9
    if not wei.is_finite() or wei <= 0 or wei != wei.to_integral_value() or wei > 2**64:
        raise ValueError(f"{value!r} is not a positive number of gwei")
    return int(wei)


def _check_gwei(value: str) -> str:
    try:
        _gwei_to_wei(value)
    except InvalidOperation as error:
        raise ValueError(f"{value!r} is not a number of gwei; write for instance 50") from error
    return value


def _number_as_text(value: object) -> object:
    """`50` and `"50"` mean the same; a TOML float is refused, because 0.1 is not a tenth in binary."""
    if isinstance(value, float):
        raise ValueError(f'write the amount as text: "{value}"')
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Url = Annotated[str, AfterValidator(_check_url)]
Amount = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_check_amount)]
Gwei = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_check_gwei)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkConfig(_Section):
    """[networks.NAME]"""

    chain_id: Annotated[int, Field(gt=0, description="EIP-155 chain id; an RPC that answers another is refused")]
    rpc_urls: Annotated[
        tuple[Url, ...],
        BeforeValidator(_split_list),
        Field(description="JSON-RPC endpoints, tried in this order"),
    ] = ()
    gateway_url: Annotated[Url, Field(description="gateway of the market: messages and blobs")] = ""
    deployments_dir: Annotated[
        str,
        Field(description="where CHAIN_ID.json tells the contracts; empty: deployments beside this file"),
    ] = ""
    confirmations: Annotated[
        int, Field(ge=0, le=1000, description="blocks on top of an event before an agent acts on it")
    ] = 0
    explorer_url: Annotated[Url, Field(description="block explorer, only for links that are printed")] = ""


class FeesConfig(_Section):
    """[fees]"""

    max_fee_gwei: Annotated[Gwei, Field(description="hard cap of maxFeePerGas, fee bumps included")] = "100"

    @property
    def max_fee_wei(self) -> int:
        """Highest maxFeePerGas that any transaction may offer, wei per gas."""
        return _gwei_to_wei(self.max_fee_gwei)


class ComputeConfig(_Section):
    """[compute]"""

    min_unit_price: Annotated[Amount, Field(description="skip units that pay less, AVN")] = "0"
    max_parallel_units: Annotated[int, Field(ge=1, le=64, description="units in flight at most")] = 1
    min_gas_balance: Annotated[
        Amount, Field(description="claim nothing new with less gas money on the operator key, ETH")
    ] = "0.01"
    stake: Annotated[Amount, Field(description="stake put up when the node registers, AVN")] = "1000"
    auto_register: Annotated[bool, Field(description="register and stake at first start if the owner key is here")] = (
        True
    )
    may_overflow: Annotated[
        bool, Field(description="take programs that assert bounds: a unit that breaks one costs its collateral")
    ] = False
    endpoint: Annotated[str, Field(max_length=256, description="where others reach this node, if anywhere")] = ""
    threads: Annotated[int, Field(ge=1, le=1024, description="CPU threads of the tensor kernels")] = 1
    poll_interval_s: Annotated[float, Field(gt=0, le=60, description="time between looks at the chain, s")] = 1.0

    @property
    def min_unit_price_wei(self) -> Wei:
        return parse_avn(self.min_unit_price)

    @property
    def min_gas_balance_wei(self) -> Wei:
        return parse_avn(self.min_gas_balance)

    @property
    def stake_wei(self) -> Wei:
        return parse_avn(self.stake)


class RequestConfig(_Section):
    """[request]"""

    accept: Annotated[
        Literal["available", "never", "recompute"],
        Field(
            description="when to sign an acceptance: the result's data is there; never; recomputed here and equal",
        ),
    ] = "available"
    threads: Annotated[int, Field(ge=1, le=1024, description="CPU threads of the tensor kernels")] = 1
    poll_interval_s: Annotated[float, Field(gt=0, le=60, description="time between looks at the chain, s")] = 1.0


class MarketConfig(_Section):
    """[market]"""

    host: Annotated[str, Field(min_length=1, description="address that the gateway listens on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port that the gateway listens on")] = 8780


class LogConfig(_Section):
    """[log]"""

    level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="least level")] = "info"
    format: Annotated[Literal["console", "json"], Field(description="log lines go to stderr")] = "console"


def default_networks() -> dict[str, NetworkConfig]:
    """The networks that exist without a file: a local Anvil, and Sepolia without an endpoint."""
    return {
        "local": NetworkConfig(
            chain_id=LOCAL_CHAIN_ID, rpc_urls=("http://127.0.0.1:8545",), gateway_url="http://127.0.0.1:8780"
        ),
        "sepolia": NetworkConfig(
            chain_id=SEPOLIA_CHAIN_ID, confirmations=2, explorer_url="https://sepolia.etherscan.io"
        ),
    }


class NodeConfig(_Section):
    """The whole configuration. Sections given in part are completed by defaults."""

    network: Annotated[str, Field(description="which [networks.NAME] to use")] = "local"
    role: Annotated[Role, Field(description="compute, request or deployer")] = Role.COMPUTE
    data_dir: Annotated[
        str, Field(description="journal, checkpoints, blobs; empty: the folder data beside this file")
    ] = ""
    fees: FeesConfig = FeesConfig()
    compute: ComputeConfig = ComputeConfig()
    request: RequestConfig = RequestConfig()
    market: MarketConfig = MarketConfig()
    log: LogConfig = LogConfig()
    networks: dict[str, NetworkConfig] = Field(default_factory=default_networks)

    def selected_network(self) -> NetworkConfig:
        """The network in use. Raises ConfigError C-05 if `network` names none of `networks`."""
        if self.network not in self.networks:
            known = ", ".join(sorted(self.networks))
            raise ConfigError(
                f"unknown network {self.network!r}",
                code="C-05",
                hint=f"known: {known}; add [networks.{self.network}] to {CONFIG_FILE_NAME}",
            )
        return self.networks[self.network]


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration and where each value came from: `origins["compute.threads"] == "AVENUE_COMPUTE__THREADS"`.

    A key that is not in `origins` has its default.
    """

    config: NodeConfig
    home: Path
    origins: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.home / CONFIG_FILE_NAME

    @property
    def data_dir(self) -> Path:
        return Path(self.config.data_dir).expanduser() if self.config.data_dir else self.home / "data"


def home_directory(flag: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """--home, else $AVENUE_HOME, else the platform's configuration directory. Not created here."""
    environ = os.environ if environ is None else environ
    if flag is not None:
        return flag.expanduser().absolute()
    if environ.get("AVENUE_HOME"):
        return Path(environ["AVENUE_HOME"]).expanduser().absolute()
    return Path(platformdirs.user_config_dir("avenue", appauthor=False))


def load_config(
    home: Path,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file_text: str | None = None,
) -> LoadedConfig:
    """Reads `home`/config.toml (absent is fine), the environment and `flags` (dotted key -> value) over the defaults.

    `file_text` stands in for the file, to try one before it is written.

    The flags `rpc_urls` and `gateway_url` mean those of the selected network, as AVENUE_RPC_URLS and
    AVENUE_GATEWAY_URL do. Raises ConfigError: C-01 the file cannot be read, C-02 it is not TOML, C-03 unknown key,
    C-04 a value does not fit, C-05 unknown network.
    """
    environ = os.environ if environ is None else environ
    path = home / CONFIG_FILE_NAME
    merged: dict[str, Any] = {"networks": {name: net.model_dump() for name, net in default_networks().items()}}
    origins: dict[str, str] = {}

    for key, value in _flatten(_read_toml(path, file_text)).items():
        _put(merged, key, value, source=str(path))
        origins[key] = str(path)
    for name, text in sorted(environ.items()):
        named = _key_of_variable(name)
        if named is not None:
            _put(merged, named, text, source=name)
            origins[named] = name
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    for key, value in given.items():
        if key not in _NETWORK_ENV.values():
            _put(merged, key, value, source="flag")
            origins[key] = "flag"

    network = str(merged.get("network", "local"))
    for name, key in _NETWORK_ENV.items():
        setting, origin = (given[key], "flag") if key in given else (environ.get(name), name)
        if setting is not None and network in merged["networks"]:
            merged["networks"][network][key] = setting
            origins[f"networks.{network}.{key}"] = origin

    try:
        config = NodeConfig.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, origins, path) from error
    config.selected_network()
    return LoadedConfig(config, home, origins)


def valid_keys() -> tuple[str, ...]:
    """Every dotted key of the model; a network's name stands as `NAME`."""
    keys: list[str] = []
    for name, field in NodeConfig.model_fields.items():
        if name == "networks":
            keys += [f"networks.NAME.{key}" for key in NetworkConfig.model_fields]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            keys += [f"{name}.{key}" for key in field.annotation.model_fields]
        else:
            keys.append(name)
    return tuple(keys)


def unknown_key(key: str, where: str) -> ConfigError:
    """The error for a key that does not exist: names the key and the nearest one that does."""
    parts = key.split(".")
    generic, network = (key, None)
    if parts[0] == "networks" and len(parts) >= 3:
        generic, network = ".".join(["networks", "NAME", *parts[2:]]), parts[1]
    known = valid_keys()
    near = [name for name in known if name.rpartition(".")[2] == parts[-1]]  # the right key in the wrong section
    if len(parts) > 1 or not near:
        near = difflib.get_close_matches(generic, known, n=1, cutoff=0.5) or near
    nearest = near[0].replace("NAME", network) if near and network else (near[0] if near else None)
    hint = f"did you mean {nearest}?" if nearest else "`avenue config show` lists every key"
    return ConfigError(f"unknown key {key!r} in {where}", code="C-03", hint=hint)


def _read_toml(path: Path, text: str | None) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8") if text is None else text)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", code="C-01", hint="check the file and who may read it"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", code="C-02", hint="fix the line named above") from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def _key_of_variable(name: str) -> str | None:
    """AVENUE_COMPUTE__MIN_UNIT_PRICE -> compute.min_unit_price; None if the variable is not configuration."""
    if name in _TOP_LEVEL_ENV:
        return _TOP_LEVEL_ENV[name]
    if not name.startswith(ENV_PREFIX) or "__" not in name:
        return None
    return name.removeprefix(ENV_PREFIX).lower().replace("__", ".")


def _put(merged: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    parts = key.split(".")
    generic = ".".join(["networks", "NAME", *parts[2:]]) if parts[0] == "networks" and len(parts) > 2 else key
    if generic not in valid_keys():
        raise unknown_key(key, source)
    table = merged
    for part in parts[:-1]:
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def _explain(error: ValidationError, origins: Mapping[str, str], path: Path) -> ConfigError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    origin = next((origins[name] for name in (key, ".".join(location[:-1])) if name in origins), str(path))
    reason = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{key}: {reason} (from {origin})", code="C-04", hint=f"avenue config set {key} VALUE")
