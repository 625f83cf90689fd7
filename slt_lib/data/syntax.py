"""The rules of the grammar corpus: agreement, case and word order of English, German and French.

`render` turns an abstract `lexicon.Sentence` into one sentence per language, without a random choice.
"""

import re

from slt_lib.data import lexicon as lex
from slt_lib.data.lexicon import NP, Clause, Sentence

_VOWELS = "aeiouhâàéèêîôœ"
_ELIDE = re.compile(rf"(?<![\w'-])(je|me|te|le|la|de|ne|que) (?=[{_VOWELS}{_VOWELS.upper()}])(?!huit\b)")


def render(sentence: Sentence) -> tuple[str, str, str]:
    """The sentence in English, German and French."""
    first, second = (*sentence.clauses, None)[:2]
    word, ends = sentence.word, "..."
    en, de, fr = _english(first), _german(first), _french(first)
    match sentence.kind:
        case "question":
            ask_en, ask_de, ask_fr = lex.QUESTION[word]
            en, de, fr = _english(first, ask_en), _german(first, "first", ask_de), f"{ask_fr} est-ce que {fr}"
            ends = "?", "?", " ?"
        case "because":
            en += f" because {_english(second)}"
            de += f" , weil {_german(second, 'last')}"
            fr += f" parce que {_french(second)}"
        case "that":
            subj, verb = sentence.speaker, lex.SAYING[word]
            en = f"{_np_en(subj)} {verb.en[subj.index == 2]} that {en}"
            de = f"{_np_de(subj, 'N')} {verb.de[subj.index]} , dass {_german(first, 'last')}"
            fr = f"{_np_fr(subj)} {verb.fr[subj.index]} que {fr}"
        case "when":
            en = f"{word} {en} , {_english(second)}"
            de = f"wenn {_german(first, 'last')} , {_german(second, 'first')}"
            fr = f"{'si' if word == 'if' else 'quand'} {fr} , {_french(second)}"
        case "but":
            en += f" , but {_english(second)}"
            de += f" , aber {_german(second)}"
            fr += f" , mais {_french(second)}"
    # A subordinate clause ends with a comma, and so may the clause around it.
    en, de, fr = (re.sub(r"(?: ,)+", ",", " ".join(text.split())).rstrip(",") for text in (en, de, fr))
    en = re.sub(r"\ba (?=[aeiou])", "an ", en).replace("can not", "cannot")
    fr = re.sub(r"\bsi (?=ils?\b)", "s'", _ELIDE.sub(lambda match: match[1][:-1] + "'", fr))
    en, de, fr = (text[0].upper() + text[1:] + end for text, end in zip((en, de, fr), ends, strict=True))
    return en, de, fr


def _np_en(np: NP, case: int = 0) -> str:
    if np.head not in lex.NOUN:
        return lex.PRONOUN[np.head].en[case] if np.head in lex.PRONOUN else np.head
    if np.owner:
        det = _np_en(np.owner) + "'s"
    elif np.det in lex.PRONOUN:
        det = lex.PRONOUN[np.det].en[2]
    else:
        det = {"bare": "", "this": "these" if np.plural else "this"}.get(np.det, np.det)
    text = f"{det} {np.adj} {lex.NOUN[np.head].en[np.plural]}"
    if np.rel:
        text += f" {'who' if np.kind in 'PK' and np.rel.gap == 'subj' else 'that'} {_english(np.rel)}"
    return text


def _verbs_en(c: Clause, question: bool) -> tuple[str, str, str]:
    """Auxiliary, main verb and what follows it: an infinitive, a particle."""
    index = c.subj.index
    if c.verb == "be":
        return ("will", "be", "") if c.tense == "fut" else (lex.ENGLISH["be"][c.tense][index], "", "")
    verb, modal = lex.VERB[c.verb], lex.MODAL.get(c.modal)
    forms, tail = (modal.en, f"{modal.to} {verb.en[0]} {verb.particle}") if modal else (verb.en, verb.particle)
    third = index == 2 and c.tense == "pres"
    if c.tense == "fut":
        return "will", forms[0], tail
    if c.tense == "prog":
        return lex.ENGLISH["be"]["pres"][index], forms[3], tail
    if modal and not modal.to:
        return forms[0], "", tail
    if c.neg or question:
        return "did" if c.tense == "past" else "does" if third else "do", forms[0], tail
    return "", forms[2] if c.tense == "past" else forms[third], tail


def _english(c: Clause, ask: str | None = None) -> str:
    """ask: the question word of a question, "" for yes or no."""
    subj = "" if c.gap == "subj" else _np_en(c.subj)
    aux, main, tail = _verbs_en(c, ask is not None)
    start = [c.time[0] if c.front else "", subj, aux, "not" if c.neg else ""] if ask is None else [ask, aux, subj]
    words = [*start, *c.often[:1], main, tail]
    words += [_np_en(c.to, 1) if c.to else "", _np_en(c.obj, 1) if c.obj and c.gap != "obj" else ""]
    words += [lex.ADJECTIVE[c.adj].more[0], "than", _np_en(c.than, 1)] if c.than else [c.adj]
    words += c.manner[:1]
    if c.place:
        words += [lex.NOUN[c.place.head].at[0], _np_en(c.place)]
    return " ".join([*words, *(() if c.front else c.time[:1])])


