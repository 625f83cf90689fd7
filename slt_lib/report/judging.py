"""How a claim is judged: contrasts, each turned so that it favours the claim, and a rule.

- above: every contrast lies above a threshold. Holds if all intervals do, fails if one lies below it;
- level: every contrast lies within +-MARGIN. Holds if all intervals do, fails if one lies outside;
- most: more than half of the contrasts are not negative. The share is counted in every resample.

Intervals have 95%. A claim about many cells holds only where each cell's own test says so, which needs no correction;
it fails where one cell says so at 5% divided by the number of cells. Anything else is undecided. With one seed the
noise of training is unknown, and such a cell decides nothing, whatever its sentences say. Figures that are printed and
no more (the paper's) are judged as worded, from the point estimates; where a shift of all differences by their rounding
would change the verdict, the reason says so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slt_lib.report.data import Figures, percent
from slt_lib.report.statistics import LEVEL, Contrast

# Points of BLEU within which two scores are called level. The paper itself calls a loss of 0.4 (SLT at 60%, en-de) no
# significant drop, and half a point is about what a test set of 3,000 lines can resolve.
MARGIN = 0.5
PRINTED = 0.1  # the paper's figures are rounded to 0.1, so a difference of two is known to +-0.1

HOLDS, FAILS, UNDECIDED, WITHHELD = "holds", "fails", "undecided", "withheld"
GROWTH = "% growth"


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and how it is tested.

    `contrasts(figures, pair, metric)` returns those that could be computed; `paper_says` stands in for figures that the
    paper does not print.
    """

    name: str
    statement: str
    source: str
    rule: str
    contrasts: Callable[[Figures, str, str], list[Contrast]]
    threshold: float = 0.0
    metric: str = "bleu"
    unit: str = "BLEU"
    paper_says: str = ""


@dataclass(frozen=True)
class Verdict:
    """A verdict with the contrast it turns on (for `most`: the share of levels) and the reason in words."""

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
    found = claim.contrasts(figures, pair, claim.metric)
    if not found:
        missing = figures.sentences is None and not figures.printed
        return Verdict(UNDECIDED, "no sentence statistics" if missing else "no rows")
    if claim.rule == "most":
        return _judge_most(claim, found)
    supported = f"{sum(_favours(claim, one.effect) for one in found)} of {len(found)}"
    verdict, reasons = _rule(claim, found), []
    decisive = _decisive(claim, [one for one in found if one.seeds_known or verdict != FAILS])
    unknown = not all(one.seeds_known for one in found)
    if found[0].printed:
        reasons += _against_in_words(claim, found)
        moved = {_rule(claim, found, shift) for shift in (-PRINTED, PRINTED)}
        reasons += ["turns on the rounding to 0.1"] if moved != {verdict} else []
    elif verdict == UNDECIDED and unknown:
        alone = _rule(claim, found, trusting=True)
        sure = "" if alone == UNDECIDED else f"; the sentences alone say {alone}"
        reasons.append(f"one seed: the noise of training is unknown{sure}")
    elif verdict == UNDECIDED:
        reasons.append(f"interval of {decisive.what} includes both answers{_corrected(claim, found, decisive)}")
    elif verdict == FAILS:
        reasons.append(f"contradicted by {decisive.what}")
    if claim.name.startswith("slt_mp_best"):
        reasons.append(_best_from(found))
    low, high = (np.nan, np.nan) if decisive.printed else decisive.bounds()
    numbers = [in_units(claim, number) for number in (decisive.effect, low, high, decisive.detectable)]
    return Verdict(verdict, "; ".join(reasons), *numbers, decisive.what, supported, tuple(found))


def in_units(claim: Claim, value: float) -> float:
    """A contrast's number in the claim's unit: growth is estimated as 100 log ratio and told in percent."""
    return 100 * float(np.expm1(value / 100)) if claim.unit == GROWTH else value


def _corrected(claim: Claim, contrasts: list[Contrast], decisive: Contrast) -> str:
    """What to add where the interval as printed does not include both answers, only the one for many cells does."""
    low, high = decisive.bounds()
    lowest, highest = _range(claim)
    return f" once it is widened for {len(contrasts)} comparisons" if high < lowest or low > highest else ""


def _range(claim: Claim) -> tuple[float, float]:
    """Where an effect has to lie for the claim to hold."""
    return (-MARGIN, MARGIN) if claim.rule == "level" else (claim.threshold, np.inf)


def _favours(claim: Claim, effect: float) -> bool:
    if claim.rule == "level":
        return abs(effect) <= MARGIN + 1e-9
    # "No loss" allows a loss of the margin itself; "above" and "clearly above" mean more than the threshold.
    return effect >= claim.threshold - 1e-9 if claim.threshold < 0 else effect > claim.threshold + 1e-9


