"""What a computation is and how it is checked: pure functions of bytes and integers.

No chain, no HTTP, no configuration. Only `proofs.exact` imports torch; hashing, merkle, results and blob are safe to
import anywhere.
"""
