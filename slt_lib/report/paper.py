"""The paper's own Tables 1 and 2, read like any study: for claims, overlays and tests."""

import csv
import functools
import json
import os
import tempfile
from importlib import resources
from pathlib import Path

import pandas as pd

from slt_lib.base.files import write_bytes
from slt_lib.report.data import HYBRID_SWITCH, RESULT_COLUMNS, Figures, load

USUAL = {"study": "paper", "seed": "0", "test_set": "newstest2014", "status": "ok", "steps": "500000"}
# The one score that the paper gives only in its text (section 5, CLT; FACTS.md section 7, point 14).
PAPER_ABLATION = {"pair": "en-de", "technique": "clt", "variant": "signs=random", "sparsity": "0.5"}
PAPER_ABLATION |= {"trained_with": "clt", "bleu": "24.6", "ter": "67.5"}


def paper_table() -> list[dict[str, str]]:
    """Tables 1 and 2 of the paper as text: pair, technique, sparsity [%], bleu, ter, memory_mib, note."""
    with resources.files("slt_lib").joinpath("paper_tables.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def paper_folder(path: str | os.PathLike) -> Path:
    """Write the paper's own Tables 1 and 2 as a figures folder and return it.

    One row per cell; seed 0 stands for the mean of the paper's two runs. Cells that the tables repeat are omitted, as
    the report copies them. The single run at 98% (Table 2) gets a second, failed row. `printed` in study.json says that
    the figures are rounded to 0.1 and have no sentences.
    """
    path, cells = Path(path), pd.DataFrame(paper_table())
    pairs = {pair: rows.technique.unique().tolist() for pair, rows in cells.groupby("pair", sort=False)}
    level = cells.sparsity.astype(int) / 100
    trained_with = cells.note.str.extract("trained with (.*)")[0].fillna(cells.technique.replace("mp-slt", "slt"))
    cells = cells.assign(sparsity=level.map("{:g}".format), trained_with=trained_with.mask(level == 0, "dense"))
    repeated = (level == 0) & (cells.technique != "mp") | (cells.technique == "mp-slt") & (level <= HYBRID_SWITCH)
    cells = cells.assign(technique=cells.technique.mask(level == 0, "dense"))[~repeated]
    failed = {"seed": "1", "status": "failed", "reason": "single run", "bleu": "", "ter": ""}
    rows = pd.concat([cells, cells[cells.note == "single run"].assign(**failed), pd.DataFrame([PAPER_ABLATION])])
    rows = rows.reindex(columns=RESULT_COLUMNS).astype(object).fillna(USUAL).fillna("")
    study = {"study": "paper", "rehearsal": False, "printed": True, "pairs": pairs, "seeds": [0]}
    study |= {"levels": sorted({*level} - {0.0}), "steps": int(USUAL["steps"])}
    study |= {"test_sets": dict.fromkeys(pairs, [USUAL["test_set"]])}
    write_bytes(path / "study.json", (json.dumps(study, indent=1) + "\n").encode())
    write_bytes(path / "results.csv", rows.to_csv(index=False, lineterminator="\n").encode())
    return path


@functools.cache
def paper_figures() -> Figures:
    """The paper's own tables, read like any study, by way of a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return load(paper_folder(folder))
