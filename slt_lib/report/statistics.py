"""How precise a number is: scores of resampled test sets, the spread between seeds, and contrasts between cells.

Intervals are Student's t with Satterthwaite's degrees of freedom. The variance is that of the paired bootstrap over the
lines of the test set (Koehn 2004) plus that between seeds, pooled over cells of similar sparsity. Two cells count as
independent, although their runs of one seed share initial weights and data order. Where that correlates them, the
interval is too wide, not too narrow.
"""

import functools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from slt_lib.base.errors import InputError
from slt_lib.evaluation.scoring import corpus_bleu, corpus_ter
from slt_lib.report.data import KINDS, STATISTICS, Cell, Figures, of_common_seeds, percent, variant_label

RESAMPLES = 1000
BOOTSTRAP_SEED = 2020
LEVEL = 0.95  # of every interval
POWER = 0.8  # the probability of finding a "detectable" difference
# Cells up to 60%, above that up to 85%, and above: the levels that the paper's claims tell apart
BANDS = (0.6, 0.85, 1.0)
FREEDOM = 5  # of a pooled spread between seeds; with fewer, intervals miss the true difference in 7 to 9% instead of 5%
AGREEMENT = 0.06  # BLEU: largest difference allowed between results.csv, which is rounded, and its sentences

SCORES = {"bleu": corpus_bleu, "ter": corpus_ter}


