"""Adafactor as Tensor2Tensor has it for the paper's setting: no momentum, relative steps, factored second moments."""

import torch
from torch import Tensor

from slt_lib.schedules import learning_rate

EPSILON_1 = 1e-30  # added to the squared gradient
EPSILON_2 = 1e-3  # least scale of a parameter
CLIPPING = 1.0  # largest root mean square of an update
DECAY_EXPONENT = 0.8


class Adafactor(torch.optim.Optimizer):
    """T2T's Adafactor: beta1 0, decay 1 - (k+1)^-0.8, factored for matrices, step scaled by max(RMS(w), 1e-3).

    `warmup_steps`, `peak`: the learning rate is `schedules.learning_rate(k, warmup_steps, peak)`, k from 0.
    `stacked`: number of leading axes along which independent models are stacked; statistics never cross them.
    torch.optim.Adafactor differs (its epsilon is not T2T's) and gives NaN for a row of zero gradient with the port that
    suggests itself. Source: FACTS.md section 2.
    """

    def __init__(self, params, warmup_steps: int = 10_000, peak: float | None = None, stacked: int = 0):
        super().__init__(params, {"warmup_steps": warmup_steps, "peak": peak, "stacked": stacked, "k": 0})

    # the decorated one imports torch's compiler on first use: over a second in every job, for nothing
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            k = group["k"]
            beta2 = decay(k)
            rate = learning_rate(k, group["warmup_steps"], group["peak"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], beta2, rate, group["stacked"])
            group["k"] = k + 1
        return loss


def decay(k: int) -> float:
    """beta2 of step `k`, from 0."""
    return 1 - (k + 1) ** -DECAY_EXPONENT


def update(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], beta2, rate, stacked: int = 0):
    """One step on one tensor, in place. `state` holds `row`, `column` ([..., rows], [..., columns]) or `moment`.

    `beta2` and `rate` are floats or, with `stacked`, scalar tensors on the weight's device: then nothing waits for it.
    """
    axes = tuple(range(stacked, weight.dim()))
    if len(axes) >= 2:
        squared = gradient.square()
        row = _average(state, "row", squared.mean(-1).add_(EPSILON_1), beta2)
        column = _average(state, "column", squared.mean(-2).add_(EPSILON_1), beta2)
        row_factor = (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
        step = torch.mul(gradient, row_factor, out=squared).mul_(column.rsqrt().unsqueeze(-2))
    else:
        moment = _average(state, "moment", gradient.square().add_(EPSILON_1), beta2)
        step = gradient * moment.rsqrt()
    if stacked or weight.is_cuda:  # on a GPU without waiting for the numbers
        scale = rate * rms(weight, axes).clamp_(min=EPSILON_2) / (rms(step, axes) / CLIPPING).clamp_(min=1.0)
        weight.sub_(step.mul_(scale))
    else:
        scale = rate * max(float(rms(weight)), EPSILON_2) / max(float(rms(step)) / CLIPPING, 1.0)
        weight.sub_(step, alpha=scale)


def rms(tensor: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """Root mean square over all entries, or over `axes` with those kept as size 1."""
    if axes is None:
        return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
    if not axes:
        return tensor.abs()
    count = 1
    for axis in axes:
        count *= tensor.shape[axis]
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True) / count**0.5


def _average(state: dict[str, Tensor], key: str, value: Tensor, beta2) -> Tensor:
    if key not in state:
        state[key] = torch.zeros_like(value)
    if isinstance(beta2, Tensor):
        return state[key].mul_(beta2).add_(value.mul_(1 - beta2))
    return state[key].mul_(beta2).add_(value, alpha=1 - beta2)
