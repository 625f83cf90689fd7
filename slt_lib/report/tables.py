"""Tables 1 and 2 in the paper's form, and a table of the variants: runs of a recipe with other settings."""

import re
from dataclasses import dataclass

import numpy as np

from slt_lib.report.data import SLT_MP_FIRST, Cell, Figures, csv_text, label, percent
from slt_lib.report.statistics import contrast, same_runs

TABLE_COLUMNS = "pair technique sparsity bleu ter memory_mib note best test_set".split()
ABLATION_COLUMNS = (
    "pair technique variant sparsity bleu ter default_bleu difference low high detectable seeds note"
).split()
MARKS = {"slt": "†", "mp": "‡"}  # the paper's, in the SLT-MP column
STAR = r"\*"  # marks a failed seed; escaped, since Markdown reads a plain one as emphasis
MISSING, NONE, FAILED = "–", "n/a", "failed"
LATEX = {"†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}", "–": "--"}
LATEX |= {"∗": r"\textsuperscript{*}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#"}


@dataclass(frozen=True)
class Table:
    """One table as Markdown, LaTeX and CSV text; a notebook shows the Markdown."""

    markdown: str
    latex: str
    csv: str

    def _repr_markdown_(self) -> str:
        return self.markdown


@dataclass(frozen=True)
class _Entry:
    cell: Cell | None
    bleu: str
    ter: str
    note: str = ""
    mark: str = ""
    best: tuple[str, ...] = ()

    def show(self, metric: str) -> str:
        text = getattr(self, metric)
        if text in (MISSING, NONE, FAILED):
            return text
        return (f"**{text}**" if metric in self.best else text) + self.mark


def table(figures: Figures, pair: str, test_set: str | None = None) -> Table:
    """A pair's scores in the form of Table 1: one row per sparsity, BLEU and TER per technique, means over seeds.

    Bold marks the best score of a row as printed, including ties. Cells copied from another technique do not compete,
    as in the paper, so nothing is bold at 0%. In SLT-MP a dagger marks cells trained with SLT and a double dagger cells
    trained with MP. An asterisk marks a cell with a failed seed, "failed" a cell whose seeds all failed, "n/a" a cell
    that does not exist, and "–" one that was not run. Memory is the mean over the techniques at that sparsity in MiB;
    the column is omitted if no row has it. The CSV has the columns of `paper_tables.csv`, plus the best scores and the
    test set. `test_set` defaults to the study's first.
    """
    test_set = test_set or figures.test_set(pair)
    techniques, levels = figures.techniques(pair), figures.sparsities(pair)
    rows = [_with_best([_entry(figures, pair, name, level, test_set) for name in techniques]) for level in levels]
    memory = _memory(figures, pair, techniques, levels)
    title = f"{pair}: BLEU [%] and TER [%] on {test_set}" + (f" ({figures.note})" if figures.note else "")
    notes = [*_notes(techniques, rows), *filter(None, [failed(figures, pair), uneven(figures, pair)])]
    head = ["Sparsity", *(["Memory [MiB]"] if any(memory) else [])]
    head += [f"{label(name)} {metric}" for name in techniques for metric in ("BLEU", "TER")]
    body = []
    for level, size, row in zip(levels, memory, rows, strict=True):
        start = [f"{percent(level)}%", *([size or MISSING] if any(memory) else [])]
        body.append(start + [entry.show(metric) for entry in row for metric in ("bleu", "ter")])
    lines = [
        [pair, name, percent(level), entry.bleu, entry.ter, size, entry.note, " ".join(entry.best), test_set]
        for level, size, row in zip(levels, memory, rows, strict=True)
        for name, entry in zip(techniques, row, strict=True)
    ]
    return Table(_markdown(title, head, body, notes), _latex(title, head, body, notes), csv_text(TABLE_COLUMNS, lines))


