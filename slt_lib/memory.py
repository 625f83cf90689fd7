"""Bytes of a model's matrices: dense, in compressed sparse columns, and as the paper stored them (FACTS.md, section 4).

`weights` maps names to matrices: torch tensors on any device, or numpy arrays. Values count as float32. Matrices are
out x in, as in `torch.nn.Linear`, and are transposed to tensor2tensor's in x out, except those whose name starts with
"embedding". A value that is not a matrix raises ValueError.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse

from slt_lib import masks
from slt_lib.base.seeds import stream

MIB = 2**20
VALUE_BYTES = INDEX_BYTES = 4  # float32 and int32
# A dense model may hold a few weights that are zero by accident; the lowest sparsity in the paper is 0.1.
DENSE_BELOW = 0.001


def dense_bytes(weights: Mapping[str, Any]) -> int:
    """Bytes of all entries as float32, zero or not."""
    return sum(VALUE_BYTES * matrix.size for matrix in _matrices(weights))


def csc_bytes(weights: Mapping[str, Any]) -> int:
    """Bytes in plain compressed sparse columns: a value and an int32 row for each nonzero, int32 column pointers."""
    return sum(
        (VALUE_BYTES + INDEX_BYTES) * int(np.count_nonzero(matrix)) + INDEX_BYTES * (matrix.shape[1] + 1)
        for matrix in _matrices(weights)
    )


def compressed_csc_bytes(weights: Mapping[str, Any]) -> int:
    """Bytes of the files that `scipy.sparse.save_npz` writes, one zlib-compressed file for each matrix in CSC.

    This matches the paper's memory column from sparsity 0.1 upwards (FACTS.md, section 4). It takes about a second for
    ten million nonzero weights.
    """
    size = 0
    for matrix in _matrices(weights):
        with io.BytesIO() as file:
            sparse.save_npz(file, sparse.csc_matrix(matrix), compressed=True)
            size += file.tell()
    return size


def paper_mib(weights: Mapping[str, Any]) -> float:
    """The paper's memory column in MiB: the dense size if nothing is pruned, otherwise `compressed_csc_bytes`."""
    entries = sum(matrix.size for matrix in _matrices(weights))
    zeros = sum(matrix.size - int(np.count_nonzero(matrix)) for matrix in _matrices(weights))
    size = dense_bytes(weights) if zeros <= DENSE_BELOW * entries else compressed_csc_bytes(weights)
    return size / MIB


def of_random_weights(weights: Mapping[str, Any], sparsity: float, entries: int = 1 << 18) -> dict[str, float]:
    """Bytes "dense", "csc" and "compressed" of Gaussian weights in these shapes (values are not read), pruned by size.

    Compressing 61 million weights at twelve levels takes minutes. So only whole columns with about `entries` weights
    are made of each shape. Columns are stored one by one, and those of random weights are alike.
    """
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    kinds = Counter(shape if name.startswith("embedding") else shape[::-1] for name, shape in shapes.items())
    total = dict.fromkeys(("dense", "csc", "compressed"), 0.0)
    for (rows, columns), count in kinds.items():
        some = max(1, min(columns, entries // rows))
        drawn = torch.from_numpy(stream(0, "memory", rows, columns).standard_normal((rows, some), dtype=np.float32))
        pruned = masks.apply({"embedding": drawn}, masks.magnitude_mask({"embedding": drawn}, sparsity))
        for name, size in (("dense", dense_bytes), ("csc", csc_bytes), ("compressed", compressed_csc_bytes)):
            total[name] += size(pruned) * count * columns / some
    return total


def _matrices(weights: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The matrices as float32 arrays in tensor2tensor's orientation, one at a time."""
    for name, weight in weights.items():
        if len(weight.shape) != 2:
            raise ValueError(f"{name} is not a matrix: its shape is {tuple(weight.shape)}")
        if hasattr(weight, "detach"):
            weight = weight.detach().float().cpu().numpy()
        matrix = np.asarray(weight, dtype=np.float32)
        yield matrix if name.startswith("embedding") else matrix.T
