"""Randomness: every random number comes from the study's seed, a purpose and counters, never from a global state."""

import hashlib

import numpy as np


def stream(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """An independent generator for (seed, purpose, counters): the same numbers on every machine and device."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
