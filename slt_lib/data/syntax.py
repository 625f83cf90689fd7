"""The rules of the grammar corpus: agreement, case and word order of English, German and French.

`render` turns an abstract `lexicon.Sentence` into one sentence per language, without a random choice. The rules of a
language fill the parts of a clause; grammar.yaml says in which order they stand.
"""

import re
from collections import defaultdict

from slt_lib.data.lexicon import (
    ADJECTIVE,
    DATA,
    DETERMINER,
    HEAD,
    MODAL,
    NAME,
    NOUN,
    NP,
    PRONOUN,
    VERB,
    Clause,
    Sentence,
)

_EN, _DE, _FR = DATA["english"], DATA["german"], DATA["french"]


def render(sentence: Sentence) -> tuple[str, str, str]:
    """The sentence in English, German and French."""
    forms, clauses = DATA["sentences"], sentence.spoken
    en, de, fr = forms.get(f"{sentence.kind} {sentence.word}", forms[sentence.kind])
    return _text(en, clauses, _english, _EN), _text(de, clauses, _german, _DE), _text(fr, clauses, _french, _FR)


def _text(template: str, clauses: tuple[Clause, ...], rule, language: dict) -> str:
    text = re.sub(r"{(\d) ?(\w*)}", lambda part: rule(clauses[int(part[1])], part[2] or "plain").strip(), template)
    # A subordinate clause ends with a comma, and so may the clause around it.
    text = re.sub(r"[ ,]*,", ",", " ".join(text.split()))
    text = re.sub(r",(?= ?[.?]$)", "", text)
    for pattern, replacement in language["spelling"].items():
        text = re.sub(pattern, replacement, text)
    return text[0].upper() + text[1:]


def _parts(c: Clause, language: int) -> defaultdict[str, str]:
    """The adverbials of a clause, to which the rules of a language add the other parts."""
    time, often, manner = ("".join(words[language : language + 1]) for words in (c.time, c.often, c.manner))
    return defaultdict(str, {"front" if c.front else "time": time, "often": often, "manner": manner})


def _in_order(parts: defaultdict[str, str], order: str) -> str:
    return " ".join(parts[name] for name in order.split())


# English ------------------------------------------------------------


def _np_en(np: NP, case: int = 0) -> str:
    """case: 0 for a subject, 1 for an object."""
    if np.head not in NOUN:
        return HEAD[np.head].en[case]
    det = _np_en(np.owner) + "'s" if np.owner else DETERMINER[np.det].en[np.plural]
    text = f"{det} {np.adj} {NOUN[np.head].en[np.plural]}"
    if np.rel:
        text += f" {'who' if np.kind in 'PK' and np.rel.gap == 'subj' else 'that'} {_english(np.rel)}"
    return text


def _verbs_en(c: Clause, question: bool) -> tuple[str, str, str]:
    """Auxiliary, main verb and what follows it: an infinitive, a particle."""
    index, verb, modal = c.subj.index, VERB[c.verb], MODAL.get(c.modal)
    forms, tail = (modal.en, f"{modal.to} {verb.en[0]} {verb.particle}") if modal else (verb.en, verb.particle)
    form = 2 if c.tense == "past" else int(index == 2)
    if c.tense == "fut":
        return "will", forms[0], tail
    if c.tense == "prog":
        return _EN["be"]["pres"][index], forms[3], tail
    if c.verb == "be":
        return _EN["be"][c.tense][index], "", ""
    if modal and not modal.to:
        return forms[0], "", tail
    if c.neg or question:
        return ("do", "does", "did")[form], forms[0], tail
    return "", forms[form], tail


def _english(c: Clause, order: str = "plain") -> str:
    parts = _parts(c, 0)
    parts["subject"] = "" if c.gap == "subj" else _np_en(c.subj)
    parts["auxiliary"], parts["verb"], parts["tail"] = _verbs_en(c, order == "question")
    parts["not"] = "not" if c.neg else ""
    parts["recipient"] = _np_en(c.to, 1) if c.to else ""
    parts["object"] = _np_en(c.obj, 1) if c.obj and c.gap != "obj" else ""
    parts["adjective"] = f"{ADJECTIVE[c.adj].more[0]} than {_np_en(c.than, 1)}" if c.than else c.adj
    parts["place"] = f"{NOUN[c.place.head].at[0]} {_np_en(c.place)}" if c.place else ""
    return _in_order(parts, _EN[order])


