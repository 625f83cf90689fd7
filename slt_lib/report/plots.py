"""The plots of a study as matplotlib Figures on an opaque white background; looks are in `settings.TECHNIQUES`."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slt_lib.base.files import write_bytes
from slt_lib.base.settings import DENSE, TECHNIQUES
from slt_lib.report import stability
from slt_lib.report.data import Figures, label, percent
from slt_lib.report.paper import paper_figures
from slt_lib.report.statistics import interval, mean_magnitudes, seed_spread

SIZES = {"P": 9.0, "X": 9.0, "*": 9.0}  # cross-shaped markers are drawn larger, to be as visible
SPARE = list(itertools.product(["#000000", "#7F7F7F"], "X*<>"))  # for a user's own techniques, in their order
GROUND, INK, GRID = "#FFFFFF", "#222222", "#D9D9D9"
STYLE = {
    "svg.hashsalt": "slt_lib",
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
DODGE = 0.006  # horizontal offset between techniques, as a share of the width: their intervals do not overlap
SAME = 0.02  # percentage points by which rounding to whole weights may change the sparsity of a small matrix
METRICS = {"bleu": "BLEU [%]", "ter": "TER [%] (lower is better)"}


def plot_scores(figures: Figures, pair: str, metric: str = "bleu", overlay: bool = False) -> Figure:
    """Score against sparsity, one line per technique; metric is "bleu" or "ter".

    Bars are 95% intervals over sentences, and over seeds if a cell of similar sparsity has two (`statistics.interval`).
    With `overlay` the paper's curves of this pair are added as dotted lines, and both studies are drawn as differences
    to their dense model, in points: data and model size differ, so absolute scores cannot be compared.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        levels = figures.sparsities(pair)
        paper = paper_figures() if overlay and pair in paper_figures().pairs else None
        if paper:
            levels = sorted({*levels, *paper.sparsities(pair)})
        names, step = figures.begun(pair), DODGE * max(len(levels) - 1, 1)
        for place, name in enumerate(names):
            points = _score_points(figures, pair, name, metric, overlay)
            x = [levels.index(level) + step * (place - (len(names) - 1) / 2) * (level > 0) for level in points]
            y = np.array([value for value, _ in points.values()])
            bounds = np.array([bounds for _, bounds in points.values()]).reshape(-1, 2)
            bars = np.nan_to_num(np.abs(bounds.T - y))
            axes.errorbar(x, y, yerr=bars, elinewidth=1.0, label=label(name), **_look(name, names))
            if paper and name in paper.techniques(pair):
                theirs = _score_points(paper, pair, name, metric, overlay)
                x = [levels.index(level) for level in theirs]
                axes.plot(
                    x, [value for value, _ in theirs.values()], ":", color=_look(name, names)["color"], linewidth=1.2
                )
        if paper:
            axes.plot([], [], ":", color=INK, linewidth=1.2, label="paper (WMT14)")
        dense = figures.cell(pair, "dense", 0)
        if dense and dense.rows:
            height = 0 if overlay else dense.mean(metric)
            axes.axhline(height, color=DENSE.colour, linewidth=1, linestyle=DENSE.line, label=DENSE.label)
        _plot_failed(axes, figures, pair, levels)
        _level_axis(axes, levels)
        axes.set_ylabel(f"{metric.upper()} minus dense [points]" if overlay else METRICS[metric])
        axes.set_title(_title(figures, f"{pair}, {figures.test_set(pair)}"))
        if overlay:
            axes.set_title(_title(figures, f"{pair}, difference to the dense model"))
        known = [bool(seed_spread(figures, pair, metric, level)[1]) for level in figures.sparsities(pair)]
        seeds = " and seeds" if all(known) else " and, if several, seeds" if any(known) else ""
        axes.legend(
            loc="lower left" if metric == "bleu" else "upper left",
            ncols=2,
            title=None if figures.sentences is None else f"bars: 95% interval over sentences{seeds}",
            title_fontsize=8,
            alignment="left",
        )
    return figure


