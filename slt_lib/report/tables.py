"""Tables 1 and 2 in the paper's form, and a table of the variants: runs of a recipe with other settings."""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from slt_lib.report.data import HYBRID_SWITCH, SLT_MP_FIRST, Cell, Figures, csv_text, label, of_common_seeds, percent
from slt_lib.report.paper import paper_figures
from slt_lib.report.statistics import contrast, same_runs

TABLE_COLUMNS = "pair technique sparsity bleu ter memory_mib note best test_set".split()
ABLATION_COLUMNS = (
    "pair technique variant sparsity bleu ter default_bleu difference low high detectable seeds note"
).split()
CHOOSE = {"bleu": max, "ter": min}  # metric -> which of two scores is better
MARKS = {"slt": "†", "mp": "‡"}  # the paper's, in the SLT-MP column
STAR = r"\*"  # marks a failed seed; escaped, since Markdown reads a plain one as emphasis
MISSING, NONE, FAILED = "–", "n/a", "failed"
LATEX = {"†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}", "–": "--"}
LATEX = str.maketrans(LATEX | {"∗": r"\textsuperscript{*}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#"})


@dataclass(frozen=True)
class Table:
    """One table as Markdown, LaTeX and CSV text; a notebook shows the Markdown."""

    markdown: str
    latex: str
    csv: str

    def _repr_markdown_(self) -> str:
        return self.markdown


@dataclass
class _Entry:
    """A cell as it is shown: its scores as text, which of them are the best of the row, its note and its mark."""

    cell: Cell | None
    scores: dict[str, str]
    note: str = ""
    mark: str = ""
    best: list[str] = field(default_factory=list)

    def show(self, metric: str) -> str:
        text = self.scores[metric]
        if text in (MISSING, NONE, FAILED):
            return text
        return (f"**{text}**" if metric in self.best else text) + self.mark


def table(figures: Figures, pair: str, test_set: str | None = None) -> Table:
    """A pair's scores in the form of Table 1: one row per sparsity, BLEU and TER per technique, means over seeds.

    Bold marks the best score of a row as printed, including ties, unless a technique begun lacks a run there. Cells
    copied from another technique do not compete, as in the paper, so nothing is bold at 0%. In SLT-MP a dagger marks
    cells trained with SLT and a double dagger cells trained with MP. An asterisk marks a cell with a failed seed,
    "failed" a cell whose seeds all failed, "n/a" a cell that does not exist, and "–" one that was not run. Memory is
    the mean over the techniques at that sparsity in MiB; the column is omitted if no row has it. The CSV has the
    columns of `paper_tables.csv`, plus the best scores and the test set. `test_set` defaults to the study's first.
    """
    test_set = test_set or figures.test_set(pair)
    techniques, levels = figures.techniques(pair), figures.sparsities(pair)
    rows = [[_entry(figures, pair, name, level, test_set) for name in techniques] for level in levels]
    memory = _memory(figures, pair, levels)
    head = ["Sparsity", *(["Memory [MiB]"] if any(memory) else [])]
    head += [f"{label(name)} {metric.upper()}" for name in techniques for metric in CHOOSE]
    body, lines = [], []
    for level, size, row in zip(levels, memory, rows, strict=True):
        _find_best(row, figures.complete(pair, level))
        start = [f"{percent(level)}%", *([size or MISSING] if any(memory) else [])]
        body.append(start + [entry.show(metric) for entry in row for metric in CHOOSE])
        for name, entry in zip(techniques, row, strict=True):
            scores = [pair, name, percent(level), *entry.scores.values()]
            lines.append([*scores, size, entry.note, " ".join(entry.best), test_set])
    title = figures.titled(f"{pair}: BLEU [%] and TER [%] on {test_set}")
    notes = [*_notes(rows), *filter(None, [failed(figures, pair), uneven(figures, pair)])]
    return Table(_markdown(title, head, body, notes), _latex(title, head, body, notes), csv_text(TABLE_COLUMNS, lines))


