"""How precise a number is: scores of resampled test sets, the spread between seeds, and contrasts between cells.

All intervals are made in one way. The variance of a difference is that of the paired bootstrap over the lines of the
test set (Koehn 2004) plus that between seeds; the interval is Student's t with Satterthwaite's degrees of freedom. The
lines are drawn once per pair, so every run is scored on the same resamples. A cell has few seeds, often two, so the
variance between seeds is pooled over cells of similar sparsity: sparser models differ more from seed to seed. A
difference is paired over seeds too, but the pairs of two seeds would leave one degree of freedom. So the cells count as
independent, although runs of one seed share initial weights and data order: where that correlates them, the interval is
too wide rather than too narrow.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from slt_lib.base.errors import InputError
from slt_lib.evaluation.scoring import corpus_bleu, corpus_ter
from slt_lib.report.data import STATISTICS, Cell, Figures, percent, variant_label

RESAMPLES = 1000
BOOTSTRAP_SEED = 2020
LEVEL = 0.95  # of every interval
POWER = 0.8  # the probability of finding a "detectable" difference
# Cells up to 60%, above that up to 85%, and above: the levels that the paper's claims tell apart
BANDS = (0.6, 0.85, 1.0)
AGREEMENT = 0.06  # BLEU: largest difference allowed between results.csv, which is rounded, and its sentences

SCORES = {"bleu": corpus_bleu, "ter": corpus_ter}


def line_counts(lines: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each line is drawn: [resamples, lines], every row summing to `lines`; equal for equal arguments."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([BOOTSTRAP_SEED, lines])))
    drawn = random.integers(0, lines, size=(resamples, lines))
    return np.stack([np.bincount(row, minlength=lines) for row in drawn])


@functools.lru_cache(8)
def replicates(figures: Figures, pair: str) -> dict[str, dict[str, np.ndarray]]:
    """metric -> run -> scores [%] on the pair's primary test set, [1 + RESAMPLES]: the set itself, then its resamples.

    A metric has no runs if the folder has no sentences. Raises InputError if runs have different lines, or if BLEU in
    results.csv does not follow from the sentences.
    """
    test_set, path = figures.test_set(pair), figures.path / "sentences.csv.gz"
    rows = figures.results
    rows = rows[(rows["pair"] == pair) & (rows["test_set"] == test_set) & (rows["status"] == "ok")]
    if figures.sentences is None:
        return {metric: {} for metric in SCORES}
    chosen = figures.sentences[figures.sentences["test_set"] == test_set]
    chosen = chosen[chosen["run"].isin(rows["run"])].sort_values(["run", "line"], kind="stable")
    runs, sizes = np.unique(chosen["run"].to_numpy(str), return_counts=True)
    if not len(runs):
        return {metric: {} for metric in SCORES}
    lines = chosen["line"].to_numpy()
    if len(set(sizes)) > 1 or not (lines.reshape(len(runs), -1) == lines[: sizes[0]]).all():
        raise InputError(
            f"{path}: runs of {pair} on {test_set} have different lines; delete the parts and rerun the study"
        )
    table = chosen[STATISTICS].to_numpy(float).reshape(len(runs), -1, len(STATISTICS)).transpose(1, 0, 2)
    counts = np.vstack([np.ones((1, len(table))), line_counts(len(table))])
    # The counts are integers far below 2^53, so these sums are exact in any order of summation.
    sums = (counts @ table.reshape(len(table), -1)).reshape(len(counts), len(runs), len(STATISTICS))
    columns = {name: sums[..., place, None] for place, name in enumerate(STATISTICS)}
    scores = {name: dict(zip(runs.tolist(), score(columns).T, strict=True)) for name, score in SCORES.items()}
    for run, bleu in zip(rows["run"], rows["bleu"], strict=True):
        if run in scores["bleu"] and abs(scores["bleu"][run][0] - bleu) > AGREEMENT:
            raise InputError(
                f"{path}: gives {scores['bleu'][run][0]:.2f} BLEU for run {run}, results.csv has {bleu:.2f}; "
                "delete the parts and rerun the study"
            )
    return scores


def lines_of(figures: Figures, pair: str) -> int:
    """Lines of the pair's primary test set; 0 without sentences."""
    if figures.sentences is None:
        return 0
    return int(figures.sentences.loc[figures.sentences["test_set"] == figures.test_set(pair), "line"].nunique())


def seed_matrix(figures: Figures, pair: str, cell: Cell, metric: str) -> np.ndarray | None:
    """Scores [seeds, 1 + RESAMPLES] of a cell's runs; None if a run has no sentences."""
    scores = replicates(figures, pair)[metric]
    if not cell.rows or any(row["run"] not in scores for row in cell.rows):
        return None
    return np.stack([scores[row["run"]] for row in cell.rows])


def seed_spread(figures: Figures, pair: str, metric: str, sparsity: float) -> tuple[float, int]:
    """Standard deviation between seeds at this sparsity and its degrees of freedom, pooled over the cells of its band.

    Cells with two seeds or more count, each training once; (nan, 0) if the band has none. The cells of one chain are
    trained from each other, so the true freedom may be lower.
    """
    squares, freedom = _squares(figures, pair, metric)[int(np.searchsorted(BANDS, sparsity - 1e-9))]
    return ((squares / freedom) ** 0.5, freedom) if freedom else (float("nan"), 0)