def plot_depth(figures: Figures, pair: str) -> Figure:
    """BLEU minus that of the dense model trained as often (`Figures.control`), one line per technique.

    What is above zero was gained by pruning and rewinding, not by further training. Bars: 95% intervals of the
    difference.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        levels, names = figures.sparsities(pair)[1:], figures.begun(pair)
        for name in names:
            points = {}
            for cell in figures.own_cells(pair, name):
                control = figures.control(pair, figures.depth(name, cell.sparsity))
                if control and cell.sparsity:
                    value = cell.mean("bleu") - control.mean("bleu")
                    points[levels.index(cell.sparsity)] = value, interval(figures, pair, cell, "bleu", minus=control)
            if points:
                y = np.array([value for value, _ in points.values()])
                bars = np.nan_to_num(np.abs(np.array([bounds for _, bounds in points.values()]).T - y))
                axes.errorbar(list(points), y, yerr=bars, elinewidth=1.0, label=label(name), **_look(name, names))
        axes.axhline(0, color=DENSE.colour, linewidth=1, linestyle=DENSE.line, label="dense, trained as often")
        _level_axis(axes, levels)
        axes.set_ylabel("BLEU minus the control of the same depth [points]")
        axes.set_title(_title(figures, f"{pair}, difference to the dense model trained as often"))
        axes.legend(loc="lower left", ncols=2)
    return figure


def _score_points(figures: Figures, pair: str, name: str, metric: str, relative: bool) -> dict[float, tuple]:
    """sparsity -> (score, interval) of the scored cells; `relative`: as differences to the dense model, in points."""
    dense, points = figures.cell(pair, "dense", 0), {}
    for level in figures.sparsities(pair):
        cell = figures.cell(pair, name, level)
        if cell is None or np.isnan(cell.mean(metric)) or (relative and dense is None):
            continue
        if relative and level == 0:
            points[level] = 0.0, (0.0, 0.0)
            continue
        value = cell.mean(metric) - (dense.mean(metric) if relative else 0)
        points[level] = value, interval(figures, pair, cell, metric, dense if relative else None)
    return points


def _plot_failed(axes: Axes, figures: Figures, pair: str, levels: list[float]) -> None:
    """A cross on the lower axis for each cell whose seeds all failed: it has no score, rather than a score of 0."""
    techniques = figures.techniques(pair)
    for name, level in figures.failures(pair):
        if not figures.cell(pair, name, level).rows:
            colour = DENSE.colour if name == "dense" else _look(name, techniques)["color"]
            said = "failed" not in axes.get_legend_handles_labels()[1]
            foot = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": ""}
            axes.plot(levels.index(level), 0.0, marker="x", color=colour, label="failed" if said else None, **foot)


def plot_cost(figures: Figures, pair: str) -> Figure:
    """BLEU against the training steps needed for a cell, including the trainings before it (`Figures.spent`).

    Paper, section 5: LT at 98% costs 13 trainings, MP one. Each marker is a level; the last level is labelled.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        names, labelled = figures.begun(pair), []
        for name in names:
            cells = figures.own_cells(pair, name)
            spent = [figures.spent(pair, name, cell.sparsity) / figures.steps for cell in cells]
            scores = [cell.mean("bleu") for cell in cells]
            axes.plot(spent, scores, label=label(name), **_look(name, names))
            if cells and not any(abs(spent[-1] - x) < 0.5 and abs(scores[-1] - y) < 2 for x, y in labelled):
                labelled.append((spent[-1], scores[-1]))
                text = f"{percent(cells[-1].sparsity)}%"
                axes.annotate(text, labelled[-1], xytext=(7, -3), textcoords="offset points", fontsize=8)
        dense = figures.cell(pair, "dense", 0)
        if dense and dense.rows:
            axes.plot([1], [dense.mean("bleu")], DENSE.marker, color=DENSE.colour, markersize=11, label=DENSE.label)
        axes.set_xlim(left=0.5)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.set_xlabel(f"Training needed for the model [trainings of {figures.steps:,} steps]")
        axes.set_ylabel(METRICS["bleu"])
        axes.set_title(_title(figures, f"{pair}, {figures.test_set(pair)}: training cost"))
        axes.legend(loc="best", ncols=2)
    return figure


