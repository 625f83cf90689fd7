"""The paper's own Tables 1 and 2, read like any study: for claims, overlays and tests."""

import csv
import functools
import json
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from slt_lib.base.files import write_bytes
from slt_lib.report.data import HYBRID_SWITCH, RESULT_COLUMNS, Figures, csv_bytes, load

PAPER_STEPS = 500_000
PAPER_TEST_SET = "newstest2014"
# The one score that the paper gives only in its text (section 5, CLT; FACTS.md section 7, point 14).
PAPER_ABLATION = {"pair": "en-de", "technique": "clt", "variant": "signs=random", "sparsity": "0.5"} | {
    "trained_with": "clt",
    "bleu": "24.6",
    "ter": "67.5",
}


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
    path, pairs, rows = Path(path), {}, []
    for source in paper_table():
        pair, technique, sparsity = source["pair"], source["technique"], int(source["sparsity"]) / 100
        pairs.setdefault(pair, [])
        if technique not in pairs[pair]:
            pairs[pair].append(technique)
        if sparsity == 0 and technique != "mp" or technique == "mp-slt" and sparsity <= HYBRID_SWITCH:
            continue
        technique = "dense" if sparsity == 0 else technique
        second = source["note"].removeprefix("trained with ") if source["note"].startswith("trained") else ""
        trained_with = second or {"mp-slt": "slt"}.get(technique, technique)
        row = {"pair": pair, "technique": technique, "variant": "", "trained_with": trained_with}
        row |= {"sparsity": f"{sparsity:g}", "bleu": source["bleu"], "ter": source["ter"]}
        rows.append(_paper_row(row | {"memory_mib": source["memory_mib"]}))
        if source["note"] == "single run":
            rows.append(
                _paper_row(row | {"seed": "1", "status": "failed", "reason": "single run", "bleu": "", "ter": ""})
            )
    rows.append(_paper_row(PAPER_ABLATION))
    study = {"study": "paper", "rehearsal": False, "printed": True, "pairs": pairs}
    study |= {"levels": sorted({float(row["sparsity"]) for row in rows} - {0.0}), "seeds": [0], "steps": PAPER_STEPS}
    study |= {"test_sets": {pair: [PAPER_TEST_SET] for pair in pairs}}
    write_bytes(path / "study.json", (json.dumps(study, indent=1) + "\n").encode())
    table = [[row[column] for column in RESULT_COLUMNS] for row in rows]
    write_bytes(path / "results.csv", csv_bytes(RESULT_COLUMNS, table))
    return path


def _paper_row(row: Mapping[str, str]) -> dict[str, str]:
    usual = {"study": "paper", "seed": "0", "test_set": PAPER_TEST_SET, "status": "ok", "steps": str(PAPER_STEPS)}
    return dict.fromkeys(RESULT_COLUMNS, "") | usual | dict(row)


@functools.cache
def paper_figures() -> Figures:
    """The paper's own tables, read like any study, by way of a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return load(paper_folder(folder))
