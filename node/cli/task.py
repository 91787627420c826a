"""avenue task: post training tasks, follow them, fetch the trained model."""

from __future__ import annotations

import typer

app = typer.Typer(help="Post and follow training tasks.", no_args_is_help=True, rich_markup_mode=None)
