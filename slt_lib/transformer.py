"""The Transformer of the paper: Tensor2Tensor's transformer_base_v3 with its TPU settings, at any size.

Pre-norm, one embedding shared by source, target and softmax, separate q/k/v/o without biases, sin|cos positions,
dropout masks shared as on TPU, a zero vector as the decoder's start (FACTS.md section 1). The forward pass draws no
random numbers: it is a pure function of weights, batch and dropout masks.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_lib.base.products import linear, matmul, product
from slt_lib.base.seeds import stream

PAD, EOS, UNKNOWN = 0, 1, 2
MINUS_INFINITY = -1e9  # finite, so that a row that is all padding does not give NaN
TARGET_SPACES = 32
norm = functools.partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `layers` counts encoder and decoder layers each."""

    vocabulary: int
    layers: int = 6
    hidden: int = 512
    filter: int = 2048
    heads: int = 8

    def __post_init__(self):
        if self.hidden % self.heads or self.hidden % 2:
            raise ValueError(f"hidden size {self.hidden} must be even and a multiple of heads {self.heads}")


class Batch(NamedTuple):
    """LongTensors [rows, length]: ids, the segment of each id in its row (0 = padding) and its position there.

    `shifted` is the decoder's input: the id before, and PAD (a zero vector) at the start of each segment.
    """

    source: Tensor
    source_segment: Tensor
    source_position: Tensor
    target: Tensor
    target_segment: Tensor
    target_position: Tensor
    shifted: Tensor

    @property
    def tokens(self) -> int:
        """Target tokens without padding."""
        return int((self.target != PAD).sum())


