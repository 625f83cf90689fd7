"""The operations that make up a ticket: small frozen values, each with its JSON form and its effect on the weights.

The JSON form is part of a ticket's identity and is stored with its run, so it must not change. A new operation is one
dataclass here and a method of `Ticket`.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from slt_lib import masks, parts
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.sparse import files
from slt_lib.study.importance import measured
from slt_lib.transformer import glorot, prunable

Weights = Mapping[str, Tensor]
Masks = Mapping[str, Tensor] | None
# The modules of these two import this one.
Trained = Any  # a trained run, `slt_lib.study.Run`
Ticket = Any  # `slt_lib.study.Ticket`: gives operations their random values


@dataclass(frozen=True)
class Context:
    """What a ticket needs from its study: settings, SHA-256 of corpus and vocabulary, number of word pieces."""

    settings: Training
    corpus: str
    vocabulary: str
    pieces: int


@dataclass(frozen=True)
class Operation:
    """Base class. `do`: name in JSON and in the random stream; that of a mask begins with "mask" or "prune".

    `sets_weights`: whether it replaces the weights that the ticket had. `prunes`: what it adds to `pruning`.
    """

    do: ClassVar[str]
    prunes: ClassVar[tuple[str, ...]] = ()
    sets_weights: ClassVar[bool] = False

    def json(self) -> dict:
        """JSON form: name and parameters, a run by its id; a parameter at its default is left out."""
        form = {"do": self.do}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default and each.compare:
                form[each.name] = getattr(value, "id", value)
        return form

    @property
    def runs(self) -> list[Trained]:
        """The runs that the operation reads."""
        return [value for value in vars(self).values() if hasattr(value, "id")]

    @property
    def pruning(self) -> frozenset[str]:
        """How the masks were pruned: any of "matrix" (each separately), "global" and "parts" (whole ones).

        That of the operation itself, and that of the runs that it reads.
        """
        return frozenset(self.prunes).union(*(run.ticket.pruning for run in self.runs))

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        """Weights and mask after the operation; both arguments stay unchanged."""
        return weights, mask


@dataclass(frozen=True)
class Theta0(Operation):
    """Start from theta_0 of the ticket's seed, or of another one."""

    do = "theta_0"
    seed: int | None = None

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return ticket.theta_0(self.seed), mask


@dataclass(frozen=True)
class Rewind(Operation):
    """Start from the weights of `run` after `step` steps (paper section 3.3)."""

    do = "rewind"
    run: Trained
    step: int

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return self.run.theta(self.step), mask


@dataclass(frozen=True)
class Mask(Operation):
    """Use the final mask of `run`."""

    do = "mask"
    run: Trained

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return weights, self.run.mask


@dataclass(frozen=True)
class FileWeights(Operation):
    """Start from the weights of an exported ticket, a folder whose arrays have this SHA-256."""

    do = "rewind_file"
    sha256: str
    path: Path = field(compare=False)  # the same arrays in another place are the same ticket

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return files.load(self.path).weights, mask


@dataclass(frozen=True)
class FileMask(FileWeights):
    """Use the mask of an exported ticket; `pruned`: its `pruning`, as the folder says."""

    do = "mask_file"
    pruned: tuple[str, ...] = field(default=("matrix",), compare=False)

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return weights, files.load(self.path).mask

    @property
    def pruning(self) -> frozenset[str]:
        return frozenset(self.pruned)


@dataclass(frozen=True)
class Prune(Operation):
    """Prune the lowest scores of a checkpoint of `by`; the mask nests in that of `by` and in the ticket's own.

    `scope`, `criterion`: see `Ticket.prune`.
    """

    do = "prune"
    by: Trained
    sparsity: float
    checkpoint: str
    scope: str = "matrix"
    criterion: str | Callable[[Tensor, Tensor], Tensor] = "magnitude"

    def json(self) -> dict:
        """As for every operation; a criterion of the user's by its name and the digest of its source."""
        own = {"criterion": fingerprint(self.criterion)} if callable(self.criterion) else {}
        return super().json() | own

    @property
    def pruning(self) -> frozenset[str]:
        return super().pruning | {self.scope}

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        outer = masks.both(mask, self.by.mask)
        end = prunable(self.by.weights(self.checkpoint))
        start = end if self.criterion == "magnitude" else prunable(self.by.theta(0))
        score = masks.CRITERIA.get(self.criterion, self.criterion)
        prune = masks.lowest_mask if self.scope == "matrix" else masks.global_mask
        scores = {name: checked_score(score(start[name], weight), weight, name) for name, weight in end.items()}
        return weights, masks.both(outer, prune(scores, self.sparsity, outer))


@dataclass(frozen=True)
class PruneParts(Operation):
    """Base class: remove named parts, or the `count` parts that matter least to a checkpoint of `by`."""

    prunes = ("parts",)
    by: Trained | None = None
    count: int = 0
    checkpoint: str = "final"


