"""The first ten minutes, from a figures folder alone: what a ticket is, and what each level of sparsity leaves.

start.csv holds, per pair, technique and sparsity, what the notebook 00_start shows beside BLEU: `what` is "kept" or
"sentence N" (N from 1). Rows of the technique "source" hold the sentences that were translated.
"""

import difflib
import html
import os
import string
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from slt_lib.base.errors import InputError
from slt_lib.base.settings import DENSE, home
from slt_lib.report.data import HYBRID_SWITCH, SLT_MP_FIRST, Figures, label, numbers, percent
from slt_lib.report.plots import GRID, INK, LINE, LOOKS, METRICS, STYLE

FILE = "start.csv"
COLUMNS = "pair technique sparsity seed what value".split()
KEPT, SOURCE = "kept", "source"
MATRIX = "encoder.0.self_attention.query"  # the matrix whose kept weights are drawn; every model has it
SHARES = string.digits + string.ascii_letters + "+-*"  # character i: i / 64 of a block is kept
MISSING = "not published yet"
LEAST = 3.0  # points of BLEU that the axis spans at least, so that noise does not look like an effect
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"


def folder_of(study: str) -> Path:
    """The figures of a study: in $SLT_FIGURES, else the committed ones; those of another study where it has none.

    Raises InputError if no study has results.
    """
    committed = home() / "figures"
    places = [Path(place) for place in (os.environ.get("SLT_FIGURES"), committed) if place]
    others = [file.parent for place in places[::-1] for file in sorted(place.glob("*/results.csv"))]
    for folder in (*(place / study for place in places), *others):
        if (folder / "results.csv").is_file():
            return folder
    raise InputError(f"{committed}: no study has results there; `make study` makes figures/quick")


def encode(shares: np.ndarray) -> str:
    """The shares of kept weights (0 to 1) of a grid of blocks as text: one character a block, rows parted by "/"."""
    return "/".join("".join(SHARES[place] for place in row) for row in np.rint(64 * shares).astype(int))


def decode(text: str) -> np.ndarray:
    """The grid that `encode` wrote, each share rounded to 1/64."""
    return np.array([[SHARES.index(character) / 64 for character in row] for row in text.split("/")])


