"""A study's figures folder: reading it and looking up cells of the table.

Needs no runs, no torch and no corpus. docs/figures.md lists the folder's files. Sparsity is a fraction from 0 to 1.
"""

import csv
import functools
import gzip
import io
import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from slt_lib.base.errors import InputError
from slt_lib.base.files import write_bytes
from slt_lib.base.settings import TECHNIQUES

HYBRID_SWITCH = 0.6  # SLT-MP and MP-SLT change technique here (paper, section 4 and caption of Table 1)
SLT_MP_FIRST = 0.5  # SLT-MP is pruned to 50% at once, so it has no cell below (paper, section 4)
RESULT_COLUMNS = (
    "study pair technique variant trained_with sparsity seed test_set status reason bleu ter ter_13a dev_bleu "
    "checkpoint best_step steps memory_mib kept prunable bleu_signature ter_signature run"
).split()
NUMBERS = "sparsity seed bleu ter ter_13a dev_bleu steps memory_mib kept prunable".split()
STATISTICS = "m1 m2 m3 m4 t1 t2 t3 t4 sys_len ref_len ter_edits ter_words ter13a_edits ter13a_words".split()
MAGNITUDES = "run matrix rows columns kept mean_abs_start mean_abs_final".split()
PROVENANCE = "run seconds target_tokens tokens_per_second device threads precision python torch commit".split()
PROVENANCE += ["weights", "parents", "finished"]
# key of study.json -> its type; the last two may be missing
STUDY = {"study": str, "rehearsal": bool, "pairs": dict, "levels": list, "seeds": list, "steps": int}
STUDY |= {"test_sets": dict, "versions": dict, "merged": dict, "settings": dict}
# kind -> file name, columns, and the key columns, which are unique per row
KINDS = {
    "results": ("results.csv", RESULT_COLUMNS, "pair technique variant sparsity seed test_set".split()),
    "sentences": ("sentences.csv.gz", ["run", "test_set", "line", *STATISTICS], ["run", "test_set", "line"]),
    "magnitudes": ("magnitudes.csv", MAGNITUDES, ["run", "matrix"]),
    "provenance": ("provenance.csv", PROVENANCE, ["run"]),
}


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


def of_common_seeds(one: Cell, other: Cell) -> tuple[Cell, Cell]:
    """Two cells with the rows of the seeds that both have; unchanged if they have none in common."""
    common = {row["seed"] for row in one.rows} & {row["seed"] for row in other.rows}
    return of_seeds(one, common), of_seeds(other, common)


def of_seeds(cell: Cell, seeds: Collection[float]) -> Cell:
    """A cell with the rows of some seeds; unchanged if it has none of them."""
    rows = tuple(row for row in cell.rows if row["seed"] in seeds)
    return replace(cell, rows=rows) if rows else cell


def has_own(technique: str, sparsity: float) -> bool:
    """Whether a technique has a model of its own at a sparsity of its study."""
    return sparsity >= {"slt-mp": SLT_MP_FIRST, "mp-slt": HYBRID_SWITCH + 1e-6}.get(technique, 1e-6)


