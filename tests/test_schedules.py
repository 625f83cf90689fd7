"""Schedules compared with the values in FACTS.md and with the paper's formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slt_lib import schedules
from slt_lib.schedules import at_step, every, gradual_sparsity, learning_rate

FRACTIONS = st.floats(0, 1)


def test_levels_of_the_paper():
    assert schedules.PAPER_LEVELS == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


def test_learning_rate_of_the_paper():
    # A plateau of 0.01 for 10,000 steps, then 1 / sqrt(k): 0.00141 at the end (FACTS.md section 2).
    assert [learning_rate(k, 10_000) for k in (0, 1, 9_999, 10_000)] == [0.01] * 4
    assert learning_rate(500_000, 10_000) == pytest.approx(1 / math.sqrt(500_000))
    assert sum(learning_rate(k, 10_000) for k in range(500_000)) == pytest.approx(1314, abs=1)


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.floats(1e-6, 10))
def test_learning_rate_scales_with_its_peak(step, warmup, peak):
    assert learning_rate(step, warmup, peak) == pytest.approx(peak * math.sqrt(warmup / max(step, warmup)))
    assert learning_rate(step, warmup) == pytest.approx(1 / math.sqrt(max(step, warmup)))


def test_learning_rate_of_adam_rises_first():
    rates = [learning_rate(k, 10, 0.5, ramp=True) for k in range(40)]
    assert rates[:10] == pytest.approx([0.05 * (k + 1) for k in range(10)])
    assert rates[10:] == [learning_rate(k, 10, 0.5) for k in range(10, 40)]


def test_learning_rate_needs_a_warm_up():
    with pytest.raises(ValueError, match="at least 1 is needed"):
        learning_rate(3, 0)


@pytest.mark.parametrize(
    ("step", "initial", "percent", "digits"),
    [
        (10, 0, 6.58, 2),
        (20, 0, 12.84, 2),
        (100, 0, 52.0, 1),
        (200, 0, 78.75, 2),
        (10, 60, 62.2, 1),
        (200, 60, 86.25, 2),
    ],
)
def test_gradual_sparsity_of_the_paper(step, initial, percent, digits):
    assert round(100 * gradual_sparsity(1000 * step, initial / 100, 0.9, 400_000), digits) == percent


@given(st.integers(0, 500_000), FRACTIONS, FRACTIONS)
def test_gradual_sparsity_is_the_papers_formula(step, one, other):
    initial, final = sorted((one, other))
    wanted = final + min(0, (initial - final) * (1 - step / 400_000) ** 3)
    assert gradual_sparsity(step, initial, final, 400_000) == pytest.approx(wanted, abs=1e-12)


@given(st.integers(1, 1000), FRACTIONS, FRACTIONS)
def test_gradual_sparsity_ends_exactly_at_its_target(end, one, other):
    initial, final = sorted((one, other))
    found = [gradual_sparsity(step, initial, final, end) for step in range(end + 3)]
    assert found[0] == pytest.approx(initial, abs=1e-12)
    assert found[end:] == [final] * 3  # exactly, because a mask prunes round(sparsity * size)
    assert all(a <= b + 1e-12 for a, b in zip(found, found[1:], strict=False))


@given(st.integers(-1000, -1), st.integers(0, 1000), FRACTIONS, FRACTIONS)
def test_gradual_sparsity_before_its_start_is_its_start(step, end, one, other):
    initial, final = sorted((one, other))
    assert gradual_sparsity(step, initial, final, end) == pytest.approx(initial, abs=1e-12)


@pytest.mark.parametrize(("initial", "final"), [(0.9, 0.6), (-0.1, 0.5), (0.5, 1.2)])
def test_invalid_gradual_sparsity(initial, final):
    with pytest.raises(ValueError, match="gradual sparsity"):
        gradual_sparsity(1, initial, final, 10)


def test_steps_of_the_paper():
    # Pruned at 10k, 20k, ... 400k, never at 0; checkpoints at 25k, 50k, ... 500k.
    assert every(0.02, 0.8, 500_000) == list(range(10_000, 400_001, 10_000))
    assert every(0.05, 1.0, 500_000) == list(range(25_000, 500_001, 25_000))
    assert [at_step(t, 500_000) for t in (0, 0.025, 0.05, 0.075, 1.0)] == [0, 12_500, 25_000, 37_500, 500_000]


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(2, 5000))
def test_every(fraction, until, steps):
    found = every(fraction, until, steps)
    assert found == sorted(set(found)) and all(1 <= step <= steps for step in found)
    if at_step(until, steps):
        assert found[-1] == at_step(until, steps)  # the last one is always included
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert all(gap <= math.ceil(fraction * steps) + 1 for gap in gaps)
