"""Every claim of the paper as a test, with a verdict on the study and one on the paper's own tables.

The rules are in `judging`. The claims are worded after the paper's sections 1, 4, 5 and 6 and its abstract; where its
two versions on arXiv differ (MP-SLT against SLT), both wordings are judged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slt_lib.base.settings import TECHNIQUES
from slt_lib.report.data import Cell, Figures, csv_text, label, percent
from slt_lib.report.judging import GROWTH, MARGIN, UNDECIDED, Claim, Verdict, in_units, judge
from slt_lib.report.paper import paper_figures
from slt_lib.report.statistics import BANDS, POWER, RESAMPLES, Contrast, contrast, mean_magnitudes, seed_spread
from slt_lib.report.tables import markdown_rows, signed

LEVEL_WITH_MP = 0.85  # "similar ... up to 85%" (abstract)
NO_LOSS_UP_TO = 0.6  # section 5, SLT
HALF = 0.5  # section 5: MP at 50% misses the baseline; random signs at 50%

CLAIM_COLUMNS = (
    "claim statement source pair metric verdict effect low high detectable unit at supported reason paper_verdict "
    "paper_effect paper_reason"
).split()
CONTRAST_COLUMNS = "claim pair metric contrast sparsity effect low high detectable unit paper_effect".split()


def _against(plus: str, minus: str, lowest: float = 0.0, highest: float = 1.0) -> Callable:
    """Contrasts `plus` - `minus` at every level above `lowest` up to `highest` where both have a cell of their own."""

    def contrasts(figures: Figures, pair: str, metric: str) -> list[Contrast]:
        found = []
        for cell in figures.own_cells(pair, plus):
            other = figures.cell(pair, minus, cell.sparsity)
            if lowest < cell.sparsity <= highest and other and not other.copied:
                found.append(contrast(figures, pair, cell, other, metric))
        return [one for one in found if one]

    return contrasts


def _falls(figures: Figures, pair: str, metric: str) -> list[Contrast]:
    chain = [figures.cell(pair, "dense", 0), *figures.own_cells(pair, "mp")]
    steps = [contrast(figures, pair, *two, metric) for two in zip(chain, chain[1:], strict=False)]
    return [one for one in steps if one]


def _against_dense(technique: str, sign: int, levels: Callable[[float], bool]) -> Callable:
    def contrasts(figures: Figures, pair: str, metric: str) -> list[Contrast]:
        dense, found = figures.cell(pair, "dense", 0), []
        for cell in figures.own_cells(pair, technique):
            if levels(cell.sparsity):
                found.append(contrast(figures, pair, *((cell, dense) if sign > 0 else (dense, cell)), metric))
        return [one for one in found if one]

    return contrasts


def _best(lowest: float = 0.0) -> Callable:
    def contrasts(figures: Figures, pair: str, metric: str) -> list[Contrast]:
        found = []
        for cell in figures.own_cells(pair, "slt-mp"):
            others = [figures.cell(pair, name, cell.sparsity) for name in TECHNIQUES if name != "slt-mp"]
            for other in others:
                if cell.sparsity > lowest and other and not other.copied:
                    two = (cell, other) if metric == "bleu" else (other, cell)
                    found.append(contrast(figures, pair, *two, metric))
        return [one for one in found if one]

    return contrasts


def _variants(wanted: Callable[[Cell, dict[str, str]], bool], default_first: bool) -> Callable:
    def contrasts(figures: Figures, pair: str, metric: str) -> list[Contrast]:
        found = []
        for cell in figures.variants(pair):
            options = dict(part.partition("=")[::2] for part in cell.variant.split(","))
            if wanted(cell, options):
                default = figures.cell(pair, cell.technique, cell.sparsity)
                two = (default, cell) if default_first else (cell, default)
                found.append(contrast(figures, pair, *two, metric))
        return [one for one in found if one]

    return contrasts


def _random_signs(cell: Cell, options: dict[str, str]) -> bool:
    return cell.technique == "clt" and cell.sparsity == HALF and options == {"signs": "random"}


def _rewound(cell: Cell, options: dict[str, str]) -> bool:
    # Rewinding to 0 is LT, which has a claim of its own; 1.0 resets nothing and is among the paper's trials.
    return cell.technique == "slt" and set(options) == {"rewind"} and float(options["rewind"]) > 0


def _adam(cell: Cell, options: dict[str, str]) -> bool:
    return options == {"optimizer": "adam"}


def _growth(column: str) -> Callable:
    def contrasts(figures: Figures, pair: str, metric: str) -> list[Contrast]:
        chain = mean_magnitudes(figures, pair, "slt", column)
        steps = [
            (f"SLT {percent(after)}% / {percent(before)}%", after, _log_ratios(chain[after], chain[before]))
            for before, after in zip(chain, list(chain)[1:], strict=False)
        ]
        return _pooled(steps)

    return contrasts


def _beyond_mp(figures: Figures, pair: str, metric: str) -> list[Contrast]:
    ours, theirs = (mean_magnitudes(figures, pair, name, "mean_abs_final") for name in ("slt", "mp"))
    shared = [level for level in ours if level and level in theirs]
    steps = [(f"SLT / MP at {percent(level)}%", level, _log_ratios(ours[level], theirs[level])) for level in shared]
    return _pooled(steps)


def _log_ratios(after: dict[float, float], before: dict[float, float]) -> list[float]:
    seeds = [seed for seed in after if seed in before and after[seed] > 0 and before[seed] > 0]
    return [float(np.log(after[seed] / before[seed])) for seed in seeds]


def _pooled(steps: list[tuple[str, float, list[float]]]) -> list[Contrast]:
    """Contrasts in percent of log growth, with the spread between seeds pooled over the steps: no sentences here.

    One seed leaves nothing that an error could be estimated from: it is nan.
    """
    steps = [step for step in steps if step[2]]
    freedom = sum(len(values) - 1 for _, _, values in steps)
    squares = sum(float(np.var(values)) * len(values) for _, _, values in steps)
    spread = (squares / freedom) ** 0.5 if freedom else float("nan")
    return [
        Contrast(
            what,
            sparsity,
            100 * float(np.mean(values)),
            100 * spread / len(values) ** 0.5,
            freedom or np.inf,
            seeds_known=freedom > 0,
        )
        for what, sparsity, values in steps
    ]


def _at_half(level: float) -> bool:
    return level == HALF


CLAIMS = (
    Claim("mp_falls", "MP loses BLEU with every increase in sparsity", "section 5, MP", "above", _falls),
    Claim(
        "mp_misses_baseline_at_50",
        "MP misses the dense baseline at 50%",
        "section 5, MP",
        "above",
        _against_dense("mp", -1, _at_half),
    ),
    Claim("lt_below_mp", "LT is below MP at every level", "section 5, LT", "above", _against("mp", "lt")),
    Claim(
        "slt_no_loss_to_60",
        "SLT loses nothing significant up to 60%",
        "section 5, SLT",
        "above",
        _against_dense("slt", 1, lambda level: level <= NO_LOSS_UP_TO),
        threshold=-MARGIN,
    ),
    Claim(
        "slt_level_with_mp_to_85",
        "SLT is level with MP up to 85%",
        "abstract; section 5, SLT",
        "level",
        _against("slt", "mp", 0, LEVEL_WITH_MP),
    ),
    Claim(
        "slt_below_mp_above_85",
        "SLT is below MP above 85%",
        "section 1; section 6",
        "above",
        _against("mp", "slt", LEVEL_WITH_MP),
    ),
    Claim(
        "clt_at_or_above_slt",
        "CLT is at or above SLT on most levels",
        "section 5, CLT",
        "most",
        _against("clt", "slt"),
        unit="% of levels",
    ),
    Claim(
        "random_signs_worse",
        "CLT with random signs is clearly worse at 50%",
        "section 5, CLT",
        "above",
        _variants(_random_signs, default_first=True),
        threshold=MARGIN,
    ),
    Claim("slt_mp_best", "SLT-MP is best at all its levels", "section 5, SLT-MP", "above", _best()),
    Claim(
        "slt_mp_best_ter", "SLT-MP is best at all its levels", "section 5, SLT-MP", "above", _best(), 0.0, "ter", "TER"
    ),
    Claim("slt_mp_best_above_85", "SLT-MP is best above 85%", "abstract", "above", _best(LEVEL_WITH_MP)),
    Claim(
        "slt_mp_best_above_85_ter",
        "SLT-MP is best above 85%",
        "abstract",
        "above",
        _best(LEVEL_WITH_MP),
        0.0,
        "ter",
        "TER",
    ),
    Claim(
        "mp_slt_below_mp",
        "MP-SLT is below MP after the switch",
        "section 5, MP-SLT (first version)",
        "above",
        _against("mp", "mp-slt"),
    ),
    Claim(
        "mp_slt_below_slt",
        "MP-SLT is below SLT after the switch",
        "section 5, MP-SLT (first version)",
        "above",
        _against("slt", "mp-slt"),
    ),
    Claim(
        "mp_slt_above_slt",
        "MP-SLT is above SLT after the switch",
        "section 5, MP-SLT (second version)",
        "above",
        _against("mp-slt", "slt"),
    ),
    Claim(
        "magnitudes_grow_final",
        "The weights that SLT keeps are larger after every level's training",
        "section 5, SLT",
        "above",
        _growth("mean_abs_final"),
        unit=GROWTH,
        paper_says="over 100 at 98% (text; no table)",
    ),
    Claim(
        "magnitudes_grow_start",
        "The weights that SLT keeps are larger at every level's start",
        "section 5, SLT",
        "above",
        _growth("mean_abs_start"),
        unit=GROWTH,
        paper_says="said in the text; no table",
    ),
    Claim(
        "magnitudes_above_mp",
        "Control: SLT's kept weights are larger than MP's, from which the same small ones are gone",
        "not in the paper",
        "above",
        _beyond_mp,
        unit=GROWTH,
        paper_says="not tested there",
    ),
    Claim(
        "rewind_hardly_matters",
        "SLT is level with itself at other rewind points",
        "section 5, SLT",
        "level",
        _variants(_rewound, default_first=False),
        paper_says='"similar results" at 0.025, 0.075 and 1.0 (text; no table)',
    ),
    Claim(
        "adafactor_above_adam",
        "Adafactor is above Adam",
        "section 4",
        "above",
        _variants(_adam, default_first=True),
        paper_says="+0.5 BLEU (text; no table)",
    ),
)


@dataclass(frozen=True)
class Claims:
    """The verdicts as CSV and Markdown, and every contrast behind them as CSV; a notebook shows the Markdown.

    `short`: pair -> its verdicts as a Markdown table without the reasons, for the README.
    """

    csv: str
    markdown: str
    contrasts: str
    short: dict[str, str]

    def _repr_markdown_(self) -> str:
        return self.markdown


def claims_table(figures: Figures) -> Claims:
    """Judge every claim on every pair of the study, and beside it on the paper's own figures of that pair.

    Columns of the CSV: effect, interval and detectable difference of the contrast on which the verdict turns, in `unit`
    and in the direction of the claim; `at` names it, `supported` counts the contrasts whose point estimate agrees.
    """
    lines, body, details, short = [], [], [], {pair: [] for pair in figures.pairs}
    for claim in CLAIMS:
        for pair in figures.pairs:
            ours, paper = judge(claim, figures, pair), _paper_verdict(claim, pair)
            start = [claim.name, claim.statement, claim.source, pair, claim.metric, ours.verdict]
            numbers = [signed(number) for number in (ours.effect, ours.low, ours.high, ours.detectable)]
            end = [claim.unit, ours.at, ours.supported, ours.reason, paper.verdict, signed(paper.effect), paper.reason]
            lines.append(start + numbers + end)
            body.append(_row(claim, pair, ours, paper))
            short[pair] += _short_row(claim, ours, paper)
            details += _details(claim, pair, ours, paper)
    head = ["Claim", "Source", "Pair", "Verdict", "Effect [95% interval]", "Detectable", "Agree", "Why"]
    head += ["On the paper's tables", "Why"]
    text = f"{_preface(figures)}\n{markdown_rows(head, body)}"
    tables = {pair: _short(pair, rows) for pair, rows in short.items()}
    return Claims(csv_text(CLAIM_COLUMNS, lines), text, csv_text(CONTRAST_COLUMNS, details), tables)


def _paper_verdict(claim: Claim, pair: str) -> Verdict:
    paper = paper_figures()
    verdict = judge(claim, paper, pair) if pair in paper.pairs else Verdict(UNDECIDED, "no rows")
    return Verdict(UNDECIDED, claim.paper_says) if verdict.reason == "no rows" and claim.paper_says else verdict


def _row(claim: Claim, pair: str, ours: Verdict, paper: Verdict) -> list[str]:
    power = "–" if np.isnan(ours.detectable) else f"{ours.detectable:.1f}"
    where = f"least: {ours.at}" if ours.at and ours.at not in ours.reason and claim.rule != "most" else ""
    why = "; ".join(filter(None, [where, ours.reason])) or "–"
    return [
        _statement(claim),
        claim.source,
        pair,
        f"**{ours.verdict}**",
        _effect(claim, ours),
        power,
        ours.supported or "–",
        why,
        _on_paper(claim, paper, "**"),
        paper.reason or "–",
    ]


def _short_row(claim: Claim, ours: Verdict, paper: Verdict) -> list[list[str]]:
    """A row of the README's table; none for a claim of which our rows say nothing."""
    if ours.reason == "no rows":
        return []
    shown = [
        _on_paper(claim, paper),
        f"**{ours.verdict}**",
        _effect(claim, ours),
        ours.at or "–",
        ours.supported or "–",
    ]
    return [[_statement(claim), *shown]]