@dataclass(frozen=True, eq=False)
class Figures:
    """A study's figures folder, read. `printed` marks the paper's own tables: rounded figures without sentences.

    Compared and hashed by identity, so functions of it can keep their results (`functools.lru_cache`).
    """

    path: Path
    name: str
    rehearsal: bool
    pairs: dict[str, list[str]]
    levels: list[float]
    steps: int
    test_sets: dict[str, list[str]]
    results: pd.DataFrame
    printed: bool = False
    corpus: str = ""

    @property
    def note(self) -> str:
        """The note that every title of a rehearsal, or of a study of generated text, carries; else empty."""
        generated = "generated sentences" if self.corpus == "grammar" else ""
        return "rehearsal: no evidence" if self.rehearsal else generated

    def titled(self, text: str) -> str:
        """A title, with the note."""
        return f"{text} ({self.note})" if self.note else text

    def test_set(self, pair: str) -> str:
        """The primary test set of a pair: the first one that its study names."""
        return self.test_sets[pair][0]

    def techniques(self, pair: str) -> list[str]:
        """The pair's techniques: those of the study, then a user's own in the order of results.csv."""
        ran = [technique for where, technique, variant, *_ in self._cells if where == pair and not variant]
        return [name for name in dict.fromkeys([*self.pairs[pair], *ran]) if name != "dense"]

    def begun(self, pair: str) -> list[str]:
        """The pair's techniques with a scored run at some level."""
        return [name for name in self.techniques(pair) if self.own_cells(pair, name)]

    def tried(self, pair: str) -> list[str]:
        """The pair's techniques with a run at some level, scored or failed."""
        failed = {technique for technique, _ in self.failures(pair)}
        return [name for name in self.techniques(pair) if name in failed or self.own_cells(pair, name)]

    def complete(self, pair: str, sparsity: float) -> bool:
        """Whether every begun technique of the study that has a model of its own at a sparsity was run there.

        By as many seeds as the others: means over other seeds are not compared.
        """
        names = [name for name in self.begun(pair) if name in self.pairs[pair] and has_own(name, sparsity)]
        cells = [self.cell(pair, name, sparsity) for name in names]
        return all(cells) and len({len(cell.rows) for cell in cells if cell.rows}) < 2

    @functools.cached_property
    def seeds(self) -> dict[str, list[int]]:
        """Pair -> the seeds of its techniques; of all its runs if no technique was run."""
        found = {}
        for pair, rows in self.results.groupby("pair"):
            tickets = rows[(rows.technique != "dense") & (rows.variant == "")]
            found[pair] = sorted({int(seed) for seed in (rows if tickets.empty else tickets).seed})
        return found

    def sparsities(self, pair: str) -> list[float]:
        """All levels of a pair in ascending order, starting with 0 (dense)."""
        ran = {level for where, _, variant, level, _ in self._cells if where == pair and not variant}
        return sorted({0.0, *self.levels, *ran})

    def cells(self, pair: str) -> list[Cell]:
        """All cells but variants and copies, on the primary test set: dense, then by technique and sparsity."""
        found = [self.cell(pair, "dense", 0)]
        found += [self.cell(pair, name, level) for name in self.techniques(pair) for level in self.sparsities(pair)]
        return [cell for cell in found if cell and not cell.copied]

    def failures(self, pair: str) -> dict[tuple[str, float], tuple[str, ...]]:
        """(technique, sparsity) -> reasons of the failed seeds on the primary test set; dense at 0."""
        failed = [cell for cell in self.cells(pair) if cell.failures]
        return {(cell.technique, cell.sparsity): tuple(dict.fromkeys(cell.failures)) for cell in failed}

    def own_cells(self, pair: str, technique: str) -> list[Cell]:
        """Those of `cells` that belong to a technique and are scored, by ascending sparsity."""
        return [cell for cell in self.cells(pair) if cell.technique == technique and cell.rows]

    def variants(self, pair: str) -> list[Cell]:
        """The cells of variants, runs of a recipe with other settings, in the order of results.csv."""
        primary = self.test_set(pair)
        return [cell for key, cell in self._cells.items() if key[0] == pair and cell.variant and key[4] == primary]

    def default(self, pair: str, cell: Cell) -> Cell | None:
        """What a variant is compared with: the default recipe, or the same variant if only SGD's noise is another."""
        known = [knob for knob in cell.variant.split(",") if not knob.startswith("noise=")]
        variant = "" if len(known) == len(cell.variant.split(",")) else ",".join(known)
        own = self._cells.get((pair, cell.technique, variant, round(cell.sparsity, 6), self.test_set(pair)))
        return own or self.cell(pair, cell.technique, cell.sparsity, variant)

    def cell(
        self, pair: str, technique: str, sparsity: float, variant: str = "", test_set: str | None = None
    ) -> Cell | None:
        """The cell of a technique at a sparsity; None if nothing was run.

        Cells that a technique shares with another are copied as in Table 1: the dense run at 0, and in MP-SLT the cells
        of MP up to 60%, unless MP-SLT has rows of its own there. The dense cell is over the seeds of the techniques, so
        that the means in a table are over the same seeds; `default` has all of its seeds.
        """
        where = round(sparsity, 6), test_set or self.test_set(pair)
        own = self._cells.get((pair, technique, variant, *where))
        if variant or (own and technique != "dense"):
            return own
        source = "mp" if technique == "mp-slt" and 0 < sparsity <= HYBRID_SWITCH else "dense"
        shared = self._cells.get((pair, source, "", *where)) if source == "mp" or not sparsity else None
        if shared and source == "dense":
            shared = of_seeds(shared, self.seeds[pair])
        return shared and replace(shared, technique=technique, copied=technique != source)

    @functools.cached_property
    def _cells(self) -> dict[tuple, Cell]:
        """(pair, technique, variant, sparsity, test set) -> cell, in the order of results.csv."""
        found = {}
        for row in self.results.to_dict("records"):
            key = row["pair"], row["technique"], row["variant"], round(row["sparsity"], 6), row["test_set"]
            found.setdefault(key, []).append(row)
        cells = {}
        for key, rows in found.items():
            scored = tuple(row for row in rows if row["status"] == "ok")
            failures = tuple(row["reason"] or "failed" for row in rows if row["status"] == "failed")
            cells[key] = Cell(*key[1:4], scored, failures, rows[0]["trained_with"])
        return cells

    def depth(self, technique: str, sparsity: float) -> int:
        """How many earlier trainings the initial weights of a cell went through, by the technique's default recipe.

        None under LT: its masks come from earlier trainings, its weights are theta_0.
        """
        if technique in ("mp", "lt") or not sparsity:
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
    def sentences(self) -> pd.DataFrame | None:
        """Sufficient statistics of BLEU and TER, one row per run, test set and line; None if the file is missing."""
        return _read_numbers(self.path, "sentences")

    @functools.cached_property
    def magnitudes(self) -> pd.DataFrame | None:
        """Kept weights and their mean magnitude, one row per run and matrix; None if the file is missing."""
        return _read_numbers(self.path, "magnitudes")

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
        before = self.cell(pair, *(("mp", HYBRID_SWITCH) if technique == "mp-slt" else ("dense", 0)))
        steps = before.mean("steps") if before and before.rows else self.steps
        if technique == "mp-slt" and all(other.sparsity != HYBRID_SWITCH for other in chain):
            steps += self.steps
        return steps + sum(other.mean("steps") for other in chain)


