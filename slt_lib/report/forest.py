"""The claims as a forest plot, effect and interval in one line per claim, and as a short table."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from slt_lib.report.claims import CLAIMS, Claims, named, printed, with_unit
from slt_lib.report.data import Figures
from slt_lib.report.judging import FAILS, HOLDS, NO_ROWS, RELATIONS, UNDECIDED, WITHHELD
from slt_lib.report.plots import GROUND, INK, STYLE
from slt_lib.report.tables import MISSING, markdown_rows

FIXED = "\N{NO-BREAK SPACE}"
WORDS = 10  # at most, in the reasons of the short table
COLOURS = {HOLDS: "#009E73", FAILS: "#D55E00", UNDECIDED: "#595959", WITHHELD: "#595959"}
AGREES, PAPER = "#E3F1EC", {"marker": "D", "markersize": 6, "markerfacecolor": GROUND, "markeredgecolor": INK}
ROW, EDGES = 0.4, 1.3  # inches per claim, and for axes and legend


def brief(reason: str, supported: str) -> str:
    """A reason in at most WORDS words: its first clauses that fit; without one, how many contrasts agree."""
    if reason == NO_ROWS:
        return "not run yet"
    shown = ""
    for clause in reason.split("; "):
        longer = f"{shown}; {clause}" if shown else clause
        if len(longer.split()) > WORDS:
            break
        shown = longer
    agree = f"{supported} contrast{' agrees' if supported == '1 of 1' else 's agree'}" if supported else ""
    return shown or " ".join(reason.split()[:WORDS]) or agree


def short_table(claims: Claims, pair: str) -> str:
    """One row per claim of a pair in Markdown: what the paper's tables say, what is found here, and why."""
    body = []
    for row in claims.frame[claims.frame["pair"] == pair].itertuples():
        effect = with_unit(row.effect, row.unit, row.low, row.high).replace(" ", FIXED)
        here = " ".join(filter(None, [f"**{row.verdict}**", effect]))
        body.append([named(row), printed(row).replace(" ", FIXED), here, brief(row.reason, row.supported) or MISSING])
    return markdown_rows([f"Claim, {pair}", "Paper", "Here", "Why"], body)


@mpl.rc_context(STYLE | {"axes.grid": False})
def plot_forest(figures: Figures, claims: Claims, pair: str) -> Figure:
    """One line per claim of a pair: the effect on which its verdict turns, its 95% interval, and the paper's effect.

    Positive favours the claim; the shaded range agrees with it. Above in points of BLEU or TER, below in % growth.
    """
    rows = claims.frame[claims.frame["pair"] == pair]
    growth = rows["unit"].str.startswith("%")
    parts = [part for part in (rows[~growth], rows[growth]) if len(part)]
    figure = Figure(figsize=(5.8, ROW * len(rows) + EDGES), layout="constrained")
    panels = figure.subplots(len(parts), 1, height_ratios=[len(part) + 0.5 for part in parts], squeeze=False)[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        _panel(axes, part)
    panels[0].set_title(figures.titled(f"{figures.name}, {pair}: the paper's claims"), loc="left", fontsize=10)
    marks = [
        Line2D([], [], color=INK, marker="o", markersize=5, label="here, 95% interval"),
        Line2D([], [], linestyle="", label="the paper", **PAPER),
        Patch(color=AGREES, label="agrees with the claim"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8, handlelength=1.5)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    """The lines of claims whose effects have one unit, the first on top."""
    limit, relations = _limit(rows), {claim.name: claim.relation for claim in CLAIMS}
    for place, row in enumerate(rows.itertuples()):
        y, colour = len(rows) - place - 1, COLOURS[row.verdict]
        low, high = (float(np.clip(bound, -limit, limit)) for bound in RELATIONS[relations[row.claim]])
        axes.fill_betweenx([y - 0.32, y + 0.02], low, high, color=AGREES, linewidth=0)
        axes.vlines(0, y - 0.37, y + 0.07, color=INK, linewidth=0.8)
        axes.plot([row.low, row.high], [y - 0.15] * 2, color=colour, linewidth=1.8, solid_capstyle="butt")
        axes.plot(row.paper_effect, y - 0.15, **PAPER)
        axes.plot(row.effect, y - 0.15, "o", color=colour, markersize=5)
        text = {"color": INK, "fontsize": 8, "va": "bottom", "transform": axes.get_yaxis_transform()}
        axes.text(0, y + 0.08, named(row), ha="left", **text)
        verdict = "not run" if row.reason == NO_ROWS else row.verdict
        axes.text(1, y - 0.15, verdict, **text | {"color": colour, "ha": "right", "va": "center"})
    axes.set(xlim=(-limit, 1.35 * limit), ylim=(-0.5, len(rows) - 0.4), yticks=[])
    ticks = [tick for tick in axes.get_xticks() if abs(tick) <= limit]
    axes.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks], fontsize=8)
    unit = "points of BLEU or TER" if rows["unit"].iloc[0][0] != "%" else "% growth"
    axes.set_xlabel(f"effect in {unit}; positive favours the claim", fontsize=8)
    axes.spines["left"].set_visible(False)


def _limit(rows: pd.DataFrame) -> float:
    """Where the axis ends: beyond every effect; a very wide interval is cut there."""
    centre = np.nanmax([1.0, 1.1 * rows[["effect", "paper_effect"]].abs().max(axis=None)])
    return min(np.nanmax([centre, 1.05 * rows[["low", "high"]].abs().max(axis=None)]), 2.5 * centre)
