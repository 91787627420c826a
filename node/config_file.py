"""The configuration file as text: a documented template, and changes that leave a person's comments alone."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from node.config import (
    CONFIG_FILE_NAME,
    NetworkConfig,
    NodeConfig,
    default_networks,
    load_config,
    unknown_key,
    valid_keys,
)
from protocol.errors import ConfigError

_HEADER = """\
# Avenue. A flag wins over the environment, the environment over this file, this file over the defaults.
# A line that starts with "#" and a key shows the default. Every key: docs/configuration.md
"""


def render(values: Mapping[str, Any]) -> str:
    """A configuration file with `values` (dotted key -> value) set and every other key shown as a comment."""
    lines = [_HEADER]
    lines += _section("", NodeConfig, values)
    for name, field in NodeConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += ["", f"[{name}]", *_section(f"{name}.", field.annotation, values)]
    names = dict.fromkeys([*default_networks(), *(key.split(".")[1] for key in values if key.startswith("networks."))])
    for name in names:
        defaults = default_networks().get(name)
        lines += ["", f"[networks.{name}]", *_section(f"networks.{name}.", NetworkConfig, values, defaults)]
    return "\n".join(lines) + "\n"


def set_value(home: Path, key: str, text: str) -> Any:
    """Sets `key` in `home`/config.toml to `text` as that key's type reads it. Returns the value as stored.

    The file is replaced in one move, and only if the whole still loads. Raises ConfigError as `load_config`; C-08 if
    the line cannot be changed by machine.
    """
    path = home / CONFIG_FILE_NAME
    value = _typed(key, text)
    before = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    section, _, name = key.rpartition(".")
    after = _replace_line(before, section, name, f"{name} = {_literal(value)}")
    load_config(home, environ={}, file_text=after)
    if _lookup(tomllib.loads(after), key) != value:  # the key was written in a way that this editor does not know
        raise ConfigError(f"cannot change {key} in {path} by machine", code="C-08", hint="edit the file by hand")
    write(path, after)
    return value


def write(path: Path, text: str) -> None:
    """Replaces `path` in one move; its directory is made private. Raises ConfigError C-01."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", code="C-01", hint="check the directory") from error


def _section(
    prefix: str, model: type[BaseModel], values: Mapping[str, Any], defaults: BaseModel | None = None
) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not field.description:
            continue
        default = getattr(defaults, name) if defaults is not None else field.get_default()
        key = f"{prefix}{name}"
        yield f"# {field.description}"
        if key in values:
            yield f"{name} = {_literal(values[key])}"
        elif default is None or repr(default) == "PydanticUndefined":
            yield f"# {name} ="
        else:
            yield f"# {name} = {_literal(default)}"


def _replace_line(text: str, section: str, name: str, line: str) -> str:
    """`text` with `line` in [section]: in place of the key's line or of its commented default, else added."""
    lines = text.splitlines()
    start, end = 0, len(lines)
    if section:
        header = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]\s*(#.*)?")
        start = next((i + 1 for i, each in enumerate(lines) if header.fullmatch(each)), -1)
        if start < 0:
            return "\n".join([*lines, "", f"[{section}]", line]) + "\n"
    end = next((i for i in range(start, len(lines)) if re.match(r"\s*\[", lines[i])), len(lines))
    for pattern in (rf"\s*{re.escape(name)}\s*=", rf"#\s*{re.escape(name)}\s*="):
        for i in range(start, end):
            if re.match(pattern, lines[i]):
                return "\n".join([*lines[:i], line, *lines[i + 1 :]]) + "\n"
    while end > start and not lines[end - 1].strip():
        end -= 1
    return "\n".join([*lines[:end], line, *lines[end:]]) + "\n"


def _typed(key: str, text: str) -> Any:
    """`text` as the type that `key` has in the model; left as text where it does not fit, for the model to refuse."""
    parts = key.split(".")
    model: Any = NodeConfig
    for part in ["networks", "NAME", *parts[2:]] if parts[0] == "networks" and len(parts) > 2 else parts:
        fields = getattr(model, "model_fields", {})
        if part == "networks":
            model = NetworkConfig
        elif part != "NAME":
            if part not in fields:
                raise unknown_key(key, "the command")
            model = fields[part].annotation
    generic = ".".join(["networks", "NAME", *parts[2:]]) if parts[0] == "networks" and len(parts) > 2 else key
    if generic not in valid_keys():
        raise unknown_key(key, "the command")
    if typing.get_origin(model) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if model is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if model in (int, float):
        try:
            return model(text)
        except ValueError:
            return text
    return text


def _literal(value: Any) -> str:
    """`value` in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(each) for each in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def _lookup(table: Any, key: str) -> Any:
    for part in key.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    return table
