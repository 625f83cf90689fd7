"""The rules of the grammar corpus: agreement, case and word order of English, German and French.

`render` turns an abstract `lexicon.Sentence` into one sentence per language, without a random choice. The rules of a
language make the parts of a clause; grammar.yaml has their order.
"""

import re
from collections import defaultdict
from collections.abc import Callable

from slt_lib.data import lexicon as lex
from slt_lib.data.lexicon import NP, Clause, Sentence

_EN, _DE, _FR = lex.DATA["english"], lex.DATA["german"], lex.DATA["french"]


def render(sentence: Sentence) -> tuple[str, str, str]:
    """The sentence in English, German and French."""
    templates, clauses = lex.DATA["sentences"], sentence.spoken
    en, de, fr = templates.get(f"{sentence.kind} {sentence.word}", templates[sentence.kind])
    return _text(en, clauses, _english, _EN), _text(de, clauses, _german, _DE), _text(fr, clauses, _french, _FR)


def _text(template: str, clauses: tuple[Clause, ...], rule: Callable[[Clause, str], str], language: dict) -> str:
    text = re.sub(r"{(\d) ?(\w*)}", lambda part: rule(clauses[int(part[1])], part[2] or "plain").strip(), template)
    # A subordinate clause ends with a comma, and so may the clause around it.
    text = re.sub(r"[ ,]*,", ",", " ".join(text.split()))
    text = re.sub(r",(?= ?[.?]$)", "", text)
    for pattern, replacement in language["spelling"].items():
        text = re.sub(pattern, replacement, text)
    return text[0].upper() + text[1:]


def _parts(c: Clause, language: int, np_rule: Callable[..., str]) -> defaultdict[str, str]:
    """The parts of a clause that all languages make alike; the others are still empty."""
    time, often, manner = ("".join(words[language : language + 1]) for words in (c.time, c.often, c.manner))
    parts = defaultdict(str, {"front" if c.front else "time": time, "often": often, "manner": manner})
    parts["subject"] = "" if c.gap == "subj" else np_rule(c.subj, "N")
    parts["place"] = np_rule(c.place, "D", lex.NOUN[c.place.head].at[language]) if c.place else ""
    return parts


def _in_order(parts: defaultdict[str, str], order: str) -> str:
    return " ".join(parts[name] for name in order.split())


# English ------------------------------------------------------------


def _np_en(np: NP, case: str = "N", prep: str = "") -> str:
    if np.head not in lex.NOUN:
        return lex.HEAD[np.head].en[case != "N"]
    det = _np_en(np.owner) + "'s" if np.owner else lex.DETERMINER[np.det].en[np.plural]
    text = f"{prep} {det} {np.adj} {lex.NOUN[np.head].en[np.plural]}"
    if np.rel:
        text += f" {'who' if np.kind in 'PK' and np.rel.gap == 'subj' else 'that'} {_english(np.rel)}"
    return text


def _verbs_en(c: Clause, question: bool) -> tuple[str, str, str]:
    """Auxiliary, main verb and what follows it: an infinitive, a particle."""
    index, verb, head = c.subj.index, lex.VERB[c.verb], lex.VERB[c.modal or c.verb]
    tail = f"{head.to} {verb.en[0]} {verb.particle}" if c.modal else verb.particle
    form = 2 if c.tense == "past" else int(index == 2)
    if c.tense == "fut":
        return "will", head.en[0], tail
    if c.tense == "prog":
        return _EN["be"]["pres"][index], head.en[3], tail
    if c.verb == "be":
        return _EN["be"][c.tense][index], "", ""
    if c.modal and not head.to:
        return head.en[0], "", tail
    if c.neg or question:
        return ("do", "does", "did")[form], head.en[0], tail
    return "", head.en[form], tail


def _english(c: Clause, order: str = "plain") -> str:
    parts = _parts(c, 0, _np_en)
    parts["auxiliary"], parts["verb"], parts["tail"] = _verbs_en(c, order == "question")
    parts["not"] = "not" if c.neg else ""
    parts["recipient"] = _np_en(c.to, "D") if c.to else ""
    parts["object"] = _np_en(c.obj, "A") if c.obj and c.gap != "obj" else ""
    parts["adjective"] = f"{lex.ADJECTIVE[c.adj].more[0]} than {_np_en(c.than, 'A')}" if c.than else c.adj
    return _in_order(parts, _EN[order])