def _short(pair: str, rows: list[list[str]]) -> str:
    head = [f"Claim, {pair}", "On the paper's tables", "Here", "Least favourable effect [95%]", "At", "Agree"]
    return markdown_rows(head, rows) if rows else ""


def _statement(claim: Claim) -> str:
    return claim.statement + (" (TER)" if claim.metric == "ter" else "")


def _on_paper(claim: Claim, paper: Verdict, mark: str = "") -> str:
    return f"{mark}{paper.verdict}{mark}" + ("" if np.isnan(paper.effect) else f" ({_effect(claim, paper)})")


def _effect(claim: Claim, verdict: Verdict) -> str:
    """The effect in the claim's unit and, where it has one, its interval."""
    if np.isnan(verdict.effect):
        return "–"
    digits = "{:.0f}" if claim.rule == "most" else "{:+.1f}"
    unit = claim.unit if claim.unit.startswith("%") else f" {claim.unit}"
    effect, low, high = (digits.format(value + 0.0) for value in (verdict.effect, verdict.low, verdict.high))
    return f"{effect}{unit}" + ("" if np.isnan(verdict.low) else f" [{low}, {high}]")


def _details(claim: Claim, pair: str, ours: Verdict, paper: Verdict) -> list[list[str]]:
    theirs = {one.what: one.effect for one in paper.contrasts}
    rows = []
    for one in ours.contrasts:
        low, high = (np.nan, np.nan) if one.printed else one.bounds()
        numbers = [signed(in_units(claim, number)) for number in (one.effect, low, high, one.detectable)]
        beside = signed(theirs.get(one.what, np.nan))
        unit = claim.metric.upper() if claim.rule == "most" else claim.unit
        rows.append([claim.name, pair, claim.metric, one.what, percent(one.sparsity), *numbers, unit, beside])
    return rows


