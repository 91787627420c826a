"""What the gateway answers, as models shared by its routes, its page and its clients (docs/architecture.md, "The
gateway's API").

One error shape and one list shape for everything. Clients ignore keys that they do not know, so a newer gateway does
not break an older node; what a node *signs* is strict instead (protocol/messages.py). Bytes and addresses are 0x-hex,
amounts decimal strings in wei, times unix seconds. `as_of_block` is the block up to which the answer is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, computed_field

from protocol import errors
from protocol.errors import AvenueError
from protocol.json_types import Address, Bytes32, HexData, WeiAmount
from protocol.messages import SignedMessage

API_PREFIX = "/api/v1"

ItemT = TypeVar("ItemT")

_BY_BAND: dict[str, type[AvenueError]] = {
    "U": errors.UsageError,
    "C": errors.ConfigError,
    "N": errors.UnreachableError,
    "T": errors.TransactionError,
    "F": errors.FundsError,
    "S": errors.StateError,
    "V": errors.VerificationError,
}
_BY_CODE: Mapping[str, type[AvenueError]] = {
    error.default_code: error
    for error in (
        errors.ContentHashError,
        errors.SignatureFormError,
        errors.SignerMismatchError,
        errors.MessageMismatchError,
        errors.StandingError,
        errors.ExpiredError,
        errors.ReplayError,
        errors.BlobError,
    )
} | dict.fromkeys((f"V-{number}" for number in range(10, 16)), errors.BlobError)


class Answer(BaseModel):
    """Anything that the gateway says."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorBody(Answer):
    """The error tree's fields (protocol/errors.py)."""

    code: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: AvenueError) -> ErrorBody:
        return cls(code=error.code, message=error.message, hint=error.hint)

    def to_exception(self) -> AvenueError:
        """The error as the server raised it, by its code: V-07 becomes a ReplayError again.

        Whoever serves it may be anybody: what a terminal would act on is taken out, and it is cut to what people read.
        """
        code, message, hint = _plain(self.code, 8), _plain(self.message, 500), _plain(self.hint, 500)
        error_class = _BY_CODE.get(code) or _BY_BAND.get(code[:1], AvenueError)
        return error_class(message, code=code, hint=hint)


def _plain(text: str, length: int) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:length])


class ErrorAnswer(Answer):
    """Every refusal has this shape."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ok": False,
                    "error": {"code": "V-06", "message": "the message expired 12 s ago", "hint": "check the clock"},
                }
            ]
        }
    )

    ok: Literal[False] = False
    error: ErrorBody


class ListAnswer(Answer, Generic[ItemT]):
    """Every list has this shape. `next` goes into `after` of the next request; null at the end."""

    ok: Literal[True] = True
    items: tuple[ItemT, ...]
    next: str | int | None = None
    as_of_block: int | None = None


class MessagePosted(Answer):
    """Where the message is in the mailbox."""

    ok: Literal[True] = True
    id: int


class BlobAnnounced(Answer):
    """Which chunks the gateway still lacks."""

    ok: Literal[True] = True
    missing: tuple[int, ...]


class BlobInfo(Answer):
    """A blob's size, index and how much of it is here."""

    ok: Literal[True] = True
    blob: Bytes32
    size: int
    """Bytes."""
    index: tuple[Bytes32, ...]
    complete: bool
    missing: tuple[int, ...]


class MailItem(SignedMessage):
    """An envelope with its place in the mailbox. Ids ascend in the order of arrival."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: int

    def envelope(self) -> SignedMessage:
        """Without the id, which the sender did not sign."""
        return SignedMessage(**{name: getattr(self, name) for name in SignedMessage.model_fields})


class MailPage(ListAnswer[MailItem]):
    """The next mail, and in which mailbox it lies."""

    mailbox: Annotated[str, Field(max_length=64)] = ""
    """Another name than before: the gateway has lost its mail, ids start anew, and what was said must be said again."""


class TaskView(Answer):
    """A task as its events tell it."""

    task: Bytes32
    requester: Address
    name: str | None = None
    """From the manifest, if its blob is here. Text chosen by the requester."""
    status: str
    private: bool
    manifest: Bytes32
    rounds: int
    shards: int
    steps: int
    units: int
    units_finalised: int
    units_in_flight: int
    round: int
    """First round that still has a unit without a revealed result; `rounds` when there is none."""
    unit_price: WeiAmount
    aggregation_price: WeiAmount
    collateral: WeiAmount
    escrow: WeiAmount
    paid: WeiAmount
    refunded: WeiAmount
    deadline: int
    posted_block: int
    loss: float | None = None
    """Last loss that a worker reported, nats. A worker's claim, not a checked fact."""


class UnitView(Answer):
    """A work unit as its events tell it."""

    task: Bytes32
    unit: int
    round: int
    shard: int
    aggregation: bool
    status: str
    node: int | None = None
    attempt: int
    deadline: int | None = None
    result_root: Bytes32 | None = None
    final_state_root: Bytes32 | None = None
    paid: WeiAmount
    accepted: bool | None = None
    step: int | None = None
    steps: int
    loss: float | None = None
    updated_block: int | None = None


class NodeView(Answer):
    """A compute node as its events tell it."""

    node: int
    owner: Address
    operator: Address
    endpoint: str
    encryption_key: Bytes32
    capabilities_hash: Bytes32
    status: str
    stake: WeiAmount
    locked: WeiAmount
    slashed: WeiAmount
    earned: WeiAmount
    units_finalised: int
    units_expired: int
    registered_block: int


class PaymentView(Answer):
    """Money that somebody was credited or sent. A credit and its withdrawal are two lines."""

    id: int
    kind: str
    """`unit` (earned), `refund` (escrow returned), `compensation` (from slashed stake); `withdrawal` (sent)."""
    payee: Address
    amount: WeiAmount
    task: Bytes32 | None = None
    unit: int | None = None
    node: int | None = None
    block: int
    transaction: HexData


class AccountView(Answer):
    """What an address was credited by market and registry, and what of it was sent. Tokens elsewhere are not in it."""

    address: Address
    earned: WeiAmount
    """For units."""
    refunded: WeiAmount
    """Escrow of closed tasks."""
    compensated: WeiAmount
    """Shares of slashed stake."""
    withdrawn: WeiAmount

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unclaimed(self) -> WeiAmount:
        """Still to be had from `TaskMarket.withdraw` and `NodeRegistry.collect`."""
        return self.earned + self.refunded + self.compensated - self.withdrawn


class SlashView(Answer):
    """Stake that a node lost, and where it went."""

    id: int
    node: int
    amount: WeiAmount
    harmed: Address
    to_harmed: WeiAmount
    reporter: Address
    to_reporter: WeiAmount
    burned: WeiAmount
    block: int
    transaction: HexData


class GatewayStatus(Answer):
    """Whom this gateway serves and how far its index is."""

    ok: Literal[True] = True
    chain_id: int
    market: Address
    registry: Address
    token: Address
    head_block: int | None
    indexed_block: int | None
    lag_blocks: int | None
    index_error: str | None = None
    tasks: int
    nodes: int
    blobs: int
    stored_bytes: int
    quota_bytes: int
    max_blob_bytes: int
    upload_min_balance: WeiAmount


PageLimit = Annotated[int, Field(ge=1, le=500)]
