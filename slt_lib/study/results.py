"""Results: scored runs become parts in the study's figures folder, one file per run and row label.

A new run of the same row overwrites its part. Each part contains the versions of recipe, scores, settings and levels;
`report` merges the parts of one version.
"""

import itertools
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from slt_lib.base.errors import InputError
from slt_lib.base.files import sweep, write_bytes
from slt_lib.base.settings import RECIPE_VERSION, home
from slt_lib.base.store import Damaged, canonical, digest, unseal
from slt_lib.report.data import KINDS, RESULT_COLUMNS, pack
from slt_lib.report.merging import PART
from slt_lib.study.chains import Chain
from slt_lib.study.opening import Opened
from slt_lib.study.operations import Theta0
from slt_lib.study.runs import Run
from slt_lib.study.scores import SCORE_VERSION, magnitudes, memory_mib, scores

SETTINGS = ("training", "corpus", "vocabulary", "decoding")  # the settings that comparable rows share
_described: dict[Path, dict] = {}  # figures folder -> content of study.json that this process wrote


def figures(study: str) -> Path:
    """`$SLT_FIGURES/<study>`, by default `figures/<study>`."""
    return Path(os.environ.get("SLT_FIGURES") or home() / "figures").absolute() / study


def must_be_writable(folder: Path) -> None:
    """Raise InputError if `folder` cannot be created or written, before a long training starts."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise InputError(f"{folder}: can't be written; set SLT_FIGURES to a folder that can")


def record(study: Opened, chains: Iterable[Chain]) -> pd.DataFrame:
    """Score the runs of `chains` unless their scores are stored, write their parts, return their rows.

    One row per run, test set and checkpoint of the chain (`Chain.scored`), in the columns of results.csv; a checkpoint
    other than "best" is a variant. Raises InputError if the folder cannot be written.
    """
    describe(study)
    rows = {}
    for chain in chains:
        for run, checkpoint in itertools.product(chain.runs, chain.scored):
            name = part_name(study, run, *row_labels(study, chain, run, checkpoint))
            if name not in rows:
                rows[name] = record_run(study, chain, run, checkpoint)
    frame = pd.DataFrame([row for part in rows.values() for row in part], columns=RESULT_COLUMNS)
    numbers = ["bleu", "ter", "ter_13a", "dev_bleu", "memory_mib"]
    frame[numbers] = frame[numbers].apply(pd.to_numeric)
    return frame


def record_run(study: Opened, chain: Chain, run: Run, checkpoint: str = "best") -> list[dict]:
    """Score one run of a chain unless its scores are stored, write its part, return its rows, one per test set."""
    technique, variant = row_labels(study, chain, run, checkpoint)
    found = scores(run, checkpoint) if run.record["status"] == "ok" else {}
    means = ("mean_abs_start", "mean_abs_final")  # of |w| of the finally kept weights, one row per matrix
    rows = {
        "results": result_rows(study, technique, variant, run, checkpoint, found),
        "sentences": [
            {"run": scored(run, checkpoint), "test_set": test_set, "line": line}
            | dict(zip(score["statistics"], counts, strict=True))
            for test_set, score in found.items()
            for line, counts in enumerate(zip(*score["statistics"].values(), strict=True), start=1)
        ],
        "magnitudes": [
            {"run": run.id, "matrix": name} | values | {key: f"{values[key]:.6g}" for key in means}
            for name, values in magnitudes(run).items()
        ],
        "provenance": [provenance_row(run)],
    }
    label = describe(study)["versions"] | {"levels": study.params.levels, "seeds": study.seeds}
    part = {"label": label}
    for kind, (_, columns, _) in KINDS.items():
        part[kind] = [["" if row[key] is None else str(row[key]) for key in columns] for row in rows[kind]]
    path = figures(study.name) / "parts" / (part_name(study, run, technique, variant) + PART)
    write_bytes(path, pack(canonical(part).encode()))
    return rows["results"]


def part_name(study: Opened, run: Run, technique: str, variant: str) -> str:
    """Name of the part of a row, without its suffix: pair, technique, variant, sparsity and seed."""
    return f"{study.pair}.{technique}.{variant or 'default'}.{run.sparsity:g}.{run.ticket.seed}"


def describe(study: Opened) -> dict:
    """Write study.json once per process; the entry of a merge about the versions of the CSV files is kept.

    Returns its content without that entry. `settings` are those that comparable rows share; `versions` says which code
    and settings the rows come from.
    """
    folder, params = figures(study.name), study.params.model_dump()
    path, settings = folder / "study.json", {key: params[key] for key in SETTINGS}
    about = {"study": study.name} | {key: params[key] for key in ("rehearsal", "pairs", "levels", "seeds")}
    about |= {
        "steps": params["training"]["steps"],
        "test_sets": dict.fromkeys(params["pairs"], list(study.corpus.tests)),
        "versions": {"recipe": RECIPE_VERSION, "score": SCORE_VERSION, "settings": digest(settings)[:16]},
        "settings": settings,
    }
    if _described.get(folder) != about or not path.exists():
        with study.store.lock(f"figures-{digest(str(folder))[:16]}"):
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                before = {}
            sweep(folder / "parts", age=3600)
            after = json.loads(json.dumps(about | {key: before[key] for key in ("merged",) if key in before}))
            if before != after:
                write_bytes(path, (json.dumps(after, indent=1) + "\n").encode())
        _described[folder] = about
    return about


def row_labels(study: Opened, chain: Chain, run: Run, checkpoint: str) -> tuple[str, str]:
    """Technique and variant of a row; further runs of a chain at the same sparsity are variants of their own."""
    technique, variant = labels(study, chain, run)
    beside = {other.id: other for other in chain.runs if other.sparsity == run.sparsity}
    same = [other for other in beside.values() if labels(study, chain, other) == (technique, variant)]
    place = [other.id for other in same].index(run.id)
    deeper = all(other.ticket.depth < run.ticket.depth for other in same[:place])
    more = [f"depth={run.ticket.depth}" if deeper else f"again={place}"] if place else []
    more += [f"checkpoint={checkpoint}"] if checkpoint != "best" else []
    return technique, ",".join(filter(None, [variant, *more]))


def labels(study: Opened, chain: Chain, run: Run) -> tuple[str, str]:
    """Technique and variant of a run; the dense run, which all chains share, is always labelled dense."""
    if run.ticket.operations == (Theta0(),):
        own = run.ticket.optimizer == study.params.training.optimizer
        noise = f"noise={run.ticket.noise}" if run.ticket.noise else ""
        return "dense", ",".join(filter(None, ["" if own else f"optimizer={run.ticket.optimizer}", noise]))
    return chain.technique, chain.variant_of(run)


def result_rows(
    study: Opened, technique: str, variant: str, run: Run, checkpoint: str, found: dict[str, dict]
) -> list[dict]:
    """The rows of results.csv, one per test set; `found`: its scores, empty for a failed run."""
    record, best = run.record, run.record["best"]
    row = dict.fromkeys(RESULT_COLUMNS, "") | {key: record[key] for key in "status reason steps kept prunable".split()}
    row |= {"study": study.name, "pair": study.pair, "technique": technique, "variant": variant}
    row |= {"trained_with": run.ticket.trained_with, "sparsity": f"{run.sparsity:g}", "seed": run.ticket.seed}
    row |= {"checkpoint": checkpoint, "run": scored(run, checkpoint)}
    if best:
        row |= {"dev_bleu": f"{best['dev_bleu']:.4f}", "best_step": best["step"]}
    if found:
        row["memory_mib"] = f"{memory_mib(run):.3f}"
    rows = []
    for test_set in study.corpus.tests:
        score = found.get(test_set, {})
        means = {metric: f"{score[metric]:.4f}" for metric in ("bleu", "ter", "ter_13a") if score}
        signatures = {f"{metric}_signature": score["signatures"][metric] for metric in ("bleu", "ter") if score}
        rows.append(row | {"test_set": test_set} | means | signatures)
    return rows


def scored(run: Run, checkpoint: str) -> str:
    """The id that links a row to its sentences: the run's id, followed by a checkpoint other than "best"."""
    return run.id if checkpoint == "best" else f"{run.id}+{checkpoint.replace(' ', '-')}"


