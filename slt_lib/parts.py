"""Parts of a Transformer that can be removed whole: attention heads, and units of feed-forward layers.

A head is named after its attention and its place in it, such as "decoder.0.cross_attention.1". Removing it prunes its
rows of query, key and value and its columns of output. Removing a unit prunes its row of the first matrix, its entry of
that matrix's bias, and its column of the second matrix.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from slt_lib.base.errors import InputError

KINDS = ("encoder", "decoder", "cross")  # kinds of attention
Units = Mapping[str, Iterable[int]]  # feed-forward layer -> numbers of its units


def heads(layers: int, number: int) -> list[str]:
    """The names of all heads of a model with `layers` encoder and decoder layers and `number` heads in each."""
    kinds = {"encoder": ["self_attention"], "decoder": ["self_attention", "cross_attention"]}
    return [
        f"{side}.{i}.{attention}.{head}"
        for side, attentions in kinds.items()
        for attention in attentions
        for i in range(layers)
        for head in range(number)
    ]


def units(layers: int, filter: int) -> dict[str, list[int]]:
    """Name of each feed-forward layer -> numbers of its units."""
    return {f"{side}.{i}.feed_forward": list(range(filter)) for side in ("encoder", "decoder") for i in range(layers)}


def place(head: str) -> tuple[str, int, int]:
    """Kind of attention ("encoder", "decoder" or "cross"), layer and number of a head."""
    side, layer, attention, number = head.split(".")
    return "cross" if attention == "cross_attention" else side, int(layer), int(number)


def size(hidden: int, number: int, heads: int = 0, units: int = 0) -> int:
    """Number of weights in the matrices of that many heads and units; `number`: heads of an attention."""
    return 4 * hidden * (hidden // number) * heads + 2 * hidden * units


def mask(matrices: Mapping[str, Tensor], number: int, heads: Iterable[str] = (), units: Units | None = None) -> dict:
    """The mask that removes heads and units: name of each matrix -> BoolTensor, True = kept.

    It also masks the biases of the feed-forward layers that lose units. `matrices`: the prunable matrices, of which
    only the shapes matter. Raises InputError for a part that the model does not have.
    """
    found = {name: torch.ones(matrix.shape, dtype=torch.bool) for name, matrix in matrices.items()}
    for head in heads:
        attention, _, place = head.rpartition(".")
        if f"{attention}.query" not in found or not place.isdecimal() or int(place) >= number:
            raise InputError(f"heads: {head!r} is not a head of this model; write it as in decoder.0.cross_attention.1")
        for name in ("query", "key", "value"):
            _part(found[f"{attention}.{name}"], number, int(place)).fill_(False)
        _part(found[f"{attention}.output"].t(), number, int(place)).fill_(False)
    for layer, gone in (units or {}).items():
        gone = list(gone)
        if f"{layer}.inner" not in found or not all(0 <= unit < len(found[f"{layer}.inner"]) for unit in gone):
            raise InputError(
                f"units: {layer!r} with units {gone[:3]} is not in this model; name it encoder.0.feed_forward"
            )
        found[f"{layer}.inner"][gone] = False
        found[f"{layer}.outer"][:, gone] = False
        found[f"{layer}.inner_bias"] = found[f"{layer}.inner"][:, 0].clone()
    return found


def removed(mask: Mapping[str, Tensor] | None, number: int) -> tuple[list[str], dict[str, list[int]]]:
    """The heads that a mask removes whole, and feed-forward layer -> the units it removes together with their bias."""
    gone, units = [], {}
    for name, kept in (mask or {}).items():
        layer, _, matrix = name.rpartition(".")
        if matrix == "query":
            sides = [mask[f"{layer}.{each}"] for each in ("query", "key", "value")] + [mask[f"{layer}.output"].t()]
            dead = [not any(_part(side, number, i).any() for side in sides) for i in range(number)]
            gone += [f"{layer}.{i}" for i in range(number) if dead[i]]
        elif matrix == "inner_bias":
            units[layer] = (~kept).nonzero()[:, 0].tolist()
    return gone, units


def _part(matrix: Tensor, number: int, place: int) -> Tensor:
    """The rows of a head, as a view."""
    rows = len(matrix) // number
    return matrix[place * rows : (place + 1) * rows]


# Choosing ------------------------------------------------------------


def least_heads(scores: Mapping[str, float], gone: Collection[str], count: int) -> list[str]:
    """The `count` heads with the lowest scores, without those `gone`; of equal scores, the head named first."""
    return sorted((head for head in scores if head not in gone), key=scores.get)[:count]


def least_units(scores: Mapping[str, Sequence[float]], gone: Units, count: int) -> tuple[str, list[int]] | None:
    """The feed-forward layer and the `count` of its units whose scores have the smallest sum, over all layers.

    `scores`: layer -> score of each of its units; those `gone` are left out. None if no layer has `count` units left.
    """
    found = {}
    for layer, values in scores.items():
        away = {*gone.get(layer, ())}
        lowest = sorted((unit for unit in range(len(values)) if unit not in away), key=values.__getitem__)[:count]
        if len(lowest) == count:
            found[layer] = sum(values[unit] for unit in lowest), lowest
    if not found:
        return None
    layer = min(found, key=lambda name: found[name][0])
    return layer, sorted(found[layer][1])
