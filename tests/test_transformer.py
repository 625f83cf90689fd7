"""The model compared with a slow one in plain numpy, written from FACTS.md section 1, one sentence at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slt_lib.transformer import (
    EOS,
    PAD,
    Batch,
    Shape,
    SoftmaxLoss,
    Transformer,
    dropout_masks,
    dropout_sites,
    glorot,
    positions,
    prunable,
    smoothed_cross_entropy,
    theta_0,
)

SHAPE = Shape(vocabulary=29, layers=2, hidden=12, filter=20, heads=3)
PAIRS = [([5, 9, 4, EOS], [7, 3, EOS]), ([8, EOS], [6, 6, 11, 12, EOS]), ([20, 21, 22, 23, 24, EOS], [25, EOS])]


def random_model(shape=SHAPE, seed=3):
    """Float64, with norms and biases that are not at their initial values, so that a missing one is noticed."""
    model = Transformer(shape, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


def packed(rows, source_length=16, target_length=14):
    """Rows of sentence pairs packed as in `data.batches`, independently of it."""
    fields = {}
    for side, length in ((0, source_length), (1, target_length)):
        for name in ("ids", "segment", "position"):
            fields[side, name] = torch.zeros(len(rows), length, dtype=torch.long)
        for r, row in enumerate(rows):
            at = 0
            for number, pair in enumerate(row, start=1):
                for i, token in enumerate(pair[side]):
                    fields[side, "ids"][r, at] = token
                    fields[side, "segment"][r, at], fields[side, "position"][r, at] = number, i
                    at += 1
    shifted = torch.zeros_like(fields[1, "ids"])
    shifted[:, 1:] = fields[1, "ids"][:, :-1]
    shifted[fields[1, "position"] == 0] = PAD
    return Batch(*(fields[side, name] for side in (0, 1) for name in ("ids", "segment", "position")), shifted)


def logits(model, batch, drop=None):
    with torch.no_grad():
        return model.logits(model(batch, drop))


# A slow model ------------------------------------------------------------


class Slow:
    """transformer_base_v3 for one sentence pair, vector by vector and head by head; `drop`: masks by site."""

    def __init__(self, model, drop=None):
        self.w = {name: p.detach().numpy() for name, p in model.named_parameters()}
        self.shape, self.drop = model.shape, drop or {}

    def masked(self, site, x):
        """Apply a mask with one row per position, or one row for all positions."""
        return x * self.drop[site][0].numpy() if site in self.drop else x

    def norm(self, name, x):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, name, site, x, memory, causal=False):
        size = self.shape.hidden // self.shape.heads
        query, key, value = (
            states @ self.w[f"{name}.{part}"].T for states, part in ((x, "query"), (memory, "key"), (memory, "value"))
        )
        out = np.zeros((len(x), self.shape.hidden))
        for head in range(self.shape.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(x)):
                reach = i + 1 if causal else len(memory)
                scores = np.array([query[i, part] @ key[j, part] * size**-0.5 for j in range(reach)])
                share = np.exp(scores - scores.max())
                share /= share.sum()
                if site in self.drop:
                    share = share * self.drop[site].numpy()[i, :reach]
                out[i, part] = share @ value[:reach, part]
        return out @ self.w[f"{name}.output"].T

    def filter(self, name, site, x):
        inner = np.maximum(x @ self.w[f"{name}.inner"].T + self.w[f"{name}.inner_bias"], 0)
        return self.masked(site, inner) @ self.w[f"{name}.outer"].T + self.w[f"{name}.outer_bias"]

    def timing(self, position):
        count = self.shape.hidden // 2
        rates = [math.exp(-i * math.log(10_000) / (count - 1)) for i in range(count)]
        return np.array([math.sin(position * r) for r in rates] + [math.cos(position * r) for r in rates])

    def embed(self, ids, constant=0.0):
        rows = [self.w["embedding"][i] * self.shape.hidden**0.5 if i != PAD else 0.0 for i in ids]
        return np.array([row + constant + self.timing(p) for p, row in enumerate(rows)])

    def logits(self, source, target):
        x = self.masked("encoder.input", self.embed(source, self.w["target_space"][0]))
        for i in range(self.shape.layers):
            name = f"encoder.{i}"
            y = self.norm(f"{name}.self_norm", x)
            y = self.attention(f"{name}.self_attention", f"{name}.self.attention", y, y)
            x = x + self.masked(f"{name}.self", y)
            y = self.filter(f"{name}.feed_forward", f"{name}.relu", self.norm(f"{name}.filter_norm", x))
            x = x + self.masked(f"{name}.filter", y)
        memory = self.norm("encoder_norm", x)
        x = self.masked("decoder.input", self.embed([PAD, *target[:-1]]))
        for i in range(self.shape.layers):
            name = f"decoder.{i}"
            y = self.norm(f"{name}.self_norm", x)
            y = self.attention(f"{name}.self_attention", f"{name}.self.attention", y, y, causal=True)
            x = x + self.masked(f"{name}.self", y)
            y = self.norm(f"{name}.cross_norm", x)
            y = self.attention(f"{name}.cross_attention", f"{name}.cross.attention", y, memory)
            x = x + self.masked(f"{name}.cross", y)
            y = self.filter(f"{name}.feed_forward", f"{name}.relu", self.norm(f"{name}.filter_norm", x))
            x = x + self.masked(f"{name}.filter", y)
        return self.norm("decoder_norm", x) @ self.w["embedding"].T


def near(found, wanted):
    # positions are in float32, so 1e-7 is the best possible
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_same_as_the_slow_model(model, pair):
    found = logits(model, packed([[pair]], len(pair[0]), len(pair[1])))
    near(found[0], Slow(model).logits(*pair))


def test_same_as_the_slow_model_with_dropout(model):
    [source, target] = PAIRS[1]
    sites = dropout_sites(SHAPE, 1, len(source), len(target))
    rates = {"residual": 0.3, "attention": 0.4, "relu": 0.5}
    drop = {site: mask.double() for site, mask in dropout_masks(sites, rates, seed=1, noise="0", step=0).items()}
    found = logits(model, packed([[(source, target)]], len(source), len(target)), drop)
    near(found[0], Slow(model, drop).logits(source, target))


def test_logits_are_independent_of_neighbours_and_padding(model):
    rows = [[PAIRS[0], PAIRS[1], PAIRS[2]], [PAIRS[2]], [PAIRS[1], PAIRS[0]], []]
    found = logits(model, packed(rows))
    assert torch.isfinite(found).all()  # also in a row that is all padding
    for r, row in enumerate(rows):
        at = 0
        for source, target in row:
            alone = logits(model, packed([[(source, target)]], len(source), len(target)))[0]
            torch.testing.assert_close(found[r, at : at + len(target)], alone, rtol=1e-9, atol=1e-9)
            at += len(target)


def test_a_neighbour_changes_no_bit(model):
    [one, other] = [packed([[PAIRS[0], neighbour]]) for neighbour in (PAIRS[1], ([28, EOS], [27, 26, 25, 24, EOS]))]
    length = len(PAIRS[0][1])
    found = [logits(model, batch)[0] for batch in (one, other)]
    assert torch.equal(found[0][:length], found[1][:length])
    assert not torch.equal(found[0][length:], found[1][length:])


def test_no_position_sees_a_later_one(model):
    source, target = [5, 9, EOS], [7, 3, 11, 12, EOS]
    for changed in range(len(target) - 1):
        other = [*target[:changed], 28, *target[changed + 1 :]]
        a, b = (logits(model, packed([[(source, t)]]))[0] for t in (target, other))
        assert torch.equal(a[: changed + 1], b[: changed + 1])
        assert not torch.equal(a[changed + 1], b[changed + 1])


def test_decoding_step_by_step_gives_the_same_logits(model):
    source = torch.zeros(len(PAIRS), 9, dtype=torch.long)
    for r, (ids, _) in enumerate(PAIRS):
        source[r, : len(ids)] = torch.tensor(ids)
    target = torch.tensor([[7, 3, 11, 4, 28, 2]]).expand(len(PAIRS), -1)
    wanted = logits(model, packed([[(ids, target[0].tolist())] for ids, _ in PAIRS]))
    with torch.no_grad():
        cache = model.start(model.encode(source), source)
        previous = torch.full((len(PAIRS),), PAD)
        for position in range(target.shape[1]):
            found = model.step(previous, position, cache)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted[:, position].float(), rtol=1e-5, atol=1e-5)
            previous = target[:, position]


def test_decoding_beyond_the_expected_length():
    long, short = Transformer(SHAPE, 3), Transformer(SHAPE, 3, length=4)
    source = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        found = []
        for model in (long, short):
            cache = model.start(model.encode(source), source)
            found.append([model.step(torch.tensor([5]), position, cache) for position in range(9)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Sizes and initial weights ------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "matrices", "everything"),
    [(32_768, 60_817_408, 60_897_280), (33_288, 61_083_648, 61_163_520), (33_708, 61_298_688, 61_378_560)],
)
def test_sizes_of_transformer_base(vocabulary, matrices, everything):
    with torch.device("meta"):
        model = Transformer(Shape(vocabulary))
    named = dict(model.named_parameters())
    pruned = prunable(named)
    assert len(pruned) == 97  # 72 of attention, 24 of the filters, one embedding
    assert sum(w.numel() for w in pruned.values()) == matrices
    assert sum(w.numel() for w in named.values()) == everything
    assert not any("attention" in name and "bias" in name for name in named)
    rest = {name: w for name, w in named.items() if name not in pruned}
    assert named["target_space"].shape == (32, 512) and "target_space" in rest
    assert sum(w.numel() for name, w in rest.items() if name.endswith(("inner_bias", "outer_bias"))) == 30_720
    assert sum(w.numel() for name, w in rest.items() if "norm." in name) == 32 * 1024


def test_invalid_shape():
    with pytest.raises(ValueError, match="multiple of heads"):
        Shape(10, hidden=12, heads=5)


def test_positions():
    # Sines, then cosines, not interleaved; timescales from 1 to 10^4, both included (the -1 in the exponent).
    found = positions(60, 8)
    for p in (0, 1, 59):
        rates = [1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4]
        wanted = [math.sin(p * r) for r in rates] + [math.cos(p * r) for r in rates]
        assert found[p].tolist() == pytest.approx(wanted, abs=1e-6)
    assert positions(3, 2).tolist() == pytest.approx(
        np.array([[0, 1], [0.84147, 0.5403], [0.9093, -0.41615]]), abs=1e-4
    )


def test_padding_is_embedded_as_exact_zeros(model):
    ids = torch.tensor([[4, PAD, 7, PAD]])
    found = model.embed(ids)
    assert not found[0, [1, 3]].any() and model.embedding[PAD].any()
    torch.testing.assert_close(found[0, [0, 2]], model.embedding[[4, 7]] * math.sqrt(12))


def test_theta_0():
    model = Transformer(Shape(vocabulary=1500, layers=1, hidden=64, filter=128, heads=2))
    weights = theta_0(model, seed=1)
    assert weights["embedding"].std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert weights["embedding"].mean().item() == pytest.approx(0, abs=0.002)
    for name, weight in weights.items():
        assert weight.dtype == torch.float32 and weight.shape == model.get_parameter(name).shape
        if weight.dim() == 2 and name != "embedding":  # target_space too: U(-a, a), variance a^2 / 3
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.98 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        elif weight.dim() == 1:
            assert (weight == (1.0 if name.endswith("norm.weight") else 0.0)).all()
    matrices = [w.flatten()[:8].tolist() for w in weights.values() if w.dim() == 2]
    assert len({tuple(m) for m in matrices}) == len(matrices)  # all have their own random numbers


def test_theta_0_comes_from_the_seed_alone():
    one = theta_0(Transformer(SHAPE), 1)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    same, other = theta_0(Transformer(SHAPE), 1), theta_0(Transformer(SHAPE), 2)
    assert {name: w.numpy().tobytes() for name, w in one.items()} == {n: w.numpy().tobytes() for n, w in same.items()}
    assert not any(torch.equal(one[name], other[name]) for name in prunable(one))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sizes", "alpha"),
    [((512, 512), 0.07655), ((512, 2048), 0.04841), ((2048, 512), 0.04841), ((33_708, 512), 0.01324)],
)
def test_glorot_bound(sizes, alpha):
    assert glorot(torch.empty(sizes, device="meta")) == pytest.approx(alpha, abs=5e-6)


# Dropout ------------------------------------------------------------


def test_masks_are_shared_as_on_tpu():
    sites = dropout_sites(SHAPE, rows=4, source=16, target=14)
    assert sites["encoder.input"] == ("residual", (4, 16, 12)) and sites["decoder.input"] == ("residual", (4, 14, 12))
    for i in range(SHAPE.layers):
        assert sites[f"encoder.{i}.self.attention"] == ("attention", (16, 16))  # over batch and heads
        assert sites[f"decoder.{i}.self.attention"] == ("attention", (14, 14))
        assert sites[f"decoder.{i}.cross.attention"] == ("attention", (14, 16))
        for side in ("encoder", "decoder"):
            assert sites[f"{side}.{i}.relu"] == ("relu", (4, 1, 20))  # over the length
            for part in ("self", "filter") + (("cross",) if side == "decoder" else ()):
                assert sites[f"{side}.{i}.{part}"] == ("residual", (4, 1, 12))
    assert len(sites) == 2 + 2 * (4 + 6)


def test_every_mask_is_used():
    asked = set()

    class Noted(dict):
        def get(self, site):
            asked.add(site)
            return super().get(site)

    batch = packed([PAIRS])
    sites = dropout_sites(SHAPE, 1, 16, 14)
    drop = dropout_masks(sites, {"residual": 0.1, "attention": 0.1, "relu": 0.1}, 1, "0", 0)
    model = Transformer(SHAPE, 3)
    plain = logits(model, batch)
    logits(model, batch, Noted(drop))
    assert asked == set(sites) == set(drop)
    for site, mask in drop.items():
        assert not torch.equal(logits(model, batch, {site: mask * 0.5}), plain), site


def test_masks_are_a_function_of_seed_noise_step_and_site():
    sites = dropout_sites(SHAPE, 4, 16, 14)
    rates = {"residual": 0.5, "attention": 0.5, "relu": 0.5}
    before = torch.random.get_rng_state()
    one = dropout_masks(sites, rates, 1, "0", 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    cases = [(1, "0", 7, True), (2, "0", 7, False), (1, "0", 8, False), (17, "0", 0, False)]
    cases += [(1, "1", 7, False), (1, "0+1", 7, False)]  # a deeper ticket in the chain; another copy
    for seed, noise, step, same in cases:
        other = dropout_masks(sites, rates, seed, noise, step)
        assert all(torch.equal(one[site], other[site]) == same for site in sites)
    assert not torch.equal(one["encoder.0.self"], one["encoder.1.self"])


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_mean_of_a_mask_is_one(rate):
    [mask] = dropout_masks({"x": ("residual", (1000, 1000))}, {"residual": rate}, 1, "0", 0).values()
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    spread = math.sqrt(rate / (1 - rate)) / 1000
    assert mask.mean().item() == pytest.approx(1, abs=4 * spread)
    assert (mask == 0).float().mean().item() == pytest.approx(rate, abs=0.002)


def test_a_rate_of_zero_needs_no_mask():
    sites = dropout_sites(SHAPE, 1, 8, 8)
    found = dropout_masks(sites, {"residual": 0.0, "attention": 0.5, "relu": 0.0}, 1, "0", 0)
    assert set(found) == {site for site, (kind, _) in sites.items() if kind == "attention"}


# Loss ------------------------------------------------------------


def by_torch(values, target, smoothing):
    """T2T spreads `smoothing` over V - 1 wrong tokens, torch over all V, so torch needs smoothing * V / (V - 1)."""
    count = values.shape[-1]
    wrong = smoothing / (count - 1)
    entropy = -(1 - smoothing) * math.log(1 - smoothing) - (smoothing * math.log(wrong) if smoothing else 0)
    loss = F.cross_entropy(
        values.reshape(-1, count), target.flatten(), ignore_index=PAD, label_smoothing=smoothing * count / (count - 1)
    )
    return loss - entropy


@pytest.fixture
def states():
    """More rows than one chunk of SoftmaxLoss, a third of them padding."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(3, SoftmaxLoss.CHUNK // 2 + 5, 8, generator=generator, dtype=torch.double)
    embedding = torch.randn(11, 8, generator=generator, dtype=torch.double)
    target = torch.randint(1, 11, hidden.shape[:2], generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.33] = PAD
    return hidden, embedding, target


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_loss_and_gradients_match_torch(states, smoothing):
    hidden, embedding, target = states
    sides = [[t.clone().requires_grad_() for t in (hidden, embedding)] for _ in range(3)]
    losses = [
        by_torch(sides[0][0] @ sides[0][1].t(), target, smoothing),
        smoothed_cross_entropy(sides[1][0] @ sides[1][1].t(), target, smoothing),
        SoftmaxLoss.apply(*sides[2], target, smoothing, torch.float64),
    ]
    for loss, side in zip(losses, sides, strict=True):
        (3 * loss).backward()  # a gradient other than 1 from above
        assert loss.item() == pytest.approx(losses[0].item(), rel=1e-12)
        for found, wanted in zip(side, sides[0], strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-10, atol=1e-14)


def test_gradients_match_finite_differences(states):
    embedding, target = states[1], states[2][:1, :7]
    hidden = states[0][:1, :7].clone().requires_grad_()
    SoftmaxLoss.apply(hidden, embedding, target, 0.1, torch.float64).backward()
    for i in (0, 3, 6):
        for unit in (0, 5):
            step = torch.zeros_like(hidden)
            step[0, i, unit] = 1e-5
            up, down = (by_torch((hidden.detach() + s * step) @ embedding.t(), target, 0.1).item() for s in (1, -1))
            assert hidden.grad[0, i, unit].item() == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-7)


def test_the_loss_of_a_perfect_prediction_is_zero():
    goal = torch.full((1, 11), 0.1 / 10, dtype=torch.double)
    goal[0, 4] = 0.9
    assert smoothed_cross_entropy(goal.log(), torch.tensor([4]), 0.1).item() == pytest.approx(0, abs=1e-6)


def test_padding_does_not_affect_the_loss(states):
    hidden, embedding, target = states
    other = hidden.clone()
    other[target == PAD] = 100.0
    a, b = (SoftmaxLoss.apply(h, embedding, target, 0.1, torch.float64).item() for h in (hidden, other))
    assert a == b
