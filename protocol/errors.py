"""Every error that Avenue shows to a person, in one tree.

    AvenueError                exit  code band
    ├── UsageError               2   U: bad flags or a bad task file
    ├── ConfigError              3   C: configuration, keystore, deployment record
    ├── UnreachableError         4   N: RPC, gateway, port
    │   └── LaggingRpcError      4
    ├── TransactionError         5   T: reverted (decoded), dropped, fee cap reached
    ├── FundsError               6   F: gas money, tokens, stake
    ├── StateError               7   S: not found, or not in the state that the move needs
    ├── WaitTimeoutError         8   W: waited too long
    ├── DoctorError              9   D: a named check failed
    └── VerificationError       10   V: hash, signature, root, standing, freshness
        ├── ContentHashError         V-01
        ├── SignatureFormError       V-02
        ├── SignerMismatchError      V-03
        ├── MessageMismatchError     V-04
        ├── StandingError            V-05
        ├── ExpiredError             V-06
        ├── ReplayError              V-07
        └── BlobError                V-10..

Each carries a stable `code` (searchable in logs and docs/errors.md), the sentence, and a `hint`: the next thing to try.
Exit codes are real process exit codes and are never reused. 0 is success, 1 a bug, 130 an interrupt.
"""

from __future__ import annotations


class AvenueError(Exception):
    """Base of the tree. `code` is stable; `hint` says what to do next."""

    exit_code = 1
    default_code = "X-00"
    default_hint = ""

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = self.default_hint if hint is None else hint

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}" + (f" ({self.hint})" if self.hint else "")


class UsageError(AvenueError):
    """A flag or a task file says something that cannot be done."""

    exit_code = 2
    default_code = "U-00"


class ConfigError(AvenueError):
    """Configuration, keystore or deployment record is missing or wrong."""

    exit_code = 3
    default_code = "C-00"


class UnreachableError(AvenueError):
    """A server we need does not answer."""

    exit_code = 4
    default_code = "N-00"


class LaggingRpcError(UnreachableError):
    """The RPC endpoint is behind the head that we already know of; what it says is not believed."""

    default_code = "N-02"
    default_hint = "wait for the endpoint to catch up, or add another URL to rpc_urls"


class TransactionError(AvenueError):
    """A transaction reverted, was dropped, or would cost more than the cap."""

    exit_code = 5
    default_code = "T-00"


class FundsError(AvenueError):
    """Not enough gas money, tokens or stake."""

    exit_code = 6
    default_code = "F-00"


class StateError(AvenueError):
    """Not found, or not in the state that this move starts from."""

    exit_code = 7
    default_code = "S-00"


class WaitTimeoutError(AvenueError):
    """Waited as long as asked, and it did not happen."""

    exit_code = 8
    default_code = "W-00"


class DoctorError(AvenueError):
    """A named check found a problem."""

    exit_code = 9
    default_code = "D-00"


class VerificationError(AvenueError):
    """Something received is not what it claims to be."""

    exit_code = 10
    default_code = "V-00"


class ContentHashError(VerificationError):
    """The content does not hash to what the message says."""

    default_code = "V-01"
    default_hint = "the message was altered on its way; ask the sender again"


class SignatureFormError(VerificationError):
    """The signature is not 65 bytes of a secp256k1 signature with low s."""

    default_code = "V-02"


class SignerMismatchError(VerificationError):
    """The recovered key is not the sender's."""

    default_code = "V-03"


class MessageMismatchError(VerificationError):
    """The payload does not fit the message around it (its kind, its task)."""

    default_code = "V-04"


class StandingError(VerificationError):
    """The sender's key has no part in this: no registered node, not the task's requester."""

    default_code = "V-05"


class ExpiredError(VerificationError):
    """The message is past its deadline, or its deadline is too far ahead."""

    default_code = "V-06"
    default_hint = "check this machine's clock, then sign again"


class ReplayError(VerificationError):
    """The message's nonce was used before."""

    default_code = "V-07"


class BlobError(VerificationError):
    """A blob's bytes, size or index are not what its id says."""

    default_code = "V-10"
