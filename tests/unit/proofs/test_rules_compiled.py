"""Through the whole compiler: what layers and choices by index learn in a few steps is what they learn in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from proofs.exact import compile as compile_step
from proofs.exact.compiler.compiled import CompiledStep
from proofs.exact.compiler.errors import CompileError, EncodeError
from proofs.exact.execute import run_unit
from proofs.exact.settings import Settings

Batch = dict[str, Tensor]
RATE = 0.1
UNFUSED = Settings(fuse=False)
"""No kernels are generated for programs that run a few steps; fused ones give the same bits."""


def trained(
    model: nn.Module, batch: Batch, steps: int = 4, seed: int = 0, *, classes: bool = True
) -> tuple[CompiledStep, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The compiled step, and the parameters before, after exact training, and after float32 training."""

    def loss_of(params: dict[str, Tensor], batch: Batch) -> Tensor:
        out = functional_call(model, params, (batch["x"],))
        return F.cross_entropy(out, batch["y"]) if classes else out

    def step(params: dict[str, Tensor], state: dict[str, Tensor], batch: Batch) -> tuple[Any, Any, Tensor]:
        grads, loss = grad_and_value(loss_of)(params, batch)
        return {name: weight - RATE * grads[name] for name, weight in params.items()}, state, loss

    start = {name: weight.detach() for name, weight in model.named_parameters()}
    compiled = compile_step(step, (start, {}, batch), steps=steps)
    state, data = compiled.encode_state(start, {}), compiled.encode_data(batch)
    end = run_unit(compiled.program, state, data, seed, steps, steps, settings=UNFUSED).final_state
    expected = start
    for _ in range(steps):
        expected = step(expected, {}, batch)[0]
    return compiled, start, compiled.decode_params(end), expected


def assert_learned_alike(model: nn.Module, batch: Batch, *, within: float = 0.02) -> None:
    """`within`: largest distance between the two sets of weights, as a share of how far training moved them."""
    _, start, exact, expected = trained(model, batch)
    for name in start:
        moved = (expected[name] - start[name]).norm()
        assert moved > 0, f"{name} learned nothing"
        assert (exact[name] - expected[name]).norm() <= within * moved, name


def labels(count: int, classes: int) -> Tensor:
    return torch.arange(count) % classes


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_convolutions_and_pools_of_every_kind() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    assert_learned_alike(model, {"x": torch.randn(10, 3, 16, 16), "y": labels(10, 5)}, within=0.05)


class Tied(nn.Module):
    """Embedding and output layer share their weights; positions are a constant index."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(11, 8, padding_idx=0)
        self.position = nn.Embedding(6, 8)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.token(x) + self.position(torch.arange(x.shape[1]))
        return F.linear(hidden.tanh(), self.head.weight, self.head.bias).flatten(0, 1)


def test_tied_embeddings_learn_from_both_ends() -> None:
    x = torch.randint(0, 11, (4, 6))
    assert_learned_alike(Tied(), {"x": x, "y": x.roll(1).flatten()})


class ByHand(nn.Module):
    """A cross-entropy as people write it: one logit of each row by index, one by gather."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        logs = F.log_softmax(self.layer(x), dim=1)
        y = labels(len(x), 6)
        return -(logs[torch.arange(len(x)), y] + logs.gather(1, y[:, None]).squeeze(1)).mean()


def test_choices_by_index_inside_a_loss() -> None:
    _, _, exact, expected = trained(ByHand(), {"x": torch.randn(12, 4)}, classes=False)
    for name, weight in expected.items():
        assert torch.allclose(exact[name], weight, atol=1e-3), name


def test_dropout_trains_and_is_a_function_of_the_seed() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4))
    batch = {"x": torch.randn(8, 16), "y": labels(8, 4)}
    compiled, start, exact, _ = trained(model, batch, steps=60)
    losses = [F.cross_entropy(functional_call(model.eval(), p, (batch["x"],)), batch["y"]) for p in (start, exact)]
    assert losses[1] < 0.2 * losses[0]
    state, data = compiled.encode_state(start, {}), compiled.encode_data(batch)
    roots = [
        run_unit(compiled.program, state, data, seed, 3, 3, settings=UNFUSED).checkpoint_roots[-1] for seed in (5, 5, 6)
    ]
    assert roots[0] == roots[1] != roots[2]


def test_tokens_out_of_range_are_refused_when_data_are_encoded() -> None:
    x = torch.randint(0, 11, (4, 6))
    compiled, *_ = trained(Tied(), {"x": x, "y": x.flatten()}, steps=1)
    assert (compiled.labels["x"].lo, compiled.labels["x"].hi) == (0, 10)
    with pytest.raises(EncodeError, match="x"):
        compiled.encode_data({"x": x + 5, "y": x.flatten()})


@pytest.mark.parametrize(
    ("layer", "said", "way_out"),
    [
        (nn.ConvTranspose2d(2, 2, 2), "transposed convolution", "nn.Upsample"),
        (nn.AdaptiveAvgPool2d(4), "windows differ in size", "nn.AvgPool2d"),
        (nn.Conv3d(2, 2, 2), "convolution of a tensor of shape", "[images, channels"),
    ],
)
def test_an_unsupported_layer_is_named_with_a_way_out(layer: nn.Module, said: str, way_out: str) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(3, 2, 5, 5, 5) if isinstance(layer, nn.Conv3d) else torch.randn(3, 2, 5, 5)
    model(x)
    with pytest.raises(CompileError) as caught:
        trained(model, {"x": x, "y": labels(3, 3)})
    assert said in str(caught.value) and way_out in str(caught.value)
