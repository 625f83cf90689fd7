"""Merging a study's parts, one file per scored run, into the CSV files of its figures folder.

All merged rows have the versions of study.json: recipe, scores, settings and levels. Rows that are left out are listed
on stderr, and nothing in `parts/` is changed.
"""

import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.report.data import KINDS, csv_bytes, existing, read_rows, read_study

PART = ".json.gz"
VERSIONS = {"recipe": "recipe version", "score": "score version", "settings": "settings", "levels": "levels"}
NAMED = 10  # at most so many of the rows left out are listed; the rest are counted
AGAIN = "run the study again to replace them"

Row = tuple[str, ...]
Tables = dict[str, dict[Row, Row]]  # kind -> key -> row


def merge(folder: str | os.PathLike) -> dict[str, Path]:
    """Merge `parts/<name>.json.gz` into `results.csv`, `sentences.csv.gz`, `magnitudes.csv` and `provenance.csv`.

    Existing rows of these files are kept if they have study.json's versions; a part replaces them. Runs are left out if
    a parent was trained again with a different result. Rows are text and sorted by their key, so equal rows give equal
    bytes. Without parts the files are unchanged. Returns kind -> path of the existing files. Raises InputError if a
    file is missing or malformed, if two parts disagree about a row, or if no row has study.json's versions.
    """
    folder = existing(folder)
    study = read_study(folder / "study.json")
    wanted = versions(study)
    merged = study.get("merged", {}) if "versions" in study else wanted
    reason = _difference(merged, wanted) if (folder / "results.csv").is_file() else ""
    parts = _parts(folder, wanted)
    if parts:
        if reason:
            print(f"{folder / 'results.csv'}: left out its rows of {reason}; {AGAIN}", file=sys.stderr)
        tables = _joined(folder, {} if reason else _stored(folder), _collected(parts), study["pairs"])
        for kind, (name, columns, _) in KINDS.items():
            write_bytes(folder / name, csv_bytes(columns, _sorted(tables[kind]), packed=name.endswith(".gz")))
        _mark(folder / "study.json", wanted)
    elif reason:
        raise InputError(f"{folder / 'results.csv'}: its rows are of {reason}; {AGAIN}")
    return {kind: folder / name for kind, (name, _, _) in KINDS.items() if (folder / name).is_file()}


def versions(study: Mapping) -> dict:
    """The versions that all rows of a folder must have, from its study.json."""
    return {**study.get("versions", {}), "levels": study["levels"]}


def _difference(label: Mapping, wanted: Mapping) -> str:
    """The first difference between two versions in words; empty if there is none."""
    for key, name in VERSIONS.items():
        theirs, ours = label.get(key), wanted.get(key)
        if theirs != ours:
            return f"{name} {_shown(theirs)} (study.json has {_shown(ours)})"
    return ""


