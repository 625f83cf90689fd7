"""The operations that make up a ticket: small frozen values, each with its JSON form and its effect on the weights.

The JSON form is part of a ticket's identity and is stored with its run, so it must not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from slt_lib import masks
from slt_lib.base.seeds import stream
from slt_lib.base.settings import Training
from slt_lib.train import loop as training
from slt_lib.transformer import Transformer, glorot, prunable, theta_0

Weights = Mapping[str, Tensor]
Masks = Mapping[str, Tensor] | None


@dataclass(frozen=True)
class Context:
    """What a ticket needs from its study: settings, SHA-256 of corpus and vocabulary, number of word pieces."""

    settings: Training
    corpus: str
    vocabulary: str
    pieces: int

    def model(self) -> Transformer:
        """A model of the study's shape, weights not initialised."""
        return training.new_model(self.settings, self.pieces)


@dataclass(frozen=True)
class Random:
    """The random values of one ticket: its theta_0, and one independent stream per operation.

    `depth`: number of trainings before the ticket in its chain. `operations`: digest of all operations of the ticket.
    """

    context: Context
    seed: int
    depth: int
    operations: str

    def theta_0(self, seed: int | None = None) -> dict[str, Tensor]:
        """Initial weights of the ticket's seed, or of `seed`."""
        return theta_0(self.context.model(), self.seed if seed is None else seed)

    def stream(self, operation: "Operation") -> np.random.Generator:
        return stream(self.seed, operation.do, self.depth, self.operations)

    def fresh(self, generator: np.random.Generator) -> dict[str, Tensor]:
        """Initial weights of a seed drawn from `generator`."""
        return self.theta_0(int(generator.integers(1 << 62)))


class Trained(Protocol):
    """What operations and tickets need from a trained run (`slt_lib.study.Run`)."""

    id: str
    ticket: Any

    @property
    def sparsity(self) -> float: ...
    @property
    def mask(self) -> dict[str, Tensor] | None: ...
    @property
    def weights_hash(self) -> str: ...
    def weights(self, checkpoint: str = "final") -> dict[str, Tensor]: ...
    def theta(self, step: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Operation:
    """Base class. `do` is the operation's name in JSON and in its random stream."""

    do: ClassVar[str]

    def json(self) -> dict:
        """JSON form: name and parameters, a run by its id."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"do": self.do} | {name: getattr(value, "id", value) for name, value in values.items()}

    @property
    def runs(self) -> list[Trained]:
        """The runs that the operation reads."""
        return [value for value in vars(self).values() if hasattr(value, "id")]

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        """Weights and mask after the operation; both arguments stay unchanged."""
        return weights, mask


@dataclass(frozen=True)
class Theta0(Operation):
    """Start from theta_0 of the ticket's seed."""

    do = "theta_0"

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        return random.theta_0(), mask


@dataclass(frozen=True)
class Rewind(Operation):
    """Start from the weights of `run` after `step` steps (paper section 3.3)."""

    do = "rewind"
    run: Trained
    step: int

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        return self.run.theta(self.step), mask


@dataclass(frozen=True)
class Mask(Operation):
    """Use the final mask of `run`."""

    do = "mask"
    run: Trained

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        return weights, self.run.mask


@dataclass(frozen=True)
class Prune(Operation):
    """Prune the smallest magnitudes of a checkpoint of `by`; the mask nests in that of `by` and in the ticket's own."""

    do = "prune"
    by: Trained
    sparsity: float
    checkpoint: str

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        outer = self.by.mask
        if mask is not None and outer is not None:
            outer = {name: mask[name] & outer[name] for name in mask}
        elif outer is None:
            outer = mask
        return weights, masks.magnitude_mask(prunable(self.by.weights(self.checkpoint)), self.sparsity, outer)


@dataclass(frozen=True)
class PruneRandomly(Operation):
    """Prune random weights of each matrix; the mask nests in the ticket's own."""

    do = "prune_randomly"
    sparsity: float

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        return weights, masks.random_mask(prunable(weights), self.sparsity, random.stream(self), mask)


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
    signs: str
    magnitudes: str

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        generator, result = random.stream(self), dict(weights)
        fresh = random.fresh(generator) if self.magnitudes == "redrawn" else None
        for name, weight in prunable(weights).items():
            sign = torch.where(weight < 0, -1.0, 1.0)
            if self.signs == "random":
                sign = torch.from_numpy(generator.integers(0, 2, size=tuple(weight.shape)).astype(np.float32) * 2 - 1)
            if self.magnitudes == "constant":
                magnitude = torch.full_like(weight, glorot(weight))
            elif self.magnitudes == "redrawn":
                magnitude = fresh[name].abs()
            else:
                magnitude = weight.abs()
                kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask[name]
                order = torch.from_numpy(generator.permutation(int(kept.sum())))
                magnitude[kept] = magnitude[kept][order]
            result[name] = sign * magnitude
        return result, mask


@dataclass(frozen=True)
class Reinitialise(Operation):
    """Draw fresh initial weights; the mask stays."""

    do = "reinitialise"

    def apply(self, weights: Weights, mask: Masks, random: Random) -> tuple[Weights, Masks]:
        return random.fresh(random.stream(self)), mask
