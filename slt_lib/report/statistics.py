"""How sure a figure is: resampled test sets, the spread between seeds, and contrasts between cells of the table.

Lines of the test set are drawn with replacement once a pair, so that every run is scored on the same draws and a
difference of two cells is a paired one (Koehn 2004). Two seeds are no certainty: their spread enters every interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slt_lib.errors import InputError
from slt_lib.report.data import STATISTICS, Cell, Figures, percent, variant_label
from slt_lib.scoring import corpus_bleu, corpus_ter

RESAMPLES = 1000
BOOTSTRAP_SEED = 2020
LEVEL = 0.95  # of every interval
POWER = 0.8  # with which a "detectable" difference would have been found at that level
AGREEMENT = 0.06  # BLEU: how far results.csv, printed to a digit, may lie from its sentence statistics

SCORES = {"bleu": corpus_bleu, "ter": corpus_ter}


def _random(*stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([BOOTSTRAP_SEED, *stream])))


def line_counts(lines: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each line is drawn: [resamples, lines], every row summing to `lines`; the same for the same sizes."""
    drawn = _random(lines).integers(0, lines, size=(resamples, lines))
    flat = drawn + lines * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * lines).reshape(resamples, lines)


def replicates(figures: Figures, pair: str, metric: str) -> dict[str, np.ndarray]:
    """run -> scores [%] of the pair's primary test set, [1 + RESAMPLES]: the set itself, then its resamples.

    Empty where the folder has no sentences. Raises InputError where runs have different lines, or where BLEU in
    results.csv does not follow from the sentences.
    """
    key = ("replicates", pair)
    if key not in figures.cache:
        figures.cache[key] = _replicates(figures, pair)
    return figures.cache[key][metric]


def _replicates(figures: Figures, pair: str) -> dict[str, dict[str, np.ndarray]]:
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
    # Counts are whole and far below 2^53, so these sums are exact whatever the order in which a machine adds.
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
    """Scores [seeds, 1 + RESAMPLES] of a cell's runs; None where a run has no sentences."""
    scores = replicates(figures, pair, metric)
    if not cell.rows or any(row["run"] not in scores for row in cell.rows):
        return None
    return np.stack([scores[row["run"]] for row in cell.rows])


def resampled_means(matrix: np.ndarray) -> np.ndarray:
    """Means over seeds that are drawn with replacement, one draw a resampled test set: [seeds, 1 + R] -> [R].

    With S seeds, drawing S of them anew underestimates the spread of their mean by (S - 1) / S, a half at two seeds;
    the deviations from the mean are therefore stretched by sqrt(S / (S - 1)). One seed stays as it is.
    """
    seeds, resamples = matrix.shape[0], matrix[:, 1:]
    centre = resamples.mean(axis=0)
    if seeds == 1:
        return centre
    drawn = _random(0, seeds).integers(0, seeds, size=(seeds, resamples.shape[1]))
    means = np.take_along_axis(resamples, drawn, axis=0).mean(axis=0)
    return centre + np.sqrt(seeds / (seeds - 1)) * (means - centre)


def interval(figures: Figures, pair: str, cell: Cell, metric: str, minus: Cell | None = None) -> tuple[float, float]:
    """The 95% percentile interval of a cell's mean score, or of its difference to `minus`, for the plots.

    Lines of the test set are resampled RESAMPLES times, the same draws for every run, and seeds with them where there
    are several (`resampled_means`). (nan, nan) without sentences.
    """
    matrix = seed_matrix(figures, pair, cell, metric)
    other = seed_matrix(figures, pair, minus, metric) if minus else None
    if matrix is None or (minus and other is None):
        return float("nan"), float("nan")
    means = resampled_means(matrix) - (resampled_means(other) if minus else 0)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def seed_spread(figures: Figures, pair: str, metric: str) -> tuple[float, int]:
    """Standard deviation between seeds, pooled over all cells of the pair with two seeds or more, and its freedom.

    (nan, 0) where no cell has two. Pooling takes the spread to be the same at all levels; the cells of one
    chain share a history, which makes the freedom an upper bound.
    """
    cells = [figures.cell(pair, "dense", 0), *figures.variants(pair)]
    cells += [cell for technique in figures.techniques(pair) for cell in figures.own_cells(pair, technique)]
    samples = [[row[metric] for row in cell.rows] for cell in cells if cell and len(cell.rows) > 1]
    samples = [sample for sample in samples if not np.isnan(sample).any()]
    freedom = sum(len(sample) - 1 for sample in samples)
    if not freedom:
        return float("nan"), 0
    return float(np.sqrt(sum(np.var(sample) * len(sample) for sample in samples) / freedom)), freedom