@functools.lru_cache(8)
def _squares(figures: Figures, pair: str, metric: str) -> list[tuple[float, int]]:
    """Per band, the sum of squares between seeds and its degrees of freedom."""
    cells = [figures.cell(pair, "dense", 0), *figures.variants(pair)]
    cells += [cell for technique in figures.techniques(pair) for cell in figures.own_cells(pair, technique)]
    bands, seen = [(0.0, 0)] * len(BANDS), set()
    for cell in cells:
        scores = [row[metric] for row in cell.rows] if cell else []
        if len(scores) < 2 or np.isnan(scores).any() or (runs := _runs(cell)) in seen:
            continue
        seen.add(runs)
        place = int(np.searchsorted(BANDS, cell.sparsity - 1e-9))
        squares, freedom = bands[place]
        bands[place] = squares + float(np.var(scores)) * len(scores), freedom + len(scores) - 1
    return bands


def _runs(cell: Cell) -> frozenset[str]:
    return frozenset(row["run"] for row in cell.rows)


def same_runs(one: Cell | None, other: Cell | None) -> bool:
    """Whether two cells are the same trainings under two names, such as SLT-MP's first level and SLT's."""
    return bool(one and other and one.rows and _runs(one) == _runs(other))


@dataclass(frozen=True)
class Contrast:
    """An estimated difference: `effect` with its standard error and degrees of freedom, its name and its sparsity.

    `seeds_known` is False if the spread between seeds is unknown; `printed` is True for a difference of rounded figures
    without an error of its own.
    """

    what: str
    sparsity: float
    effect: float
    error: float
    freedom: float
    seeds_known: bool = True
    printed: bool = False

    def bounds(self, alpha: float = 1 - LEVEL) -> tuple[float, float]:
        """The two-sided t interval at level 1 - alpha; the effect itself for printed figures."""
        width = 0.0 if self.printed else stdtrit(self.freedom, 1 - alpha / 2) * self.error
        return self.effect - width, self.effect + width

    @property
    def detectable(self) -> float:
        """The smallest true difference that this design finds with 80% power at 5%, two-sided: about 2.8 errors."""
        if self.printed:
            return float("nan")
        return (stdtrit(self.freedom, (1 + LEVEL) / 2) + stdtrit(self.freedom, POWER)) * self.error


def contrast(
    figures: Figures, pair: str, plus: Cell | None, minus: Cell | None, metric: str = "bleu"
) -> Contrast | None:
    """`plus` less `minus`, each a mean over seeds, in points of the metric; None if one has no score or both are one.

    None also if a run has no sentences, unless the figures are printed.
    """
    if plus is None or minus is None or np.isnan(effect := plus.mean(metric) - minus.mean(metric)):
        return None
    if figures.printed:
        where = max(plus.sparsity, minus.sparsity)
        return Contrast(f"{_name(plus)} - {_name(minus)}", where, effect, 0.0, np.inf, printed=True)
    return None if same_runs(plus, minus) else _estimate(figures, pair, metric, plus, minus)


def interval(figures: Figures, pair: str, cell: Cell, metric: str, minus: Cell | None = None) -> tuple[float, float]:
    """The 95% interval of a cell's mean score, or of its difference to `minus`, for the plots.

    Over sentences alone if the spread between seeds is unknown; (nan, nan) without sentences.
    """
    found = contrast(figures, pair, cell, minus, metric) if minus else _estimate(figures, pair, metric, cell)
    return found.bounds() if found and not found.printed else (float("nan"), float("nan"))


def _estimate(figures: Figures, pair: str, metric: str, *cells: Cell) -> Contrast | None:
    """The mean score of one cell, or that of the first less that of the second; None without sentences."""
    matrices = [seed_matrix(figures, pair, cell, metric) for cell in cells]
    if any(matrix is None for matrix in matrices):
        return None
    signs = (1, -1)[: len(cells)]
    effect = float(sum(sign * cell.mean(metric) for sign, cell in zip(signs, cells, strict=True)))
    draws = sum(sign * matrix.mean(axis=0)[1:] for sign, matrix in zip(signs, matrices, strict=True))
    sentence = float(np.var(draws, ddof=1))
    of_seeds, known = {}, True  # a spread that two cells share is one estimate
    for cell, matrix in zip(cells, matrices, strict=True):
        spread, freedom = seed_spread(figures, pair, metric, cell.sparsity)
        known &= freedom > 0
        if freedom:
            of_seeds[spread, freedom] = of_seeds.get((spread, freedom), 0.0) + spread**2 / len(matrix)
    total = sentence + sum(of_seeds.values())
    # Welch-Satterthwaite: the freedom of a sum of estimated variances
    parts = sentence**2 / max(lines_of(figures, pair) - 1, 1)
    parts += sum(variance**2 / freedom for (_, freedom), variance in of_seeds.items())
    freedom = total**2 / parts if parts else np.inf
    what, where = " - ".join(map(_name, cells)), max(cell.sparsity for cell in cells)
    return Contrast(what, where, effect, total**0.5, freedom, seeds_known=known)


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

    There are no sentences here; the variance between seeds is pooled over all pairs of cells. With one seed everywhere
    the error is nan.
    """
    means, found = mean_magnitudes(figures, column), []
    for plus, minus in cells:
        if plus and minus and not same_runs(plus, minus):
            over, under = ({row["seed"]: means.get(row["run"], 0) for row in cell.rows} for cell in (plus, minus))
            seeds = [seed for seed in over if over[seed] > 0 and under.get(seed, 0) > 0]
            if seeds:
                found.append((plus, minus, [100 * float(np.log(over[seed] / under[seed])) for seed in seeds]))
    freedom = sum(len(values) - 1 for *_, values in found)
    spread = (sum(np.var(values) * len(values) for *_, values in found) / freedom) ** 0.5 if freedom else np.nan
    return [
        Contrast(
            f"{_name(plus)} / {_name(minus)}",
            max(plus.sparsity, minus.sparsity),
            float(np.mean(values)),
            float(spread / len(values) ** 0.5),
            freedom or np.inf,
            seeds_known=freedom > 0,
        )
        for plus, minus, values in found
    ]
