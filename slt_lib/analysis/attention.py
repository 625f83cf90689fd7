"""Do the attention heads of two models look at the same places? Source: Movva and Zhao (2020), section on attention.

Weights are compared row by row, over the keys that a row sees. Masked keys, which are 0 in both models, do not count:
they would raise every correlation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from slt_lib.analysis.activations import Trace
from slt_lib.base.errors import InputError

EVEN = 1e-12  # squared distance from uniform weights below which a row is uniform, but for rounding


@dataclass(frozen=True)
class Heads:
    """The heads of one layer against those of another model, means over rows.

    Attributes:
        correlation: Pearson correlation between the rows of two heads [heads, heads of the other].
        divergence: Jensen-Shannon divergence in bits, 0 to 1 [heads, heads of the other].
        entropy: of the heads in bits [heads].
    """

    correlation: Tensor
    divergence: Tensor
    entropy: Tensor

    def rows(self) -> list[dict[str, float]]:
        """One row per head: compared with the head of the same number, with the best, and with its match.

        `best_head` is the head that it correlates with most, 0 if it correlates with none. `matched_head` comes from
        the one-to-one assignment with the highest sum of correlations: heads of models from different seeds have no
        common order.
        """
        ones, others = linear_sum_assignment(self.correlation.numpy(), maximize=True)
        partner = dict(zip(ones.tolist(), others.tolist(), strict=True))
        best = self.correlation.max(1)
        return [
            {
                "head": head + 1,
                "correlation": float(self.correlation[head, head]),
                "divergence": float(self.divergence[head, head]),
                "entropy": float(self.entropy[head]),
                "best_head": int(best.indices[head]) + 1 if self.correlation[head].any() else 0,
                "best_correlation": float(best.values[head]),
                "matched_head": partner[head] + 1,
                "matched_correlation": float(self.correlation[head, partner[head]]),
                "matched_divergence": float(self.divergence[head, partner[head]]),
            }
            for head in partner
        ]


def compare(ones: Sequence[Trace], others: Sequence[Trace]) -> dict[tuple[str, int], Heads]:
    """(kind, layer) -> its heads against those of the other model, from the traces of the same sentences.

    Rows that see a single key are left out. A row that is uniform correlates with none. Raises InputError if the two
    models have other numbers of layers or heads, or the traces are of other sentences.
    """
    sums, count = {}, {}
    for one, other in zip(ones, others, strict=True):
        shapes = [{key: weights.shape for key, weights in trace.attention.items()} for trace in (one, other)]
        if shapes[0] != shapes[1]:
            raise InputError("attention: the models differ in layers, heads or sentences; compare runs of one study")
        for key, weights in one.attention.items():
            visible = one.visible[key[0]]
            seen = visible > 1
            parts = _sums(weights[seen].double(), other.attention[key][seen].double(), visible[seen].double())
            sums[key] = [a + b for a, b in zip(sums[key], parts, strict=True)] if key in sums else parts
            count[key] = count.get(key, 0) + int(seen.sum())
    return {key: Heads(*((total / count[key]).cpu() for total in totals)) for key, totals in sums.items()}


def _sums(a: Tensor, b: Tensor, visible: Tensor) -> list[Tensor]:
    """Correlation, divergence and entropy summed over rows: a, b [rows, heads, keys], `visible` [rows]."""
    # a row sums to 1, so its mean over the visible keys, which come first, is 1 / visible
    seen = torch.arange(a.shape[-1], device=a.device) < visible[:, None, None]
    x, y = ((w - 1 / visible[:, None, None]) * seen for w in (a, b))
    spread = [w.square().sum(-1) for w in (x, y)]
    spread = [torch.where(each > EVEN, each, torch.inf) for each in spread]
    scale = (spread[0][:, :, None] * spread[1][:, None, :]).sqrt()
    correlation = torch.einsum("nhk,ngk->nhg", x, y) / scale
    entropy = [torch.special.entr(w).sum(-1) / torch.log(torch.tensor(2.0)) for w in (a, b)]
    middle = torch.special.entr((a[:, :, None] + b[:, None]) / 2).sum(-1) / torch.log(torch.tensor(2.0))
    divergence = middle - (entropy[0][:, :, None] + entropy[1][:, None]) / 2
    return [correlation.sum(0), divergence.sum(0), entropy[0].sum(0)]
