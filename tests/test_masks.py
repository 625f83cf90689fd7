"""Masks compared with a sort, with torch.nn.utils.prune, and with the numbers in FACTS.md section 3."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from slt_lib import masks

MATRICES = st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([2, 5, 1000])
)  # rows, columns, seed, number of distinct values (few give many ties)
FRACTIONS = st.floats(0, 1)


def matrix(rows, columns, seed, distinct=10**6):
    drawn = np.random.default_rng(seed).integers(-distinct, distinct, size=(rows, columns), endpoint=True)
    return torch.from_numpy(drawn.astype(np.float32))


def by_sorting(weight, sparsity, outer=None):
    """The rule as written: sort by (pruned before, magnitude, position) and prune the first entries."""
    magnitude = weight.abs().numpy().ravel().copy()
    if outer is not None:
        magnitude[~outer.numpy().ravel()] = -1
    kept = np.ones(magnitude.size, dtype=bool)
    kept[np.argsort(magnitude, kind="stable")[: round(sparsity * magnitude.size)]] = False
    return torch.from_numpy(kept.reshape(weight.shape))


@settings(deadline=None)
@given(MATRICES, FRACTIONS)
def test_exactly_the_smallest_are_pruned_and_ties_by_position(sizes, sparsity):
    weight = matrix(*sizes)
    [mask] = masks.magnitude_mask({"w": weight}, sparsity).values()
    assert mask.dtype == torch.bool
    assert int((~mask).sum()) == round(sparsity * weight.numel())
    assert torch.equal(mask, by_sorting(weight, sparsity))


@settings(deadline=None)
@given(MATRICES, FRACTIONS, FRACTIONS, st.integers(0, 10**6))
def test_masks_nest_for_any_later_weights(sizes, one, other, seed):
    less, more = sorted((one, other))
    rows, columns, first, distinct = sizes
    outer = masks.magnitude_mask({"w": matrix(rows, columns, first, distinct)}, less)
    trained = matrix(rows, columns, seed, distinct)  # a pruned weight stays pruned even if it is large now
    inner = masks.magnitude_mask({"w": trained}, more, outer)
    assert masks.nested(inner, outer)
    assert int((~inner["w"]).sum()) == round(more * trained.numel())
    assert torch.equal(inner["w"], by_sorting(trained, more, outer["w"]))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.345, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("shape", [(37, 11), (1, 7), (64, 64), (5,)])
def test_same_as_torch_without_ties(shape, sparsity):
    weight = torch.from_numpy(np.random.default_rng(3).standard_normal(shape, dtype=np.float32))
    assert len(weight.abs().unique()) == weight.numel()
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weight.clone())
    prune.l1_unstructured(module, "weight", amount=sparsity)
    assert torch.equal(masks.magnitude_mask({"w": weight}, sparsity)["w"], module.weight_mask.bool())


def test_each_matrix_is_pruned_separately():
    # One threshold for all would prune the whole small matrix.
    weights = {"small": matrix(10, 10, 1, 9), "large": 1e6 * matrix(20, 10, 2, 9)}
    mask = masks.magnitude_mask(weights, 0.5)
    assert [int(m.sum()) for m in mask.values()] == [50, 100]
    assert masks.kept(mask) == 150 and masks.sparsity(mask) == 0.5
    assert masks.sparsity({}) == 0.0


def test_negative_weights_are_kept_for_their_magnitude():
    # A known mistake: `w < threshold` would prune the largest of them.
    mask = masks.magnitude_mask({"w": torch.tensor([[-5.0, 1.0], [-2.0, 3.0]])}, 0.5)
    assert mask["w"].tolist() == [[True, False], [False, True]]


def test_arguments_are_unchanged():
    weights = {"w": matrix(6, 6, 1)}
    outer = masks.magnitude_mask(weights, 0.25)
    before = weights["w"].clone(), outer["w"].clone()
    masks.magnitude_mask(weights, 0.5, outer)
    masks.histogram_mask(weights, 0.5, outer)
    masks.apply(weights, outer)
    assert torch.equal(weights["w"], before[0]) and torch.equal(outer["w"], before[1])


@pytest.mark.parametrize("sparsity", [-0.1, 1.2, 50, float("nan")])
@pytest.mark.parametrize("rule", [masks.magnitude_mask, masks.histogram_mask])
def test_sparsity_that_is_no_fraction(rule, sparsity):
    with pytest.raises(ValueError, match="is not a fraction from 0 to 1"):
        rule({"w": matrix(4, 4, 1)}, sparsity)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rule", [masks.magnitude_mask, masks.histogram_mask])
def test_weights_that_are_not_finite(rule, value):
    weight = matrix(4, 4, 1)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="query holds a weight that is not finite"):
        rule({"query": weight}, 0.5)


def test_sparsity_below_that_of_the_mask():
    weights = {"query": matrix(4, 4, 1)}
    outer = masks.magnitude_mask(weights, 0.75)
    with pytest.raises(ValueError, match="query: sparsity 0.5 is below that of its mask"):
        masks.magnitude_mask(weights, 0.5, outer)
    assert torch.equal(masks.magnitude_mask(weights, 0.75, outer)["query"], outer["query"])


def test_apply():
    weights = {"w": torch.tensor([[-1.0, 2.0]]), "bias": torch.tensor([3.0])}
    applied = masks.apply(weights, {"w": torch.tensor([[False, True]])})
    # 0.0, not -0.0, which has other bytes
    assert applied["w"].numpy().tobytes() == np.array([0.0, 2.0], dtype=np.float32).tobytes()
    assert applied["bias"] is weights["bias"]


def test_random_mask():
    weights = {"a": matrix(9, 7, 1), "b": matrix(5, 5, 2)}
    outer = masks.magnitude_mask(weights, 0.4)
    drawn = [masks.random_mask(weights, 0.8, np.random.default_rng(seed), outer) for seed in (1, 1, 2)]
    assert masks.nested(drawn[0], outer)
    assert [int((~m).sum()) for m in drawn[0].values()] == [round(0.8 * 63), round(0.8 * 25)]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in weights)
    assert not all(torch.equal(drawn[0][name], drawn[2][name]) for name in weights)


# The original library's histogram ------------------------------------------------------------


def by_histogram(weight, sparsity, bins):
    """FACTS.md section 3, library mechanics, one weight at a time: count the bins whose cumulated share is below."""
    magnitude = [abs(value) for value in weight.numpy().ravel()]  # float32, as in the library
    largest, counts = max(magnitude), [0] * bins
    for value in magnitude:
        counts[min(int(value / largest * np.float32(bins)), bins - 1)] += 1
    below, cumulated = 0, 0
    for count in counts:
        cumulated += count
        below += cumulated / len(magnitude) < sparsity
    threshold = largest * np.float32(below / bins)
    return torch.tensor([bool(value > threshold) for value in magnitude]).reshape(weight.shape)


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("outlier", [1, 10, 1000])
@pytest.mark.parametrize("bins", [16, 256])
def test_histogram_as_in_the_library(sparsity, outlier, bins):
    weight = torch.from_numpy(np.random.default_rng(7).standard_normal((40, 30), dtype=np.float32))
    weight[0, 0] = 3.5 * outlier
    [mask] = masks.histogram_mask({"w": weight}, sparsity, bins=bins).values()
    assert torch.equal(mask, by_histogram(weight, sparsity, bins))


@pytest.fixture(scope="module")
def gaussian():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1000, 1000), dtype=np.float32))


@pytest.mark.parametrize(
    ("outlier", "reached"), [(None, (0.499, 0.900, 0.980)), (100, (0.441, 0.882, 0.975)), (1000, (0, 0.671, 0.949))]
)
def test_histogram_prunes_less_with_a_very_large_weight(gaussian, outlier, reached):
    weight = gaussian.clone()
    if outlier:
        weight[500, 500] = outlier
    found = [masks.sparsity(masks.histogram_mask({"w": weight}, sparsity)) for sparsity in (0.5, 0.9, 0.98)]
    assert found == pytest.approx(reached, abs=0.003)


def test_histogram_masks_nest():
    weight = matrix(30, 30, 1)
    outer = {"w": matrix(30, 30, 2) > 0}  # about half, independent of their magnitude
    for sparsity in (0.2, 0.7, 0.95):
        assert masks.nested(masks.histogram_mask({"w": weight}, sparsity, outer), outer)
