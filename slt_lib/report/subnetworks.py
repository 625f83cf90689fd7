"""Notebook 11 from its CSV files alone: which heads, units and weights a model needs, and which subnetworks learn.

Intervals of scores are Student's t. Their variance is that of the paired bootstrap over the lines of the test set,
which the seeds share, plus that between seeds, pooled over the cells of a table: over the trained models, and for
models as pruned over those of one kind of pruning, since structured ones vary most and single weights leave 0 BLEU.
With one seed it is that of the lines alone.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import stdtrit

from slt_lib.base.settings import DENSE, TECHNIQUES
from slt_lib.report.data import numbers
from slt_lib.report.tables import markdown_rows

# name -> columns after pair and seed; docs/figures.md explains them
COLUMNS = {
    "scores": "pruning subnetwork draw trained sparsity kept bleu error run",
    "contrasts": "pruning trained better worse difference error",
    "pruning": "kind step encoder decoder cross heads units_left units dev_bleu",
    "heads": "kind layer head importance bleu without low high survives pattern confidence positional vertical rare",
    "overlap": "sparsity measure techniques matrix value null low high",
    "density": "sparsity technique matrix head kept dead_rows dead_columns",
    "global": "sparsity technique matrix head kept dead_rows dead_columns",
    "seeds": "heads correlation kappa low high",
}
FILES = {  # name -> file and all its columns
    name: (f"subnet_{name}.csv" + ".gz" * (name == "density"), ["pair", "seed", *columns.split()])
    for name, columns in COLUMNS.items()
}
TEXT = {"pair", "pruning", "subnetwork", "trained", "run", "better", "worse", "kind", "pattern", "measure", "technique"}
TEXT |= {"techniques", "matrix"}
# kinds of attention, in the order of plots
COLOURS = {"encoder": "#0072B2", "decoder": "#E69F00", "cross": "#009E73"}
LOOPS = {"both": ("heads and FFN units", "#222222", "o"), "heads": ("heads alone", "#0072B2", "s")}
LOOPS |= {"feed-forward": ("FFN units alone", "#D55E00", "^")}
QUALITY = {"good": ("#009E73", "^"), "random": ("#56B4E9", "o"), "bad": ("#D55E00", "v")}
TRAINED = {"pruned": "as pruned", "lt": "LT: retrained\nfrom $\\theta_0$", "slt": "SLT: retrained\nfrom $\\theta_t$"}
# Mean of eight GLUE dev metrics in percent, of the paper's own result files; the whole model has 81.4
GLUE = {
    ("structured", "good"): (74.0, 75.6),
    ("structured", "random"): (58.9, 73.2),
    ("structured", "bad"): (51.3, 69.1),
    ("unstructured", "good"): (75.4, 80.6),
    ("unstructured", "random"): (37.2, 61.3),
    ("unstructured", "bad"): (36.1, 51.2),
}


def frame(folder: str | os.PathLike, name: str, pair: str) -> pd.DataFrame:
    """A pair's rows of one of FILES, numbers as such."""
    file, columns = FILES[name]
    return numbers(Path(folder) / file, columns, pair, TEXT | {"seed", "heads"} if name == "seeds" else TEXT)


# Scores ------------------------------------------------------------


def estimates(rows: pd.DataFrame, value: str, by: list[str], alike: pd.Series | None = None) -> pd.DataFrame:
    """Mean over seeds of each cell with its 95% interval: columns mean, deviation, degrees, low, high.

    Column `freedom`: the degrees of freedom of the pooled variance between seeds.
    `rows`: one row per seed and cell with `value` and its standard error over the lines of the test set, `error`.
    `alike`: a label of each row; the variance between seeds is pooled over the cells of one label, by default over all.
    """
    if alike is not None and len(rows):
        return pd.concat([estimates(part, value, by) for _, part in rows.groupby(alike)]).sort_index()
    groups = rows.groupby(by)
    cells = groups.agg(mean=(value, "mean"), count=(value, "size"), error=("error", lambda e: (e**2).mean() ** 0.5))
    freedom = int((cells["count"] - 1).sum())
    within = float((rows[value] - groups[value].transform("mean")).pow(2).sum()) / freedom if freedom else 0.0
    between = within / cells["count"]
    variance = cells.error**2 + between
    # Welch-Satterthwaite; the bootstrap's own degrees of freedom are many
    degrees = variance**2 / (between**2 / freedom).clip(lower=1e-12) if freedom else np.inf + 0 * variance
    deviation = variance**0.5
    width = [stdtrit(d, 0.975) if np.isfinite(d) and d < 1e6 else 1.96 for d in degrees] * deviation
    low, high = cells["mean"] - width, cells["mean"] + width
    return cells.assign(deviation=deviation, freedom=freedom, degrees=degrees.clip(upper=1e6), low=low, high=high)