# German ------------------------------------------------------------


def _noun_de(np: NP, case: str) -> str:
    noun = lex.NOUN[np.head]
    singular, plural = noun.de[0], noun.de[-1]
    if np.plural:
        return plural + "n" if case == "D" and plural[-1] not in "ns" else plural
    if noun.weak and case != "N":
        return plural
    return noun.genitive or singular if case == "G" else singular


def _np_de(np: NP, case: str, prep: str = "", negated: bool = False) -> str:
    """negated: with the determiner "kein"."""
    if np.head not in lex.NOUN:
        return f"{prep} {lex.HEAD[np.head].de['NAD'.index(case)]}"
    row, column = "NADG".index(case), 3 if np.plural else "mfn".index(lex.NOUN[np.head].gender[0])
    stem, table, after = lex.DETERMINER["no" if negated else np.det].de
    if np.owner and np.owner.head in lex.NAME:
        stem, table, after = np.owner.head + "s", "none", "strong"
    det = f"{prep} {stem}{_DE[table][row][column]}"
    adj = (lex.ADJECTIVE[np.adj].stem or lex.ADJECTIVE[np.adj].de) + _DE[after][row][column] if np.adj else ""
    text = f"{_DE['contractions'].get(det, det)} {adj} {_noun_de(np, case)}"
    if np.owner and np.owner.head in lex.NOUN:
        text += f" {_np_de(np.owner, 'G')}"
    if np.rel:
        role = "N" if np.rel.gap == "subj" else lex.VERB[np.rel.verb].case
        pronoun = "denen" if np.plural and role == "D" else _DE["der"]["NADG".index(role)][column]
        text += f" , {pronoun} {_german(np.rel, 'last')} ,"
    return text


def _verbs_de(c: Clause) -> tuple[str, str, str]:
    """Finite verb, the form or prefix that ends the clause, and the infinitive with "zu" in a clause of its own."""
    verb, head, zu = lex.VERB[c.verb], lex.VERB[c.modal or c.verb], ""
    finite, end = head.de_present, head.prefix
    if c.tense == "fut":
        finite, end = _DE["werden"], head.de[0]
    elif c.tense == "past" and head.de_past:
        finite = head.de_past
    elif c.tense == "past":
        finite, end = lex.VERB["be"].de_present if head.sein else _DE["haben"], head.de[1]
    if head.zu:
        zu = verb.de[2]
    elif c.modal:
        end = verb.de[0]
    return finite[c.subj.index], end, zu


def _german(c: Clause, order: str = "plain") -> str:
    parts, verb, obj = _parts(c, 1, _np_de), lex.VERB[c.verb], c.obj if c.gap != "obj" else None
    parts["progressive"] = "gerade" if c.tense == "prog" else ""
    parts["not"] = "nicht" if c.neg else ""
    if c.to:
        parts["to_pronoun" if c.to.head in lex.PRONOUN else "to"] = _np_de(c.to, "D")
    if obj and obj.indefinite and c.neg and not verb.de_prep:
        parts["new"], parts["not"] = _np_de(obj, verb.case, negated=True), ""
    elif obj:
        name = "pronoun" if obj.head in lex.PRONOUN else "known"
        name = "new" if verb.de_prep or obj.indefinite else name
        parts[name] = _np_de(obj, verb.case, verb.de_prep)
    if c.adj:
        adj = lex.ADJECTIVE[c.adj]
        parts["adjective"] = f"{adj.more[1]} als {_np_de(c.than, 'N')}" if c.than else adj.de
    finite, end, zu = _verbs_de(c)
    parts["middle"] = _in_order(parts, _DE["middle"])
    if zu:
        parts["after"], parts["middle"] = f", {parts['middle']} {zu} ,", ""
    if order == "last" and end == verb.prefix:
        finite, end = end + finite, ""
    parts["finite"], parts["end"] = finite, end
    return _in_order(parts, _DE["first" if c.front and order == "plain" else order])


# French ------------------------------------------------------------


