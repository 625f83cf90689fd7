"""Tables, plots and claims from a study's figures folder alone.

`render(folder)` writes everything; notebooks use the parts:

    figures = load("figures/multi30k")
    table(figures, "en-de")                   # Tables 1 and 2 of the paper, shown as Markdown
    plot_scores(figures, "en-de", "bleu")     # a matplotlib Figure
    claims_table(figures)                     # a verdict on every claim of the paper
    write_page("figures/multi30k")            # report.html from the executed notebook report.ipynb
"""

import itertools
import os
import re
from pathlib import Path

from slt_lib.base.files import write_bytes
from slt_lib.report import dissect, findings, subnetworks
from slt_lib.report.claims import claims_table
from slt_lib.report.data import load
from slt_lib.report.forest import plot_forest, short_table
from slt_lib.report.headline import headline
from slt_lib.report.merging import merge
from slt_lib.report.page import fold, show, write_page
from slt_lib.report.paper import paper_table
from slt_lib.report.plots import (
    all_plots,
    plot_cost,
    plot_depth,
    plot_magnitudes,
    plot_scores,
    save_plot,
)
from slt_lib.report.summary import cost, into, provenance_table, summary
from slt_lib.report.tables import ablations, beside_paper, table


def render(folder: str | os.PathLike) -> dict[str, Path]:
    """Merge a figures folder and write its tables, plots and claims into it; equal input gives equal bytes.

    Returns file name -> path of the files written, merged files first. Raises InputError if the folder is missing or
    malformed, before anything but the merged files is written.
    """
    paths = {path.name: path for path in merge(folder).values()}
    figures = load(folder)
    texts = {}
    for pair in figures.pairs:
        for place, test_set in enumerate(figures.test_sets[pair]):
            shown = table(figures, pair, test_set)
            name = f"table_{pair}" + (re.sub(r"[^\w.-]", "_", f"_{test_set}") if place else "")
            texts |= {f"{name}.md": shown.markdown, f"{name}.tex": shown.latex, f"{name}.csv": shown.csv}
        other = ablations(figures, pair)
        texts |= {f"ablations_{pair}.md": other.markdown, f"ablations_{pair}.csv": other.csv}
    verdicts = claims_table(figures)
    texts |= {"claims.csv": verdicts.csv, "claims.md": verdicts.markdown, "contrasts.csv": verdicts.contrasts}
    texts["summary.md"] = summary(figures, verdicts)
    texts |= findings.render(figures.path, figures.pairs)
    for name, text in texts.items():
        paths[name] = figures.path / name
        write_bytes(paths[name], text.encode())
    plots = [dissect.all_plots(figures.path, figures.pairs, few=figures.rehearsal)]
    plots += [] if figures.rehearsal else [subnetworks.all_plots(figures.path, figures.pairs)]
    for name, plot in itertools.chain(all_plots(figures), *plots):
        for path in save_plot(plot, figures.path, name):
            paths[path.name] = path
    return paths