@dataclass(frozen=True)
class PruneHeads(PruneParts):
    """Remove `heads`, or the `count` heads that matter least to a checkpoint of `by`; see `Ticket.prune_heads`."""

    do = "prune_heads"
    heads: tuple[str, ...] = ()

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        mask, sizes = masks.both(mask, self.by and self.by.mask), ticket.context.settings.model
        gone = parts.removed(mask, sizes.heads)[0]
        heads = self.heads
        if self.by:
            scores = measured(self.by.study, masks.apply(self.by.weights(self.checkpoint), mask or {}))[0]
            heads = parts.least_heads(scores, gone, self.count)
        if again := sorted({*heads} & {*gone}):
            raise InputError(f"prune_heads: {again[0]} is removed already")
        return weights, masks.both(mask, parts.mask(prunable(weights), sizes.heads, heads))


@dataclass(frozen=True)
class PruneFeedForward(PruneParts):
    """Remove `units`, or the `count` units of one layer that matter least to `by`; see `Ticket.prune_feed_forward`."""

    do = "prune_feed_forward"
    units: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        mask, sizes = masks.both(mask, self.by and self.by.mask), ticket.context.settings.model
        gone = parts.removed(mask, sizes.heads)[1]
        units = dict(self.units)
        if self.by:
            scores = measured(self.by.study, masks.apply(self.by.weights(self.checkpoint), mask or {}))[1]
            found = parts.least_units(scores, gone, self.count)
            if found is None:
                raise InputError(f"prune_feed_forward: no layer has {self.count} units left; ask for fewer")
            units = dict([found])
        for layer, numbers in units.items():
            if again := sorted({*numbers} & {*gone.get(layer, ())}):
                raise InputError(f"prune_feed_forward: unit {again[0]} of {layer} is removed already")
        return weights, masks.both(mask, parts.mask(prunable(weights), sizes.heads, units=units))


@dataclass(frozen=True)
class PruneRandomly(Operation):
    """Prune random weights of each matrix; the mask nests in the ticket's own."""

    do = "prune_randomly"
    prunes = ("matrix",)
    sparsity: float
    draw: int = 0

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return weights, masks.random_mask(prunable(weights), self.sparsity, ticket.stream(self), mask)


@dataclass(frozen=True)
class Gradual(Operation):
    """Prune during the training, from sparsity `initial` to `final` (paper section 3.1); the start is unchanged."""

    do = "gradual"
    prunes = ("matrix",)
    initial: float
    final: float


@dataclass(frozen=True)
class Constant(Operation):
    """Replace each matrix by +-alpha, or by the magnitudes of a control; see `Ticket.constant`."""

    do = "constant"
    sets_weights = True
    signs: str
    magnitudes: str

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        generator, result = ticket.stream(self), dict(weights)
        fresh = ticket.theta_0(any_seed(generator)) if self.magnitudes == "redrawn" else {}
        for name, weight in prunable(weights).items():
            sign = torch.where(weight < 0, -1.0, 1.0)
            if self.signs == "random":
                sign = torch.from_numpy(generator.integers(0, 2, size=tuple(weight.shape)).astype(np.float32) * 2 - 1)
            if self.magnitudes == "constant":
                magnitude = torch.full_like(weight, glorot(weight))
            else:
                magnitude = fresh.get(name, weight).abs()
            if self.magnitudes == "shuffled":
                kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask[name]
                order = torch.from_numpy(generator.permutation(int(kept.sum())))
                magnitude[kept] = magnitude[kept][order]
            result[name] = sign * magnitude
        return result, mask


@dataclass(frozen=True)
class Reinitialise(Operation):
    """Draw fresh initial weights; the mask stays."""

    do = "reinitialise"
    sets_weights = True

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return ticket.theta_0(any_seed(ticket.stream(self))), mask


def size(context: Context) -> int:
    """Number of prunable weights of the study's model."""
    sizes = context.settings.model
    attention, feed_forward = 4 * sizes.hidden**2, 2 * sizes.hidden * sizes.filter
    return context.pieces * sizes.hidden + sizes.layers * (3 * attention + 2 * feed_forward)


def any_seed(generator: np.random.Generator) -> int:
    return int(generator.integers(1 << 62))


def fingerprint(criterion: Callable) -> str:
    """Name of a function and the digest of its source, so that another criterion is another ticket.

    Raises InputError if its source cannot be read. What the function calls is not part of the digest.
    """
    try:
        source = inspect.getsource(criterion)
    except (OSError, TypeError):
        raise InputError(f"criterion {criterion!r}: its source can't be read; use def in a file or a cell") from None
    return f"{criterion.__name__}:{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def checked_score(score: Tensor, weight: Tensor, name: str) -> Tensor:
    """`score`. Raises InputError unless it has the shape of the weights and is finite."""
    if not isinstance(score, Tensor) or score.shape != weight.shape or not torch.isfinite(score).all():
        raise InputError(f"criterion: must return one finite score per weight of {name}, shape {list(weight.shape)}")
    return score.detach()


def trained_with(names: Iterable[str]) -> str:
    """The kind of training that a ticket asks for: dense, mp, lt, slt or clt. `names`: `do` of its operations."""
    names = list(names)
    if "gradual" in names:
        return "mp"
    if "constant" in names:
        return "clt"
    if not any(name.startswith(("mask", "prune")) for name in names):
        return "dense"
    return "slt" if names[0].startswith("rewind") else "lt"