def plot_magnitudes(figures: Figures, pair: str) -> Figure:
    """Mean magnitude of the kept weights by level, before and after training, mean over seeds.

    Paper, section 5: under SLT both grow with every level. Part of the growth is selection, because the smallest
    weights are pruned first; MP at the same level shows how large that part is.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        names, levels = figures.begun(pair), figures.sparsities(pair)
        columns = {"mean_abs_start": "at the start of training", "mean_abs_final": "after training"}
        step = 2 * DODGE * max(len(levels) - 1, 1)
        for axes, (column, text) in zip(panels, columns.items(), strict=True):
            means = mean_magnitudes(figures, column)
            for place, name in enumerate(names):
                # a hybrid's first level follows another technique, not the dense run
                cells = [] if "-" in name else filter(None, [figures.cell(pair, "dense", 0)])
                cells = [*cells, *figures.own_cells(pair, name)]
                chain = {
                    cell.sparsity: [means[row["run"]] for row in cell.rows if row["run"] in means] for cell in cells
                }
                chain = {level: seeds for level, seeds in chain.items() if seeds}
                x = [levels.index(level) + step * (place - (len(names) - 1) / 2) * (level > 0) for level in chain]
                y = [np.mean(seeds) for seeds in chain.values()]
                axes.plot(x, y, label=label(name), **_look(name, names))
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=30))
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            _level_axis(axes, levels)
            axes.set_title(text)
        panels[0].set_ylabel("Mean |w| of kept weights (log scale)")
        panels[0].legend(loc="upper left", ncols=2)
        figure.suptitle(_title(figures, f"{pair}: magnitudes"), fontsize=11)
    return figure


def plot_kept(figures: Figures, pair: str, level: float | None = None) -> Figure:
    """Share of weights kept in each matrix at a level (default: the highest that was run), one column per technique.

    Means over seeds. Each matrix is pruned on its own to the same sparsity (FACTS.md section 3). If all matrices keep
    the same share, the figure is a sentence that says so; otherwise it is a heat map around the level.
    """
    cells = [cell for name in figures.begun(pair) for cell in figures.own_cells(pair, name)]
    level = max((cell.sparsity for cell in cells), default=max(figures.levels)) if level is None else level
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        names, columns = [], []
        for name in figures.begun(pair):
            cell = figures.cell(pair, name, level)
            column = _kept(figures, [row["run"] for row in cell.rows] if cell else [])
            if column:
                names.append(name)
                columns.append(column)
        matrices = list(dict.fromkeys(itertools.chain.from_iterable(columns)))
        values = 100 * np.array([[column.get(matrix, np.nan) for column in columns] for matrix in matrices])
        even = values.size and np.nanmax(values) - np.nanmin(values) < SAME
        height = 1.2 if even else max(2.6, 1.4 + 0.16 * len(matrices))
        figure = Figure(figsize=(6.4 if even else 2.6 + 0.75 * len(names), height), layout="constrained")
        axes = figure.subplots()
        if even:
            text = f"Each of the {len(matrices)} matrices keeps {np.nanmean(values):.2f}% of its weights\nin "
            axes.text(0.5, 0.5, text + ", ".join(map(label, names)) + ".", ha="center", va="center")
            axes.set_title(_title(figures, f"{pair}, {percent(level)}%: weights kept"), fontsize=9)
            axes.set(xticks=[], yticks=[])
        elif values.size:
            middle = 100 * (1 - level)
            span = max(np.nanmax(np.abs(values - middle)), 0.05 * middle)
            limits = {"vmin": middle - span, "vmax": middle + span}
            image = axes.imshow(values, aspect="auto", cmap="PuOr", interpolation="nearest", **limits)
            bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 12 / len(matrices) + 0.3))
            bar.set_label("Weights kept [%]")
            axes.set_xticks(range(len(names)), [label(name) for name in names], rotation=45, ha="right", fontsize=8)
            axes.set_yticks(range(len(matrices)), matrices, fontsize=6)
            spread = f"{np.nanmin(values):.2f}% to {np.nanmax(values):.2f}% kept"
            axes.set_title(_title(figures, f"{pair}, {percent(level)}%: {spread}"), fontsize=9, loc="right")
            axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
            axes.set_yticks(np.arange(len(matrices) - 1) + 0.5, minor=True)
            axes.grid(which="minor", color=GROUND, linewidth=1.0)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0)
    return figure


def _kept(figures: Figures, runs: list[str]) -> dict[str, float]:
    if figures.magnitudes is None or not runs:
        return {}
    rows = figures.magnitudes[figures.magnitudes["run"].isin(runs)]
    shares = rows["kept"] / (rows["rows"] * rows["columns"])
    return shares.groupby(rows["matrix"], sort=False).mean().to_dict()


def all_plots(figures: Figures) -> Iterator[tuple[str, Figure]]:
    """(file name without suffix, Figure) of every plot for which the folder has data."""
    for pair in filter(figures.begun, figures.pairs):
        for metric in METRICS:
            yield f"{metric}_{pair}", plot_scores(figures, pair, metric)
            if pair in paper_figures().pairs and not figures.printed and not figures.rehearsal:
                yield f"{metric}_{pair}_paper", plot_scores(figures, pair, metric, overlay=True)
        if figures.control(pair, 1):
            yield f"depth_{pair}", plot_depth(figures, pair)
        if not stability.lines(figures.path, pair).empty:
            yield f"stability_{pair}", stability.plot_stability(figures.path, pair)
        yield f"cost_{pair}", plot_cost(figures, pair)
        if figures.magnitudes is not None:
            yield f"magnitudes_{pair}", plot_magnitudes(figures, pair)
            yield f"kept_{pair}", plot_kept(figures, pair)


def save_plot(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `<name>.svg` and `<name>.png` without dates and versions, so equal figures give equal bytes."""
    blank = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
    paths = []
    with mpl.rc_context(STYLE):
        for kind, metadata in blank.items():
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=150, metadata=metadata)
            paths.append(Path(folder) / f"{name}.{kind}")
            write_bytes(paths[-1], out.getvalue())
    return paths


def _canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    return figure, figure.subplots()


def _look(name: str, names: list[str]) -> dict:
    """Keyword arguments of a technique's curve. A user's own techniques among `names` take the spare looks in order."""
    if name in TECHNIQUES:
        row = TECHNIQUES[name]
        colour, marker, line = row.colour, row.marker, row.line
    else:
        own = [other for other in names if other not in TECHNIQUES]
        (colour, marker), line = SPARE[own.index(name) % len(SPARE)], "-"
    edge = {"markeredgecolor": GROUND, "markeredgewidth": 0.5}
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": SIZES.get(marker, 6.5)} | edge


def _level_axis(axes: Axes, levels: list[float]) -> None:
    axes.set_xticks(range(len(levels)), [percent(level) for level in levels])
    axes.set_xlabel("Sparsity [%] (levels evenly spaced)")


def _title(figures: Figures, text: str) -> str:
    return f"{figures.name}: {text}" + (f" ({figures.note})" if figures.note else "")