class Attention(nn.Module):
    """Multi-head attention without biases. A head has its rows of query, key and value and its columns of output."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Parameter(torch.empty(hidden, hidden)))

    def split(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, L, hidden] -> [B, heads, L, hidden / heads]."""
        y = linear(x, weight)
        return y.view(*y.shape[:-1], self.heads, -1).transpose(-2, -3)

    def keys(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, split by heads."""
        return self.split(memory, self.key), self.split(memory, self.value)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, drop: Tensor | None) -> Tensor:
        """The sublayer's output [B, L, hidden] for x [B, L, hidden].

        key, value: [B, heads, K, hidden / heads], see `keys`. bias: added to the scores, broadcast to [B, heads, L, K].
        drop: dropout mask [L, K].
        """
        weights = scaled(self.weights(x, key, bias), drop)
        return self.merge(matmul(weights.to(value.dtype), value))

    def weights(self, x: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of each head [B, heads, L, keys]; each row sums to 1."""
        query = self.split(x, self.query) * (key.shape[-1] ** -0.5)
        scores = matmul(query, key.transpose(-1, -2))
        return (scores if bias is None else scores + bias).softmax(-1)

    def merge(self, y: Tensor) -> Tensor:
        """The sublayer's output [B, L, hidden] from the outputs of the heads, [B, heads, L, hidden / heads]."""
        return linear(y.transpose(-2, -3).flatten(-2), self.output)


class FeedForward(nn.Module):
    """Two matrices with biases and a ReLU between: [B, L, hidden] -> [B, L, hidden].

    The dropout mask after the ReLU, `drop`, is [B, 1, inner].
    """

    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.inner = nn.Parameter(torch.empty(inner, hidden))
        self.inner_bias = nn.Parameter(torch.empty(inner))
        self.outer = nn.Parameter(torch.empty(hidden, inner))
        self.outer_bias = nn.Parameter(torch.empty(hidden))

    def forward(self, x: Tensor, drop: Tensor | None) -> Tensor:
        y = F.relu(linear(x, self.inner, self.inner_bias))
        return self.merge(scaled(y, None if drop is None else drop.to(y.dtype)))

    def merge(self, y: Tensor) -> Tensor:
        """The sublayer's output [B, L, hidden] from the outputs of its units, [B, L, inner]."""
        return linear(y, self.outer, self.outer_bias)


class Layer(nn.Module):
    """One pre-norm layer: norm, sublayer, dropout, add. `cross` adds the decoder's attention to the encoder.

    `site`: the beginning of the names of its dropout masks and cached keys, such as "decoder.0".
    """

    def __init__(self, shape: Shape, site: str, cross: bool):
        super().__init__()
        self.site, sizes = site, (shape.hidden, shape.heads)
        self.self_norm, self.self_attention = norm(shape.hidden), Attention(*sizes)
        if cross:
            self.cross_norm, self.cross_attention = norm(shape.hidden), Attention(*sizes)
        self.filter_norm, self.feed_forward = norm(shape.hidden), FeedForward(shape.hidden, shape.filter)

    def forward(self, x, bias, drop, cross=None, cross_bias=None, cache=None):
        """x [B, L, hidden] -> [B, L, hidden].

        `bias`, `cross_bias`: see `Attention.forward`. `drop`: site -> dropout mask. `cross`: keys and values of the
        encoder, [B, heads, S, hidden / heads] each. `cache`: name -> keys or values of earlier positions, also by head,
        [B, heads, positions, hidden / heads]; those of x are appended to them.
        """
        y = self.self_norm(x)
        keys = self.self_attention.keys(y)
        if cache is not None:
            names = f"self_k.{self.site}", f"self_v.{self.site}"
            cache |= {name: torch.cat([cache[name], new], dim=2) for name, new in zip(names, keys, strict=True)}
            keys = [cache[name] for name in names]
        y = self.self_attention(y, *keys, bias, drop.get(f"{self.site}.self.attention"))
        x = add(x, y, drop.get(f"{self.site}.self"))
        if cross is not None:
            y = self.cross_attention(self.cross_norm(x), *cross, cross_bias, drop.get(f"{self.site}.cross.attention"))
            x = add(x, y, drop.get(f"{self.site}.cross"))
        y = self.feed_forward(self.filter_norm(x), drop.get(f"{self.site}.relu"))
        return add(x, y, drop.get(f"{self.site}.filter"))


def add(x: Tensor, y: Tensor, drop: Tensor | None) -> Tensor:
    return x + y if drop is None else torch.addcmul(x, y.to(x.dtype), drop)


def scaled(x: Tensor, drop: Tensor | None) -> Tensor:
    return x if drop is None else x * drop


class Transformer(nn.Module):
    """A model of the sizes `shape` with theta_0 of `seed`; None leaves the weights uninitialised.

    `length`: of its first table of positions. It is no limit: the table grows with the sentences.
    """

    def __init__(self, shape: Shape, seed: int | None = None, length: int = 1024):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocabulary, shape.hidden))
        self.target_space = nn.Parameter(torch.empty(TARGET_SPACES, shape.hidden))
        self.encoder = nn.ModuleList(Layer(shape, f"encoder.{i}", cross=False) for i in range(shape.layers))
        self.encoder_norm = norm(shape.hidden)
        self.decoder = nn.ModuleList(Layer(shape, f"decoder.{i}", cross=True) for i in range(shape.layers))
        self.decoder_norm = norm(shape.hidden)
        self.register_buffer("positions", positions(length, shape.hidden), persistent=False)
        if seed is not None:
            self.load_state_dict(theta_0(self, seed))

    def forward(self, batch: Batch, drop: Mapping[str, Tensor] | None = None) -> Tensor:
        """Decoder output [rows, target length, hidden], before the softmax matrix. `drop`: see `dropout_sites`."""
        drop = drop or {}
        length = batch.target.shape[-1]
        self._reach(max(batch.source.shape[-1], length))
        memory = self._encode(batch.source, batch.source_segment, batch.source_position, drop)
        causal = torch.full((length, length), MINUS_INFINITY, device=memory.device).triu(1)
        self_bias = segment_bias(batch.target_segment, batch.target_segment) + causal
        cross_bias = segment_bias(batch.target_segment, batch.source_segment)
        x = scaled(self.embed(batch.shifted) + self.positions[batch.target_position], drop.get("decoder.input"))
        for layer in self.decoder:
            x = layer(x, self_bias, drop, layer.cross_attention.keys(memory), cross_bias)
        return self.decoder_norm(x)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the shared matrix times sqrt(hidden); padding is exactly zero."""
        x = F.embedding(ids, self.embedding) * self.shape.hidden**0.5
        return x * (ids != PAD).unsqueeze(-1)

    def logits(self, x: Tensor) -> Tensor:
        return linear(x, self.embedding)

    def _encode(self, source: Tensor, segment: Tensor, position: Tensor, drop: Mapping[str, Tensor]) -> Tensor:
        bias = segment_bias(segment, segment)
        x = self.embed(source) + self.target_space[0] + self.positions[position]
        x = scaled(x, drop.get("encoder.input"))
        for layer in self.encoder:
            x = layer(x, bias, drop)
        return self.encoder_norm(x)

    def encode(self, source: Tensor) -> Tensor:
        """Memory [B, S, hidden] of padded sentences `source` [B, S]."""
        self._reach(source.shape[1])
        position = torch.arange(source.shape[1], device=source.device).expand_as(source)
        return self._encode(source, (source != PAD).long(), position, {})

    def _reach(self, length: int) -> None:
        if length > len(self.positions):  # a longer sentence than any before
            self.positions = positions(2 * length, self.shape.hidden).to(self.positions.device)

    def start(self, memory: Tensor, source: Tensor) -> dict[str, Tensor]:
        """The cache of a decoding: cross keys and values, the bias of padding, and empty self keys and values."""
        cache = {"cross_bias": ((source == PAD) * MINUS_INFINITY)[:, None, None, :].to(memory.dtype)}
        for layer in self.decoder:
            keys = layer.cross_attention.keys(memory)
            for side, tensor in zip("kv", keys, strict=True):
                cache |= {f"cross_{side}.{layer.site}": tensor, f"self_{side}.{layer.site}": tensor[:, :, :0]}
        return cache

    def step(self, previous: Tensor, position: int, cache: dict[str, Tensor]) -> Tensor:
        """Logits [B, V] in fp32 after the ids `previous` [B] (PAD at position 0); the cache grows in place."""
        self._reach(position + 1)
        x = (self.embed(previous) + self.positions[position]).unsqueeze(1)
        for layer in self.decoder:
            cross = cache[f"cross_k.{layer.site}"], cache[f"cross_v.{layer.site}"]
            x = layer(x, None, {}, cross, cache["cross_bias"], cache)
        return self.logits(self.decoder_norm(x)).squeeze(1).float()


def segment_bias(query: Tensor, key: Tensor) -> Tensor:
    """[R, 1, Q, K]: 0 where query and key are in the same segment, -1e9 elsewhere."""
    return (query.unsqueeze(-1) != key.unsqueeze(-2)).unsqueeze(-3) * MINUS_INFINITY


def positions(length: int, hidden: int) -> Tensor:
    """[length, hidden]: sines beside cosines, not interleaved; timescales 1 to 10^4 (get_timing_signal_1d)."""
    count = hidden // 2
    rates = np.exp(np.arange(count) * -(math.log(1e4) / max(count - 1, 1)))
    angles = np.arange(length)[:, None] * rates[None, :]
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


def prunable(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices that the paper prunes: embedding, attention and filter kernels; no bias, norm or target space."""
    return {name: w for name, w in named.items() if w.dim() == 2 and name not in ("target_space", "positions")}


