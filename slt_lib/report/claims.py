"""The claims of the paper as a table of tests, and their verdicts on a study and on the paper's own tables.

`judging.RULE` states how a claim is judged. The claims are worded after the paper's abstract and its sections 1, 4, 5
and 6; where its two versions on arXiv differ (MP-SLT against SLT), both wordings are judged. The last rows are controls
that the paper does not have.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slt_lib.base.settings import TECHNIQUES
from slt_lib.report.data import Cell, Figures, csv_text, label, percent
from slt_lib.report.judging import MARGIN, RULE, UNDECIDED, Cells, Claim, Verdict, judge
from slt_lib.report.paper import paper_figures
from slt_lib.report.statistics import BANDS, POWER, RESAMPLES, seed_spread
from slt_lib.report.tables import MISSING, markdown_rows, signed

CLAIM_COLUMNS = (
    "claim statement source pair metric verdict effect low high detectable unit at supported reason paper_verdict "
    "paper_effect paper_reason"
).split()
CONTRAST_COLUMNS = "claim pair metric contrast sparsity effect low high detectable unit paper_effect".split()
HEAD = ["Claim", "Source", "Pair", "Verdict", "Effect [95% interval]", "Detectable", "Agree", "Why"]
HEAD += ["On the paper's tables", "Why"]
SHORT_HEAD = ["On the paper's tables", "Here", "Least favourable effect [95%]", "At", "Agree"]
NOTE = (
    "*Effect* is that of the contrast on which the verdict turns, the k-th most favourable, signed so that positive "
    "favours the claim (*level*: signed as named). *Detectable* is the true difference that this design finds with "
    f"{100 * POWER:.0f}% power. *Agree* counts the contrasts whose point estimate agrees. The last two columns apply "
    "the same rule to the figures that the paper prints."
)
OURS = "not in the paper"  # the source of a control
Builder = Callable[[Figures, str], Cells]  # of the pairs of cells that a claim compares


def _own(figures: Figures, pair: str, technique: str, level: float) -> Cell | None:
    """The cell of a technique, unless it repeats another technique's; for dense, the level is ignored."""
    cell = figures.cell(pair, technique, 0.0 if technique == "dense" else level)
    return cell if cell and not cell.copied else None


def _gap(plus: str, minus: str, levels: tuple[float, float] = (0.0, 1.0)) -> Builder:
    """`plus` with `minus` at each level above the first and up to the second; "dense" is the dense model at any."""
    return lambda figures, pair: [
        (_own(figures, pair, plus, level), _own(figures, pair, minus, level))
        for level in figures.sparsities(pair)
        if levels[0] < level <= levels[1]
    ]


def _best(technique: str, levels: tuple[float, float] = (0.0, 1.0)) -> Builder:
    """A technique with each of the others at each of the levels."""
    gaps = [_gap(technique, name, levels) for name in TECHNIQUES if name != technique]
    return lambda figures, pair: [two for gap in gaps for two in gap(figures, pair)]


def _steps(technique: str, rising: bool = False) -> Builder:
    """Each level with the next higher one, from the dense model on; `rising`: the higher one first."""

    def cells(figures: Figures, pair: str) -> Cells:
        chain = [figures.cell(pair, "dense", 0), *figures.own_cells(pair, technique)]
        return [two[::-1] if rising else two for two in itertools.pairwise(chain)]

    return cells


def _variants(technique: str, wanted: Callable[[dict[str, str]], bool], first: bool = False) -> Builder:
    """The default with each variant whose options are wanted; `first`: the variant first. An empty technique: any."""

    def cells(figures: Figures, pair: str) -> Cells:
        found = []
        for cell in figures.variants(pair):
            options = dict(part.partition("=")[::2] for part in cell.variant.split(","))
            if technique in ("", cell.technique) and wanted(options):
                default = figures.cell(pair, cell.technique, cell.sparsity)
                found.append((cell, default) if first else (default, cell))
        return found

    return cells


def _control(kind: str) -> Callable[[dict[str, str]], bool]:
    """`techniques.slt_control` of one kind at any level or depth, without those of other noise or checkpoints."""
    return lambda options: options.get("control") == kind and set(options) <= {"control", "at", "depth"}


def _rewound(options: dict[str, str]) -> bool:
    # Rewinding to 0 is LT, which has a claim of its own; 1.0 resets nothing and is among the paper's trials.
    return set(options) == {"rewind"} and float(options["rewind"]) > 0