# German ------------------------------------------------------------


def _noun_de(np: NP, case: str) -> str:
    noun = NOUN[np.head]
    singular, plural = noun.de[0], noun.de[-1]
    if np.plural:
        return plural + "n" if case == "D" and plural[-1] not in "ns" else plural
    if noun.weak and case != "N":
        return plural
    return noun.genitive or singular if case == "G" else singular


def _np_de(np: NP, case: str, prep: str = "", negated: bool = False) -> str:
    """case: N, A, D or G; negated: with "kein"."""
    if np.head not in NOUN:
        return f"{prep} {HEAD[np.head].de['NAD'.index(case)]}"
    column = 3 if np.plural else "mfn".index(NOUN[np.head].gender[0])
    row = "NADG".index(case)
    stem, table, after = DETERMINER["no" if negated else np.det].de
    if np.owner and np.owner.head in NAME:
        stem, table, after = np.owner.head + "s", "none", "strong"
    det = f"{prep} {stem}{_DE[table][row][column]}"
    adj = (ADJECTIVE[np.adj].stem or ADJECTIVE[np.adj].de) + _DE[after][row][column] if np.adj else ""
    text = f"{_DE['contractions'].get(det, det)} {adj} {_noun_de(np, case)}"
    if np.owner and np.owner.head in NOUN:
        text += f" {_np_de(np.owner, 'G')}"
    if np.rel:
        role = "N" if np.rel.gap == "subj" else VERB[np.rel.verb].case
        pronoun = "denen" if np.plural and role == "D" else _DE["der"]["NADG".index(role)][column]
        text += f" , {pronoun} {_german(np.rel, 'last')} ,"
    return text


def _verbs_de(c: Clause) -> tuple[str, str, str]:
    """Finite verb, the end of the verbal bracket, and the infinitive with zu that follows in a clause of its own."""
    verb, modal, past = VERB[c.verb], MODAL.get(c.modal), c.tense == "past"
    zu = verb.de[2] if modal and modal.zu else ""
    if c.tense == "fut":
        finite, end = _DE["werden"], verb.de[0]
    elif modal:
        finite, end = (_DE["haben"], modal.de[1]) if past else (modal.de_present, "" if zu else verb.de[0])
    elif past and verb.de_past:
        finite, end = verb.de_past, ""
    elif past:
        finite, end = VERB["be"].de_present if verb.sein else _DE["haben"], verb.de[1]
    else:
        finite, end = verb.de_present, verb.prefix
    return finite[c.subj.index], end, zu


def _german(c: Clause, order: str = "plain") -> str:
    parts, verb, obj = _parts(c, 1), VERB[c.verb], c.obj if c.gap != "obj" else None
    parts["subject"] = "" if c.gap == "subj" else _np_de(c.subj, "N")
    parts["progressive"] = "gerade" if c.tense == "prog" else ""
    parts["not"] = "nicht" if c.neg else ""
    if c.to:
        parts["to_pronoun" if c.to.head in PRONOUN else "to"] = _np_de(c.to, "D")
    if obj and (verb.de_prep or obj.indefinite):
        negated = c.neg and not verb.de_prep
        parts["new"] = _np_de(obj, verb.case, verb.de_prep, negated)
        parts["not"] = "" if negated else parts["not"]
    elif obj:
        parts["pronoun" if obj.head in PRONOUN else "known"] = _np_de(obj, verb.case)
    if c.place:
        parts["place"] = _np_de(c.place, "D", NOUN[c.place.head].at[1])
    if c.adj:
        adj = ADJECTIVE[c.adj]
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
    forms, column = ADJECTIVE[adj].fr, (np.gender == "f") + 2 * (np.index > 2)
    return forms[4] if column == 0 and len(forms) > 4 and before[0] in _FR["vowels"] else forms[column]


