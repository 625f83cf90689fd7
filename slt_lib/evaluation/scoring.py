"""BLEU and TER by sacrebleu (settings: FACTS.md, section 5).

`sentence_statistics` turns text into counts. Scores and their intervals are functions of these counts, so a stored
table of counts is enough to compute them again.
"""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import numpy as np
from numpy.typing import ArrayLike
from sacrebleu.metrics import BLEU, TER
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from slt_lib.base.processes import cores, pool

COLUMNS = {  # the counts of each metric
    "bleu": ("sys_len", "ref_len", "m1", "m2", "m3", "m4", "t1", "t2", "t3", "t4"),
    "ter": ("ter_edits", "ter_words"),
    "ter_13a": ("ter13a_edits", "ter13a_words"),
}

Statistics = Mapping[str, ArrayLike]


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU in percent of detokenised text: cased, 13a tokens, one reference a line.

    Raises ValueError if the lists differ in length or are empty.
    """
    return corpus_bleu(_counts("bleu", hypotheses, references))


def bleu_of_each(systems: Sequence[Sequence[str]], references: Sequence[str]) -> list[float]:
    """BLEU of many systems on one test set, computed in one process per core. The processes stay for the next call.

    BLEU of a thousand lines takes a tenth of a second; in one process, many models on a GPU would wait for it.
    """
    workers = min(cores(), 32)
    if len(systems) > 1 and len(references) >= 100 and workers > 2:
        try:
            return list(_processes(workers).map(bleu, systems, [references] * len(systems)))
        except (BrokenExecutor, OSError):  # a script without a main guard can't be opened by another process
            _processes.cache_clear()
    return [bleu(system, references) for system in systems]


@functools.cache
def _processes(workers: int) -> ProcessPoolExecutor:
    return pool(workers)


def signatures() -> dict[str, str]:
    """sacrebleu's signature of each metric; `tok` of "ter_13a" names both tokenizers in their order."""
    metrics = {"bleu": BLEU(), "ter": TER()}
    for metric in metrics.values():
        metric.num_refs = 1
    found = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    return found | {"ter_13a": found["ter"].replace("tok:tercom", "tok:13a+tercom")}


def sentence_statistics(
    hypotheses: Sequence[str], references: Sequence[str], metrics: Sequence[str] = tuple(COLUMNS)
) -> dict[str, np.ndarray]:
    """Counts from which corpus BLEU and TER follow exactly: names to integer arrays [lines].

    `metrics`: any of "bleu", "ter" and "ter_13a". For BLEU: matched and total n-grams `m1` to `m4` and `t1` to `t4`,
    lengths `sys_len` and `ref_len` in 13a tokens. For TER: `ter_edits` and words of the reference `ter_words` in raw
    text, the same in 13a tokens `ter13a_edits` and `ter13a_words`.

    Raises:
        ValueError: the lists differ in length or are empty.
    """
    return {name: array for metric in metrics for name, array in _counts(metric, hypotheses, references).items()}


def _counts(metric: str, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """The `COLUMNS` of a metric, each [lines]."""
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses against {len(references)} references: their numbers must agree")
    if len(hypotheses) == 0:
        raise ValueError("there are no lines to score")
    if metric == "ter_13a":
        tokenize = Tokenizer13a()
        hypotheses, references = ([tokenize(line) for line in lines] for lines in (hypotheses, references))
    # `force` only silences a warning about text that looks tokenised, as the output of a bad model may.
    scorer = BLEU(force=True) if metric == "bleu" else TER()
    # With one reference a line, TER's average reference length is a whole number.
    counts = np.array(scorer._extract_corpus_statistics(hypotheses, [references])).astype(np.int64)
    return dict(zip(COLUMNS[metric], counts.T, strict=True))


def corpus_bleu(statistics: Statistics) -> float | np.ndarray:
    """BLEU in percent from counts summed over the last axis, computed as in sacrebleu (smoothing exp, all four orders).

    `statistics` maps the BLEU columns to arrays [..., lines]: a dict from `sentence_statistics`, a pandas DataFrame
    with a row for each line, resampled counts [resamples, lines], or sums that are already made [resamples, 1]. Returns
    a float for [lines], else an array [...].
    """
    totals = _totals(statistics, "bleu")
    system, reference, matched, total = totals[0], totals[1], totals[2:6], totals[6:10]
    with np.errstate(divide="ignore", invalid="ignore"):
        smoothed = 1 / (2.0 ** np.cumsum(matched == 0, axis=0) * total)
        precision = np.where(matched > 0, matched / total, smoothed)
        brevity = np.where(system < reference, np.exp(1 - reference / system), 1.0)
        score = 100 * brevity * np.exp(np.log(precision).mean(axis=0))
    return _float_or_array(np.where(matched.any(axis=0) & total.all(axis=0), score, 0.0))


def corpus_ter(statistics: Statistics, metric: str = "ter") -> float | np.ndarray:
    """TER in percent, sacrebleu's defaults; `statistics` has the `COLUMNS` of `metric`, axes as in `corpus_bleu`.

    "ter" is of raw text, most likely as in the paper (FACTS.md, section 5). "ter_13a" is of 13a tokens, lowercased: the
    conventional setting, about nine points lower.
    """
    edits, words = _totals(statistics, metric)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(words > 0, edits / words, edits > 0)
    return _float_or_array(100.0 * rate)


def _totals(statistics: Statistics, metric: str) -> np.ndarray:
    """Sums over lines: [columns, ...]."""
    return np.stack([np.asarray(statistics[column]).sum(axis=-1) for column in COLUMNS[metric]])


def _float_or_array(values: np.ndarray) -> float | np.ndarray:
    return float(values) if values.ndim == 0 else values
