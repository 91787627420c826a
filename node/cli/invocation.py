"""One way in for every command: the flags they share, the error edge, the exit code.

`@command(app, "name", ...)` adds the shared flags to a function whose first parameter is the Invocation, runs it, and
turns what it raises into output and an exit code: AvenueError into its own, KeyboardInterrupt into 130, anything else
into 1 in one line (the traceback only under --debug).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Flag, auto
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from node.cli.output import Output
from protocol.errors import AvenueError

if TYPE_CHECKING:
    from node.config import LoadedConfig, Role
    from node.context import NodeContext
    from node.keys import PasswordSource

P = ParamSpec("P")


class Needs(Flag):
    """Which groups of shared flags a command takes."""

    NOTHING = 0
    NETWORK = auto()
    KEYS = auto()
    SENDS = auto()


@dataclass(frozen=True)
class Invocation:
    """What the shared flags said."""

    out: Output
    home_flag: Path | None = None
    config_flags: Mapping[str, Any] = field(default_factory=dict)
    password_file: Path | None = None
    dev_account: int | None = None
    yes: bool = False

    @property
    def home(self) -> Path:
        from node.config import home_directory

        return home_directory(self.home_flag)

    def load(self) -> LoadedConfig:
        """The configuration as these flags have it. Raises ConfigError."""
        from node.config import load_config

        return load_config(self.home, flags=self.config_flags)

    def with_flags(self, flags: Mapping[str, Any]) -> Invocation:
        """The same with more configuration flags (dotted key -> value); None is no flag."""
        given = {key: value for key, value in flags.items() if value is not None}
        return replace(self, config_flags={**self.config_flags, **given})

    @property
    def passwords(self) -> PasswordSource:
        from node.keys import PasswordSource

        return PasswordSource(self.password_file, self.out.ask_password if self.out.interactive else None)

    def context(self, role: Role | None = None, *, agent: bool = False) -> NodeContext:
        """The open door to chain, keys and gateway. Close it.

        Also sizes the thread pools, before anything imports torch, and sends log lines to stderr: as configured for an
        `agent`, warnings only for a command that just answers.
        """
        from node.cli.logs import configure_logs
        from node.config import Role
        from node.context import NodeContext
        from node.threads import pin_threads

        loaded = self.load()
        context = NodeContext(loaded, role=role, passwords=self.passwords, dev_account_index=self.dev_account)
        config = loaded.config
        pin_threads((config.request if context.role is Role.REQUEST else config.compute).threads)
        quiet = config.log.model_copy(update={"level": "warning"})
        configure_logs(config.log if agent or config.log.level != "info" else quiet)
        return context


_SHARED: dict[str, tuple[Needs, Any, Any]] = {
    "network": (
        Needs.NETWORK,
        Annotated[str | None, typer.Option(help="Network of the configuration to use.", metavar="NAME")],
        None,
    ),
    "rpc_url": (
        Needs.NETWORK,
        Annotated[
            list[str] | None, typer.Option(help="JSON-RPC endpoint; repeat for a fail-over list.", metavar="URL")
        ],
        None,
    ),
    "gateway_url": (
        Needs.NETWORK,
        Annotated[str | None, typer.Option(help="Gateway of the market.", metavar="URL")],
        None,
    ),
    "password_file": (
        Needs.KEYS,
        Annotated[Path | None, typer.Option(help="File with the keystore password (or AVENUE_PASSWORD_FILE).")],
        None,
    ),
    "dev_account": (
        Needs.KEYS,
        Annotated[int | None, typer.Option(help="Use Anvil's public account N. Local chain only.", metavar="N")],
        None,
    ),
    "max_fee_gwei": (
        Needs.SENDS,
        Annotated[str | None, typer.Option(help="Hard cap of the fee per gas, gwei.", metavar="GWEI")],
        None,
    ),
    "yes": (Needs.SENDS, Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")], False),
    "home": (
        Needs.NOTHING,
        Annotated[Path | None, typer.Option(help="Directory of configuration, keys and data (or AVENUE_HOME).")],
        None,
    ),
    "json_document": (
        Needs.NOTHING,
        Annotated[bool, typer.Option("--json", help="One JSON document on stdout; no questions.")],
        False,
    ),
    "debug": (Needs.NOTHING, Annotated[bool, typer.Option("--debug", help="Show tracebacks.")], False),
}


def command(
    app: typer.Typer, name: str, *, needs: Needs = Needs.NOTHING, hidden: bool = False
) -> Callable[[Callable[Concatenate[Invocation, P], int | None]], Callable[Concatenate[Invocation, P], int | None]]:
    """Registers `function` on `app` with the shared flags of `needs`. It may return an exit code; None is 0."""

    def register(
        function: Callable[Concatenate[Invocation, P], int | None],
    ) -> Callable[Concatenate[Invocation, P], int | None]:
        own = list(inspect.signature(function).parameters.values())[1:]
        hints = typing.get_type_hints(function, include_extras=True)
        shared = [key for key, (need, _, _) in _SHARED.items() if need is Needs.NOTHING or need in needs]

        def run(**given: Any) -> None:
            common = {key: given.pop(key) for key in shared if key in given and key not in hints}
            raise typer.Exit(run_command(_invocation(common), lambda call: function(call, **given)))  # type: ignore[call-arg]

        parameters = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own
        ]
        parameters += [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=_SHARED[key][1], default=_SHARED[key][2])
            for key in shared
            if key not in hints
        ]
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, hidden=hidden)(run)
        return function

    return register


def run_command(call: Invocation, action: Callable[[Invocation], int | None]) -> int:
    """Runs `action`; returns the process's exit code, having shown whatever went wrong."""
    try:
        return action(call) or 0
    except AvenueError as error:
        return call.out.fail(error)
    except KeyboardInterrupt:
        return call.out.interrupted()
    except BrokenPipeError:
        raise  # the reader of our stdout went away: nobody is left to tell
    except Exception as error:  # noqa: BLE001  the edge: a bug becomes one line and exit code 1
        return call.out.crash(error)


def _invocation(common: Mapping[str, Any]) -> Invocation:
    out = Output(json_document=common["json_document"], debug=common["debug"])
    flags = {
        "network": common.get("network"),
        "rpc_urls": common.get("rpc_url") or None,
        "gateway_url": common.get("gateway_url"),
        "fees.max_fee_gwei": common.get("max_fee_gwei"),
    }
    return Invocation(
        out=out,
        home_flag=common["home"],
        config_flags={key: value for key, value in flags.items() if value is not None},
        password_file=common.get("password_file"),
        dev_account=common.get("dev_account"),
        yes=common.get("yes", False),
    )