def _shown(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "unknown" if value is None else str(value)


def _tell(where: Path, what: str, names: Iterable[str], remedy: str = AGAIN) -> None:
    """Print which rows were left out. `what` begins with a noun that takes s in the plural."""
    names = sorted(names)
    noun, _, rest = what.partition(" ")
    noun += "s" if len(names) > 1 else ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    print(f"{where}: left out {len(names)} {noun} {rest}: {', '.join(names[:NAMED])}{more}; {remedy}", file=sys.stderr)


def _mark(path: Path, wanted: dict) -> None:
    """Record the versions of the CSV files in study.json, unless a job with other versions has started meanwhile."""
    study = read_study(path)
    if "versions" in study and versions(study) == wanted != study.get("merged"):
        write_bytes(path, (json.dumps(study | {"merged": wanted}, indent=1) + "\n").encode())


# Parts ------------------------------------------------------------


def _parts(folder: Path, wanted: Mapping) -> dict[Path, dict]:
    """Path -> content of the parts with the versions `wanted`; the others are listed on stderr."""
    parts, others = {}, {}
    for path in sorted((folder / "parts").glob(f"*{PART}")):
        part = _read_part(path)
        if reason := _difference(part["label"], wanted):
            others.setdefault(reason, []).append(path.name.removesuffix(PART))
        else:
            parts[path] = part
    if old := [path.name.removesuffix(".results.csv") for path in (folder / "parts").glob("*.results.csv")]:
        others["an older format"] = old
    for reason, names in others.items():
        _tell(folder / "parts", f"part of {reason}", names)
    return parts


def _read_part(path: Path) -> dict:
    try:
        part = json.loads(gzip.decompress(path.read_bytes()))
        if not isinstance(part["label"], dict):
            raise ValueError("label is no mapping")
        for kind, (_, columns, _) in KINDS.items():
            part[kind] = [tuple(row) for row in part[kind]]
            if not all(len(row) == len(columns) and {*map(type, row)} == {str} for row in part[kind]):
                raise ValueError(f"{kind} has a row that is not {len(columns)} texts")
    except (OSError, EOFError, ValueError, TypeError, KeyError, zlib.error) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: cannot be read ({reason}); delete it and run the study again") from None
    return part


def _collected(parts: Mapping[Path, dict]) -> Tables:
    """The rows of all parts without duplicates: the dense run appears in the parts of every job."""
    tables = {}
    for kind in KINDS:
        rows, owner = tables.setdefault(kind, {}), {}
        for path, part in parts.items():
            for row in part[kind]:
                key = _key(kind, row)
                if kind == "provenance":  # one run read at two times: fields that could not be read are empty
                    row = max(row, rows.get(key, row), key=lambda row: row[-1])
                elif rows.get(key, row) != row:
                    raise InputError(_clash(kind, key, path, owner[key]))
                rows[key], owner[key] = row, path.name
    return tables


def _clash(kind: str, key: Row, path: Path, other: str) -> str:
    about = ", ".join(f"{column} {value}" for column, value in zip(KINDS[kind][2], key, strict=True) if value)
    return f"{path}: disagrees with {other} on {about}; delete the part that is out of date and run the study again"


def _key(kind: str, row: Row) -> Row:
    _, columns, key = KINDS[kind]
    return tuple(row[columns.index(column)] for column in key)


def _sorted(rows: Mapping[Row, Row]) -> list[Row]:
    return [rows[key] for key in sorted(rows, key=lambda key: [*map(_sort_value, key)])]


def _sort_value(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


# Existing rows ------------------------------------------------------------


def _stored(folder: Path) -> Tables:
    """The rows of the folder's CSV files."""
    tables = {}
    for kind, (name, columns, _) in KINDS.items():
        header, rows = read_rows(folder / name, columns) if (folder / name).is_file() else (columns, [])
        places = [header.index(column) for column in columns]
        rows = [tuple(row[place] for place in places) for row in rows]
        tables[kind] = {_key(kind, row): row for row in rows}
    return tables


def _joined(folder: Path, kept: Tables, fresh: Tables, pairs: Iterable[str]) -> Tables:
    """The rows of the folder and of its parts; rows that contradict others are left out and listed on stderr."""
    tables = {}
    for kind in KINDS:
        replaced = {key[0] for key in fresh[kind]} if kind != "results" else ()
        old = {key: row for key, row in kept.get(kind, {}).items() if key[0] not in replaced}
        tables[kind] = old | fresh[kind]
    before, after = _column(kept.get("provenance", {}), "weights"), _column(tables["provenance"], "weights")
    changed = {run for run, weights in before.items() if weights and after[run] not in (weights, "")}
    orphans, results = _orphans(tables["provenance"]), tables["results"]
    runs = {key: _trained(row[-1]) for key, row in results.items()}
    remove = "remove them (`python -m slt_lib runs remove RUN`) and run the study again"
    add = "add the pair to the study file to have them"
    different = "was trained again and came out different"
    for what, keys, remedy in (
        ("row of a pair that study.json does not have", [key for key in results if key[0] not in pairs], add),
        (
            f"row whose run {different}",
            [key for key in results.keys() - fresh["results"] if runs[key] in changed],
            AGAIN,
        ),
        (f"row of which a parent {different}", [key for key in results if runs[key] in orphans], remove),
    ):
        if keys:
            _tell(folder, what, {_named(key, runs[key]) for key in keys}, remedy)
        for key in keys:
            results.pop(key, None)
    scored = {row[-1] for row in results.values()}
    named = scored | {_trained(run) for run in scored}
    return {
        kind: {key: row for key, row in rows.items() if kind == "results" or key[0] in named}
        for kind, rows in tables.items()
    }


def _trained(run: str) -> str:
    """The id of the training in a row's run, which may also name a checkpoint."""
    return run.partition("+")[0]


def _named(key: Row, run: str) -> str:
    pair, technique, variant, sparsity, seed, _ = key
    return " ".join(filter(None, [pair, technique, variant, sparsity, f"seed {seed} (run {run[:12]})"]))


def _column(provenance: Mapping[Row, Row], column: str) -> dict[str, str]:
    """run -> its value in a column of provenance.csv."""
    place = KINDS["provenance"][1].index(column)
    return {row[0]: row[place] for row in provenance.values()}


def _orphans(provenance: Mapping[Row, Row]) -> set[str]:
    """The runs that started from weights which their parent no longer has, and all their descendants."""
    weights = _column(provenance, "weights")
    made_from = {
        run: [text.split(":") for text in cell.split()] for run, cell in _column(provenance, "parents").items()
    }
    found, more = set(), True
    while more:
        more = {
            run
            for run, parents in made_from.items()
            if run not in found
            and any(parent in found or seen and weights.get(parent) not in (seen, "", None) for parent, seen in parents)
        }
        found |= more
    return found
