"""A seeded synchronous grammar: abstract sentences drawn at random and rendered in English, German and French.

The words are in grammar.yaml and lexicon.py, the rules of the three languages in syntax.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import numpy as np

from slt_lib.base.errors import InputError
from slt_lib.data import lexicon as lex
from slt_lib.data.lexicon import NOUN, NP, VERB, Clause, Sentence
from slt_lib.data.syntax import render

LANGUAGES = ("en", "de", "fr")
MOST = 1_000_000  # the most sentences of one call; the grammar has far more, but drawing them takes minutes
_VERBS = [key for key, verb in VERB.items() if verb.subjects for _ in range(2 if verb.objects else 1)]
_SAYING, _MODALS = ([key for key, verb in VERB.items() if flag in verb.flags] for flag in ("saying", "modal"))
_PRONOUNS, _NAMES = list(lex.PRONOUN), list(lex.NAME)


def generate(counts: Mapping[str, int], seed: int, structure: bool = False) -> dict[str, list[tuple]]:
    """Draw splits of (English, German, French) sentences; no sentence of any language occurs twice in all splits.

    Each split has a random stream of its own and the splits are drawn in the order of `counts`. Except for the few
    sentences that an earlier split has taken, a split does not depend on the size of another.

    Args:
        counts: number of sentences per split, by name.
        seed: seed of all splits.
        structure: return pairs of the three sentences and their `Structure`. The sentences are the same either way.

    Raises:
        InputError: a count is below 1, or their sum is above `MOST`.
    """
    for split, count in counts.items():
        if count < 1:
            raise InputError(f"corpus grammar: {split} is {count}; ask for 1 sentence or more")
    if (total := sum(counts.values())) > MOST:
        raise InputError(f"corpus grammar: {total:,} sentences asked for; it makes {MOST:,} at most, ask for fewer")
    seen, splits = set(), {}
    for split, count in counts.items():
        draw, made = _Draw(seed, split), []
        while len(made) < count:
            sentence = draw.sentence()
            triple = render(sentence)
            keys = set(enumerate(triple))
            if seen.isdisjoint(keys):
                seen |= keys
                made.append((triple, Structure.of(sentence)) if structure else triple)
        splits[split] = made
    return splits


# Structure ------------------------------------------------------------


@dataclass(frozen=True)
class Structure:
    """The structure of a sentence, from which `syntax.render` makes its text.

    Attributes:
        kind: kind of the sentence; see `lexicon.Sentence`.
        clauses: type ("main", "because", "that", "when", "if" or "relative") and clause of all clauses, in the order of
            the English text; a relative clause follows the clause that holds it.
        depth: the deepest nesting of clauses and owners; 0 for one clause without either.
    """

    kind: str
    clauses: tuple[tuple[str, Clause], ...]
    depth: int

    @classmethod
    def of(cls, sentence: Sentence) -> Structure:
        types = {"because": ("main", "because"), "that": ("main", "that"), "when": (sentence.word, "main")}
        typed = zip(sentence.spoken, types.get(sentence.kind, ("main", "main")), strict=False)
        parts = [part for clause, type in typed for part in _walk(clause, int(type != "main"), type)]
        clauses = tuple((type, part) for part, type, _ in parts if isinstance(part, Clause))
        return cls(sentence.kind, clauses, max(depth for _, _, depth in parts))


def _walk(part: Clause | NP, depth: int, type: str = "") -> Iterator[tuple[Clause | NP, str, int]]:
    """The part and all phrases and clauses in it, each with its type, if it is a clause, and its depth."""
    yield part, type, depth
    if isinstance(part, Clause):
        for role in ("subj", "to", "obj", "than", "place"):
            if role != part.gap and (phrase := getattr(part, role)):
                yield from _walk(phrase, depth)
        return
    if part.owner:
        yield from _walk(part.owner, depth + 1)
    if part.rel:
        yield from _walk(part.rel, depth + 1, "relative")


# Drawing ------------------------------------------------------------


@cache
def _nouns(kinds: str) -> list[str]:
    return [key for key, noun in NOUN.items() if noun.kind in kinds]


@cache
def _adjectives(kind: str, compared: bool = False) -> list[str]:
    return [key for key, adj in lex.ADJECTIVE.items() if kind in adj.kinds and (adj.more or not compared)]


def _unclear(verb: SimpleNamespace, subj: NP, tense: str) -> bool:
    """Whether English does not tell past from present ("they read")."""
    return tense in ("pres", "past") and verb.en[0] == verb.en[2] and subj.index != 2


class _Draw:
    """Draws from the raw stream of Philox, which is the same in every version of numpy, unlike that of Generator."""

    def __init__(self, seed: int, split: str):
        self.bits = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(split.encode())]))
        self.block = []

    def pick(self, items):
        if not self.block:
            self.block = self.bits.random_raw(8192).tolist()
        return items[self.block.pop() % len(items)]

    def chance(self, percent: int) -> bool:
        return self.pick(range(100)) < percent

    def noun(self, kinds: str, definite: bool = False, subject: bool = False, rich: bool = False) -> NP:
        """rich: may have an owner or a relative clause."""
        head = self.pick(_nouns(kinds))
        countable = len(NOUN[head].en) > 1
        plural = countable and self.chance(25)
        weights = f"{'plural' if plural else 'singular'} {'subject' if subject else 'object'}"
        det = self.pick(lex.WEIGHTED["mass" if NOUN[head].kind in "MD" else weights])
        if not countable and det in ("a", "this", "every"):
            det = "my"
        if definite and det in ("bare", "a", "number", "many", "every"):
            det = "the"
        if det in ("number", "my"):
            det = self.pick(lex.NUMBERS if det == "number" else _PRONOUNS)
        phrase = NP(head, det, plural)
        if self.chance(30):
            phrase = replace(phrase, adj=self.pick(_adjectives(phrase.kind)))
        if not rich or det != "the" or phrase.kind == "K":
            return phrase
        if self.chance(20):
            owner = NP(self.pick(_NAMES if self.chance(40) else _nouns("PK")))
            return replace(phrase, owner=owner) if owner.head != head else phrase
        return self.relative(phrase) if self.chance(25) else phrase

    def relative(self, phrase: NP) -> NP:
        tense = self.pick(("pres", "pres", "past"))
        if phrase.kind in "PA" and self.chance(60):
            return replace(phrase, rel=replace(self.clause(tense, phrase, plain=True), gap="subj"))
        for _ in range(20):
            verb = VERB[key := self.pick(_VERBS)]
            if phrase.kind in verb.objects and not (verb.de_prep or verb.fr_prep or "recipient" in verb.flags):
                subj = self.someone(verb.subjects)
                if subj.head != phrase.head and not _unclear(verb, subj, tense):
                    return replace(phrase, rel=Clause(subj, key, phrase, tense=tense, gap="obj"))
        return phrase

    def someone(self, kinds: str, definite: bool = False, rich: bool = False) -> NP:
        if "P" in kinds and (way := self.pick("pppnn......")) != ".":
            return NP(self.pick(_PRONOUNS if way == "p" else _NAMES))
        return self.noun(kinds, definite, True, rich)

    def object(self, kinds: str, subj: NP, definite: bool, rich: bool = False) -> NP:
        heads = ()
        if "P" in kinds and self.chance(35):
            heads = _NAMES if self.chance(35) else _PRONOUNS
        while True:
            phrase = NP(self.pick(heads)) if heads else self.noun(kinds, definite, False, rich)
            # "I see us" and "you see you" would be reflexive.
            same = {phrase.index, subj.index} <= {0, 3} or phrase.index == subj.index == 1
            if phrase.head not in (subj.head, subj.owner and subj.owner.head) and not (heads and same):
                return phrase

    def place(self) -> NP:
        return replace(self.noun("LHG", True), plural=False)

    def clause(self, tense: str = "", subj: NP | None = None, plain: bool = False, ask: str | None = None) -> Clause:
        """plain: without time, frequency, owners and relative clauses; ask: the question word of a question."""
        while True:
            verb = VERB[key := self.pick(_VERBS)]
            if subj and subj.kind not in verb.subjects:
                continue
            if ask == "where" and ("no place" in verb.flags or key == "stay"):
                continue
            when, modal, state = tense or self.pick(lex.WEIGHTED["tenses"]), "", "state" in verb.flags
            when = "pres" if state and when == "prog" else when
            if when in ("pres", "past") and self.chance(18):
                modal = self.pick(_MODALS)
                if state and VERB[modal].zu or when == "past" and not VERB[modal].zu:
                    modal = ""
            neg = ask is None and when != "prog" and modal in ("", "can", "want") and self.chance(20)
            who = subj or self.someone(verb.subjects, neg, not plain)
            if modal in ("hope", "promise", "want", "try") and who.kind == "A":
                continue
            neg = neg and not who.rel
            if modal or neg or ask is not None or not _unclear(verb, who, when):
                break
        c = Clause(who, key, tense=when, modal=modal, neg=neg)
        if not (plain or neg or modal) and when in ("pres", "past") and self.chance(15):
            c = replace(c, often=self.pick(lex.OFTEN))
        if verb.objects:
            c = self.objects(c, verb, rich=not plain and not who.rel)
        return self.adverbials(c, verb, plain or bool(who.rel or c.obj and c.obj.rel), ask)

    def objects(self, c: Clause, verb: SimpleNamespace, rich: bool) -> Clause:
        definite = "definite" in verb.flags or c.negative and (verb.case != "A" or bool(verb.de_prep))
        obj = self.object(verb.objects, c.subj, definite, rich and not c.negative)
        if c.negative and obj.det in ("many", *lex.NUMBERS):
            obj = replace(obj, det="the")
        if "singular" in verb.flags:
            obj = replace(obj, plural=False)
        to = self.object("PK", c.subj, True) if "recipient" in verb.flags else None
        return replace(c, obj=obj, to=to)

    def adverbials(self, c: Clause, verb: SimpleNamespace, busy: bool, ask: str | None) -> Clause:
        """Manner, place and time; busy: no time, and less often a place."""
        manner, place, time, front = (), None, (), False
        if not ("state" in verb.flags or c.neg or c.often or busy or c.to) and self.chance(12):
            manner = self.pick(lex.MANNER)
        at_place = c.obj and (c.obj.kind in "LHG" or c.obj.rel)
        if not at_place and ask != "where" and "no place" not in verb.flags:
            if c.verb == "stay" or self.chance(12 if busy or c.to else 25):
                place = self.place()
        if not busy and not c.often and c.tense != "prog" and ask != "when" and self.chance(30):
            front = ask is None and self.chance(45)
            if front or not (c.modal and VERB[c.modal].zu):
                time = self.pick(lex.TIME[c.tense])
        return replace(c, manner=manner, place=place, time=time, front=front)

    def being(self, tense: str = "", plain: bool = False) -> Clause:
        who = self.someone(self.pick(("PKA", "TEOCVR", "LHG", "FMD")), True, not plain)
        tense = tense or self.pick(("pres", "pres", "past", "fut"))
        neg = not who.rel and self.chance(25)
        time = self.pick(lex.TIME[tense]) if tense != "pres" and not plain and not who.rel and self.chance(30) else ()
        front = bool(time) and self.chance(45)
        who = replace(who, adj="") if who.adj and self.chance(80) else who
        c = Clause(who, "be", tense=tense, neg=neg, time=time, front=front)
        way = self.pick("aaacl")
        if way == "l" and who.kind not in "LHG":
            return replace(c, place=self.place())
        if way == "c":
            adj = self.pick(_adjectives(who.kind, compared=True))
            than = self.object(who.kind, who, True)
            if adj not in (than.adj, who.adj):
                return replace(c, adj=adj, than=than)
        return replace(c, adj=self.pick([adj for adj in _adjectives(who.kind) if adj != who.adj]))

    def sentence(self) -> Sentence:
        kind, word = self.pick(lex.WEIGHTED["sentences"]), ""
        if kind == "statement":
            return Sentence(kind, (self.clause(),))
        if kind == "copula":
            return Sentence(kind, (self.being(),))
        if kind == "question":
            word = self.pick(("where", "when", "why")) if self.chance(55) else ""
            return Sentence(kind, (self.clause(ask=word),), word)
        either = self.being if self.chance(30) else self.clause
        if kind == "that":
            speaker, word = self.someone("PK", True), self.pick(_SAYING)
            return Sentence(kind, (either(plain=self.chance(60)),), word, speaker)
        first, second = (either, self.clause) if kind == "when" else (self.clause, either)
        word, *tenses = self.pick(lex.DATA["pairs"][kind])
        return Sentence(kind, (first(tenses[0], plain=True), second(tenses[1], plain=True)), word)