def _entry(figures: Figures, pair: str, technique: str, level: float, test_set: str) -> _Entry:
    cell = figures.cell(pair, technique, level, test_set=test_set)
    if cell is None:
        text = NONE if technique == "slt-mp" and level < SLT_MP_FIRST else MISSING
        return _Entry(None, text, text)
    bleu, ter = (_score(cell, metric) for metric in ("bleu", "ter"))
    hybrid = technique == "slt-mp" or (technique == "mp-slt" and cell.trained_with == "mp")
    marked = hybrid and not cell.copied and cell.trained_with in MARKS
    notes = [f"trained with {cell.trained_with}"] if marked else []
    notes += list(dict.fromkeys(cell.failures))
    mark = (MARKS[cell.trained_with] if marked else "") + (STAR if cell.failures and cell.rows else "")
    return _Entry(cell, bleu, ter, "; ".join(notes), mark)


def _score(cell: Cell, metric: str) -> str:
    if cell.failures and not cell.rows:
        return FAILED
    value = cell.mean(metric)
    return MISSING if np.isnan(value) else f"{value:.1f}"


def _with_best(row: list[_Entry]) -> list[_Entry]:
    running = [entry for entry in row if entry.cell and entry.cell.rows and not entry.cell.copied]
    if len(running) < 2:
        return row
    best = {}
    for metric, choose in (("bleu", max), ("ter", min)):
        values = [getattr(entry, metric) for entry in running if getattr(entry, metric) != MISSING]
        best[metric] = choose(values, key=float, default=None)
    return [
        _Entry(**vars(entry) | {"best": tuple(name for name in best if getattr(entry, name) == best[name])})
        if entry in running
        else entry
        for entry in row
    ]


def _memory(figures: Figures, pair: str, techniques: list[str], levels: list[float]) -> list[str]:
    sizes = []
    for level in levels:
        cells = [figures.cell(pair, name, level) for name in techniques]
        values = [cell.mean("memory_mib") for cell in cells if cell and (not cell.copied or level == 0)]
        values = [value for value in values if not np.isnan(value)]
        sizes.append(float(np.mean(values)) if values else None)
    largest = max((size for size in sizes if size), default=1.0)
    # Three digits for the dense model: whole MiB at the paper's size, as printed there, and more for smaller models.
    digits = max(0, 2 - int(np.floor(np.log10(largest))))
    return ["" if size is None else f"{size:.{digits}f}" for size in sizes]


def _notes(techniques: list[str], rows: list[list[_Entry]]) -> list[str]:
    notes, marks = [], "".join(entry.mark for row in rows for entry in row)
    names = {"slt": "SLT", "mp": "MP"}
    notes += [f"{mark} trained with {names[kind]}." for kind, mark in MARKS.items() if mark in marks]
    if STAR in marks:
        notes.append(f"{STAR} a seed failed: the mean is over the others.")
    copied = {technique for row in rows for technique, entry in zip(techniques, row, strict=True) if _copies_mp(entry)}
    notes += ["MP-SLT copies MP's cells up to the switch."] if copied else []
    notes += [f"{NONE}: the cell does not exist."] if any(entry.bleu == NONE for row in rows for entry in row) else []
    notes += (
        [f"{MISSING} not run, or not scored."] if any(entry.bleu == MISSING for row in rows for entry in row) else []
    )
    return notes


def failed(figures: Figures, pair: str) -> str:
    """The cells of a pair's table with a failed seed and the reasons; empty if there are none."""
    told = [
        f"{label(technique)}{f' {percent(level)}%' if level else ''}: {', '.join(reasons)}"
        for (technique, level), reasons in figures.failures(pair).items()
    ]
    return f"Failed: {'; '.join(told)}." if told else ""


def uneven(figures: Figures, pair: str) -> str:
    """The cells of a pair's table with another number of seeds than the rest; empty if all have the same."""
    over: dict[int, list[str]] = {}
    for technique in figures.techniques(pair):
        for level in figures.sparsities(pair):
            cell = figures.cell(pair, technique, level)
            if cell and cell.rows and not (cell.copied and level):
                name = f"{label(technique)} {percent(level)}%" if level else "dense"
                names = over.setdefault(len(cell.rows) + len(cell.failures), [])
                names += [] if name in names else [name]
    if len(over) < 2:
        return ""
    most, rest = over.pop(max(over)), [name for names in over.values() for name in names]
    if len(most) <= len(rest):
        return f"Over more seeds than the rest: {', '.join(most)}."
    return f"Over fewer seeds than the rest: {', '.join(rest)}."


