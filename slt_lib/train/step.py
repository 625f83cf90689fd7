"""One training step, and what it is made of: model, batches, dropout, optimizer, learning rate and masks.

The loop, lockstep and several processes all take the same `step`; they differ in how gradients are computed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from slt_lib import masks, schedules
from slt_lib.adafactor import Adafactor
from slt_lib.base.settings import Training
from slt_lib.data.batches import Batches
from slt_lib.train.state import Data, NotFinite, Start, TrainState
from slt_lib.transformer import Shape, Transformer, dropout_sites, prunable

T = TypeVar("T")


@dataclass
class Parameters:
    """The tensors that a step changes, on their device.

    weights: name -> tensor that `optimizer` updates.
    factors: name of each masked weight -> tensor of its shape, 1 (or True) = kept, 0 = pruned.
    keep_stale: whether the optimizer sees the values of pruned entries (`pruned: stale`, FACTS.md section 2).
    stale: name -> these values, 0 where an entry is kept; empty without `keep_stale`.
    """

    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    factors: dict[str, Tensor] = field(default_factory=dict)
    keep_stale: bool = False
    stale: dict[str, Tensor] = field(default_factory=dict)

    def set_mask(self, mask: Mapping[str, Tensor]) -> None:
        """Prune by `mask` (name -> BoolTensor, True = kept) from now on."""
        self.factors = {name: kept.float() for name, kept in mask.items()}
        self.mask_weights()

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set pruned entries to zero; with `keep_stale` their values go to `stale`."""
        for name, factor in self.factors.items():
            if self.keep_stale:
                self.stale[name] = self.weights[name] * (1 - factor)
            self.weights[name].mul_(factor)

    @torch.no_grad()
    def restore_stale(self) -> None:
        """Put the values in `stale` back into the weights."""
        for name, values in self.stale.items():
            self.weights[name].add_(values)


def step(parameters: Parameters, backward: Callable[[], T]) -> T:
    """One step of the optimizer under a mask, in place; returns the loss that `backward` returns.

    `backward` leaves the gradients of the loss in `parameters.weights`; if it raises NotFinite, no weight changes. What
    follows does not wait for the device, so that a CUDA graph can hold the whole step. Call `set_rate` first.
    """
    loss = backward()
    for name, factor in parameters.factors.items():
        parameters.weights[name].grad.mul_(factor)
    parameters.restore_stale()
    parameters.optimizer.step()
    for weight in parameters.weights.values():
        weight.grad = None
    parameters.mask_weights()
    return loss


# Masks ------------------------------------------------------------


def mask_updates(training: Training, start: Start) -> list[int]:
    """The steps after which the mask of a gradual training grows."""
    gradual = training.gradual
    return schedules.every(gradual.every, gradual.until, training.steps) if start.gradual else []


def grown_mask(training: Training, state: TrainState) -> dict[str, Tensor]:
    """The next mask of a gradual training. Raises NotFinite.

    It is nested in the mask before, or, with stale weights, only in the ticket's own.
    """
    must_be_finite(state)
    matrices = prunable(state.weights)
    within = state.start.mask if training.pruned == "stale" else state.mask
    if within is not None:
        within = {name: kept.to(matrices[name].device) for name, kept in within.items()}
    grow = masks.histogram_mask if training.thresholds == "histogram" else masks.magnitude_mask
    end = schedules.at_step(training.gradual.until, training.steps)
    return grow(matrices, schedules.gradual_sparsity(state.step, *state.start.gradual, end), within)


def must_be_finite(state: TrainState) -> None:
    """Raise NotFinite if a weight is infinite or NaN."""
    if not all(bool(torch.isfinite(weight).all()) for weight in state.weights.values()):
        raise NotFinite(f"weights not finite at step {state.step}")


# Model and batches ------------------------------------------------------------


def new_model(training: Training, vocabulary: int, seed: int | None = None) -> Transformer:
    """The study's Transformer, with theta_0 of `seed` where one is given."""
    sizes = training.model
    return Transformer(Shape(vocabulary, sizes.layers, sizes.hidden, sizes.filter, sizes.heads), seed)


def noise_of(training: Training, start: Start) -> str:
    """What the order of sentences and dropout depend on besides the seed: depth in the chain and number of the copy.

    With `order: same` all trainings of a chain share both.
    """
    depth = start.depth if training.order == "fresh" else 0
    return f"{depth}+{start.noise}" if start.noise else f"{depth}"


def new_batches(training: Training, data: Data, start: Start) -> Batches:
    """The batches of a ticket, from the first."""
    shape = training.batch
    noise = noise_of(training, start)
    return Batches(data.source, data.target, shape.rows, shape.length, start.seed, noise, shape.packed)


def dropout_plan(training: Training, shape: Shape) -> tuple[dict, dict[str, float]]:
    """Sites of dropout in a batch, and the rate of each kind."""
    rows, length, sizes = training.batch.rows, training.batch.length, training.model
    rates = {"residual": sizes.residual_dropout, "attention": sizes.attention_dropout, "relu": sizes.relu_dropout}
    return dropout_sites(shape, rows, length, length), rates


# Optimizer ------------------------------------------------------------


def new_optimizer(training: Training, name: str, weights: Iterable[Tensor], stacked: int = 0) -> torch.optim.Optimizer:
    """Adafactor as in T2T, or Adam with T2T's settings for transformer_base (FACTS.md section 1).

    `stacked`: number of leading axes of the weights along which independent models are stacked. The learning rate of
    stacked weights on CUDA is read from a tensor, as a CUDA graph needs it.
    """
    weights = list(weights)
    if name == "adafactor":
        return Adafactor(weights, _warmup(training), training.peak_lr.adafactor, stacked, capturable=stacked > 0)
    graph = stacked > 0 and weights[0].is_cuda
    rate = torch.zeros((), dtype=weights[0].dtype, device=weights[0].device) if graph else 0.0
    return torch.optim.Adam(weights, lr=rate, betas=(0.9, 0.997), eps=1e-9, capturable=graph)


def set_rate(optimizer: torch.optim.Optimizer, training: Training, step: int) -> None:
    """Set the learning rate of `step`, counted from 0, and for Adafactor its decay."""
    if isinstance(optimizer, Adafactor):
        optimizer.set_step(step)
        return
    rate = schedules.learning_rate(step, _warmup(training), training.peak_lr.adam, ramp=True)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _warmup(training: Training) -> int:
    return max(1, schedules.at_step(training.warmup, training.steps))
