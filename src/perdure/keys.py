"""Seeds from keys: randomness that depends on what it is for, not on when it is drawn.

Knows ints and strings. Imports no torch, so that streams can choose examples quickly.
"""

from __future__ import annotations

import hashlib
from typing import Any


def key_seed(*key: Any) -> int:
    """A 63-bit seed from any key of ints and strings: the same on every machine and Python."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def example_seed(seed: int, example: str) -> int:
    """Seed of all that is drawn for a test example, from the run's seed and the example's id alone."""
    return key_seed("views", seed, example)