def alike(rows: pd.DataFrame) -> pd.Series:
    """A label per row: scores with one label vary alike between seeds."""
    return rows.pruning.where(rows.trained == "pruned", "retrained")


def scores(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Mean BLEU with its interval per pruning, subnetwork and training; the draws of a seed are averaged first."""
    rows, by = frame(folder, "scores", pair), ["pruning", "subnetwork", "trained"]
    rows = rows.groupby([*by, "seed"])[["bleu", "error"]].mean().reset_index()
    return estimates(rows, "bleu", by, alike(rows))


def sizes(folder: str | os.PathLike, pair: str) -> dict[str, str]:
    """Pruning -> sparsity of its subnetworks in percent, which can differ between seeds."""
    rows = frame(folder, "scores", pair)
    levels = (100 * rows.sparsity).map("{:.3g}%".format).groupby(rows.pruning).unique()
    return {pruning: " or ".join(sorted(each)) for pruning, each in levels.items()}


def scores_table(folder: str | os.PathLike, pair: str) -> str:
    """Good, random and bad subnetworks as Markdown: BLEU on the test set with 95% intervals, and the paper's GLUE."""
    found, removed, body = scores(folder, pair), sizes(folder, pair), []
    if found.empty:
        return "No subnetwork was trained.\n"
    for (pruning, which), paper in GLUE.items():
        cells = [_cell(found, (pruning, which, trained)) for trained in TRAINED]
        body.append([pruning, removed.get(pruning, "-"), which, *cells, *(f"{value:.1f}" for value in paper)])
    head = ["pruning", "sparsity", "subnetwork", "as pruned", "LT", "SLT", "GLUE, as pruned", "GLUE, retrained"]
    whole, rows = _cell(found, ("", "dense", "")), frame(folder, "scores", pair)
    seeds = [
        f"{name} {', '.join(map(str, sorted(rows.seed[rows.trained == trained].unique()))) or 'none'}"
        for trained, name in zip(TRAINED, head[3:6], strict=True)
    ]
    below = f"The whole model has {whole} BLEU; on GLUE 81.4 (Prasanna et al. 2020). Seeds: {'; '.join(seeds)}."
    return f"{markdown_rows(head, body)}\n{below}\n"


def _cell(found: pd.DataFrame, key: tuple[str, str, str]) -> str:
    if key not in found.index:
        return "-"
    return "{mean:.1f} [{low:.1f}, {high:.1f}]".format(**found.loc[key])


def plot_scores(folder: str | os.PathLike, pair: str) -> Figure:
    """BLEU of good, random and bad subnetworks, as pruned and retrained, with 95% intervals; the whole model dashed."""
    found, removed = scores(folder, pair), sizes(folder, pair)
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for side, pruning in zip(axes, ("structured", "unstructured"), strict=True):
        if ("", "dense", "") in found.index:
            mean = found["mean"]["", "dense", ""]
            side.axhline(mean, color=DENSE.colour, linestyle="--", linewidth=1, label="whole model")
        for shift, (which, (colour, marker)) in zip((-0.16, 0, 0.16), QUALITY.items(), strict=True):
            cells = found.reindex([(pruning, which, trained) for trained in TRAINED])
            bars = [cells["mean"] - cells.low, cells.high - cells["mean"]]
            style = {"color": colour, "marker": marker, "capsize": 3, "linestyle": "none", "label": which}
            side.errorbar(shift + np.arange(3), cells["mean"], yerr=bars, **style)
        what = "heads and FFN units" if pruning == "structured" else "single weights"
        side.set_title(f"{pruning}: {what}, {removed.get(pruning, 'none')} removed", fontsize=9)
        side.set_xlim(-0.5, 2.5)
        side.set_xticks(range(3), TRAINED.values(), fontsize=9)
        side.grid(alpha=0.3, axis="y")
    axes[0].set_ylabel("BLEU on the test set")
    axes[1].legend(frameon=False, fontsize=9)
    return figure


# Heads and units ------------------------------------------------------------


def plot_pruning(folder: str | os.PathLike, pair: str) -> Figure:
    """Dev BLEU, in percent of the whole model's, against the parts removed: heads (left) and FFN units (right)."""
    rows, figure = frame(folder, "pruning", pair), Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    left = rows[["encoder", "decoder", "cross"]].sum(axis=1)
    rows = rows.assign(heads_gone=100 * (1 - left / rows.heads), units_gone=100 * (1 - rows.units_left / rows.units))
    names = {"heads_gone": "attention heads removed (%)", "units_gone": "FFN units removed (%)"}
    for side, (column, name), absent in zip(axes, names.items(), ("feed-forward", "heads"), strict=True):
        for (loop, _), steps in rows[rows.kind != absent].groupby(["kind", "seed"]):
            _, colour, marker = LOOPS[loop]
            steps = steps.sort_values("step")
            share = 100 * steps.dev_bleu / steps.dev_bleu.iloc[0]
            side.plot(steps[column], share, color=colour, marker=marker, markersize=4, linewidth=1.2)
        side.axhline(90, color="0.4", linestyle=":", linewidth=1)
        side.annotate("90%", (1, 90), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
        side.set_xlabel(name)
        side.grid(alpha=0.3)
    for name, colour, marker in LOOPS.values():
        axes[0].plot([], [], color=colour, marker=marker, markersize=4, label=f"removed: {name}")
    axes[0].set_ylabel("BLEU on dev (% of the whole model's)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def plot_survivors(folder: str | os.PathLike, pair: str) -> Figure:
    """Heads left of each kind of attention while heads alone are removed: which kind is needed most?"""
    rows = frame(folder, "pruning", pair).query("kind == 'heads'")
    seeds = sorted(rows.seed.unique())
    figure = Figure(figsize=(1 + 3.2 * len(seeds), 3.2), layout="constrained")
    axes = figure.subplots(1, len(seeds), sharey=True, squeeze=False)[0]
    for side, seed in zip(axes, seeds, strict=True):
        steps = rows[rows.seed == seed].sort_values("step")
        removed = steps.heads - steps[list(COLOURS)].sum(axis=1)
        for place, (kind, colour) in enumerate(COLOURS.items()):  # shifted, so that no line hides another
            side.plot(removed, steps[kind] + 0.05 * (place - 1), color=colour, marker="o", markersize=3, label=kind)
        side.set(title=f"seed {seed}", xlabel="heads removed")
        for axis in (side.xaxis, side.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        side.grid(alpha=0.3)
    axes[0].set_ylabel("heads left")
    axes[0].legend(title="attention", frameon=False, fontsize=8)
    return figure


def plot_heads(folder: str | os.PathLike, pair: str) -> Figure:
    """BLEU points gained or lost without each head, one grid per seed and kind of attention.

    Bold: the 95% interval excludes 0. A cross marks heads that the good structured subnetwork leaves out.
    """
    rows = frame(folder, "heads", pair)
    seeds, layers, heads = sorted(rows.seed.unique()), int(rows.layer.max()), int(rows["head"].max())
    size = 1.2 + 3 * 0.75 * max(heads, 3), 0.9 + len(seeds) * (0.5 * layers + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(seeds), 3, squeeze=False)
    rows = rows.assign(change=rows["without"] - rows.bleu)
    bound = max(1e-9, rows.change.abs().max())
    for (line, seed), (column, kind) in ((a, b) for a in enumerate(seeds) for b in enumerate(COLOURS)):
        axes, part = grid[line, column], rows[(rows.seed == seed) & (rows.kind == kind)]
        table = part.pivot(index="layer", columns="head", values="change")
        image = axes.imshow(table, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
        for head in part.itertuples():
            sure, dark = head.low > 0 or head.high < 0, abs(head.change) > 0.6 * bound
            text = f"{head.change:+.1f}" + ("" if head.survives else " ×")
            style = {"fontweight": "bold" if sure else "normal", "color": "white" if dark else "black"}
            axes.text(head.head - 1, head.layer - 1, text, ha="center", va="center", fontsize=8, **style)
        axes.set_xticks(range(heads), range(1, heads + 1))
        axes.set_yticks(range(layers), range(1, layers + 1))
        axes.set_title(f"{kind} attention, seed {seed}", fontsize=9)
        if line == len(seeds) - 1:
            axes.set_xlabel("head")
        if column == 0:
            axes.set_ylabel("layer")
    figure.colorbar(image, ax=grid, label="BLEU points without the head", shrink=0.9)
    figure.supxlabel("bold: the 95% interval excludes 0;  ×: not in the good structured subnetwork", fontsize=8)
    return figure


def heads_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Per kind of attention and layer: BLEU lost without one head, mean and most, and survivors; over all seeds."""
    rows = frame(folder, "heads", pair)
    rows = rows.assign(lost=rows.bleu - rows["without"], survives=100 * rows.survives)
    columns = {"heads": ("head", "nunique"), "BLEU lost, mean": ("lost", "mean"), "BLEU lost, most": ("lost", "max")}
    found = rows.groupby(["kind", "layer"]).agg(**columns, **{"heads surviving (%)": ("survives", "mean")})
    return found.round({"BLEU lost, mean": 2, "heads surviving (%)": 0})


def patterns_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Heads of each attention pattern, surviving and removed, over all seeds, and the largest shares among them.

    `positional`, `vertical` and `rare`: the share of tokens (percent) on which the rule of that pattern decides.
    """
    rows = frame(folder, "heads", pair)
    by, kept = [rows.kind, rows.pattern], rows.survives.map({1: "surviving", 0: "removed"})
    counts = pd.crosstab(by, kept).reindex(columns=["surviving", "removed"], fill_value=0)
    return counts.join((100 * rows.groupby(by)[["positional", "vertical", "rare"]].max()).round().astype(int))


# Masks ------------------------------------------------------------


def plot_overlap(folder: str | os.PathLike, pair: str) -> Figure:
    """Jaccard's index of the weights that two techniques keep, against sparsity; dashed: random masks of one size.

    Random masks are drawn within the mask of the first level, which LT, SLT and CLT share.
    """
    rows = frame(folder, "overlap", pair).query("measure == 'jaccard' and matrix == 'all'")
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for names, part in rows.groupby("techniques", sort=False):
        one, other = (TECHNIQUES[name] for name in names.split())
        means = part.groupby(100 * part.sparsity)[["value", "null"]].mean()
        label = f"{one.label} and {other.label}"
        axes.plot(means.value, color=one.colour, marker=other.marker, markerfacecolor=other.colour, label=label)
        axes.plot(means.null, color="0.6", linestyle="--", zorder=1)
    axes.plot([], [], color="0.6", linestyle="--", label="random masks")
    axes.set(xlabel="sparsity (%)", ylabel="Jaccard's index of kept weights", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def _in_percent(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(sparsity=(100 * rows.sparsity).map("{:g}%".format))


def kappa_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Fleiss' kappa of the masks of all techniques at each sparsity (percent): a column per seed, one of random masks.

    Random masks are drawn within the mask of the first level, which LT, SLT and CLT share.
    """
    rows = _in_percent(frame(folder, "overlap", pair).query("measure == 'kappa'"))
    rows = pd.concat([rows.assign(seed=rows.seed.astype(str)), rows.assign(seed="random masks", value=rows.null)])
    return rows.pivot_table(index=["sparsity", "techniques"], columns="seed", values="value", sort=False).round(3)


def plot_matrices(folder: str | os.PathLike, pair: str) -> Figure | None:
    """Jaccard's index of two techniques' masks less that of random masks, per matrix and sparsity.

    None where the masks of one technique alone are known.
    """
    rows = frame(folder, "overlap", pair).query("measure == 'jaccard' and matrix != 'all'")
    if rows.empty:
        return None
    rows = rows.assign(more=rows.value - rows.null)
    tables = {
        names: part.pivot_table(index="matrix", columns="sparsity", values="more", sort=False)
        for names, part in rows.groupby("techniques", sort=False)
    }
    bound = max(1e-9, *(table.abs().max().max() for table in tables.values()))
    matrices = next(iter(tables.values())).index
    figure = Figure(figsize=(3.6 + 1.4 * len(tables), 1.2 + 0.17 * len(matrices)), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (names, table) in zip(panels, tables.items(), strict=True):
        image = axes.imshow(table, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
        axes.set_title(" and ".join(TECHNIQUES[name].label for name in names.split()), fontsize=8)
        levels = [f"{100 * level:g}" for level in table.columns]
        axes.set_xticks(range(len(levels)), levels, fontsize=6, rotation=90)
    panels[0].set_yticks(range(len(matrices)), matrices, fontsize=6)
    figure.supxlabel("sparsity (%)", fontsize=9)
    figure.colorbar(image, ax=panels, label="more alike than random masks")
    return figure


def levels_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Jaccard's index of the masks of a technique at a sparsity and at the level below; mean over seeds."""
    rows = _in_percent(frame(folder, "overlap", pair).query("measure == 'levels'"))
    null = rows.assign(techniques="random masks", value=rows.null)
    both = pd.concat([rows, null])
    return both.pivot_table(index="techniques", columns="sparsity", values="value", sort=False).round(2)


def plot_global(folder: str | os.PathLike, pair: str) -> Figure:
    """Share of each matrix that is kept where one threshold prunes all of the dense model; mean over seeds."""
    rows = frame(folder, "global", pair)
    rows = rows[rows["head"].isna()]
    table = rows.pivot_table(index="matrix", columns="sparsity", values="kept", sort=False)
    figure = Figure(figsize=(2.6 + 0.55 * table.shape[1], 1.0 + 0.24 * len(table)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * table, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for y, x in np.ndindex(table.shape):
        value = 100 * table.iloc[y, x]
        axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color="black" if value > 60 else "white")
    axes.set_xticks(range(table.shape[1]), [f"{100 * level:g}" for level in table.columns])
    axes.set_yticks(range(len(table)), table.index, fontsize=7)
    axes.set_xlabel("sparsity of the whole model (%)")
    figure.colorbar(image, ax=axes, label="weights kept (%)")
    return figure


def plot_density(folder: str | os.PathLike, pair: str) -> Figure:
    """Density of each head under the techniques' masks: kept share of its query, key, value and output weights.

    One panel per technique; a dot is a head, at a height of 100% it keeps as much as its matrices do on average.
    """
    rows = frame(folder, "density", pair)
    rows = rows[rows["head"].notna()]
    attention = rows.matrix.str.rpartition(".")[0]
    kind = attention.str.partition(".")[0].mask(attention.str.contains("cross"), "cross")
    keys = ["technique", "seed", "sparsity", "attention", "head", "kind"]
    heads = rows.assign(attention=attention, kind=kind).groupby(keys).kept.mean().reset_index()
    heads = heads.assign(relative=100 * heads.kept / (1 - heads.sparsity))
    names = [name for name in TECHNIQUES if (heads.technique == name).any()]
    figure = Figure(figsize=(1 + 2.8 * len(names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for side, name in zip(axes, names, strict=True):
        part = heads[heads.technique == name]
        levels = sorted(part.sparsity.unique())
        for place, (kind, colour) in enumerate(COLOURS.items()):
            dots = part[part.kind == kind]
            x = [levels.index(level) + 0.2 * (place - 1) for level in dots.sparsity]
            side.plot(x, dots.relative, ".", color=colour, alpha=0.7, label=kind)
        side.axhline(100, color="0.6", linewidth=0.8)
        side.set_xticks(range(len(levels)), [f"{100 * level:g}" for level in levels], fontsize=7)
        side.set(title=TECHNIQUES[name].label, xlabel="sparsity (%)")
    axes[0].set_ylabel("weights a head keeps\n(% of the mean of its matrices)")
    axes[0].legend(title="attention", frameon=False, fontsize=8)
    return figure


def dead_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Rows, columns and heads (percent) that lose all their weights by themselves, per technique and sparsity.

    A row of an attention's query, key or value is a feature of one head. A head has lost all its weights if none of its
    four matrices has any left there. Means over matrices and seeds.
    """
    rows = _in_percent(frame(folder, "density", pair))
    whole, heads = rows[rows["head"].isna()], rows[rows["head"].notna()]
    groups = whole.groupby(["technique", "sparsity"], sort=False)
    found = groups.agg(rows=("dead_rows", "mean"), columns=("dead_columns", "mean")) * 100
    each = ["technique", "sparsity", "seed", heads.matrix.str.rpartition(".")[0].rename("attention"), "head"]
    # by dead rows: the share kept is rounded, so a single weight could be lost
    gone = (heads.groupby(each, sort=False).dead_rows.min() == 1).groupby(level=[0, 1], sort=False).mean() * 100
    return found.join(gone.rename("heads")).round(1)


def survivors_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Heads of each attention that the good subnetwork keeps; one column per seed."""
    rows = frame(folder, "heads", pair)
    return rows.pivot_table(index=["kind", "layer"], columns="seed", values="survives", aggfunc="sum", sort=False)


def seeds_table(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """Whether two seeds keep the same heads: kappa with heads matched by attention, and not; its interval by chance."""
    return frame(folder, "seeds", pair).drop(columns="pair").set_index(["seed", "heads"]).round(3)


# rows needed, what is made of them, its title
SHOWN = [
    ("scores", plot_scores, "BLEU of good, random and bad subnetworks"),
    ("pruning", plot_pruning, "dev BLEU against heads and units removed"),
    ("pruning", plot_survivors, "heads left of each kind of attention, where heads alone are removed"),
    ("heads", plot_heads, "BLEU points without each head"),
    ("heads", patterns_table, "attention patterns of surviving and removed heads"),
    ("heads", survivors_table, "heads that the good subnetwork keeps, by seed"),
    ("seeds", seeds_table, "whether two seeds keep the same heads"),
    ("overlap", plot_overlap, "how alike the masks of two techniques are"),
    ("overlap", kappa_table, "Fleiss' kappa of the masks of all techniques"),
    ("overlap", plot_matrices, "Jaccard's index of two techniques' masks less that of random masks, per matrix"),
    ("overlap", levels_table, "Jaccard's index of a technique's masks at successive levels"),
    ("density", plot_density, "weights that each head keeps under the masks of a technique"),
    ("density", dead_table, "rows, columns and heads without weights, in percent"),
    ("global", plot_global, "weights that each matrix keeps under one threshold for all"),
]


def all_plots(folder: str | os.PathLike, pairs: Iterable[str]) -> Iterator[tuple[str, Figure]]:
    """(file name without suffix, Figure) of every plot of SHOWN that the folder has rows for."""
    for pair in pairs:
        for make, _, made in _made(folder, pair):
            if make.__name__.startswith("plot_"):
                yield f"{make.__name__.replace('plot', 'subnet')}_{pair}", made


def shown(folder: str | os.PathLike, pair: str) -> Iterator[tuple[str, Figure | pd.DataFrame]]:
    """Title and plot or table of everything that the folder has rows for, as the report shows it."""
    for _, title, made in _made(folder, pair):
        yield title, made


def _made(folder: str | os.PathLike, pair: str) -> Iterator[tuple]:
    for name, make, title in SHOWN:
        if not frame(folder, name, pair).empty and (made := make(folder, pair)) is not None:
            yield make, title, made
