"""Training in exact fixed-point integers: tensors, the closed set of operations, programs, and what runs them.

Modules that import torch: tensor, state, kernels, known_answers, plan, execute, aggregate, initialise. The rest
(tensor_type, opcodes, definitions, ranges, program, wire, encoding, builder, reference, permutation) works on
Python integers alone.
"""
