"""From contrasts to a verdict. `RULE` states how, and claims.md prints it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slt_lib.report.data import Cell, Figures, percent
from slt_lib.report.statistics import LEVEL, SCORES, Contrast, contrast, log_ratios

# Points of BLEU within which two scores are called level. The paper itself calls a loss of 0.4 (SLT at 60%, en-de) no
# significant drop, and half a point is about what a test set of 3,000 lines can resolve.
MARGIN = 0.5
PRINTED = 0.1  # the paper's figures are rounded to 0.1, so a difference of two is known to +-0.1

RULE = (
    "A claim is a set of n contrasts, each a difference between two cells of the table. A contrast agrees with the "
    f"claim if it is above 0; for *no significant loss* above -{MARGIN} BLEU, for *level* within +-{MARGIN}, for "
    f"*clearly* above {MARGIN}. The claim is that at least k contrasts agree: all n, or more than half of them for "
    "*most levels*. Each contrast has a t interval from the paired bootstrap over sentences and the variance "
    "between seeds, which is pooled over cells of similar sparsity. Magnitudes have no sentences: their contrasts "
    "are log ratios, paired by seed. The claim holds if k intervals lie inside the agreeing range at error level "
    "5%/(n - k + 1). It fails if n - k + 1 intervals lie outside it at error level 5%/k, because fewer than k "
    "contrasts can then agree. Otherwise it is undecided. This is Bonferroni's correction for k of n hypotheses "
    "(Benjamini and Heller 2008). A claim that all contrasts agree needs no correction to hold, because each one "
    "has to pass its test, and the full correction to fail, because one is enough. A contrast supports neither side "
    "if no cell of similar sparsity has two seeds, because the noise of training is then unknown. In a rehearsal "
    "every verdict is withheld. The paper's printed figures have no intervals: they are judged by their point "
    "estimates, and the reason says if rounding by 0.1 could change the verdict."
)

HOLDS, FAILS, UNDECIDED, WITHHELD = "holds", "fails", "undecided", "withheld"
GROWTH = "% growth"

Cells = Sequence[tuple[Cell | None, Cell | None]]


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, its source there, and how it is tested.

    `cells(figures, pair)` returns the pairs of cells to compare, so that first less second (for TER, where lower is
    better: second less first; for magnitudes: the ratio) agrees with the claim between `low` and `high`. `most`: more
    than half of the contrasts have to agree, and equal scores count as agreeing. `metric`: bleu, ter, or a column of
    magnitudes.csv. `paper_says`: what the paper says of it where it prints no figures.
    """

    name: str
    statement: str
    source: str
    cells: Callable[[Figures, str], Cells]
    low: float = 0.0
    high: float = float("inf")
    most: bool = False
    metric: str = "bleu"
    paper_says: str = ""

    @property
    def unit(self) -> str:
        return self.metric.upper() if self.metric in SCORES else GROWTH

    def in_units(self, value: float) -> float:
        """A contrast's number in the claim's unit: growth is estimated as 100 log ratio and shown in percent."""
        return value if self.metric in SCORES else 100 * float(np.expm1(value / 100))

    def agrees(self, effect: float, shift: float = 0.0) -> bool:
        """Whether a point estimate lies in the range, widened by `shift`. Ends that allow equality or a loss belong."""
        shift += 1e-9 if self.most or self.low < 0 else -1e-9
        return self.low - shift <= effect <= self.high + shift

    def inside(self, bounds: tuple[float, float]) -> bool:
        return self.low < bounds[0] and bounds[1] < self.high

    def outside(self, bounds: tuple[float, float]) -> bool:
        return bounds[1] < self.low or bounds[0] > self.high

    def needed(self, n: int) -> int:
        """How many of n contrasts have to agree: k of `RULE`."""
        return n // 2 + 1 if self.most else n


@dataclass(frozen=True)
class Verdict:
    """A verdict with its reason and, in the claim's unit, the contrast on which it turns: the k-th most favourable."""

    verdict: str
    reason: str = ""
    effect: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    detectable: float = float("nan")
    at: str = ""
    supported: str = ""
    contrasts: tuple[Contrast, ...] = ()


def judge(claim: Claim, figures: Figures, pair: str) -> Verdict:
    """The verdict of a claim on one pair: holds, fails, undecided, or withheld in a rehearsal."""
    if figures.rehearsal:
        return Verdict(WITHHELD, figures.note)
    cells = claim.cells(figures, pair)
    if claim.metric in SCORES:
        turn = -1 if claim.metric == "ter" else 1
        found = [contrast(figures, pair, *two[::turn], claim.metric) for two in cells]
    else:
        found = log_ratios(figures, cells, claim.metric)
    if contrasts := [one for one in found if one]:
        return decide(claim, contrasts)
    missing = claim.metric in SCORES and figures.sentences is None and not figures.printed
    return Verdict(UNDECIDED, "no sentence statistics" if missing else "no rows")


