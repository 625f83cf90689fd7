"""Magnitude masks, one matrix at a time: pure functions on mappings of names to tensors. True means kept."""

from collections.abc import Mapping

import torch
from torch import Tensor

HISTOGRAM_BINS = 1024  # state_of_sparsity's setting of the original library (FACTS.md section 3)


def magnitude_mask(
    weights: Mapping[str, Tensor], sparsity: float, mask: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Prune each matrix on its own to exactly `round(sparsity * numel)` zeros, smallest magnitudes first.

    `weights`: name -> tensor of any shape; `sparsity`: fraction pruned, 0 to 1; `mask`: an earlier mask of the same
    shapes, whose pruned entries go first and stay out, so that masks nest. Of equal magnitudes the one earlier in
    row-major order is pruned first, on every device. Returns name -> BoolTensor. Raises ValueError for a sparsity
    outside 0..1 or below that of `mask`, and for weights that are not finite. Source: paper section 3.1; FACTS.md
    section 3.
    """
    _check(sparsity)
    return {
        name: _smallest_out(weight.detach().abs(), sparsity, None if mask is None else mask[name], name)
        for name, weight in weights.items()
    }


def _check(sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is not a fraction from 0 to 1")


def _smallest_out(magnitude: Tensor, sparsity: float, mask: Tensor | None, name: str) -> Tensor:
    if not torch.isfinite(magnitude).all():
        raise ValueError(f"{name} holds a weight that is not finite")
    flat = magnitude.reshape(-1)
    pruned = round(sparsity * flat.numel())
    if mask is not None:
        out = int((~mask).sum())
        if out > pruned:
            raise ValueError(f"{name}: sparsity {sparsity} is below that of its mask ({out} of {flat.numel()} pruned)")
        flat = flat.masked_fill(~mask.reshape(-1), -1.0)  # below any magnitude: goes first
    if pruned == 0:
        return torch.ones_like(magnitude, dtype=torch.bool)
    threshold = flat.kthvalue(pruned).values
    kept = flat > threshold
    ties = flat == threshold
    of_ties = pruned - int((flat < threshold).sum())
    kept |= ties & (ties.cumsum(0) > of_ties)
    return kept.reshape(magnitude.shape)


def histogram_mask(
    weights: Mapping[str, Tensor], sparsity: float, mask: Mapping[str, Tensor] | None = None, bins: int = HISTOGRAM_BINS
) -> dict[str, Tensor]:
    """The original library's mask: a threshold read from a histogram of |w| on [0, max|w|], rounded down to a bin.

    Arguments as for `magnitude_mask`; prunes at most what is asked for, less where a few weights are very large.
    Entries false in `mask` stay out. Source: FACTS.md section 3, library mechanics.
    """
    _check(sparsity)
    result = {}
    for name, weight in weights.items():
        magnitude = weight.detach().abs().float()
        if not torch.isfinite(magnitude).all():
            raise ValueError(f"{name} holds a weight that is not finite")
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

    `generator`: a numpy Generator; `mask`: an earlier mask to nest in. Errors as for `magnitude_mask`.
    """
    chance = {name: torch.from_numpy(generator.random(tuple(w.shape), dtype="float32")) for name, w in weights.items()}
    return magnitude_mask(chance, sparsity, mask)


def apply(weights: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of `weights` with pruned entries exactly zero; tensors without a mask are passed on as they are."""
    return {name: torch.where(mask[name], w, torch.zeros_like(w)) if name in mask else w for name, w in weights.items()}


def kept(mask: Mapping[str, Tensor]) -> int:
    """Number of weights that `mask` keeps."""
    return sum(int(m.sum()) for m in mask.values())


def sparsity(mask: Mapping[str, Tensor]) -> float:
    """Fraction of entries pruned, over all matrices of `mask` together; 0.0 for an empty mask."""
    total = sum(m.numel() for m in mask.values())
    return 1 - kept(mask) / total if total else 0.0


def nested(inner: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> bool:
    """Whether everything that `inner` keeps is kept by `outer` too."""
    return all(not bool((inner[name] & ~outer[name]).any()) for name in inner)