def line_counts(lines: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each line is drawn: [resamples, lines], every row summing to `lines`; equal for equal arguments."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([BOOTSTRAP_SEED, lines])))
    drawn = random.integers(0, lines, size=(resamples, lines))
    return np.stack([np.bincount(row, minlength=lines) for row in drawn])


def _scored(figures: Figures, pair: str) -> pd.DataFrame:
    """The scored rows of results.csv on the pair's primary test set."""
    rows = figures.results
    return rows[(rows["pair"] == pair) & (rows["test_set"] == figures.test_set(pair)) & (rows["status"] == "ok")]


@functools.lru_cache(8)
def replicates(figures: Figures, pair: str) -> tuple[int, dict[str, dict[str, np.ndarray]]]:
    """The number of lines of the pair's primary test set, and metric -> run -> scores [%] on it and on its resamples.

    The scores have shape [1 + RESAMPLES]. There are none without sentences. Raises InputError if runs have different
    lines, or if BLEU in results.csv does not follow from the sentences.
    """
    path, test_set, results = figures.path / KINDS["sentences"][0], figures.test_set(pair), _scored(figures, pair)
    if (rows := figures.sentences) is not None:
        rows = rows[(rows["test_set"] == test_set) & rows["run"].isin(results["run"])]
    if rows is None or rows.empty:
        return 0, {metric: {} for metric in SCORES}
    table = rows.set_index(["run", "line"])[STATISTICS].unstack()
    if table.isna().any(axis=None):
        raise InputError(
            f"{path}: runs of {pair} on {test_set} have different lines; delete the parts and rerun the study"
        )
    table, runs = table.to_numpy().reshape(len(table), len(STATISTICS), -1), table.index
    lines = table.shape[-1]
    # The counts are integers far below 2^53, so these sums are exact in any order of summation.
    sums = table @ np.vstack([np.ones((1, lines)), line_counts(lines)]).T
    columns = {name: sums[:, place, :, None] for place, name in enumerate(STATISTICS)}
    scores = {name: dict(zip(runs, score(columns), strict=True)) for name, score in SCORES.items()}
    for run, bleu in zip(results["run"], results["bleu"], strict=True):
        if run in scores["bleu"] and abs(scores["bleu"][run][0] - bleu) > AGREEMENT:
            raise InputError(
                f"{path}: gives {scores['bleu'][run][0]:.2f} BLEU for run {run}, results.csv has {bleu:.2f}; "
                "delete the parts and rerun the study"
            )
    return lines, scores


@functools.lru_cache(256)
def seed_spread(figures: Figures, pair: str, metric: str, sparsity: float) -> tuple[float, int]:
    """Standard deviation between seeds and its degrees of freedom, pooled over the cells in the band of this sparsity.

    (nan, 0) if none has two seeds. Trainings with two names count once, also those that are scored at two
    checkpoints. The cells of one chain are trained from each other, so the true degrees of freedom may be fewer.
    """
    rows = _scored(figures, pair)
    rows = rows[np.searchsorted(BANDS, rows["sparsity"] - 1e-9) == np.searchsorted(BANDS, sparsity - 1e-9)]
    cells = {}
    for _, cell in rows.groupby(["technique", "variant", "sparsity"]):  # the default before its variants
        cells.setdefault(frozenset(cell["run"].str.partition("+")[0]), cell[metric])
    return pooled([scores for scores in cells.values() if scores.notna().all()])


@functools.lru_cache(16)
def checkpoint_spread(figures: Figures, pair: str, metric: str) -> tuple[float, int]:
    """As `seed_spread`, of the difference between two checkpoints of a training, pooled over all cells."""
    rows = _scored(figures, pair).drop_duplicates("run")
    training, other, _ = rows["run"].str.partition("+").to_numpy().T
    gains = rows[metric].to_numpy() - rows.set_index("run")[metric].reindex(training).to_numpy()
    groups = rows.assign(gain=gains)[other == "+"].dropna(subset="gain").groupby(["technique", "variant", "sparsity"])
    return pooled([values for _, values in groups["gain"]])


def pooled(groups: Collection[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation within groups and its degrees of freedom; (nan, 0) if each has a single value."""
    freedom = sum(len(values) - 1 for values in groups)
    squares = math.fsum(np.var(values) * len(values) for values in groups)  # the same in any order of groups
    return ((squares / freedom) ** 0.5, freedom) if freedom else (math.nan, 0)


def _same_trainings(*cells: Cell) -> bool:
    """Whether two cells are the same trainings, perhaps scored at other checkpoints."""
    ids = [{row["run"].partition("+")[0] for row in cell.rows} for cell in cells]
    return len(ids) == 2 and ids[0] == ids[1]


def same_runs(one: Cell | None, other: Cell | None = None) -> bool:
    """Whether two cells are the same runs under two names, such as SLT-MP's first level and SLT's."""
    runs, others = ({row["run"] for row in cell.rows} if cell else set() for cell in (one, other))
    return bool(runs) and runs == others


@dataclass(frozen=True)
class Contrast:
    """An estimated difference: `effect` with its standard error and degrees of freedom, its name and its sparsity.

    `seeds_known` is False if the spread between seeds has less than `FREEDOM` degrees of freedom. `printed` marks a
    difference of rounded figures; its error is nan.
    """

    what: str
    sparsity: float
    effect: float
    error: float
    freedom: float
    seeds_known: bool = True
    printed: bool = False

    def bounds(self, alpha: float = 1 - LEVEL) -> tuple[float, float]:
        """The two-sided t interval at level 1 - alpha."""
        width = stdtrit(self.freedom, 1 - alpha / 2) * self.error
        return self.effect - width, self.effect + width

    @property
    def detectable(self) -> float:
        """The smallest true difference that is found with 80% power at 5%, two-sided: about 2.8 standard errors."""
        return (stdtrit(self.freedom, (1 + LEVEL) / 2) + stdtrit(self.freedom, POWER)) * self.error


def contrast(figures: Figures, pair: str, *cells: Cell | None, metric: str = "bleu") -> Contrast | None:
    """The first cell less the second, means over the seeds that both have, in points of the metric; of one, its mean.

    The spread between seeds of two checkpoints of the same trainings is that of their difference. None if a cell has no
    score, if both are the same runs, or if a run has no sentences and the figures are not those of a printed table.
    """
    if not all(cells):
        return None
    cells = of_common_seeds(*cells) if len(cells) == 2 else cells
    signed = list(zip((1, -1), cells, strict=False))
    if np.isnan(effect := float(sum(sign * cell.mean(metric) for sign, cell in signed))):
        return None
    about = " - ".join(map(_name, cells)), max(cell.sparsity for cell in cells), effect
    if figures.printed:
        return Contrast(*about, error=math.nan, freedom=math.inf, printed=True)
    lines, scores = replicates(figures, pair)
    if same_runs(*cells) or any(row["run"] not in scores[metric] for cell in cells for row in cell.rows):
        return None
    draws = [sign * np.mean([scores[metric][row["run"]] for row in cell.rows], axis=0)[1:] for sign, cell in signed]
    # (source, degrees of freedom) -> variance. The spread that two cells of a band share is one estimate.
    parts, known = {("sentences", max(lines - 1, 1)): float(np.var(sum(draws), ddof=1))}, True
    spreads = [seed_spread(figures, pair, metric, cell.sparsity) for cell in cells]
    for spread, freedom in [checkpoint_spread(figures, pair, metric)] if _same_trainings(*cells) else spreads:
        known &= freedom >= FREEDOM
        if freedom:
            parts[spread, freedom] = parts.get((spread, freedom), 0.0) + spread**2 / len(cells[0].rows)
    total = sum(parts.values())
    # Welch-Satterthwaite: the degrees of freedom of a sum of estimated variances
    below = sum(variance**2 / freedom for (_, freedom), variance in parts.items())
    return Contrast(*about, total**0.5, total**2 / below if below else math.inf, seeds_known=known)


def interval(figures: Figures, pair: str, cell: Cell, metric: str, minus: Cell | None = None) -> tuple[float, float]:
    """The 95% interval of a cell's mean score, or of its difference to `minus`; (nan, nan) without sentences.

    It is over sentences alone if no cell of similar sparsity has two seeds.
    """
    found = contrast(figures, pair, *filter(None, [cell, minus]), metric=metric)
    return found.bounds() if found else (math.nan, math.nan)


def _name(cell: Cell) -> str:
    return f"{variant_label(cell)} {percent(cell.sparsity)}%"


@functools.lru_cache(8)
def mean_magnitudes(figures: Figures, column: str) -> dict[str, float]:
    """run -> mean magnitude over all kept weights; `column` is mean_abs_start or mean_abs_final.

    Empty if the folder has no magnitudes.
    """
    if figures.magnitudes is None:
        return {}
    sums = figures.magnitudes.assign(total=figures.magnitudes["kept"] * figures.magnitudes[column]).groupby("run")
    return (sums["total"].sum() / sums["kept"].sum()).to_dict()


def log_ratios(figures: Figures, cells: Iterable[tuple[Cell | None, Cell | None]], column: str) -> list[Contrast]:
    """100 times the log of the ratio of mean magnitudes, paired by seed, for each pair of cells that has them.

    The variance between seeds is pooled over all pairs of cells. With one seed everywhere the error is nan.
    """
    means, found = mean_magnitudes(figures, column), {}
    for pair in cells:
        if all(pair) and not same_runs(*pair):
            over, under = ({row["seed"]: means.get(row["run"], 0) for row in cell.rows} for cell in pair)
            values = [100 * np.log(over[seed] / under[seed]) for seed in over if over[seed] * under.get(seed, 0) > 0]
            if values:
                found[" / ".join(map(_name, pair)), max(cell.sparsity for cell in pair)] = values
    spread, freedom = pooled(found.values())
    return [
        Contrast(*about, np.mean(values), spread / len(values) ** 0.5, freedom or math.inf, freedom > 0)
        for about, values in found.items()
    ]
