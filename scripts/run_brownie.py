"""Runs Brownie with what it needs to find: the compiler, Anvil, and a chain of its own.

- Brownie looks for `solc-v0.8.37` in `$SOLCX_BINARY_PATH`; `scripts/setup.py` put a link to `scripts/solc` there.
- Without `--network` it gets a fresh home directory and a free port. Brownie otherwise *attaches* to whatever answers
  on port 8545, and its tests would then run, and fail or pass, on somebody else's chain.
- With `--network` the user's own `~/.brownie` is used: that is where Brownie keeps networks and accounts.

Usage: run_brownie.py BROWNIE-ARGUMENT...    such as: test; run deploy --network sepolia
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".setup"
ENVIRONMENT = ROOT / ".venv-brownie"
BROWNIE_DEFAULT_PORT = 8545


def free_port() -> int:
    """A TCP port of the loopback interface on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def write_networks(home: Path, port: int) -> None:
    """Gives `home` Brownie's own list of networks, its development chains moved to `port`."""
    shipped = next(ENVIRONMENT.glob("lib/python3*/site-packages/brownie/data/network-config.yaml"))
    text = shipped.read_text("utf-8").replace(f"port: {BROWNIE_DEFAULT_PORT}", f"port: {port}")
    (home / ".brownie").mkdir()
    (home / ".brownie" / "network-config.yaml").write_text(text, "utf-8")


def main() -> int:
    arguments = sys.argv[1:]
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(STATE / "bin"), str(ENVIRONMENT / "bin"), os.environ.get("PATH", "")])
    environment["SOLCX_BINARY_PATH"] = str(STATE / "solcx")
    for tool in ("anvil", "brownie"):
        if shutil.which(tool, path=environment["PATH"]) is None:
            sys.stderr.write(f"{tool} is not set up; run `make setup`\n")
            return 1
    with tempfile.TemporaryDirectory(prefix="avenue-brownie-") as home:
        if "--network" not in arguments:
            write_networks(Path(home), free_port())
            environment["HOME"] = home
        command = [str(ENVIRONMENT / "bin" / "brownie"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
