"""The gateway's settings: one model, importable without web3. Unknown keys are errors.

A settings file is TOML with these keys at the top and a `[limits]` table; `python -m marketplace gateway.toml` reads
it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import ConfigError

Count = Annotated[int, Field(ge=1)]


class Limits(BaseModel):
    """What the gateway takes from whom. The defaults suit one machine with a 100 GB disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_blob_bytes: Count = 4 << 30
    quota_bytes: Count = 64 << 30
    """Sizes of all blobs together, announced ones included."""
    sender_quota_bytes: Count = 16 << 30
    """Sizes of all blobs that one address announced."""
    blobs_per_sender: Count = 100_000
    """However small: each takes a folder and two files."""
    incomplete_ttl_s: Count = 24 * 3600
    """A blob that is not whole after this long may be dropped to make room."""
    max_message_bytes: Count = 4 << 20
    """The index of an 8 GiB blob has 2.2 MB in JSON."""
    messages_per_minute: Count = 600
    """By one sender, after its signature was checked."""
    requests_per_minute: Count = 6000
    """Posts from one network address, before anything is checked."""
    mail_per_sender_and_task: Count = 20_000
    mail_bytes_per_sender_and_task: Count = 64 << 20
    """Envelopes, as they are kept. A grant of 4096 keys has 1.2 MB."""
    progress_per_unit: Count = 400
    """Progress messages kept for a unit; older ones are thinned out."""
    upload_min_balance_wei: Annotated[int, Field(ge=0)] = 10**18
    """Tokens that an address without a node or task must hold to announce a blob: a requester uploads before it
    posts."""


class Settings(BaseModel):
    """Everything that a gateway needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8780
    """0 takes a free port."""
    data_dir: Path = Path("avenue-gateway")
    """Blobs and, by default, the database."""
    database_url: str | None = None
    """An SQLAlchemy URL, such as `postgresql+psycopg://...`; default: SQLite under `data_dir`."""
    rpc_urls: Annotated[tuple[str, ...], Field(min_length=1)] = ("http://127.0.0.1:8545",)
    """Tried in this order."""
    chain_id: Count = 31337
    deployment_dir: Path | None = None
    """Where `<chain_id>.json` is; default: the records in the package."""
    confirmations: Annotated[int, Field(ge=0, le=1000)] = 0
    """Blocks that the index stays behind the head. 0 shows everything at once; reorganisations are rolled back
    either way."""
    poll_interval_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Between two looks at the chain."""
    limits: Limits = Limits()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{(self.data_dir / 'gateway.sqlite').resolve()}"


def load_settings(path: Path) -> Settings:
    """Raises ConfigError C-70 naming the file and the first thing wrong with it."""
    try:
        return Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", code="C-70") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", code="C-70") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path}: {key}: {first['msg']}", code="C-70", hint="marketplace/config.py lists the keys"
        ) from error
