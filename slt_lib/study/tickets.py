"""A ticket: a start of a training, as a value. Its operations are the algebra of the paper's section 3."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from slt_lib import masks
from slt_lib.base import settings as params
from slt_lib.base.errors import InputError
from slt_lib.base.seeds import stream
from slt_lib.base.store import digest
from slt_lib.train import loop as training
from slt_lib.transformer import glorot, prunable, theta_0

if TYPE_CHECKING:
    from slt_lib.study import Study
    from slt_lib.study.runs import Run

CONSTANT_SIGNS = ("kept", "random")
CONSTANT_MAGNITUDES = ("constant", "redrawn", "shuffled")


@dataclass(frozen=True)
class Ticket:
    """A start: initial weights, a mask, a sparsity schedule, an optimizer, and where each comes from.

    `operations` are plain values, each naming the runs it leans on by their id; `runs` holds those runs. `noise`: see
    `with_noise`.
    """

    study: "Study" = field(repr=False, compare=False)
    seed: int
    operations: tuple[dict, ...]
    optimizer: str
    sparsity: float = 0.0
    noise: int = 0
    runs: Mapping[str, "Run"] = field(default_factory=dict, repr=False, compare=False)
    listed: bool = field(default=True, compare=False)

    # The algebra ------------------------------------------------------------

    def prune(self, by: "Run", sparsity: float, checkpoint: str = "final") -> "Ticket":
        """Keep the largest magnitudes of `by`'s weights: exactly `sparsity` of each matrix is zero, masks nest.

        `checkpoint`: "final" (theta_T, the paper's text) or "best" on dev. Raises InputError for a sparsity outside
        0..1 or below that of the mask. Source: paper section 3; FACTS.md section 7, ambiguity 6.
        """
        check_choice("checkpoint", checkpoint, ("final", "best"))
        self._check_sparsity(sparsity, max(self.sparsity, by.sparsity))
        last = self.operations[-1]
        known = self.operations[:-1] if last == {"do": "mask", "run": by.id} else self.operations
        operation = {"do": "prune", "by": by.id, "sparsity": float(sparsity), "checkpoint": checkpoint}
        return self._with((*known, operation), by, sparsity=float(sparsity))

    def prune_randomly(self, sparsity: float) -> "Ticket":
        """A control: a random mask of the same sparsity in each matrix, nested in the ticket's own."""
        self._check_sparsity(sparsity, self.sparsity)
        operation = {"do": "prune_randomly", "sparsity": float(sparsity)}
        return self._with((*self.operations, operation), sparsity=float(sparsity))

    def gradual(self, final: float, initial: float = 0.0) -> "Ticket":
        """Prune while training, from `initial` to `final` sparsity by the cubic schedule (paper section 3.1)."""
        self._check_sparsity(final, max(initial, self.sparsity))
        if self.schedule is not None:
            raise InputError(
                "gradual: this ticket is pruned gradually already; a second schedule would not be followed"
            )
        if initial < self.sparsity:
            raise InputError(f"gradual from sparsity {initial}: the mask already has {self.sparsity}; start from there")
        operation = {"do": "gradual", "initial": float(initial), "final": float(final)}
        return self._with((*self.operations, operation), sparsity=float(final))

    def constant(self, signs: str = "kept", magnitudes: str = "constant") -> "Ticket":
        """Replace the matrices by +-alpha, alpha = sqrt(6 / (n_in + n_out)); all other parameters stay.

        `signs`: "kept" or "random". `magnitudes`: "constant", or as controls "redrawn" (from theta_0's distribution) or
        "shuffled" within the kept weights of a matrix. Source: paper section 3.4; FACTS.md section 7, 10 and 11.
        """
        check_choice("signs", signs, CONSTANT_SIGNS)
        check_choice("magnitudes", magnitudes, CONSTANT_MAGNITUDES)
        return self._with((*self.operations, {"do": "constant", "signs": signs, "magnitudes": magnitudes}))

    def reinitialised(self) -> "Ticket":
        """A control: fresh random weights under the same mask."""
        return self._with((*self.operations, {"do": "reinitialise"}))

    def with_noise(self, copy: int) -> "Ticket":
        """The same start with another order of sentences and other dropout masks: copy 0 is the study's own.

        Tickets rewound from its run keep the copy's number. Source: Frankle et al. (2020), linear mode connectivity.
        """
        return replace(self, noise=check_seed("noise", copy))

    def unlisted(self) -> "Ticket":
        """The same ticket, trained because its chain needs it, with no row in the results."""
        return replace(self, listed=False)

    def _with(self, operations: tuple[dict, ...], *runs: "Run", **changes) -> "Ticket":
        return replace(self, operations=operations, runs={**self.runs, **{run.id: run for run in runs}}, **changes)

    def _check_sparsity(self, sparsity: float, least: float) -> None:
        if not 0 <= number("sparsity", sparsity) < 1:
            raise InputError(f"sparsity {sparsity} is not a fraction from 0 to below 1 (0.9 means 90%)")
        if sparsity < least:
            raise InputError(f"sparsity {sparsity} is below {least}, which is pruned already: levels must rise")

    # Identity ------------------------------------------------------------

    @functools.cached_property
    def depth(self) -> int:
        """How many trainings come before it in its chain."""
        return 1 + max(run.ticket.depth for run in self.runs.values()) if self.runs else 0

    @property
    def schedule(self) -> tuple[float, float] | None:
        """(initial, final) of gradual pruning, or None."""
        for operation in self.operations:
            if operation["do"] == "gradual":
                return operation["initial"], operation["final"]
        return None

    @functools.cached_property
    def identity(self) -> dict:
        """All that reaches the weights of its run."""
        settings = self.study.params.training.model_dump()
        settings["peak_lr"] = settings["peak_lr"][self.optimizer]
        settings["optimizer"] = self.optimizer
        if self.schedule is None:
            for key in ("gradual", "thresholds"):
                del settings[key]
        return ({"noise": self.noise} if self.noise else {}) | {
            "recipe": params.RECIPE_VERSION,
            "training": settings,
            "corpus": self.study.corpus.digest,
            "vocabulary": self.study.vocabulary.digest,
            "seed": self.seed,
            "operations": list(self.operations),
            "depth": self.depth,
        }

    @functools.cached_property
    def train_id(self) -> str:
        return digest(self.identity)[:32]

    @property
    def trained_with(self) -> str:
        """The kind of training: dense, mp, lt, slt or clt."""
        return trained_with(self.operations)

    # Values ------------------------------------------------------------

    def start(self) -> training.Start:
        """The weights and mask it stands for; reads the runs it leans on.

        Pruned entries are zero: theta_t (.) m in the paper's terms, whatever a training then makes of them.
        """
        weights, mask = {}, None
        for operation in self.operations:
            match operation:
                case {"do": "theta_0"}:
                    weights = theta_0(self.study.model(), self.seed)
                case {"do": "rewind", "run": run, "step": step}:
                    weights = self.runs[run].theta(step)
                case {"do": "mask", "run": run}:
                    mask = self.runs[run].mask
                case {"do": "prune", "by": by, "sparsity": sparsity, "checkpoint": checkpoint}:
                    run = self.runs[by]
                    outer = _both(mask, run.mask)
                    mask = masks.magnitude_mask(prunable(run.weights(checkpoint)), sparsity, outer)
                case {"do": "prune_randomly", "sparsity": sparsity}:
                    mask = masks.random_mask(prunable(weights), sparsity, self._stream(operation), mask)
                case {"do": "constant", "signs": signs, "magnitudes": magnitudes}:
                    weights = self._constant(weights, mask, signs, magnitudes, operation)
                case {"do": "reinitialise"}:
                    weights = theta_0(self.study.model(), int(self._stream(operation).integers(1 << 62)))
        weights = masks.apply(weights, mask or {})
        parents = {run.id: run.weights_hash for run in self.runs.values()}
        return training.Start(weights, mask, self.schedule, self.optimizer, self.seed, self.depth, self.noise, parents)

    def _stream(self, operation: dict) -> np.random.Generator:
        return stream(self.seed, operation["do"], self.depth, digest(list(self.operations)))

    def _constant(self, weights, mask, signs: str, magnitudes: str, operation: dict) -> dict[str, Tensor]:
        generator, result = self._stream(operation), dict(weights)
        fresh = theta_0(self.study.model(), int(generator.integers(1 << 62))) if magnitudes == "redrawn" else None
        for name, weight in prunable(weights).items():
            alpha = glorot(weight)
            sign = torch.where(weight < 0, -1.0, 1.0)
            if signs == "random":
                sign = torch.from_numpy(generator.integers(0, 2, size=tuple(weight.shape)).astype(np.float32) * 2 - 1)
            if magnitudes == "constant":
                magnitude = torch.full_like(weight, alpha)
            elif magnitudes == "redrawn":
                magnitude = fresh[name].abs()
            else:
                magnitude = weight.abs()
                kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask[name]
                order = torch.from_numpy(generator.permutation(int(kept.sum())))
                magnitude[kept] = magnitude[kept][order]
            result[name] = sign * magnitude
        return result


def trained_with(operations: Sequence[dict]) -> str:
    """The kind of training that a ticket of these operations asks for: dense, mp, lt, slt or clt."""
    kinds = [operation["do"] for operation in operations]
    if "gradual" in kinds:
        return "mp"
    if "constant" in kinds:
        return "clt"
    if not {"mask", "prune", "prune_randomly"} & set(kinds):
        return "dense"
    return "slt" if kinds[0] == "rewind" else "lt"


def _both(one, other):
    if one is None or other is None:
        return one if other is None else other
    return {name: one[name] & other[name] for name in one}


# What a person may give ------------------------------------------------------------


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{key} {value!r} is none of {', '.join(known)}")


def number(key: str, value) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{key}: {value!r} is not a number")
    return float(value)


def check_seed(key: str, value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{key}: {value!r} is not a whole number from 0")
    return value