def _np_de(np: NP, case: str, prep: str = "", kein: bool = False) -> str:
    if np.head not in lex.NOUN:
        return f"{prep} {lex.PRONOUN[np.head].de['NAD'.index(case)] if np.head in lex.PRONOUN else np.head}"
    noun = lex.NOUN[np.head]
    column = 3 if np.plural else "mfn".index(noun.gender[0])

    def ending(table: str, case: str = case) -> str:
        return lex.GERMAN[table]["NADG".index(case)][column] if table else ""

    if np.owner and np.owner.head in lex.NAMES:
        stem, table, after = np.owner.head + "s", "", "strong"
    elif np.det in lex.PRONOUN:
        stem, table, after = lex.PRONOUN[np.det].de[3], "ein", "mixed"
    else:
        bare = [lex.NUMBER[np.det][1] if np.det in lex.NUMBER else "", "", "strong"]
        stem, table, after = lex.GERMAN["determiners"].get("kein" if kein else np.det, bare)
    det = f"{prep} {stem}{ending(table)}"
    adj = (lex.ADJECTIVE[np.adj].stem or lex.ADJECTIVE[np.adj].de) + ending(after) if np.adj else ""
    text = f"{lex.GERMAN['contractions'].get(det, det)} {adj} {noun.german(np.plural, case)}"
    if np.owner and np.owner.head in lex.NOUN:
        text += f" {_np_de(np.owner, 'G')}"
    if np.rel:
        role = "N" if np.rel.gap == "subj" else lex.VERB[np.rel.verb].case
        text += f" , {'denen' if np.plural and role == 'D' else ending('der', role)} {_german(np.rel, 'last')} ,"
    return text


def _verbs_de(c: Clause) -> tuple[str, str, str]:
    """Finite verb, the end of the verbal bracket, and the infinitive with zu that follows in a clause of its own."""
    verb, modal, zu = lex.VERB.get(c.verb), lex.MODAL.get(c.modal), ""
    if not verb:
        finite, end = (lex.GERMAN["werden"], "sein") if c.tense == "fut" else (lex.GERMAN["sein"][c.tense], "")
    elif c.tense == "fut":
        finite, end = lex.GERMAN["werden"], verb.de[0]
    elif modal:
        zu, past = verb.de[2] if modal.zu else "", c.tense == "past"
        finite, end = (lex.GERMAN["haben"], modal.de[1]) if past else (modal.de_present, "" if zu else verb.de[0])
    elif c.tense == "past":
        finite, end = lex.GERMAN["sein"]["pres"] if verb.sein else lex.GERMAN["haben"], verb.de[1]
    else:
        finite, end = verb.de_present, verb.prefix
    return finite[c.subj.index], end, zu


def _middle_de(c: Clause) -> str:
    """What stands between the two parts of the verb."""
    verb, obj, words = lex.VERB.get(c.verb), c.obj if c.gap != "obj" else None, []
    kein = bool(c.neg and obj and obj.indefinite and not verb.de_prep)
    to = [_np_de(c.to, "D")] if c.to else []
    if c.to and c.to.head in lex.PRONOUN:
        words, to = to, []
    if obj and obj.head in lex.PRONOUN and not verb.de_prep:
        words.append(_np_de(obj, verb.case))
        obj = None
    words += [*(() if c.front else c.time[1:2]), *c.often[1:2], "gerade" if c.tense == "prog" else "", *to]
    adverbs = ["nicht" if c.neg and not kein else "", *c.manner[1:2]]
    objects = [_np_de(obj, verb.case, verb.de_prep, kein)] if obj else []
    words += adverbs + objects if obj and (verb.de_prep or obj.indefinite) else objects + adverbs
    if c.place:
        words.append(_np_de(c.place, "D", lex.NOUN[c.place.head].at[1]))
    if c.adj:
        adj = lex.ADJECTIVE[c.adj]
        words += [adj.more[1], "als", _np_de(c.than, "N")] if c.than else [adj.de]
    return " ".join(words)


def _german(c: Clause, order: str = "second", front: str = "") -> str:
    """order: position of the finite verb, "second", "first" (after `front`, if given) or "last"."""
    subj = "" if c.gap == "subj" else _np_de(c.subj, "N")
    finite, end, zu = _verbs_de(c)
    middle, after = _middle_de(c), ""
    if zu:
        middle, after = "", f", {middle} {zu} ,"
    if order == "last":
        glue = "" if end and c.verb != "be" and end == lex.VERB[c.verb].prefix else " "
        return f"{subj} {middle} {end}{glue}{finite} {after}"
    front = front or (c.time[1] if c.front else "")
    start = f"{front} {finite} {subj}" if order == "first" or front else f"{subj} {finite}"
    return f"{start} {middle} {end} {after}"