def beside_paper(figures: Figures, pair: str) -> str:
    """A pair's scores as an HTML table, the paper's own in small print below each; what was not run is left out."""
    paper, test_set = paper_figures(), figures.test_set(pair)
    names = figures.tried(pair) or ["dense"]
    levels = figures.sparsities(pair)
    rows = {level: [_entry(figures, pair, name, level, test_set) for name in names] for level in levels}
    rows = {level: row for level, row in rows.items() if any(entry.cell for entry in row)}
    head = "".join(f'<th colspan="2">{label(name)}</th>' for name in names)
    lines = [f"<tr><th></th>{head}</tr>", f"<tr><th>Sparsity</th>{'<th>BLEU</th><th>TER</th>' * len(names)}</tr>"]
    for level, row in rows.items():
        _find_best(row, figures.complete(pair, level))
        cells = [f"<th>{percent(level)}%</th>"]
        for name, entry in zip(names, row, strict=True):
            cell = paper.cell(pair, name, level) if pair in paper.pairs else None
            theirs = _scores(cell) if cell else dict.fromkeys(CHOOSE, "")
            shown = {metric: entry.show(metric).replace("\\", "") for metric in CHOOSE}
            shown |= {metric: f"<b>{text.replace('**', '')}</b>" for metric, text in shown.items() if "**" in text}
            cells += [f"<td>{shown[metric]}<br><small>{theirs[metric]}</small></td>" for metric in CHOOSE]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    notes = [*_notes(list(rows.values())), failed(figures, pair), uneven(figures, pair)]
    title = figures.titled(f"{pair}: {test_set}, and in small print the paper's newstest2014")
    body = f"<thead>{''.join(lines[:2])}</thead><tbody>{''.join(lines[2:])}</tbody>"
    below = " ".join(filter(None, notes)).replace("\\", "")
    return f'<p><b>{title}</b></p><table class="scores">{body}</table>' + (f"<p>{below}</p>" if below else "")


def _entry(figures: Figures, pair: str, technique: str, level: float, test_set: str) -> _Entry:
    cell = figures.cell(pair, technique, level, test_set=test_set)
    if cell is None:
        missing = NONE if technique == "slt-mp" and level < SLT_MP_FIRST else MISSING
        return _Entry(None, dict.fromkeys(CHOOSE, missing))
    hybrid = technique == "slt-mp" or (technique == "mp-slt" and cell.trained_with == "mp")
    marked = hybrid and not cell.copied and cell.trained_with in MARKS
    notes = [f"trained with {cell.trained_with}"] if marked else []
    mark = (MARKS[cell.trained_with] if marked else "") + _star(cell)
    return _Entry(cell, _scores(cell), "; ".join(dict.fromkeys([*notes, *cell.failures])), mark)


def _scores(cell: Cell) -> dict[str, str]:
    if cell.failures and not cell.rows:
        return dict.fromkeys(CHOOSE, FAILED)
    means = {metric: cell.mean(metric) for metric in CHOOSE}
    return {metric: MISSING if np.isnan(mean) else f"{mean:.1f}" for metric, mean in means.items()}


def _star(cell: Cell) -> str:
    return STAR if cell.failures and cell.rows else ""


def _find_best(row: list[_Entry], complete: bool) -> None:
    """Mark the best scores of a row; none in a row that lacks a technique."""
    running = [entry for entry in row if entry.cell and entry.cell.rows and not entry.cell.copied]
    for metric, choose in CHOOSE.items() if complete and len(running) > 1 else ():
        scores = [entry.scores[metric] for entry in running if entry.scores[metric] != MISSING]
        best = choose(scores, key=float, default=None)
        for entry in running:
            entry.best += [metric] if entry.scores[metric] == best else []


def _memory(figures: Figures, pair: str, levels: list[float]) -> list[str]:
    known = [(cell.sparsity, cell.mean("memory_mib")) for cell in figures.cells(pair)]
    sizes = pd.DataFrame(known, columns=["level", "mib"]).groupby("level").mib.mean().reindex(levels)
    if sizes.isna().all():
        return [""] * len(levels)
    # Three digits for the dense model: whole MiB at the paper's size, as printed there, and more for smaller models.
    digits = max(0, 2 - int(np.floor(np.log10(sizes.max()))))
    return ["" if np.isnan(size) else f"{size:.{digits}f}" for size in sizes]


