"""How sure a figure is: resampled test sets, the spread between seeds, and contrasts between cells of the table.

Lines of the test set are drawn with replacement once a pair, so that every run is scored on the same draws and a
difference of two cells is a paired one (Koehn 2004). Two seeds are no certainty: their spread enters every interval,
pooled over cells of about the same sparsity, since a sparser model differs more from seed to seed.
"""

from dataclasses import dataclass

import numpy as np

from slt_lib.base.errors import InputError
from slt_lib.evaluation.scoring import corpus_bleu, corpus_ter
from slt_lib.report.data import STATISTICS, Cell, Figures, percent, variant_label

RESAMPLES = 1000
BOOTSTRAP_SEED = 2020
LEVEL = 0.95  # of every interval
POWER = 0.8  # with which a "detectable" difference would have been found at that level
# Cells up to 60%, above that up to 85%, and above: the levels that the paper's claims tell apart
BANDS = (0.6, 0.85, 1.0)
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


def interval(figures: Figures, pair: str, cell: Cell, metric: str, minus: Cell | None = None) -> tuple[float, float]:
    """The 95% interval of a cell's mean score, or of its difference to `minus`, for the plots; as `contrast`'s.

    Over sentences alone where nothing tells the spread between seeds. (nan, nan) without sentences.
    """
    if minus:
        found = contrast(figures, pair, cell, minus, metric)
    else:
        found = _estimate(figures, pair, metric, variant_label(cell), cell.sparsity, [cell])
    return found.bounds() if found and not found.printed else (float("nan"), float("nan"))


def seed_spread(figures: Figures, pair: str, metric: str, sparsity: float) -> tuple[float, int]:
    """Standard deviation between seeds at about this sparsity, and its freedom: pooled over the cells of its band.

    Cells with two seeds or more count, each training once; (nan, 0) where a band has none. The cells of one chain share
    a history, which makes the freedom an upper bound.
    """
    key = ("spread", pair, metric)
    if key not in figures.cache:
        figures.cache[key] = _squares(figures, pair, metric)
    squares, freedom = figures.cache[key][band(sparsity)]
    return ((squares / freedom) ** 0.5, freedom) if freedom else (float("nan"), 0)


def band(sparsity: float) -> int:
    """Which of BANDS a sparsity lies in."""
    return next(place for place, highest in enumerate(BANDS) if sparsity <= highest + 1e-9)


def _squares(figures: Figures, pair: str, metric: str) -> list[tuple[float, int]]:
    """Sum of squares between seeds and its freedom, a band each."""
    cells = [figures.cell(pair, "dense", 0), *figures.variants(pair)]
    cells += [cell for technique in figures.techniques(pair) for cell in figures.own_cells(pair, technique)]
    bands, seen = [(0.0, 0)] * len(BANDS), set()
    for cell in cells:
        scores = [row[metric] for row in cell.rows] if cell else []
        if len(scores) < 2 or np.isnan(scores).any() or (runs := _runs(cell)) in seen:
            continue
        seen.add(runs)
        place = band(cell.sparsity)
        squares, freedom = bands[place]
        bands[place] = squares + float(np.var(scores)) * len(scores), freedom + len(scores) - 1
    return bands


def _runs(cell: Cell) -> frozenset[str]:
    return frozenset(row["run"] for row in cell.rows)


def same_runs(one: Cell | None, other: Cell | None) -> bool:
    """Whether two cells are the same trainings under two names, as SLT-MP's first level is SLT's."""
    return bool(one and other and one.rows and _runs(one) == _runs(other))


@dataclass(frozen=True)
class Contrast:
    """An estimated difference: `effect` with its standard error and freedom; what it is of, and at which sparsity.

    `seeds_known` is False where nothing tells the spread between a cell's seeds; `printed` where the effect is a
    difference of rounded figures without an error of its own; `draws` holds the resampled effects.
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
    """`plus` less `minus` in points of the metric (means over seeds); None where one was not scored, or both are one.

    The variance is that of the paired bootstrap over lines plus that between seeds, s^2 / S of each cell, with s pooled
    over cells of about its sparsity (`seed_spread`); its freedom is Satterthwaite's. The two cells count as independent
    in their seeds although they share initial weights, which can only widen the interval.
    """
    if plus is None or minus is None or np.isnan(effect := plus.mean(metric) - minus.mean(metric)):
        return None
    where = max(plus.sparsity, minus.sparsity)
    what = f"{variant_label(plus)} {percent(plus.sparsity)}% - {variant_label(minus)} {percent(minus.sparsity)}%"
    if figures.printed:
        return Contrast(what, where, effect, 0.0, np.inf, printed=True)
    return None if same_runs(plus, minus) else _estimate(figures, pair, metric, what, where, [plus, minus])


def _estimate(figures: Figures, pair: str, metric: str, what: str, where: float, cells: list[Cell]) -> Contrast | None:
    """The mean score of one cell, or that of the first less that of the second; None without sentences."""
    matrices = [seed_matrix(figures, pair, cell, metric) for cell in cells]
    if any(matrix is None for matrix in matrices):
        return None
    signs, scores = (1, -1), [cell.mean(metric) for cell in cells]
    draws = sum(sign * matrix.mean(axis=0)[1:] for sign, matrix in zip(signs, matrices, strict=False))
    sentence = float(np.var(draws, ddof=1))
    of_seeds, known = {}, True  # a spread that two cells share is one estimate
    for cell, matrix in zip(cells, matrices, strict=True):
        spread, freedom = seed_spread(figures, pair, metric, cell.sparsity)
        known &= freedom > 0
        if freedom:
            of_seeds[spread, freedom] = of_seeds.get((spread, freedom), 0.0) + spread**2 / len(matrix)
    total = sentence + sum(of_seeds.values())
    # Welch-Satterthwaite: the freedom of a sum of estimated variances.
    parts = sentence**2 / max(lines_of(figures, pair) - 1, 1)
    parts += sum(variance**2 / freedom for (_, freedom), variance in of_seeds.items())
    effect = float(sum(sign * score for sign, score in zip(signs, scores, strict=False)))
    freedom = total**2 / parts if parts else np.inf
    return Contrast(what, where, effect, total**0.5, freedom, seeds_known=known, draws=draws)


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
