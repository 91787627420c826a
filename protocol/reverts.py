"""Revert data into sentences: every custom error of every ABI we ship, `Error(string)` and `Panic(uint256)`.

    NotEnoughFreeStake(node=1, have=1, need=10)

web3 hands custom errors over as raw hex; people and agents need the name, the values and the next thing to try. The
table of hints is complete: a test fails if an interface of ours gains an error without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak
from web3.exceptions import ContractLogicError, Web3Exception

from protocol.abi import CustomError, all_abis, decode
from protocol.errors import AvenueError, FundsError, TransactionError, UnreachableError

_ERROR_STRING = keccak(text="Error(string)")[:4]
_PANIC = keccak(text="Panic(uint256)")[:4]

# Solidity documentation, "Panic via assert and Error via require".
_PANICS = {
    0x00: "compiler-inserted panic",
    0x01: "assertion failed",
    0x11: "arithmetic overflow",
    0x12: "division by zero",
    0x21: "value outside its enum",
    0x22: "broken storage byte array",
    0x31: "pop of an empty array",
    0x32: "array index out of bounds",
    0x41: "allocation too large",
    0x51: "call of an unset function pointer",
}

_UNIT_STATUS = ("Open", "Claimed", "Committed", "Revealed", "Finalised")
_TASK_STATUS = ("None", "Posted", "Cancelled", "Closed")

HINTS: Mapping[str, str] = {
    # INodeRegistry
    "NotOwner": "sign with the node's owner key",
    "NotOwnerOrOperator": "sign with the node's owner key or its operator key",
    "NotMarket": "only the task market may do this; is the deployment record the right one?",
    "CannotBind": "the market is bound once, by the deployer, when the contracts are deployed",
    "UnknownNode": "register the node first, or check its id with `avenue compute status`",
    "OperatorInUse": "one operator key serves one node: make another with `avenue keys new`",
    "ZeroValue": "give the named argument a value",
    "EndpointTooLong": "shorten the endpoint URL",
    "SignatureExpired": "sign again with a later deadline, and check this machine's clock",
    "WrongOperatorSignature": "the operator key itself signs: for this owner, chain, registry and present nonce",
    "NotEnoughFreeStake": "add stake with `avenue compute stake`, or wait until units in flight are settled",
    "NodeNotActive": "raise the stake to the minimum with `avenue compute stake`; a node that has left takes no work",
    "TooManyTranches": "withdraw what has matured first: `avenue compute withdraw`",
    "NothingToWithdraw": "nothing has matured yet; `avenue compute status` shows when it will",
    "UnitsInFlight": "drain first (`avenue compute drain`) and wait until its units are settled",
    "SlashTooLarge": "report this: the market asked for more than the node answers for",
    "NothingToCollect": "there is no credit for this address",
    # ITaskMarket
    "InvalidSpec": "correct the named field of the task file",
    "TaskExists": "the same task was posted before; change its seed to post it again",
    "TaskNotOpen": "the task was never posted on this chain, or is cancelled or closed: `avenue task show`",
    "NotRequester": "sign with the key that posted the task",
    "NoSuchUnit": "the plan has fewer units; `avenue task show` lists them",
    "WrongStatus": "somebody moved first, or the move is not due: read the unit again with `avenue task show`",
    "InputNotKnown": "the round before has not been revealed yet",
    "NotAnOperator": "register a node whose operator is this key: `avenue compute start` does it",
    "NotTheWorker": "another node holds this unit; pick another one",
    "TooLate": "the deadline has passed; `expire` or `close` is what remains",
    "TooEarly": "wait until the time shown (unix seconds)",
    "RevealTooSoon": "reveal in a block after the commitment's",
    "EmptyCommitment": "commit to keccak256(abi.encode(tag, resultRoot, salt)), never to zero",
    "CommitmentMismatch": "reveal with the salt and roots that were committed to",
    "FinalStateNotInCheckpoints": "the proof has to show the final state as the last checkpoint",
    "NotAdmitted": "ask the requester for an admission that covers this shard",
    "AdmissionExpired": "ask the requester for a new admission",
    "WrongAcceptance": "the requester has to sign for exactly this task, unit and result root",
    "NotCloseable": "wait until units in flight are settled and the task's deadline has passed, or cancel it first",
    "NothingToPay": "there is no credit for this address",
    # IFaucet
    "MainnetRefused": "the faucet exists on test networks only",
    "FaucetEmpty": "the faucet has run dry; ask whoever deployed it to fill it",
    "CoolingDown": "wait for the seconds shown, then ask again",
    # Constructors
    "ZeroAddress": "give the named address",
    "LengthMismatch": "give one amount for each recipient",
    "CapExceeded": "mint no more than the cap",
    # OpenZeppelin, as far as our contracts can throw it
    "ERC20InsufficientBalance": "get more AVN: the faucet on a test network, or a transfer",
    "ERC20InsufficientAllowance": "approve the contract for this amount first",
    "ERC2612ExpiredSignature": "sign the permit again with a later deadline",
    "ERC2612InvalidSigner": "the permit has to be signed by the token holder",
    "ECDSAInvalidSignature": "the signature is not one of a secp256k1 key",
    "ECDSAInvalidSignatureLength": "a signature is 65 bytes",
    "ECDSAInvalidSignatureS": "sign with low s (EIP-2)",
    "SafeERC20FailedOperation": "the token refused; check balance and allowance",
    "InvalidAccountNonce": "the signature's nonce was used; sign again",
}

_FUNDS = frozenset({"NotEnoughFreeStake", "ERC20InsufficientBalance", "ERC20InsufficientAllowance"})


class RevertedError(TransactionError):
    """A call reverted. `error_name` and `arguments` are the decoded custom error; agents branch on them."""

    default_code = "T-10"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        error_name: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.error_name = error_name
        self.arguments = dict(arguments or {})


class FundsRevertedError(RevertedError, FundsError):
    """A call reverted because tokens or stake do not suffice: exit code 6, and still a `TransactionError`."""

    exit_code = FundsError.exit_code
    default_code = "F-10"


@cache
def known_errors() -> Mapping[bytes, CustomError]:
    """Custom errors of all our ABIs by selector."""
    return {error.selector: error for artifact in all_abis() for error in artifact.errors.values()}


def _show(error_name: str, name: str, value: Any) -> str:
    if isinstance(value, bytes):
        return f"{name}=0x{value.hex()}"
    if error_name == "WrongStatus" and name in ("have", "need"):
        return f"{name}={_UNIT_STATUS[value]}"
    if error_name == "TaskNotOpen" and name == "status":
        return f"{name}={_TASK_STATUS[value]}"
    return f"{name}={value}"


def decode_revert(data: bytes | str | Exception, context: str = "") -> RevertedError:
    """What a revert says. `data` is revert data (bytes or hex) or the exception in which web3 carries it.

    Never raises: data of no known shape becomes a T-13 error that shows it. `context` (such as "claim unit 3")
    is put in front of the message.
    """
    raw, text = _revert_data(data)
    prefix = f"{context}: " if context else ""
    try:
        return _decode(raw, text, prefix)
    except (DecodingError, UnicodeDecodeError, IndexError):
        return RevertedError(f"{prefix}reverted with malformed data 0x{raw.hex()}", code="T-13")


def explain(error: Web3Exception, context: str = "") -> AvenueError:
    """A failed eth_call or eth_estimateGas: the decoded revert, or that the endpoint could not run it at all (N-05)."""
    if isinstance(error, ContractLogicError) or _revert_data(error)[0]:
        return decode_revert(error, context)
    return UnreachableError(
        f"{f'{context}: ' if context else ''}the RPC endpoint refuses: {error}",
        code="N-05",
        hint="the endpoint may lack this block's state, or limit calls: add another URL to rpc_urls",
    )


def _decode(raw: bytes, text: str, prefix: str) -> RevertedError:
    selector = raw[:4]
    if len(raw) < 4:
        message = f"reverted without a reason{f' ({text})' if text else ''}"
        return RevertedError(prefix + message, code="T-13", hint="check that the contract is deployed at this address")
    if selector == _ERROR_STRING:
        (reason,) = decode(["string"], raw[4:])
        return RevertedError(f"{prefix}{reason}", code="T-11", error_name="Error", arguments={"reason": reason})
    if selector == _PANIC:
        (code,) = decode(["uint256"], raw[4:])
        reason = _PANICS.get(code, "unknown panic")
        return RevertedError(
            f"{prefix}Panic(0x{code:02x}: {reason})",
            code="T-12",
            hint="this is a bug in a contract: please report it",
            error_name="Panic",
            arguments={"code": code},
        )
    error = known_errors().get(selector)
    if error is None:
        return RevertedError(f"{prefix}reverted with unknown data 0x{raw.hex()}", code="T-13")
    arguments = {field.name: value for field, value in zip(error.inputs, error.decode(raw), strict=True)}
    shown = ", ".join(_show(error.name, name, value) for name, value in arguments.items())
    kind = FundsRevertedError if error.name in _FUNDS else RevertedError
    return kind(
        f"{prefix}{error.name}({shown})", hint=HINTS.get(error.name), error_name=error.name, arguments=arguments
    )


def _revert_data(source: bytes | str | Exception) -> tuple[bytes, str]:
    """Revert data and whatever text came with it."""
    if isinstance(source, bytes):
        return source, ""
    if isinstance(source, str):
        return _hex(source), ""
    data = getattr(source, "data", None)
    if isinstance(data, Mapping):  # some servers nest it: {"data": {"data": "0x..."}}
        data = data.get("data", data.get("result"))
    if isinstance(data, bytes):
        return data, str(source)
    return (_hex(data) if isinstance(data, str) else b""), str(getattr(source, "message", None) or source)


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text.strip().removeprefix("Reverted ").removeprefix("0x"))
    except ValueError:
        return b""