def load(folder: str | os.PathLike) -> Figures:
    """Read `study.json` and `results.csv` of a figures folder; the large files are read on first use.

    Raises InputError, one line with file, column and remedy, if something is missing or malformed.
    """
    study = read_study(folder)
    return Figures(
        path=Path(folder),
        name=study["study"],
        levels=[round(level, 6) for level in study["levels"]],
        results=_read_results(Path(folder) / "results.csv", study["pairs"]),
        corpus=study.get("settings", {}).get("corpus", {}).get("name", ""),
        **{key: study[key] for key in ("rehearsal", "pairs", "steps", "test_sets")},
    )


def read_study(folder: str | os.PathLike) -> dict:
    """The content of a figures folder's study.json. Raises InputError if it is missing or malformed."""
    folder = Path(folder)
    path = folder / "study.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such figures folder; run the study first, or check its name")
    if not path.is_file():
        raise InputError(f"{path}: missing; run the study first, it writes this file")
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and rerun the study") from error
    fault = _fault(study if isinstance(study, dict) else {})
    if fault:
        raise InputError(f"{path}: {fault}; delete it and rerun the study")
    return study


def _fault(study: Mapping) -> str:
    """What is wrong with the content of a study.json; empty if nothing is."""
    for key, kind in STUDY.items():
        if not isinstance(study.get(key, {} if key in ("versions", "merged", "settings") else None), kind):
            return f"{key} is missing or not of type {kind.__name__}"
    if not all(isinstance(level, int | float) and 0 <= level <= 1 for level in study["levels"]):
        return "levels are not fractions from 0 to 1"
    untested = [pair for pair in study["pairs"] if not study["test_sets"].get(pair)]
    return f"test_sets names no test set for {untested[0]}" if untested else ""


