"""avenue market serve: run a gateway.

The gateway is a program of its own (node and marketplace know nothing of each other): this command writes its settings
from the node's configuration, then becomes `python -m marketplace`, so that signals and exit
code are the gateway's own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.invocation import Invocation, Needs, command
from protocol.errors import UnreachableError

app = typer.Typer(help="Run a gateway of the market.", no_args_is_help=True, rich_markup_mode=None)


@command(app, "serve", needs=Needs.NETWORK)
def serve(
    call: Invocation,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = None,
) -> None:
    """Run a gateway: blobs, messages, an index of the chain and the live page. Stops on Ctrl+C."""
    call = call.with_flags({"market.host": host, "market.port": port})
    with call.context() as context:
        market = context.config.market
        free_port = claim_port(market.host, market.port)
        settings = {
            "host": market.host,
            "port": free_port,
            "data_dir": str(context.data_dir / "gateway"),
            "rpc_urls": list(context.network.rpc_urls),
            "chain_id": context.network.chain_id,
            "deployment_dir": str(context.deployments_dir),
            "confirmations": context.network.confirmations,
        }
        _ = context.w3, context.deployment  # the errors that a person can mend come before the start, with their hints
        path = context.data_dir / "gateway.toml"
        _write_settings(path, settings)
    url = f"http://{market.host}:{free_port}"
    call.out.emit({"url": url, "pid": os.getpid(), "settings": str(path)}, f"gateway at {url}")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the gateway says from here on is a log
    os.execv(sys.executable, [sys.executable, "-m", "marketplace", str(path)])


def claim_port(host: str, port: int) -> int:
    """A port that can be listened on: `port`, or a free one for 0. Raises UnreachableError N-10 if it is taken."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreachableError(
            f"cannot listen on {host}:{port}: {reason}",
            code="N-10",
            hint="stop what uses the port, or choose another: avenue market serve --port N",
        ) from error


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    path.touch(mode=0o600, exist_ok=True)  # RPC URLs carry API keys
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
