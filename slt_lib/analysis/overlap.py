"""How alike masks are: Jaccard's index and Fleiss' kappa, each against masks of the same sizes drawn at random.

Cochran's Q, which Prasanna et al. (2020) use, is not here: it tests whether masks keep equally many entries, and two
complementary masks of one size give Q = 0.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
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


def range_of(mask: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The entries that a mask can keep: those of `first`, the mask of its chain's first level, if it is nested in it.

    All entries otherwise, as for MP, which prunes anew for each level.
    """
    if all(bool((first[name] | ~kept).all()) for name, kept in mask.items()):
        return first
    return {name: torch.ones_like(kept) for name, kept in mask.items()}


def jaccards(
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    within: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> dict[str, tuple[float, float, float, float]]:
    """Matrix -> Jaccard's index of the kept entries, and for random masks of these sizes its mean, 2.5% and 97.5%.

    Random masks are drawn from the entries of `within` and of `beside`, by default from all. The bounds are those of a
    normal. "all" is the index over all matrices; each is drawn within itself.
    """
    found, sums = {}, np.zeros(5)  # shared, expected, variance, one, other
    for name, kept in one.items():
        ranges = [torch.ones_like(kept) if masks is None else masks[name] for masks in (within, beside)]
        mean, variance = _shared_at_random(kept, other[name], *ranges)
        counts = np.array([int((kept & other[name]).sum()), mean, variance, int(kept.sum()), int(other[name].sum())])
        found[name] = _with_bounds(*counts)
        sums += counts
    return found | {"all": _with_bounds(*sums)}


def _with_bounds(common: float, mean: float, variance: float, a: float, b: float) -> tuple[float, float, float, float]:
    """Jaccard's index, and that of random masks: its mean, 2.5% and 97.5%."""
    width = 1.96 * variance**0.5
    return tuple(jaccard(value, a, b) for value in (common, mean, mean - width, mean + width))


def _shared_at_random(one: Tensor, other: Tensor, within: Tensor, beside: Tensor) -> tuple[float, float]:
    """Mean and variance of the number of entries that random masks of these sizes share.

    The first is drawn from the entries of `within`, the second from those of `beside`. How many each has in what both
    ranges share is hypergeometric, and so is, given these two numbers, what they have in common there.
    """
    both = int((within & beside).sum())
    if not both:
        return 0.0, 0.0
    moments = []  # first and second, of the numbers there
    for size, count in ((int(within.sum()), int(one.sum())), (int(beside.sum()), int(other.sum()))):
        mean = count * both / size
        moments.append((mean, mean * (1 - both / size) * (size - count) / max(1, size - 1) + mean**2))
    (u, uu), (v, vv) = moments
    given = (both * u - uu) * (both * v - vv) / max(1, both - 1)
    return float(u * v / both), float(max(0.0, given + uu * vv - (u * v) ** 2) / both**2)


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


def kappa_null(
    masks: Sequence[Mapping[str, Tensor]], within: Sequence[Mapping[str, Tensor]] | None = None
) -> tuple[float, float, float]:
    """Mean, 2.5% and 97.5% of Fleiss' kappa of random masks of these sizes; each matrix is drawn within itself.

    `within`: the entries from which each mask is drawn, by default all. The bounds are those of a normal; they take
    the numbers of shared entries as uncorrelated between pairs of masks, which they are for equal ranges.
    """
    within = within or [{name: torch.ones_like(kept) for name, kept in mask.items()} for mask in masks]
    total = sum(kept.numel() for kept in masks[0].values())
    share = sum(int(kept.sum()) for mask in masks for kept in mask.values()) / (total * len(masks))
    chance, pairs = share**2 + (1 - share) ** 2, list(itertools.combinations(zip(masks, within, strict=True), 2))
    if chance == 1:
        return (float("nan"),) * 3
    agreement = variance = 0.0
    for (one, first), (other, second) in pairs:
        for name, kept in one.items():
            expected, spread = _shared_at_random(kept, other[name], first[name], second[name])
            size, a, b = kept.numel(), int(kept.sum()), int(other[name].sum())
            agreement += (size - a - b + 2 * expected) / (total * len(pairs))
            variance += 4 * spread / (total * len(pairs)) ** 2
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
