"""The tools agree with each other: one compiler, one set of settings, one list of commands."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def forge_profile() -> dict[str, object]:
    profile: dict[str, object] = tomllib.loads(read("foundry.toml"))["profile"]["default"]
    return profile


def test_brownie_compiles_with_forges_settings() -> None:
    brownie = read("brownie-config.yaml")
    profile = forge_profile()
    assert f"runs: {profile['optimizer_runs']}\n" in brownie
    assert f"evm_version: {profile['evm_version']}\n" in brownie
    assert f"enabled: {str(profile['optimizer']).lower()}\n" in brownie


def test_one_compiler_version_everywhere() -> None:
    version = json.loads(read("package.json"))["dependencies"]["solc"]
    assert f"version: {version}\n" in read("brownie-config.yaml")
    assert f"solc-v{version}" in read("scripts/setup.py")
    pragmas = {
        re.findall(r"^pragma solidity (.*);$", path.read_text(), re.MULTILINE)[0]
        for path in ROOT.glob("contracts/**/*.sol")
    }
    assert pragmas == {version}


def test_the_javascript_side_is_pinned_exactly() -> None:
    versions = json.loads(read("package.json"))["dependencies"].values()
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)


def test_the_javascript_lock_names_every_package_of_every_platform() -> None:
    # `npm ci` refuses a lock in which one is missing, and npm leaves out those that its registry did not have.
    packages = json.loads(read("package-lock.json"))["packages"]
    wanted = {
        name: version
        for package in packages.values()
        for kind in ("dependencies", "optionalDependencies")
        for name, version in package.get(kind, {}).items()
    }
    assert {name for name in wanted if f"node_modules/{name}" not in packages} == set()


def test_forge_leaves_no_metadata_hash_in_the_code() -> None:
    assert forge_profile()["bytecode_hash"] == "none"
    assert forge_profile()["cbor_metadata"] is False


def test_brownie_has_no_default_network_key() -> None:
    # Brownie 1.22's compiled configuration loader raises a TypeError on it.
    assert "networks:" not in re.sub(r"#.*", "", read("brownie-config.yaml"))


def test_ci_runs_the_commands_that_people_run() -> None:
    stages = re.findall(r"^stage (.*)$", read(".ci/run"), re.MULTILINE)
    assert stages == ["setup", "lint", "test"]
