"""Hypothesis without a deadline, as a busy machine is no counterexample, and with examples for half a minute in all."""

from hypothesis import settings

settings.register_profile("proofs", deadline=None, max_examples=60)
settings.load_profile("proofs")
