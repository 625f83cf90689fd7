"""How alike are the hidden states of two models on the same word pieces? And how complex are those of one?

All measures follow from second moments of the centred states. Sources: linear CKA: Kornblith et al. (2019), eq. 5, with
the unbiased estimate of HSIC by Song et al. (2012), eq. 5; SVCCA: Raghu et al. (2017); PWCCA: Morcos et al. (2018);
neurons: Movva and Zhao (2020).
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from slt_lib.base.errors import InputError

VARIANCE = 0.99  # share of the variance that SVCCA keeps
RANK = 1e-10  # directions with a smaller share of the largest variance count as constant
LEAST = 10  # rows per column: with fewer, CCA finds high correlations in noise
MEASURES = ("cka", "svcca", "pwcca", "neuron", "same_index")


@dataclass(frozen=True, eq=False)
class Moments:
    """Hidden states of one site, centred, with what the measures need of them.

    Attributes:
        x: [rows, columns], float64; every column has mean 0.
        norms: squared length of each row [rows].
        variances: of the principal components, falling, without those below `RANK` [rank].
        axes: directions of the principal components [columns, rank].
    """

    x: np.ndarray
    norms: np.ndarray
    variances: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, states: ArrayLike) -> "Moments":
        """`states`: [rows, columns]. Raises InputError with fewer than `LEAST` rows per column, or if all are equal."""
        x = np.asarray(states, dtype=np.float64)
        if len(x) < LEAST * x.shape[1]:
            needed = f"{LEAST * x.shape[1]:,} are needed at width {x.shape[1]}"
            raise InputError(f"sentences: they have {len(x):,} word pieces, but {needed}; give more sentences")
        x = x - x.mean(0)
        variances, axes = np.linalg.eigh(x.T @ x / len(x))
        variances, axes = variances[::-1], axes[:, ::-1]
        if variances[0] <= 0:
            raise InputError("similarity: the states are the same for all word pieces; the model has collapsed")
        rank = int((variances > RANK * variances[0]).sum())
        return cls(x, np.square(x).sum(1), variances[:rank], axes[:, :rank])

    @functools.cached_property
    def deviation(self) -> np.ndarray:
        """Standard deviation of each column [columns]; infinite for a constant column, which correlates with none."""
        deviation = np.square(self.x).mean(0) ** 0.5
        return np.where(deviation**2 > RANK * self.variances[0], deviation, np.inf)

    @functools.cached_property
    def hsic(self) -> float:
        return _hsic(self.x.T @ self.x, self.norms, self.norms)


def similarity(one: Moments, other: Moments) -> dict[str, float]:
    """The `MEASURES` of two sites on the same rows.

    cka: debiased, 1 for equal states up to rotation and scale, about 0 for independent ones (it can be below).
    svcca: mean canonical correlation of the components with 99% of the variance. pwcca: mean canonical correlation,
    weighted by the share of `one` that each explains (not symmetric). neuron: mean over columns of `one` of the largest
    absolute correlation with a column of `other`. same_index: share of columns whose best partner has the same number;
    a constant column has no partner.

    Raises InputError if the numbers of rows differ.
    """
    if len(one.x) != len(other.x):
        raise InputError(f"similarity: {len(one.x)} and {len(other.x)} word pieces; compare models on the same text")
    joint = one.x.T @ other.x
    scale = len(one.x) * np.sqrt(np.outer(one.variances, other.variances))
    canonical = one.axes.T @ joint @ other.axes / scale  # inner products of the two bases of left singular vectors
    kept = [int(np.searchsorted(np.cumsum(m.variances) / m.variances.sum(), VARIANCE)) + 1 for m in (one, other)]
    left, correlation, _ = np.linalg.svd(canonical, full_matrices=False)
    shares = np.abs((left * np.sqrt(one.variances)[:, None]).T @ one.axes.T).sum(1)
    matched = np.abs(joint / len(one.x) / np.outer(one.deviation, other.deviation))
    return {
        "cka": _hsic(joint, one.norms, other.norms) / (one.hsic * other.hsic) ** 0.5,
        "svcca": float(np.linalg.svd(canonical[: kept[0], : kept[1]], compute_uv=False).mean()),
        "pwcca": float(shares @ correlation / shares.sum()),
        "neuron": float(matched.max(1).mean()),
        "same_index": float(((matched.argmax(1) == np.arange(len(matched))) & (matched.max(1) > 0)).mean()),
    }


def _hsic(joint: np.ndarray, norms: np.ndarray, others: np.ndarray) -> float:
    """Unbiased HSIC with linear kernels, of centred x and y: `joint` is x^T y, the norms are those of their rows."""
    n, diagonal = len(norms), norms @ others
    total = np.square(joint).sum() - diagonal + norms.sum() * others.sum() / ((n - 1) * (n - 2))
    return float((total - 2 * diagonal / (n - 2)) / (n * (n - 3)))


def complexity(states: Moments) -> dict[str, float]:
    """How the variance spreads over principal components.

    participation: effective rank, (sum of variances)^2 / sum of their squares. first, tenth: share of the variance in
    the first component and in the leading tenth of them. k99: number of components with 99% of the variance.
    """
    shares = np.cumsum(states.variances) / states.variances.sum()
    tenth = max(1, round(states.x.shape[1] / 10))
    return {
        "participation": float(states.variances.sum() ** 2 / np.square(states.variances).sum()),
        "first": float(shares[0]),
        "tenth": float(shares[min(tenth, len(shares)) - 1]),
        "k99": int(np.searchsorted(shares, VARIANCE)) + 1,
    }
