"""From a plain PyTorch training step to a tensor program (docs/exact-engine.md).

The way in is `proofs.exact.compile`; the pieces, in order: trace, fold, calibrate, assign, drive with lowering and the
rules_* modules, compiled.
"""
