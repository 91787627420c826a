"""From a plain PyTorch training step to a tensor program (docs/exact-engine.md)."""
