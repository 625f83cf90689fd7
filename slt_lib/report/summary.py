"""A summary of a study for the README: the plot, BLEU of Table 1, the verdicts, and the computing time."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.report.claims import Claims, claims_table
from slt_lib.report.data import KINDS, Figures, label
from slt_lib.report.tables import MISSING, NONE, ablations, failed, markdown_rows, table, uneven

BEGIN, END = "<!-- results of {}: made by `python -m slt_lib report {} --into {}` -->", "<!-- end of results -->"


def summary(figures: Figures, claims: Claims | None = None) -> str:
    """Markdown with plot, BLEU, verdicts and variants of each pair. `claims`: verdicts computed earlier, if any.

    Links to plots are relative to the folder that contains `figures/`.
    """
    verdicts = (claims or claims_table(figures)).short
    parts = []
    for pair in figures.pairs:
        if not (figures.results.pair == pair).any():
            parts.append(f"{pair}: nothing was run yet.")
            continue
        if figures.begun(pair):
            name = f"bleu_{pair}.png"
            parts.append(f"![{pair}: BLEU against sparsity, one line per technique](figures/{figures.name}/{name})")
        parts.append(_scores(figures, pair))
        parts.append(verdicts[pair])
        if figures.variants(pair):
            other = ablations(figures, pair).markdown.partition("\n\n")[2]
            parts.append(f"Variants of the recipes, {pair}, BLEU:\n\n{other}")
    return "\n\n".join(filter(None, (part.strip() for part in parts))) + "\n"


def into(figures: Figures, path: str | os.PathLike, allow_dirty: bool = False) -> Path:
    """Write the summary and the computing time between the two marks in the file `path`; the rest is unchanged.

    Raises InputError if the file lacks the marks, or if a row comes from uncommitted code. With `allow_dirty` the text
    says so instead.
    """
    states = ""
    if dirty := uncommitted(figures):
        run, commit = next(iter(dirty.items()))
        count = f"{len(dirty)} of {len(_trainings(figures))} trainings ran on uncommitted code"
        if not allow_dirty:
            raise InputError(
                f"{figures.path / KINDS['provenance'][0]}: {count}, such as run {run} (commit {commit or 'unknown'}); "
                "train them again on a commit, or give --allow-dirty, and the text says so"
            )
        states = f"{count}: no commit has exactly what made these numbers.\n"
    shown = "\n".join(filter(None, [summary(figures), states, cost(figures)]))
    return between(path, BEGIN.format(figures.name, figures.name, Path(path).name), END, shown)


def uncommitted(figures: Figures) -> dict[str, str]:
    """run -> commit of the trainings whose provenance is not a clean commit hash."""
    path = figures.path / KINDS["provenance"][0]
    rows = _read(path.read_text(encoding="utf-8")) if path.is_file() else pd.DataFrame({"run": [], "commit": []})
    commits = dict(zip(rows["run"], rows["commit"], strict=True))
    found = {run: commits.get(run, "") for run in _trainings(figures)}
    clean = "[0-9a-f]{7,64}"  # several if a training was interrupted and resumed
    return {run: commit for run, commit in found.items() if not re.fullmatch(f"{clean}( {clean})*", commit)}


def _trainings(figures: Figures) -> list[str]:
    return sorted({run.partition("+")[0] for run in figures.results.run})


def between(path: str | os.PathLike, begin: str, end: str, shown: str) -> Path:
    """Write `shown` between the lines `begin` and `end` of the file `path`. Raises InputError if it lacks them."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a text file with the two marks") from None
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise InputError(f"{path}: the marks are missing; write a line {begin} and, below it, {end}")
    write_bytes(path, f"{before}{begin}\n\n{shown}\n{end}{after}".encode())
    return path


def _scores(figures: Figures, pair: str) -> str:
    """BLEU of Table 1, without the techniques and levels that have not been run yet."""
    rows = _read(table(figures, pair).csv)
    tried = {*figures.begun(pair), *(technique for technique, _ in figures.failures(pair))}
    names = [name for name in figures.techniques(pair) if name in tried]
    body, missing = [], len(names) < len(figures.techniques(pair))
    for level in dict.fromkeys(rows.sparsity):
        line = rows[rows.sparsity == level].set_index("technique")
        if all(line.bleu[name] in (MISSING, NONE) for name in names):
            missing = True
            continue
        marked = {name: ("**{}**" if "bleu" in line.best[name].split() else "{}") for name in names}
        body.append([f"{level}%", *(marked[name].format(line.bleu[name]) for name in names)])
    seeds = sorted({int(seed) for seed in figures.results[figures.results.pair == pair].seed})
    several = f"means over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    if odd := uneven(figures, pair):
        several = "means over the seeds that each cell has"
    title = f"BLEU on {pair}, {figures.test_set(pair)}, {several}"
    if not names:
        dense = figures.cell(pair, "dense", 0)
        known = f": {dense.mean('bleu'):.1f} (dense)" if dense and dense.rows else ""
        return " ".join(filter(None, [f"{title}{known}; no technique was run yet.", failed(figures, pair)]))
    shown = f"{title}:\n\n{markdown_rows(['Sparsity', *map(label, names)], body)}"
    return "\n".join(
        filter(None, [shown, failed(figures, pair), odd, "What is not listed was not run yet." if missing else ""])
    )


def cost(figures: Figures) -> str:
    """Computing time and machine of the runs, from provenance.csv; empty if it is missing."""
    path = figures.path / KINDS["provenance"][0]
    if not path.is_file():
        return ""
    rows = _read(path.read_text(encoding="utf-8"))
    numbers = rows[["seconds", "target_tokens", "tokens_per_second"]].apply(pd.to_numeric, errors="coerce")
    known = numbers.seconds.notna() & (numbers.seconds > 0)
    if not known.any():
        return ""
    hours = numbers.seconds[known].sum() / 3600
    how = [
        " and ".join(sorted(set(rows[column][known]) - {""})) for column in ("device", "threads", "precision", "torch")
    ]
    return (
        f"The training times of {known.sum()} runs of {figures.steps:,} steps total {hours:.1f} hours, at a median of "
        f"{np.median(numbers.tokens_per_second[known]):,.0f} target tokens/s ({how[0]}, threads per training: "
        f"{how[1]}, {how[2]}, torch {how[3]}). Each run's time and speed: `figures/{figures.name}/provenance.csv`.\n"
    )


def _read(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
