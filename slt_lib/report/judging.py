"""From contrasts to a verdict. `RULE` states how, and claims.md prints it."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan

import numpy as np

from slt_lib.base.settings import TECHNIQUES
from slt_lib.report.data import Cell, Figures, percent
from slt_lib.report.statistics import FREEDOM, LEVEL, SCORES, Contrast, contrast, log_ratios

# Points of BLEU within which two scores count as similar. The paper itself calls a loss of 0.4 (SLT at 60%, en-de) no
# significant drop, and half a point is about what a test set of 3,000 lines can resolve.
MARGIN = 0.5
PRINTED = 0.1  # the paper's figures are rounded to 0.1, so a difference of two is known to +-0.1

RULE = (
    "A claim is about n contrasts. A contrast is the difference between two cells of the table, positive if it favours "
    "the claim. It agrees with the claim if it is above 0. Some words in a claim change this range: *at or above* "
    f"includes 0, *no significant loss* is at least -{MARGIN} BLEU, *within {MARGIN} BLEU* is from -{MARGIN} to "
    f"{MARGIN}, *clearly* is above {MARGIN}. The claim is that at least k contrasts agree: all n, or more than half of "
    "them for *most levels*. Each contrast has a t interval. Its variance is that of the paired bootstrap over "
    "sentences plus that between seeds, pooled over cells of similar sparsity. Magnitudes have no sentences: their "
    "contrasts are log ratios, paired by seed. The claim holds if k intervals at error rate 5%/(n - k + 1) lie inside "
    "the range. It fails if n - k + 1 intervals at error rate 5%/k lie outside it, because fewer than k contrasts can "
    "then agree. Otherwise it is undecided. These rates are Bonferroni's correction for k of n hypotheses (Benjamini "
    "and Heller 2008). A contrast is over the seeds that both cells have. It supports neither verdict if the spread "
    f"of scores has fewer than {FREEDOM} degrees of freedom, one for each cell of similar sparsity with two seeds: the "
    "noise of training is then unknown. In a rehearsal every verdict is withheld. The paper's printed figures are "
    "judged by their point estimates, and the reason says if rounding by 0.1 could change the verdict."
)

HOLDS, FAILS, UNDECIDED, WITHHELD = "holds", "fails", "undecided", "withheld"
NO_ROWS = "no rows"
CONTROL = "not in the paper"  # the source of claims that are ours
EDGE = 1e-9  # widens the ranges that include their ends and narrows the others
# The range of contrasts that agree with a claim. "Below" turns the contrast round.
RELATIONS = {
    "above": (EDGE, inf),
    "below": (EDGE, inf),
    "clearly below": (MARGIN + EDGE, inf),
    "above on most": (-EDGE, inf),
    "no loss": (-MARGIN - EDGE, inf),
    "within": (-MARGIN - EDGE, MARGIN + EDGE),
}


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its source there, and how it is tested; claims.yaml explains the fields."""

    name: str
    statement: str
    source: str
    technique: str
    relation: str
    against: str = "default"
    levels: tuple[float, float] = (0.0, 1.0)
    variant: str = ""
    metric: str = "bleu"
    paper_says: str = NO_ROWS

    def cells(self, figures: Figures, pair: str) -> list[tuple[Cell | None, Cell | None]]:
        """The pairs of cells to compare: first less second is positive if they agree with the claim."""
        own, found = figures.own_cells(pair, self.technique), []
        if self.variant:
            variants = [cell for cell in figures.variants(pair) if re.fullmatch(self.variant, cell.variant)]
            variants = [cell for cell in variants if self.technique in ("any", cell.technique)]
            found = [(cell, figures.cell(pair, cell.technique, cell.sparsity)) for cell in variants]
        elif self.against == "level before":
            found = [(cell, before) for before, cell in itertools.pairwise([figures.cell(pair, "dense", 0), *own])]
        else:
            names = [name for name in TECHNIQUES if name != self.technique]
            for name in names if self.against == "others" else [self.against]:
                levels = [cell for cell in own if self.levels[0] < cell.sparsity <= self.levels[1]]
                found += [(cell, _other(figures, pair, name, cell)) for cell in levels]
        turned = self.relation.endswith("below") != (self.metric == "ter")
        return [cells[::-1] for cells in found] if turned else found

    @property
    def unit(self) -> str:
        return self.metric.upper() if self.metric in SCORES else "% growth"

    def numbers(self, one: Contrast) -> dict[str, float]:
        """Effect, interval and detectable difference in the claim's unit: a log ratio is shown as growth in percent."""
        values = np.array([one.effect, *one.bounds(), one.detectable])
        values = values if self.metric in SCORES else 100 * np.expm1(values / 100)
        return dict(zip(("effect", "low", "high", "detectable"), values.tolist(), strict=True))

    def needed(self, n: int) -> int:
        """How many of n contrasts have to agree: k of `RULE`."""
        return n // 2 + 1 if self.relation == "above on most" else n

    def agrees(self, effect: float, shift: float = 0.0) -> bool:
        """Whether a point estimate lies in the range, widened by `shift`."""
        low, high = RELATIONS[self.relation]
        return low - shift <= effect <= high + shift

    def answer(self, bounds: tuple[float, float]) -> str:
        """What one interval says: HOLDS inside the range, FAILS outside it, UNDECIDED across an end."""
        low, high = RELATIONS[self.relation]
        if low < bounds[0] and bounds[1] < high:
            return HOLDS
        return FAILS if bounds[1] < low or bounds[0] > high else UNDECIDED

    def distance(self, one: Contrast) -> float:
        """From a point estimate to the nearer end of the range, in half widths of its 95% interval if it has one."""
        low, high = RELATIONS[self.relation]
        gap, width = min(one.effect - low, high - one.effect), one.bounds()[1] - one.effect
        return gap / width if width > 0 else gap


