"""What pruning does inside a translator: the files dissect_*.csv as plots and tables (notebook 10_dissect).

Everything comes from these files alone. Curves are means over seeds, bars the range between them.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit

from slt_lib.base.settings import TECHNIQUES, Technique
from slt_lib.report.data import label, numbers, percent
from slt_lib.report.plots import LINE, LOOKS, STYLE
from slt_lib.report.statistics import pooled

ABOUT = "pair seed technique sparsity"
SIMILARITY, COMPLEXITY, ATTENTION = (f"dissect_{name}.csv" for name in ("similarity", "complexity", "attention"))
PROBES, WORDS, TRANSLATIONS = (f"dissect_{name}.csv" for name in ("probes", "words", "translations"))
INSIDE = SIMILARITY, COMPLEXITY, ATTENTION
FILES = {  # file -> its columns
    SIMILARITY: f"{ABOUT} side layer other_layer cka svcca pwcca neuron same_index".split(),
    COMPLEXITY: f"{ABOUT} side layer participation first tenth k99".split(),
    ATTENTION: f"{ABOUT} kind layer head correlation divergence entropy best_head best_correlation "
    "matched_head matched_correlation matched_divergence".split(),
    PROBES: f"{ABOUT} layer task group draw n accuracy control majority control_majority "
    "form_accuracy form_majority".split(),
    WORDS: f"{ABOUT} measure place band value count".split(),
    TRANSLATIONS: f"{ABOUT} sentence source translation".split(),
}
TEXT = {*"pair technique side layer other_layer kind task group measure band source translation".split()}
GROUPS = ("surface", "morphology", "syntax", "meaning")
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98)  # looked into unless others are asked for
# "again" is drawn as a curve, the others are horizontal lines
CONTROLS = {
    "untrained": Technique("untrained", "", "#222222", "", ":"),
    "seed": Technique("ceiling: another seed", "", "#8C510A", "", "--"),
    "noise": Technique("ceiling: other SGD noise", "", "#762A83", "", "-."),
    "again": Technique("ceiling: retrained, unpruned", "", "#7F7F7F", "x"),
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
    "accuracy": "accuracy of the probe",
    "selectivity": "selectivity of the probe",
    "form_accuracy": "accuracy on unseen\nword forms",
    "same_head": "share of heads whose best match has the same index",
    "entropy": "entropy of the attention [bits]",
}


def rows(folder: str | os.PathLike, file: str, pair: str) -> pd.DataFrame:
    """A pair's rows of one of FILES, numbers as such, an empty cell as nan."""
    return numbers(Path(folder) / file, FILES[file], pair, TEXT)


