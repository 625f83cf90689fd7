"""Adafactor compared with that of transformers, which is T2T's except that it counts from 1 (FACTS.md section 2)."""

import math

import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor as Independent

from slt_lib.adafactor import Adafactor
from slt_lib.schedules import learning_rate

SHAPES = [(24, 16), (16, 33), (1, 1), (2, 3), (1, 7), (5, 1), (19,), (1,)]
STEPS = 50


def weights(dtype, shapes=SHAPES):
    draw = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.from_numpy(draw.standard_normal(s) * 0.2 + 0.3).to(dtype)) for s in shapes]


def gradients(size, dtype, shapes=SHAPES, zero_row=True):
    """One list per step. Some rows, columns and entries are exactly zero, as after pruning."""
    draw = np.random.default_rng(2)
    for _ in range(STEPS):
        step = [torch.from_numpy(draw.standard_normal(shape) * size).to(dtype) for shape in shapes]
        if zero_row:
            step[0][3] = 0
            step[1][:, 5] = 0
            step[-2][7] = 0
        yield step


def trained(optimizer, parameters, steps):
    for step in steps:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("size", [10.0**-e for e in range(1, 9)])
@pytest.mark.parametrize(("dtype", "of_weights", "of_way"), [(torch.float32, 1e-5, 2e-5), (torch.float64, 1e-9, 1e-9)])
def test_same_steps_as_an_independent_implementation(size, dtype, of_weights, of_way):
    # Fifty steps are on the plateau of the learning rate, where counting from 0 or from 1 is the same.
    start = [w.detach().clone() for w in weights(dtype)]
    ours, other = weights(dtype), weights(dtype)
    settings = {"lr": None, "scale_parameter": True, "relative_step": True, "warmup_init": False}
    found = trained(Adafactor(ours), ours, gradients(size, dtype))
    wanted = trained(Independent(other, **settings), other, gradients(size, dtype))
    for a, b, first in zip(found, wanted, start, strict=True):
        assert torch.isfinite(a).all()
        assert torch.linalg.vector_norm(a - b) <= of_weights * torch.linalg.vector_norm(b)
        assert torch.linalg.vector_norm(a - b) <= of_way * torch.linalg.vector_norm(b - first)
    for index, entries in ((0, np.s_[3]), (1, np.s_[:, 5]), (-2, np.s_[7])):
        assert torch.equal(found[index][entries], start[index][entries])  # without a gradient no bit changes


def test_first_step_by_hand():
    # beta2 is 0 at k = 0, so the update is the sign of the gradient, and the step is rate * max(RMS(w), 1e-3).
    ours = [torch.nn.Parameter(torch.tensor(values)) for values in ([[2.0]], [-2.0], [0.0])]
    found = trained(Adafactor(ours), ours, [[torch.tensor([[0.3]]), torch.tensor([-7.0]), torch.tensor([5.0])]])
    assert [w.item() for w in found] == pytest.approx([2 - 0.01 * 2, -2 + 0.01 * 2, -0.01 * 1e-3], rel=1e-6)


def test_an_update_with_an_rms_above_one_is_clipped():
    # The second gradient is a hundred times the first: moment = (1 - b) * 100^2 + b with b = 1 - 2^-0.8, update > 1.
    ours = [torch.nn.Parameter(torch.tensor([4.0], dtype=torch.float64))]
    found = trained(Adafactor(ours), ours, [[torch.tensor([g], dtype=torch.float64)] for g in (1.0, 100.0)])
    assert 100 / math.sqrt(1e4 * 2**-0.8 + 1 - 2**-0.8) > 1
    assert found[0].item() == pytest.approx(4 * 0.99**2, rel=1e-12)


@pytest.mark.parametrize("peak", [None, 0.3])
def test_rate_counts_steps_from_zero(peak):
    # With a constant gradient every update has RMS 1, so each step multiplies a lone weight by 1 - rate(k).
    ours = [torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))]
    trained(Adafactor(ours, warmup_steps=4, peak=peak), ours, [[torch.tensor([3.0], dtype=torch.float64)]] * 12)
    wanted = 2 * math.prod(1 - learning_rate(k, 4, peak) for k in range(12))
    assert ours[0].item() == pytest.approx(wanted, rel=1e-12)


def test_all_gradients_zero():
    for dtype in (torch.float32, torch.float64):
        start, ours = weights(dtype), weights(dtype)
        trained(Adafactor(ours), ours, [[torch.zeros_like(w) for w in ours]] * 3)
        assert all(torch.equal(a, b) for a, b in zip(ours, start, strict=True))


def test_a_weight_without_a_gradient_is_unchanged():
    [one, other] = ours = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = Adafactor(ours)
    one.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(other, torch.ones(3)) and not torch.equal(one, other)


def test_stacked_models_are_independent():
    shapes, count = [(6, 5), (5, 6), (1, 1), (7,)], 3
    scales = (1.0, 1e-3, 50.0)  # so different that shared statistics would be noticed
    alone = []
    for scale in scales:
        ours = weights(torch.float64, shapes)
        with torch.no_grad():
            for w in ours:
                w *= scale
        steps = [[scale * g for g in step] for step in gradients(1e-2, torch.float64, shapes, zero_row=False)]
        alone.append((ours, steps))
    together = [
        torch.nn.Parameter(torch.stack([alone[i][0][n].detach() for i in range(count)])) for n in range(len(shapes))
    ]
    steps = [[torch.stack([alone[i][1][k][n] for i in range(count)]) for n in range(len(shapes))] for k in range(STEPS)]
    found = trained(Adafactor(together, stacked=1, warmup_steps=20), together, steps)
    for i, (ours, own) in enumerate(alone):
        for stack, solo in zip(found, trained(Adafactor(ours, warmup_steps=20), ours, own), strict=True):
            torch.testing.assert_close(stack[i], solo, rtol=1e-12, atol=0)


def test_the_state_is_factored():
    ours = weights(torch.float32)
    optimizer = Adafactor(ours)
    trained(optimizer, ours, [next(gradients(1.0, torch.float32))])
    sizes = [{key: tuple(v.shape) for key, v in optimizer.state[w].items()} for w in ours]
    assert sizes[0] == {"row": (24,), "column": (16,)} and sizes[-1] == {"moment": (1,)}