def read(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """The rows of a pair, with `sparsity` as a number; empty where the study wrote none."""
    frame = numbers(Path(folder) / FILE, COLUMNS, pair, {*COLUMNS} - {"sparsity"})
    return frame.assign(sparsity=frame.sparsity.astype(float).round(6))


def translations(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Columns technique, sparsity, sentence (from 1), source, translation; one row per model and sentence."""
    frame = read(folder, pair)
    frame = frame[frame.what != KEPT].drop_duplicates(["technique", "sparsity", "what"])
    sources = frame[frame.technique == SOURCE].set_index("what").value
    frame = frame[frame.technique != SOURCE]
    order = ["dense", *LOOKS]
    frame = frame.assign(
        place=[order.index(name) if name in order else len(order) for name in frame.technique],
        sentence=frame.what.str.removeprefix("sentence ").astype(int),
        source=frame.what.map(sources),
    ).rename(columns={"value": "translation"})
    frame = frame.sort_values(["sentence", "sparsity", "place"])
    return frame[["technique", "sparsity", "sentence", "source", "translation"]].reset_index(drop=True)


def levels(figures: Figures, pair: str) -> list[float]:
    """The levels of a pair that something is known of, by results.csv or start.csv; 0 (dense) is one of them."""
    ran = {cell.sparsity for cell in figures.cells(pair) if cell.rows}
    return sorted({0.0, *ran, *read(figures.path, pair).sparsity})


def owner(technique: str, level: float) -> str:
    """The technique whose run a cell of the paper's Table 1 shows: dense at 0, and MP in MP-SLT up to 60%."""
    if not level:
        return "dense"
    return "mp" if technique == "mp-slt" and level <= HYBRID_SWITCH else technique


def marked(before: str, after: str) -> str:
    """HTML of `after`, with the words that `before` lacks inserted and those that it alone has struck out."""
    old, new, shown = before.split(), after.split(), []
    for kind, *bounds in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, come = (html.escape(" ".join(words)) for words in (old[slice(*bounds[:2])], new[slice(*bounds[2:])]))
        if kind == "equal":
            shown.append(come)
            continue
        shown += [f'<del style="color:#a33">{gone}</del>'] * bool(gone)
        shown += [f'<ins style="color:#060;font-weight:bold;text-decoration:none">{come}</ins>'] * bool(come)
    return " ".join(shown)


def level_table(figures: Figures, pair: str, level: float, sentence: int) -> str:
    """HTML: one row per technique at a level, with its BLEU and its translation of a sentence (from 1).

    Words that differ from the dense model's translation are marked. What was not published yet is named.
    """
    frame = translations(figures.path, pair)
    frame = frame[frame.sentence == sentence]
    texts = {(row.technique, row.sparsity): row.translation for row in frame.itertuples()}
    dense = texts.get(("dense", 0.0), "")
    rows = [("dense", 0.0)] + [(name, level) for name in figures.techniques(pair) if level]
    lines = [_level_row(figures, pair, name, at, texts.get((owner(name, at), at)), dense) for name, at in rows]
    asked = html.escape(frame.source.iloc[0]) if len(frame) else f"no sentence: {MISSING}"
    return html_table([f"<tr><th>model</th><th>BLEU</th><th>{asked}</th></tr>", *lines])


def html_table(lines: Iterable[str]) -> str:
    """HTML of a table with these lines, whose cells are aligned to the left."""
    left = ' style="text-align:left"'
    return f"<table>{''.join(lines)}</table>".replace("<th>", f"<th{left}>").replace("<td>", f"<td{left}>")


def _level_row(figures: Figures, pair: str, name: str, level: float, text: str | None, dense: str) -> str:
    cell = figures.cell(pair, name, level)
    title = label(name) + (f" {percent(level)}%" if level else "")
    if _later(name, level) and not cell:
        return f"<tr><td>{title}</td><td></td><td><i>starts at {percent(SLT_MP_FIRST)}%</i></td></tr>"
    bleu = f"<i>{'failed' if cell else MISSING}</i>"
    if cell and cell.rows:
        bleu = f"{cell.mean('bleu'):.1f}"
    shown = f"<i>{MISSING}</i>" if text is None else marked(dense, text) if level else html.escape(text)
    return f"<tr><td>{title}</td><td>{bleu}</td><td>{shown}</td></tr>"


@mpl.rc_context(STYLE)
def plot_level(figures: Figures, pair: str, level: float) -> Figure:
    """BLEU of each technique against sparsity with one level marked (left), and the weights kept there (right).

    The right side has one panel per technique: the share of kept weights per block of `MATRIX`, on one scale for all
    levels. White: none is kept.
    """
    names = figures.techniques(pair) if level else ["dense"]
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    _curves(left.subplots(), figures, pair, level)
    frame = read(figures.path, pair)
    frame = frame[frame.what == KEPT]
    kept = {(row.technique, row.sparsity): row.value for row in frame.itertuples()}
    grid = right.subplots(-(-len(names) // 3), min(len(names), 3), squeeze=False)
    scale = ScalarMappable(PowerNorm(0.5, 0, 1), "Blues")
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_title(f"{label(name)} {percent(level)}%" if level else "dense", fontsize=9)
        axes.set(xticks=[], yticks=[], aspect="equal", xlim=(0, 1), ylim=(0, 1))
        axes.spines[:].set_visible(True)
        if text := kept.get((owner(name, level), level)):
            axes.imshow(decode(text), cmap=scale.cmap, norm=scale.norm, extent=(0, 1, 0, 1))
        else:
            note = f"starts at\n{percent(SLT_MP_FIRST)}%" if _later(name, level) else MISSING.replace(" ", "\n")
            axes.text(0.5, 0.5, note, ha="center", va="center", fontsize=8)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    ticks = [0, 0.02, 0.1, 0.3, 0.6, 1]
    bar = right.colorbar(scale, ax=grid, ticks=ticks, format=lambda share, _: f"{percent(share)}%", pad=0.03)
    bar.ax.tick_params(labelsize=8)
    right.suptitle(f"Weights kept of one matrix, {MATRIX.replace('_', ' ').replace('.', ' ')}", fontsize=10)
    return figure


def _later(technique: str, level: float) -> bool:
    """Whether the technique begins at a higher level."""
    return technique == "slt-mp" and 0 < level < SLT_MP_FIRST


def _curves(axes: Axes, figures: Figures, pair: str, level: float) -> None:
    every = sorted({*figures.sparsities(pair), *levels(figures, pair)})
    for name in figures.begun(pair):
        scored = {at: cell.mean("bleu") for at in every if (cell := figures.cell(pair, name, at)) and cell.rows}
        look = LOOKS.get(name, DENSE)
        style = {"color": look.colour, "marker": look.marker, "linestyle": look.line}
        axes.plot([every.index(at) for at in scored], scored.values(), label=label(name), **style)
    if dense := figures.control(pair, 0):
        axes.axhline(dense.mean("bleu"), label=DENSE.label, **LINE)
    axes.axvspan(every.index(level) - 0.3, every.index(level) + 0.3, color="#F0E442", alpha=0.5, zorder=0)
    axes.set_xlim(-0.5, len(every) - 0.5)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high - LEAST) - 0.3 * (high - low), max(high, low + LEAST))
    axes.set_xticks(range(len(every)), [percent(at) for at in every], fontsize=8)
    axes.set_xlabel("Sparsity [%] (levels evenly spaced)")
    axes.set_ylabel(METRICS["bleu"])
    axes.set_title(figures.titled(f"{figures.name}, {pair}, {figures.test_set(pair)}"), fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower left", ncols=2)


# What a ticket is ------------------------------------------------------------

STAGES = {  # title -> what happens there
    r"dense, $\theta_0$": "small random\nweights",
    r"train to $\theta_T$": "some weights\ngrow",
    r"prune: mask $m$": "the smallest\nmagnitudes go",
    r"rewind to $\theta_t$": "an early step's\nweights, masked",
    "train again": "about the same\nquality?",
}


@mpl.rc_context(STYLE | {"axes.grid": False})
def plot_ticket(sparsity: float = 0.6) -> Figure:
    """A lottery ticket as a picture: a small network at its start, trained, pruned, rewound and trained again.

    The width of a line is the magnitude of its weight, the colour its sign. The numbers are made up.
    """
    draw = np.random.default_rng(4)
    first = [draw.normal(0, 1, (4, 5)), draw.normal(0, 1, (5, 3))]
    early = [weight + 0.4 * draw.normal(0, 1, weight.shape) for weight in first]
    trained = [1.6 * weight + draw.normal(0, 1.1, weight.shape) for weight in early]
    masks = [np.abs(weight) > np.quantile(np.abs(weight), sparsity) for weight in trained]
    again = [1.7 * weight + 0.3 * np.sign(weight) for weight in early]
    full = [np.ones_like(mask) for mask in masks]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    grid = figure.add_gridspec(2, 5, height_ratios=[1, 0.12])
    panels = [figure.add_subplot(grid[0, place]) for place in range(5)]
    stages = [(first, full), (trained, full), (trained, masks), (early, masks), (again, masks)]
    for axes, (weights, kept), (title, text) in zip(panels, stages, STAGES.items(), strict=True):
        _network(axes, weights, kept)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(text, fontsize=9)
    for one, other in zip(panels, panels[1:], strict=False):
        look = {"arrowstyle": "-|>", "mutation_scale": 14, "color": INK, "linewidth": 1.4}
        figure.add_artist(ConnectionPatch((1, 0.5), (0, 0.5), one.transAxes, other.transAxes, **look))
    foot = figure.add_subplot(grid[1, 2:])
    foot.set(xlim=(0, 3), ylim=(0, 1), xticks=[], yticks=[])
    foot.spines[:].set_visible(False)
    foot.plot([2.5, 2.5, 0.5], [1, 0.5, 0.5], color=INK, linewidth=1.4)
    foot.annotate("", (0.5, 1), (0.5, 0.48), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.4})
    foot.text(1.5, 0.1, "repeat at the next level of sparsity", ha="center", va="top", fontsize=9)
    return figure


def _network(axes: Axes, weights: Iterable[np.ndarray], kept: Iterable[np.ndarray]) -> None:
    axes.set(xlim=(-0.25, 2.25), ylim=(-0.12, 1.12), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for layer, (weight, mask) in enumerate(zip(weights, kept, strict=True)):
        for (i, j), value in np.ndenumerate(weight):
            style = {"color": GRID, "linewidth": 0.6, "linestyle": ":", "zorder": 0}
            if mask[i, j]:
                style = {"color": POSITIVE if value > 0 else NEGATIVE, "linewidth": 0.3 + 0.8 * abs(value), "zorder": 1}
            axes.plot([layer, layer + 1], [_height(i, len(weight)), _height(j, weight.shape[1])], **style)
        for place, count in ((layer, len(weight)), (layer + 1, weight.shape[1])):
            heights = [_height(i, count) for i in range(count)]
            axes.scatter([place] * count, heights, s=60, color="white", edgecolor=INK, zorder=2)


def _height(place: int, count: int) -> float:
    return 0.5 + (place - (count - 1) / 2) / 4
