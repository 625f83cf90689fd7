"""Merging a study's parts, one file per scored run, into the CSV files of its figures folder.

All merged rows have the versions of study.json: recipe, scores, settings and levels. Rows that are left out are listed
on stderr, and nothing in `parts/` is changed.
"""

import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.report.data import KINDS, read_study, read_text, write_csv

PART = ".json.gz"
VERSIONS = {"recipe": "recipe version", "score": "score version", "settings": "settings", "levels": "levels"}
NAMED = 10  # at most so many of the rows left out are listed; the rest are counted
AGAIN = "run the study again to replace them"
REMOVE = "remove them (`python -m slt_lib runs remove RUN`) and run the study again"
ADD = "add the pair to the study file to have them"
DIFFERENT = "was trained again and came out different"

Tables = dict[str, pd.DataFrame]  # kind -> rows, all cells text


def merge(folder: str | os.PathLike) -> dict[str, Path]:
    """Merge `parts/<name>.json.gz` into `results.csv`, `sentences.csv.gz`, `magnitudes.csv` and `provenance.csv`.

    Existing rows of these files are kept if they have study.json's versions; a part replaces them. Runs are left out if
    a parent was trained again with a different result. Rows are text and sorted by their key, so equal rows give equal
    bytes. Without parts the files are unchanged. Returns kind -> path of the existing files. Raises InputError if a
    file is missing or malformed, if two parts disagree about a row, or if no row has study.json's versions.
    """
    folder, study = Path(folder), read_study(folder)
    wanted, paths = versions(study), {kind: folder / name for kind, (name, _, _) in KINDS.items()}
    merged = study.get("merged", {}) if "versions" in study else wanted
    reason = _difference(merged, wanted) if paths["results"].is_file() else ""
    parts = _parts(folder, wanted)
    if reason and not parts:
        raise InputError(f"{paths['results']}: its rows are of {reason}; {AGAIN}")
    if reason:
        print(f"{paths['results']}: left out its rows of {reason}; {AGAIN}", file=sys.stderr)
    if parts:
        fresh = {kind: _collected(folder, parts, kind) for kind in KINDS}
        kept = {kind: rows[:0] for kind, rows in fresh.items()}
        if not reason:
            kept |= {kind: read_text(path, KINDS[kind][1]) for kind, path in paths.items() if path.is_file()}
        for kind, rows in _joined(folder, kept, fresh, study["pairs"]).items():
            write_csv(paths[kind], KINDS[kind][1], _sorted(rows, kind))
        _mark(folder, wanted)
    return {kind: path for kind, path in paths.items() if path.is_file()}


def versions(study: Mapping) -> dict:
    """The versions that all rows of a folder must have, from its study.json."""
    return {**study.get("versions", {}), "levels": study["levels"]}


def _difference(label: Mapping, wanted: Mapping) -> str:
    """The first difference between two versions in words; empty if there is none."""
    for key, name in VERSIONS.items():
        if label.get(key) != wanted.get(key):
            theirs, ours = (str(one.get(key, "unknown")).strip("[]") for one in (label, wanted))
            return f"{name} {theirs} (study.json has {ours})"
    return ""


def _tell(where: Path, what: str, names: Iterable[str], remedy: str = AGAIN) -> None:
    """Print which rows were left out, if any. `what` begins with a noun that takes s in the plural."""
    names = sorted(names)
    if names:
        noun, _, rest = what.partition(" ")
        count = f"{len(names)} {noun}{'s' if len(names) > 1 else ''} {rest}"
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        print(f"{where}: left out {count}: {', '.join(names[:NAMED])}{more}; {remedy}", file=sys.stderr)


def _mark(folder: Path, wanted: dict) -> None:
    """Record the versions of the CSV files in study.json, unless a job with other versions has started meanwhile."""
    study = read_study(folder)
    if "versions" in study and versions(study) == wanted != study.get("merged"):
        write_bytes(folder / "study.json", (json.dumps(study | {"merged": wanted}, indent=1) + "\n").encode())


def _parts(folder: Path, wanted: Mapping) -> dict[str, dict]:
    """File name -> content of the parts with the versions `wanted`; the others are listed on stderr."""
    parts, others = {}, {}
    for path in sorted((folder / "parts").glob(f"*{PART}")):
        part = _read_part(path)
        if reason := _difference(part["label"], wanted):
            others.setdefault(reason, []).append(path.name.removesuffix(PART))
        else:
            parts[path.name] = part
    for reason, names in others.items():
        _tell(folder / "parts", f"part of {reason}", names)
    return parts