def _rule(claim: Claim, contrasts: list[Contrast], shift: float = 0.0, trusting: bool = False) -> str:
    """A contrast whose spread between seeds is unknown decides nothing, unless `trusting` its sentences alone."""
    if contrasts[0].printed:
        # A shift moves "level" outward or inward, the others up or down: the least and the most favourable rounding.
        effects = [one.effect for one in contrasts]
        if claim.rule == "level":
            effects = [max(abs(effect) - shift, 0.0) for effect in effects]
        else:
            effects = [effect + shift for effect in effects]
        return HOLDS if all(_favours(claim, effect) for effect in effects) else FAILS
    lowest, highest = _range(claim)
    sure = [one for one in contrasts if one.seeds_known or trusting]
    usual = [one.bounds() for one in sure]
    if len(sure) == len(contrasts) and all(lowest < low and high < highest for low, high in usual):
        return HOLDS
    strict = [one.bounds((1 - LEVEL) / len(contrasts)) for one in sure]
    return FAILS if any(high < lowest or low > highest for low, high in strict) else UNDECIDED


def _decisive(claim: Claim, contrasts: list[Contrast]) -> Contrast:
    """The contrast least favourable to the claim, measured against its own error where it has one."""
    gaps = [MARGIN - abs(one.effect) if claim.rule == "level" else one.effect - claim.threshold for one in contrasts]
    errors = [one.error if one.error > 0 else 1.0 for one in contrasts]  # none: printed figures, one seed's weights
    return contrasts[int(np.argmin([gap / error for gap, error in zip(gaps, errors, strict=True)]))]


def _against_in_words(claim: Claim, contrasts: list[Contrast]) -> list[str]:
    against = [one for one in contrasts if not _favours(claim, one.effect)]
    equal = [one for one in against if claim.rule != "level" and abs(one.effect) < 1e-9]
    opposed = [one for one in against if one not in equal]
    words = [f"equal: {', '.join(one.what for one in equal)}"] if equal else []
    shown = [f"{one.what} = {one.effect:+.1f}" for one in sorted(opposed, key=lambda one: one.effect)]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return words + ([f"against: {', '.join(shown[:3])}{more}"] if shown else [])


def _best_from(contrasts: list[Contrast]) -> str:
    levels = sorted({one.sparsity for one in contrasts})
    ahead = [level for level in levels if all(one.effect > 1e-9 for one in contrasts if one.sparsity >= level)]
    sure = [level for level in levels if all(one.bounds()[0] > 0 for one in contrasts if one.sparsity >= level)]
    words = f"ahead of every other from {percent(ahead[0])}%" if ahead else "ahead of every other from no level"
    if contrasts[0].printed:
        return words
    return words + f", with intervals clear of 0 from {f'{percent(sure[0])}%' if sure else 'no level'}"


def _judge_most(claim: Claim, contrasts: list[Contrast]) -> Verdict:
    """More than half of the levels not negative; the share's interval comes from the resamples.

    To each resampled difference the spread between seeds is added as a t-distributed term of the contrast's own error,
    less what the resamples already hold.
    """
    share = float(np.mean([one.effect > -1e-9 for one in contrasts]))
    supported = f"{round(share * len(contrasts))} of {len(contrasts)}"
    at = f"share of {len(contrasts)} levels"
    if contrasts[0].printed:
        verdicts = [
            HOLDS if np.mean([one.effect + shift > -1e-9 for one in contrasts]) > 0.5 else FAILS
            for shift in (0.0, -PRINTED, PRINTED)
        ]
        reason = "turns on the rounding to 0.1" if len(set(verdicts)) > 1 else ""
        return Verdict(verdicts[0], reason, 100 * share, np.nan, np.nan, np.nan, at, supported, tuple(contrasts))
    random = np.random.Generator(np.random.Philox(len(contrasts)))
    shares = np.zeros(len(contrasts[0].draws))
    for one in contrasts:
        training = max(one.error**2 - np.var(one.draws, ddof=1), 0.0) ** 0.5
        noise = random.standard_t(one.freedom, len(one.draws)) if np.isfinite(one.freedom) else 0.0
        shares += one.draws + training * noise > 0
    low, high = np.quantile(shares / len(contrasts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    verdict = HOLDS if low > 0.5 else FAILS if high < 0.5 else UNDECIDED
    reason = "" if verdict != UNDECIDED else "interval of the share includes one half"
    if not all(one.seeds_known for one in contrasts):
        verdict, reason = UNDECIDED, "one seed: the noise of training is unknown"
    power = float(np.median([one.detectable for one in contrasts]))
    reason = "; ".join(filter(None, [reason, f"detectable a level (median): {power:.1f} BLEU"]))
    return Verdict(verdict, reason, 100 * share, 100 * low, 100 * high, np.nan, at, supported, tuple(contrasts))
