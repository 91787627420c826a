"""Commands that need no chain: home, keys, configuration, usage errors."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import PASSWORD, Cli

PRIVATE_KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ITS_ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "home")


def test_init_makes_keys_and_configuration_and_says_what_comes_next(cli: Cli) -> None:
    ran = cli.run("init", "--yes", "--role", "compute", "--light-kdf", "--json")
    assert ran.code == 0, ran.stderr
    assert [key["name"] for key in ran.document["keys"]] == ["owner", "operator", "encryption"]
    assert all(key["created"] for key in ran.document["keys"])
    assert ran.document["next"] == ["avenue doctor", "avenue compute start"]
    assert cli.run("config", "validate").code == 0


def test_init_again_keeps_what_is_there(cli: Cli) -> None:
    first = cli.run("init", "--yes", "--light-kdf", "--json")
    cli.run("config", "set", "compute.threads", "3")
    again = cli.run("init", "--yes", "--light-kdf", "--json")
    assert [key["public"] for key in again.document["keys"]] == [key["public"] for key in first.document["keys"]]
    assert not any(key["created"] for key in again.document["keys"])
    items = {item["key"]: item["value"] for item in cli.run("config", "show", "--json").document["items"]}
    assert items["compute.threads"] == 3


@pytest.mark.parametrize(
    ("role", "flags", "names"),
    [
        ("request", [], ["requester", "encryption"]),
        ("deployer", [], ["deployer"]),
        ("compute", ["--no-owner"], ["operator", "encryption"]),
    ],
)
def test_init_makes_the_keys_of_the_role(cli: Cli, role: str, flags: list[str], names: list[str]) -> None:
    ran = cli.run("init", "--yes", "--role", role, "--light-kdf", "--json", *flags)
    assert [key["name"] for key in ran.document["keys"]] == names


def test_init_without_a_terminal_needs_yes(cli: Cli) -> None:
    ran = cli.run("init", "--json")
    assert (ran.code, ran.error["code"]) == (2, "U-02")
    assert not (cli.home / "config.toml").exists()


def test_init_refuses_an_unknown_network_before_it_writes(cli: Cli) -> None:
    ran = cli.run("init", "--yes", "--network", "mars", "--json")
    assert (ran.code, ran.error["code"]) == (3, "C-05")
    assert not (cli.home / "config.toml").exists()


def test_init_writes_the_endpoints_that_it_was_given(cli: Cli) -> None:
    url = "https://node.example/v3/APIKEY"
    assert cli.run("init", "--yes", "--light-kdf", "--network", "sepolia", "--rpc-url", url).code == 0
    assert url in (cli.home / "config.toml").read_text()
    shown = cli.run("config", "show", "--origin", "--json")
    assert "APIKEY" not in shown.stdout
    assert "https://node.example/..." in shown.stdout


def test_the_wizard_asks_on_a_terminal(cli: Cli) -> None:
    answers = {b"role": b"request\n", b"network": b"\n", b"Password": PASSWORD.encode() + b"\n"}
    main, terminal = pty.openpty()
    environ = cli.environment(with_password=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "node", "init", "--light-kdf"], stdin=terminal, stdout=terminal, stderr=terminal,
        env=environ, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    seen, pending = b"", b""
    while select.select([main], [], [], 20)[0]:
        try:
            data = os.read(main, 4096)
        except OSError:
            break  # the other end is closed: the command is done
        seen, pending = seen + data, pending + data
        for question, answer in answers.items():
            if question in pending and pending.rstrip().endswith((b"]", b":")):
                os.write(main, answer)
                pending = b""
                break
    assert process.wait(timeout=20) == 0, seen.decode()
    os.close(main)
    assert PASSWORD.encode() not in seen
    listed = cli.run("keys", "list", "--json").document["items"]
    assert [key["name"] for key in listed] == ["requester", "encryption"]
    assert cli.run("keys", "verify", "requester").code == 0


def test_keys_can_be_imported_from_stdin_and_from_a_file_but_never_from_a_flag(cli: Cli, tmp_path: Path) -> None:
    ran = cli.run("keys", "import", "requester", "-", "--light-kdf", "--json", stdin=PRIVATE_KEY + "\n")
    assert ran.document["public"] == ITS_ADDRESS
    (tmp_path / "key").write_text("0x" + PRIVATE_KEY)
    ran = cli.run("keys", "import", "deployer", str(tmp_path / "key"), "--light-kdf", "--json")
    assert ran.document["public"] == ITS_ADDRESS
    refused = cli.run("keys", "import", "owner", PRIVATE_KEY, "--light-kdf")
    assert refused.code == 3, "a key on the command line is taken for a file name"


def test_a_backup_can_be_made_and_verified(cli: Cli, tmp_path: Path) -> None:
    cli.run("keys", "new", "operator", "--light-kdf")
    ran = cli.run("keys", "backup", "operator", str(tmp_path / "copy.json"), "--json")
    assert Path(ran.document["backup"]).read_bytes() == (cli.home / "keystore" / "operator.json").read_bytes()
    assert cli.run("keys", "verify", "operator", "--json").document["verified"] is True


def test_a_wrong_password_is_refused(cli: Cli, tmp_path: Path) -> None:
    cli.run("keys", "new", "operator", "--light-kdf")
    (tmp_path / "wrong").write_text("incorrect horse")
    ran = cli.run("keys", "verify", "operator", "--json", "--password-file", str(tmp_path / "wrong"))
    assert (ran.code, ran.error["code"]) == (3, "C-52")
    assert "--password-file" in ran.error["hint"]


def test_a_keystore_that_others_can_read_is_refused(cli: Cli) -> None:
    cli.run("keys", "new", "operator", "--light-kdf")
    path = cli.home / "keystore" / "operator.json"
    path.chmod(0o644)
    for arguments in (["keys", "verify", "operator"], ["keys", "show", "operator"], ["keys", "list"]):
        ran = cli.run(*arguments, "--json")
        assert (ran.code, ran.error["code"], ran.error["hint"]) == (3, "C-51", f"chmod 600 {path}")


def test_no_password_is_said_without_waiting(cli: Cli) -> None:
    ran = cli.run("keys", "new", "operator", "--light-kdf", "--json", with_password=False)
    assert (ran.code, ran.error["code"]) == (3, "C-53")
    assert "--password-file" in ran.error["hint"]


def test_an_unknown_configuration_key_is_named_with_the_nearest(cli: Cli) -> None:
    (cli.home / "config.toml").write_text("[compute]\nmin_unit_prize = '1'\n")
    ran = cli.run("config", "validate", "--json")
    assert (ran.code, ran.error["code"]) == (3, "C-03")
    assert "compute.min_unit_prize" in ran.error["message"]
    assert ran.error["hint"] == "did you mean compute.min_unit_price?"
    plain = cli.run("compute", "start")
    assert plain.code == 3
    assert "error [C-03]" in plain.stderr and "hint: did you mean" in plain.stderr
    assert plain.stdout == ""


def test_config_set_refuses_a_bad_value_and_keeps_the_file(cli: Cli) -> None:
    cli.run("config", "set", "compute.threads", "2")
    before = (cli.home / "config.toml").read_text()
    ran = cli.run("config", "set", "compute.threads", "none", "--json")
    assert (ran.code, ran.error["code"]) == (3, "C-04")
    assert (cli.home / "config.toml").read_text() == before


@pytest.mark.parametrize(
    "arguments",
    [["oops"], ["keys", "oops"], ["keys", "show"], ["config", "set", "a"], ["doctor", "extra"], ["init", "--oops"]],
)
def test_a_command_line_that_makes_no_sense_is_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    ran = cli.run(*arguments, "--json")
    assert (ran.code, ran.error["code"]) == (2, "U-01")
    assert ran.error["hint"].startswith("avenue") and ran.error["hint"].endswith("--help")
    plain = cli.run(*arguments)
    assert (plain.code, plain.stdout) == (2, "")


def test_an_unknown_role_is_named(cli: Cli) -> None:
    ran = cli.run("doctor", "--role", "king", "--json")
    assert (ran.code, ran.error["code"]) == (2, "U-05")


def test_help_starts_without_web3_and_torch() -> None:
    heavy = ("torch", "web3", "eth_account", "pydantic")
    code = f"import sys; from node.cli import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_output_without_a_terminal_is_plain(cli: Cli) -> None:
    cli.run("keys", "new", "operator", "--light-kdf")
    for arguments in (["keys", "list"], ["config", "show"], ["keys", "oops"]):
        ran = cli.run(*arguments)
        assert "\x1b" not in ran.stdout + ran.stderr


def test_no_command_prints_a_secret(cli: Cli, tmp_path: Path) -> None:
    said = []
    said.append(cli.run("init", "--yes", "--light-kdf", "--no-owner"))
    said.append(cli.run("keys", "import", "owner", "-", "--light-kdf", stdin=PRIVATE_KEY))
    said += [
        cli.run("keys", *rest) for rest in (["list"], ["show", "owner"], ["verify", "owner"], ["verify", "encryption"])
    ]
    said.append(cli.run("keys", "backup", "owner", str(tmp_path / "backup.json"), "--debug"))
    said.append(cli.run("keys", "import", "requester", "-", "--debug", stdin=PRIVATE_KEY + "00"))
    said.append(cli.run("config", "show", "--origin", "--json"))
    cli.environ["AVENUE_RPC_URLS"] = "http://user:pass@127.0.0.1:1/APIKEY"
    said += [
        cli.run(*rest, "--debug") for rest in (["chain", "info"], ["doctor", "--role", "deployer"], ["config", "show"])
    ]
    for name in ("operator", "encryption"):
        document = json.loads((cli.home / "keystore" / f"{name}.json").read_text())
        from eth_keyfile.keyfile import decode_keyfile_json

        said_secret = decode_keyfile_json(document, PASSWORD.encode()).hex()
        assert not any(said_secret in ran.stdout + ran.stderr for ran in said)
    for secret in (PRIVATE_KEY, PASSWORD, "APIKEY", "user:pass"):
        assert not any(secret in ran.stdout + ran.stderr for ran in said), secret


def test_a_step_file_is_checked_and_what_is_wrong_with_it_is_told(cli: Cli, tmp_path: Path) -> None:
    whole = cli.run("program", "check", "examples/mlp.py", "--json")
    assert whole.code == 0, whole.stderr
    assert whole.document["parameters"] == 235_146
    assert whole.document["seconds_per_step"] > 0

    broken = tmp_path / "broken.py"
    broken.write_text(
        Path("examples/mlp.py").read_text().replace("    return params, state, loss", "    return params, loss")
    )
    told = cli.run("program", "check", str(broken), "--json")
    assert (told.code, told.error["code"]) == (2, "U-55")
    assert "return params, state, loss" in told.document["problems"][0]["instead"]
