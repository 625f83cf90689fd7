"""A pruned matrix as a few plain arrays: the kept values, and where they stand, in the smallest of three forms.

Values are in row-major order. Their places are one of

- "bits": one bit per entry, 1 = kept, lowest bit first (8 entries per byte);
- "columns": the column of each kept entry as uint16, and the number of kept entries of each row as uint16;
- "gaps": the number of pruned entries before each kept entry as uint8; a byte 255 stands for 255 pruned entries and has
  no value.

Bits are smallest up to about 88% sparsity, gaps above; columns win for narrow matrices of uneven rows.
"""

from collections.abc import Callable, Mapping

import numpy as np

PARTS = {"bits": ("bits",), "columns": ("columns", "counts"), "gaps": ("gaps",)}  # form -> names of its arrays
SKIP = 255  # the gap that has no value
Arrays = dict[str, np.ndarray]


def pack(kept: np.ndarray) -> tuple[str, Arrays]:
    """The smallest form of a mask [rows, columns] (bool, True = kept), and its arrays by name."""
    packed = {"bits": _bits(kept), "gaps": _gaps(kept)}
    if max(kept.shape) < 1 << 16:
        packed["columns"] = _columns(kept)
    form = min(packed, key=lambda name: sum(array.nbytes for array in packed[name].values()))
    return form, packed[form]


def unpack(form: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The mask of `pack`. Raises ValueError if the arrays do not describe a mask of this shape."""
    return UNPACK[form](arrays, shape)


def _bits(kept: np.ndarray) -> Arrays:
    return {"bits": np.packbits(kept.ravel(), bitorder="little")}


def _from_bits(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    size = shape[0] * shape[1]
    if len(arrays["bits"]) != -(-size // 8):
        raise ValueError(f"{len(arrays['bits'])} bytes of bits, {-(-size // 8)} expected")
    return np.unpackbits(arrays["bits"], count=size, bitorder="little").view(bool).reshape(shape)


def _columns(kept: np.ndarray) -> Arrays:
    return {"columns": np.nonzero(kept)[1].astype(np.uint16), "counts": kept.sum(axis=1).astype(np.uint16)}


def _from_columns(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    columns, counts = arrays["columns"], arrays["counts"].astype(np.int64)
    if len(counts) != shape[0] or counts.sum() != len(columns) or (len(columns) and columns.max() >= shape[1]):
        raise ValueError("columns and counts do not fit the shape")
    kept = np.zeros(shape, bool)
    kept[np.repeat(np.arange(shape[0]), counts), columns] = True
    return kept


def _gaps(kept: np.ndarray) -> Arrays:
    places = np.flatnonzero(kept)
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // SKIP + 1)  # one byte for each skip, then the rest
    found = np.full(ends[-1] if len(ends) else 0, SKIP, np.uint8)
    found[ends - 1] = gaps % SKIP
    return {"gaps": found}


def _from_gaps(arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    gaps = arrays["gaps"]
    real = gaps != SKIP
    places = (np.cumsum(gaps.astype(np.int64) + real) - 1)[real]
    if len(places) and places[-1] >= shape[0] * shape[1]:
        raise ValueError("gaps reach beyond the matrix")
    kept = np.zeros(shape[0] * shape[1], bool)
    kept[places] = True
    return kept.reshape(shape)


UNPACK: dict[str, Callable[[Mapping[str, np.ndarray], tuple[int, int]], np.ndarray]] = {
    "bits": _from_bits,
    "columns": _from_columns,
    "gaps": _from_gaps,
}
