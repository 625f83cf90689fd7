"""The claims of the paper (claims.yaml) and their verdicts on a study and on the paper's own tables.

`judging.RULE` states how a claim is judged.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from slt_lib.report.data import Figures, label, percent
from slt_lib.report.judging import CONTROL, NO_ROWS, RULE, UNDECIDED, Claim, Verdict, judge
from slt_lib.report.paper import paper_figures
from slt_lib.report.statistics import BANDS, POWER, RESAMPLES, seed_spread
from slt_lib.report.tables import MISSING, markdown_rows

CLAIM_COLUMNS = (
    "claim statement source pair metric verdict effect low high detectable unit at supported reason paper_verdict "
    "paper_effect paper_reason"
).split()
CONTRAST_COLUMNS = "claim pair metric contrast sparsity effect low high detectable unit paper_effect".split()
SHORT = 6  # columns of the table of verdicts in the README
NOTE = (
    "*Effect* is that of the contrast on which the verdict turns, the k-th most favourable; *At* names it. A positive "
    "effect favours the claim, except in *within 0.5 BLEU*, where it is the difference as named; such a claim can hold "
    "only if intervals are narrower than 1 BLEU. *Detectable* is the true difference that this design finds with "
    f"{100 * POWER:.0f}% power. With too few seeds, it and the interval omit or underestimate the noise of training. "
    "*Agree* counts the contrasts whose point estimate agrees. The same rule is applied to the figures that the paper "
    "prints; *text only*: it prints none. Some claims overlap, and MP-SLT cannot be both above and below SLT, so the "
    "number of claims that hold is no score."
)
_ROWS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8"))
CLAIMS = tuple(Claim(name, **row.pop("test"), **row) for name, row in _ROWS.items())


@dataclass(frozen=True)
class Claims:
    """The verdicts of a study; a notebook shows the Markdown.

    `frame` has one row per claim and pair and the columns of claims.csv: the effect, interval and detectable difference
    of the contrast on which the verdict turns, in `unit` and in the direction of the claim; `at` names that contrast,
    `supported` counts those whose point estimate agrees. `contrasts`: every contrast behind the verdicts, as CSV.
    `short`: pair -> the claims that the study tested as a Markdown table without the reasons, for the README.
    """

    frame: pd.DataFrame
    csv: str
    contrasts: str
    markdown: str
    short: dict[str, str]

    def _repr_markdown_(self) -> str:
        return self.markdown


def claims_table(figures: Figures) -> Claims:
    """Judge every claim on every pair of the study, and on the paper's own figures of that pair."""
    rows, contrasts = [], []
    for claim, pair in itertools.product(CLAIMS, figures.pairs):
        here, paper = judge(claim, figures, pair), judge(claim, paper_figures(), pair)
        if paper.reason == NO_ROWS:
            paper = Verdict(UNDECIDED, claim.paper_says)
        about = vars(claim) | {"claim": claim.name, "pair": pair, "unit": claim.unit}
        rows.append(about | vars(here) | {f"paper_{name}": value for name, value in vars(paper).items()})
        beside = {one.what: one.effect for one in paper.contrasts}
        for one in here.contrasts:
            row = {
                "contrast": one.what,
                "sparsity": percent(one.sparsity),
                "paper_effect": beside.get(one.what, np.nan),
            }
            contrasts.append(about | claim.numbers(one) | row)
    frame, pairs = pd.DataFrame(rows, columns=CLAIM_COLUMNS), figures.pairs
    tables = [_table(frame[frame["pair"] == pair], pair) for pair in pairs]
    tested = frame[frame["reason"] != NO_ROWS]
    return Claims(
        frame,
        csv=_csv(frame),
        contrasts=_csv(pd.DataFrame(contrasts, columns=CONTRAST_COLUMNS)),
        markdown="\n".join([_preface(figures), *tables]),
        short={pair: _table(tested[tested["pair"] == pair], pair, SHORT) for pair in pairs},
    )


def _csv(frame: pd.DataFrame) -> str:
    numbers = frame.select_dtypes(float) + 0.0  # no minus sign before zero
    return frame.assign(**numbers).to_csv(index=False, float_format="%.2f", lineterminator="\n")


def _table(rows: pd.DataFrame, pair: str, columns: int | None = None) -> str:
    """A pair's verdicts in Markdown, the first `columns` alone; empty without rows."""
    shown = [
        {
            f"Claim, {pair}": named(row),
            "On the paper's tables": printed(row),
            "Here": f"**{row.verdict}**",
            "Effect [95% interval]": with_unit(row.effect, row.unit, row.low, row.high),
            "At": row.at,
            "Agree": row.supported,
            "Why": row.reason,
            "Detectable": "" if np.isnan(row.detectable) else f"{row.detectable:.1f}",
            "Source": row.source,
            "Why on the paper's tables": row.paper_reason,
        }
        for row in rows.itertuples()
    ]
    body = [[cell or MISSING for cell in line.values()][:columns] for line in shown]
    return markdown_rows(list(shown[0])[:columns], body) if shown else ""


def named(row) -> str:
    """The statement of a row of `Claims.frame`, with its metric if that is TER."""
    return row.statement + (" (TER)" if row.metric == "ter" else "")


def printed(row) -> str:
    """The verdict on the paper's own figures, of a row of `Claims.frame`, or why there is none."""
    if theirs := with_unit(row.paper_effect, row.unit):
        return f"{row.paper_verdict} ({theirs})"
    return "no figures" if row.paper_reason == NO_ROWS else "not tested" if row.source == CONTROL else "text only"


def with_unit(effect: float, unit: str, low: float = np.nan, high: float = np.nan) -> str:
    """An effect in its unit and, where it has one, its interval; empty for nan."""
    if np.isnan(effect):
        return ""
    shown = f"{effect + 0.0:+.1f}{'' if unit.startswith('%') else ' '}{unit}"
    return shown if np.isnan(low) else f"{shown} [{low + 0.0:+.1f}, {high + 0.0:+.1f}]"


def _preface(figures: Figures) -> str:
    """Title, rule and numbers of the study: the paragraphs above the verdicts."""
    about = [f"### Claims of the paper, judged on {figures.name}" + (f" ({figures.note})" if figures.note else "")]
    about += [RULE, NOTE]
    for pair in figures.pairs:
        if not (figures.rehearsal or figures.printed):
            spreads = [(percent(highest), *seed_spread(figures, pair, "bleu", highest)) for highest in BANDS]
            each = [
                f"up to {highest}%: {f'{spread:.2f} BLEU, {freedom}' if freedom else 'unknown'}"
                for highest, spread, freedom in spreads
            ]
            about.append(
                f"{pair}: test set {figures.test_set(pair)}, {RESAMPLES} resamples; standard deviation between seeds "
                f"and its degrees of freedom {', '.join(each)}."
            )
        failures = [at for at in figures.failures(pair) if not figures.cell(pair, *at).rows]
        lost = ", ".join(f"{pair} {label(name)} {percent(level)}%" for name, level in failures)
        about += [f"Left out because every seed failed: {lost}."] if lost else []
    return "\n\n".join(about) + "\n"
