"""Named checks of everything a role needs, each with the next thing to try.

    examine(loaded, passwords...) yields one Finding per check, in order

A check that needs something an earlier one found broken is skipped, so the first failure is the one to mend. `failed`
means that the role cannot work (exit code 9); `warning` means that it can, but not for long or not well. Nothing here
decrypts a key, sends a transaction or prints.
"""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import TYPE_CHECKING

from node.config import LOCAL_CHAIN_ID, Role
from node.keys import ENCRYPTION_KEY_NAME
from protocol.errors import AvenueError

if TYPE_CHECKING:
    from node.context import NodeContext

LEAST_PYTHON = (3, 11)
TORCH_VERSION = "2.13.0"
"""The version whose kernels were measured; another one is checked by the known answers, and worth a warning."""

MAX_HEAD_AGE_S = 120
"""Ten Ethereum slots: an endpoint whose newest block is older has lost the chain."""
MAX_CLOCK_AHEAD_S = 15
"""No proposer may date a block into its future: one ahead of our clock by more than a slot means that ours is slow."""
LEAST_FREE_BYTES = 1 << 30
COMFORTABLE_FREE_BYTES = 5 << 30


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `code` is the error's code if an error was the finding."""

    name: str
    status: Status
    detail: str
    hint: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A named check. `after`: checks that must not have failed. `roles`: who needs it."""

    name: str
    run: Callable[[NodeContext], Finding]
    after: tuple[str, ...] = ()
    roles: frozenset[Role] = frozenset(Role)


def examine(context: NodeContext) -> Iterator[Finding]:
    """Runs every check of the context's role, in order."""
    unusable: set[str] = set()
    for check in CHECKS:
        if context.role not in check.roles:
            continue
        blocked = [name for name in check.after if name in unusable]
        if blocked:
            unusable.add(check.name)
            yield Finding(check.name, Status.SKIPPED, f"needs {', '.join(blocked)}")
            continue
        try:
            finding = check.run(context)
        except AvenueError as error:
            finding = Finding(check.name, Status.FAILED, error.message, error.hint, error.code)
        if finding.status is Status.FAILED:
            unusable.add(check.name)
        yield finding


def _python(context: NodeContext) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if tuple(sys.version_info) < LEAST_PYTHON:
        return Finding("python", Status.FAILED, f"Python {version}", "install Python 3.11 or newer", "D-01")
    return Finding("python", Status.OK, f"Python {version}")


def _torch(context: NodeContext) -> Finding:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Finding("torch", Status.FAILED, "PyTorch is missing", "pip install 'avenue[train]'", "D-02")
    if version.partition("+")[0] != TORCH_VERSION:
        hint = f"measured with {TORCH_VERSION}: pip install torch=={TORCH_VERSION}"
        return Finding("torch", Status.WARNING, f"PyTorch {version}", hint)
    return Finding("torch", Status.OK, f"PyTorch {version}")


def _kernels(context: NodeContext) -> Finding:
    from proofs.exact import kernels
    from proofs.exact.known_answers import float64_matmul_is_exact, trusted_kernels

    wrong = [
        opcode.name.lower() for opcode, kernel in trusted_kernels().items() if kernel is not kernels.KERNELS[opcode]
    ]
    if wrong:
        detail = f"wrong answers on this machine: {', '.join(wrong)}; their definitions would run, far too slowly"
        return Finding("kernels", Status.FAILED, detail, "reinstall PyTorch, or use another machine", "D-13")
    if not float64_matmul_is_exact():
        detail = "float64 matrix products are not exact here; int64 is used"
        return Finding("kernels", Status.WARNING, detail, "results stay right, about twice as slow")
    return Finding("kernels", Status.OK, f"{len(kernels.KERNELS)} kernels give the known answers")


def _config(context: NodeContext) -> Finding:
    path = context.loaded.path
    if not path.exists():
        return Finding("config", Status.WARNING, f"no file {path}; defaults are used", "avenue init")
    return Finding("config", Status.OK, f"{path}, network {context.config.network}")


def _keystore(context: NodeContext) -> Finding:
    if context.dev_account_index is not None:
        return Finding("keystore", Status.OK, f"development account {context.dev_account_index}, no keystore")
    infos = context.keystore.list()  # refuses modes that let others read
    have = {info.name for info in infos}
    needed = _needed_keys(context.role)
    missing = [name for name in needed if name not in have]
    if missing:
        hint = f"avenue keys new {missing[0]}"
        return Finding("keystore", Status.FAILED, f"missing: {', '.join(missing)}", hint, "D-03")
    return Finding("keystore", Status.OK, ", ".join(info.name for info in infos))


def _rpc(context: NodeContext) -> Finding:
    chain_id = int(context.w3.eth.chain_id)
    return Finding("rpc", Status.OK, f"{len(context.network.rpc_urls)} endpoint(s), chain {chain_id}")


