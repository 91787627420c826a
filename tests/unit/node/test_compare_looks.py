"""What a look at the held-out samples costs: bounded by what the training itself costs."""

from __future__ import annotations

import pytest

from node.training.compare import held_out_of_a_look


@pytest.mark.parametrize(
    ("steps", "batch_size", "samples"),
    [
        (200, 16, 480),  # a GPT by default: evaluated as many as 9,600 times, learned from 3,200
        (500, 128, 2000),
        (20, 16, 200),
        (200, None, 200),  # the example batch alone: there are none
    ],
)
def test_a_look_takes_no_more_samples_than_training_pays_for(steps: int, batch_size: int | None, samples: int) -> None:
    assert held_out_of_a_look(steps, batch_size, looks=20) == samples
