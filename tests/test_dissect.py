"""Notebook 10: states, similarity and attention against closed forms and independent computations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, pearsonr
from sklearn.cross_decomposition import CCA

from slt_lib.analysis import activations, attention
from slt_lib.analysis.similarity import Moments, complexity, similarity
from slt_lib.base.errors import InputError
from slt_lib.transformer import EOS, Shape, Transformer, theta_0

RANDOM = np.random.default_rng(1)


def gaussian(rows, columns, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def rotation(size, seed):
    return np.linalg.qr(gaussian(size, size, seed))[0]


def between(x, y):
    return similarity(Moments.of(x), Moments.of(y))


# Similarity ------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_all_three_are_one_under_rotation_scale_and_shift(seed, scale):
    x = gaussian(300, 6, seed) * np.arange(1, 7)
    found = between(x, scale * x @ rotation(6, seed + 1) + gaussian(1, 6, seed + 2))
    assert [found[name] for name in ("cka", "svcca", "pwcca")] == pytest.approx([1, 1, 1], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_invariances(seed):
    """CKA and SVCCA: rotations of either side. PWCCA: any invertible map of the other side. CKA is symmetric."""
    x = gaussian(200, 5, seed)
    y = x[:, :3] @ gaussian(3, 5, seed + 1) + gaussian(200, 5, seed + 2)
    found, turned = between(x, y), between(x @ rotation(5, seed), y @ rotation(5, seed + 1))
    assert turned["cka"] == pytest.approx(found["cka"], abs=1e-9)
    assert turned["svcca"] == pytest.approx(found["svcca"], abs=1e-9)
    mapped = between(x, y @ (rotation(5, seed) * [1, 2, 3, 4, 5]) @ rotation(5, seed + 3))
    assert mapped["pwcca"] == pytest.approx(found["pwcca"], abs=1e-6)
    assert between(y, x)["cka"] == pytest.approx(found["cka"], abs=1e-9)


def test_independent_gaussians_are_near_zero():
    """Debiased CKA has no floor; the canonical correlations have one of about the root of columns / rows."""
    found = between(gaussian(10_000, 16, 1), gaussian(10_000, 16, 2))
    assert abs(found["cka"]) < 0.005 and found["svcca"] < 0.06 and found["pwcca"] < 0.06 and found["neuron"] < 0.05
    small = [between(gaussian(100, 10, 2 * i), gaussian(100, 10, 2 * i + 1))["cka"] for i in range(200)]
    assert abs(np.mean(small)) < 0.01  # unbiased on few rows too, where the plain estimate is .17


def test_cka_is_the_ratio_of_song_s_u_statistics():
    """HSIC as the mean over all ordered 4-tuples of different rows (Song et al. 2012, eq. 5), on few rows."""
    x, y = gaussian(9, 2, 1), gaussian(9, 3, 2)
    y[:, 0] += x[:, 0]

    def hsic(a, b):
        k, q = ((m @ m.T) * (1 - np.eye(len(m))) for m in (a, b))
        n, ones = len(a), np.ones(len(a))
        total = np.trace(k @ q) + ones @ k @ ones * (ones @ q @ ones) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * ones @ k @ q @ ones) / (n * (n - 3))

    one, other = (Moments(m - m.mean(0), np.square(m - m.mean(0)).sum(1), *_principal(m)) for m in (x, y))
    assert similarity(one, other)["cka"] == pytest.approx(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5, abs=1e-12)


def _principal(x):
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return values[::-1], vectors[:, ::-1]


def test_canonical_correlations_are_those_of_scikit_learn():
    x = gaussian(400, 4, 1)
    y = np.c_[x[:, :2] + 0.5 * gaussian(400, 2, 2), gaussian(400, 2, 3)]
    scores = CCA(n_components=4, scale=False, max_iter=5000, tol=1e-12).fit(x, y).transform(x, y)
    expected = np.array([pearsonr(a, b)[0] for a, b in zip(scores[0].T, scores[1].T, strict=True)])
    found = between(x, y)
    assert found["svcca"] == pytest.approx(expected.mean(), abs=1e-4)  # all components are needed for 99%
    centred = x - x.mean(0)
    variates = scores[0] / np.linalg.norm(scores[0], axis=0)
    shares = np.abs(variates.T @ centred).sum(1)
    assert found["pwcca"] == pytest.approx(shares @ expected / shares.sum(), abs=1e-3)


def test_svcca_drops_directions_without_variance():
    shared, noise = gaussian(500, 3, 1), 1e-4 * gaussian(500, 5, 2)
    other = 1e-4 * gaussian(500, 5, 3)
    found = between(np.c_[shared, noise], np.c_[shared, other])
    assert found["svcca"] == pytest.approx(1, abs=1e-6)
    assert 0.99 < found["pwcca"] < 1  # weighted by what a direction explains


def test_neurons_keep_their_index_or_not():
    x = gaussian(500, 8, 1)
    order = np.roll(np.arange(8), 1)
    assert between(x, -2 * x)["same_index"] == 1 and between(x, x)["neuron"] == pytest.approx(1)
    assert between(x, x[:, order])["same_index"] == 0 and between(x, x[:, order])["neuron"] == pytest.approx(1)
    x[:, 0] = 3.0  # a dead neuron
    assert between(x, x)["neuron"] == pytest.approx(7 / 8)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_complexity_of_a_known_spectrum(variances):
    """Columns that are exactly orthogonal with given variances."""
    basis = np.linalg.qr(gaussian(100, len(variances) + 1, 1) - 0)[0]
    basis = np.linalg.qr(np.c_[np.ones(100), basis])[0][:, 1 : len(variances) + 1]
    x = basis * np.sqrt(100 * np.array(variances))
    found, shares = complexity(Moments.of(x)), np.sort(variances)[::-1] / np.sum(variances)
    assert found["participation"] == pytest.approx(1 / np.square(shares).sum())
    assert found["first"] == pytest.approx(shares[0])
    assert found["k99"] == 1 + int((np.cumsum(shares) < 0.99 - 1e-12).sum())


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (gaussian(50, 8), gaussian(50, 8), "they have 50 word pieces, but 80 are needed at width 8"),
        (gaussian(90, 8), gaussian(80, 8), "90 and 80 word pieces; compare models on the same text"),
        (np.ones((90, 8)), gaussian(90, 8), "the states are the same for all word pieces"),
    ],
)
def test_states_that_cannot_be_compared(one, other, message):
    with pytest.raises(InputError, match=message):
        between(one, other)


# States and attention ------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    found = Transformer(Shape(30, layers=2, hidden=8, filter=16, heads=2))
    found.load_state_dict(theta_0(found, 3))
    return found


def sentences(count, seed):
    draw = np.random.default_rng(seed)
    return [[*draw.integers(3, 30, draw.integers(2, 9)).tolist(), EOS] for _ in range(count)]


def test_the_states_are_those_of_the_model(model):
    """Sentence by sentence without padding; the decoder's output gives the model's own logits."""
    sources, targets = sentences(70, 1), sentences(70, 2)
    states, sentence = activations.gather(activations.traces(model, sources, targets))
    assert set(states) == {*activations.sites(2, "encoder"), *activations.sites(2, "decoder")}
    for number in (0, 33, 69):
        memory = model.encode(torch.tensor([sources[number]]))[0, :-1]
        assert torch.allclose(states["encoder.norm"][sentence["encoder"] == number], memory, atol=1e-5)
        [(_, batch)] = activations.batches([sources[number]], [targets[number]])
        own = model(batch)[0, :-1]
        assert torch.allclose(states["decoder.norm"][sentence["decoder"] == number], own, atol=1e-5)
        embedded = model.embed(torch.tensor(sources[number])) + model.target_space[0]
        embedded = embedded + model.positions[: len(sources[number])]
        assert torch.allclose(states["encoder.0"][sentence["encoder"] == number], embedded[:-1], atol=1e-5)
    alone, _ = activations.gather(activations.traces(model, sources))
    assert set(alone) == set(activations.sites(2, "encoder"))
    assert torch.allclose(alone["encoder.2"], states["encoder.2"], atol=1e-5)


def test_attention_weights_give_the_output_of_the_module(model):
    """Recomputed weights, times the values, are what the attention itself returns."""
    x, memory = torch.randn(3, 5, 8), torch.randn(3, 6, 8)
    module = model.decoder[1].cross_attention
    key, value = module.keys(memory)
    found = activations.weights(module, x, key, value, None)
    assert torch.allclose(found.sum(-1), torch.ones(3, 2, 5))
    own = (found @ value).transpose(1, 2).flatten(-2) @ module.output.T
    assert torch.allclose(own, module(x, key, value, None, None), atol=1e-6)


def test_a_handmade_model_attends_where_it_is_told_to():
    """Zero queries attend evenly to what a piece may see; its entropy is the log of the number of visible keys."""
    model = Transformer(Shape(30, layers=1, hidden=8, filter=16, heads=2))
    weights = theta_0(model, 1)
    model.load_state_dict({name: w * 0 if name.endswith("query") else w for name, w in weights.items()})
    sources, targets = [[5, 6, 7, EOS], [8, 9, EOS]], [[4, 5, EOS], [6, 7, 8, EOS]]
    [trace] = activations.traces(model, sources, targets)
    for kind, seen in {"encoder": [4, 4, 4, 3, 3], "cross": [4, 4, 3, 3, 3], "decoder": [1, 2, 1, 2, 3]}.items():
        assert trace.visible[kind].tolist() == seen
        for row, count in zip(trace.attention[kind, 1], seen, strict=True):
            assert torch.allclose(row[:, :count], torch.full((2, count), 1 / count)) and not row[:, count:].any()
    found = attention.compare([trace], [trace])
    assert found["encoder", 1].entropy.tolist() == pytest.approx([(3 * np.log2(4) + 2 * np.log2(3)) / 5] * 2)
    assert not found["encoder", 1].correlation.any() and not found["encoder", 1].divergence.round(decimals=6).any()


def test_heads_against_scipy(model):
    """Row by row over the visible keys, with scipy's correlation, divergence and entropy."""
    other = Transformer(model.shape)
    other.load_state_dict(theta_0(other, 4))
    sources, targets = sentences(5, 1), sentences(5, 2)
    ones, others = (list(activations.traces(each, sources, targets)) for each in (model, other))
    for key, heads in attention.compare(ones, others).items():
        correlations, divergences, entropies = [], [], []
        for one, another in zip(ones, others, strict=True):
            for a, b, n in zip(one.attention[key], another.attention[key], one.visible[key[0]], strict=True):
                if n > 1:
                    p, q = a[1, :n].double().numpy(), b[0, :n].double().numpy()
                    correlations.append(pearsonr(p, q)[0])
                    divergences.append(jensenshannon(p, q, base=2) ** 2)
                    entropies.append(entropy(p, base=2))
        assert float(heads.correlation[1, 0]) == pytest.approx(np.mean(correlations), abs=1e-4)
        assert float(heads.divergence[1, 0]) == pytest.approx(np.mean(divergences), abs=1e-5)
        assert float(heads.entropy[1]) == pytest.approx(np.mean(entropies), abs=1e-5)