def _head(context: NodeContext) -> Finding:
    age_s = _head_age_s(context)
    if context.network.chain_id == LOCAL_CHAIN_ID:
        return Finding("head", Status.OK, "a local chain makes a block when it has something to put in")
    if age_s > MAX_HEAD_AGE_S:
        detail = f"the newest block is {age_s:.0f} s old (at most {MAX_HEAD_AGE_S})"
        return Finding("head", Status.FAILED, detail, "add another URL to rpc_urls", "D-04")
    return Finding("head", Status.OK, f"{max(age_s, 0):.0f} s old")


def _clock(context: NodeContext) -> Finding:
    ahead_s = -_head_age_s(context)
    if ahead_s > MAX_CLOCK_AHEAD_S:
        detail = f"the newest block is {ahead_s:.0f} s ahead of this clock (at most {MAX_CLOCK_AHEAD_S})"
        hint = "set the clock (NTP): deadlines are judged by the chain's time"
        if context.network.chain_id == LOCAL_CHAIN_ID:  # its time can be moved by hand, and runs ahead under load
            return Finding("clock", Status.WARNING, detail, hint)
        return Finding("clock", Status.FAILED, detail, hint, "D-05")
    return Finding("clock", Status.OK, "not behind the chain")


def _deployment(context: NodeContext) -> Finding:
    from eth_utils.crypto import keccak

    deployment = context.deployment
    client = context.client
    for name, address in deployment.addresses.items():
        code = client.code(address)
        if not code:
            hint = "the record is of another chain, or a local chain was restarted: avenue deploy"
            return Finding("deployment", Status.FAILED, f"no contract at {address} ({name})", hint, "D-06")
        expected = deployment.code_hashes.get(name)
        if expected and expected != "0x" + keccak(code).hex():
            hint = "this is not the contract that was deployed; do not use it"
            return Finding("deployment", Status.FAILED, f"{name} at {address} has other code", hint, "D-07")
    return Finding("deployment", Status.OK, f"market {deployment.market}")


def _gas_balance(context: NodeContext) -> Finding:
    from protocol.amounts import format_avn

    address, least = context.address, context.config.compute.min_gas_balance_wei
    balance = int(context.w3.eth.get_balance(address))  # before a deployment there is no client
    detail = f"{address} has {format_avn(balance)} ETH (at least {format_avn(least)})"
    if balance < least and _lent_at_start(context):
        return Finding("gas", Status.WARNING, f"{detail}; its owner lends it some at the start", "avenue compute start")
    if balance < least:
        return Finding("gas", Status.FAILED, detail, f"send gas money to {address}", "D-08")
    return Finding("gas", Status.OK, detail)


def _lent_at_start(context: NodeContext) -> bool:
    """On a local chain an owner with gas money gives a new operator its first (node/compute/start.py)."""
    owner = context.owner_address
    if context.role is not Role.COMPUTE or context.network.chain_id != LOCAL_CHAIN_ID or owner is None:
        return False
    return bool(context.w3.eth.get_balance(owner) > 20 * context.config.compute.min_gas_balance_wei)


def _token_balance(context: NodeContext) -> Finding:
    from protocol.amounts import show_avn

    holder = (context.owner_address or context.address) if context.role is Role.COMPUTE else context.address
    balance = context.client.token_balance(holder)
    detail = f"{holder} has {show_avn(balance)}"
    if balance == 0:
        hint = "avenue faucet" if context.deployment.faucet else f"send AVN to {holder}"
        # A node whose tokens are all staked is fine; the check of its stake says more.
        return Finding("tokens", Status.WARNING, detail, hint)
    return Finding("tokens", Status.OK, detail)


def _stake(context: NodeContext) -> Finding:
    from protocol.amounts import format_avn, show_avn

    client = context.client
    node = client.node_of(context.address)
    if node is None:
        owner, least = context.owner_address, context.config.compute.min_gas_balance_wei
        if context.config.compute.auto_register and owner is not None:
            if (have := client.gas_balance(owner)) < least:
                poor = f"the owner {owner} registers and stakes, and has {format_avn(have)} ETH for its gas"
                return Finding("stake", Status.FAILED, poor, f"send {format_avn(least)} ETH to {owner}", "D-08")
            later = f"not registered; the first start stakes {context.config.compute.stake} AVN"
            return Finding("stake", Status.WARNING, later, "avenue compute start")
        hint = f"the owner registers operator {context.address}"
        return Finding("stake", Status.FAILED, "this operator serves no node", hint, "D-09")
    record, minimum = client.node(node), client.constants.min_stake
    detail = f"node {node}: {show_avn(record.stake)}, {show_avn(record.free_stake)} free (at least {show_avn(minimum)})"
    if record.leaving:
        return Finding("stake", Status.FAILED, f"node {node} is leaving", "register another node", "D-10")
    if record.stake < minimum:
        return Finding("stake", Status.FAILED, detail, f"stake more for node {node}", "D-10")
    return Finding("stake", Status.OK, detail)


