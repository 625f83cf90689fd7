"""The comparison `stability`: loss and BLEU on the line between copies of one ticket that differ in noise alone."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from slt_lib.report.data import numbers
from slt_lib.report.tables import markdown_rows

FILE = "stability.csv"
COLUMNS = "pair seed start sparsity copies share loss dev_bleu runs".split()
STARTS = {
    "theta_0": r"dense, $\theta_0$",
    "theta_t": r"dense, $\theta_t$",
    "lt": r"LT ticket, $\theta_0 \odot m$",
    "slt": r"SLT ticket, $\theta_t \odot m$",
}
NAMES = {"theta_0": "dense, theta_0", "theta_t": "dense, theta_t", "lt": "LT ticket", "slt": "SLT ticket"}


def lines(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """A pair's points, numbers as such, one row per seed, start, pair of copies and share."""
    return numbers(Path(folder) / FILE, COLUMNS, pair, {"pair", "seed", "start", "copies", "runs"})


def barrier(losses: Sequence[float]) -> float:
    """The highest loss on the line less the mean of its two ends (Frankle et al. 2020); in the order of the line."""
    return max(losses) - (losses[0] + losses[-1]) / 2


def barriers(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """One row per seed, start and pair of copies: the barrier in loss (nats per token) and in BLEU (points lost)."""
    frame = lines(folder, pair).sort_values("share")
    frame = frame.assign(barrier=frame.loss, bleu_lost=-frame.dev_bleu)
    groups = frame.groupby(["seed", "start", "sparsity", "copies"])[["barrier", "bleu_lost"]]
    return groups.agg(lambda losses: barrier(losses.tolist())).reset_index()


def table(folder: str | os.PathLike, pair: str) -> str:
    """Barriers per start as Markdown: the mean over seeds and pairs of copies, with the range."""
    found, body = barriers(folder, pair), []
    for start in STARTS:
        for level, part in found[found.start == start].groupby("sparsity"):
            loss, bleu = (f"{x.mean():.2f} ({x.min():.2f} to {x.max():.2f})" for x in (part.barrier, part.bleu_lost))
            body.append([NAMES[start], f"{100 * level:g}%", str(len(part)), loss, bleu])
    head = ["Start", "Sparsity", "Lines", "Barrier [nats per token]", "Barrier [BLEU]"]
    note = "Barrier: the worst point of a line against the mean of its two ends, on dev; mean and range over the lines."
    return f"{markdown_rows(head, body)}\n{note}\n"


def plot_stability(folder: str | os.PathLike, pair: str) -> Figure:
    """Loss (above) and dev BLEU (below) on the line between two copies, one column per start, with its mean barrier."""
    frame = lines(folder, pair).sort_values("share")
    means = barriers(folder, pair).groupby("start")[["barrier", "bleu_lost"]].mean()
    starts = [start for start in STARTS if (frame.start == start).any()]
    figure = Figure(figsize=(2.6 * len(starts) + 0.8, 4.6), layout="constrained")
    axes = figure.subplots(2, len(starts), sharex=True, sharey="row", squeeze=False)
    for column, start in enumerate(starts):
        part = frame[frame.start == start]
        level = part.sparsity.iloc[0]
        name = STARTS[start] + (f", {100 * level:g}%" if level else "")
        axes[0, column].set_title(f"{name}\nbarrier {means.barrier[start]:.2f} nats", fontsize=9)
        axes[1, column].set_title(f"barrier {means.bleu_lost[start]:.1f} BLEU", fontsize=9)
        for row, metric in enumerate(("loss", "dev_bleu")):
            for _, line in part.groupby(["seed", "copies"]):
                axes[row, column].plot(line.share, line[metric], color="C0", alpha=0.7, linewidth=1.2)
            axes[row, column].grid(alpha=0.3)
        axes[1, column].set_xlabel("from one copy to the other")
    axes[0, 0].set_ylabel("loss on dev (nats per token)")
    axes[1, 0].set_ylabel("BLEU on dev")
    return figure
