"""Linear mode connectivity: is there a barrier between two models that were trained from one start?

Source: Frankle et al. (2020), "Linear mode connectivity and the lottery ticket hypothesis", section 2. A start is
stable to SGD noise if two trainings that differ in noise alone end in minima with no barrier between them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slt_lib.analysis.activations import batches
from slt_lib.transformer import Batch, Transformer, smoothed_cross_entropy


def between(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * one + share * other, for each tensor."""
    return {name: torch.lerp(weight, other[name], share) for name, weight in one.items()}


@torch.no_grad()
def loss(model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> float:
    """Cross-entropy in nats per target token, without label smoothing or dropout; sentences as ids that end in EOS."""
    total, tokens = 0.0, 0
    for _, batch in batches(sources, targets):
        hidden = model(Batch(*(side.to(model.embedding.device) for side in batch)))
        target = batch.target.to(hidden.device)
        total += float(smoothed_cross_entropy(model.logits(hidden), target, 0.0)) * batch.tokens
        tokens += batch.tokens
    return total / tokens
