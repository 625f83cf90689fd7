"""What pruning does inside a translator: the files dissect_*.csv as plots and tables (notebook 10_dissect).

Everything comes from these files alone. Curves are means over seeds, bars the range between them.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slt_lib.report.data import label, percent, read_text
from slt_lib.report.plots import LOOKS, STYLE

ABOUT = ["pair", "seed", "technique", "sparsity"]
INSIDE = {
    "dissect_similarity.csv": [*ABOUT, *"side layer other_layer cka svcca pwcca neuron same_index".split()],
    "dissect_complexity.csv": [*ABOUT, *"side layer participation first tenth k99".split()],
    "dissect_attention.csv": [
        *ABOUT,
        *"kind layer head correlation divergence entropy best_head best_correlation".split(),
        *"matched_head matched_correlation matched_divergence".split(),
    ],
}
TEXT = {*"pair technique side layer other_layer kind task group split site measure bin source translation".split()}
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98)  # looked into unless others are asked for
# Control -> label, colour and line style. "again" is a curve, the others are horizontal lines.
CONTROLS = {
    "untrained": ("floor: untrained", "#222222", ":"),
    "seed": ("ceiling: another seed", "#8C510A", "--"),
    "noise": ("ceiling: other SGD noise", "#762A83", "-."),
    "again": ("ceiling: retrained, unpruned", "#7F7F7F", "-"),
}
MEASURES = {
    "cka": "linear CKA, debiased",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "neuron": "largest |r| per neuron",
    "same_index": "share of neurons with the same index",
    "participation": "effective rank",
    "first": "variance in the 1st component",
    "tenth": "variance in the leading tenth",
    "k99": "components for 99% of the variance",
    "correlation": "Pearson r with the same head",
    "divergence": "JS divergence to the same head [bits]",
    "matched_correlation": "Pearson r with the matched head",
    "matched_divergence": "JS divergence to the matched head [bits]",
    "best_correlation": "Pearson r with the best head",
    "same_head": "share of heads whose best match has the same index",
    "entropy": "entropy of the attention [bits]",
}


def read(path: str | os.PathLike, columns: Sequence[str]) -> pd.DataFrame:
    """A dissect_*.csv as text; empty where there is no such file. Raises InputError if it is malformed."""
    return read_text(Path(path), columns)[[*columns]] if Path(path).is_file() else pd.DataFrame(columns=[*columns])


def rows(folder: str | os.PathLike, file: str, pair: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of a pair, numbers as such, an empty cell as nan."""
    frame = read(Path(folder) / file, columns or INSIDE[file])
    frame = frame[frame.pair == pair]
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in frame if name not in TEXT})


