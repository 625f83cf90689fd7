"""Greedy translation by many models at once, whose weights are stacked along a leading axis."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from slt_lib.base import devices
from slt_lib.evaluation.decoding import EOS, PAD
from slt_lib.train.loop import DEV_BATCH
from slt_lib.transformer import Transformer

MOST_ROWS = 32768  # sentences times models decoded at once on CUDA, at most


class _Method(nn.Module):
    """A model whose methods `functional_call` can call."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


@torch.no_grad()
def translate_all(
    model: Transformer, stacked: Mapping[str, Tensor], sources: Sequence[Sequence[int]], extra: int
) -> list[list[list[int]] | None]:
    """Greedy translations by each model, as `decoding.translate` gives them; None if its logits hold NaN.

    `stacked`: weights of `model` by name, [models, *shape]. All models decode the same sentences at once; on CUDA as
    many as half of the free memory holds.
    """
    weights = {f"model.{name}": weight for name, weight in stacked.items()}
    count, where = len(stacked["embedding"]), stacked["embedding"].device
    source = pad_sequence([torch.tensor(ids) for ids in sources], batch_first=True, padding_value=PAD).to(where)
    limits = (source != PAD).sum(1) + extra
    # one column more than the longest translation: each ends in EOS
    found = torch.full((count, len(source), source.shape[1] + extra + 1), EOS, device=where)
    lost = torch.zeros(count, dtype=torch.bool, device=where)
    for numbers in limits.argsort(descending=True, stable=True).split(_rows(model, count, found.shape[2], where)):
        _greedy(_Method(model), weights, source, limits, numbers, found, lost)
    answers = [[ids[: ids.index(EOS)] for ids in sentences] for sentences in found.tolist()]
    return [None if gone else answer for gone, answer in zip(lost.tolist(), answers, strict=True)]


def _rows(model: Transformer, count: int, length: int, where: torch.device) -> int:
    """How many sentences `count` models decode at once, for translations of at most `length` ids."""
    if where.type != "cuda":
        return DEV_BATCH
    cached = 4 * model.shape.layers * model.shape.hidden * length  # keys and values of both attentions
    bytes_per_row = 4 * (3 * cached + 4 * model.shape.vocabulary)  # a grown cache is made next to the one before
    most = devices.free_memory(where) // 2 // bytes_per_row // count
    return min(max(1, most), MOST_ROWS // count + 1)


def _greedy(model: _Method, weights, source: Tensor, limits: Tensor, numbers: Tensor, found: Tensor, lost: Tensor):
    """Translate the sentences `numbers` of `source`, each up to its limit, into `found` [models, sentences, ids].

    Marks a model whose logits hold NaN in `lost` [models]. A sentence leaves the batch when all models have ended it.
    """
    source, limits = source[numbers], limits[numbers]
    source = source[:, : int((source != PAD).sum(1).max())]
    done = lost[:, None].repeat(1, len(numbers))
    previous = torch.full_like(done, PAD, dtype=torch.long)

    def begin(weights):
        memory = functional_call(model, weights, ("encode", source))
        return functional_call(model, weights, ("start", memory, source))

    def advance(weights, previous, cache):
        cache = dict(cache)
        return functional_call(model, weights, ("step", previous, position, cache)), cache

    cache = torch.vmap(begin)(weights)
    for position in range(int(limits.max())):
        logits, cache = torch.vmap(advance)(weights, previous, cache)
        values, previous = logits.max(dim=2)
        lost |= values.isnan().any(1)
        found[:, numbers, position] = previous.masked_fill(done, EOS)
        done |= (previous == EOS) | (position + 1 >= limits) | lost[:, None]
        ended = done.all(0)
        if 8 * int(ended.sum()) >= len(ended):  # a smaller batch repays the copying of the cache
            stay = (~ended).nonzero()[:, 0]
            if not len(stay):
                return
            numbers, limits, done, previous = numbers[stay], limits[stay], done[:, stay], previous[:, stay]
            cache = {name: value.index_select(1, stay) for name, value in cache.items()}
