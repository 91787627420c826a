"""Posting a task: what it costs is shown first, and nothing is spent or sent before `execute`.

    plan_submission(context, path) -> Submission       reads, prepares, asks the chain for prices and balances
    submission.execute(on_progress) -> TaskId          keys to disk, blobs to the gateway, then one transaction

`execute` may be repeated after any failure: uploads resume, and the transaction is journalled under the task's id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from node.context import NodeContext
from node.request.prepare import PreparedTask, prepare_task, save_content_keys
from node.request.task_file import load_task_file
from node.training.plan import prepare_plan
from protocol import signatures, transactions
from protocol.amounts import show_avn
from protocol.errors import FundsError, UsageError
from protocol.fees import SendPolicy
from protocol.sender import Sender
from protocol.transactions import Call
from protocol.types import TaskId, TaskSpec, TaskStatus, Wei

PERMIT_TTL_S = 3600
OnProgress = Callable[[str, int, int], None]
"""What is being done, bytes sent so far, bytes in all."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a submission takes. Gas price in wei per gas; the rest in wei."""

    escrow: Wei
    """Reserved at once; what is not earned comes back at the end."""
    balance: Wei
    """Tokens now."""
    gas: int
    """Gas limit of the one transaction."""
    gas_price_wei: int
    gas_balance: Wei

    @property
    def balance_after(self) -> Wei:
        return Wei(self.balance - self.escrow)

    @property
    def gas_cost(self) -> Wei:
        return Wei(self.gas * self.gas_price_wei)


@dataclass(frozen=True, slots=True)
class Submission:
    """A task ready to be posted."""

    context: NodeContext
    prepared: PreparedTask
    cost: Cost

    @property
    def spec(self) -> TaskSpec:
        return self.prepared.spec

    @property
    def task_id(self) -> TaskId:
        return TaskId(self.prepared.spec.task_id)

    def execute(self, on_progress: OnProgress = lambda _what, _done, _total: None) -> TaskId:
        """Uploads and posts. Raises what GatewayClient.upload_blob and Sender.send raise, and OSError."""
        prepared, context = self.prepared, self.context
        save_content_keys(context.data_dir, self.task_id, prepared.blobs)
        done = 0
        for blob in prepared.blobs:
            on_progress(f"uploading {blob.what}", done, prepared.upload_bytes)
            context.gateway.upload_blob(blob.data)
            done += len(blob.data)
        on_progress("posting", done, prepared.upload_bytes)
        if context.client.task(self.task_id).status is not TaskStatus.NONE:
            return self.task_id  # an earlier try was mined after all
        outcome = _sender(context).send(_post(context, self.spec), f"post:{self.task_id.hex()}")
        context.client.at_least_block(outcome.block)
        log.info("posted", task=self.task_id.hex(), tx="0x" + outcome.hash.hex()[:8], gas=outcome.gas_used)
        return self.task_id


def plan_submission(context: NodeContext, path: Path | str) -> Submission:
    """Everything up to the point where money moves.

    Raises UsageError (task file, data), FundsError F-10 (tokens) or F-01 (gas money), UnreachableError,
    RevertedError if the market would refuse the task.
    """
    head = context.client.latest_block()
    file = load_task_file(path, now=head.timestamp)
    dearest = max(file.pay.unit_price, file.aggregation_price)
    if file.pay.collateral < dearest:
        raise UsageError(
            f"pay.collateral is {show_avn(file.pay.collateral)}, less than the dearest unit ({show_avn(dearest)})",
            code="U-43",
            hint="who walks away from a unit must lose at least what it would have paid",
        )
    requester = context.account.address
    prepared = prepare_task(file, prepare_plan(file), requester, context.encryption_key.public, head.timestamp)
    balance = context.client.token_balance(requester)
    if balance < prepared.spec.escrow:
        raise FundsError(
            f"{requester} has {show_avn(balance)}, the task reserves {show_avn(prepared.spec.escrow)}",
            code="F-10",
            hint=f"send it {show_avn(Wei(prepared.spec.escrow - balance))}, or plan fewer rounds or a lower price",
        )
    cost = Cost(
        escrow=prepared.spec.escrow,
        balance=balance,
        gas=_sender(context).simulate(_post(context, prepared.spec)),
        gas_price_wei=head.base_fee_wei + int(context.w3.eth.max_priority_fee),
        gas_balance=context.client.gas_balance(requester),
    )
    return Submission(context, prepared, cost)


def _sender(context: NodeContext) -> Sender:
    policy = SendPolicy(fee_cap_wei=context.config.fees.max_fee_wei)
    return Sender(context.client, context.account, context.journal, policy)


def _post(context: NodeContext, spec: TaskSpec) -> Call:
    """Allowance and posting in one transaction; without a permit if the allowance is there already."""
    client, deployment, requester = context.client, context.deployment, context.account
    if client.allowance(requester.address, deployment.market) >= spec.escrow:
        return transactions.post(deployment, spec)
    # The deadline follows from the task, so that a repeated call is the same call for the journal.
    permit = signatures.sign_permit(
        requester,
        deployment,
        deployment.market,
        spec.escrow,
        client.permit_nonce(requester.address),
        spec.deadline + PERMIT_TTL_S,
    )
    return transactions.post_with_permit(deployment, spec, permit)
