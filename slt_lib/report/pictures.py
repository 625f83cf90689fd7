"""Pictures of trainings from arrays and figures: plans, learning curves, kept weights, magnitudes, and the answer.

Colours and markers of techniques are `plots.look`'s. Where levels share a panel, `level_colours` colours them.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from slt_lib.base.settings import DENSE, TECHNIQUES
from slt_lib.report.data import Cell, Figures, label, percent
from slt_lib.report.paper import paper_figures
from slt_lib.report.plots import DOTS, GRID, GROUND, INK, LINE, STYLE, look
from slt_lib.report.statistics import contrast, same_runs
from slt_lib.report.tables import FAILED, MISSING, Table, markdown_rows

SEEDS = ("-", ":", "--", "-.")  # line styles of the first, second, ... seed
OWN = "yours"  # name of a changed recipe in plots: it gets the first spare look
PANELS = {"loss": "training loss", "dev_bleu": "dev BLEU [%]", "sparsity": "sparsity [%]"}
MATRICES = ("query", "key", "value", "output", "inner", "outer")  # columns of the heat map
BLOCK, BLOCKS = 8, 24  # least rows and columns in a block of the heat map, and most blocks on a side
SMALLEST = 1e-4  # magnitudes below are drawn there


def level_colours(levels: Iterable[float]) -> dict[float, tuple | str]:
    """Level -> colour, from light to dark as the sparsity rises; 0 has the colour of the dense model."""
    levels = sorted({*levels} - {0.0})
    shades = mpl.colormaps["viridis_r"](np.linspace(0.1, 0.95, len(levels))) if levels else []
    return {0.0: DENSE.colour} | dict(zip(levels, map(tuple, shades), strict=True))


# Trainings ------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """The learning curve of one training; `kind`: dense, mp, lt, slt or clt; `points`: see `Run.curve`.

    `variant`: the knobs that differ from the recipe's default.
    """

    kind: str
    sparsity: float
    seed: int
    points: Sequence[Mapping]
    variant: str = ""

    @property
    def name(self) -> str:
        level = f" {percent(self.sparsity)}%" if self.sparsity else ""
        return f"{label(self.kind)}{level}" + (f", {self.variant}" if self.variant else "")


@mpl.rc_context(STYLE)
def plot_curves(curves: Iterable[Curve], steps: int) -> Figure:
    """Training loss, dev BLEU and sparsity over the `steps` of each training: colour by level, line style by seed.

    If there are several kinds or variants of a level, and few in all, the colours tell these apart. Where there are
    many, variants are pale.
    """
    curves = sorted(curves, key=lambda curve: (curve.sparsity, curve.variant, curve.seed))
    colours, seeds = level_colours(curve.sparsity for curve in curves), sorted({curve.seed for curve in curves})
    names = list(dict.fromkeys(curve.name for curve in curves if curve.sparsity or curve.variant))
    shades = mpl.colormaps["Dark2" if len(names) <= 8 else "tab20"].colors
    few = len({curve.sparsity for curve in curves} - {0.0}) < len(names) <= len(shades)
    own = dict(zip(names, shades, strict=False)) if few else {}
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    panels, shown = figure.subplots(1, 3), {}
    for curve in curves:
        colour = own.get(curve.name, colours[curve.sparsity])
        name = curve.name if few else replace(curve, variant="other settings" if curve.variant else "").name
        style = {"color": colour, "linestyle": SEEDS[seeds.index(curve.seed) % len(SEEDS)]}
        style["alpha"] = 0.4 if curve.variant and not few else 1.0
        for axes, column in zip(panels, PANELS, strict=True):
            heights = [point[column] * (100 if column == "sparsity" else 1) for point in curve.points]
            [line] = axes.plot([point["step"] for point in curve.points], heights, ".", markersize=3, **style)
        shown.setdefault(name, line)
    for axes, text in zip(panels, PANELS.values(), strict=True):
        axes.set(xlabel="step", title=text, xlim=(0, steps))
    panels[2].set_ylim(-3, 103)
    for seed, style in zip(seeds, SEEDS, strict=False) if len(seeds) > 1 else ():
        shown[f"seed {seed}"] = mpl.lines.Line2D([], [], color=INK, linestyle=style)
    figure.legend(shown.values(), shown.keys(), loc="outside right center", fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    """The picture as the content of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, facecolor=GROUND)
    return out.getvalue()


@dataclass(frozen=True)
class Plan:
    """One training as planned.

    `depth`: trainings before it. `sparsity` and `rate`: after 0, 1, ... steps. `origin`: depth and step of the training
    that its initial weights come from; None for theta_0.
    """

    depth: int
    level: float
    sparsity: Sequence[float]
    rate: Sequence[float]
    origin: tuple[int, int] | None