def decide(claim: Claim, contrasts: Sequence[Contrast]) -> Verdict:
    """The verdict of a claim from its contrasts, by `RULE`."""
    verdict = _verdict(claim, contrasts)
    decisive = _decisive(claim, contrasts, verdict)
    low, high = (np.nan, np.nan) if decisive.printed else decisive.bounds()
    numbers = [claim.in_units(number) for number in (decisive.effect, low, high, decisive.detectable)]
    reason = _reason(claim, contrasts, verdict, decisive)
    if verdict != HOLDS and not claim.most and len({one.sparsity for one in contrasts}) > 1:
        reason += _from("all agree", contrasts, lambda one: claim.agrees(one.effect))
        if not decisive.printed:
            reason += _from("all intervals agree", contrasts, lambda one: claim.inside(one.bounds()))
    supported = f"{sum(claim.agrees(one.effect) for one in contrasts)} of {len(contrasts)}"
    return Verdict(verdict, reason, *numbers, decisive.what, supported, tuple(contrasts))


def _verdict(claim: Claim, contrasts: Sequence[Contrast], shift: float = 0.0, trusting: bool = False) -> str:
    """`shift` widens the range of printed figures; `trusting`: the sentences alone, where seeds are unknown."""
    n, k = len(contrasts), claim.needed(len(contrasts))
    if contrasts[0].printed:
        return HOLDS if sum(claim.agrees(one.effect, shift) for one in contrasts) >= k else FAILS
    known = [one for one in contrasts if one.seeds_known or trusting]
    if sum(claim.inside(one.bounds((1 - LEVEL) / (n - k + 1))) for one in known) >= k:
        return HOLDS
    return FAILS if sum(claim.outside(one.bounds((1 - LEVEL) / k)) for one in known) > n - k else UNDECIDED


def _decisive(claim: Claim, contrasts: Sequence[Contrast], verdict: str) -> Contrast:
    """The k-th most favourable contrast, by the distance to the range's end in widths of its interval."""

    def distance(one: Contrast) -> float:
        width = one.bounds()[1] - one.effect
        gap = min(one.effect - claim.low, claim.high - one.effect)
        return gap / width if width > 0 else gap  # no width: printed figures; nan: one seed's magnitudes

    able = [one for one in contrasts if one.seeds_known or verdict != FAILS]
    return sorted(able, key=distance)[len(contrasts) - claim.needed(len(contrasts))]


def _from(words: str, contrasts: Sequence[Contrast], accepts: Callable[[Contrast], bool]) -> str:
    """From which level on every contrast is accepted; empty if none."""
    refused = max((one.sparsity for one in contrasts if not accepts(one)), default=-1.0)
    above = [one.sparsity for one in contrasts if one.sparsity > refused]
    return f"; {words} from {percent(min(above))}%" if above else ""


def _reason(claim: Claim, contrasts: Sequence[Contrast], verdict: str, decisive: Contrast) -> str:
    n, k = len(contrasts), claim.needed(len(contrasts))
    if decisive.printed:
        against = [one for one in contrasts if not claim.agrees(one.effect)]
        equal = [one.what for one in against if abs(one.effect) < 1e-9]
        rest = [f"{one.what} = {one.effect:+.1f}" for one in sorted(against, key=lambda one: one.effect)]
        rest = [text for text in rest if text.partition(" = ")[0] not in equal]
        more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
        words = [f"equal: {', '.join(equal)}"] if equal else []
        words += [f"against: {', '.join(rest[:3])}{more}"] if rest else []
        moved = {_verdict(claim, contrasts, shift) for shift in (-PRINTED, PRINTED)} != {verdict}
        return "; ".join(words + ["turns on the rounding to 0.1"] * moved)
    if verdict == FAILS:
        return f"contradicted by {decisive.what}"
    if verdict == HOLDS:
        return ""
    if not all(one.seeds_known for one in contrasts):
        alone = _verdict(claim, contrasts, trusting=True)
        sure = "" if alone == UNDECIDED else f"; the sentences alone say {alone}"
        return f"one seed: the noise of training is unknown{sure}"
    times = k if claim.outside(decisive.bounds()) else n - k + 1 if claim.inside(decisive.bounds()) else 0
    widened = f" once it is widened for {times} comparisons" if times else ""
    return f"interval of {decisive.what} includes both answers{widened}"