def _preface(figures: Figures) -> str:
    title = f"### Claims of the paper, judged on {figures.name}" + (f" ({figures.note})" if figures.note else "")
    spreads = []
    for pair in figures.pairs:
        known = [seed_spread(figures, pair, "bleu", highest) for highest in BANDS]
        each = [f"{spread:.2f} BLEU with {freedom}" if freedom else "unknown" for spread, freedom in known]
        spreads.append(f"{pair}: {', '.join(each)}")
    bounds = ", ".join(f"up to {percent(highest)}%" for highest in BANDS[:-1])
    method = (
        f"Each verdict is a test on BLEU of the first test set ({_test_sets(figures)}), or on TER where it says so. "
        f"An interval has 95%: the paired bootstrap over sentences ({RESAMPLES} resamples) and the spread between "
        f"seeds, pooled over a pair's cells {bounds} and above ({'; '.join(spreads)} degrees of freedom). A claim on "
        "several cells holds where each interval says so; it fails where one says so that is widened for their number. "
        f"*Detectable* is the true difference that this design would have found with {100 * POWER:.0f}% power. *Level* "
        f"and *no significant loss* mean within {MARGIN} BLEU, *clearly* by more than that. *Effect* is that of the "
        "least favourable comparison, turned so that positive favours the claim (*level*: signed as named); *agree* "
        "counts the comparisons whose point estimate favours it. The last two columns are the same code on the paper's "
        "own printed figures, judged as worded and without any interval: they are rounded to 0.1, so a difference is "
        "known to 0.1 at best."
    )
    if figures.printed:
        method = "The paper's own figures, judged as worded from what is printed: rounded to 0.1, without any interval."
    if figures.rehearsal:
        method = (
            "A rehearsal: every verdict is withheld, for its numbers are no evidence. The last two columns are the "
        )
        method += "same code on the paper's own printed figures."
    failed = _failed(figures)
    return f"{title}\n\n{method}\n" + (f"\nLeft out because every seed failed: {failed}.\n" if failed else "")


def _test_sets(figures: Figures) -> str:
    return ", ".join(dict.fromkeys(figures.test_set(pair) for pair in figures.pairs))


def _failed(figures: Figures) -> str:
    lost = []
    for pair in figures.pairs:
        for name in figures.techniques(pair):
            cells = [figures.cell(pair, name, level) for level in figures.sparsities(pair)]
            lost += [
                f"{pair} {label(name)} {percent(cell.sparsity)}%"
                for cell in cells
                if cell and not cell.rows and not cell.copied
            ]
    return ", ".join(lost)
