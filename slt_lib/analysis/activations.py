"""Hidden states and attention weights of a model that reads sentences and, with teacher forcing, their translations.

Sites: "encoder.0" is the input of the first layer (embedding plus position), "encoder.2" the residual stream after the
second layer, "encoder.norm" the output after the final norm; the same for the decoder.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slt_lib.base.errors import InputError
from slt_lib.transformer import EOS, PAD, Attention, Batch, Transformer

SENTENCES = 64  # per batch; no result depends on it beyond float error
SIDES = ("encoder", "decoder")
KINDS = {"encoder": "encoder", "decoder": "decoder", "cross": "decoder"}  # kind of attention -> side of its queries


@dataclass(frozen=True)
class Trace:
    """What a model computes for one batch. A row is a word piece; EOS and padding have none.

    Attributes:
        sentence: side -> number of the sentence of each row [pieces].
        states: site -> [pieces, hidden].
        attention: (kind, layer from 1) -> weights [pieces, heads, keys], exactly 0 for keys that are not visible.
        visible: kind -> number of keys that each row sees [pieces].
    """

    sentence: dict[str, Tensor]
    states: dict[str, Tensor]
    attention: dict[tuple[str, int], Tensor]
    visible: dict[str, Tensor]


def batches(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Batch]]:
    """Numbers of the sentences, and the pairs, one per row, padded; pairs of about the same length together.

    Raises InputError if the two sides have different numbers of sentences.
    """
    if len(sources) != len(targets):
        raise InputError(f"{len(sources)} sources but {len(targets)} targets: give one translation per sentence")
    order = sorted(range(len(sources)), key=lambda i: (len(targets[i]), len(sources[i])))
    for start in range(0, len(order), SENTENCES):
        chosen = order[start : start + SENTENCES]
        sides = []
        for sentences in (sources, targets):
            rows = [torch.tensor(sentences[i]) for i in chosen]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
            sides += [ids, (ids != PAD).long(), torch.arange(ids.shape[1]).expand_as(ids)]
        target = sides[3]
        shifted = torch.cat([torch.full_like(target[:, :1], PAD), target[:, :-1]], dim=1)
        yield chosen, Batch(*sides, shifted)


@torch.no_grad()
def traces(
    model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] | None = None
) -> Iterator[Trace]:
    """One trace per batch, without dropout. Sentences are ids that end in EOS; without `targets` the encoder alone.

    The order of batches and rows depends on the sentences alone, so the traces of two models correspond row by row.
    """
    for chosen, batch in batches(sources, sources if targets is None else targets):
        batch = Batch(*(side.to(model.embedding.device) for side in batch))
        with recording(model) as (states, attention):
            model.encode(batch.source) if targets is None else model(batch)
        sides = SIDES[:1] if targets is None else SIDES
        ids = {"encoder": batch.source, "decoder": batch.target}
        rows = {side: (ids[side] != PAD) & (ids[side] != EOS) for side in SIDES}
        numbers = torch.tensor(chosen, device=batch.source.device).unsqueeze(1)
        keys = (batch.source != PAD).sum(1, keepdim=True)
        visible = {"encoder": keys.expand_as(batch.source), "decoder": batch.target_position + 1}
        visible["cross"] = keys.expand_as(batch.target)
        yield Trace(
            {side: numbers.expand_as(rows[side])[rows[side]] for side in sides},
            {site: state[rows[site.split(".")[0]]] for site, state in states.items()},
            {key: weights.transpose(1, 2)[rows[KINDS[key[0]]]] for key, weights in attention.items()},
            {kind: visible[kind][rows[KINDS[kind]]] for kind in {kind for kind, _ in attention}},
        )


@contextlib.contextmanager
def recording(model: Transformer) -> Iterator[tuple[dict, dict]]:
    """Context in which the model's calls fill two dictionaries: site -> states, (kind, layer) -> attention weights."""
    states, attention, hooks = {}, {}, []

    def keep(module, site: str) -> None:
        hooks.append(module.register_forward_hook(lambda _, inputs, output: states.__setitem__(site, output)))

    def attend(module: Attention, *place) -> None:
        def record(own: Attention, inputs: tuple, _) -> None:
            x, key, _, bias, _ = inputs
            attention[place] = own.weights(x, key, bias)

        hooks.append(module.register_forward_hook(record))

    for side in SIDES:
        layers = getattr(model, side)
        first = f"{side}.0"
        hooks.append(
            layers[0].register_forward_pre_hook(lambda _, inputs, first=first: states.__setitem__(first, inputs[0]))
        )
        for number, layer in enumerate(layers, start=1):
            keep(layer, f"{side}.{number}")
            attend(layer.self_attention, side, number)
            if side == "decoder":
                attend(layer.cross_attention, "cross", number)
        keep(getattr(model, f"{side}_norm"), f"{side}.norm")
    try:
        yield states, attention
    finally:
        for hook in hooks:
            hook.remove()


def gather(found: Iterable[Trace]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Site -> states [pieces, hidden], and side -> sentence of each piece [pieces], in the order of the sentences."""
    found = list(found)
    sentence = {side: torch.cat([trace.sentence[side] for trace in found]) for side in found[0].sentence}
    order = {side: numbers.argsort(stable=True) for side, numbers in sentence.items()}
    states = {
        site: torch.cat([trace.states[site] for trace in found])[order[site.split(".")[0]]] for site in found[0].states
    }
    return states, {side: sentence[side][order[side]] for side in sentence}
