"""The paper's own Tables 1 and 2, read like any study: for claims, overlays and tests."""

import csv
import functools
from importlib import resources
from pathlib import Path

import pandas as pd

from slt_lib.report.data import HYBRID_SWITCH, NUMBERS, RESULT_COLUMNS, Figures

USUAL = {"study": "paper", "seed": "0", "test_set": "newstest2014", "status": "ok", "steps": "500000"}
# The one score that the paper gives only in its text (section 5, CLT; FACTS.md section 7, point 14).
PAPER_ABLATION = {"pair": "en-de", "technique": "clt", "variant": "signs=random", "sparsity": "0.5"}
PAPER_ABLATION |= {"trained_with": "clt", "bleu": "24.6", "ter": "67.5"}


def paper_table() -> list[dict[str, str]]:
    """Tables 1 and 2 of the paper as text: pair, technique, sparsity [%], bleu, ter, memory_mib, note."""
    with resources.files("slt_lib").joinpath("paper_tables.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def paper_figures() -> Figures:
    """The paper's own Tables 1 and 2, like those of any study.

    One row per cell; seed 0 stands for the mean of the paper's two runs. Cells that the tables repeat are omitted, as
    the report copies them. The single run at 98% (Table 2) gets a second, failed row.
    """
    cells = pd.DataFrame(paper_table())
    pairs = {pair: rows.technique.unique().tolist() for pair, rows in cells.groupby("pair", sort=False)}
    level = cells.sparsity.astype(int) / 100
    trained_with = cells.note.str.extract("trained with (.*)")[0].fillna(cells.technique.replace("mp-slt", "slt"))
    cells = cells.assign(sparsity=level.map("{:g}".format), trained_with=trained_with.mask(level == 0, "dense"))
    repeated = (level == 0) & (cells.technique != "mp") | (cells.technique == "mp-slt") & (level <= HYBRID_SWITCH)
    cells = cells.assign(technique=cells.technique.mask(level == 0, "dense"))[~repeated]
    failed = {"seed": "1", "status": "failed", "reason": "single run", "bleu": "", "ter": ""}
    rows = pd.concat([cells, cells[cells.note == "single run"].assign(**failed), pd.DataFrame([PAPER_ABLATION])])
    rows = rows.reindex(columns=RESULT_COLUMNS).astype(object).fillna(USUAL).fillna("").reset_index(drop=True)
    rows[NUMBERS] = rows[NUMBERS].apply(pd.to_numeric).astype(float)
    about = {"pairs": pairs, "levels": sorted({*level} - {0.0}), "steps": int(USUAL["steps"])}
    tests = dict.fromkeys(pairs, [USUAL["test_set"]])
    return Figures(Path("paper"), "paper", rehearsal=False, printed=True, test_sets=tests, results=rows, **about)
