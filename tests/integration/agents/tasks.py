"""Task files for these tests: digits, two shards, as long or short as a test needs."""

from __future__ import annotations

TEMPLATE = """
[task]
name = "digits"
private = {private}
rounds = {rounds}
shards = 2
deadline = "1h"
compute_window = {window}
reveal_window = {reveal}
challenge_window = {challenge}
[pay]
unit_price = "10"
aggregation_price = "1"
collateral = "20"
[model]
kind = "mlp"
hidden = [16]
[data]
source = "digits"
[training]
steps_per_round = {steps}
batch_size = 32
learning_rate = 0.1
momentum = 0.9
seed = 7
checkpoint_interval = {interval}
"""

LONG_STEPS = 1500
"""Some seconds of training, so that a test can kill the worker in the middle."""


def task_text(
    *,
    private: bool = False,
    rounds: int = 2,
    window: int = 120,
    challenge: int = 60,
    reveal: int = 60,
    steps: int = 40,
    interval: int = 10,
) -> str:
    """A task file. Windows in seconds."""
    return TEMPLATE.format(
        private=str(private).lower(),
        rounds=rounds,
        window=window,
        challenge=challenge,
        reveal=reveal,
        steps=steps,
        interval=interval,
    )