HALF, UPTO_60, UPTO_85, ABOVE_85 = (0.499, 0.5), (0.0, 0.6), (0.0, 0.85), (0.85, 1.0)
CLAIMS = (
    Claim("mp_falls", "MP loses BLEU with every increase in sparsity", "section 5, MP", _steps("mp")),
    Claim("mp_misses_baseline_at_50", "MP is below dense at 50%", "section 5, MP", _gap("dense", "mp", HALF)),
    Claim("lt_below_mp", "LT is below MP at every level", "section 5, LT", _gap("mp", "lt")),
    Claim(
        "slt_no_loss_to_60",
        "SLT has no significant loss up to 60%",
        "section 5, SLT",
        _gap("slt", "dense", UPTO_60),
        -MARGIN,
    ),
    Claim(
        "slt_level_with_mp_to_85",
        "SLT is level with MP up to 85%",
        "abstract; section 5, SLT",
        _gap("slt", "mp", UPTO_85),
        -MARGIN,
        MARGIN,
    ),
    Claim("slt_below_mp_above_85", "SLT is below MP above 85%", "section 1; section 6", _gap("mp", "slt", ABOVE_85)),
    Claim(
        "clt_at_or_above_slt", "CLT is at or above SLT on most levels", "section 5, CLT", _gap("clt", "slt"), most=True
    ),
    Claim(
        "random_signs_worse",
        "CLT with random signs is clearly worse at 50%",
        "section 5, CLT",
        _variants("clt", {"signs": "random"}.__eq__),
        MARGIN,
    ),
    Claim("slt_mp_best", "SLT-MP is best at all its levels", "section 5, SLT-MP", _best("slt-mp")),
    Claim("slt_mp_best_ter", "SLT-MP is best at all its levels", "section 5, SLT-MP", _best("slt-mp"), metric="ter"),
    Claim("slt_mp_best_above_85", "SLT-MP is best above 85%", "abstract", _best("slt-mp", ABOVE_85)),
    Claim("slt_mp_best_above_85_ter", "SLT-MP is best above 85%", "abstract", _best("slt-mp", ABOVE_85), metric="ter"),
    Claim(
        "mp_slt_below_mp",
        "MP-SLT is below MP after the switch",
        "section 5, MP-SLT (first version)",
        _gap("mp", "mp-slt"),
    ),
    Claim(
        "mp_slt_below_slt",
        "MP-SLT is below SLT after the switch",
        "section 5, MP-SLT (first version)",
        _gap("slt", "mp-slt"),
    ),
    Claim(
        "mp_slt_above_slt",
        "MP-SLT is above SLT after the switch",
        "section 5, MP-SLT (second version)",
        _gap("mp-slt", "slt"),
    ),
    Claim(
        "magnitudes_grow_final",
        "The weights that SLT keeps are larger after every level's training",
        "section 5, SLT",
        _steps("slt", rising=True),
        metric="mean_abs_final",
        paper_says="over 100 at 98% (text; no table)",
    ),
    Claim(
        "magnitudes_grow_start",
        "The weights that SLT keeps are larger at every level's start",
        "section 5, SLT",
        _steps("slt", rising=True),
        metric="mean_abs_start",
        paper_says="said in the text; no table",
    ),
    Claim(
        "rewind_hardly_matters",
        "SLT is level with itself at other rewind points",
        "section 5, SLT",
        _variants("slt", _rewound, first=True),
        -MARGIN,
        MARGIN,
        paper_says='"similar results" at 0.025, 0.075 and 1.0 (text; no table)',
    ),
    Claim(
        "adafactor_above_adam",
        "Adafactor is above Adam",
        "section 4",
        _variants("", {"optimizer": "adam"}.__eq__),
        paper_says="+0.5 BLEU (text; no table)",
    ),
    Claim(
        "magnitudes_above_mp",
        "Control: SLT's kept weights are larger than MP's at the same level",
        OURS,
        _gap("slt", "mp"),
        metric="mean_abs_final",
    ),
    Claim(
        "again_above_dense",
        "Control: rewinding and training again without pruning is above dense at every depth",
        OURS,
        _variants("slt", _control("none"), first=True),
    ),
    Claim("slt_above_random_masks", "Control: SLT is above random masks", OURS, _variants("slt", _control("mask"))),
    Claim(
        "slt_above_fresh_weights",
        "Control: SLT is above fresh weights under its mask",
        OURS,
        _variants("slt", _control("weights")),
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
    """Judge every claim on every pair of the study, and on the paper's own figures of that pair.

    Columns of the CSV: effect, interval and detectable difference of the contrast on which the verdict turns, in `unit`
    and in the direction of the claim; `at` names it, `supported` counts the contrasts whose point estimate agrees.
    """
    lines, body, details, short = [], [], [], {pair: [] for pair in figures.pairs}
    for claim, pair in itertools.product(CLAIMS, figures.pairs):
        ours, paper = judge(claim, figures, pair), _on_paper(claim, pair)
        numbers = map(signed, (ours.effect, ours.low, ours.high, ours.detectable))
        lines.append(
            [claim.name, claim.statement, claim.source, pair, claim.metric, ours.verdict, *numbers, claim.unit, ours.at]
            + [ours.supported, ours.reason, paper.verdict, signed(paper.effect), paper.reason]
        )
        details += _details(claim, pair, ours, paper)
        name = claim.statement + (" (TER)" if claim.metric == "ter" else "")
        effect, verdict = _effect(claim, ours), f"**{ours.verdict}**"
        theirs = paper.verdict + ("" if np.isnan(paper.effect) else f" ({_effect(claim, paper)})")
        power = "" if np.isnan(ours.detectable) else f"{ours.detectable:.1f}"
        why = "; ".join(filter(None, [f"at {ours.at}" if ours.at and ours.at not in ours.reason else "", ours.reason]))
        row = [name, claim.source, pair, verdict, effect, power, ours.supported, why]
        body.append([*row, theirs, paper.reason])
        if ours.reason != "no rows":
            short[pair].append([name, theirs, verdict, effect, ours.at, ours.supported])
    text = f"{_preface(figures)}\n{_table(HEAD, body)}"
    tables = {pair: _table([f"Claim, {pair}", *SHORT_HEAD], rows) for pair, rows in short.items()}
    return Claims(csv_text(CLAIM_COLUMNS, lines), text, csv_text(CONTRAST_COLUMNS, details), tables)


def _table(head: list[str], body: list[list[str]]) -> str:
    return markdown_rows(head, [[cell or MISSING for cell in row] for row in body]) if body else ""


def _on_paper(claim: Claim, pair: str) -> Verdict:
    paper = paper_figures()
    verdict = judge(claim, paper, pair) if pair in paper.pairs else Verdict(UNDECIDED, "no rows")
    says = claim.paper_says or ("not tested there" if claim.source == OURS else "no rows")
    return Verdict(UNDECIDED, says) if verdict.reason == "no rows" else verdict


def _effect(claim: Claim, verdict: Verdict) -> str:
    """The effect in the claim's unit and, where it has one, its interval."""
    if np.isnan(verdict.effect):
        return ""
    effect, low, high = (f"{value + 0.0:+.1f}" for value in (verdict.effect, verdict.low, verdict.high))
    unit = claim.unit if claim.unit.startswith("%") else f" {claim.unit}"
    return f"{effect}{unit}" + ("" if np.isnan(verdict.low) else f" [{low}, {high}]")


def _details(claim: Claim, pair: str, ours: Verdict, paper: Verdict) -> list[list[str]]:
    """The rows of contrasts.csv behind one verdict."""
    theirs, rows = {one.what: one.effect for one in paper.contrasts}, []
    for one in ours.contrasts:
        low, high = (np.nan, np.nan) if one.printed else one.bounds()
        numbers = [signed(claim.in_units(number)) for number in (one.effect, low, high, one.detectable)]
        beside = signed(theirs.get(one.what, np.nan))
        rows.append([claim.name, pair, claim.metric, one.what, percent(one.sparsity), *numbers, claim.unit, beside])
    return rows


def _preface(figures: Figures) -> str:
    """Title, rule and numbers of the study above the table of claims."""
    title = f"### Claims of the paper, judged on {figures.name}" + (f" ({figures.note})" if figures.note else "")
    about = []
    for pair in figures.pairs if not (figures.rehearsal or figures.printed) else ():
        known = [(highest, *seed_spread(figures, pair, "bleu", highest)) for highest in BANDS]
        each = [
            f"up to {percent(highest)}%: {f'{spread:.2f} BLEU, {freedom}' if freedom else 'unknown'}"
            for highest, spread, freedom in known
        ]
        about.append(
            f"{pair}: test set {figures.test_set(pair)}, {RESAMPLES} resamples; standard deviation between seeds and "
            f"its degrees of freedom {', '.join(each)}."
        )
    for pair in figures.pairs:
        cells = [(name, level) for name, level in figures.failures(pair) if not figures.cell(pair, name, level).rows]
        lost = ", ".join(f"{pair} {label(name)} {percent(level)}%" for name, level in cells)
        about += [f"Left out because every seed failed: {lost}."] if lost else []
    return "\n\n".join([title, RULE, NOTE, *about]) + "\n"