def _gateway(context: NodeContext) -> Finding:
    import httpx2

    from protocol.rpc import redact

    url = context.network.gateway_url
    if not url:
        hint = f"avenue config set networks.{context.config.network}.gateway_url https://..."
        return Finding("gateway", Status.FAILED, "no gateway is configured", hint, "D-11")
    try:
        with httpx2.Client(timeout=5.0, trust_env=False) as http:
            answer = http.get(f"{url}/healthz")
            ready = http.get(f"{url}/readyz")
    except httpx2.HTTPError as error:
        hint = "start one: avenue market serve; or set gateway_url"
        return Finding("gateway", Status.FAILED, f"{redact(url)}: {type(error).__name__}", hint, "D-11")
    if answer.status_code != 200:
        return Finding("gateway", Status.FAILED, f"{redact(url)} answers {answer.status_code}", "see its log", "D-11")
    if ready.status_code != 200:
        hint = "see its log; after a local chain was restarted, restart it too"
        return Finding("gateway", Status.WARNING, f"{redact(url)} is up, but does not follow the chain", hint)
    return Finding("gateway", Status.OK, redact(url))


def _market(context: NodeContext) -> Finding:
    """A gateway of another chain or market answers like one's own; its mail is signed for somebody else."""
    from protocol.rpc import redact

    served, ours, url = context.reading_gateway.status(), context.deployment, redact(context.network.gateway_url)
    if served.chain_id != ours.chain_id:
        detail = f"{url} serves chain {served.chain_id}, this network is chain {ours.chain_id}"
    elif served.market != ours.market:
        detail = f"{url} serves market {served.market}, the deployment record has {ours.market}"
    else:
        return Finding("market", Status.OK, f"the gateway serves {ours.market}")
    return Finding("market", Status.FAILED, detail, "set gateway_url to a gateway of this market", "D-15")


def _port(context: NodeContext) -> Finding:
    """Whether a gateway could be served here; only a deployer is expected to."""
    host, port = context.config.market.host, context.config.market.port
    try:
        with socket.create_server((host, port)):
            return Finding("port", Status.OK, f"{host}:{port} is free for a gateway")
    except (OSError, OverflowError) as error:
        if context.network.gateway_url == f"http://{host}:{port}" and _gateway(context).status is not Status.FAILED:
            return Finding("port", Status.OK, f"a gateway is serving on {host}:{port}")
        reason = getattr(error, "strerror", None) or str(error)
        status = Status.FAILED if context.role is Role.DEPLOYER else Status.WARNING
        detail = f"no gateway can be served on {host}:{port}: {reason}"
        return Finding("port", status, detail, "avenue config set market.port N", "D-14")


def _disk(context: NodeContext) -> Finding:
    path = context.data_dir
    free = shutil.disk_usage(path).free
    detail = f"{free / 2**30:.1f} GiB free at {path}"
    if free < LEAST_FREE_BYTES:
        return Finding("disk", Status.FAILED, detail, "free some space, or set data_dir to another disk", "D-12")
    if free < COMFORTABLE_FREE_BYTES:
        return Finding("disk", Status.WARNING, detail, "large tasks need more; consider another data_dir")
    return Finding("disk", Status.OK, detail)


def _needed_keys(role: Role) -> tuple[str, ...]:
    if role is Role.COMPUTE:
        return ("operator", ENCRYPTION_KEY_NAME)  # the owner key may, and should, be elsewhere
    return ("requester", ENCRYPTION_KEY_NAME) if role is Role.REQUEST else ("deployer",)


def _head_age_s(context: NodeContext) -> float:
    from protocol.chain import ChainClient

    return time.time() - ChainClient(context.w3).latest_block().timestamp


_TRAINS = frozenset({Role.COMPUTE, Role.REQUEST})
_MARKET = ("rpc", "deployment")

CHECKS: tuple[Check, ...] = (
    Check("python", _python),
    Check("torch", _torch, roles=_TRAINS),
    Check("kernels", _kernels, after=("torch",), roles=_TRAINS),
    Check("config", _config),
    Check("keystore", _keystore),
    Check("disk", _disk),
    Check("rpc", _rpc),
    Check("head", _head, after=("rpc",)),
    Check("clock", _clock, after=("rpc",)),
    Check("deployment", _deployment, after=("rpc",), roles=_TRAINS),
    Check("gas", _gas_balance, after=("rpc", "keystore")),
    Check("tokens", _token_balance, after=(*_MARKET, "keystore"), roles=_TRAINS),
    Check("stake", _stake, after=(*_MARKET, "keystore"), roles=frozenset({Role.COMPUTE})),
    Check("gateway", _gateway, roles=_TRAINS),
    Check("market", _market, after=("gateway", *_MARKET), roles=_TRAINS),
    Check("port", _port),
)
