"""Importance of attention heads and feed-forward units: how much the loss would change without them.

The score of a head is that of Michel, Levy and Neubig (2019), section 4.1, as their code for translation computes it:
|sum over features of output * dL/d output| for each sentence and position, summed and divided by the target tokens,
then divided by the L2 norm over the heads of its layer and kind of attention. L is the cross-entropy summed over the
target tokens, without label smoothing or dropout. Since nothing cancels between positions, it is finer than the score
of Prasanna, Rogers and Rumshisky (2020), who take the absolute value per batch. A unit is scored in the same way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from slt_lib.analysis.activations import batches
from slt_lib.transformer import Batch, Transformer, smoothed_cross_entropy


def raw(model: Transformer, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Sublayer -> scores [heads] or [units] per target token, not yet divided by the norm of their layer.

    `sources`, `targets`: sentences as ids that end in EOS. The model is left as it was.
    """
    merged = {name: module for name, module in model.named_modules() if name.endswith(("attention", "feed_forward"))}
    outputs, tokens = {}, 0
    totals = {name: torch.zeros((), dtype=torch.float64) for name in merged}

    def recording(name: str, module: torch.nn.Module):
        def merge(y: Tensor) -> Tensor:
            y.retain_grad()
            outputs[name] = y
            return type(module).merge(module, y)

        return merge

    try:
        for name, module in merged.items():
            module.merge = recording(name, module)
        for _, batch in batches(sources, targets):
            batch = Batch(*(side.to(model.embedding.device) for side in batch))
            hidden = model(batch)
            (smoothed_cross_entropy(model.logits(hidden), batch.target, 0.0) * batch.tokens).backward()
            tokens += batch.tokens
            for name, y in outputs.items():
                product = (y.detach() * y.grad).double().cpu()
                heads = product.dim() == 4  # [B, heads, L, features], against [B, L, units]
                totals[name] = totals[name] + (
                    product.sum(-1).abs().sum((0, 2)) if heads else product.abs().sum((0, 1))
                )
    finally:
        for module in merged.values():
            module.__dict__.pop("merge", None)
        model.zero_grad(set_to_none=True)
    return {name: total / tokens for name, total in totals.items()}
