"""The training step of an MLP classifier as an exact integer program: ReLU, softmax cross-entropy, SGD with momentum.

Promises: the program follows from the recipe below alone, to the bit (tables and rates are rounded from exact
decimals, no float is involved); no input, weight or label can overflow it, which the builder proves by static range
analysis; where a value could leave its declared range it saturates, at bounds far beyond what training needs.

The recipe. Numbers are v * 2^-frac.

    operand of a product      frac 12, 20 bits   weights and activations, |v| < 128
    master weight, velocity   frac 24, 32 bits   |v| < 128
    gradient of a logit       frac 14            probability minus label, summed over the batch and never averaged
    gradient of a hidden unit frac 14, 20 bits   |v| < 32
    softmax                   exp by table in steps of 1/256, one division per row
    update                    v' = momentum * v + rate * gradient,  w' = w - v'    rounded once, halves up

1/batch is folded into the integer rate. With a constant learning rate this is PyTorch's SGD: its momentum buffer
times the learning rate is our velocity. The state is w1, b1, v_w1, v_b1, w2, ... with the step counter t and the
moving mean of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Final

import torch

from node.training.datasets import InputScale
from node.training.sharding import derived_seed
from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.initialise import normal, zeros
from proofs.exact.program import Program, ProgramError
from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import TensorType, bits_for
from protocol.errors import UsageError

OPERAND_FRAC: Final = 12
OPERAND_BITS: Final = 20
MASTER_FRAC: Final = 24
MASTER_BITS: Final = 32
GRADIENT_FRAC: Final = 14
GRADIENT_BITS: Final = 20

EXP_FRAC: Final = 16
TABLE_FRAC: Final = 8
"""Tables step by 1/256, so a probability is off by at most 0.2 per cent of itself. Steps of 1/4096 gained nothing."""
EXP_ENTRIES: Final = 4096
"""exp(-16) is below half of 2^-16: past the table's end every entry would be zero."""
LOG_ENTRIES: Final = 2**16
RECIPROCAL_FRAC: Final = 34

LOSS_FRAC: Final = 16
LOSS_BITS: Final = 32
LOSS_MEMORY_SHIFT: Final = 4
"""The reported loss moves 1/16 of the way to each batch's mean."""

STEP_BITS: Final = 32
MAX_RATE_FRAC: Final = 30
MIN_RATE: Final = 16
"""An integer rate below this would be off by more than 3 per cent."""

_DECIMAL: Final = Context(prec=25)


@dataclass(frozen=True, slots=True)
class MlpRecipe:
    """What a training step of an MLP depends on.

    `layers` are sizes, input first, classes last. `samples` is the size of a shard, `scale` what its integers mean.
    """

    layers: tuple[int, ...]
    samples: int
    scale: InputScale
    batch_size: int
    learning_rate: Decimal
    momentum: Decimal


def program_for(recipe: MlpRecipe) -> Program:
    """The step: state and shard in, state out.

    Raises:
        UsageError: U-40 a batch larger than the shard, U-41 a learning rate beyond the integers' resolution,
            U-42 a model so large that its sums could leave 64 bits.
    """
    if recipe.batch_size > recipe.samples:
        raise UsageError(
            f"a batch of {recipe.batch_size} from a shard of {recipe.samples} samples",
            code="U-40",
            hint="use a smaller batch_size or fewer shards",
        )
    try:
        return _Step(recipe).build()
    except ProgramError as error:
        raise UsageError(
            f"this model cannot be trained exactly: {error}", code="U-42", hint="use smaller layers or a smaller batch"
        ) from error


def initial_state(layers: Sequence[int], seed: int) -> State:
    """The state before step 0: weights of variance 2 / inputs (He et al. 2015) drawn from the task's seed in integers,
    biases and velocities zero, the loss that of a uniform guess.
    """
    key = derived_seed("avenue.weights.v1", seed)
    state = {
        name: normal(key, name, type_, variance=(2, type_.shape[1])) if name.startswith("w") else zeros(type_)
        for name, type_ in state_types(layers).items()
    }
    guess = _scaled(_DECIMAL.ln(Decimal(layers[-1])), LOSS_FRAC)
    return state | {"loss": ExactTensor(state["loss"].type, torch.tensor(guess))}


