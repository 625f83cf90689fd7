"""A study's figures folder: reading it and looking up cells of the table.

Needs no runs, no torch and no corpus. docs/figures.md lists the folder's files. Sparsity is a fraction from 0 to 1.
"""

import csv
import functools
import gzip
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from slt_lib.base.errors import InputError
from slt_lib.base.settings import TECHNIQUES

HYBRID_SWITCH = 0.6  # SLT-MP and MP-SLT change technique here (paper, section 4 and caption of Table 1)
SLT_MP_FIRST = 0.5  # SLT-MP is pruned to 50% at once, so it has no cell below (paper, section 4)
RESULT_COLUMNS = (
    "study pair technique variant trained_with sparsity seed test_set status reason bleu ter ter_13a dev_bleu "
    "checkpoint best_step steps memory_mib kept prunable bleu_signature ter_signature run"
).split()
STATISTICS = "m1 m2 m3 m4 t1 t2 t3 t4 sys_len ref_len ter_edits ter_words ter13a_edits ter13a_words".split()
# kind -> file name, columns, and the key columns, which are unique per row
KINDS = {
    "results": ("results.csv", RESULT_COLUMNS, "pair technique variant sparsity seed test_set".split()),
    "sentences": ("sentences.csv.gz", ["run", "test_set", "line", *STATISTICS], "run test_set line".split()),
    "magnitudes": (
        "magnitudes.csv",
        "run matrix rows columns kept mean_abs_start mean_abs_final".split(),
        "run matrix".split(),
    ),
    "provenance": (
        "provenance.csv",
        (
            "run seconds target_tokens tokens_per_second device threads precision python torch commit weights parents "
            "finished"
        ).split(),
        ["run"],
    ),
}


def existing(folder: str | os.PathLike) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such figures folder; run the study first, or check its name")
    return folder