def _np_fr(np: NP, prep: str = "", negated: bool = False) -> str:
    if np.head not in NOUN:
        return f"{prep} {HEAD[np.head].fr[3 if prep else 0]}"
    word, before = NOUN[np.head].fr[np.plural], np.adj and ADJECTIVE[np.adj].before
    pre = _adj_fr(np.adj, np, word) if before else ""
    post = _adj_fr(np.adj, np) if np.adj and not before else ""
    column = 2 if np.plural else (np.gender == "f") + 3 * ((pre or word)[0] in _FR["vowels"])
    de = negated and np.det in ("a", "bare") or np.plural and np.det == "bare" and pre
    det = f"{prep} {DETERMINER['no' if de else np.det].fr[column]}"
    text = f"{_FR['contractions'].get(det, det) if column < 3 else det} {pre} {word} {post}"
    if np.owner:
        text += f" {_np_fr(np.owner, 'de')}"
    if np.rel:
        text += f" {'qui' if np.rel.gap == 'subj' else 'que'} {_french(np.rel)}"
    return text


def _participle(c: Clause) -> str:
    verb = VERB[c.verb]
    # With avoir it agrees with an object that stands before it.
    earlier = c.obj and not verb.fr_prep and (c.gap == "obj" or c.obj.head in PRONOUN)
    agrees = c.subj if verb.être else c.obj if earlier else None
    if not agrees:
        return verb.fr[1]
    feminine = verb.fr[1] + "e" * (agrees.gender == "f")
    return feminine + "s" * (agrees.index > 2 and feminine[-1] != "s")


def _verbs_fr(c: Clause) -> tuple[str, str, str, str]:
    """Finite verb, participle, and the infinitive with what links it."""
    verb, modal, past = VERB[c.verb], MODAL.get(c.modal), c.tense == "past"
    finite, participle, link, infinitive = verb.fr_present, "", "", ""
    if modal:
        finite, participle = (_FR["avoir"], modal.fr[1]) if past else (modal.fr_present, "")
        link, infinitive = modal.fr_prep, verb.fr[0]
    elif c.tense == "prog":
        finite, link, infinitive = VERB["be"].fr_present, "en train de", verb.fr[0]
    elif past and verb.fr_past:
        finite = verb.fr_past
    elif past:
        finite, participle = VERB["be"].fr_present if verb.être else _FR["avoir"], _participle(c)
    elif c.tense == "fut":
        finite = [verb.fr[2] + ending for ending in _FR["future"]]
    return finite[c.subj.index], participle, link, infinitive


def _french(c: Clause, order: str = "plain") -> str:
    parts, prep, obj = _parts(c, 2), VERB[c.verb].fr_prep, c.obj if c.gap != "obj" else None
    parts["subject"] = "" if c.gap == "subj" else _np_fr(c.subj)
    parts["front"] += " ," if c.front else ""
    parts["finite"], parts["participle"], parts["link"], parts["infinitive"] = _verbs_fr(c)
    parts["ne"] = "ne" if c.negative else ""
    parts["often"] = "pas" if c.neg else parts["often"]
    clitic = "inner" if parts["infinitive"] else "clitic"
    if obj and obj.head in PRONOUN and prep in ("", "à!"):
        parts[clitic] = PRONOUN[obj.head].fr[2 if prep else 1]
    elif obj:
        parts["object"] = _np_fr(obj, prep.rstrip("!"), not prep and c.negative)
    if c.to and c.to.head in PRONOUN:
        parts[clitic] = PRONOUN[c.to.head].fr[2]
    elif c.to:
        # After a relative clause the person would seem to belong to that clause.
        parts["to_before" if obj and obj.rel else "to"] = _np_fr(c.to, "à")
    if c.adj:
        adj = _adj_fr(c.adj, c.subj)
        parts["adjective"] = f"plus {adj} que {_np_fr(c.than, ' ')}" if c.than else adj
    parts["place"] = _np_fr(c.place, NOUN[c.place.head].at[2]) if c.place else ""
    return _in_order(parts, _FR[order])
