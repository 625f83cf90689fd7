"""A study's results page, and its short form for the README: plot, BLEU of Table 1, a few sentences, time."""

import io
import os
from pathlib import Path

import pandas as pd

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.report import findings, stability
from slt_lib.report.claims import Claims, claims_table
from slt_lib.report.data import KINDS, SLT_MP_FIRST, Figures, label, percent, read_rows, trainings
from slt_lib.report.headline import headline, joined
from slt_lib.report.tables import MISSING, NONE, ablations, failed, markdown_rows, table, uneven

KEY = (
    "One rule judges the claims on the paper's tables and on the runs here: `figures/{}/claims.md`. *Effect* is the "
    "difference that *At* names; with too few seeds, its interval omits or underestimates the noise of training. "
    "*Agree* counts the differences that agree with the claim. The interval shown is not widened for the number of "
    "differences, the one that decides is: a claim can be undecided although the interval shown excludes 0."
)
DEPTH = (
    "SLT, CLT and the hybrids minus the dense model rewound and retrained as often, nothing pruned (`again`). MP and "
    "LT start from theta_0, so they are compared with the dense model itself. Do not compare these two groups: their "
    "baselines differ."
)
VARIANTS = (
    "`control=none,depth=k`: the dense model rewound and retrained k times, nothing pruned. `control=mask`: random "
    "masks. `control=weights`: fresh weights under SLT's masks. `noise=k`: the same ticket with other SGD noise. "
    "`checkpoint=final`: the last checkpoint instead of the best. The default's BLEU is over the seeds that both have. "
    "*Detectable*: the true difference that is found with 80% power."
)
BEGIN, END = "<!-- results of {}: made by `python -m slt_lib report {} --into {}` -->", "<!-- end of results -->"


def summary(figures: Figures, claims: Claims | None = None) -> str:
    """Markdown with plots, BLEU, verdicts and variants of each pair, and the findings of related papers.

    `claims`: verdicts computed earlier, if any. Links are relative to the figures folder.
    """
    verdicts, parts, key = (claims or claims_table(figures)).short, [], KEY.format(figures.name)
    for pair in figures.pairs:
        parts += _plot_and_scores(figures, pair, "")
        parts += [verdicts[pair] and key, verdicts[pair]]
        key = "" if verdicts[pair] else key  # above the first table
        if figures.control(pair, 1):
            alt = f"{pair}: BLEU minus that of the dense model trained as often"
            parts += [_plot(f"depth_{pair}", alt), DEPTH]
        if not stability.lines(figures.path, pair).empty:
            parts.append(f"Copies of one ticket under other SGD noise, {pair} (`stability`, notebook 08_ablations):")
            parts.append(_plot(f"stability_{pair}", f"{pair}: loss and BLEU between two copies of a ticket"))
            parts.append(stability.table(figures.path, pair))
        if figures.variants(pair):
            other = ablations(figures, pair).markdown.partition("\n\n")[2]
            parts += [f"Variants of the recipes, {pair}, BLEU:\n\n{other}", VARIANTS]
        for kind, what in (
            ("dissect", "What pruning does inside the models, {} (notebook 10_dissect)"),
            ("subnet", "Which heads and which weights, {} (notebook 11_subnetworks)"),
        ):
            if found := findings.markdown(figures.path, pair, kind):
                parts.append(f"{what.format(pair)}:\n\n{found}")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def overview(figures: Figures) -> str:
    """Markdown with the plot and BLEU of each pair that was run, and the study in a few sentences."""
    folder = f"figures/{figures.name}/"
    parts = [
        part
        for pair in figures.pairs
        if (figures.results.pair == pair).any()
        for part in _plot_and_scores(figures, pair, folder)
    ]
    sentences = "\n".join(f"- {sentence}" for sentence in headline(figures, claims_table(figures)))
    page = f"{folder}summary.md"
    return "\n\n".join([*parts, sentences, f"Verdicts with intervals, variants and analyses: [{page}]({page})"]) + "\n"


def _plot_and_scores(figures: Figures, pair: str, folder: str) -> list[str]:
    if not (figures.results.pair == pair).any():
        return [f"{pair}: nothing was run yet."]
    plot = _plot(f"{folder}bleu_{pair}", f"{pair}: BLEU against sparsity, one line per technique")
    return [plot] * bool(figures.begun(pair)) + [_scores(figures, pair).strip()]


def _plot(name: str, alt: str) -> str:
    return f"![{alt}]({name}.png)"