def _copies_mp(entry: _Entry) -> bool:
    return bool(entry.cell and entry.cell.copied and entry.cell.sparsity)


def ablations(figures: Figures, pair: str) -> Table:
    """Every variant of a recipe, compared with the default recipe at the same sparsity.

    The difference is variant minus default in BLEU points, with its 95% interval and the smallest difference that the
    design can detect (`statistics.contrast`). "sentences only": with one seed the interval omits the noise of training.
    """
    body, lines = [], []
    for cell in figures.variants(pair):
        default = figures.cell(pair, cell.technique, cell.sparsity)
        gap = contrast(figures, pair, cell, default)
        low, high = gap.bounds() if gap and not gap.printed else (np.nan, np.nan)
        note = "; ".join(dict.fromkeys(cell.failures))
        if gap and not gap.seeds_known:
            note = "; ".join(filter(None, [note, "sentences only"]))
        if same_runs(cell, default):
            note = "; ".join(filter(None, [note, "same training as the default"]))
        bleu, ter = _score(cell, "bleu"), _score(cell, "ter")
        before = _score(default, "bleu") if default else MISSING
        mark = STAR if cell.failures and cell.rows else ""
        shown = (
            MISSING if gap is None else f"{gap.effect:+.1f}" + ("" if gap.printed else f" [{low:+.1f}, {high:+.1f}]")
        )
        power = MISSING if gap is None or gap.printed else f"{gap.detectable:.1f}"
        body.append(
            [label(cell.technique), f"`{cell.variant}`", f"{percent(cell.sparsity)}%", bleu + mark, ter + mark]
            + [before, shown, power, str(len(cell.rows)), note]
        )
        numbers = [gap.effect if gap else np.nan, low, high, gap.detectable if gap else np.nan]
        lines.append(
            [pair, cell.technique, cell.variant, percent(cell.sparsity), bleu, ter, before]
            + [signed(number) for number in numbers]
            + [str(len(cell.rows)), note]
        )
    title = f"{pair}: variants of the recipes on {figures.test_set(pair)}"
    title += f" ({figures.note})" if figures.note else ""
    head = ["Technique", "Variant", "Sparsity", "BLEU", "TER", "Default's BLEU", "Difference [95%]"]
    head += ["Detectable", "Seeds", "Note"]
    notes = [] if body else ["No variant was run."]
    return Table(_markdown(title, head, body, notes), "", csv_text(ABLATION_COLUMNS, lines))


def signed(number: float) -> str:
    """A difference with two decimals for a CSV cell; empty for nan."""
    return "" if np.isnan(number) else f"{number + 0.0:.2f}"


def markdown_rows(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table; bars inside a cell are escaped."""
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _markdown(title: str, head: list[str], body: list[list[str]], notes: list[str]) -> str:
    rows = markdown_rows(head, body) if body else ""
    return f"### {title}\n\n{rows}" + (f"\n{' '.join(notes)}\n" if notes else "")


def _latex(title: str, head: list[str], body: list[list[str]], notes: list[str]) -> str:
    start = [text for text in head if not text.endswith((" BLEU", " TER"))]
    names = [text.removesuffix(" BLEU") for text in head[len(start) :: 2]]
    groups = "".join(rf" & \multicolumn{{2}}{{c}}{{{_tex(name)}}}" for name in names)
    lines = [
        "% needs booktabs and textcomp",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{'r' * len(start)}{'cc' * len(names)}}}",
        r"\toprule",
        " & ".join(_tex(text) for text in start) + groups + r" \\",
        " & ".join([""] * len(start) + ["BLEU", "TER"] * len(names)) + r" \\",
        r"\midrule",
        *(" & ".join(_tex(cell) for cell in line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_tex(' '.join([title + '.', *notes]))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    bold = re.fullmatch(r"\*\*(.+?)\*\*(.*)", text)
    if bold:
        return rf"\textbf{{{_tex(bold[1])}}}{_tex(bold[2])}"
    return "".join(LATEX.get(letter, letter) for letter in text.replace(STAR, "∗"))