def similarity(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """The rows of dissect_similarity.csv that compare a site with the same site of the dense model."""
    return rows(folder, SIMILARITY, pair).query("layer == other_layer")


def heads(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Means over the heads of a layer, with `same_head`: the share of heads whose best match has the same index."""
    frame = rows(folder, ATTENTION, pair)
    same = (frame.best_head == frame["head"]).where(frame.best_head.notna())
    frame = frame.assign(same_head=same.astype(float)).drop(columns=["head", "best_head", "matched_head"])
    return frame.groupby([*ABOUT.split(), "kind", "layer"], as_index=False, sort=False).mean(numeric_only=True)


# Curves ------------------------------------------------------------


@mpl.rc_context(STYLE)
def plot_curves(frame: pd.DataFrame, value: str, across: str, down: str = "", unit: str = "", wrap: int = 0) -> Figure:
    """A value over sparsity, one panel per value of `across` (columns) and `down` (rows), one line per technique.

    Panels have the order of the rows; without `down` they go on below after `wrap` of them. Controls are drawn as
    CONTROLS says, the dense model as a horizontal line. `unit`: the label of the vertical axis.
    """
    frame = frame[frame[value].notna()]
    side = frame[down] if down else pd.Series("", frame.index)
    lines, columns = side.unique().tolist(), frame[across].unique().tolist()
    width = min(wrap or len(columns), len(columns))
    height = max(len(lines), -(-len(columns) // width))
    levels = sorted({*frame[~frame.technique.isin([*CONTROLS, "dense"])].sparsity})
    figure = Figure(figsize=(max(6.4, 1.9 * width + 2.6), 1.9 * height + 0.7), layout="constrained")
    panels, shown = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False), {}
    for (line, column), part in frame.groupby([side, across], sort=False):
        axes = panels.flat[lines.index(line) * width + columns.index(column)]
        shown |= _panel(axes, part, value, levels)
        axes.set_title(f"{line} {column}".strip(), fontsize=9)
        axes.set_xticks(range(len(levels)), [percent(level) for level in levels], fontsize=8)
        axes.tick_params(labelbottom=True)
        axes.set_xlim(-0.4, len(levels) - 0.6)
    last = [control.label for control in CONTROLS.values()]
    shown = dict(sorted(shown.items(), key=lambda item: last.index(item[0]) if item[0] in last else -1))
    return _finished(figure, shown, "sparsity [%]", unit or MEASURES[value])


def _panel(axes: Axes, frame: pd.DataFrame, value: str, levels: Sequence[float]) -> dict:
    """Draw one panel; label -> what the legend shows."""
    shown, there = {}, dict(list(frame.groupby("technique", sort=False)))
    for name, look in CONTROLS.items():
        if name not in there:
            continue
        style = {"color": look.colour, "linestyle": look.line, "linewidth": 1.2}
        if name == "again":
            means = there[name].groupby("sparsity")[value].mean().filter(levels)
            places = [levels.index(level) for level in means.index]
            [shown[look.label]] = axes.plot(places, means, marker=look.marker, markersize=5, **style)
        else:
            shown[look.label] = axes.axhline(there[name][value].mean(), **style)
    if "dense" in there and not np.allclose(there["dense"][value], 1):  # 1: the dense model compared with itself
        shown["dense"] = axes.axhline(there["dense"][value].mean(), **LINE)
    names = [name for name in LOOKS if name in there and name != "dense"]
    for place, name in enumerate(names):
        look, groups = LOOKS[name], there[name].groupby("sparsity")[value]
        means, shift = groups.mean(), 0.05 * (place - (len(names) - 1) / 2)
        at = [levels.index(level) + shift for level in means.index]
        bars = [means - groups.min(), groups.max() - means]
        style = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
        shown[look.label] = axes.errorbar(at, means, bars, **style, markersize=5, linewidth=1.3)
    return shown


def _finished(figure: Figure, shown: dict, x: str, y: str) -> Figure:
    """The figure with a legend and labels of the axes that its panels share; panels without data are hidden."""
    for axes in figure.axes:
        axes.set_visible(axes.has_data())
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    return figure


def _by_site(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of sides and sites, the sites with their names in titles."""
    frame = frame.sort_values("layer", key=lambda layers: layers.str.zfill(4), kind="stable")  # "norm" is the last
    return frame.assign(layer=frame.layer.map(_site)).sort_values("side", ascending=False, kind="stable")


def _site(layer: str) -> str:
    return {"0": "input", "norm": "output"}.get(layer, f"layer {layer}")


def _ticks(layers: Sequence[str]) -> list[str]:
    """The names of sites along an axis."""
    return [{"0": "in", "norm": "out"}.get(layer, layer) for layer in layers]


def plot_similarity(folder: str | os.PathLike, pair: str, measure: str = "cka") -> Figure:
    """A layer of the sparse model against the same layer of the dense one, over sparsity; one panel per site."""
    # the neurons of two seeds have no common order
    other = ["dense", "seed"] if measure == "same_index" else ["dense"]
    frame = similarity(folder, pair)
    return plot_curves(_by_site(frame[~frame.technique.isin(other)]), measure, "layer", "side")


def plot_complexity(folder: str | os.PathLike, pair: str, measure: str = "participation") -> Figure:
    """How the variance of each site spreads over principal components, over sparsity."""
    frame = rows(folder, COMPLEXITY, pair)
    return plot_curves(_by_site(frame[~frame.technique.isin(["seed", "noise"])]), measure, "layer", "side")


def plot_heads(folder: str | os.PathLike, pair: str, measure: str = "correlation") -> Figure:
    """A value of the attention heads over sparsity, mean over the heads of a layer; one row per kind of attention."""
    frame = heads(folder, pair)  # an entropy is that of a model alone, not of two compared
    frame = frame[~frame.technique.isin(["seed", "noise"] if measure == "entropy" else ["dense"])]
    kinds = {"encoder": "encoder self,", "decoder": "decoder self,", "cross": "cross,"}
    frame = pd.concat([frame[frame.kind == kind].sort_values("layer") for kind in kinds])
    return plot_curves(frame.assign(layer=frame.layer.map(_site), kind=frame.kind.map(kinds)), measure, "layer", "kind")


# Heat maps ------------------------------------------------------------


@mpl.rc_context(STYLE | {"axes.grid": False})
def plot_heatmap(folder: str | os.PathLike, pair: str, technique: str = "slt", measure: str = "cka") -> Figure:
    """Each layer of a technique's model against each layer of the dense model, per level; mean over seeds.

    The first column of panels is the dense model against itself, the last the untrained model against it.
    """
    frame, sides = rows(folder, SIMILARITY, pair), ("encoder", "decoder")
    own = frame[frame.technique == technique].groupby("sparsity")
    parts = {"dense": frame[frame.technique == "dense"]}
    parts |= {f"{label(technique)} {percent(level)}%": part for level, part in own}
    parts |= {"untrained": frame[frame.technique == "untrained"]}
    figure = Figure(figsize=(1.75 * len(parts) + 1.6, 1.9 * len(sides) + 0.5), layout="constrained")
    panels = figure.subplots(len(sides), len(parts))
    for line, side in zip(panels, sides, strict=True):
        for axes, part in zip(line, parts.values(), strict=True):
            table = part[part.side == side].pivot_table(index="layer", columns="other_layer", values=measure)
            order = sorted(table.index, key=lambda layer: layer.zfill(4))
            table = table.loc[order, order]
            image = axes.imshow(table, cmap="viridis", vmin=0, vmax=1, origin="lower")
            for (y, x), value in np.ndenumerate(table.to_numpy()):
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6, color="wk"[int(value > 0.6)])
            axes.set_xticks(range(len(order)), _ticks(order), fontsize=7)
            axes.set_yticks(range(len(order)), _ticks(order) if axes is line[0] else [""] * len(order), fontsize=7)
        line[0].set_ylabel(f"{side} layer", fontsize=9)
    for axes, title in zip(panels[0], parts, strict=True):
        axes.set_title(title, fontsize=9)
    figure.supxlabel("layer of the dense model", fontsize=9)
    figure.colorbar(image, ax=panels, label=MEASURES[measure], shrink=0.8)
    return figure


# Probes ------------------------------------------------------------


def probes(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """The rows of dissect_probes.csv with `selectivity`, in the order of groups and tasks."""
    frame = rows(folder, PROBES, pair)
    frame = frame.assign(selectivity=frame.accuracy - frame.control).sort_values("task", kind="stable")
    return frame.sort_values("group", key=lambda groups: groups.map(GROUPS.index), kind="stable")


def plot_probes(folder: str | os.PathLike, pair: str, measure: str = "accuracy", layer: str = "norm") -> Figure:
    """What a linear probe reads from the encoder over sparsity: one panel per task, at the site `layer`."""
    frame = probes(folder, pair)
    groups = frame[frame.layer == layer].groupby([*ABOUT.split(), "group", "task"], sort=False, as_index=False)
    frame = groups.mean(numeric_only=True)
    frame = frame.assign(task=frame.task + "\n(" + frame.group + ")")
    return plot_curves(frame, measure, "task", unit=f"{MEASURES[measure]}, encoder {_site(layer)}", wrap=5)


@mpl.rc_context(STYLE)
def plot_probe_layers(folder: str | os.PathLike, pair: str, level: float) -> Figure:
    """Accuracy of a linear probe at each site of the encoder: the techniques at a level, dense and untrained."""
    frame = probes(folder, pair)
    frame = frame[(frame.sparsity == level) | frame.technique.isin(["dense", "untrained"])]
    tasks, layers = frame.groupby("task", sort=False), sorted(frame.layer.unique(), key=lambda layer: layer.zfill(4))
    columns = min(5, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(1.9 * columns + 2.2, 1.9 * lines + 0.7), layout="constrained")
    panels, shown = figure.subplots(lines, columns, sharey=True, squeeze=False), {}
    for axes, (task, part) in zip(panels.flat, tasks, strict=False):
        for name, line in part.groupby("technique", sort=False):
            means, look = line.groupby("layer").accuracy.mean().reindex(layers), (LOOKS | CONTROLS)[name]
            title = f"{label(name)} {percent(level)}%" if name in TECHNIQUES else name
            style = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
            [shown[title]] = axes.plot(means.to_numpy(), **style, markersize=4)
        control = part[part.technique == "dense"].groupby("layer").control.mean().reindex(layers)
        [shown["control task, dense"]] = axes.plot(control.to_numpy(), color="#BBBBBB", linewidth=1)
        shown["majority label"] = axes.axhline(part.majority.mean(), color="#BBBBBB", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(layers)), _ticks(layers), fontsize=8)
        axes.set_title(f"{task}\n({part.group.iloc[0]})", fontsize=9)
    return _finished(figure, shown, "layer of the encoder", MEASURES["accuracy"])


def probe_table(folder: str | os.PathLike, pair: str, layer: str = "norm") -> pd.DataFrame:
    """One row per task and model at a site of the encoder: means in percent over seeds and splits.

    `interval`: half width of the 95% t interval of the accuracy over seeds, whose spread is pooled over the models of a
    task; with one seed over its splits.
    """
    frame = probes(folder, pair)
    frame = frame[frame.layer == layer]
    by = ["group", "task", "technique", "sparsity"]
    groups = frame.groupby(by, sort=False)
    columns = "accuracy control selectivity majority control_majority form_accuracy form_majority".split()
    table = 100 * groups[columns].mean()
    unit = "seed" if frame.seed.nunique() > 1 else "draw"
    units = frame.groupby([*by, unit], sort=False).accuracy.mean()
    table.insert(1, "interval", 100 * units.groupby("task", group_keys=False).apply(_half_width))
    table = table.reset_index()
    return table.assign(sparsity=table.sparsity.map(percent)).round(1)


def _half_width(accuracy: pd.Series) -> pd.Series:
    """Half width of the 95% t interval of each model's mean accuracy; the spread is pooled over the models."""
    groups = accuracy.groupby(["group", "task", "technique", "sparsity"], sort=False)
    spread, freedom = pooled([values.tolist() for _, values in groups])
    return stdtrit(max(freedom, 1), 0.975) * spread / groups.size() ** 0.5


# Words ------------------------------------------------------------


def plot_words(folder: str | os.PathLike, pair: str, measure: str = "recall by frequency") -> Figure:
    """Over sparsity: "bleu by length", "recall by frequency" or "kept"; one panel per band."""
    frame = rows(folder, WORDS, pair)
    frame = frame[frame.measure == measure].sort_values("place", kind="stable")
    unit, titles = {
        "bleu by length": ("BLEU [%]", "{} words"),
        "recall by frequency": ("share of reference words found", "seen {} times"),
        "kept": ("share of source words kept", "{}"),
    }[measure]
    return plot_curves(frame.assign(band=frame.band.map(titles.format)), "value", "band", unit=unit)


def words_table(folder: str | os.PathLike, pair: str, measure: str = "bleu by length") -> pd.DataFrame:
    """The same as a table: one row per technique and sparsity [%], one column per band, means over seeds."""
    frame = rows(folder, WORDS, pair)
    frame = frame[frame.measure == measure].sort_values("place", kind="stable")
    means = frame.groupby(["technique", "sparsity", "band"], sort=False)["value"].mean().unstack()
    means = means[list(dict.fromkeys(frame.band))].round(3).sort_index()
    return means.rename(index=percent, level="sparsity")


def translations(folder: str | os.PathLike, pair: str, techniques: Sequence[str] = ()) -> str:
    """Markdown: the translations of each sentence at each sparsity, in bold what differs from the dense model's.

    A gap, marked as [...], is where words of the dense translation are missing. `techniques`: empty for all.
    """
    frame = rows(folder, TRANSLATIONS, pair).sort_values(["sentence", "sparsity"], kind="stable")
    parts = []
    for (_, source), group in frame.groupby(["sentence", "source"], sort=False):
        dense = group[group.technique == "dense"].translation.iloc[0]
        lines = [f"**{_plain(source)}**", "", "| | translation |", "|---|---|", f"| dense | {_plain(dense)} |"]
        own = group[group.technique.isin(techniques) if techniques else group.technique != "dense"]
        for _, part in own.groupby("technique", sort=False):
            for row in part.itertuples():
                text = marked(dense, row.translation)
                lines.append(f"| {label(row.technique)} {percent(row.sparsity)}% | {text} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def marked(before: str, after: str) -> str:
    """Markdown of `after`, in bold the words that differ from `before`; [...] where words are missing."""
    old, new = before.split(), after.split()
    shown = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words = _plain(" ".join(new[start:end]))
        shown.append({"equal": words, "delete": "[...]"}.get(kind, f"**{words}**"))
    return " ".join(filter(None, shown))


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to format."""
    return re.sub(r"([\\`*_|\[\]<>~])", r"\\\1", text)


# All ------------------------------------------------------------


def all_plots(folder: str | os.PathLike, pairs: Iterable[str], few: bool = False) -> Iterator[tuple[str, Figure]]:
    """(file name without suffix, Figure) of every plot for which the folder has data; `few`: one of each kind."""
    most = 1 if few else None
    for pair in pairs:
        frame = similarity(folder, pair)
        if len(frame):
            for measure in ("cka", "svcca", "pwcca", "same_index")[:most]:
                yield f"dissect_{measure}_{pair}", plot_similarity(folder, pair, measure)
            for technique in [name for name in TECHNIQUES if (frame.technique == name).any()][:most]:
                yield f"dissect_heatmap_{technique}_{pair}", plot_heatmap(folder, pair, technique)
            for measure in ("participation", "tenth")[:most]:
                yield f"dissect_{measure}_{pair}", plot_complexity(folder, pair, measure)
            for measure in ("correlation", "divergence", "matched_correlation", "same_head", "entropy")[:most]:
                yield f"dissect_heads_{measure}_{pair}", plot_heads(folder, pair, measure)
        frame = probes(folder, pair)
        if len(frame):
            for measure in () if few else ("accuracy", "form_accuracy", "selectivity"):
                if frame[measure].notna().any():
                    yield f"dissect_probes_{measure}_{pair}", plot_probes(folder, pair, measure)
            for level in sorted(set(frame.sparsity) - {0.0})[:most]:
                yield f"dissect_layers_{percent(level)}_{pair}", plot_probe_layers(folder, pair, level)
        for measure in list(dict.fromkeys(rows(folder, WORDS, pair).measure))[:most]:
            yield f"dissect_{measure.replace(' ', '_')}_{pair}", plot_words(folder, pair, measure)
