"""Tells the log and the gateway where the training is. Nobody depends on it: what cannot be delivered is not."""

from __future__ import annotations

import threading
import time
from collections import deque

import structlog

from node.compute.view import WorkKey
from node.compute.workshop import Progress, Workshop
from node.gateway import GatewayClient
from protocol.errors import AvenueError
from protocol.messages import UnitProgress
from protocol.types import NodeId

PROGRESS_EVERY_S = 1.0
LOG_EVERY_S = 5.0
MAX_ENDED = 64
"""Last steps that wait for a gateway that is away; older ones are dropped."""

log = structlog.get_logger(__name__)


class Reporter:
    """Posts in a thread of its own, so that no training ever waits for the gateway."""

    def __init__(self, training: Workshop[WorkKey]) -> None:
        self._training = training
        self._ended: deque[tuple[WorkKey, Progress]] = deque(maxlen=MAX_ENDED)

    def start(self, gateway: GatewayClient, node: NodeId, stop: threading.Event) -> None:
        threading.Thread(target=self._report, args=(gateway, node, stop), name="progress", daemon=True).start()

    def note(self, key: WorkKey, at: Progress) -> None:
        """A step is done. Called by the training thread; returns at once."""
        self._training.report(key, at)
        if at.step == at.steps:  # `_report` would find the job gone
            self._ended.append((key, at))

    def _report(self, gateway: GatewayClient, node: NodeId, stop: threading.Event) -> None:
        said: dict[WorkKey, Progress] = {}
        logged_at = time.monotonic()
        while not stop.wait(PROGRESS_EVERY_S):
            now = self._training.progress
            news = {key: at for key, at in now.items() if said.get(key) != at}
            while self._ended:
                key, at = self._ended.popleft()
                news[key] = at
            if now and time.monotonic() >= logged_at + LOG_EVERY_S:
                logged_at = time.monotonic()
                for key, at in now.items():
                    log.info("training", **_line(key, at))
            for key, at in news.items():
                message = UnitProgress(unit=key.unit, node=node, step=at.step, steps=at.steps, loss=at.loss)
                try:
                    gateway.post_message(key.task, message)
                except AvenueError as error:
                    log.debug("progress not delivered", why=str(error))
            said = now


def _line(key: WorkKey, at: Progress) -> dict[str, object]:
    """The progress line of one unit."""
    loss = {} if at.loss is None else {"loss": f"{at.loss:.4f}"}
    pace: dict[str, object] = {}
    if at.steps_per_s is not None and at.left_s is not None:
        pace = {"steps_per_s": round(at.steps_per_s, 1), "left_s": round(at.left_s)}
    return {"task": key.task.hex()[:8], "unit": key.unit, "step": f"{at.step}/{at.steps}"} | loss | pace
