"""Where the kept values of a pruned matrix stand, as one plain array in the smaller of two forms.

Values are in row-major order. Their places are one of

- "bits": one bit per entry, 1 = kept, lowest bit first (8 entries per byte);
- "gaps": the number of pruned entries before each kept entry as uint8; a byte 255 stands for 255 pruned entries and has
  no value.

Bits are smaller up to about 88% sparsity, gaps above.
"""

import numpy as np

SKIP = 255  # the gap that has no value


def pack(kept: np.ndarray) -> tuple[str, np.ndarray]:
    """The smaller form of a mask (bool, True = kept), and its array."""
    packed = {"bits": _bits(kept), "gaps": _gaps(kept)}
    form = min(packed, key=lambda name: packed[name].nbytes)
    return form, packed[form]


def unpack(form: str, places: np.ndarray, size: int) -> np.ndarray:
    """The flat mask of `pack`. Raises ValueError if the array does not describe a mask of `size` entries."""
    return {"bits": _from_bits, "gaps": _from_gaps}[form](places, size)


def _bits(kept: np.ndarray) -> np.ndarray:
    return np.packbits(kept.ravel(), bitorder="little")


def _from_bits(bits: np.ndarray, size: int) -> np.ndarray:
    if len(bits) != -(-size // 8):
        raise ValueError(f"{len(bits)} bytes of bits, {-(-size // 8)} expected")
    return np.unpackbits(bits, count=size, bitorder="little").view(bool)


def _gaps(kept: np.ndarray) -> np.ndarray:
    places = np.flatnonzero(kept)
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // SKIP + 1)  # one byte for each skip, then the rest
    found = np.full(ends[-1] if len(ends) else 0, SKIP, np.uint8)
    found[ends - 1] = gaps % SKIP
    return found


def _from_gaps(gaps: np.ndarray, size: int) -> np.ndarray:
    real = gaps != SKIP
    places = (np.cumsum(gaps.astype(np.int64) + real) - 1)[real]
    if len(places) and places[-1] >= size:
        raise ValueError("gaps reach beyond the matrix")
    kept = np.zeros(size, bool)
    kept[places] = True
    return kept
