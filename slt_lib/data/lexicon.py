"""The words of the grammar corpus, read from grammar.yaml, and the abstract phrases that are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml


class Noun(NamedTuple):
    kind: str
    gender: list  # German, French
    en: list
    de: list
    fr: list
    weak: bool = False
    genitive: str = ""
    at: list = []

    def german(self, plural: bool, case: str) -> str:
        """The German form; case: N, A, D or G."""
        if plural:
            return self.de[1] + ("n" if case == "D" and self.de[1][-1] not in "ns" else "")
        if self.weak and case != "N":
            return self.de[1]
        return self.genitive if case == "G" and self.genitive else self.de[0]


class Adjective(NamedTuple):
    kinds: str
    de: str
    fr: list
    more: list = []
    stem: str = ""
    before: bool = False


class Verb(NamedTuple):
    subjects: str
    en: list
    de: list
    de_present: list
    fr: list
    fr_present: list
    objects: str = ""
    flags: list = []
    particle: str = ""
    prefix: str = ""
    case: str = ""
    de_prep: str = ""
    fr_prep: str = ""
    sein: bool = False
    être: bool = False


class Modal(NamedTuple):
    en: list
    de: list
    de_present: list
    fr: list
    fr_present: list
    to: str = ""
    zu: bool = False
    fr_prep: str = ""


class Saying(NamedTuple):
    en: list
    de: list
    fr: list


class Pronoun(NamedTuple):
    index: int
    gender: str
    en: list
    de: list
    fr: list


def _table(rows: dict, kind: type) -> dict:
    return {key: kind(**row) for key, row in rows.items()}


def _triples(rows: list) -> dict[str, tuple[str, str, str]]:
    return {row[0]: tuple(row) for row in rows}


def _times(words: dict) -> dict[str, list[tuple[str, str, str]]]:
    """Tense -> adverbials of time, those of weekdays and of spans of time included."""
    times = {tense: [tuple(row) for row in rows] for tense, rows in words["times"].items()}
    for en, de, fr in words["days"]:
        times["pres"].append((f"on {en}s", f"{de.lower()}s", f"le {fr}"))
        times["past"].append((f"last {en}", f"letzten {de}", f"{fr} dernier"))
        times["fut"].append((f"next {en}", f"nächsten {de}", f"{fr} prochain"))
    for number in words["numbers"]:
        for en, de, fr in words["units"]:
            times["past"].append((f"{number[0]} {en} ago", f"vor {number[1]} {de}", f"il y a {number[2]} {fr}"))
            times["fut"].append((f"in {number[0]} {en}", f"in {number[1]} {de}", f"dans {number[2]} {fr}"))
    return times


_WORDS = yaml.load(
    Path(__file__).with_name("grammar.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
)
ENGLISH, GERMAN, FRENCH = _WORDS["english"], _WORDS["german"], _WORDS["french"]
NOUN = _table(_WORDS["nouns"], Noun)
ADJECTIVE = _table(_WORDS["adjectives"], Adjective)
VERB = _table(_WORDS["verbs"], Verb)
MODAL = _table(_WORDS["modals"], Modal)
SAYING = _table(_WORDS["saying"], Saying)
PRONOUN = _table(_WORDS["pronouns"], Pronoun)
NAMES = _WORDS["names"]
NUMBER, QUESTION = _triples(_WORDS["numbers"]), _triples(_WORDS["questions"])
OFTEN, MANNER = list(_triples(_WORDS["often"]).values()), list(_triples(_WORDS["manners"]).values())
TIME = _times(_WORDS)


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
        return PRONOUN[self.head].index if self.head in PRONOUN else 4 if self.plural else 2

    @property
    def kind(self) -> str:
        """The class of the noun; "P" for a name or pronoun."""
        return NOUN[self.head].kind if self.head in NOUN else "P"

    @property
    def gender(self) -> str:
        """The French gender."""
        if self.head in NOUN:
            return NOUN[self.head].gender[1]
        return NAMES[self.head] if self.head in NAMES else PRONOUN[self.head].gender

    @property
    def indefinite(self) -> bool:
        return self.head in NOUN and (self.det in ("a", "bare", "many") or self.det in NUMBER)


@dataclass(frozen=True, slots=True)
class Clause:
    """One finite verb with its arguments and adverbials.

    verb: a verb of the lexicon, or "be" with `adj` (and `than`) or `place`; tense: pres, prog, past, fut; modal: the
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
    def never(self) -> bool:
        return self.often[:1] == ("never",)


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