@mpl.rc_context(STYLE)
def plot_plan(plans: Sequence[Plan], title: str) -> Figure:
    """Sparsity (above) and learning rate (below) of each training of a chain, one training after the other.

    An arrow leads from the step whose weights a training starts from to its start.
    """
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    colours = level_colours(plan.level for plan in plans)
    steps, deepest = len(plans[0].rate) - 1, max(plan.depth for plan in plans)
    height = {plan.depth: plan.sparsity for plan in plans}
    for plan in plans:
        x = plan.depth + np.arange(steps + 1) / steps
        above.plot(x, 100 * np.array(plan.sparsity), color=colours[plan.level], linewidth=2, solid_capstyle="butt")
        below.plot(x, plan.rate, color=colours[plan.level])
        depth, step = plan.origin or (0, 0)  # where its initial weights come from
        here = depth + step / steps, 100 * height[depth][step]
        above.plot(*here, "o", color=INK, markersize=4, zorder=3)
        if plan.depth > 0:
            arrow = {"arrowstyle": "->", "linestyle": ":", "color": INK, "shrinkA": 3}
            arrow["connectionstyle"] = "arc3,rad=-0.15"
            above.annotate("", (plan.depth, 100 * plan.sparsity[0]), here, arrowprops=arrow)
    free = dict.fromkeys(height, 120.0)  # depth -> height below which the next label has room
    last = {plan.level: plan.depth for plan in sorted(plans, key=lambda plan: plan.depth) if plan.level}
    for level, depth in sorted(last.items(), reverse=True):
        free[depth] = min(100 * level, free[depth] - 9)
        above.annotate(f" {percent(level)}%", (depth + 1, free[depth]), fontsize=8, va="center")
    above.plot([], [], "o", color=INK, markersize=4, label=r"initial weights: $\theta_0$, or $\theta_t$ of a training")
    above.legend(loc="upper left", fontsize=8)
    above.set(ylabel="sparsity [%]", ylim=(-5, 118), yticks=range(0, 101, 25), title=title)
    below.set(ylabel="learning\nrate", xlabel=f"depth in the chain [trainings of {steps:,} steps]", ylim=(0, None))
    below.set_xticks(range(deepest + 2))
    below.set_xlim(-0.02, deepest + 1.02)
    return figure


# Weights ------------------------------------------------------------