def _adj_fr(adj: str, np: NP, before: str = " ") -> str:
    forms, column = lex.ADJECTIVE[adj].fr, (np.gender == "f") + 2 * (np.index > 2)
    return forms[4] if column == 0 and len(forms) > 4 and before[0] in _FR["vowels"] else forms[column]


def _np_fr(np: NP, case: str = "", prep: str = "", negated: bool = False) -> str:
    """case: "N", "A" or "D" for a pronoun before the verb, "" for a stressed one; negated: "de" for an article."""
    if np.head not in lex.NOUN:
        return f"{prep} {lex.HEAD[np.head].fr['NAD'.index(case) if case and not prep else 3]}"
    word, before = lex.NOUN[np.head].fr[np.plural], np.adj and lex.ADJECTIVE[np.adj].before
    pre = _adj_fr(np.adj, np, word) if before else ""
    post = _adj_fr(np.adj, np) if np.adj and not before else ""
    column = 2 if np.plural else (np.gender == "f") + 3 * ((pre or word)[0] in _FR["vowels"])
    de = negated and np.det in ("a", "bare") or np.plural and np.det == "bare" and pre
    det = f"{prep} {lex.DETERMINER['no' if de else np.det].fr[column]}"
    text = f"{_FR['contractions'].get(det, det) if column < 3 else det} {pre} {word} {post}"
    if np.owner:
        text += f" {_np_fr(np.owner, prep='de')}"
    if np.rel:
        text += f" {'qui' if np.rel.gap == 'subj' else 'que'} {_french(np.rel)}"
    return text


def _participle(c: Clause) -> str:
    verb = lex.VERB[c.verb]
    # With avoir it agrees with an object that stands before it.
    earlier = c.obj and not verb.fr_prep and (c.gap == "obj" or c.obj.head in lex.PRONOUN)
    agrees = c.subj if verb.être else c.obj if earlier else None
    if not agrees:
        return verb.fr[1]
    word = verb.fr[1] + "e" * (agrees.gender == "f")
    return word + "s" * (agrees.index > 2 and word[-1] != "s")


def _verbs_fr(c: Clause) -> tuple[str, str, str, str]:
    """Finite verb, participle, and the infinitive with what links it."""
    verb, head, be = lex.VERB[c.verb], lex.VERB[c.modal or c.verb], lex.VERB["be"]
    finite, participle, link, infinitive = head.fr_present, "", "", ""
    if c.modal:
        link, infinitive = head.fr_prep, verb.fr[0]
    if c.tense == "past" and head.fr_past:
        finite = head.fr_past
    elif c.tense == "past":
        finite = be.fr_present if head.être else _FR["avoir"]
        participle = head.fr[1] if c.modal else _participle(c)
    elif c.tense == "fut" and not c.modal:
        finite = [head.fr[2] + ending for ending in _FR["future"]]
    elif c.tense == "prog" and not c.modal:
        finite, link, infinitive = be.fr_present, "en train de", verb.fr[0]
    return finite[c.subj.index], participle, link, infinitive


def _french(c: Clause, order: str = "plain") -> str:
    parts, prep, obj = _parts(c, 2, _np_fr), lex.VERB[c.verb].fr_prep, c.obj if c.gap != "obj" else None
    parts["front"] += " ," if c.front else ""
    parts["finite"], parts["participle"], parts["link"], parts["infinitive"] = _verbs_fr(c)
    parts["ne"] = "ne" if c.negative else ""
    parts["often"] = "pas" if c.neg else parts["often"]
    clitic = "inner" if parts["infinitive"] else "clitic"
    if obj and obj.head in lex.PRONOUN and prep in ("", "à!"):
        parts[clitic] = _np_fr(obj, "D" if prep else "A")
    elif obj:
        parts["object"] = _np_fr(obj, "A", prep.rstrip("!"), not prep and c.negative)
    if c.to and c.to.head in lex.PRONOUN:
        parts[clitic] = _np_fr(c.to, "D")
    elif c.to:
        # After a relative clause the person would seem to belong to that clause.
        parts["to_before" if obj and obj.rel else "to"] = _np_fr(c.to, "D", "à")
    if c.adj:
        adj = _adj_fr(c.adj, c.subj)
        parts["adjective"] = f"plus {adj} que {_np_fr(c.than)}" if c.than else adj
    return _in_order(parts, _FR[order])
