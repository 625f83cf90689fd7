"""Importance of the heads and units of trained weights, measured on a part of the training text."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slt_lib.analysis import importance
from slt_lib.base.devices import device

Opened = Any  # `slt_lib.study.opening.Opened`, whose module imports this one
SENTENCES = 512  # the first pairs of the training text


def measured(study: Opened, weights: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Head -> score, and feed-forward layer -> score of each of its units (`analysis.importance`).

    The scores are computed on training text, so that dev is left for choices and the test sets for judgements.
    """
    model, data = study.model(), study.data
    model.load_state_dict(weights)
    count = min(SENTENCES, len(data.source))
    sides = [[side[i].tolist() for i in range(count)] for side in (data.source, data.target)]
    with study.threads():
        found = importance.normalized(importance.raw(model.to(device()).eval(), *sides))
    heads = {
        f"{name}.{i}": float(score)
        for name, scores in found.items()
        if name.endswith("attention")
        for i, score in enumerate(scores)
    }
    return heads, {name: scores.tolist() for name, scores in found.items() if name.endswith("feed_forward")}
