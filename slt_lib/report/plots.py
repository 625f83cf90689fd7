"""The plots of a study as matplotlib Figures on an opaque white background; looks are in `settings.TECHNIQUES`."""

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slt_lib.base.files import write_bytes
from slt_lib.base.settings import DENSE, TECHNIQUES, Technique
from slt_lib.report import stability
from slt_lib.report.data import Cell, Figures, label, of_common_seeds, percent
from slt_lib.report.paper import paper_figures
from slt_lib.report.statistics import interval, mean_magnitudes, seed_spread

LOOKS = TECHNIQUES | {"dense": DENSE}
SIZES = {"P": 9.0, "X": 9.0, "*": 9.0}  # cross-shaped markers are drawn larger, to be as visible
SPARE = list(itertools.product(["#000000", "#7F7F7F"], "X*<>"))  # for a user's own techniques, in their order
GROUND, INK, GRID = "#FFFFFF", "#222222", "#D9D9D9"
STYLE = (
    dict.fromkeys(["figure.facecolor", "savefig.facecolor", "axes.facecolor"], GROUND)
    | dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"], INK)
    | {"axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True}
    | {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.6}
    | {"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "svg.hashsalt": "slt_lib"}
)
LINE = {"color": DENSE.colour, "linestyle": DENSE.line, "linewidth": 1}
DOTS = {"linestyle": ":", "linewidth": 1.2}
DODGE = 0.006  # horizontal offset between techniques, as a share of the width: their intervals do not overlap
METRICS = {"bleu": "BLEU [%]", "ter": "TER [%] (lower is better)"}

Points = dict[float, tuple[float, tuple[float, float]]]  # sparsity -> value and its interval


@mpl.rc_context(STYLE)
def plot_scores(figures: Figures, pair: str, metric: str = "bleu", overlay: bool = False) -> Figure:
    """Score against sparsity, one line per technique; metric is "bleu" or "ter".

    Bars are 95% intervals over sentences, and over seeds if a cell of similar sparsity has two (`statistics.interval`).
    With `overlay` the paper's curves of this pair are added as dotted lines, and both studies are drawn as differences
    to their dense model, in points: data and model size differ, so absolute scores cannot be compared.
    """
    what, unit = figures.test_set(pair), METRICS[metric]
    if overlay:
        what, unit = "difference to the dense model", f"{metric.upper()} minus dense [points]"
    axes = _canvas(figures, f"{pair}, {what}", unit)
    paper = paper_figures() if overlay and pair in paper_figures().pairs else None
    levels = sorted({*figures.sparsities(pair), *(paper.sparsities(pair) if paper else ())})
    names = figures.begun(pair)
    for name in names:
        points = _scores(figures, pair, name, metric, overlay)
        _errorbars(axes, places(levels, points, name, names), points, name, names)
        if paper and name in paper.techniques(pair):
            theirs = _scores(paper, pair, name, metric, overlay)
            heights = [value for value, _ in theirs.values()]
            axes.plot([levels.index(level) for level in theirs], heights, color=look(name, names)["color"], **DOTS)
    if paper:
        axes.plot([], [], color=INK, label="paper (WMT14)", **DOTS)
    if dense := figures.control(pair, 0):
        axes.axhline(0 if overlay else dense.mean(metric), label=DENSE.label, **LINE)
    if metric == "bleu" and not overlay:
        axes.set_ylim(top=min(axes.get_ylim()[1], 102))  # intervals may go beyond 100, BLEU does not
    _plot_failed(axes, figures, pair, levels)
    _level_axis(axes, levels)
    known = [seed_spread(figures, pair, metric, level)[1] > 0 for level in figures.sparsities(pair)]
    seeds = " and, where known, seeds" if any(known) else ""
    seeds = " and seeds" if all(known) else seeds
    bars = None if figures.sentences is None else f"bars: 95% interval over sentences{seeds}"
    corner = "lower left" if metric == "bleu" else "upper left"
    axes.legend(loc=corner, ncols=2, title=bars, title_fontsize=8, alignment="left")
    return axes.figure


def _scores(figures: Figures, pair: str, name: str, metric: str, relative: bool) -> Points:
    """The scored cells of a technique, those it copies too; `relative`: as differences to the dense model."""
    dense = figures.cell(pair, "dense", 0) if relative else None
    levels = [level for level in figures.sparsities(pair) if level or name != "slt-mp"]  # it starts from an SLT ticket
    cells = [figures.cell(pair, name, level) for level in levels if dense or not relative]
    return _points(figures, pair, metric, [(cell, dense) for cell in cells if cell])


@mpl.rc_context(STYLE)
def plot_depth(figures: Figures, pair: str) -> Figure:
    """BLEU minus that of the dense model trained as often (`Figures.control`), one line per technique.

    What is above zero was gained by pruning and rewinding, not by further training. MP and LT start from theta_0, so
    they are compared with the dense model itself. Bars: 95% intervals of the difference.
    """
    title = f"{pair}, difference to the dense model trained as often"
    axes = _canvas(figures, title, "BLEU minus dense, trained as often [points]")
    levels, names = figures.sparsities(pair)[1:], figures.begun(pair)
    for name in names:
        cells = [cell for cell in figures.own_cells(pair, name) if cell.sparsity]
        controls = [figures.control(pair, figures.depth(name, cell.sparsity)) for cell in cells]
        points = _points(figures, pair, "bleu", [two for two in zip(cells, controls, strict=True) if two[1]])
        if points:
            _errorbars(axes, places(levels, points, name, names), points, name, names)
    axes.axhline(0, label="dense, trained as often", **LINE)
    _level_axis(axes, levels)
    axes.legend(loc="lower left", ncols=2)
    return axes.figure


def _points(figures: Figures, pair: str, metric: str, cells: Iterable[tuple[Cell, Cell | None]]) -> Points:
    """The score of each first cell, less that of the second if there is one, for those that have a score."""
    points = {}
    for cell, minus in cells:
        if not np.isnan(cell.mean(metric)):
            bounds = interval(figures, pair, cell, metric, minus)
            one, other = of_common_seeds(cell, minus) if minus else (cell, None)
            points[cell.sparsity] = one.mean(metric) - (other.mean(metric) if other else 0), bounds
    return points


def _errorbars(axes: Axes, x: list[float], points: Points, name: str, names: list[str]) -> None:
    y = np.array([value for value, _ in points.values()])
    bounds = np.array([bounds for _, bounds in points.values()]).reshape(-1, 2)
    bars = np.nan_to_num(np.abs(bounds.T - y))
    axes.errorbar(x, y, yerr=bars, elinewidth=1.0, label=label(name), **look(name, names))


def _plot_failed(axes: Axes, figures: Figures, pair: str, levels: list[float]) -> None:
    """A cross on the lower axis for each cell whose seeds all failed: it has no score, rather than a score of 0."""
    text = "failed"
    foot = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": "", "marker": "x"}
    for name, level in figures.failures(pair):
        if not figures.cell(pair, name, level).rows:
            colour = look(name, figures.techniques(pair))["color"]
            axes.plot(levels.index(level), 0.0, color=colour, label=text, **foot)
            text = None  # the legend names the cross once


@mpl.rc_context(STYLE)
def plot_cost(figures: Figures, pair: str) -> Figure:
    """BLEU against the training steps needed for a cell, including the trainings before it (`Figures.spent`).

    Paper, section 5: LT at 98% costs 13 trainings, MP one. Each marker is a level; the last level is labelled.
    """
    axes = _canvas(figures, f"{pair}, {figures.test_set(pair)}: training cost", METRICS["bleu"])
    names, labelled = figures.begun(pair), []
    for name in names:
        cells = figures.own_cells(pair, name)
        spent = [figures.spent(pair, name, cell.sparsity) / figures.steps for cell in cells]
        scores = [cell.mean("bleu") for cell in cells]
        axes.plot(spent, scores, label=label(name), **look(name, names))
        if not any(abs(spent[-1] - x) < 0.5 and abs(scores[-1] - y) < 2 for x, y in labelled):
            labelled.append((spent[-1], scores[-1]))
            text = f"{percent(cells[-1].sparsity)}%"
            axes.annotate(text, labelled[-1], xytext=(7, -3), textcoords="offset points", fontsize=8)
    if dense := figures.control(pair, 0):
        axes.plot([1], [dense.mean("bleu")], DENSE.marker, color=DENSE.colour, markersize=11, label=DENSE.label)
    axes.set_xlim(left=0.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel(f"Training needed for the model [trainings of {figures.steps:,} steps]")
    axes.legend(loc="best", ncols=2)
    return axes.figure


@mpl.rc_context(STYLE)
def plot_magnitudes(figures: Figures, pair: str) -> Figure:
    """Mean magnitude of the kept weights by level, before and after training, mean over seeds.

    Paper, section 5: under SLT both grow with every level. Part of the growth is selection, because the smallest
    weights are pruned first; MP at the same level shows how large that part is.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names, levels = figures.begun(pair), figures.sparsities(pair)
    columns = {"mean_abs_start": "at the start of training", "mean_abs_final": "after training"}
    for axes, (column, text) in zip(panels, columns.items(), strict=True):
        means = mean_magnitudes(figures, column)
        for name in names:
            # a hybrid's first level follows another technique, not the dense run
            dense = None if "-" in name else figures.cell(pair, "dense", 0)
            chain = {}
            for cell in filter(None, [dense, *figures.own_cells(pair, name)]):
                if seeds := [means[row["run"]] for row in cell.rows if row["run"] in means]:
                    chain[cell.sparsity] = np.mean(seeds)
            x = places(levels, chain, name, names, dodge=2 * DODGE)
            axes.plot(x, chain.values(), label=label(name), **look(name, names))
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
            figure = stability.plot_stability(figures.path, pair)
            figure.suptitle(_title(figures, f"{pair}, between copies of one ticket"), fontsize=11)
            yield f"stability_{pair}", figure
        yield f"cost_{pair}", plot_cost(figures, pair)
        if figures.magnitudes is not None:
            yield f"magnitudes_{pair}", plot_magnitudes(figures, pair)


@mpl.rc_context(STYLE)
def save_plot(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `<name>.svg` and `<name>.png` without dates and versions, so equal figures give equal bytes."""
    blank = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    paths = []
    for kind, metadata in blank.items():
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
        paths.append(Path(folder) / f"{name}.{kind}")
        write_bytes(paths[-1], out.getvalue())
        figure.set_layout_engine("none")  # the second format keeps the layout of the first, which takes long
    return paths


def _canvas(figures: Figures, title: str, unit: str) -> Axes:
    axes = Figure(figsize=(7.2, 4.6), layout="constrained").subplots()
    axes.set_title(_title(figures, title))
    axes.set_ylabel(unit)
    return axes


def look(name: str, names: list[str]) -> dict:
    """Keyword arguments of a technique's curve. A user's own techniques among `names` take the spare looks in order."""
    own = [other for other in names if other not in LOOKS]
    look = LOOKS[name] if name in LOOKS else Technique(name, "", *SPARE[own.index(name) % len(SPARE)])
    edge = {"markeredgecolor": GROUND, "markeredgewidth": 0.5, "markersize": SIZES.get(look.marker, 6.5)}
    return {"color": look.colour, "marker": look.marker, "linestyle": look.line} | edge


def places(levels: list[float], shown: Iterable[float], name: str, names: list[str], dodge: float = DODGE) -> list:
    """Where the levels `shown` stand on the axis of `levels`; all but 0 are moved aside by the technique's offset."""
    offset = dodge * max(len(levels) - 1, 1) * (names.index(name) - (len(names) - 1) / 2)
    return [levels.index(level) + offset * (level > 0) for level in shown]


def _level_axis(axes: Axes, levels: list[float]) -> None:
    axes.set_xticks(range(len(levels)), [percent(level) for level in levels])
    axes.set_xlabel("Sparsity [%] (levels evenly spaced)")


def _title(figures: Figures, text: str) -> str:
    return figures.titled(f"{figures.name}: {text}")