def _notes(rows: list[list[_Entry]]) -> list[str]:
    entries = [entry for row in rows for entry in row]
    marks = "".join(entry.mark for entry in entries)
    shown = {entry.scores["bleu"] for entry in entries}
    copied = {entry.cell.sparsity for entry in entries if entry.cell and entry.cell.copied}
    notes = {f"{mark} trained with {label(kind)}.": mark in marks for kind, mark in MARKS.items()} | {
        f"{STAR} a seed failed: the mean is over the others.": STAR in marks,
        f"Up to {percent(HYBRID_SWITCH)}%, the cells of MP-SLT are those of MP.": any(copied),
        f"{NONE}: SLT-MP starts at {percent(SLT_MP_FIRST)}%.": NONE in shown,
        f"{MISSING} not run, or not scored.": MISSING in shown,
    }
    return [note for note, holds in notes.items() if holds]


def failed(figures: Figures, pair: str) -> str:
    """The cells of a pair's table with a failed seed and the reasons; empty if there are none."""
    told = [f"{_named(*cell)}: {', '.join(reasons)}" for cell, reasons in figures.failures(pair).items()]
    return f"Failed: {'; '.join(told)}." if told else ""


def uneven(figures: Figures, pair: str) -> str:
    """The cells of a pair's table with another number of seeds than the rest; empty if all have the same."""
    over: dict[int, list[Cell]] = {}
    for cell in figures.cells(pair):
        if cell.rows:
            over.setdefault(len(cell.rows) + len(cell.failures), []).append(cell)
    if len(over) < 2:
        return ""
    most, rest = over.pop(max(over)), [cell for cells in over.values() for cell in cells]
    fewer = len(most) > len(rest)
    levels: dict[str, list[float]] = {}
    for cell in rest if fewer else most:
        levels.setdefault(cell.technique, []).append(cell.sparsity)
    names = [f"{label(name)} {', '.join(map(percent, at))}%" if any(at) else label(name) for name, at in levels.items()]
    return f"Over {'fewer' if fewer else 'more'} seeds than the rest: {'; '.join(names)}."


def _named(technique: str, level: float) -> str:
    return f"{label(technique)} {percent(level)}%" if level else label(technique)


def ablations(figures: Figures, pair: str) -> Table:
    """Every variant of a recipe, compared with the default recipe at the same sparsity.

    The difference is variant minus default in BLEU points, with its 95% interval and the smallest difference that the
    design can detect (`statistics.contrast`). Identical translations have no interval.
    """
    body, lines = [], []
    for cell in figures.variants(pair):
        if default := figures.default(pair, cell):
            default = of_common_seeds(cell, default)[1]
        gap = contrast(figures, pair, cell, default)
        numbers, shown, power = [np.nan] * 4, MISSING, MISSING
        if gap:
            numbers, shown = [gap.effect, np.nan, np.nan, np.nan], f"{gap.effect:+.1f}"
        alike = gap and not gap.printed and gap.error == 0
        if gap and not gap.printed and not alike:
            numbers[1:] = *gap.bounds(), gap.detectable
            shown, power = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*numbers), f"{gap.detectable:.1f}"
        notes = [*dict.fromkeys(cell.failures)]
        notes += ["same translations"] if alike else ["few seeds"] if gap and not gap.seeds_known else []
        notes += ["same training as the default"] if same_runs(cell, default) else []
        bleu, ter = _scores(cell).values()
        before = _scores(default)["bleu"] if default else MISSING
        end = [str(len(cell.rows)), "; ".join(notes)]
        level, star = percent(cell.sparsity), _star(cell)
        start = [label(cell.technique), f"`{cell.variant}`", f"{level}%", bleu + star, ter + star]
        body.append([*start, before, shown, power, *end])
        lines.append([pair, cell.technique, cell.variant, level, bleu, ter, before, *map(signed, numbers), *end])
    title = figures.titled(f"{pair}: variants of the recipes on {figures.test_set(pair)}")
    head = ["Technique", "Variant", "Sparsity", "BLEU", "TER", "Default's BLEU", "Difference [95%]"]
    head += ["Detectable", "Seeds", "Note"]
    notes = [] if body else ["No variant was run."]
    if any("few seeds" in line[-1] for line in body):
        notes.append("Few seeds: the interval omits the noise of training, or is too narrow for it.")
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
    return re.sub(r"^\*\*(.+?)\*\*", r"\\textbf{\1}", text.replace(STAR, "∗").translate(LATEX))