def _other(figures: Figures, pair: str, against: str, cell: Cell) -> Cell | None:
    """What a technique's cell is compared with by `Claim.against`; None if nothing of it was scored there."""
    if against == "again":
        return figures.control(pair, figures.depth(cell.technique, cell.sparsity))
    scored = {other.sparsity: other for other in figures.own_cells(pair, against)}
    return scored.get(0.0 if against == "dense" else cell.sparsity)


@dataclass(frozen=True)
class Verdict:
    """A verdict with its reason and, in the claim's unit, the contrast on which it turns: the k-th most favourable.

    `at` names that contrast, `supported` counts the contrasts whose point estimate agrees.
    """

    verdict: str
    reason: str = ""
    effect: float = nan
    low: float = nan
    high: float = nan
    detectable: float = nan
    at: str = ""
    supported: str = ""
    contrasts: tuple[Contrast, ...] = ()


def judge(claim: Claim, figures: Figures, pair: str) -> Verdict:
    """The verdict of a claim on one pair: holds, fails, undecided, or withheld in a rehearsal."""
    if figures.rehearsal:
        return Verdict(WITHHELD, figures.note)
    cells = claim.cells(figures, pair) if pair in figures.pairs else []
    if claim.metric in SCORES:
        found = [contrast(figures, pair, *two, metric=claim.metric) for two in cells]
    else:
        found = log_ratios(figures, cells, claim.metric)
    if contrasts := [one for one in found if one]:
        return decide(claim, contrasts)
    missing = claim.metric in SCORES and figures.sentences is None and not figures.printed
    return Verdict(UNDECIDED, "no sentence statistics" if missing else NO_ROWS)


def decide(claim: Claim, contrasts: Sequence[Contrast]) -> Verdict:
    """The verdict of a claim from its contrasts, by `RULE`."""
    verdict, n = _verdict(claim, contrasts), len(contrasts)
    able = [one for one in contrasts if one.seeds_known or verdict != FAILS]
    decisive = sorted(able, key=claim.distance)[n - claim.needed(n)]
    supported = f"{sum(claim.agrees(one.effect) for one in contrasts)} of {n}"
    reason = "; ".join(_reasons(claim, contrasts, verdict, decisive))
    about = {"at": decisive.what, "supported": supported, "contrasts": tuple(contrasts)}
    return Verdict(verdict, reason, **claim.numbers(decisive), **about)


def _verdict(claim: Claim, contrasts: Sequence[Contrast], shift: float = 0.0) -> str:
    """`shift` widens the range of printed figures."""
    n, k = len(contrasts), claim.needed(len(contrasts))
    if contrasts[0].printed:
        return HOLDS if sum(claim.agrees(one.effect, shift) for one in contrasts) >= k else FAILS
    known = [one for one in contrasts if one.seeds_known]
    for verdict, enough, times in ((HOLDS, k, n - k + 1), (FAILS, n - k + 1, k)):
        if sum(claim.answer(one.bounds((1 - LEVEL) / times)) == verdict for one in known) >= enough:
            return verdict
    return UNDECIDED


def _reasons(claim: Claim, contrasts: Sequence[Contrast], verdict: str, decisive: Contrast) -> list[str]:
    n, k, reasons = len(contrasts), claim.needed(len(contrasts)), []
    if verdict == FAILS:
        reasons += [f"contradicted by {decisive.what}"] if decisive.what else []
    elif verdict == UNDECIDED and not all(one.seeds_known for one in contrasts):
        reasons.append("too few seeds: the noise of training is unknown")
    elif verdict == UNDECIDED:
        times = {HOLDS: n - k + 1, FAILS: k, UNDECIDED: 1}[claim.answer(decisive.bounds())]
        widened = f", widened for {times} comparisons," if times > 1 else ""
        reasons.append(f"its interval{widened} includes both answers")
    refused = [one.sparsity for one in contrasts if not claim.agrees(one.effect)]
    above = [one.sparsity for one in contrasts if one.sparsity > max(refused, default=inf)]
    if above and k == n:
        reasons.append(f"all agree from {percent(min(above))}%")
    if decisive.printed and {_verdict(claim, contrasts, shift) for shift in (-PRINTED, PRINTED)} != {verdict}:
        reasons.append("turns on the rounding to 0.1")
    return reasons
