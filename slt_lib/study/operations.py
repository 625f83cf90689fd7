"""The operations that make up a ticket: small frozen values, each with its JSON form and its effect on the weights.

The JSON form is part of a ticket's identity and is stored with its run, so it must not change. A new operation is one
dataclass here and a method of `Ticket`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from slt_lib import masks
from slt_lib.base.settings import Training
from slt_lib.sparse import files
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

    `sets_weights`: whether it replaces the weights that the ticket had.
    """

    do: ClassVar[str]
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
    """Use the mask of an exported ticket."""

    do = "mask_file"

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return weights, files.load(self.path).mask


@dataclass(frozen=True)
class Prune(Operation):
    """Prune the smallest magnitudes of a checkpoint of `by`; the mask nests in that of `by` and in the ticket's own."""

    do = "prune"
    by: Trained
    sparsity: float
    checkpoint: str

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        outer = self.by.mask or mask
        if mask and outer:
            outer = {name: mask[name] & outer[name] for name in mask}
        return weights, masks.magnitude_mask(prunable(self.by.weights(self.checkpoint)), self.sparsity, outer)


@dataclass(frozen=True)
class PruneRandomly(Operation):
    """Prune random weights of each matrix; the mask nests in the ticket's own."""

    do = "prune_randomly"
    sparsity: float

    def apply(self, weights: Weights, mask: Masks, ticket: Ticket) -> tuple[Weights, Masks]:
        return weights, masks.random_mask(prunable(weights), self.sparsity, ticket.stream(self), mask)


@dataclass(frozen=True)
class Gradual(Operation):
    """Prune during the training, from sparsity `initial` to `final` (paper section 3.1); the start is unchanged."""

    do = "gradual"
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


def any_seed(generator: np.random.Generator) -> int:
    return int(generator.integers(1 << 62))


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