def glorot(weight: Tensor) -> float:
    """Bound of T2T's kernel initialisation, and CLT's alpha: sqrt(6 / (fan_in + fan_out)).

    Source: FACTS.md section 1.
    """
    return math.sqrt(6 / sum(weight.shape))


def theta_0(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Initial weights: embedding normal(0, hidden^-0.5), kernels Glorot uniform, norms 1 and 0, biases 0.

    Source: FACTS.md section 1.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        generator, shape = stream(seed, "theta_0", name), tuple(parameter.shape)
        if name == "embedding":
            value = generator.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        elif parameter.dim() == 2:
            value = (generator.random(shape, dtype=np.float32) * 2 - 1) * np.float32(glorot(parameter))
        else:
            value = np.full(shape, 1.0 if name.endswith("norm.weight") else 0.0, dtype=np.float32)
        weights[name] = torch.from_numpy(value)
    return weights


# Dropout ------------------------------------------------------------


def dropout_sites(shape: Shape, rows: int, source: int, target: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Site -> (kind, shape of its mask), shared as on TPU: attention over batch and heads, the rest over length.

    `source`, `target`: lengths of the two sides. Kinds: "residual" (also the inputs, which share nothing), "attention",
    "relu".
    """
    sites = {
        "encoder.input": ("residual", (rows, source, shape.hidden)),
        "decoder.input": ("residual", (rows, target, shape.hidden)),
    }
    for side, length in (("encoder", source), ("decoder", target)):
        for i in range(shape.layers):
            parts = {"self": length} | ({"cross": source} if side == "decoder" else {})
            for part, keys in parts.items():
                sites[f"{side}.{i}.{part}.attention"] = ("attention", (length, keys))
                sites[f"{side}.{i}.{part}"] = ("residual", (rows, 1, shape.hidden))
            sites[f"{side}.{i}.relu"] = ("relu", (rows, 1, shape.filter))
            sites[f"{side}.{i}.filter"] = ("residual", (rows, 1, shape.hidden))
    return sites


def dropout_masks(sites, rates: Mapping[str, float], seed: int, noise: str, step: int) -> dict[str, Tensor]:
    """Masks for one step, 0 or 1 / (1 - rate): a pure function of (seed, noise, step, site).

    `noise`: see `train.step.noise_of`. Kinds with rate 0 have no mask.
    """
    kept = dropout_kept(sites, rates, seed, noise, step)
    return {site: values * (1 / (1 - rates[sites[site][0]])) for site, values in kept.items()}


def dropout_kept(sites, rates: Mapping[str, float], seed: int, noise: str, step: int) -> dict[str, Tensor]:
    """BoolTensors: True where `dropout_masks` is not 0."""
    wanted = {site: (rates[kind], shape) for site, (kind, shape) in sites.items() if rates[kind] > 0}
    counts = [math.prod(shape) for _, shape in wanted.values()]
    bits = stream(seed, "dropout", noise, step).integers(0, 1 << 16, size=sum(counts), dtype=np.uint16)
    drawn = torch.from_numpy(bits.view(np.int16)).split(counts)
    return {
        site: (values >= round(rate * (1 << 16)) - (1 << 15)).view(shape)
        for (site, (rate, shape)), values in zip(wanted.items(), drawn, strict=True)
    }


# Loss ------------------------------------------------------------


def smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy of the non-pad targets with label smoothing, minus the entropy of the smoothed target.

    `smoothing` is spread over the V - 1 wrong tokens. `logits` [..., V], `target` [...] LongTensor. Returns a scalar, 0
    for a perfect prediction. Source: T2T's smoothing_cross_entropy and padded_cross_entropy (FACTS.md section 1).
    """
    wrong, entropy = _goal(logits.shape[-1], smoothing)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    right = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    loss = logits.logsumexp(-1) - (1 - smoothing - wrong) * right - wrong * logits.sum(-1) - entropy
    real = target != PAD
    return torch.where(real, loss, torch.zeros_like(loss)).sum() / real.sum()


def _goal(vocabulary: int, smoothing: float) -> tuple[float, float]:
    """Probability of each wrong token in the smoothed target, and the entropy of that target."""
    wrong = smoothing / (vocabulary - 1)
    entropy = -sum(p * math.log(p) * n for p, n in ((1 - smoothing, 1), (wrong, vocabulary - 1)) if p > 0)
    return wrong, entropy


class SoftmaxLoss(torch.autograd.Function):
    """`smoothed_cross_entropy` of hidden @ embedding^T, in chunks of rows; the forward pass computes the gradients too.

    The logits of a whole batch are never in memory, and each chunk is used while it is still in the cache.
    """

    CHUNK = 512

    @staticmethod
    def forward(ctx, hidden: Tensor, embedding: Tensor, target: Tensor, smoothing: float, dtype, count=None) -> Tensor:
        """A scalar. hidden [..., H], embedding [V, H], target [...] LongTensor; `dtype`: of the products.

        `count`: the number of target tokens in the whole batch, if `hidden` is a part of it.
        """
        states, ids = hidden.reshape(-1, hidden.shape[-1]).to(dtype), target.reshape(-1)
        matrix = embedding.to(dtype)
        wrong, entropy = _goal(len(matrix), smoothing)
        real = ids != PAD
        count = int(real.sum()) if count is None else count
        exact = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        column_sum = matrix.to(exact).sum(0)  # summed logits are states @ column_sum: no pass over the logits
        d_states = torch.empty_like(states)
        d_matrix = torch.zeros_like(embedding)
        for start in range(0, len(ids), SoftmaxLoss.CHUNK):
            part = slice(start, start + SoftmaxLoss.CHUNK)
            keep, gold = real[part].to(exact), ids[part].unsqueeze(-1)
            logits = product(states[part], matrix).to(exact)
            right, summed = logits.gather(-1, gold).squeeze(-1), states[part].to(exact) @ column_sum
            largest = logits.amax(-1, keepdim=True)
            powers = logits.sub_(largest).exp_()
            norm = powers.sum(-1, keepdim=True)
            loss = (norm.log() + largest).squeeze(-1) - (1 - smoothing - wrong) * right - wrong * summed - entropy
            total += (loss * keep).sum()
            scale = (keep / count).unsqueeze(-1)
            gradient = powers.mul_(scale / norm).sub_(wrong * scale)
            gradient = gradient.scatter_add_(-1, gold, (smoothing + wrong - 1) * scale).to(dtype)
            d_states[part] = product(gradient, matrix.t())
            d_matrix += product(gradient.t(), states[part].t())
        ctx.save_for_backward(d_states.reshape(hidden.shape).to(hidden.dtype), d_matrix)
        return total / count

    @staticmethod
    def backward(ctx, gradient: Tensor):
        d_hidden, d_matrix = ctx.saved_tensors
        return d_hidden * gradient, d_matrix * gradient, None, None, None, None
