"""The words of the grammar corpus, read from grammar.yaml, and the abstract phrases that are made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import yaml

_TEXT = Path(__file__).with_name("grammar.yaml").read_text(encoding="utf-8")
DATA = yaml.load(_TEXT, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _table(name: str) -> dict[str, SimpleNamespace]:
    """The words of a table of grammar.yaml, which explains their fields."""
    return {key: SimpleNamespace(**DATA["defaults"][name] | row) for key, row in DATA[name].items()}


def _times(pattern: list[str]) -> list[tuple[str, ...]]:
    """The adverbials that a row of `times` stands for: "next {days[0]}" gives one for each day."""
    names = re.findall(r"{(\w+)", pattern[0])
    choices = [dict(zip(names, rows, strict=True)) for rows in product(*(DATA[name] for name in names))]
    return [tuple(text.format(**words) for text in pattern) for words in choices]


NOUN, ADJECTIVE, VERB = _table("nouns"), _table("adjectives"), _table("verbs")
PRONOUN, DETERMINER = _table("pronouns"), _table("determiners")
NAME = {
    name: SimpleNamespace(type="name", kind="P", index=2, en=[name] * 2, de=[name] * 3, fr=[name] * 4, gender=genders)
    for name, genders in DATA["names"].items()
}
HEAD = NOUN | PRONOUN | NAME
NUMBERS = [row[0] for row in DATA["numbers"]]
OFTEN, MANNER = [tuple(row) for row in DATA["often"]], [tuple(row) for row in DATA["manners"]]
TIME = {tense: [time for row in rows for time in _times(row)] for tense, rows in DATA["times"].items()}
WEIGHTED = {  # each key as often as its weight
    name: [key for key, weight in weights.items() for _ in range(weight)] for name, weights in DATA["weights"].items()
}


@dataclass(frozen=True, slots=True)
class NP:
    """A noun phrase; `head` is a pronoun ("she"), a name ("Anna") or a noun ("dog").

    det: the, a, bare (plural or mass), this, every, many, a number ("two") or the pronoun of a possessor ("she" for
    her); owner: the noun phrase "the teacher" in "the teacher's dog"; rel: a relative clause, with a gap.
    """

    head: str
    det: str = "the"
    plural: bool = False
    adj: str = ""
    owner: NP | None = None
    rel: Clause | None = None

    @property
    def index(self) -> int:
        """Person and number, 0 to 4: I, you, he or she or it, we, they."""
        if self.head in NOUN:
            return 4 if self.plural else 2
        return HEAD[self.head].index

    @property
    def kind(self) -> str:
        """The class of the noun; "P" for a name or pronoun."""
        return HEAD[self.head].kind

    @property
    def gender(self) -> str:
        """The French gender."""
        return HEAD[self.head].gender[1]

    @property
    def indefinite(self) -> bool:
        return self.det in ("a", "bare", "many", *NUMBERS)


@dataclass(frozen=True, slots=True)
class Clause:
    """One finite verb with its arguments and adverbials.

    verb: a verb of the lexicon; "be" has `adj` (and `than`) or `place`; tense: pres, prog, past, fut; modal: the
    verb that takes `verb` as an infinitive; often, manner, time: (English, German, French); front: `time` comes first;
    gap: the argument ("subj", "obj") that the relative pronoun stands for.
    """

    subj: NP
    verb: str
    obj: NP | None = None
    to: NP | None = None
    tense: str = "pres"
    modal: str = ""
    neg: bool = False
    often: tuple = ()
    manner: tuple = ()
    place: NP | None = None
    time: tuple = ()
    front: bool = False
    adj: str = ""
    than: NP | None = None
    gap: str = ""

    @property
    def negative(self) -> bool:
        """Whether it holds "not" or "never"."""
        return self.neg or self.often[:1] == ("never",)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One or two clauses and what joins them.

    kind: "statement", "copula", "question" (`word`: "where", "when", "why", or "" for yes or no), "because" (the
    reason is the second clause), "that" (`speaker` and `word`: who thinks, knows, says or believes the clause), "when"
    (the first clause is subordinate; `word`: "when" or "if"), "but" (two main clauses).
    """

    kind: str
    clauses: tuple[Clause, ...]
    word: str = ""
    speaker: NP | None = None

    @property
    def spoken(self) -> tuple[Clause, ...]:
        """All clauses, that of the speaker included."""
        return (Clause(self.speaker, self.word), *self.clauses) if self.speaker else self.clauses
