"""What a reader loses: BLEU by sentence length, recall of words by their frequency, numbers and nouns that are kept."""

import bisect
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from slt_lib.data import lexicon as lex
from slt_lib.data.grammar import LANGUAGES
from slt_lib.evaluation import scoring

BANDS = (1, 5, 20, 100, 1000)  # training frequencies at which the bands after the first, "never seen", begin
NAMES = ("0", "1-4", "5-19", "20-99", "100-999", "1000+")
Row = tuple[str, float, int]  # band, value, number of cases


def tokens(sentence: str) -> list[str]:
    """Runs of letters and digits, lower-cased."""
    return re.findall(r"\w+", sentence.lower())


def frequencies(sentences: Iterable[str]) -> Counter:
    """How often each word occurs."""
    return Counter(token for sentence in sentences for token in tokens(sentence))


def bleu_by_length(statistics: Mapping[str, Sequence[int]], sources: Sequence[str], bands: int = 4) -> list[Row]:
    """Corpus BLEU of the sentences of each quarter by length of the source in words; `statistics`: see `scoring`."""
    lengths = np.array([len(tokens(source)) for source in sources])
    place = np.searchsorted(np.quantile(lengths, np.arange(1, bands) / bands), lengths)
    rows = []
    for band in np.unique(place):
        chosen = np.flatnonzero(place == band)
        part = {name: np.asarray(counts)[chosen] for name, counts in statistics.items()}
        name = f"{lengths[chosen].min()}-{lengths[chosen].max()}"
        rows.append((name, float(scoring.corpus_bleu(part)), len(chosen)))
    return rows


def recall_by_frequency(hypotheses: Sequence[str], references: Sequence[str], seen: Mapping[str, int]) -> list[Row]:
    """Share of the reference words that their hypothesis has, by frequency in training; a word counts once per use.

    `seen`: word -> number of its occurrences in the training text.
    """
    found, total = Counter(), Counter()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        wanted = Counter(tokens(reference))
        for word, count in wanted.items():
            total[_band(seen.get(word, 0))] += count
        for word, count in (wanted & Counter(tokens(hypothesis))).items():
            found[_band(seen.get(word, 0))] += count
    return [(name, found[name] / total[name], total[name]) for name in NAMES if total[name]]


def _band(count: int) -> str:
    return NAMES[bisect.bisect_right(BANDS, count)]


def kept(hypotheses: Sequence[str], references: Sequence[str], sources: Sequence[str], pair: str) -> list[Row]:
    """Share of the source's numbers and nouns whose translation the hypothesis has, where the reference has it too.

    Numbers are those in digits and two to ten, nouns those of the grammar's lexicon; other languages have digits alone.
    """
    found, total = Counter(), Counter()
    for hypothesis, reference, source in zip(hypotheses, references, sources, strict=True):
        has, wanted = set(tokens(hypothesis)), set(tokens(reference))
        for word in set(tokens(source)):
            kind, forms = ("numbers", {word}) if word.isdigit() else _dictionary(pair).get(word, ("", ()))
            if wanted & set(forms):
                total[kind] += 1
                found[kind] += bool(has & set(forms))
    return [(kind, found[kind] / total[kind], total[kind]) for kind in ("numbers", "nouns") if total[kind]]


@functools.cache
def _dictionary(pair: str) -> dict[str, tuple[str, set[str]]]:
    """Source form -> its kind and the forms of its translation, lower-cased."""
    source, target = pair.split("-")
    if not {source, target} <= set(LANGUAGES):
        return {}
    rows = {}
    for noun in lex.NOUN.values():
        forms = {form.lower() for form in getattr(noun, target)}
        if target == "de":
            forms |= {form + "n" for form in forms} | {noun.genitive.lower()} - {""}
        rows |= {form.lower(): ("nouns", forms) for form in getattr(noun, source)}
    one, other = LANGUAGES.index(source), LANGUAGES.index(target)
    return rows | {row[one]: ("numbers", {row[other]}) for row in lex.DATA["numbers"]}