def _adj_fr(adj: str, np: NP, before: str = " ") -> str:
    forms, column = lex.ADJECTIVE[adj].fr, (np.gender == "f") + 2 * (np.index > 2)
    return forms[4] if column == 0 and len(forms) > 4 and before[0] in _VOWELS else forms[column]


def _np_fr(np: NP, prep: str = "", negated: bool = False) -> str:
    if np.head not in lex.NOUN:
        return f"{prep} {lex.PRONOUN[np.head].fr[3 if prep else 0] if np.head in lex.PRONOUN else np.head}"
    word, before = lex.NOUN[np.head].fr[np.plural], np.adj and lex.ADJECTIVE[np.adj].before
    pre = _adj_fr(np.adj, np, word) if before else ""
    post = _adj_fr(np.adj, np) if np.adj and not before else ""
    column = 2 if np.plural else (np.gender == "f") + (3 if (pre or word)[0] in _VOWELS else 0)
    if negated and np.det in ("a", "bare") or np.plural and np.det == "bare" and pre:
        det = "de"
    elif np.det in lex.PRONOUN:
        det = lex.PRONOUN[np.det].fr[4 + (column if column < 3 else 0)]
    else:
        det = lex.FRENCH["determiners"][np.det][column] if np.det not in lex.NUMBER else lex.NUMBER[np.det][2]
    det = f"{prep} {det}"
    text = f"{lex.FRENCH['contractions'].get(det, det) if column < 3 else det} {pre} {word} {post}"
    if np.owner:
        text += f" {_np_fr(np.owner, 'de')}"
    if np.rel:
        text += f" {'qui' if np.rel.gap == 'subj' else 'que'} {_french(np.rel)}"
    return text


def _verbs_fr(c: Clause, clitic: str) -> list[str]:
    """The verbs, the negation or adverb of frequency, and the pronoun of the object."""
    index, verb, modal = c.subj.index, lex.VERB.get(c.verb), lex.MODAL.get(c.modal)
    ne, often = "ne" if c.neg or c.never else "", "pas" if c.neg else "".join(c.often[2:])
    être, avoir = lex.FRENCH["être"], lex.FRENCH["avoir"]
    if not verb:
        return [ne, être[c.tense][index], often]
    if modal:
        finite, participle = (avoir, modal.fr[1]) if c.tense == "past" else (modal.fr_present, "")
        return [ne, finite[index], often, participle, modal.fr_prep, clitic, verb.fr[0]]
    if c.tense == "prog":
        return [être["pres"][index], "en train de", clitic, verb.fr[0]]
    if c.tense == "past":
        # With avoir the participle agrees with an object that stands before it.
        earlier = c.obj and not verb.fr_prep and (c.gap == "obj" or c.obj.head in lex.PRONOUN)
        participle, agrees = verb.fr[1], c.subj if verb.être else c.obj if earlier else None
        if agrees:
            participle += "e" * (agrees.gender == "f")
            participle += "s" * (agrees.index > 2 and participle[-1] != "s")
        return [ne, clitic, (être["pres"] if verb.être else avoir)[index], often, participle]
    finite = verb.fr[2] + lex.FRENCH["future"][index] if c.tense == "fut" else verb.fr_present[index]
    return [ne, clitic, finite, often]


def _french(c: Clause) -> str:
    prep = lex.VERB[c.verb].fr_prep if c.verb != "be" else ""
    obj, clitic, arguments = c.obj if c.gap != "obj" else None, "", []
    if obj and obj.head in lex.PRONOUN and prep in ("", "à!"):
        clitic = lex.PRONOUN[obj.head].fr[2 if prep else 1]
    elif obj:
        arguments.append(_np_fr(obj, prep.rstrip("!"), not prep and (c.neg or c.never)))
    if c.to and c.to.head in lex.PRONOUN:
        clitic = lex.PRONOUN[c.to.head].fr[2]
    elif c.to:
        # After a relative clause the person would seem to belong to that clause.
        arguments.insert(0 if obj and obj.rel else 1, _np_fr(c.to, "à"))
    subj = "" if c.gap == "subj" else _np_fr(c.subj)
    words = [f"{c.time[2]} ," if c.front else "", subj, *_verbs_fr(c, clitic), *arguments]
    if c.adj:
        adj = _adj_fr(c.adj, c.subj)
        words += ["plus", adj, "que", _np_fr(c.than, " ")] if c.than else [adj]
    words += c.manner[2:]
    if c.place:
        words.append(_np_fr(c.place, lex.NOUN[c.place.head].at[2]))
    return " ".join([*words, *(() if c.front else c.time[2:])])