def _read_part(path: Path) -> dict:
    try:
        part = json.loads(gzip.decompress(path.read_bytes()))
        if not isinstance(part["label"], dict):
            raise ValueError("label is no mapping")
        for kind, (_, columns, _) in KINDS.items():
            if not all(len(row) == len(columns) and {*map(type, row)} == {str} for row in part[kind]):
                raise ValueError(f"{kind} has a row that is not {len(columns)} texts")
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: cannot be read ({reason}); delete it and run the study again") from None
    return part


def _collected(folder: Path, parts: Mapping[str, dict], kind: str) -> pd.DataFrame:
    """The rows of all parts without duplicates: the dense run appears in the parts of every job."""
    _, columns, key = KINDS[kind]
    frames = [pd.DataFrame(part[kind], columns=columns, dtype=object).assign(part=name) for name, part in parts.items()]
    rows = pd.concat(frames, ignore_index=True)
    if kind == "provenance":  # one run read at two times: fields that could not be read are empty
        return rows.sort_values("finished", kind="stable").drop_duplicates(key, keep="last")
    rows = rows.drop_duplicates(columns)
    if (twice := rows.duplicated(key)).any():
        wrong = rows[twice].iloc[0]
        other = rows[(rows[key] == wrong[key]).all(axis=1)].iloc[0]
        about = ", ".join(f"{column} {wrong[column]}" for column in key if wrong[column])
        remedy = "delete the part that is out of date and run the study again"
        raise InputError(f"{folder / 'parts' / wrong.part}: disagrees with {other.part} on {about}; {remedy}")
    return rows


def _sorted(rows: pd.DataFrame, kind: str) -> list[list[str]]:
    _, columns, key = KINDS[kind]
    ranks = [(columns.index(column), _rank_of_variant if column == "variant" else _rank) for column in key]
    return sorted(rows[columns].to_numpy().tolist(), key=lambda row: [rank(row[place]) for place, rank in ranks])


def _rank(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _rank_of_variant(text: str) -> list[str | float]:
    """Numbers in the text by value: depth=2 comes before depth=10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _joined(folder: Path, kept: Tables, fresh: Tables, pairs: Iterable[str]) -> Tables:
    """The rows of the folder and of its parts; rows that contradict others are left out and listed on stderr."""
    tables = {}
    for kind, (_, _, key) in KINDS.items():
        old = kept[kind] if kind == "results" else kept[kind][~kept[kind].run.isin(fresh[kind].run)]
        tables[kind] = pd.concat([old, fresh[kind]], ignore_index=True).drop_duplicates(key, keep="last")
    results, provenance = tables["results"], tables["provenance"]
    before, after = (dict(zip(rows.run, rows.weights, strict=True)) for rows in (kept["provenance"], provenance))
    changed = {run for run, weights in before.items() if weights and after[run] not in (weights, "")}
    trained = results.run.map(_trained)
    found = [
        ("row of a pair that study.json does not have", ~results.pair.isin(list(pairs)), ADD),
        (f"row whose run {DIFFERENT}", trained.isin(changed) & results.part.isna(), AGAIN),
        (f"row of which a parent {DIFFERENT}", trained.isin(_orphans(provenance, after)), REMOVE),
    ]
    for what, wrong, remedy in found:
        _tell(folder, what, {_named(row) for row in results[wrong].itertuples()}, remedy)
    results = results[~np.any([wrong for _, wrong, _ in found], axis=0)]
    named = {*results.run, *map(_trained, results.run)}
    return {kind: results if kind == "results" else rows[rows.run.isin(named)] for kind, rows in tables.items()}


def _trained(run: str) -> str:
    """The id of the training in a row's run, which may also name a checkpoint."""
    return run.partition("+")[0]


def _named(row) -> str:
    run = f"seed {row.seed} (run {_trained(row.run)[:12]})"
    return " ".join(filter(None, [row.pair, row.technique, row.variant, row.sparsity, run]))


def _orphans(provenance: pd.DataFrame, weights: Mapping[str, str]) -> set[str]:
    """The runs that started from weights which their parent no longer has, and all their descendants."""
    made_from = {row.run: [text.split(":") for text in row.parents.split()] for row in provenance.itertuples()}
    found, more = None, set()
    while more != found:
        found = more
        more = {
            run
            for run, parents in made_from.items()
            if any(parent in found or seen and weights.get(parent) not in (seen, "", None) for parent, seen in parents)
        }
    return found
