"""avenue init: from nothing to a home with a configuration and keys, by questions or by flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from node.cli.doctor import parse_role
from node.cli.invocation import Invocation, Needs, command
from node.cli.keys import LightKdf, describe, new_password
from node.cli.output import Fields, Table
from protocol.errors import UsageError

if TYPE_CHECKING:
    from node.config import Role


_ROLE_QUESTION = "role (compute, request, deployer)"


def add_to(app: typer.Typer) -> None:
    command(app, "init", needs=Needs.NETWORK | Needs.KEYS)(init)


def init(
    call: Invocation,
    role: Annotated[str | None, typer.Option(help="compute, request or deployer.")] = None,
    no_owner: Annotated[
        bool, typer.Option("--no-owner", help="Make no owner key here: it is kept on another machine.")
    ] = False,
    light_kdf: LightKdf = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take flags and defaults.")] = False,
) -> None:
    """Set up a home: role, network, configuration file, encrypted keys. What exists already is kept."""
    from node.config import CONFIG_FILE_NAME, load_config
    from node.config_file import render, set_value, write
    from node.keys import LIGHT_SCRYPT_N, SCRYPT_N, Keystore

    if not yes and not call.out.interactive:
        raise UsageError("init asks questions, and nobody is here", code="U-02", hint="add --yes and flags")
    before = load_config(call.home, flags=call.config_flags)
    text = role or (before.config.role.value if yes else call.out.ask(_ROLE_QUESTION, before.config.role.value))
    chosen_role = parse_role(text)
    network = before.config.network if yes else call.out.ask("network", before.config.network)
    values: dict[str, Any] = {"role": chosen_role.value, "network": network}
    for flag in ("rpc_urls", "gateway_url"):
        if flag in call.config_flags:
            values[f"networks.{network}.{flag}"] = call.config_flags[flag]
    load_config(call.home, flags={**values, **call.config_flags, "network": network})  # refuse before writing anything

    path = call.home / CONFIG_FILE_NAME
    if path.exists():
        for key, value in values.items():
            set_value(call.home, key, ",".join(value) if isinstance(value, list) else str(value))
    else:
        write(path, render(values))

    store = Keystore(call.home, scrypt_n=LIGHT_SCRYPT_N if light_kdf else SCRYPT_N)
    wanted = [] if call.dev_account is not None else _keys_of(chosen_role, no_owner)
    missing = [name for name in wanted if not store.has(name)]
    if missing:
        password = new_password(call, f"protect the keys {', '.join(missing)}")
        for name in missing:
            store.create(name, password)
    made = [{**describe(store.info(name)), "created": name in missing} for name in wanted]
    steps = _next_steps(chosen_role, call.dev_account)
    call.out.emit(
        {"home": str(call.home), "config": str(path), "role": chosen_role.value, "network": network, "keys": made}
        | {"next": steps},
        Fields("ready", [("home", str(call.home)), ("role", chosen_role.value), ("network", network)]),
        Table(
            ("key", "public", ""),
            [(k["name"], k["public"], "new" if k["created"] else "kept") for k in made],
            "no keys",
        ),
        "next:\n" + "\n".join(f"  {step}" for step in steps),
    )


def _keys_of(role: Role, no_owner: bool) -> list[str]:
    from node.config import Role

    if role is Role.COMPUTE:
        return (["operator"] if no_owner else ["owner", "operator"]) + ["encryption"]
    return ["requester", "encryption"] if role is Role.REQUEST else ["deployer"]


def _next_steps(role: Role, dev_account: int | None) -> list[str]:
    from node.config import Role

    start = {
        Role.COMPUTE: "avenue compute start",
        Role.REQUEST: "avenue task submit examples/mnist.toml",
        Role.DEPLOYER: "avenue deploy",
    }[role]
    account = "" if dev_account is None else f" --dev-account {dev_account}"
    return [f"avenue doctor{account}", f"{start}{account}"]