@dataclass(frozen=True)
class Contrast:
    """An estimated difference: `effect` with its standard error and freedom; what it is of, and at which sparsity.

    `seeds_known` is False where nothing tells the spread between seeds; `printed` where the effect is a difference of
    rounded figures without an error of its own; `draws` holds the resampled effects.
    """

    what: str
    sparsity: float
    effect: float
    error: float
    freedom: float
    seeds_known: bool = True
    printed: bool = False
    draws: np.ndarray | None = None

    def bounds(self, alpha: float = 1 - LEVEL) -> tuple[float, float]:
        """The two-sided t interval at level 1 - alpha; the effect itself for printed figures."""
        width = 0.0 if self.printed else _t_quantile(self.freedom, 1 - alpha / 2) * self.error
        return self.effect - width, self.effect + width

    @property
    def detectable(self) -> float:
        """The smallest true difference that this design finds with 80% power at 5%, two-sided: about 2.8 errors."""
        if self.printed:
            return float("nan")
        return (_t_quantile(self.freedom, (1 + LEVEL) / 2) + _t_quantile(self.freedom, POWER)) * self.error


def contrast(
    figures: Figures, pair: str, plus: Cell | None, minus: Cell | None, metric: str = "bleu"
) -> Contrast | None:
    """`plus` less `minus` in points of the metric (means over seeds), or None where one was not scored.

    The variance is that of the paired bootstrap over lines plus that between seeds, s^2 (1/S + 1/S'), with s pooled
    over the pair (`seed_spread`); its freedom is Satterthwaite's. The two cells count as independent in their seeds
    although they share initial weights, which can only widen the interval.
    """
    if plus is None or minus is None or np.isnan(effect := plus.mean(metric) - minus.mean(metric)):
        return None
    where = plus.sparsity if plus.sparsity == minus.sparsity else max(plus.sparsity, minus.sparsity)
    what = f"{variant_label(plus)} {percent(plus.sparsity)}% - {variant_label(minus)} {percent(minus.sparsity)}%"
    if figures.printed:
        return Contrast(what, where, effect, 0.0, np.inf, printed=True)
    one, two = seed_matrix(figures, pair, plus, metric), seed_matrix(figures, pair, minus, metric)
    if one is None or two is None:
        return None
    lines = one.mean(axis=0) - two.mean(axis=0)
    spread, freedom = seed_spread(figures, pair, metric)
    return _with_error(what, where, effect, lines[1:], lines_of(figures, pair), spread, freedom, (len(one), len(two)))


def _with_error(
    what: str,
    where: float,
    effect: float,
    draws: np.ndarray,
    lines: int,
    spread: float,
    freedom: int,
    seeds: Sequence[int],
) -> Contrast:
    sentence = float(np.var(draws, ddof=1))
    seed = 0.0 if np.isnan(spread) else spread**2 * sum(1 / count for count in seeds)
    total = sentence + seed
    # Welch-Satterthwaite: the freedom of a sum of two estimated variances.
    parts = sentence**2 / max(lines - 1, 1) + (seed**2 / freedom if freedom else 0.0)
    return Contrast(what, where, effect, total**0.5, total**2 / parts if parts else np.inf, freedom > 0, draws=draws)


def mean_magnitudes(figures: Figures, pair: str, technique: str, column: str) -> dict[float, dict[float, float]]:
    """sparsity -> seed -> mean magnitude over all kept weights; `column` is mean_abs_start or mean_abs_final.

    Dense at 0, then the technique's own cells. Empty where the folder has no magnitudes.
    """
    if figures.magnitudes is None:
        return {}
    sums = figures.magnitudes.assign(total=figures.magnitudes["kept"] * figures.magnitudes[column]).groupby("run")
    means = (sums["total"].sum() / sums["kept"].sum()).to_dict()
    cells = [figures.cell(pair, "dense", 0), *figures.own_cells(pair, technique)]
    found = {
        cell.sparsity: {row["seed"]: means[row["run"]] for row in cell.rows if row["run"] in means}
        for cell in cells
        if cell
    }
    return {sparsity: seeds for sparsity, seeds in found.items() if seeds}


def _t_quantile(freedom: float, probability: float) -> float:
    """Quantile of Student's t. scipy is imported where it is needed: a notebook that only plots starts sooner."""
    from scipy.special import stdtrit

    return stdtrit(freedom, probability)