def similarity(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """The rows of dissect_similarity.csv that compare a site with the same site of the dense model."""
    frame = rows(folder, "dissect_similarity.csv", pair)
    return frame[frame.layer == frame.other_layer]


def heads(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Means over the heads of a layer, with `same_head`: the share of heads whose best match has the same index."""
    frame = rows(folder, "dissect_attention.csv", pair)
    same = (frame.best_head == frame["head"]).where(frame.best_head.notna())
    frame = frame.assign(same_head=same.astype(float)).drop(columns=["head", "best_head", "matched_head"])
    return frame.groupby([*ABOUT, "kind", "layer"], as_index=False, sort=False).mean(numeric_only=True)


# Curves ------------------------------------------------------------


@mpl.rc_context(STYLE)
def plot_curves(frame: pd.DataFrame, value: str, across: str, down: str = "") -> Figure:
    """A value over sparsity, one panel per value of `across` (columns) and `down` (rows), one line per technique.

    Controls are drawn as CONTROLS says; the dense model itself as a horizontal line, where the value is its own.
    """
    frame = frame[frame[value].notna()]
    columns = list(dict.fromkeys(sorted(frame[across], key=_depth)))
    lines = list(dict.fromkeys(frame[down])) if down else [""]
    levels = sorted({*frame[~frame.technique.isin([*CONTROLS, "dense"])].sparsity})
    size = max(6.4, 2.2 * len(columns) + 2.2), 2.1 * len(lines) + 0.7
    figure = Figure(figsize=size, layout="constrained")
    panels, shown = figure.subplots(len(lines), len(columns), sharex=True, sharey=True, squeeze=False), {}
    for i, line in enumerate(lines):
        for j, column in enumerate(columns):
            part = frame[(frame[across] == column) & ((frame[down] == line) if down else True)]
            shown |= _panel(panels[i, j], part, value, levels)
            named = f"layer {column}" if str(column).isdigit() and column != "0" else {"0": "input"}.get(column, column)
            panels[i, j].set_title(f"{line} {named}".replace("norm", "output").strip(), fontsize=9)
    for axes in panels[-1]:
        axes.set_xticks(range(len(levels)), [percent(level) for level in levels], fontsize=8)
    figure.supxlabel("sparsity [%]", fontsize=9)
    figure.supylabel(MEASURES.get(value, value), fontsize=9)
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    return figure


def _depth(layer: str) -> tuple[int, str]:
    return (int(layer), "") if str(layer).isdigit() else (99, str(layer))


def _panel(axes: Axes, frame: pd.DataFrame, value: str, levels: Sequence[float]) -> dict:
    """Draw one panel; label -> what the legend shows."""
    shown = {}
    for control, (name, colour, style) in CONTROLS.items():
        part = frame[frame.technique == control]
        if part.empty:
            continue
        if control == "again":
            means = part.groupby("sparsity")[value].mean()
            places = [levels.index(level) for level in means.index if level in levels]
            means = means[means.index.isin(levels)]
            [shown[name]] = axes.plot(places, means, color=colour, linestyle=style, marker="x", markersize=5)
        else:
            shown[name] = axes.axhline(part[value].mean(), color=colour, linestyle=style, linewidth=1.2)
    dense = frame[frame.technique == "dense"]
    if len(dense) and not (value in dense and np.allclose(dense[value], 1)):
        look = LOOKS["dense"]
        shown["dense"] = axes.axhline(dense[value].mean(), color=look.colour, linestyle=look.line, linewidth=1)
    names = [name for name in dict.fromkeys(frame.technique) if name not in CONTROLS and name != "dense"]
    for place, name in enumerate(sorted(names, key=list(LOOKS).index)):
        look, groups = LOOKS[name], frame[frame.technique == name].groupby("sparsity")[value]
        shift = 0.08 * (place - (len(names) - 1) / 2)
        at = [levels.index(level) + shift for level in groups.mean().index]
        bars = [groups.mean() - groups.min(), groups.max() - groups.mean()]
        style = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
        shown[label(name)] = axes.errorbar(at, groups.mean(), bars, **style, markersize=5, linewidth=1.3)
    return shown


def plot_similarity(folder: str | os.PathLike, pair: str, measure: str = "cka") -> Figure:
    """A layer of the sparse model against the same layer of the dense one, over sparsity; one panel per site."""
    frame = similarity(folder, pair)
    frame = frame[frame.technique != "dense"]
    if measure == "same_index":
        frame = frame[frame.technique != "seed"]  # the neurons of two seeds have no common order
    return plot_curves(frame, measure, "layer", "side")


def plot_complexity(folder: str | os.PathLike, pair: str, measure: str = "participation") -> Figure:
    """How the variance of each site spreads over principal components, over sparsity."""
    frame = rows(folder, "dissect_complexity.csv", pair)
    return plot_curves(frame[~frame.technique.isin(["seed", "noise"])], measure, "layer", "side")


def plot_heads(folder: str | os.PathLike, pair: str, measure: str = "correlation") -> Figure:
    """A value of the attention heads over sparsity, mean over the heads of a layer; one row per kind of attention."""
    frame = heads(folder, pair)
    frame = frame[frame.technique != "dense"] if measure != "entropy" else frame
    layers = frame.layer.astype(int).astype(str)
    return plot_curves(frame.assign(layer=layers, kind=frame.kind + " attention,"), measure, "layer", "kind")


# Heat maps ------------------------------------------------------------


@mpl.rc_context(STYLE)
def plot_heatmap(folder: str | os.PathLike, pair: str, technique: str = "slt", measure: str = "cka") -> Figure:
    """Each layer of a technique's model against each layer of the dense model, per level; mean over seeds.

    The first column of panels is the dense model against itself, the last the untrained model against it.
    """
    frame = rows(folder, "dissect_similarity.csv", pair)
    parts = [("dense", frame[frame.technique == "dense"])]
    own = frame[frame.technique == technique]
    parts += [(f"{label(technique)} {percent(level)}%", part) for level, part in own.groupby("sparsity")]
    parts += [("untrained", frame[frame.technique == "untrained"])]
    sides = [side for side in ("encoder", "decoder") if (frame.side == side).any()]
    figure = Figure(figsize=(1.75 * len(parts) + 1.6, 1.9 * len(sides) + 0.5), layout="constrained")
    panels = figure.subplots(len(sides), len(parts), squeeze=False)
    for i, side in enumerate(sides):
        for j, (title, part) in enumerate(parts):
            table = part[part.side == side].pivot_table(index="layer", columns="other_layer", values=measure)
            order = sorted(table.index, key=_depth)
            table, axes = table.loc[order, order], panels[i, j]
            image = axes.imshow(table, cmap="viridis", vmin=0, vmax=1, origin="lower")
            for (y, x), value in np.ndenumerate(table.to_numpy()):
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color="wk"[int(value > 0.6)])
            names = [{"0": "in", "norm": "out"}.get(layer, layer) for layer in order]
            axes.set_xticks(range(len(order)), names, fontsize=7)
            axes.set_yticks(range(len(order)), names if j == 0 else [""] * len(order), fontsize=7)
            axes.grid(False)
            if i == 0:
                axes.set_title(title, fontsize=9)
        panels[i, 0].set_ylabel(f"{side} layer", fontsize=9)
    figure.supxlabel("layer of the dense model", fontsize=9)
    figure.colorbar(image, ax=panels, label=MEASURES[measure], shrink=0.8)
    return figure
