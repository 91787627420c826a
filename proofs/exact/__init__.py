"""Training in exact fixed-point integers: tensors, the closed set of operations, programs, and what runs them.

    from proofs.exact import compile as compile_step      a PyTorch training step becomes a program

Modules that import torch: compiler, tensor, state, state_dict, kernels, known_answers, backend, plan, execute,
aggregate, initialise. The rest (tensor_type, opcodes, definitions, ranges, program, wire, encoding, builder,
reference, permutation) works on Python integers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proofs.exact.compiler.compile_step import compile_step as compile  # noqa: A004 — what it is called outside

__all__ = ["compile"]


def __getattr__(name: str) -> Any:
    """The compiler loads torch: only whoever asks for it should pay for that."""
    if name == "compile":
        from proofs.exact.compiler.compile_step import compile_step

        return compile_step
    raise AttributeError(name)
