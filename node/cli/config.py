"""avenue config: show what is configured and where it came from, check it, change it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.invocation import Invocation, Needs, command
from node.cli.output import Fields, Table

if TYPE_CHECKING:
    from node.config import LoadedConfig

app = typer.Typer(help="Show, check and change the configuration.", no_args_is_help=True, rich_markup_mode=None)


@command(app, "show", needs=Needs.NETWORK)
def show(
    call: Invocation,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
) -> None:
    """Show every value in force. URLs are shown without what could be a secret in them."""
    loaded = call.load()
    values = _values(loaded)
    items = [
        {"key": key, "value": value, "origin": loaded.origins.get(key, "default")} for key, value in values.items()
    ]
    columns = ("key", "value", "from") if origin else ("key", "value")
    rows = [(str(item["key"]), _text(item["value"]), str(item["origin"]))[: len(columns)] for item in items]
    call.out.emit({"home": str(loaded.home), "path": str(loaded.path), "items": items}, Table(columns, rows))


@command(app, "path")
def path(call: Invocation) -> None:
    """Show where the configuration file is."""
    from node.config import CONFIG_FILE_NAME

    file = call.home / CONFIG_FILE_NAME
    call.out.emit({"path": str(file), "exists": file.exists()}, str(file))


@command(app, "validate", needs=Needs.NETWORK)
def validate(call: Invocation) -> None:
    """Check the configuration; exit code 3 and the first bad key if it is wrong."""
    loaded = call.load()
    network = loaded.config.network
    call.out.emit(
        {"ok": True, "path": str(loaded.path), "network": network},
        Fields("the configuration is valid", [("file", str(loaded.path)), ("network", network)]),
    )


@command(app, "set")
def set_(
    call: Invocation,
    key: Annotated[str, typer.Argument(help="Dotted key, such as compute.threads.")],
    value: Annotated[str, typer.Argument(help="New value; lists are comma separated.")],
) -> None:
    """Change one value in the file, keeping its comments. Nothing changes if the result would not be valid."""
    from node.config_file import set_value

    stored = set_value(call.home, key, value)
    shown = _shown(key, stored)
    call.out.emit({"key": key, "value": shown}, f"{key} = {_text(shown)}")


def _values(loaded: LoadedConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, each in value.items():
                walk(f"{prefix}.{name}" if prefix else name, each)
        else:
            flat[prefix] = _shown(prefix, value)

    walk("", loaded.config.model_dump(mode="json"))
    return flat


def _shown(key: str, value: Any) -> Any:
    """The value as it may be printed: providers put API keys into the path of a URL."""
    from protocol.rpc import redact

    if key.endswith(".rpc_urls"):
        return [redact(url) for url in value]
    if key.endswith("_url") and value:
        return redact(value)
    return value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
