"""Adafactor as in Tensor2Tensor with the paper's settings: no momentum, relative steps, factored second moments."""

import math

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
    `capturable`: read decay and learning rate from tensors on the device, so that a CUDA graph can replay `step`; then
    `set_step` must be called before each step.
    torch.optim.Adafactor has another epsilon, and a direct port of T2T's returns NaN for a row of zero gradients.
    Source: FACTS.md section 2.
    """

    def __init__(self, params, warmup_steps=10_000, peak: float | None = None, stacked: int = 0, capturable=False):
        super().__init__(params, {"warmup_steps": warmup_steps, "peak": peak, "stacked": stacked, "k": 0})
        for group in self.param_groups:
            weight = group["params"][0]
            numbers = [torch.zeros((), dtype=kind, device=weight.device) for kind in (torch.float64, weight.dtype)]
            group["scalars"] = numbers if capturable else None

    # torch's decorator imports its compiler on first use, which takes over a second in every job.
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__

    def set_step(self, k: int) -> None:
        """Continue with step `k`, from 0."""
        for group in self.param_groups:
            group["k"] = k
            if group["scalars"]:
                for scalar, value in zip(group["scalars"], self._scalars(group), strict=True):
                    scalar.fill_(value)

    @staticmethod
    def _scalars(group: dict) -> tuple[float, float]:
        """beta2 and the learning rate of the next step."""
        k = group["k"]
        return 1 - (k + 1) ** -DECAY_EXPONENT, learning_rate(k, group["warmup_steps"], group["peak"])

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            beta2, rate = group["scalars"] or self._scalars(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], beta2, rate, group["stacked"])
            group["k"] += 1
        return loss


def update(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], beta2, rate, stacked: int = 0):
    """One step on one tensor, in place. `state` holds `row`, `column` ([..., rows], [..., columns]) or `moment`.

    `beta2` and `rate` are floats or, with `stacked`, scalar tensors on the weight's device.
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
    if stacked or weight.is_cuda:  # without waiting for the GPU
        scale = rate * rms(weight, axes).clamp_(min=EPSILON_2) / (rms(step, axes) / CLIPPING).clamp_(min=1.0)
        weight.sub_(step.mul_(scale))
    else:
        scale = rate * max(float(rms(weight)), EPSILON_2) / max(float(rms(step)) / CLIPPING, 1.0)
        weight.sub_(step, alpha=scale)


def rms(tensor: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """Root mean square over all entries, or over `axes`, which are kept with size 1."""
    if axes is None:
        return torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5
    if not axes:
        return tensor.abs()
    count = math.prod(tensor.shape[axis] for axis in axes)
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True) / count**0.5


def _average(state: dict[str, Tensor], key: str, value: Tensor, beta2) -> Tensor:
    if key not in state:
        state[key] = torch.zeros_like(value)
    if isinstance(beta2, Tensor):
        return state[key].mul_(beta2).add_(value.mul_(1 - beta2))
    return state[key].mul_(beta2).add_(value, alpha=1 - beta2)
