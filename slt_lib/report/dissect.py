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

from slt_lib.base.settings import TECHNIQUES
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
PROBES, WORDS, TRANSLATIONS = (f"dissect_{name}.csv" for name in ("probes", "words", "translations"))
PROBE_COLUMNS = [*ABOUT, *"layer task group draw n accuracy control majority form_accuracy form_majority".split()]
WORD_COLUMNS = [*ABOUT, *"measure place band value count".split()]
TRANSLATION_COLUMNS = [*ABOUT, *"sentence source translation".split()]
TEXT = {*"pair technique side layer other_layer kind task group measure band source translation".split()}
GROUPS = ("surface", "morphology", "syntax", "meaning")
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
    "accuracy": "accuracy of the probe",
    "selectivity": "accuracy less that of the control task",
    "form_accuracy": "accuracy on word forms not seen by the probe",
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
def plot_curves(frame: pd.DataFrame, value: str, across: str, down: str = "", unit: str = "", wrap: int = 0) -> Figure:
    """A value over sparsity, one panel per value of `across` (columns) and `down` (rows), one line per technique.

    Panels have the order of the rows; without `down` they go on below after `wrap` of them. Controls are drawn as
    CONTROLS says, the dense model as a horizontal line. `unit`: the label of the vertical axis.
    """
    frame = frame[frame[value].notna()]
    keys = list(dict.fromkeys(zip(frame[down] if down else [""] * len(frame), frame[across], strict=True)))
    columns = list(dict.fromkeys(column for _, column in keys))
    width = len(columns) if down or not wrap else min(wrap, len(columns))
    lines = list(dict.fromkeys(line for line, _ in keys))
    height = len(lines) if down else -(-len(columns) // width)
    levels = sorted({*frame[~frame.technique.isin([*CONTROLS, "dense"])].sparsity})
    figure = Figure(figsize=(max(6.4, 1.9 * width + 2.6), 1.9 * height + 0.7), layout="constrained")
    panels, shown = figure.subplots(height, width, sharex=True, sharey=True, squeeze=False), {}
    for axes in panels.flat[len(keys) :] if not down else ():
        axes.set_visible(False)
    for line, column in keys:
        place = columns.index(column)
        axes = panels[lines.index(line), place] if down else panels.flat[place]
        part = frame[(frame[across] == column) & ((frame[down] == line) if down else True)]
        shown |= _panel(axes, part, value, levels)
        axes.set_title(f"{line} {column}".strip(), fontsize=9)
        axes.set_xticks(range(len(levels)), [percent(level) for level in levels], fontsize=8)
        axes.tick_params(labelbottom=True)
        axes.set_xlim(-0.4, len(levels) - 0.6)
    figure.supxlabel("sparsity [%]", fontsize=9)
    figure.supylabel(unit or MEASURES.get(value, value), fontsize=9)
    order = [name for name, _, _ in CONTROLS.values()]
    shown = dict(sorted(shown.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    return figure


def _by_depth(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of the sites, with their names in titles."""
    frame = frame.sort_values("layer", key=lambda layers: layers.map(_depth), kind="stable")
    return frame.assign(layer=frame.layer.map(_site))


def _depth(layer: str) -> int:
    return int(layer) if str(layer).isdigit() else 99


def _site(layer: str) -> str:
    return {"0": "input", "norm": "output"}.get(layer, f"layer {layer}")


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
            [shown[name]] = axes.plot(
                places, means, color=colour, linestyle=style, marker="x", markersize=5, linewidth=1.2
            )
        else:
            shown[name] = axes.axhline(part[value].mean(), color=colour, linestyle=style, linewidth=1.2)
    dense = frame[frame.technique == "dense"]
    if len(dense) and not (value in dense and np.allclose(dense[value], 1)):
        look = LOOKS["dense"]
        shown["dense"] = axes.axhline(dense[value].mean(), color=look.colour, linestyle=look.line, linewidth=1)
    names = [name for name in dict.fromkeys(frame.technique) if name not in CONTROLS and name != "dense"]
    for place, name in enumerate(sorted(names, key=list(LOOKS).index)):
        look, groups = LOOKS[name], frame[frame.technique == name].groupby("sparsity")[value]
        shift = 0.05 * (place - (len(names) - 1) / 2)
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
    return plot_curves(_by_depth(frame).sort_values("side", ascending=False, kind="stable"), measure, "layer", "side")


def plot_complexity(folder: str | os.PathLike, pair: str, measure: str = "participation") -> Figure:
    """How the variance of each site spreads over principal components, over sparsity."""
    frame = rows(folder, "dissect_complexity.csv", pair)
    frame = _by_depth(frame[~frame.technique.isin(["seed", "noise"])])
    return plot_curves(frame.sort_values("side", ascending=False, kind="stable"), measure, "layer", "side")


def plot_heads(folder: str | os.PathLike, pair: str, measure: str = "correlation") -> Figure:
    """A value of the attention heads over sparsity, mean over the heads of a layer; one row per kind of attention."""
    frame = heads(folder, pair)
    frame = frame[frame.technique != "dense"] if measure != "entropy" else frame
    kinds = {"encoder": "encoder self,", "decoder": "decoder self,", "cross": "cross,"}
    frame = frame.sort_values(
        ["kind", "layer"], key=lambda column: column.map(lambda x: [*kinds].index(x) if x in kinds else x)
    )
    return plot_curves(
        frame.assign(layer=frame.layer.map("layer {}".format), kind=frame.kind.map(kinds)), measure, "layer", "kind"
    )


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


# Probes ------------------------------------------------------------


def probes(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """The rows of dissect_probes.csv with `selectivity`, in the order of groups and tasks."""
    frame = rows(folder, PROBES, pair, PROBE_COLUMNS)
    frame = frame.assign(selectivity=frame.accuracy - frame.control)
    order = {group: place for place, group in enumerate(GROUPS)}
    return frame.sort_values(["group", "task"], key=lambda column: column.map(lambda x: order.get(x, x)), kind="stable")


def plot_probes(folder: str | os.PathLike, pair: str, measure: str = "accuracy", layer: str = "norm") -> Figure:
    """What a linear probe reads from the encoder over sparsity: one panel per task, at the site `layer`."""
    frame = probes(folder, pair)
    frame = (
        frame[frame.layer == layer]
        .groupby([*ABOUT, "group", "task"], sort=False, as_index=False)
        .mean(numeric_only=True)
    )
    frame = frame.assign(task=frame.task + "\n(" + frame.group + ")")
    unit = f"{MEASURES[measure]}, encoder {_site(layer)}"
    return plot_curves(frame, measure, "task", unit=unit, wrap=5)


@mpl.rc_context(STYLE)
def plot_probe_layers(folder: str | os.PathLike, pair: str, level: float, measure: str = "accuracy") -> Figure:
    """What a linear probe reads from each site of the encoder: the techniques at a level, dense and untrained."""
    frame = probes(folder, pair)
    frame = frame[(frame.sparsity == level) | frame.technique.isin(["dense", "untrained"])]
    tasks, layers = list(dict.fromkeys(frame.task)), sorted(set(frame.layer), key=_depth)
    columns = min(5, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(1.9 * columns + 2.2, 1.9 * lines + 0.7), layout="constrained")
    panels, shown = figure.subplots(lines, columns, sharey=True, squeeze=False), {}
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(panels.flat, tasks, strict=False):
        part = frame[frame.task == task]
        for name, line in part.groupby("technique", sort=False):
            means = line.groupby("layer")[measure].mean().reindex(layers)
            colour, marker, style = CONTROLS[name][1:2] + ("", ":") if name in CONTROLS else _look(name)
            title = "untrained" if name in CONTROLS else f"{label(name)} {percent(level)}%" if name != "dense" else name
            [shown[title]] = axes.plot(means.to_numpy(), color=colour, marker=marker, linestyle=style, markersize=4)
        if measure == "accuracy":
            shown["control task, dense"] = axes.axhline(
                part[part.technique == "dense"].control.mean(), color="#BBBBBB", linestyle="-", linewidth=1
            )
            shown["majority label"] = axes.axhline(part.majority.mean(), color="#BBBBBB", linestyle="--", linewidth=1)
        axes.set_xticks(
            range(len(layers)), [{"0": "in", "norm": "out"}.get(layer, layer) for layer in layers], fontsize=8
        )
        axes.set_title(f"{task}\n({part.group.iloc[0]})", fontsize=9)
    figure.supxlabel("layer of the encoder", fontsize=9)
    figure.supylabel(MEASURES[measure], fontsize=9)
    figure.legend(shown.values(), shown.keys(), loc="outside right upper", fontsize=8)
    return figure


def _look(name: str) -> tuple[str, str, str]:
    look = LOOKS[name]
    return look.colour, look.marker, look.line


def probe_table(folder: str | os.PathLike, pair: str, layer: str = "norm") -> pd.DataFrame:
    """One row per task and model at a site of the encoder: means in percent over seeds and splits.

    `interval`: half width of the 95% t interval of the accuracy over seeds and splits.
    """
    frame = probes(folder, pair)
    frame = frame[frame.layer == layer]
    groups = frame.groupby(["group", "task", "technique", "sparsity"], sort=False)
    columns = ["accuracy", "control", "selectivity", "majority", "form_accuracy", "form_majority"]
    table = 100 * groups[columns].mean()
    count = groups.size()
    width = stdtrit(np.maximum(count - 1, 1), 0.975) * 100 * groups.accuracy.std() / count**0.5
    table.insert(1, "interval", width)
    table = table.reset_index()
    return table.assign(sparsity=table.sparsity.map(percent)).round(1)


# Words ------------------------------------------------------------


def plot_words(folder: str | os.PathLike, pair: str, measure: str = "recall by frequency") -> Figure:
    """Over sparsity: "bleu by length", "recall by frequency" or "kept"; one panel per band."""
    frame = rows(folder, WORDS, pair, WORD_COLUMNS)
    frame = frame[frame.measure == measure].sort_values("place", kind="stable")
    unit, titles = {
        "bleu by length": ("BLEU [%]", "{} words"),
        "recall by frequency": ("share of reference words found", "seen {} times"),
        "kept": ("share of source words kept", "{}"),
    }[measure]
    return plot_curves(frame.assign(band=frame.band.map(titles.format)), "value", "band", unit=unit)


def words_table(folder: str | os.PathLike, pair: str, measure: str = "bleu by length") -> pd.DataFrame:
    """The same as a table: one row per technique and sparsity [%], one column per band, means over seeds."""
    frame = rows(folder, WORDS, pair, WORD_COLUMNS)
    frame = frame[frame.measure == measure].sort_values("place", kind="stable")
    means = frame.groupby(["technique", "sparsity", "band"], sort=False)["value"].mean().unstack()
    means = means[list(dict.fromkeys(frame.band))].round(3).sort_index()
    return means.rename(index=percent, level="sparsity")


def translations(folder: str | os.PathLike, pair: str, techniques: Sequence[str] = ()) -> str:
    """Markdown: the translations of each sentence at each sparsity, in bold what differs from the dense model's.

    A gap, marked as [...], is where words of the dense translation are missing. `techniques`: empty for all.
    """
    frame = rows(folder, TRANSLATIONS, pair, TRANSLATION_COLUMNS).sort_values(["sentence", "sparsity"], kind="stable")
    parts = []
    for (_, source), group in frame.groupby(["sentence", "source"], sort=False):
        dense = group[group.technique == "dense"].translation.iloc[0]
        lines = [f"**{_plain(source)}**", "", "| | translation |", "|---|---|", f"| dense | {_plain(dense)} |"]
        for name, own in group[group.technique != "dense"].groupby("technique", sort=False):
            if not techniques or name in techniques:
                lines += [
                    f"| {label(name)} {percent(row.sparsity)}% | {marked(dense, row.translation)} |"
                    for row in own.itertuples()
                ]
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
            for technique in [name for name in TECHNIQUES if name in set(frame.technique)][:most]:
                yield f"dissect_heatmap_{technique}_{pair}", plot_heatmap(folder, pair, technique)
            for measure in ("participation", "tenth")[:most]:
                yield f"dissect_{measure}_{pair}", plot_complexity(folder, pair, measure)
            for measure in ("correlation", "divergence", "matched_correlation", "same_head", "entropy")[:most]:
                yield f"dissect_heads_{measure}_{pair}", plot_heads(folder, pair, measure)
        frame = probes(folder, pair)
        if len(frame):
            for measure in ("accuracy", "selectivity")[: 0 if few else None]:
                yield f"dissect_probes_{measure}_{pair}", plot_probes(folder, pair, measure)
            for level in sorted(set(frame.sparsity) - {0.0})[:most]:
                yield f"dissect_layers_{percent(level)}_{pair}", plot_probe_layers(folder, pair, level)
        for measure in list(dict.fromkeys(rows(folder, WORDS, pair, WORD_COLUMNS).measure))[:most]:
            yield f"dissect_{measure.replace(' ', '_')}_{pair}", plot_words(folder, pair, measure)
