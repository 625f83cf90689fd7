"""Encoder and decoder for translation alone, on a CPU: `decoding.translate` takes an `Engine` in place of a model.

It computes what `transformer.Transformer` computes, in fp32, but keeps activations feature-major: [features, columns],
one column per source position or hypothesis. That is the layout in which a sparse matrix multiplies quickly. Three more
differences from the training code save time, for dense matrices too:

- matrices with the same input are one product (query, key and value);
- the hypotheses of a sentence are queries of one attention, which holds the encoder's keys and values once;
- the decoder's keys and values of every hypothesis stay where they were written, and a bias hides those of other
  hypotheses, so nothing is copied when hypotheses change places.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from slt_lib.sparse.kernel import (
    LANES,
    SparseMatrix,
    attention,
    by_rows,
    empty,
    kernels,
    largest_and_logsumexp,
    normalize,
    rounded_up,
)
from slt_lib.transformer import MINUS_INFINITY, PAD, Shape, positions

Norm = tuple[Tensor, Tensor]  # weight and shift of a layer norm
Product = Callable[..., Callable[[Tensor], Tensor]]  # of a matrix and a bias, such as `DenseMatrix`
DENSE_FROM = 0.4  # share of nonzero weights from which a dense product is faster, as measured: see docs/speed.md


class DenseMatrix:
    """A matrix [rows, columns]; `matrix(x)` is matrix @ x + bias."""

    def __init__(self, matrix: Tensor, bias: Tensor | None = None):
        self.matrix, self.bias = matrix.contiguous(), None if bias is None else bias[:, None].contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        y = empty(len(self.matrix), x.shape[1])
        return torch.mm(self.matrix, x, out=y) if self.bias is None else torch.addmm(self.bias, self.matrix, x, out=y)


def choose(matrix: Tensor, bias: Tensor | None = None) -> DenseMatrix | SparseMatrix:
    """The faster product for this matrix: sparse below `DENSE_FROM` nonzero weights."""
    dense = matrix.count_nonzero() >= DENSE_FROM * matrix.numel()
    return (DenseMatrix if dense else SparseMatrix)(matrix, bias)


class Attention:
    """Multi-head attention without the heads that add nothing: those without value or output weights."""

    def __init__(
        self, weights: Mapping[str, Tensor], heads: int, norm: Norm, memory_norm: Norm | None, product: Product
    ):
        size = len(weights["query"]) // heads
        by_head = {name: weight.view(heads, size, -1) for name, weight in weights.items() if name != "output"}
        by_head["output"] = weights["output"].t().reshape(heads, size, -1)
        live = [bool(by_head["value"][i].any() and by_head["output"][i].any()) for i in range(heads)]
        query, key, value, output = (by_head[name][live].flatten(0, 1) for name in ("query", "key", "value", "output"))
        query = query * size**-0.5
        self.heads, self.size = sum(live), size
        self.inputs = product(*after_norm(query if memory_norm else torch.cat([query, key, value]), norm))
        self.memory = product(*after_norm(torch.cat([key, value]), memory_norm)) if memory_norm else None
        self.output = product(output.t())

    def stored(self, both: Tensor, sentences: int) -> tuple[Tensor, Tensor]:
        """Keys and values [2 * features, sentences * columns] as `kernel.attention` reads them."""
        keys, values = both.view(2, self.heads, self.size, sentences, -1).permute(0, 3, 1, 2, 4)
        keys = _rounded_up(keys).unflatten(-1, (-1, LANES)).transpose(2, 3).contiguous()
        return keys, _rounded_up(_rounded_up(values).mT)

    def attend(
        self, x: Tensor, rows: Tensor, store: tuple[Tensor, Tensor], bias: Tensor, used: int, add: bool = False
    ) -> Tensor:
        """The sublayer's output [features, columns]; see `kernel.attention`.

        x: the queries, by row; if `add`, followed by keys and values that are added to the store.
        """
        queries, both = x[: self.heads * self.size], x[self.heads * self.size :]
        queries = queries.view(self.heads, self.size, len(rows), -1)
        y = attention(queries, rows, store, bias, used, both if add else None)
        return self.output(y.flatten(0, 1).flatten(1))


class Layer:
    """A layer of the encoder, or of the decoder if `memory_norm`, the encoder's final norm, is given."""

    def __init__(self, weights: Mapping[str, Tensor], heads: int, memory_norm: Norm | None, product: Product):
        own = inside(weights, "self_attention")
        self.self_attention = Attention(own, heads, norm_of(weights, "self"), None, product)
        if memory_norm:
            cross = inside(weights, "cross_attention")
            self.cross_attention = Attention(cross, heads, norm_of(weights, "cross"), memory_norm, product)
        inner, bias, outer, outer_bias = _without_dead_units(inside(weights, "feed_forward"))
        self.inner = product(*after_norm(inner, norm_of(weights, "filter"), bias))
        self.outer = product(outer, outer_bias)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(normalize(x)).relu_())


