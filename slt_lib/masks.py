"""Pruning masks: pure functions on mappings of names to tensors. True means kept."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

HISTOGRAM_BINS = 1024  # state_of_sparsity's setting of the original library (FACTS.md section 3)


def magnitude_mask(
    weights: Mapping[str, Tensor], sparsity: float, mask: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Prune each matrix separately: exactly `round(sparsity * numel)` of its entries, the smallest magnitudes first.

    `weights`: name -> tensor of any shape. `sparsity`: fraction pruned, 0 to 1. `mask`: an earlier mask of the same
    shapes; its pruned entries are pruned first, so that masks nest. Among equal magnitudes, the first in row-major
    order is pruned first, on every device. Returns name -> BoolTensor. Raises ValueError for a sparsity outside 0..1 or
    below that of `mask`, and for weights that are not finite. Source: paper section 3.1; FACTS.md section 3.
    """
    return lowest_mask({name: weight.detach().abs() for name, weight in weights.items()}, sparsity, mask)


def lowest_mask(
    scores: Mapping[str, Tensor], sparsity: float, mask: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """As `magnitude_mask`, but the lowest scores are pruned first; scores may be negative."""
    result = {}
    for name, score in _finite(scores, sparsity):
        flat = score.reshape(-1)
        pruned = round(sparsity * flat.numel())
        if mask is not None:
            out = int((~mask[name]).sum())
            if out > pruned:
                of = f"{out} of {flat.numel()} pruned"
                raise ValueError(f"{name}: sparsity {sparsity} is below that of its mask ({of})")
            flat = flat.masked_fill(~mask[name].reshape(-1), -torch.inf)  # below any score, so pruned first
        result[name] = torch.ones_like(score, dtype=torch.bool)
        if pruned > 0:
            threshold = flat.kthvalue(pruned).values
            ties = flat == threshold
            pruned_ties = pruned - int((flat < threshold).sum())
            kept = (flat > threshold) | (ties & (ties.cumsum(0) > pruned_ties))
            result[name] = kept.reshape(score.shape)
    return result


def global_mask(
    scores: Mapping[str, Tensor], sparsity: float, mask: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """One threshold for all matrices: exactly `round(sparsity * total)` of all entries, the lowest scores first.

    Arguments and errors as for `magnitude_mask`; of equal scores, those of the matrix named first are pruned first.
    Source: scope "global" of open_lth, and Movva and Zhao (2020).
    """

    def joined(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"all matrices": torch.cat([named[name].reshape(-1) for name in scores])}

    whole = lowest_mask(joined(scores), sparsity, None if mask is None else joined(mask))["all matrices"]
    parts = whole.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def both(one: Mapping[str, Tensor] | None, other: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The intersection of two masks; a missing mask or name keeps everything. None if neither has a name."""
    one, other = one or {}, other or {}
    return {
        name: one[name] & other[name] if name in one and name in other else kept
        for name, kept in {**one, **other}.items()
    } or None


# Score of each weight from its values before (`start`) and after (`end`) a training; the lowest are pruned. Start, end
# and score have the shape of the matrix. Source: Zhou et al. (2019), "Deconstructing lottery tickets": large final,
# magnitude increase, movement, small final.
CRITERIA = {
    "magnitude": lambda start, end: end.abs(),
    "magnitude_increase": lambda start, end: end.abs() - start.abs(),
    "movement": lambda start, end: (end - start).abs(),
    "small_magnitude": lambda start, end: -end.abs(),
}


def _finite(weights: Mapping[str, Tensor], sparsity: float) -> Iterator[tuple[str, Tensor]]:
    """Names and weights, after checks of both."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is not a fraction from 0 to 1")
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} holds a weight that is not finite")
        yield name, weight


def histogram_mask(
    weights: Mapping[str, Tensor], sparsity: float, mask: Mapping[str, Tensor] | None = None, bins: int = HISTOGRAM_BINS
) -> dict[str, Tensor]:
    """The original library's mask: a threshold read from a histogram of |w| on [0, max|w|], rounded down to a bin.

    Arguments as for `magnitude_mask`. It prunes at most `sparsity`, and less if a few weights are very large; but
    entries that are False in `mask` stay pruned, and a sparsity below that of `mask` gives `mask`. Raises ValueError
    for a sparsity outside 0..1, and for weights that are not finite. Source: FACTS.md section 3, library mechanics.
    """
    result = {}
    for name, weight in _finite(weights, sparsity):
        magnitude = weight.detach().abs().float()
        if mask is not None:
            magnitude = magnitude * mask[name]
        largest = magnitude.max()
        index = (magnitude.reshape(-1) / largest.clamp_min(1e-38) * bins).long().clamp(max=bins - 1)
        cumulated = torch.bincount(index, minlength=bins).cumsum(0).double() / magnitude.numel()
        below = int((cumulated < sparsity).sum())
        result[name] = magnitude > largest * (below / bins)
        if below == 0:
            result[name] = torch.ones_like(result[name]) if mask is None else mask[name].clone()
    return result


def random_mask(weights: Mapping[str, Tensor], sparsity: float, generator, mask=None) -> dict[str, Tensor]:
    """A control: prune `round(sparsity * numel)` entries of each matrix at random.

    `generator`: a numpy Generator. `mask` and errors as for `magnitude_mask`.
    """
    chance = {name: torch.from_numpy(generator.random(tuple(w.shape), dtype="float32")) for name, w in weights.items()}
    return magnitude_mask(chance, sparsity, mask)


def apply(weights: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `weights` with pruned entries exactly zero; tensors without a mask are returned as they are."""
    return {name: torch.where(mask[name], w, torch.zeros_like(w)) if name in mask else w for name, w in weights.items()}


def kept(mask: Mapping[str, Tensor]) -> int:
    """Number of weights that `mask` keeps."""
    return sum(int(m.sum()) for m in mask.values())


def sparsity(mask: Mapping[str, Tensor]) -> float:
    """Fraction of entries pruned, over all matrices of `mask` together; 0.0 for an empty mask."""
    total = sum(m.numel() for m in mask.values())
    return 1 - kept(mask) / total if total else 0.0


def nested(inner: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> bool:
    """Whether `outer` keeps everything that `inner` keeps. Raises KeyError for a name that `outer` lacks."""
    return all(not bool((inner[name] & ~outer[name]).any()) for name in inner)
