"""Probing tasks whose labels need no annotated corpus: from any text, and from the structure of grammar sentences.

After SentEval (Conneau et al. 2018), as far as plain text or the grammar gives the labels.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slt_lib.analysis.probes import GROUPS, Task
from slt_lib.base.errors import InputError
from slt_lib.base.seeds import stream
from slt_lib.data import lexicon as lex
from slt_lib.data.corpora import read_lines
from slt_lib.data.grammar import Structure
from slt_lib.data.vocabulary import Vocabulary

Word = tuple[str, int, int]  # form, first piece, piece after the last
LABELS = "labels.tsv"
LABEL_COLUMNS = ["task", "group", "split", "line", "word", "label"]
PIECES = 2  # examples of a task per sentence, on average at most
CONTENT = 12  # words of the task "word content"
CLASSES = {"PK": "person", "A": "animal", "FMD": "food", "RTEOCV": "thing", "LHG": "place"}


def words(vocabulary: Vocabulary, sentence: str) -> list[Word]:
    """The words and runs of punctuation of a sentence with their pieces."""
    found, ids = [], vocabulary.encode([sentence])[0][:-1].tolist()
    for place, piece in enumerate(map(vocabulary.tokenizer.id_to_token, ids)):
        form = piece.removeprefix("▁")
        if found and piece == form and form[:1].isalnum() == found[-1][0][-1:].isalnum():
            found[-1] = (found[-1][0] + form, found[-1][1], place + 1)
        else:
            found.append((form, place, place + 1))
    return found


def last_word(found: Sequence[Word]) -> str:
    """The form that gives a sentence its control label: its last word, which differs between sentences.

    The first one hardly does: 59% of the captions of Multi30k begin with "A".
    """
    return next((form.lower() for form, *_ in reversed(found) if form[:1].isalnum()), found[-1][0])


def swapped(sentences: Sequence[str]) -> list[str]:
    """Each sentence with two neighbouring words exchanged, neither the first nor the last ones."""
    random, found = stream(0, "swapped neighbours"), []
    for sentence in sentences:
        parts = sentence.split()
        if len(parts) > 4:
            at = int(random.integers(1, len(parts) - 2))
            parts[at : at + 2] = parts[at + 1], parts[at]
        found.append(" ".join(parts))
    return found


def probed(sentences: Sequence[str]) -> list[str]:
    """The sentences that a model reads for all tasks: the given ones, then every second one with swapped neighbours."""
    return [*sentences, *swapped(sentences[1::2])]


def corpus_tasks(vocabulary: Vocabulary, sentences: Sequence[str]) -> list[Task]:
    """Tasks of any text: sentence length, word content, swapped neighbours, previous and next word piece.

    Their spans refer to `probed(sentences)`.
    """
    texts = probed(sentences)
    split = [words(vocabulary, text) for text in texts]
    whole = [(number, 0, found[-1][2]) for number, found in enumerate(split)]
    count, last = len(sentences), [last_word(found) for found in split]
    lengths = np.array([len(found) for found in split[:count]])
    bins = np.searchsorted(np.quantile(lengths, [0.25, 0.5, 0.75]), lengths)
    # each sentence is there once: as it is, or swapped
    order = [(i, "in order") for i in range(0, count, 2)] + [(i, "swapped") for i in range(count, len(texts))]
    moved = [(i, label) for i, label in order if len(texts[i].split()) > 4]
    tasks = [
        Task.of("sentence length", "surface", [(whole[i], bins[i], last[i]) for i in range(count)]),
        Task.of("word content", "surface", _content(split[:count], whole)),
        Task.of("swapped neighbours", "syntax", [(whole[i], label, last[i]) for i, label in moved]),
    ]
    ids = vocabulary.encode(list(sentences)).lists()
    for name, step in (("previous piece", -1), ("next piece", 1)):
        found = [
            ((number, place, place + 1), sentence[place + step], sentence[place])
            for number, sentence in enumerate(ids)
            for place in range(1, len(sentence) - 2)
        ]
        frequent = {label for label, _ in Counter(label for _, label, _ in found).most_common(20)}
        kept = [row for row in found if row[1] in frequent]
        tasks.append(Task.of(name, "surface", _sample(kept, name, count), by_form=True))
    return [task for task in tasks if task]


def _content(split: Sequence[list[Word]], whole: Sequence[tuple]) -> list[tuple]:
    """Sentences with exactly one of the words that 2% to 15% of the sentences have."""
    sets = [{form.lower() for form, _, _ in found if len(form) >= 4} for found in split]
    counts = Counter(form for forms in sets for form in forms)
    mid = [form for form, n in counts.most_common() if 0.02 <= n / len(split) <= 0.15][:CONTENT]
    held = [(number, forms & set(mid)) for number, forms in enumerate(sets)]
    return [(whole[number], *forms, last_word(split[number])) for number, forms in held if len(forms) == 1]


def _sample(examples: list[tuple], name: str, sentences: int) -> list[tuple]:
    """A random part of the examples, at most PIECES times as many as sentences."""
    chosen = stream(0, "probe examples", name).permutation(len(examples))[: PIECES * sentences]
    return [examples[i] for i in sorted(chosen)]


def grammar_tasks(
    vocabulary: Vocabulary, pair: str, sentences: Sequence[str], structures: Sequence[Structure]
) -> list[Task]:
    """Tasks of sentences that `grammar.generate` made with their structures; `pair`: "en-de"."""
    source, target = pair.split("-")
    split = [words(vocabulary, sentence) for sentence in sentences]
    rows = defaultdict(list)
    for number, (found, structure) in enumerate(zip(split, structures, strict=True)):
        span = number, 0, found[-1][2]
        clauses = [clause for _, clause in structure.clauses]
        main = next(clause for type, clause in structure.clauses if type == "main")
        rows["tense", "morphology"].append((span, main.tense, main.modal or main.verb))
        for role, phrase in (("subject", main.subj), ("object", main.obj)):
            if phrase and phrase.head in lex.NOUN:
                number_of = "plural" if phrase.plural else "singular"
                rows[f"number of the {role}", "morphology"].append((span, number_of, phrase.head))
        rows["clause type", "syntax"].append((span, structure.kind, main.verb))
        rows["negation", "meaning"].append((span, any(clause.neg for clause in clauses), main.verb))
        targets = {clause.subj.head for clause in clauses}  # of a relative clause perhaps the noun that it describes
        nouns = [(_nouns(source).get(form.lower()), *place) for form, *place in found]
        seen = Counter(lemma for lemma, *_ in nouns)
        for lemma, *place in nouns:
            if lemma and seen[lemma] == 1:
                noun, at = lex.NOUN[lemma], (number, *place)
                rows["agreement target", "syntax"].append((at, lemma in targets, lemma))
                noun_class = next(name for kinds, name in CLASSES.items() if noun.kind in kinds)
                rows["noun class", "meaning"].append((at, noun_class, lemma))
                if target in ("de", "fr"):
                    gender = noun.gender[("de", "fr").index(target)]
                    rows["gender of the translation", "morphology"].append((at, gender, lemma))
    rows["depth", "syntax"] = _depth(split, structures)
    whole = ("clause type", "depth", "negation")  # about the sentence, not about a word
    tasks = [
        Task.of(*names, _sample(found, names[0], len(sentences)), names[0] not in whole)
        for names, found in rows.items()
    ]
    return [task for task in tasks if task]


@functools.cache
def _nouns(language: str) -> dict[str, str]:
    """Form -> lemma of the nouns of the grammar that no other word looks like."""
    others = {form for verb in lex.VERB.values() for form in getattr(verb, language)} | set(lex.ADJECTIVE)
    return {
        form.lower(): lemma
        for lemma, noun in lex.NOUN.items()
        for form in getattr(noun, language)
        if form not in others and " " not in form
    }


def _depth(split: Sequence[list[Word]], structures: Sequence[Structure]) -> list[tuple]:
    """Sentences with and without an embedded clause or owner, as many of each at every length."""
    found = defaultdict(lambda: ([], []))
    for number, (parts, structure) in enumerate(zip(split, structures, strict=True)):
        deep = structure.depth > 0
        row = (number, 0, parts[-1][2]), "embedded" if deep else "flat", last_word(parts)
        found[len(parts)][deep].append(row)
    return [row for flat, deep in found.values() for row in (*flat[: len(deep)], *deep[: len(flat)])]


def own_tasks(path: Path, vocabulary: Vocabulary, sentences: Sequence[str], places: Sequence[tuple[str, int]]):
    """Tasks of labels.tsv in the folder of a `files` corpus; none if there is no such file.

    Tab-separated with the header task, group, split, line, word, label. `word` is the number of a word between spaces,
    from 1, or empty for a label of the sentence. A task whose labels all belong to words is also tested on new word
    forms. `places`: split and line (from 1) of each sentence; labels of other
    lines are not used. Raises InputError, which names the line, for another header, group or number.
    """
    if not path.is_file():
        return []
    lines = [line.split("\t") for line in read_lines(path)]
    if lines[0] != LABEL_COLUMNS:
        raise InputError(f"{path}: the first line must be {', '.join(LABEL_COLUMNS)}, separated by tabs")
    at, rows, whole = {place: number for number, place in enumerate(places)}, defaultdict(list), set()
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(LABEL_COLUMNS) or not line[3].isdecimal() or not (line[4].isdecimal() or not line[4]):
            raise InputError(f"{path}, line {number}: {len(LABEL_COLUMNS)} cells with whole numbers as line and word")
        task, group, split, place, word, label = line
        if group not in GROUPS:
            raise InputError(f"{path}, line {number}: group {group!r} is none of {', '.join(GROUPS)}")
        if (sentence := at.get((split, int(place)))) is None:
            continue
        parts = words(vocabulary, sentences[sentence])
        span, form = (sentence, 0, parts[-1][2]), last_word(parts)
        if not word:
            whole.add((task, group))
        else:
            span, form = _word(path, number, sentences[sentence], int(word), sentence, vocabulary)
        rows[task, group].append((span, label, form))
    tasks = [Task.of(*names, found, names not in whole) for names, found in rows.items()]
    return [task for task in tasks if task]


def _word(path: Path, number: int, sentence: str, word: int, place: int, vocabulary: Vocabulary):
    """Span and form of the word-th word between spaces."""
    parts = sentence.split(" ")
    if not 1 <= word <= len(parts) or not parts[word - 1]:
        raise InputError(f"{path}, line {number}: there is no word {word}; the sentence has {len(parts)}")
    before, upto = (len(vocabulary.encode([" ".join(parts[:end])])[0]) - 1 for end in (word - 1, word))
    return (place, before if word > 1 else 0, upto), parts[word - 1].lower()
