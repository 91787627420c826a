"""What two parties must agree on.

eth_account brings py_ecc, which on its first import lets the process recurse 100,000 deep: deeper than the C stack, so
that a stranger's JSON of 100,000 opening brackets would end a gateway or a node with a segmentation fault instead of a
RecursionError. It is imported here, before anything that could bring it later, and the limit put back.
"""

import sys
from contextlib import suppress

MOST_FRAMES = 10_000
"""A fifth of what json's scanner survives on a stack of 8 MiB."""

_before = sys.getrecursionlimit()
with suppress(ImportError):
    import py_ecc  # noqa: F401
sys.setrecursionlimit(min(_before, MOST_FRAMES))