def block_shares(kept: np.ndarray) -> np.ndarray:
    """Share of kept weights [%] in blocks of a matrix: at least BLOCK rows and columns each, at most BLOCKS a side."""
    share = kept.astype(float)
    for axis in (0, 1):
        count = max(1, min(BLOCKS, kept.shape[axis] // BLOCK))
        edges = np.linspace(0, kept.shape[axis], count + 1).astype(int)
        shape = [-1, 1] if axis == 0 else [1, -1]
        share = np.add.reduceat(share, edges[:-1], axis=axis) / np.diff(edges).reshape(shape)
    return 100 * share


def chance(masks: Mapping[str, np.ndarray], shares: Mapping[str, np.ndarray]) -> float:
    """Standard deviation between blocks [points] of random masks of the same sparsity, the mean over the matrices."""
    # the variance of a block's share: that of one weight, divided by the number of weights in the block
    return 100 * float(np.mean([(masks[name].var() * shares[name].size / masks[name].size) ** 0.5 for name in shares]))


@mpl.rc_context(STYLE | {"axes.grid": False})
def plot_blocks(masks: Mapping[str, np.ndarray], title: str, heads: int) -> Figure:
    """Share of kept weights in blocks of each matrix, one row per layer; white lines separate the `heads`.

    Rows of a matrix are its outputs, columns its inputs.
    """
    places, rows = {}, {}
    for name in masks:
        layer, _, matrix = name.rpartition(".")
        row = layer.replace(".cross_attention", ", cross").replace(".self_attention", "").replace(".feed_forward", "")
        if matrix in MATRICES:
            places[name] = rows.setdefault(row, len(rows)), MATRICES.index(matrix)
    free = [(row, column) for row in range(len(rows)) for column in (5, 4) if (row, column) not in places.values()]
    height = 0.95 + 1.3 * len(rows)
    figure = Figure(figsize=(9.6, height))  # no layout engine: with this many panels it is slow
    figure.subplots_adjust(0.04, 0.25 / height, 0.9, 1 - 0.7 / height, 0.06, 0.06)
    panels = figure.subplots(len(rows), len(MATRICES), squeeze=False)
    places |= {name: free.pop(0) for name in masks if name not in places and free}
    shares = {name: block_shares(masks[name]) for name in places}
    limits = {"vmin": 0, "vmax": max(share.max() for share in shares.values())}
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for (row, column), name in {place: name for name, place in places.items()}.items():
        axes, matrix = panels[row, column], name.rpartition(".")[2]
        image = axes.imshow(shares[name], aspect="auto", cmap="viridis", **limits)
        if matrix not in MATRICES:
            axes.set_xlabel(matrix, fontsize=9)
        elif row == 0:
            axes.set_title(matrix, fontsize=9)
        lines = axes.axvline if matrix == "output" else axes.axhline
        size = shares[name].shape[1 if matrix == "output" else 0]
        for i in range(1, heads) if matrix in MATRICES[:4] else ():
            lines(i * size / heads - 0.5, color=GROUND, linewidth=1)
    for text, row in rows.items():
        panels[row, 0].set_ylabel(text.replace(".", " "), fontsize=9)
    figure.colorbar(image, cax=figure.add_axes((0.915, 0.1, 0.012, 0.7)), label="kept in a block [%]")
    figure.suptitle(f"{title}; a random mask would vary by {chance(masks, shares):.1f} points", fontsize=11)
    return figure


@mpl.rc_context(STYLE)
def plot_histograms(panels: Mapping[str, Mapping[str, np.ndarray]], title: str, kind: str) -> Figure:
    """Histograms of |w| on a log axis. `panels`: title -> {"kept": weights, "pruned": weights}; zeros are left out.

    `kind`: the technique whose colour the kept weights have.
    """
    found = {text: {name: np.abs(w[w != 0]) for name, w in part.items()} for text, part in panels.items()}
    largest = max(w.max() for part in found.values() for w in part.values() if w.size)
    edges = np.geomspace(SMALLEST, 1.05 * largest, 70)
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    colours = {"pruned": "#9A9A9A", "kept": TECHNIQUES.get(kind, DENSE).colour}
    row = figure.subplots(1, len(found), sharex=True, squeeze=False)[0]
    for axes, (text, part) in zip(row, found.items(), strict=True):
        for name, colour in colours.items():
            if part[name].size:
                counts, _ = np.histogram(np.maximum(part[name], SMALLEST), edges)
                axes.stairs(counts, edges, fill=True, color=colour, alpha=0.65, label=f"{name}: {part[name].size:,}")
        axes.set(xscale="log", xlabel="|w| (log scale)", title=text)
        axes.xaxis.set_minor_locator(ticker.NullLocator())  # its labels take half of the time of drawing
        axes.margins(y=0.25)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", fontsize=8)
    figure.axes[0].set_ylabel("weights")
    figure.suptitle(title, fontsize=11)
    return figure


# The answer ------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Cells to compare, each a mean over seeds: the dense model, the runs of a recipe, and those of its default.

    `variant`: the knobs that differ, empty if none does; then `default` is empty too. The cells are of `figures`.
    """

    figures: Figures
    pair: str
    technique: str
    variant: str
    dense: Cell | None
    yours: Mapping[float, Cell]
    default: Mapping[float, Cell]

    @property
    def levels(self) -> list[float]:
        """The sparsities of the runs, rising, without the dense model."""
        return sorted({*self.yours, *self.default} - {0.0})

    def paper(self) -> dict[float, float]:
        """Level -> the paper's BLEU minus that of its own dense model; empty if it has no such curve."""
        study = paper_figures()
        if self.pair not in study.pairs or self.technique not in study.techniques(self.pair):
            return {}
        dense = study.cell(self.pair, "dense", 0).mean("bleu")
        cells = [study.cell(self.pair, self.technique, level) for level in study.sparsities(self.pair)]
        return {cell.sparsity: cell.mean("bleu") - dense for cell in cells if cell and cell.rows}


@mpl.rc_context(STYLE)
def plot_answer(answer: Answer) -> Figure:
    """BLEU minus that of the dense model against sparsity: the runs, those of the default recipe, and the paper's.

    Each study has its own dense model, the first point of every curve. Bars: 95% intervals (`statistics.contrast`).
    """
    figures, paper = answer.figures, answer.paper()
    axes = Figure(figsize=(7.2, 4.2), layout="constrained").subplots()
    levels = sorted({0.0, *answer.levels, *paper})
    name = label(answer.technique)
    curves = {f"{name}, default": (answer.default, answer.technique)} if answer.default else {}
    own = OWN if answer.variant else answer.technique
    curves[f"{name}, {answer.variant}" if answer.variant else name] = answer.yours, own
    for place, (text, (cells, kind)) in enumerate(curves.items()):
        found = {level: contrast(figures, answer.pair, cells[level], answer.dense) for level in sorted({*cells} - {0})}
        found = {level: gap for level, gap in found.items() if gap}
        bounds = np.array([gap.bounds() for gap in found.values()]).reshape(-1, 2)
        y = np.array([gap.effect for gap in found.values()])
        x = [levels.index(level) + 0.012 * len(levels) * (place - (len(curves) - 1) / 2) for level in found]
        bars = np.pad(np.abs(bounds.T - y), ((0, 0), (1, 0)))
        axes.errorbar([0, *x], [0, *y], yerr=bars, elinewidth=1.0, label=text, **look(kind, [answer.technique, OWN]))
    if paper:
        line = {"color": look(answer.technique, [answer.technique])["color"], "label": "paper (WMT14)"} | DOTS
        axes.plot([levels.index(level) for level in paper], list(paper.values()), **line)
    axes.plot([0], [0], DENSE.marker, color=DENSE.colour, markersize=11, zorder=4, label=DENSE.label)
    axes.axhline(0, **LINE)
    axes.set_xticks(range(len(levels)), [percent(level) for level in levels])
    axes.set(xlabel="sparsity [%] (levels evenly spaced)", ylabel="BLEU minus dense [points]")
    axes.set_title(figures.titled(f"{figures.name}: {answer.pair}, {figures.test_set(answer.pair)}"))
    axes.legend(loc="lower left", title="bars: 95% intervals", title_fontsize=8, alignment="left")
    return axes.figure


def answer_table(answer: Answer) -> Table:
    """One row per level: BLEU of the default and of the changed recipe, and their difference with its 95% interval.

    If no knob differs the difference is that to the dense model. The paper's difference to its dense model is next to
    it.
    """
    paper, dense = answer.paper(), _bleu(answer.dense)
    if answer.variant:
        lines = [["Sparsity", "Default", "Yours", "Yours minus default [95%]", "Yours minus dense [95%]"]]
        lines.append(["0% (dense)", dense, dense, "", ""])
    else:
        lines = [["Sparsity", "BLEU", "Minus dense [95%]"], ["0% (dense)", dense, ""]]
    for level in answer.levels:
        own, default = answer.yours.get(level), answer.default.get(level)
        cells = [_bleu(default), _bleu(own), _gap(answer, own, default)] if answer.variant else [_bleu(own)]
        lines.append([f"{percent(level)}%", *cells, _gap(answer, own, answer.dense)])
    if paper:
        theirs = [f"{paper[level]:+.1f}" if level in paper else MISSING for level in answer.levels]
        lines = [[*line, cell] for line, cell in zip(lines, ["Paper: minus dense", "", *theirs], strict=True)]
    return Table(markdown_rows(lines[0], lines[1:]), "", "")


def _bleu(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    return f"{cell.mean('bleu'):.1f}" if cell.rows else FAILED


def _gap(answer: Answer, cell: Cell | None, minus: Cell | None) -> str:
    """The difference of two cells with its interval."""
    if same_runs(cell, minus):
        return "the same runs"
    gap = contrast(answer.figures, answer.pair, cell, minus)
    return MISSING if gap is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(gap.effect, *gap.bounds())


@mpl.rc_context(STYLE)
def plot_variants(figures: Figures, pair: str) -> Figure | None:
    """Each variant's BLEU minus that of its default recipe at the same sparsity, with its 95% interval; None if none.

    The marker and colour are those of the technique.
    """
    found = {}
    for cell in figures.variants(pair):
        if gap := contrast(figures, pair, cell, figures.default(pair, cell)):
            name = label(cell.technique) + (f" {percent(cell.sparsity)}%" if cell.sparsity else "")
            found[f"{name}, {cell.variant}"] = cell.technique, gap
    if not found:
        return None
    figure = Figure(figsize=(7.2, 1.1 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, (technique, gap) in enumerate(found.values()):
        bars = np.abs(np.array(gap.bounds()) - gap.effect).reshape(2, 1)
        axes.errorbar([gap.effect], [place], xerr=bars, elinewidth=1.0, **look(technique, [technique]))
    axes.axvline(0, **LINE)
    axes.set_yticks(range(len(found)), found)
    axes.set(xlabel="BLEU minus default [points], 95% interval", ylim=(len(found) - 0.5, -0.5))
    axes.grid(axis="y", color=GRID)
    axes.set_title(figures.titled(f"{figures.name}: {pair}, {figures.test_set(pair)}"))
    return figure
