"""Importance of the heads and units of trained weights, measured on a part of the training text."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize

from slt_lib.analysis import importance

Opened = Any  # `slt_lib.study.opening.Opened`, whose module imports this one
SENTENCES = 512  # the first pairs of the training text


def measured(study: Opened, weights: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Head -> score, and feed-forward layer -> score of each of its units (`analysis.importance`).

    The scores are computed on training text, so that dev is left for choices and the test sets for judgements. Heads
    come in the order of their scores before the norm: the last head of an attention always has 1, and of equal scores
    `parts.least_heads` takes the first.
    """
    data = study.data
    count = min(SENTENCES, len(data.source))
    sides = [[side[i].tolist() for i in range(count)] for side in (data.source, data.target)]
    with study.threads():
        raw = importance.raw(study.loaded(weights), *sides)
    found = {name: normalize(score, dim=0, eps=1e-30) for name, score in raw.items()}  # a sublayer of zeros stays
    heads = sorted(
        (float(before), f"{name}.{i}", float(score))
        for name, scores in found.items()
        if name.endswith("attention")
        for i, (before, score) in enumerate(zip(raw[name], scores, strict=True))
    )
    return {head: score for _, head, score in heads}, {
        name: scores.tolist() for name, scores in found.items() if name.endswith("feed_forward")
    }
