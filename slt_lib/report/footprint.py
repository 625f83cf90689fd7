"""Size on disk and speed of each model beside its BLEU: what notebook 12 measured, from footprint.csv alone."""

import os
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slt_lib.base.settings import DENSE, TECHNIQUES
from slt_lib.report.data import label, numbers, percent
from slt_lib.report.plots import STYLE

FILE = "footprint.csv"
# ways to translate: name -> (hypotheses per sentence, sentences at once, all threads)
WAYS = {
    "beam4_batch": (4, 64, False),
    "beam4_batch_all_threads": (4, 64, True),
    "greedy_batch": (1, 64, False),
    "beam4_single": (4, 1, False),
    "greedy_single": (1, 1, False),
}
SIZES = {"bytes": "as exported", "bytes_fp32": "dense fp32", "bytes_bf16": "dense bf16", "bytes_csc": "CSC"}
SIZES |= {"bytes_paper": "compressed CSC (the paper's)"}
COLUMNS = [*"pair technique sparsity seed study run weights".split(), *SIZES, "bleu", *WAYS, "threads", "machine"]
MIB = 2**20


def read(folder: str | os.PathLike, pair: str) -> pd.DataFrame:
    """The rows of a pair; empty where nothing was measured. Sizes in bytes, speeds in sentences per second."""
    return numbers(Path(folder) / FILE, COLUMNS, pair, {"pair", "technique", "study", "run", "machine"})


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Per technique and level: sizes in MiB, and the speed relative to the largest dense model; means over seeds."""
    means = frame.groupby(["study", "technique", "sparsity"], sort=False).mean(numeric_only=True).reset_index()
    dense = means[means.technique == "dense"].nlargest(1, "weights").squeeze()
    shown = pd.DataFrame({"model": [_name(row) for row in means.itertuples()], "BLEU": means.bleu.round(1)})
    for column, name in SIZES.items():
        shown[f"{name} [MiB]"] = (means[column] / MIB).round(2)
    for way in WAYS:
        shown[way.replace("_", " ")] = (means[way] / dense[way]).round(2)
    return shown.set_index("model")


@mpl.rc_context(STYLE)
def plot(frame: pd.DataFrame, way: str = "beam4_batch") -> Figure:
    """BLEU against bytes on disk (left) and against speed (right); means over seeds.

    Dense models of other widths are the alternative to pruning: a technique pays off where its line is above theirs.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    size, speed = figure.subplots(1, 2, sharey=True)
    means = frame.groupby(["technique", "sparsity", "study"]).mean(numeric_only=True).reset_index()
    beam, batch, every = WAYS[way]
    search = "greedy search" if beam == 1 else f"beam {beam}"
    for axes, column, unit in (
        (size, "bytes", "size on disk [MiB]"),
        (speed, way, f"sentences per second ({search}, {batch} at once{', all threads' if every else ', one thread'})"),
    ):
        for technique, part in means.groupby("technique"):
            _line(axes, technique, part.sort_values("sparsity" if technique != "dense" else "weights"), column)
        axes.set_xscale("log")
        axes.set_xlabel(unit)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    size.set_ylabel("BLEU [%]")
    size.legend()
    return figure


def _line(axes: Axes, technique: str, part: pd.DataFrame, column: str) -> None:
    look = TECHNIQUES.get(technique, DENSE)
    values = part[column] / (MIB if column.startswith("bytes") else 1)
    name = "dense, by width" if technique == "dense" and len(part) > 1 else label(technique)
    axes.plot(values, part.bleu, color=look.colour, marker=look.marker or "o", linestyle=look.line, label=name)
    for x, row in zip(values, part.itertuples(), strict=True):
        if technique != "dense" and row.sparsity in (part.sparsity.min(), part.sparsity.max()):
            text = f"{percent(row.sparsity)}%"
            axes.annotate(text, (x, row.bleu), textcoords="offset points", xytext=(4, 4), fontsize=8)


def _name(row) -> str:
    if row.technique == "dense":
        return f"dense, {row.weights / 1e6:.2f}M weights"
    return f"{label(row.technique)} {percent(row.sparsity)}%"