def provenance_row(run: Run) -> dict:
    """The run's row of provenance.csv; if its provenance.json is damaged, cells stay empty and a message is printed."""
    try:
        known = unseal(run.folder / "provenance.json")
    except Damaged as error:
        print(f"{error}; leaving its cells empty", file=sys.stderr)
        known = {}
    tokens, seconds = run.record["target_tokens"], known.get("seconds", 0)
    parents = run.record.get("parents", {})
    row = dict.fromkeys(KINDS["provenance"][1], "") | known | {"run": run.id, "target_tokens": tokens}
    return row | {
        "tokens_per_second": round(tokens / seconds) if seconds else "",
        "weights": run.curve[-1].get("weights", "") if run.curve else "",
        "parents": " ".join(f"{parent}:{weights}" for parent, weights in sorted(parents.items())),
    }


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds on the first test set, one line per variant and sparsity (percent), with reasons of failures."""
    rows = rows[rows.test_set == rows.test_set.iloc[0]]
    stands = rows.status == "ok"
    shown = rows.assign(sparsity=(100 * rows.sparsity.astype(float)).map("{:g}%".format), seeds=rows.seed.where(stands))
    groups = shown.groupby(["technique", "variant", "sparsity"], sort=False)
    means = groups[["bleu", "ter", "ter_13a", "memory_mib"]].mean().round(2)
    means = means.assign(kept=groups.kept.first(), seeds=groups.seeds.nunique())
    if stands.all():
        return means
    reasons = groups.reason.agg(lambda reasons: "; ".join(sorted({*reasons} - {""})))
    return means.astype(object).where(means.notna(), "failed").assign(failed=reasons)
