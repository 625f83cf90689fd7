"""benchmarks/results.csv: one row per measure, setting and system. A repeated measure replaces its rows."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from slt_lib.base.files import write_bytes
from slt_lib.report.summary import between
from slt_lib.report.tables import markdown_rows

PATH = Path(__file__).with_name("results.csv")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "speed.md"
COLUMNS = ("measure", "setting", "system", "value", "unit", "ratio", "low", "high", "rounds", "machine", "commit")
OURS = "ours"
BEGIN, END = "<!-- speed: made by `python -m benchmarks` -->", "<!-- end of speed -->"
BESIDE = ("target tokens/s", "sentences/s", "BLEU")  # units of the rows that are shown with one column per system


@dataclass(frozen=True)
class Row:
    """A median over rounds with its range. `ratio`: to ours (for masks: to dense) in the same measure and setting."""

    measure: str
    setting: str
    system: str
    value: float
    unit: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    machine: str = ""
    commit: str = ""


def rows(measure: str, setting: str, unit: str, values: dict[str, list[float]], base: str = OURS) -> list[Row]:
    """Rows of one measure. `values`: system -> one value per round. `base`: the system that ratios refer to."""
    middle = {system: median(taken) for system, taken in values.items() if taken}
    return [
        Row(
            measure,
            setting,
            system,
            value,
            unit,
            value / middle[base] if middle.get(base) else None,
            min(values[system]),
            max(values[system]),
            len(values[system]),
        )
        for system, value in middle.items()
    ]


def _number(value: float | None) -> str:
    """Four significant digits; a number above 1000 without decimals."""
    return "" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _cells(row: Row) -> dict[str, str]:
    cells = {column: getattr(row, column) for column in COLUMNS}
    return cells | {column: _number(cells[column]) for column in ("value", "ratio", "low", "high")}


def read(path: Path | None = None) -> list[Row]:
    """The rows of a CSV, by default results.csv; none if there is no such file."""
    path = path or PATH
    if not path.exists():
        return []

    def number(text: str) -> float | None:
        return float(text) if text else None

    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                **line
                | {column: number(line[column]) for column in ("value", "ratio", "low", "high")}
                | {"rounds": int(line["rounds"])}
            )
            for line in csv.DictReader(file)
        ]


def write(new: Iterable[Row], path: Path | None = None) -> None:
    """Write rows into the CSV; they replace all rows of their measures."""
    path = path or PATH
    new = list(new)
    taken = {row.measure for row in new}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in [*(row for row in read(path) if row.measure not in taken), *new])
    write_bytes(path, text.getvalue().encode())


def table(shown: Iterable[Row]) -> str:
    """The rows as text, one line each, under headings of measure and setting."""
    lines, heading = [], None
    for row in shown:
        if heading != (row.measure, row.setting):
            heading = row.measure, row.setting
            lines += ["", f"{row.measure}: {row.setting}"]
        ratio = "" if row.ratio is None else f"ratio {row.ratio:7.3f}"
        spread = "" if row.rounds == 1 else f"  ({_number(row.low)} to {_number(row.high)} in {row.rounds} rounds)"
        lines.append(f"  {row.system:<26}{_number(row.value):>10} {row.unit:<24}{ratio}{spread}")
    return "\n".join(lines[1:])


def markdown(shown: Iterable[Row]) -> str:
    """The rows as Markdown: a part per measure, with one column per system where several are compared."""
    measures: dict[str, list[Row]] = {}
    for row in shown:
        measures.setdefault(row.measure, []).append(row)
    return "\n".join(_part(measure, rows) for measure, rows in measures.items())


def _part(measure: str, shown: list[Row]) -> str:
    """The rows of one measure: a table of the systems that are compared, and a list of all other rows."""
    common = _common([row.setting for row in shown])
    beside, rest = {}, []
    for row in shown:
        setting = row.setting.removeprefix(common)
        if row.unit in BESIDE:
            beside.setdefault((setting, row.unit), {})[row.system] = row.value
        elif row.system == "sparse":
            rest.append(f"- {setting}: {_number(row.ratio)} of a dense one")
        elif row.unit.startswith("%") or row.system.endswith("wall"):
            what = [setting, row.system.removeprefix(OURS)]
            rest.append(f"- {', '.join(filter(None, what))}: {_number(row.value)} {row.unit}")
    systems = list(dict.fromkeys(system for cells in beside.values() for system in cells))
    body = [
        [setting, unit, *(_number(cells.get(each)) or "–" for each in systems)]
        for (setting, unit), cells in beside.items()
    ]
    machines = " and ".join(sorted({row.machine for row in shown if row.machine}))
    head = f"`{measure}`, measured on {machines}{': ' if common else ''}{common.rstrip('; ')}."
    parts = [head, markdown_rows(["What", "Unit", *systems], body).strip() if body else "", "\n".join(rest)]
    return "\n\n".join(filter(None, parts)) + "\n"


def into(path: Path) -> None:
    """Write the table of results.csv between the two marker lines of a page. Raises InputError if they are missing."""
    between(path, BEGIN, END, markdown(read()))


def _common(settings: list[str]) -> str:
    """The common beginning of all settings, up to its last "; "."""
    start = os.path.commonprefix(settings)
    return start[: start.rfind("; ") + 2] if "; " in start else ""
