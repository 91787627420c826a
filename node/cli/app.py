"""The commands, put together, and the outermost error edge."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from node.cli import chain, compute, config, deploy, doctor, init, keys, market, program, task
from node.cli.output import INTERRUPTED, Output
from protocol.errors import UsageError

app = typer.Typer(
    name="avenue",
    help="Avenue: an open market for training neural networks, in exact arithmetic that anybody can check.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        Output().emit({}, f"avenue {version('avenue')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


init.add_to(app)
doctor.add_to(app)
app.add_typer(keys.app, name="keys")
app.add_typer(config.app, name="config")
deploy.add_to(app)
app.add_typer(chain.app, name="chain")
chain.add_to(app)
app.add_typer(market.app, name="market")
app.add_typer(compute.app, name="compute")
app.add_typer(task.app, name="task")
app.add_typer(program.app, name="program")


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code, 2 for one that cannot be parsed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(args=given, prog_name="avenue", standalone_mode=False)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            Output().note(error.format_message())
            return UsageError.exit_code
        usage = UsageError(error.format_message(), code="U-01", hint=_help_command(given))
        return Output(json_document="--json" in given).fail(usage)
    except typer.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our stdout is gone; give the interpreter something harmless to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _help_command(given: Sequence[str]) -> str:
    """`avenue task submit --help` for `avenue task submit --oops`: as far as the words name commands."""
    words: list[str] = []
    level = typer.main.get_command(app)
    for word in given:
        commands = getattr(level, "commands", {})
        if word not in commands:
            break
        words.append(word)
        level = commands[word]
    return " ".join(["avenue", *words, "--help"])