def state_types(layers: Sequence[int]) -> dict[str, TensorType]:
    """Name and type of every tensor of the state, ascending by name."""
    types = {"loss": TensorType((), LOSS_BITS, LOSS_FRAC), "t": TensorType((), STEP_BITS, 0)}
    for layer, (inputs, outputs) in enumerate(pairwise(layers), start=1):
        for prefix in ("", "v_"):
            types[f"{prefix}w{layer}"] = TensorType((outputs, inputs), MASTER_BITS, MASTER_FRAC)
            types[f"{prefix}b{layer}"] = TensorType((outputs,), MASTER_BITS, MASTER_FRAC)
    return dict(sorted(types.items()))


def loss_of(state: State) -> float:
    """The moving mean of the training loss, nats per sample. It starts at ln(classes): that of a uniform guess."""
    return int(state["loss"].values) / 2**LOSS_FRAC


class _Step:
    """Writes the program, top to bottom as a training step runs."""

    def __init__(self, recipe: MlpRecipe) -> None:
        self._recipe = recipe
        self._classes = recipe.layers[-1]
        self._builder = ProgramBuilder()
        self._state = {name: self._builder.state(name, type_) for name, type_ in state_types(recipe.layers).items()}
        self._rate_frac = _rate_frac(recipe.learning_rate)

    def build(self) -> Program:
        b = self._builder
        inputs, labels = self._batch()
        activations, operands, logits = self._forward(inputs)
        below = b.sub(b.reduce_max(logits, 1), logits)
        exponentials = self._exponentials(below)
        # The greatest logit contributes exactly 1, so the clamp changes nothing; it tells the range analysis.
        total = b.clamp(b.reduce_sum(exponentials, 1), 1 << EXP_FRAC, self._classes << EXP_FRAC)
        gradient = b.sub(self._probabilities(exponentials, total), b.widen(labels, frac=GRADIENT_FRAC))
        self._backward(gradient, activations, operands)
        self._report(below, labels, total)
        b.update("t", b.clamp(b.add(self._state["t"], b.constant(1)), 0, 2 ** (STEP_BITS - 1) - 1))
        return b.build()

    def _batch(self) -> tuple[Handle, Handle]:
        """[batch, features] of operands, [batch, classes] of 0 and 1."""
        b, recipe = self._builder, self._recipe
        x_type = TensorType((recipe.samples, recipe.layers[0]), recipe.scale.bits, recipe.scale.stored_frac)
        y_type = TensorType((recipe.samples,), bits_for(0, self._classes - 1), 0)
        chosen = b.permute(self._state["t"], samples=recipe.samples, batch=recipe.batch_size)
        inputs = b.gather(b.data("x", x_type), chosen)
        if recipe.scale.offset:
            inputs = b.add(inputs, b.constant(recipe.scale.offset, frac=inputs.frac))
        if recipe.scale.multiplier != 1:
            inputs = b.mul(
                inputs, b.constant(recipe.scale.multiplier, frac=recipe.scale.frac - recipe.scale.stored_frac)
            )
        return inputs, b.one_hot(b.gather(b.data("y", y_type), chosen), self._classes)

    def _forward(self, inputs: Handle) -> tuple[list[Handle], list[Handle], Handle]:
        """What each layer is fed, each layer's weights as operands, and the logits."""
        b = self._builder
        activations, operands = [inputs], []
        depth = len(self._recipe.layers) - 1
        for layer in range(1, depth + 1):
            weight = b.rescale(self._state[f"w{layer}"], frac=OPERAND_FRAC, bits=OPERAND_BITS)
            product = b.matmul_nt(activations[-1], weight)
            total = b.add(product, self._bias(layer, product.frac))
            output = b.rescale(total, frac=OPERAND_FRAC, bits=OPERAND_BITS)
            operands.append(weight)
            activations.append(output if layer == depth else b.relu(output))
        logits = activations.pop()
        return activations, operands, logits

    def _bias(self, layer: int, frac: int) -> Handle:
        bias = self._state[f"b{layer}"]
        if frac >= MASTER_FRAC:
            return self._builder.widen(bias, frac=frac)
        return self._builder.rescale(bias, frac=frac, bits=MASTER_BITS)

    def _exponentials(self, below: Handle) -> Handle:
        b = self._builder
        table = [_scaled(_DECIMAL.exp(Decimal(-i) / 2**TABLE_FRAC), EXP_FRAC) for i in range(EXP_ENTRIES)]
        index = b.clamp(b.rescale(below, frac=TABLE_FRAC, bits=OPERAND_BITS), 0, EXP_ENTRIES - 1)
        return b.lookup(index, b.constant(table, frac=EXP_FRAC))

    def _probabilities(self, exponentials: Handle, total: Handle) -> Handle:
        b = self._builder
        reciprocal = b.div_floor(b.constant(1 << RECIPROCAL_FRAC, frac=RECIPROCAL_FRAC), total)
        return b.rescale(b.mul(exponentials, reciprocal), frac=GRADIENT_FRAC, bits=GRADIENT_FRAC + 2)

    def _backward(self, gradient: Handle, activations: list[Handle], operands: list[Handle]) -> None:
        b = self._builder
        for layer in range(len(operands), 0, -1):
            fed = activations[layer - 1]
            self._descend(f"w{layer}", b.matmul_nt(b.transpose(gradient), b.transpose(fed)))
            self._descend(f"b{layer}", b.reshape(b.reduce_sum(gradient, 0), (gradient.shape[1],)))
            if layer > 1:
                product = b.matmul_nt(gradient, b.transpose(operands[layer - 1]))
                gradient = b.mul(b.rescale(product, frac=GRADIENT_FRAC, bits=GRADIENT_BITS), b.positive(fed))

    def _descend(self, name: str, gradient: Handle) -> None:
        """v' = momentum * v + rate * gradient; w' = w - v'. The velocity is rounded once."""
        b, recipe = self._builder, self._recipe
        # Both products get the same scale, so that they are added before the one rounding.
        frac = MASTER_FRAC + self._rate_frac - gradient.frac
        momentum = b.constant(_round(Fraction(recipe.momentum) * 2**self._rate_frac), frac=self._rate_frac)
        rate = _round(Fraction(recipe.learning_rate) / recipe.batch_size * 2**frac)
        if rate < MIN_RATE:
            raise UsageError(
                f"learning rate {recipe.learning_rate} over a batch of {recipe.batch_size} is too fine for integers",
                code="U-41",
                hint="raise learning_rate or lower batch_size",
            )
        kept = b.mul(self._state[f"v_{name}"], momentum)
        velocity = b.rescale(
            b.add(kept, b.mul(gradient, b.constant(rate, frac=frac))), frac=MASTER_FRAC, bits=MASTER_BITS
        )
        b.update(f"v_{name}", velocity)
        b.update(name, b.saturate(b.sub(self._state[name], velocity), bits=MASTER_BITS))

    def _report(self, below: Handle, labels: Handle, total: Handle) -> None:
        """Cross-entropy: log of the sum of exponentials, plus how far the label's logit is below the greatest."""
        b = self._builder
        index_frac = min(TABLE_FRAC, (LOG_ENTRIES // self._classes).bit_length() - 1)
        entries = ((self._classes - 1) << index_frac) + 1
        table = [_scaled(_DECIMAL.ln(1 + Decimal(i) / 2**index_frac), OPERAND_FRAC) for i in range(entries)]
        excess = b.sub(total, b.constant(1 << EXP_FRAC, frac=EXP_FRAC))
        index = b.clamp(b.rescale(excess, frac=index_frac, bits=LOSS_BITS), 0, entries - 1)
        log_total = b.lookup(index, b.constant(table, frac=OPERAND_FRAC))
        per_sample = b.add(b.reduce_sum(b.mul(labels, below), 1), log_total)
        inverse = b.constant(_round(Fraction(2**LOSS_FRAC, self._recipe.batch_size)), frac=LOSS_FRAC)
        mean = b.rescale(b.mul(b.reshape(b.reduce_sum(per_sample, 0), ()), inverse), frac=LOSS_FRAC, bits=LOSS_BITS)
        kept = b.mul(self._state["loss"], b.constant(2**LOSS_MEMORY_SHIFT - 1, frac=LOSS_MEMORY_SHIFT))
        moved = b.add(kept, b.mul(mean, b.constant(1, frac=LOSS_MEMORY_SHIFT)))
        b.update("loss", b.rescale(moved, frac=LOSS_FRAC, bits=LOSS_BITS))


def _rate_frac(learning_rate: Decimal) -> int:
    """Fraction bits of the integer momentum: as many as leave rate * gradient below 2^62 for any gradient.

    A gradient is at most batch * 2^19 * 2^19 at frac 26, so rate * gradient <= learning_rate * 2^(38 + 24 - 26 + frac).
    """
    frac = MAX_RATE_FRAC
    while Fraction(learning_rate) * 2**frac > 2**25:
        frac -= 1
    return frac


def _scaled(value: Decimal, frac: int) -> int:
    return _round(Fraction(value) * 2**frac)


def _round(value: Fraction) -> int:
    """To the nearest integer, halves up: the rounding of the programs themselves."""
    return floor(value + Fraction(1, 2))