def read_text(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A CSV file, every cell as text. Raises InputError if it cannot be read or lacks one of `columns`."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it and rerun the job that wrote it") from error
    _must_have(path, columns, header)
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            wrong = f"{len(line)} cells where the header has {len(header)}"
            raise InputError(f"{path}, line {number}: {wrong}; rerun the job")
    return pd.DataFrame(lines, columns=header, dtype=object)


def read_rows(path: str | os.PathLike, columns: Sequence[str]) -> pd.DataFrame:
    """The columns of a file as text; no rows where there is no such file. Raises InputError if it is malformed."""
    there = Path(path).is_file()
    return read_text(Path(path), columns)[[*columns]] if there else pd.DataFrame(columns=[*columns], dtype=object)


def numbers(path: str | os.PathLike, columns: Sequence[str], pair: str, text: Collection[str]) -> pd.DataFrame:
    """The rows of a pair; all columns but `text` are numbers, an empty cell is nan. Raises InputError if one is not."""
    frame = read_rows(path, columns)
    frame = frame[frame.pair == pair]
    try:
        return frame.assign(**{name: pd.to_numeric(frame[name]) for name in columns if name not in text})
    except ValueError as error:
        raise InputError(f"{path}: {error}; restore the file or rerun the notebook that wrote it") from None


def _read_results(path: Path, pairs: Iterable[str]) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: missing; run the study first, or put its parts into {path.parent / 'parts'}")
    frame = read_text(path, RESULT_COLUMNS)
    text, scored = frame.copy(), frame["status"] == "ok"
    wrong = [("status", ~text["status"].isin(["ok", "failed"]), "is neither ok nor failed")]
    wrong += [("pair", ~text["pair"].isin(list(pairs)), "is not in study.json")]
    for column in NUMBERS:
        frame[column] = pd.to_numeric(text[column].replace("", np.nan), errors="coerce").astype(float)
        needed = {"sparsity": True, "seed": True, "bleu": scored}.get(column, False)
        wrong += [(column, frame[column].isna() & ((text[column] != "") | needed), "is no number")]
    wrong += [("sparsity", ~frame["sparsity"].between(0, 1), "is not between 0 and 1")]
    wrong += [("run", frame.duplicated(KINDS["results"][2]), "repeats an earlier row")]
    for column, places, fault in wrong:
        if places.any():
            line = int(places.argmax())
            where = f"{path}, line {line + 2}, column {column}: {text[column][line]!r}"
            raise InputError(f"{where} {fault}; restore the file or rerun the study")
    return frame


def _read_numbers(folder: Path, kind: str) -> pd.DataFrame | None:
    name, columns, _ = KINDS[kind]
    path = folder / name
    if not path.is_file():
        return None
    types = dict.fromkeys(columns, float) | {"run": str, "matrix": str, "test_set": str, "line": int}
    try:
        frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except (ValueError, OSError, EOFError, zlib.error) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({line}); delete it and rerun the study") from error
    _must_have(path, columns, frame)
    return frame


def _must_have(path: Path, columns: Iterable[str], there: Iterable[str]) -> None:
    missing = [column for column in columns if column not in there]
    if missing:
        raise InputError(f"{path}: column {', '.join(missing)} is missing; delete the file and rerun the study")


def csv_text(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Write the rows to a CSV file, gzipped if its name ends in .gz."""
    content = csv_text(header, rows).encode()
    write_bytes(path, pack(content) if path.suffix == ".gz" else content)


def pack(raw: bytes) -> bytes:
    """gzip without date and file name, so equal content gives equal bytes."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as file:
        file.write(raw)
    return out.getvalue()


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


def trainings(results: pd.DataFrame) -> list[str]:
    """The ids of the trainings behind rows of results.csv; a run scored at another checkpoint has one with a "+"."""
    return sorted({run.partition("+")[0] for run in results.run})
