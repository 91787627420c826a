"""`python -m marketplace [gateway.toml] [--rebuild]`: runs a gateway until Ctrl+C. Errors exit with their own codes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from marketplace.app import build_gateway, connect_chain, serve
from marketplace.config import Settings, load_settings
from protocol.errors import AvenueError


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code (protocol/errors.py)."""
    parser = argparse.ArgumentParser(prog="python -m marketplace", description=__doc__)
    parser.add_argument("settings", nargs="?", type=Path, help="TOML file; without it, the defaults")
    parser.add_argument("--rebuild", action="store_true", help="forget the copy of the chain, read it again, and exit")
    options = parser.parse_args(arguments)
    try:
        settings = Settings() if options.settings is None else load_settings(options.settings)
        if options.rebuild:
            indexer = build_gateway(settings, connect_chain(settings)).indexer
            indexer.rebuild()
            indexer.catch_up()
        else:
            serve(settings)
    except AvenueError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
