"""Tickets: the start of a training as an immutable value. Their methods are the algebra of the paper's section 3."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from slt_lib import masks, parts
from slt_lib.base import seeds
from slt_lib.base import settings as params
from slt_lib.base.errors import InputError
from slt_lib.base.store import digest
from slt_lib.study import operations as op
from slt_lib.study.operations import Operation, Trained
from slt_lib.train import loop as training
from slt_lib.transformer import theta_0


@dataclass(frozen=True)
class Ticket:
    """The start of a training: initial weights, mask, sparsity schedule and optimizer, given by their origin.

    Creating a ticket computes nothing. Tickets are hashable; `train_id` identifies the training across processes.
    `sparsity`: of the final mask. `noise`: see `with_noise`. `listed`: whether the run gets rows in the results.
    """

    context: op.Context = field(repr=False, compare=False)
    seed: int
    operations: tuple[Operation, ...]
    optimizer: str
    sparsity: float = 0.0
    noise: int = 0
    listed: bool = field(default=True, compare=False)

    # The algebra ------------------------------------------------------------

    def prune(
        self,
        by: Trained,
        sparsity: float,
        checkpoint: str = "final",
        scope: str = "matrix",
        criterion: str | Callable[[Tensor, Tensor], Tensor] = "magnitude",
    ) -> "Ticket":
        """Prune the lowest scores of `by`'s weights; masks nest.

        `scope`: "matrix" prunes exactly `sparsity` of each matrix (the paper), "global" exactly `sparsity` of all of
        them together. `criterion`: the score of a weight, which is high for weights to keep: "magnitude" (the paper),
        "magnitude_increase" or "movement" since the start of `by`, "small_magnitude" (Zhou et al. 2019), or a function
        (start, end) -> scores, called with the values of each matrix before and after the training of `by`; with
        several processes it must be in a module. `checkpoint`: "final" (theta_T, the paper's text) or "best" on dev.
        Raises InputError unless 0 <= sparsity < 1, for a sparsity below that of the mask, and if each matrix is to have
        one sparsity but an earlier operation has left them uneven. Source: paper section 3; FACTS.md section 7,
        ambiguity 6.
        """
        check_choice("checkpoint", checkpoint, ("final", "best"))
        check_choice("scope", scope, ("matrix", "global"))
        if not callable(criterion):
            check_choice("criterion", criterion, tuple(masks.CRITERIA))
        level = _level(sparsity, max(self.sparsity, by.sparsity))
        if scope == "matrix":
            self._must_be_even("prune", by)
        # a mask of `by` just before is left out: the new mask nests in it anyway
        known = self.operations[:-1] if self.operations[-1] == op.Mask(by) else self.operations
        operation = op.Prune(by, level, checkpoint, scope, criterion)
        return replace(self, operations=(*known, operation), sparsity=level)

    def prune_heads(
        self, by: Trained | None = None, count: int = 0, heads: Iterable[str] = (), checkpoint: str = "final"
    ) -> "Ticket":
        """Remove whole attention heads: their rows of query, key and value and their columns of output.

        Give either `heads`, by name ("decoder.0.cross_attention.1"), or `by` and `count`: the `count` heads that are
        left and matter least to that run's `checkpoint` (`analysis.importance`). The sparsity is the share of all
        prunable weights. Raises InputError unless one of the two is given, for a head that does not exist or is
        removed twice, and after single weights were pruned. Source: Prasanna et al. (2020).
        """
        heads, sizes = tuple(sorted(heads)), self.context.settings.model
        self._check_parts("prune_heads", by, count, heads, checkpoint)
        known = parts.heads(sizes.layers, sizes.heads)
        for head in heads:
            check_choice("heads", head, tuple(known))
        if len({*heads}) < len(heads) or count > len(known):
            raise InputError(f"prune_heads: the model has {len(known)} heads, each of which can be removed once")
        operation = op.PruneHeads(by, count, checkpoint, heads)
        return self._without(operation, parts.size(sizes.hidden, sizes.heads, heads=len(heads) or count))

    def prune_feed_forward(
        self,
        by: Trained | None = None,
        count: int = 0,
        units: parts.Units | None = None,
        checkpoint: str = "final",
    ) -> "Ticket":
        """Remove whole feed-forward units: rows of the first matrix, entries of its bias, columns of the second.

        Give either `units`, layer -> numbers ({"encoder.0.feed_forward": [3, 5]}), or `by` and `count`: the `count`
        units of one layer that matter least to that run's `checkpoint`. The biases of removed units stay zero.
        Otherwise as `prune_heads`.
        """
        sizes = self.context.settings.model
        chosen = {layer: tuple(sorted(numbers)) for layer, numbers in sorted((units or {}).items())}
        chosen = tuple((layer, numbers) for layer, numbers in chosen.items() if numbers)
        self._check_parts("prune_feed_forward", by, count, chosen, checkpoint)
        known = parts.units(sizes.layers, sizes.filter)
        for layer, numbers in chosen:
            check_choice("units", layer, tuple(known))
            if len({*numbers}) < len(numbers) or not {*numbers} <= {*known[layer]}:
                raise InputError(f"units: {layer} has the units 0 to {sizes.filter - 1}, each of which can go once")
        operation = op.PruneFeedForward(by, count, checkpoint, chosen)
        number = sum(len(numbers) for _, numbers in chosen) or count
        return self._without(operation, parts.size(sizes.hidden, sizes.heads, units=number))

    def _check_parts(self, name: str, by: Trained | None, count: int, chosen: tuple, checkpoint: str) -> None:
        """Raise InputError unless either `chosen` or both `by` and `count` are given and whole parts can be removed."""
        check_choice("checkpoint", checkpoint, ("final", "best"))
        check_seed(f"{name}: count", count)
        if bool(chosen) == bool(by) or bool(by) != bool(count):
            raise InputError(f"{name}: give either the parts by name, or `by` and a `count` of at least 1")
        if (self.pruning | (by.ticket.pruning if by else set())) - {"parts"}:
            raise InputError(f"{name}: single weights are pruned already; remove whole parts first")
        if by and by.sparsity and op.Mask(by) not in self.operations:
            raise InputError(f"{name}: the ticket does not have the mask of `by`; start from by.rewind(...)")

    def _without(self, operation: Operation, weights: int) -> "Ticket":
        """The ticket after an operation that removes that many more weights."""
        level = self.sparsity + weights / op.size(self.context)
        if level >= 1:
            raise InputError(f"{operation.do}: more weights would go than there are")
        return self._with(operation, sparsity=round(level, 9))

    def _must_be_even(self, name: str, by: Trained | None = None) -> None:
        """Raise InputError if the mask may have matrices of different sparsity."""
        if uneven := sorted((self.pruning | (by.ticket.pruning if by else set())) - {"matrix"}):
            how = "with scope='global'" if uneven == ["global"] else "by whole heads or units"
            remedy = "prune(..., scope='global') goes on from there"
            raise InputError(f"{name}: the mask was pruned {how}, so its matrices differ in sparsity; {remedy}")

    def prune_randomly(self, sparsity: float, draw: int = 0) -> "Ticket":
        """Control: a random mask of the given sparsity in each matrix, nested in its own; each `draw` is another.

        Raises InputError for a sparsity or an uneven mask as `prune`, and unless `draw` is an integer from 0.
        """
        level = _level(sparsity, self.sparsity)
        self._must_be_even("prune_randomly")
        return self._with(op.PruneRandomly(level, check_seed("draw", draw)), sparsity=level)

    def gradual(self, final: float, initial: float = 0.0) -> "Ticket":
        """Prune during the training, from `initial` to `final` sparsity by the cubic schedule (paper section 3.1).

        Raises InputError unless 0 <= final < 1, for a sparsity below that of the mask or an uneven mask (see `prune`),
        and for a second schedule.
        """
        level = _level(final, max(initial, self.sparsity))
        self._must_be_even("gradual")
        if self.schedule is not None:
            raise InputError("gradual: this ticket is pruned gradually already; a second schedule is not followed")
        if initial < self.sparsity:
            raise InputError(f"gradual from sparsity {initial}: the mask already has {self.sparsity}; start from there")
        return self._with(op.Gradual(float(initial), level), sparsity=level)

    def constant(self, signs: str = "kept", magnitudes: str = "constant") -> "Ticket":
        """Replace the matrices by +-alpha, alpha = sqrt(6 / (n_in + n_out)); all other parameters stay.

        `signs`: "kept" or "random". `magnitudes`: "constant", or as controls "redrawn" (from theta_0's distribution) or
        "shuffled" within the kept weights of a matrix. Raises InputError for another name. Source: paper section 3.4;
        FACTS.md section 7, ambiguities 10 and 11.
        """
        check_choice("signs", signs, ("kept", "random"))
        check_choice("magnitudes", magnitudes, ("constant", "redrawn", "shuffled"))
        return self._with(op.Constant(signs, magnitudes))

    def reinitialised(self) -> "Ticket":
        """Control: fresh random weights under the same mask."""
        return self._with(op.Reinitialise())

    def with_noise(self, copy: int) -> "Ticket":
        """The same start with another order of sentences and other dropout masks; copy 0 is the study's own.

        Tickets rewound from its run keep the copy's number. Raises InputError unless `copy` is an integer from 0.
        Source: Frankle et al. (2020), linear mode connectivity.
        """
        return replace(self, noise=check_seed("noise", copy))

    def unlisted(self) -> "Ticket":
        """The same ticket, trained because its chain needs it, without rows in the results."""
        return replace(self, listed=False)

    def _with(self, operation: Operation, **changes) -> "Ticket":
        return replace(self, operations=(*self.operations, operation), **changes)

    # Identity ------------------------------------------------------------

    @functools.cached_property
    def runs(self) -> dict[str, Trained]:
        """Id -> run, of the runs that its operations read."""
        return {run.id: run for operation in self.operations for run in operation.runs}

    @functools.cached_property
    def depth(self) -> int:
        """Number of trainings before it in its chain."""
        return max((1 + run.ticket.depth for run in self.runs.values()), default=0)

    @functools.cached_property
    def pruning(self) -> frozenset[str]:
        """How its mask was pruned: see `operations.Operation.pruning`."""
        return frozenset().union(*(operation.pruning for operation in self.operations))

    @property
    def schedule(self) -> tuple[float, float] | None:
        """(initial, final) sparsity of gradual pruning, or None."""
        found = (each for each in self.operations if isinstance(each, op.Gradual))
        return next(((each.initial, each.final) for each in found), None)

    @functools.cached_property
    def identity(self) -> dict:
        """Everything that affects the weights of its run, as JSON."""
        settings = self.context.settings.model_dump(exclude=None if self.schedule else {"gradual", "thresholds"})
        settings |= {"peak_lr": settings["peak_lr"][self.optimizer], "optimizer": self.optimizer}
        return ({"noise": self.noise} if self.noise else {}) | {
            "recipe": params.RECIPE_VERSION,
            "training": settings,
            "corpus": self.context.corpus,
            "vocabulary": self.context.vocabulary,
            "seed": self.seed,
            "operations": [operation.json() for operation in self.operations],
            "depth": self.depth,
        }

    @functools.cached_property
    def train_id(self) -> str:
        """The first 32 hex digits of the digest of `identity`."""
        return digest(self.identity)[:32]

    @property
    def trained_with(self) -> str:
        """The kind of training: dense, mp, lt, slt or clt."""
        return op.trained_with(operation.do for operation in self.operations)

    # Values ------------------------------------------------------------

    def start(self) -> training.Start:
        """The weights and mask of the ticket; reads the runs that it depends on.

        Pruned entries are zero, theta_t (.) m in the paper's terms, also where the training keeps stale values.
        """
        weights, mask = {}, None
        for operation in self.operations:
            weights, mask = operation.apply(weights, mask, self)
        weights = masks.apply(weights, mask or {})
        parents = {run.id: run.weights_hash for run in self.runs.values()}
        return training.Start(weights, mask, self.schedule, self.optimizer, self.seed, self.depth, self.noise, parents)

    def theta_0(self, seed: int | None = None) -> dict[str, Tensor]:
        """Initial weights of the ticket's seed, or of `seed`."""
        model = training.new_model(self.context.settings, self.context.pieces)
        return theta_0(model, self.seed if seed is None else seed)

    def stream(self, operation: Operation) -> np.random.Generator:
        """The random numbers of one of its operations."""
        return seeds.stream(self.seed, operation.do, self.depth, digest(self.identity["operations"]))


# Checks of arguments ------------------------------------------------------------


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `known`."""
    if value not in known:
        raise InputError(f"{key} {value!r} is none of {', '.join(known)}")


def number(key: str, value) -> float:
    """`value` as a float. Raises InputError unless it is a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{key}: {value!r} is not a number")
    return float(value)


def _level(sparsity, least: float) -> float:
    """`sparsity` as a float. Raises InputError if it is not from 0 to below 1, or below `least`."""
    if not 0 <= number("sparsity", sparsity) < 1:
        raise InputError(f"sparsity {sparsity} is not a fraction from 0 to below 1 (0.9 means 90%)")
    if sparsity < least:
        raise InputError(f"sparsity {sparsity} is below {least}, which is pruned already: levels must rise")
    return float(sparsity)


def check_seed(key: str, value) -> int:
    """`value`. Raises InputError unless it is an integer from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{key}: {value!r} is not a whole number from 0")
    return value
