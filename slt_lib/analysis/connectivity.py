"""Linear mode connectivity: is there a barrier between two models that were trained from one start?

Source: Frankle et al. (2020), "Linear mode connectivity and the lottery ticket hypothesis", section 2. A start is
stable to SGD noise if two trainings that differ in noise alone end in minima with no barrier between them.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from slt_lib.transformer import PAD, Batch, Transformer, smoothed_cross_entropy

SENTENCES = 64  # per batch; no result depends on it beyond float error


def between(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * one + share * other, for each tensor."""
    return {name: torch.lerp(weight, other[name], share) for name, weight in one.items()}


@torch.no_grad()
def loss(model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> float:
    """Cross-entropy in nats per target token, without label smoothing or dropout; sentences as ids that end in EOS."""
    total, tokens = 0.0, 0
    for batch in batches(sources, targets):
        hidden = model(Batch(*(side.to(model.embedding.device) for side in batch)))
        target = batch.target.to(hidden.device)
        total += float(smoothed_cross_entropy(model.logits(hidden), target, 0.0)) * batch.tokens
        tokens += batch.tokens
    return total / tokens


def batches(sources, targets) -> Iterator[Batch]:
    """One pair per row, padded; pairs of about the same length together."""
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
        yield Batch(*sides, shifted)
