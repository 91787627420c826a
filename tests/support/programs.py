"""Two small programs that tests run: linear regression, the least that trains, and an MLP classifier, which uses every
operation. Written as a newcomer would write them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.initialise import normal, zeros
from proofs.exact.program import Program
from proofs.exact.tensor import ExactTensor, TensorType

STEP_TYPE = TensorType((), 40)


def linear_regression(samples: int = 32, features: int = 3, batch: int = 8) -> Program:
    """y = x · w by least squares and plain gradient descent. Operands have 12 fraction bits, the master weights 24."""
    b = ProgramBuilder()
    w = b.state("w", TensorType((1, features), bits=32, frac=24))
    t = b.state("t", STEP_TYPE)
    x = b.data("x", TensorType((samples, features), bits=14, frac=12))
    y = b.data("y", TensorType((samples, 1), bits=16, frac=12))

    rows = b.permute(t, samples=samples, batch=batch)
    xb, yb = b.gather(x, rows), b.gather(y, rows)
    z = b.rescale(b.matmul_nt(xb, b.rescale(w, frac=12, bits=16)), frac=12, bits=20)
    error = b.saturate(b.sub(z, yb), bits=16)
    gradient = b.matmul_nt(b.transpose(error), b.transpose(xb))  # summed over the batch, 24 fraction bits
    rate = b.constant(round(0.1 / batch * 2**20), frac=20)
    move = b.rescale(b.mul(gradient, rate), frac=24, bits=32)

    b.update("w", b.saturate(b.sub(w, move), bits=32))
    b.update("t", b.saturate(b.add(t, b.constant(1)), bits=40))
    return b.build()


def regression_data(samples: int = 32, features: int = 3) -> dict[str, ExactTensor]:
    """x uniform, y = x · (1, -0.5, 0.25, ...) exactly."""
    x = normal(7, "x", TensorType((samples, features), 14, 12), variance=(1, 4))
    slopes = torch.tensor([(4096 >> i) * (-1) ** i for i in range(features)])
    y = (x.values * slopes).sum(dim=1, keepdim=True) >> 12
    return {"x": x, "y": ExactTensor(TensorType((samples, 1), 16, 12), y)}


def mlp(samples: int, widths: tuple[int, ...], batch: int, *, rate: float = 0.1, momentum: float = 0.9) -> Program:
    """ReLU layers with biases, softmax cross-entropy, SGD with momentum: profile fx12 with 24-bit master weights."""
    b = ProgramBuilder()
    layers = len(widths) - 1
    t = b.state("t", STEP_TYPE)
    x = b.data("x", TensorType((samples, widths[0]), bits=14, frac=12))
    y = b.data("y", TensorType((samples,), bits=8))
    rows = b.permute(t, samples=samples, batch=batch)
    masters, velocities, weights, activations = {}, {}, [], [b.gather(x, rows)]
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        for name, shape in ((f"w{layer}", (fan_out, fan_in)), (f"b{layer}", (1, fan_out))):
            masters[name] = b.state(name, TensorType(shape, 32, 24))
            velocities[name] = b.state(f"v.{name}", TensorType(shape, 40, 24))
        weights.append(b.rescale(masters[f"w{layer}"], frac=12, bits=16))
        z = b.add(b.matmul_nt(activations[-1], weights[-1]), masters[f"b{layer}"])
        z = b.rescale(z, frac=12, bits=18)
        activations.append(b.relu(z) if layer < layers - 1 else z)

    target = b.mul(b.one_hot(b.gather(y, rows), widths[-1]), b.constant(1 << 12, frac=12))
    delta = b.sub(_softmax(b, activations[-1]), target)
    learning_rate = b.constant(round(rate / batch * 2**20), frac=20)
    for layer in reversed(range(layers)):
        gradients = {
            f"w{layer}": b.matmul_nt(b.transpose(delta), b.transpose(activations[layer])),
            f"b{layer}": b.widen(b.reduce_sum(delta, axis=0), frac=24),
        }
        if layer:
            back = b.rescale(b.matmul_nt(delta, b.transpose(weights[layer])), frac=12, bits=18)
            delta = b.mul(back, b.positive(activations[layer]))
        for name, gradient in gradients.items():
            kept = b.rescale(b.mul(velocities[name], b.constant(round(momentum * 2**15), frac=15)), frac=24, bits=40)
            velocity = b.saturate(b.add(kept, gradient), bits=40)
            b.update(f"v.{name}", velocity)
            move = b.rescale(b.mul(velocity, learning_rate), frac=24, bits=40)
            b.update(name, b.saturate(b.sub(masters[name], move), bits=32))
    b.update("t", b.saturate(b.add(t, b.constant(1)), bits=40))
    return b.build()


def _softmax(b: ProgramBuilder, z: Handle) -> Handle:
    """Rows to probabilities with 12 fraction bits: e^-d from a table of 4096 steps of 1/256, then one division."""
    table = b.constant([round(math.exp(-i / 256) * 2**16) for i in range(4096)], frac=16)
    below = b.rescale(b.sub(b.reduce_max(z, axis=1), z), frac=8, bits=20)
    e = b.lookup(b.clamp(below, 0, 4095), table)
    total = b.clamp(b.reduce_sum(e, axis=1), 1, 2**30)
    return b.div_floor(b.widen(e, frac=28), total)


def mlp_state(program: Program, seed: int = 5) -> dict[str, ExactTensor]:
    """He initialisation of the weights; everything else zero."""
    state = {}
    for name, type_ in program.state_types.items():
        drawn = name.startswith("w")
        state[name] = normal(seed, name, type_, variance=(2, type_.shape[1])) if drawn else zeros(type_)
    return state


def mlp_data(samples: int, features: int, classes: int) -> dict[str, ExactTensor]:
    """Blobs that a small network can tell apart: class c is bright at features c, c + classes, ..."""
    y = torch.arange(samples) % classes
    x = normal(11, "x", TensorType((samples, features), 14, 12), variance=(1, 16)).values.clone()
    x += 4096 * (torch.arange(features)[None] % classes == y[:, None])
    return {
        "x": ExactTensor(TensorType((samples, features), 14, 12), x.clamp(-8192, 8191)),
        "y": ExactTensor(TensorType((samples,), 8), y),
    }