def into(figures: Figures, path: str | os.PathLike, allow_dirty: bool = False) -> Path:
    """Write the overview and the computing time between the two marks in the file `path`; the rest is unchanged.

    Raises InputError if the file lacks the marks, or if a row comes from uncommitted code. With `allow_dirty` the text
    says so instead.
    """
    states = ""
    if dirty := uncommitted(figures):
        run, commit = next(iter(dirty.items()))
        count = f"{len(dirty)} of {len(trainings(figures.results))} trainings ran on uncommitted code"
        if not allow_dirty:
            raise InputError(
                f"{figures.path / KINDS['provenance'][0]}: {count}, such as run {run} (commit {commit or 'unknown'}); "
                "train them again on a commit, or give --allow-dirty, and the text says so"
            )
        states = f"{count}: no commit has exactly what made these numbers.\n"
    shown = "\n".join(filter(None, [overview(figures), states, cost(figures)]))
    return between(path, BEGIN.format(figures.name, figures.name, Path(path).name), END, shown)


def uncommitted(figures: Figures) -> dict[str, str]:
    """run -> commit of the trainings whose provenance is not a clean commit hash."""
    commits = _provenance(figures).set_index("run")["commit"].reindex(trainings(figures.results), fill_value="")
    clean = commits.str.fullmatch("[0-9a-f]{7,64}( [0-9a-f]{7,64})*")  # several if a training was resumed
    return commits[~clean].to_dict()


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


def cost(figures: Figures) -> str:
    """Computing time and machine of the runs, from provenance.csv; empty if it is missing."""
    rows = _provenance(figures)
    seconds = pd.to_numeric(rows["seconds"], errors="coerce")
    rows, hours = rows[seconds > 0], seconds[seconds > 0].sum() / 3600
    if rows.empty:
        return ""
    speeds = rows.assign(speed=pd.to_numeric(rows["tokens_per_second"], errors="coerce")).groupby("device").speed
    each = [f"{median:,.0f} on {device}" for device, median in speeds.median().items()]
    columns = ("threads", "precision", "torch")
    threads, precision, torch = (" and ".join(sorted({*rows[column]} - {""})) for column in columns)
    return (
        f"The training times of the {len(rows)} scored runs of {figures.steps:,} steps total {hours:.1f} hours. Median "
        f"target tokens/s: {', '.join(each)} (threads per training: {threads}, {precision}, torch {torch}). Each run's "
        f"time and speed: `figures/{figures.name}/provenance.csv`.\n"
    )


def provenance_table(figures: Figures) -> pd.DataFrame:
    """Trainings, hours and days by everything in provenance.csv that can differ between machines."""
    rows = _provenance(figures)
    seconds, day = pd.to_numeric(rows["seconds"], errors="coerce"), rows["finished"].str[:10]
    keys = ["commit", "device", "threads", "precision", "python", "torch"]
    groups = rows.assign(hours=seconds / 3600, first=day, last=day).groupby(keys, sort=False)
    found = groups.agg(trainings=("run", "size"), hours=("hours", "sum"), first=("first", "min"), last=("last", "max"))
    return found.assign(hours=found.hours.round(1)).reset_index()


def _scores(figures: Figures, pair: str) -> str:
    """BLEU of Table 1, without the techniques and levels that have not been run yet."""
    names = figures.tried(pair)
    odd, faults = uneven(figures, pair), failed(figures, pair)
    seeds = figures.seeds[pair]
    over = f"means over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    over = "means over the seeds that each cell has" if odd else over
    title = figures.titled(f"BLEU on {pair}, {figures.test_set(pair)}, {over}")
    if not names:
        dense = figures.control(pair, 0)
        known = f": {dense.mean('bleu'):.1f} (dense)" if dense else ""
        return f"{title}{known}; no technique was run yet. {faults}"
    rows = pd.read_csv(io.StringIO(table(figures, pair).csv), dtype=str, keep_default_na=False)
    cells = rows.assign(bleu=rows.bleu.mask(rows.best.str.contains("bleu"), "**" + rows.bleu + "**"))
    lines = [
        [f"{level}%", *part.set_index("technique").bleu[names]] for level, part in cells.groupby("sparsity", sort=False)
    ]
    body = [line for line in lines if {*line[1:]} - {MISSING, NONE}]
    absent = [label(name) for name in figures.techniques(pair) if name not in names]
    absent += [line[0] for line in lines if line not in body]
    shown = f"{title}:\n\n{markdown_rows(['Sparsity', *map(label, names)], body)}"
    cells = {cell for line in body for cell in line[1:]}
    notes = [f"{NONE}: SLT-MP starts at {percent(SLT_MP_FIRST)}%."] if NONE in cells else []
    gaps = any(not figures.complete(pair, level) for level in figures.levels)
    absent = [MISSING] * (gaps and MISSING in cells) + absent
    notes += [f"{joined(absent)}: not run yet."] if absent else []
    return "\n".join(filter(None, [shown, faults, odd, " ".join(notes)]))


def _provenance(figures: Figures) -> pd.DataFrame:
    name, columns, _ = KINDS["provenance"]
    return read_rows(figures.path / name, columns)
