"""How alike masks are: Jaccard's index and Fleiss' kappa, each against masks of the same sizes drawn at random.

Cochran's Q, which Prasanna et al. (2020) use, is not here: it tests whether masks keep equally many entries, and two
complementary masks of one size give Q = 0.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import hypergeom
from torch import Tensor

from slt_lib.base.seeds import stream

PERMUTATIONS = 2000


def flat(mask: Mapping[str, Tensor]) -> np.ndarray:
    """All entries of a mask, in the order of its names."""
    return np.concatenate([mask[name].numpy().ravel() for name in sorted(mask)])


def jaccard(common: float, one: int, other: int) -> float:
    """Shared entries divided by those in either; 1 for two empty masks."""
    either = one + other - common
    return common / either if either else 1.0


def jaccards(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, tuple[float, float, float, float]]:
    """Matrix -> Jaccard's index of the kept entries, and for random masks of these sizes its mean, 2.5% and 97.5%.

    The number of shared entries of two random masks is hypergeometric, which is the null of all permutations. "all" is
    the index over all matrices; each is permuted within itself, and the bounds there are those of a normal.
    """
    found, sums = {}, np.zeros(5)  # shared, expected, variance, one, other
    for name, kept in one.items():
        size, a, b = kept.numel(), int(kept.sum()), int(other[name].sum())
        common, null = int((kept & other[name]).sum()), hypergeom(size, a, b)
        bounds = [jaccard(float(value), a, b) for value in (null.mean(), *null.ppf([0.025, 0.975]))]
        found[name] = (jaccard(common, a, b), *bounds)
        sums += common, null.mean(), null.var(), a, b
    common, mean, variance, a, b = sums
    width = 1.96 * variance**0.5
    found["all"] = tuple(jaccard(value, a, b) for value in (common, mean, mean - width, mean + width))
    return found


def fleiss_kappa(raters: Sequence[np.ndarray]) -> float:
    """Agreement of several masks [entries] beyond chance; 1 for equal masks, 0 for independent ones of one density.

    nan if all keep everything or nothing. Source: Fleiss (1971).
    """
    votes = np.stack(raters).astype(np.int64)
    count, kept = len(votes), votes.sum(0)
    agreement = ((kept * (kept - 1) + (count - kept) * (count - kept - 1)) / (count * (count - 1))).mean()
    share = kept.mean() / count
    chance = share**2 + (1 - share) ** 2
    return float((agreement - chance) / (1 - chance)) if chance < 1 else float("nan")


def kappa_null(masks: Sequence[Mapping[str, Tensor]]) -> tuple[float, float, float]:
    """Mean, 2.5% and 97.5% of Fleiss' kappa of random masks of these sizes; each matrix is permuted within itself.

    The numbers of shared entries are hypergeometric and uncorrelated between pairs of masks; the bounds are those of a
    normal.
    """
    total = sum(kept.numel() for kept in masks[0].values())
    share = sum(int(kept.sum()) for mask in masks for kept in mask.values()) / (total * len(masks))
    chance, pairs = share**2 + (1 - share) ** 2, list(itertools.combinations(masks, 2))
    if chance == 1:
        return (float("nan"),) * 3
    agreement = variance = 0.0
    for one, other in pairs:
        for name, kept in one.items():
            size, a, b = kept.numel(), int(kept.sum()), int(other[name].sum())
            null = hypergeom(size, a, b)
            agreement += (size - a - b + 2 * null.mean()) / (total * len(pairs))
            variance += 4 * null.var() / (total * len(pairs)) ** 2
    mean, width = (agreement - chance) / (1 - chance), 1.96 * variance**0.5 / (1 - chance)
    return float(mean), float(mean - width), float(mean + width)


def kappa_with_null(one: np.ndarray, other: np.ndarray, seed: int, groups: Sequence[str]) -> tuple[float, float, float]:
    """Fleiss' kappa of two masks, and the 2.5% and 97.5% quantiles if the second is permuted within groups.

    `groups`: name of the group of each entry.
    """
    generator = stream(seed, "permutation null", len(one))
    place = np.unique(groups, return_inverse=True)[1]
    grouped, drawn = np.argsort(place, kind="stable"), []
    for _ in range(PERMUTATIONS):
        permuted = np.empty_like(other)
        permuted[grouped] = other[np.lexsort((generator.random(len(other)), place))]
        drawn.append(fleiss_kappa([one, permuted]))
    return (fleiss_kappa([one, other]), *np.quantile(drawn, [0.025, 0.975]))
