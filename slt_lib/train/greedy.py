"""Greedy translation by many models at once, whose weights are stacked along a leading axis."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slt_lib.evaluation import decoding
from slt_lib.transformer import Transformer


class _Method(nn.Module):
    """A model whose methods `functional_call` can call."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


@torch.no_grad()
def translate_all(
    model: Transformer,
    stacked: Mapping[str, Tensor],
    sources: Sequence[Sequence[int]],
    extra: int,
    rows: int,
    standing: Sequence[int],
) -> list[list[list[int]] | None]:
    """Greedy translations by each model in `standing`, as `decoding.translate` gives them; None if its logits hold NaN.

    `stacked`: weights of `model` by name, [models, *shape]. `rows` sentences are decoded at once, the same by all
    models; a sentence leaves the batch when all models have ended it. `standing` are numbers of models; the result of
    the others is None.
    """
    count, where = len(stacked["embedding"]), stacked["embedding"].device
    answers = [[] for _ in range(count * len(sources))]
    lost = torch.ones(count, dtype=torch.bool, device=where)
    lost[list(standing)] = False
    weights = {f"model.{name}": leaf.detach() for name, leaf in stacked.items()}
    order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        numbers = torch.arange(count)[:, None] * len(sources) + torch.tensor(chosen)
        _greedy(_Method(model), weights, [sources[index] for index in chosen], numbers.to(where), extra, answers, lost)
    by_model = [answers[i * len(sources) : (i + 1) * len(sources)] for i in range(count)]
    return [None if gone else found for gone, found in zip(lost.tolist(), by_model, strict=True)]


def _greedy(model: _Method, weights, sources, numbers: Tensor, extra: int, answers: list, lost: Tensor) -> None:
    """Translate one batch. `numbers` [models, sentences]: the places of its translations in `answers`.

    Marks a model whose logits hold NaN in `lost` [models].
    """
    longest = max(len(ids) for ids in sources)
    padded = [[*ids, *[decoding.PAD] * (longest - len(ids))] for ids in sources]
    source = torch.tensor(padded, device=numbers.device)
    limits = torch.tensor([len(ids) + extra for ids in sources], device=numbers.device)

    def begin(weights):
        memory = functional_call(model, weights, ("encode", source))
        return functional_call(model, weights, ("start", memory, source))

    def advance(weights, previous, cache):
        cache = dict(cache)
        return functional_call(model, weights, ("step", previous, tokens.shape[2], cache)), cache

    cache = torch.vmap(begin)(weights)
    previous = torch.full_like(numbers, decoding.PAD)
    tokens = numbers.new_empty(*numbers.shape, 0)
    done = lost[:, None].expand_as(numbers).clone()
    while numbers.shape[1]:
        logits, cache = torch.vmap(advance)(weights, previous, cache)
        values, previous = logits.max(dim=2)
        lost |= values.isnan().any(1)
        tokens = torch.cat([tokens, previous.masked_fill(done, decoding.EOS)[:, :, None]], dim=2)
        done |= (previous == decoding.EOS) | (tokens.shape[2] >= limits) | lost[:, None]
        ended = done.all(0)
        if decoding._worth_dropping(ended):
            decoding._record(answers, numbers[:, ended].flatten(), tokens[:, ended].flatten(0, 1))
            stay = (~ended).nonzero()[:, 0]
            numbers, done, previous, tokens = (x.index_select(1, stay) for x in (numbers, done, previous, tokens))
            limits = limits[stay]
            cache = {name: value.index_select(1, stay) for name, value in cache.items()}