def test_heads_that_were_exchanged_are_matched_again(model):
    """Heads swapped in the other model: the same attention under another number."""
    swapped, half = model.state_dict(), model.shape.hidden // 2
    for name, weight in swapped.items():
        if name.endswith(("query", "key", "value")):
            swapped[name] = torch.cat([weight[half:], weight[:half]])
        elif name.endswith("output"):
            swapped[name] = torch.cat([weight[:, half:], weight[:, :half]], dim=1)
    other = Transformer(model.shape)
    other.load_state_dict(swapped)
    sources, targets = sentences(20, 1), sentences(20, 2)
    found = attention.compare(*(list(activations.traces(each, sources, targets)) for each in (model, other)))
    for heads in found.values():
        one, two = heads.rows()
        assert (one["matched_head"], two["matched_head"]) == (2, 1) == (one["best_head"], two["best_head"])
        assert one["matched_correlation"] == pytest.approx(1, abs=1e-3) and one["correlation"] < 0.99


def test_models_of_another_shape_are_refused(model):
    other = Transformer(Shape(30, layers=1, hidden=8, filter=16, heads=2), seed=1)
    traces = [list(activations.traces(each, sentences(5, 1), sentences(5, 2))) for each in (model, other)]
    with pytest.raises(InputError, match="the models differ in layers, heads or sentences"):
        attention.compare(*traces)
    with pytest.raises(InputError, match="5 sources but 4 targets"):
        list(activations.traces(model, sentences(5, 1), sentences(4, 2)))
