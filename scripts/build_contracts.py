"""Compiles the contracts that Avenue deploys and writes their artefacts to `protocol/abi/<Name>.json`.

The artefacts are checked in and shipped in the wheel, so that a node needs neither Node.js nor a Solidity compiler.
Two things follow, and a test holds both:

- The build is reproducible: the same sources give the same bytes on any machine and in any directory. That is why
  the bytecode carries no metadata hash (it would hash comments and paths), and why the settings are read from
  `foundry.toml` and nowhere else: Forge tests the very program that is deployed.
- `--check` compiles and compares without writing; it exits 1 if a checked-in artefact is not what the sources give.

Usage: build_contracts.py [--check]
"""

import argparse
import json
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import solcx

ROOT = Path(__file__).resolve().parent.parent
SOLC = ROOT / "scripts" / "solc"
OUTPUT = ROOT / "protocol" / "abi"

# What `avenue deploy` deploys. Interfaces need no artefact: a contract's ABI contains them.
CONTRACTS = ("AvenueToken", "Faucet", "NodeRegistry", "TaskMarket")

# Every npm package that a contract imports from. Forge and Brownie have the same line in their own configuration.
REMAPPINGS = ("@openzeppelin/=node_modules/@openzeppelin/",)


class BuildError(Exception):
    """The contracts cannot be built; the message says why."""


@dataclass(frozen=True)
class BuiltContract:
    """One compiled contract, as it is written to disk. Code is 0x-hex; immutables are zero in `deployed_bytecode`."""

    name: str
    source: str
    compiler: str
    abi: list[dict[str, Any]]
    bytecode: str
    deployed_bytecode: str

    def to_json(self) -> str:
        """The artefact file's text. Deterministic: fixed key order, ABI entries in the compiler's order."""
        document = {
            "contractName": self.name,
            "sourceName": self.source,
            "compiler": self.compiler,
            "abi": self.abi,
            "bytecode": self.bytecode,
            "deployedBytecode": self.deployed_bytecode,
        }
        return json.dumps(document, indent=2, ensure_ascii=True) + "\n"


def compiler_settings(foundry_toml: Path) -> dict[str, Any]:
    """The standard-JSON `settings` that equal Forge's default profile.

    Raises:
        BuildError: a setting that changes bytecode is missing from the profile (a tool's default would creep in).
    """
    with foundry_toml.open("rb") as file:
        profile = tomllib.load(file)["profile"]["default"]
    missing = [key for key in ("optimizer", "optimizer_runs", "evm_version") if key not in profile]
    if missing:
        raise BuildError(f"{foundry_toml.name}: [profile.default] must set {', '.join(missing)}")
    return {
        "optimizer": {"enabled": profile["optimizer"], "runs": profile["optimizer_runs"]},
        "evmVersion": profile["evm_version"],
        "viaIR": profile.get("via_ir", False),
        "metadata": {"bytecodeHash": "none", "appendCBOR": False},
        "remappings": list(REMAPPINGS),
        "outputSelection": {
            "*": {"*": ["abi", "evm.bytecode.object", "evm.bytecode.linkReferences", "evm.deployedBytecode.object"]}
        },
    }


def build(root: Path = ROOT) -> list[BuiltContract]:
    """Compiles every deployable contract below `root`.

    Raises:
        BuildError: a source is missing, does not compile, or needs a library linked.
    """
    sources = {name: f"contracts/{name}.sol" for name in CONTRACTS}
    absent = [path for path in sources.values() if not (root / path).is_file()]
    if absent:
        raise BuildError(f"no such source: {', '.join(absent)}")
    request = {
        "language": "Solidity",
        "sources": {path: {"content": (root / path).read_text("utf-8")} for path in sources.values()},
        "settings": compiler_settings(root / "foundry.toml"),
    }
    try:
        answer = solcx.compile_standard(request, base_path=root, solc_binary=SOLC)
    except solcx.exceptions.SolcError as error:
        raise BuildError(error.message) from error
    for problem in answer.get("errors", []):
        sys.stderr.write(problem["formattedMessage"] + "\n")
    compiler = solcx.wrapper.get_solc_version(SOLC, with_commit_hash=True)
    built = []
    for name, path in sources.items():
        output = answer["contracts"][path][name]
        bytecode = output["evm"]["bytecode"]
        if bytecode["linkReferences"]:
            raise BuildError(f"{name} calls a public library function; make it internal, nothing here links libraries")
        code, deployed = "0x" + bytecode["object"], "0x" + output["evm"]["deployedBytecode"]["object"]
        built.append(BuiltContract(name, path, str(compiler), output["abi"], code, deployed))
    return built


def stale(built: list[BuiltContract], output: Path) -> list[str]:
    """Names of the files in `output` that are not what `built` gives: wrong, missing or left over."""
    want = {f"{contract.name}.json": contract.to_json() for contract in built}
    have = {path.name: path.read_text("utf-8") for path in output.glob("*.json")}
    return sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name))


def write(built: list[BuiltContract], output: Path) -> None:
    """Writes the artefacts, each whole or not at all, and removes those of contracts that are gone."""
    output.mkdir(parents=True, exist_ok=True)
    names = {f"{contract.name}.json" for contract in built}
    for contract in built:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=output, delete=False) as file:
            file.write(contract.to_json())
        Path(file.name).chmod(0o644)
        Path(file.name).replace(output / f"{contract.name}.json")
    for path in output.glob("*.json"):
        if path.name not in names:
            path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the contracts and write protocol/abi/*.json.")
    parser.add_argument("--check", action="store_true", help="compare with the checked-in artefacts, write nothing")
    arguments = parser.parse_args()
    try:
        built = build()
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    different = stale(built, OUTPUT)
    if not different:
        print(f"{OUTPUT.relative_to(ROOT)}: {len(built)} artefacts, all current")
        return 0
    if arguments.check:
        sys.stderr.write(f"not what the sources give: {', '.join(different)}; run `make build` and commit the result\n")
        return 1
    write(built, OUTPUT)
    for contract in built:
        mark = "written" if f"{contract.name}.json" in different else "current"
        print(f"{contract.name}: {(len(contract.bytecode) - 2) // 2} bytes of creation code, {mark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