class Engine:
    """A model for `decoding.translate`. `weights`: as in `Transformer`; `product(matrix, bias)` makes each product."""

    single_threaded = True  # its kernels are, so `translate` runs one batch per process

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor], product: Product = choose):
        kernels()  # compiled once, before `translate` copies this process
        weights = {name: weight.detach().float().cpu() for name, weight in weights.items()}
        self.shape, self.weights = shape, weights
        self.encoder, self.decoder = (
            [Layer(inside(weights, f"{side}.{i}"), shape.heads, norm, product) for i in range(shape.layers)]
            for side, norm in (("encoder", None), ("decoder", norm_of(weights, "encoder")))
        )
        self.embedding = weights["embedding"] * shape.hidden**0.5
        self.embedding[PAD] = 0
        self.logits = product(*after_norm(weights["embedding"], norm_of(weights, "decoder")))
        self.positions = positions(1024, shape.hidden)

    def parameters(self) -> Iterator[Tensor]:
        """The weights, as `nn.Module.parameters` yields them."""
        return iter(self.weights.values())

    def encode(self, source: Tensor) -> Tensor:
        """Memory [hidden, B * S] of padded sentences `source` [B, S]."""
        sentences, length = source.shape
        self._reach(length)
        padding, rows = _padding_bias(source), torch.arange(sentences, dtype=torch.int32)
        x = self.embedding[source] + (self.weights["target_space"][0] + self.positions[:length])
        x = by_rows(x.view(-1, self.shape.hidden).t())
        for layer in self.encoder:
            if (own := layer.self_attention).heads:
                inputs = own.inputs(normalize(x))
                store = own.stored(inputs[own.heads * own.size :], sentences)
                x += own.attend(inputs, rows, store, padding, length)
            x += layer.feed_forward(x)
        return normalize(x)

    def start(self, memory: Tensor, source: Tensor) -> "Cache":
        """The cache of a decoding."""
        return Cache(self, memory, source)

    def step(self, previous: Tensor, position: int, cache: "Cache") -> Tensor:
        """Logits [B * width, V] after the ids `previous` [B * width]; PAD at position 0."""
        self._reach(position + 1)
        x = by_rows((self.embedding[previous] + self.positions[position]).t())
        cache.extend(len(previous))
        for i, layer in enumerate(self.decoder):
            if (own := layer.self_attention).heads:
                inputs = own.inputs(normalize(x))
                x += own.attend(inputs, cache.rows, cache.slots[i], cache.ancestors, cache.used, add=True)
            if (cross := layer.cross_attention).heads:
                queries = cross.inputs(normalize(x))
                x += cross.attend(queries, cache.rows, cache.memory[i], cache.padding, cache.length)
            x += layer.feed_forward(x)
        return self.logits(normalize(x)).t()

    def best(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """`decoding.best_of` for logits that lie feature-major."""
        values, places, total = largest_and_logsumexp(logits.t(), count)
        return values, places, total[:, None]

    def _reach(self, length: int) -> None:
        if length > len(self.positions):
            self.positions = positions(2 * length, self.shape.hidden)


class Cache:
    """Keys and values of a decoding: those of the encoder per sentence, those of the decoder per slot of a sentence.

    A slot is one hypothesis at one position. `ancestors` [B, width, slots] is 0 where a slot is of the hypothesis
    itself, and -inf at those of other hypotheses and at free slots. A sentence that is done leaves only `rows`.
    """

    def __init__(self, engine: Engine, memory: Tensor, source: Tensor):
        self.sentences, self.length = source.shape
        self.width, self.used = 1, 0
        self.padding, self.rows = _padding_bias(source), torch.arange(self.sentences, dtype=torch.int32)
        crosses = [layer.cross_attention for layer in engine.decoder]
        self.memory = [cross.heads and cross.stored(cross.memory(memory), self.sentences) for cross in crosses]
        owns = [layer.self_attention for layer in engine.decoder]
        shapes = [(self.sentences, own.heads, own.size, rounded_up(own.size)) for own in owns]
        self.slots = [(torch.empty(b, h, 0, d, LANES), torch.empty(b, h, 0, wide)) for b, h, d, wide in shapes]
        self.ancestors = torch.empty(self.sentences, 1, 0)

    def extend(self, rows: int) -> None:
        """Take one more slot for each of `rows` hypotheses."""
        self.width = rows // self.sentences
        first, self.used = self.used, self.used + self.width
        if self.used > (slots := self.ancestors.shape[-1]):
            more = rounded_up(max(slots, self.length * self.width))
            self.ancestors = F.pad(self.ancestors, (0, more), value=-torch.inf)
            self.slots = [(_longer(keys, more // LANES), _longer(values, more)) for keys, values in self.slots]
        self.ancestors[:, :, first : self.used].diagonal(dim1=1, dim2=2).zero_()

    def select(self, own: Tensor) -> None:
        """Continue with the hypotheses `own`, row numbers of the last step, in the order of their sentences."""
        sentences = (own // self.width).unique_consecutive()
        if len(sentences) < self.sentences:
            self.padding, self.rows = self.padding[sentences], self.rows[sentences]
        width = len(own) // max(1, len(sentences))  # none is left after the last
        self.ancestors = self.ancestors.flatten(0, 1)[own].unflatten(0, (len(sentences), width))
        self.sentences = len(sentences)


def norm_of(weights: Mapping[str, Tensor], part: str) -> Norm:
    """Weight and shift of a layer norm."""
    return weights[f"{part}_norm.weight"], weights[f"{part}_norm.bias"]


def after_norm(matrix: Tensor, norm: Norm, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Matrix and bias of matrix @ (weight * x + shift) + bias, where `norm` is (weight, shift)."""
    weight, shift = norm
    return matrix * weight, matrix @ shift + bias


def _rounded_up(x: Tensor) -> Tensor:
    """`x` with zeros after the columns of its last axis, up to a multiple of LANES."""
    return F.pad(x, (0, rounded_up(x.shape[-1]) - x.shape[-1])).contiguous()


def _longer(x: Tensor, more: int) -> Tensor:
    """`x` with `more` entries on its third axis, whose content is undefined: memory that is not used is not touched."""
    longer = x.new_empty(*x.shape[:2], x.shape[2] + more, *x.shape[3:])
    longer[:, :, : x.shape[2]] = x
    return longer


def _padding_bias(source: Tensor) -> Tensor:
    """[B, 1, S rounded up]: 0 at words, -1e9 at padding."""
    return _rounded_up(source).eq(PAD).mul(MINUS_INFINITY)[:, None]


def inside(weights: Mapping, part: str) -> dict:
    """The weights of a part of the model, by their names inside it."""
    return {name.removeprefix(f"{part}."): weight for name, weight in weights.items() if name.startswith(f"{part}.")}


def _without_dead_units(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inner matrix and bias, outer matrix and bias, without units that have no input or no output weight.

    A unit without input is constant: what it adds goes to the outer bias.
    """
    inner, bias, outer = weights["inner"], weights["inner_bias"], weights["outer"]
    has_input = (inner != 0).any(dim=1)
    constant = outer[:, ~has_input] @ bias[~has_input].relu()
    live = has_input & (outer != 0).any(dim=0)
    return inner[live], bias[live], outer[:, live], weights["outer_bias"] + constant