def _open_text(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return open(path, encoding="utf-8", newline="")


def read_rows(path: Path, columns: Iterable[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    try:
        with _open_text(path) as file:
            lines = list(csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it and rerun the job that wrote it") from error
    header = lines[0] if lines else []
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; delete the file and rerun the study")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(line)} cells where the header has {len(header)}; rerun the job"
            )
    return header, [tuple(line) for line in lines[1:]]


def csv_bytes(header: Iterable[str], rows: Iterable[Iterable[str]], packed: bool = False) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return pack(text.getvalue().encode()) if packed else text.getvalue().encode()


def pack(raw: bytes) -> bytes:
    """gzip without date and file name, so equal content gives equal bytes."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as file:
        file.write(raw)
    return out.getvalue()


def csv_text(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The rows as CSV text."""
    return csv_bytes(header, rows).decode()


@dataclass(frozen=True)
class Cell:
    """One cell of the table: the rows of one technique, variant and sparsity on one test set, one row per seed.

    `rows` are the scored ones; `failures` are the reasons of the others; `copied` means that the rows belong to another
    technique (dense at 0%, MP in MP-SLT).
    """

    technique: str
    variant: str
    sparsity: float
    rows: tuple[Mapping, ...]
    failures: tuple[str, ...]
    trained_with: str
    copied: bool = False

    def mean(self, column: str) -> float:
        """Mean over the seeds with a value; nan if there are none."""
        values = [row[column] for row in self.rows if not np.isnan(row[column])]
        return float(np.mean(values)) if values else float("nan")


@dataclass(frozen=True, eq=False)
class Figures:
    """A study's figures folder, read. `printed` marks the paper's own tables: rounded figures without sentences.

    Compared and hashed by identity, so functions of it can keep their results (`functools.lru_cache`).
    """

    path: Path
    name: str
    rehearsal: bool
    printed: bool
    pairs: dict[str, tuple[str, ...]]
    levels: tuple[float, ...]
    steps: int
    test_sets: dict[str, tuple[str, ...]]
    results: pd.DataFrame

    @property
    def note(self) -> str:
        """The note that every title of a rehearsal carries; else empty."""
        return "rehearsal: no evidence" if self.rehearsal else ""

    def test_set(self, pair: str) -> str:
        """The primary test set of a pair: the first one that its study names."""
        return self.test_sets[pair][0]

    def techniques(self, pair: str) -> list[str]:
        """The pair's techniques: those of the study, then a user's own in the order of results.csv."""
        found = [technique for place, technique, variant in self._names if place == pair and not variant]
        named = [*self.pairs[pair], *found]
        return [name for name in dict.fromkeys(named) if name != "dense"]

    def begun(self, pair: str) -> list[str]:
        """The pair's techniques with a scored run at some level."""
        return [name for name in self.techniques(pair) if self.own_cells(pair, name)]

    def failures(self, pair: str) -> dict[tuple[str, float], tuple[str, ...]]:
        """(technique, sparsity) -> reasons of the failed seeds on the primary test set; dense at 0."""
        found = {}
        for technique in self.techniques(pair):
            for level in self.sparsities(pair):
                cell = self.cell(pair, technique, level)
                if cell and cell.failures and not (cell.copied and level):
                    found["dense" if cell.copied else technique, level] = tuple(dict.fromkeys(cell.failures))
        return found

    def sparsities(self, pair: str) -> list[float]:
        """All levels of a pair in ascending order, starting with 0 (dense)."""
        own = {key[3] for key in self._index if key[0] == pair and not key[2]}
        return sorted({0.0, *self.levels, *own})

    def variants(self, pair: str, test_set: str | None = None) -> list[Cell]:
        """The cells of variants, runs of a recipe with other settings, in the order of results.csv."""
        test_set = test_set or self.test_set(pair)
        keys = [key for key in self._index if key[0] == pair and key[2] and key[4] == test_set]
        return [self.cell(pair, key[1], key[3], key[2], test_set) for key in keys]

    def own_cells(self, pair: str, technique: str) -> list[Cell]:
        """A technique's scored default cells on the primary test set without copies, by ascending sparsity."""
        cells = [self.cell(pair, technique, level) for level in self.sparsities(pair)]
        return [cell for cell in cells if cell and cell.rows and not cell.copied]

    def cell(
        self, pair: str, technique: str, sparsity: float, variant: str = "", test_set: str | None = None
    ) -> Cell | None:
        """The cell of a technique at a sparsity; None if nothing was run.

        Cells that a technique shares with another are copied as in Table 1: the dense run at 0, and in MP-SLT the cells
        of MP up to 60%, unless MP-SLT has rows of its own there.
        """
        key = (pair, technique, variant, round(sparsity, 6), test_set or self.test_set(pair))
        rows, source = self._index.get(key, []), technique
        if not rows and not variant:
            if sparsity == 0:
                source = "dense"
            elif technique == "mp-slt" and sparsity <= HYBRID_SWITCH:
                source = "mp"
            rows = self._index.get((pair, source, *key[2:]), [])
        if not rows:
            return None
        failures = tuple(row["reason"] or "failed" for row in rows if row["status"] == "failed")
        scored = tuple(row for row in rows if row["status"] == "ok")
        return Cell(technique, variant, sparsity, scored, failures, rows[0]["trained_with"], source != technique)

    def depth(self, technique: str, sparsity: float) -> int:
        """How many trainings come before that of a cell in its chain, by the technique's default recipe."""
        if technique == "mp" or not sparsity:
            return 0
        if technique == "slt-mp":
            return 1 if sparsity < HYBRID_SWITCH else 2
        levels = [level for level in self.levels if level <= sparsity]
        return 1 + sum(level > HYBRID_SWITCH for level in levels) if technique == "mp-slt" else len(levels)

    def control(self, pair: str, depth: int) -> Cell | None:
        """The dense model rewound and trained again `depth` times with nothing pruned; None if it was not scored."""
        variant = "control=none" + (f",depth={depth}" if depth > 1 else "")
        cell = self.cell(pair, "slt", 0, variant) if depth else self.cell(pair, "dense", 0)
        return cell if cell and cell.rows else None

    @functools.cached_property
    def _index(self) -> dict[tuple, list[dict]]:
        index = {}
        for row in self.results.to_dict("records"):
            key = (row["pair"], row["technique"], row["variant"], round(row["sparsity"], 6), row["test_set"])
            index.setdefault(key, []).append(row)
        return index

    @property
    def _names(self) -> list[tuple[str, str, str]]:
        return [key[:3] for key in self._index]

    @functools.cached_property
    def sentences(self) -> pd.DataFrame | None:
        """Sufficient statistics of BLEU and TER, one row per run, test set and line; None if the file is missing."""
        return _read_numbers(self.path / KINDS["sentences"][0], KINDS["sentences"][1], STATISTICS)

    @functools.cached_property
    def magnitudes(self) -> pd.DataFrame | None:
        """Kept weights and their mean magnitude, one row per run and matrix; None if the file is missing."""
        numbers = "rows columns kept mean_abs_start mean_abs_final".split()
        return _read_numbers(self.path / KINDS["magnitudes"][0], KINDS["magnitudes"][1], numbers)

    def spent(self, pair: str, technique: str, sparsity: float) -> float | None:
        """Training steps needed for one cell, including the trainings before it; None if the cell was not run.

        Paper, sections 3 and 5, and FACTS.md section 7: MP needs only its own training. LT, SLT, CLT and a user's own
        chain need the dense training and one for every level up to this one. SLT-MP needs the dense training, the SLT
        levels before the switch and its own MP training, which replaces that of the last SLT level. MP-SLT needs the MP
        training at 60%, the SLT training at 60%, and one for every level above.
        """
        cell = self.cell(pair, technique, sparsity)
        if cell is None or not cell.rows:
            return None
        if technique == "mp" or cell.copied:
            return cell.mean("steps")
        chain = [other for other in self.own_cells(pair, technique) if other.sparsity <= sparsity]
        if technique == "slt-mp" and cell.trained_with == "mp":
            first = [other for other in chain if other.trained_with == "slt"]
            chain = [*(first[:-1] or first), cell]
        steps = sum(other.mean("steps") for other in chain)
        if technique == "mp-slt":
            before = self.cell(pair, "mp", HYBRID_SWITCH)
            steps += before.mean("steps") if before and before.rows else self.steps
            return steps if any(other.sparsity == HYBRID_SWITCH for other in chain) else steps + self.steps
        dense = self.cell(pair, "dense", 0)
        return steps + (dense.mean("steps") if dense and dense.rows else self.steps)


def load(folder: str | os.PathLike) -> Figures:
    """Read `study.json` and `results.csv` of a figures folder; the large files are read on first use.

    Raises InputError, one line with file, column and remedy, if something is missing or malformed.
    """
    folder = existing(folder)
    study = read_study(folder / "study.json")
    results = _read_results(folder / "results.csv", study)
    return Figures(
        path=folder,
        name=study["study"],
        rehearsal=bool(study["rehearsal"]),
        printed=bool(study.get("printed", False)),
        pairs={pair: tuple(names) for pair, names in study["pairs"].items()},
        levels=tuple(round(float(level), 6) for level in study["levels"]),
        steps=int(study["steps"]),
        test_sets={pair: tuple(names) for pair, names in study["test_sets"].items()},
        results=results,
    )


def read_study(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path}: missing; run the study first, it writes this file")
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and rerun the study") from error
    kinds = {"study": str, "rehearsal": bool, "pairs": dict, "levels": list, "seeds": list, "steps": int}
    for key, kind in {**kinds, "test_sets": dict}.items():
        if not isinstance(study, dict) or not isinstance(study.get(key), kind):
            raise InputError(f"{path}: {key} is missing or no {kind.__name__}; delete it and rerun the study")
    if not all(isinstance(study.get(key, {}), dict) for key in ("versions", "merged")):
        raise InputError(f"{path}: versions or merged is no mapping; delete it and rerun the study")
    if not all(isinstance(level, int | float) and 0 <= level <= 1 for level in study["levels"]):
        raise InputError(f"{path}: levels are not fractions from 0 to 1; delete it and rerun the study")
    for pair in study["pairs"]:
        if not study["test_sets"].get(pair):
            raise InputError(f"{path}: test_sets names no test set for {pair}; delete it and rerun the study")
    return study


def _read_results(path: Path, study: dict) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: missing; run the study first, or put its parts into {path.parent / 'parts'}")
    header, rows = read_rows(path, RESULT_COLUMNS)
    frame = pd.DataFrame(rows, columns=header, dtype=object)
    scored = frame["status"] == "ok"
    _reject(path, "status", frame["status"], ~frame["status"].isin(["ok", "failed"]), "is neither ok nor failed")
    _reject(path, "pair", frame["pair"], ~frame["pair"].isin(list(study["pairs"])), "is not in study.json")
    for column in "sparsity seed bleu ter ter_13a dev_bleu steps memory_mib kept prunable".split():
        numbers = pd.to_numeric(frame[column].replace("", np.nan), errors="coerce").astype(float)
        needed = {"sparsity": True, "seed": True, "bleu": scored}.get(column, False)
        _reject(path, column, frame[column], numbers.isna() & ((frame[column] != "") | needed), "is no number")
        frame[column] = numbers
    _reject(path, "sparsity", frame["sparsity"], ~frame["sparsity"].between(0, 1), "is not between 0 and 1")
    return frame


def _reject(path: Path, column: str, values: pd.Series, wrong: pd.Series, fault: str) -> None:
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{path}, line {place + 2}, column {column}: {str(values.iloc[place])!r} {fault}; "
            "restore the file or rerun the study"
        )


def _read_numbers(path: Path, columns: list[str], numbers: list[str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    types = dict.fromkeys(numbers, float) | {"run": str, "matrix": str, "test_set": str, "line": int}
    try:
        frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except (ValueError, OSError, EOFError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({line}); delete it and rerun the study") from error
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; delete the file and rerun the study")
    return frame


def percent(sparsity: float) -> str:
    """0.85 -> "85": a level as printed in tables and labels."""
    return f"{round(100 * sparsity, 4):g}"


def label(technique: str) -> str:
    """A technique's name as the paper prints it; a user's own name is returned unchanged."""
    return TECHNIQUES[technique].label if technique in TECHNIQUES else technique


def variant_label(cell: Cell) -> str:
    """The cell's recipe for labels, such as "CLT (signs=random)"."""
    name = "dense" if cell.copied and not cell.sparsity else label(cell.technique)
    return f"{name} ({cell.variant})" if cell.variant else name
