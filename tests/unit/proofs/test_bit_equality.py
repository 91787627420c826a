"""One state root for every kernel, thread count and order of sums, on each kind of model (issue: bit equality).

scripts/bench/exact_bits.py does the same for 100 steps.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from proofs.exact import compile as compile_step
from proofs.exact.backend.matmul import MatmulKernel, choose
from proofs.exact.backend.matmul_kernels import Planes
from proofs.exact.backend.matmul_trials import kernels_here
from proofs.exact.execute import run_unit
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import Settings
from scripts.bench import exact_bits, models


@pytest.mark.parametrize("model", exact_bits.SMALL)
def test_every_kernel_order_and_thread_count_ends_in_one_root(model: str) -> None:
    roots = exact_bits.roots_of(exact_bits.SMALL[model](), steps=2)
    assert len(roots) == 2 + len(kernels_here()) * 3 * 2
    assert len(set(roots.values())) == 1, roots


def test_one_wrong_sum_in_one_product_is_another_root() -> None:
    def off_by_one(kernel: MatmulKernel) -> MatmulKernel:
        def run(a: Planes, b: Planes, out: Planes) -> None:
            kernel.run(a, b, out)
            out[0].view(-1)[0] += 1 << 20

        return replace(kernel, run=run)

    def choice(a: ValueInfo, b: ValueInfo, settings: Settings) -> MatmulKernel:
        return off_by_one(choose(a, b, Settings(matmul="int64")))

    workload = models.mlp((8, 6, 3), batch=4, samples=8)
    compiled = compile_step(workload.step, workload.example(), samples=8, steps=2)
    state, data = compiled.encode_state(workload.params, workload.state), compiled.encode_data(workload.data)
    runs = [
        run_unit(compiled.program, state, data, 0, 1, 1, settings=Settings(matmul=matmul))
        for matmul in ("int64", choice)
    ]
    assert runs[0].checkpoint_roots[0] == runs[1].checkpoint_roots[0]
    assert runs[0].checkpoint_roots[1] != runs[1].checkpoint_roots[1]


@pytest.mark.parametrize("model", exact_bits.SMALL)
def test_the_compiled_step_is_the_step_that_float32_takes(model: str) -> None:
    """Same batch, same model: where the gradient is clear, a step moves both alike."""
    workload = exact_bits.SMALL[model]()
    batch = {name: tensor[: workload.batch] for name, tensor in workload.data.items()}
    before = workload.params
    compiled = compile_step(workload.step, workload.example(), steps=4)
    run = run_unit(
        compiled.program, compiled.encode_state(before, workload.state), compiled.encode_data(batch), 0, 1, 1
    )
    exact = compiled.decode_params(run.final_state)
    workload.float32_step()(torch.arange(workload.batch))
    for name, parameter in workload.module.named_parameters():
        assert parameter.grad is not None
        after, size = parameter.detach(), parameter.grad.abs()
        # Adam's first step is the sign of the gradient: where that is next to nothing, a rounding decides.
        clear = size > 0.01 * size.max()
        moved = (after - before[name]).abs().max()
        assert (exact[name] - after)[clear].abs().max() < 0.02 * moved + 1e-7, name
