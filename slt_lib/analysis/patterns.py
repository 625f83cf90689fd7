"""What attention heads look at, by rules that need no annotated data.

Source: Voita et al. (2019), "Analyzing multi-head self-attention", section 4: a head is positional if its largest
weight is at one relative position for at least 90% of the tokens, and a rare-word head if it is at the least frequent
token of the sentence for two thirds of them (theirs reach 66%); of a decoder's own sentence a token sees only the ones
before. Added: vertical, if it is at one column of the sentence for at least 90%, as in Prasanna et al. (2020). All
others are heterogeneous.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from slt_lib.analysis.activations import batches, recording
from slt_lib.transformer import PAD, Batch, Transformer

SHARES = ("confidence", "positional", "vertical", "rare")
MOST, RARE = 0.9, 2 / 3  # shares of the tokens
UNIFORM = 1e-4  # norm of a head's centred weights below which it is uniform, but for rounding


@dataclass
class Attended:
    """For each looked-at token, a row, and head: largest weight, its relative position, whether it is in the sentence's
    most attended column, and at the rarest token that the row sees. `weights`: the attention weights of the keys that a
    row sees, less their mean, one row per head.
    """

    largest: list[np.ndarray] = field(default_factory=list)
    offset: list[np.ndarray] = field(default_factory=list)
    modal: list[np.ndarray] = field(default_factory=list)
    rare: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)


@torch.no_grad()
def attended(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    source_counts: np.ndarray,
    target_counts: np.ndarray,
) -> dict[tuple[str, int], Attended]:
    """(kind of attention, layer from 1) -> what its heads look at; the model is left as it was.

    `sources`, `targets`: sentences as ids that end in EOS. `..._counts`: how often each id is in the training text. The
    last token, EOS, does not count as a query, nor does the first of a decoder's self-attention, which sees one key.
    """
    found = defaultdict(Attended)
    for _, batch in batches(sources, targets):
        with recording(model) as (_, weights):
            model(Batch(*(side.to(model.embedding.device) for side in batch)))
        for (kind, layer), values in weights.items():
            _add(found[kind, layer], kind, values.cpu().numpy(), batch, source_counts, target_counts)
    return found


def _add(found: Attended, kind: str, weights: np.ndarray, batch: Batch, source_counts, target_counts) -> None:
    """Add the sentences of a batch; `weights` [B, heads, L, keys]."""
    encoder, cross = kind == "encoder", kind == "cross"
    causal = not (encoder or cross)
    queries = (batch.source if encoder else batch.target).numpy()
    keys = (batch.source if encoder or cross else batch.shifted).numpy()
    counts = source_counts if encoder or cross else target_counts
    for i in range(len(queries)):
        length = int((queries[i] != PAD).sum())
        first = int(causal)
        rows = weights[i, :, first : length - 1, : (length if not cross else int((keys[i] != PAD).sum()))]
        if not rows.shape[1]:
            continue
        largest = rows.argmax(-1)  # [heads, queries]
        ids = keys[i, : rows.shape[2]]
        visible = np.tril(np.ones(rows.shape[1:], dtype=bool), first) | (not causal)
        real = visible & (ids != PAD)  # the decoder's start is no token
        rarity = np.where(real, counts[ids], np.iinfo(np.int64).max)
        modal = [np.bincount(columns).argmax() for columns in largest]
        found.largest.append(rows.max(-1))
        found.offset.append(largest - np.arange(first, length - 1))
        found.modal.append(largest == np.array(modal)[:, None])
        found.rare.append(largest == rarity.argmin(-1))
        found.weights.append((rows - 1 / visible.sum(-1, keepdims=True))[:, visible])


def pattern(found: Attended, head: int) -> tuple[str, Mapping[str, float]]:
    """The pattern of a head, such as "previous" or "heterogeneous", and the shares that decide it (SHARES)."""
    offsets, counts = np.unique(np.concatenate([part[head] for part in found.offset]), return_counts=True)
    shares = {
        "confidence": float(np.concatenate([part[head] for part in found.largest]).mean()),
        "positional": float(counts.max() / counts.sum()),
        "vertical": float(np.concatenate([part[head] for part in found.modal]).mean()),
        "rare": float(np.concatenate([part[head] for part in found.rare]).mean()),
    }
    if shares["positional"] >= MOST:
        return {-1: "previous", 1: "next"}.get(int(offsets[counts.argmax()]), "positional"), shares
    if shares["vertical"] >= MOST:
        return "vertical", shares
    return "rare word" if shares["rare"] >= RARE else "heterogeneous", shares


def correlations(one: Attended, other: Attended) -> np.ndarray:
    """Correlation [heads, heads] of the attention weights of two models on the same sentences.

    Pearson's over the keys that each row sees, after its mean is subtracted; 0 for a head that is uniform everywhere.
    """
    sides = [np.concatenate(side.weights, axis=1).astype(np.float64) for side in (one, other)]
    norms = [np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    x, y = (side / np.where(norm > UNIFORM, norm, np.inf) for side, norm in zip(sides, norms, strict=True))
    return x @ y.T
