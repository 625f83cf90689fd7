import dataclasses
import functools
import gzip
import hashlib
import http.server
import json
import operator
import os
import re
import threading
from pathlib import Path

import pytest
import requests

from slt_lib.base.errors import InputError
from slt_lib.data import corpora
from slt_lib.data import grammar as g
from slt_lib.data.lexicon import NOUN, NP, PRONOUN, Clause, Sentence
from slt_lib.data.syntax import render

ME, YOU, HE, SHE, WE, THEY = (NP(word) for word in ("I", "you", "he", "she", "we", "they"))
ANNA, PAUL = NP("Anna"), NP("Paul")
SHARED = Path(__file__).parents[2] / "shared" / "data"
YESTERDAY = ("yesterday", "gestern", "hier")


def said(*clauses, kind="statement", **rest):
    return render(Sentence(kind, clauses, **rest))


# Checked by hand, each for what stands beside it.
SENTENCES = [
    # V2 after an adverbial, separable verb; French comma
    (
        said(Clause(NP("man"), "open", NP("door"), time=("today", "heute", "aujourd'hui"), front=True)),
        "Today the man opens the door.",
        "Heute macht der Mann die Tür auf.",
        "Aujourd'hui, l'homme ouvre la porte.",
    ),
    # Perfect with sein and with être, which agrees
    (
        said(Clause(NP("girl", plural=True), "come back", tense="past", time=YESTERDAY)),
        "The girls came back yesterday.",
        "Die Mädchen sind gestern zurückgekommen.",
        "Les filles sont revenues hier.",
    ),
    # kein, pas de; do-support; mixed adjective ending
    (
        said(Clause(HE, "read", NP("letter", "a", adj="long"), neg=True)),
        "He does not read a long letter.",
        "Er liest keinen langen Brief.",
        "Il ne lit pas de longue lettre.",
    ),
    # nicht after a definite object, before the participle; the clitic asks the participle to agree
    (
        said(Clause(ME, "invite", SHE, tense="past", neg=True)),
        "I did not invite her.",
        "Ich habe sie nicht eingeladen.",
        "Je ne l'ai pas invitée.",
    ),
    # Dative before accusative, weak noun, strong plural; French order, à + le
    (
        said(Clause(WE, "give", NP("apple", "two", True, "red"), NP("boy", adj="small"))),
        "We give the small boy two red apples.",
        "Wir geben dem kleinen Jungen zwei rote Äpfel.",
        "Nous donnons deux pommes rouges au petit garçon.",
    ),
    # Mass nouns: strong singular ending, partitive with elision
    (
        said(Clause(NP("horse", plural=True), "buy", NP("water", "bare", adj="cold"), modal="want")),
        "The horses want to buy cold water.",
        "Die Pferde wollen kaltes Wasser kaufen.",
        "Les chevaux veulent acheter de l'eau froide.",
    ),
    # Verb last, and with zu inside a separable verb; essayer de + clitic, which never contracts
    (
        said(Clause(THEY, "laugh"), Clause(SHE, "call", HE, modal="try"), kind="because"),
        "They laugh because she tries to call him.",
        "Sie lachen, weil sie versucht, ihn anzurufen.",
        "Ils rient parce qu'elle essaie de l'appeler.",
    ),
    # Commas of clauses that close together don't pile up
    (
        said(
            Clause(NP("man", rel=Clause(NP("man"), "open", NP("box", "she"), modal="try", gap="subj")), "sleep"),
            Clause(NP("dog", "every"), "run"),
            word="when",
            kind="when",
        ),
        "When the man who tries to open her box sleeps, every dog runs.",
        "Wenn der Mann, der versucht, ihre Kiste aufzumachen, schläft, läuft jeder Hund.",
        "Quand l'homme qui essaie d'ouvrir sa boîte dort, chaque chien court.",
    ),
    # Relative clause on the object: den, and French agreement with what went before
    (
        said(
            Clause(
                NP("flower", plural=True, rel=Clause(ANNA, "buy", NP("flower", plural=True), tense="past", gap="obj")),
                "be",
                adj="beautiful",
            )
        ),
        "The flowers that Anna bought are beautiful.",
        "Die Blumen, die Anna gekauft hat, sind schön.",
        "Les fleurs qu'Anna a achetées sont belles.",
    ),
    # Dative plural of the relative pronoun and of the noun; cet before a vowel
    (
        said(
            Clause(
                NP("child", "this"),
                "follow",
                NP("man", plural=True, rel=Clause(PAUL, "help", NP("man", plural=True), gap="obj")),
            )
        ),
        "This child follows the men that Paul helps.",
        "Dieses Kind folgt den Männern, denen Paul hilft.",
        "Cet enfant suit les hommes que Paul aide.",
    ),
    # Genitive of a weak and of a strong noun, of a name; de + le, elision
    (
        said(Clause(NP("dog", owner=NP("neighbor")), "look for", NP("hat", adj="new", owner=ANNA))),
        "The neighbor's dog looks for Anna's new hat.",
        "Der Hund des Nachbarn sucht Annas neuen Hut.",
        "Le chien du voisin cherche le nouveau chapeau d'Anna.",
    ),
    # The person before an object with a relative clause, in French too
    (
        said(Clause(HE, "bring", NP("letter", rel=Clause(SHE, "write", NP("letter"), gap="obj")), NP("judge"))),
        "He brings the judge the letter that she writes.",
        "Er bringt dem Richter den Brief, den sie schreibt.",
        "Il apporte au juge la lettre qu'elle écrit.",
    ),
    # Comparison; vieil and bel before a vowel are for the attribute only
    (
        said(
            Clause(NP("man", "this", adj="old"), "be", adj="beautiful", than=NP("uncle", "he")),
            word="know",
            speaker=YOU,
            kind="that",
        ),
        "You know that this old man is more beautiful than his uncle.",
        "Du weißt, dass dieser alte Mann schöner als sein Onkel ist.",
        "Tu sais que ce vieil homme est plus beau que son oncle.",
    ),
    # Contractions of place; progressive in a question; an
    (
        said(
            Clause(NP("actress", "a", adj="old"), "wait for", THEY, tense="prog", place=NP("station")), kind="question"
        ),
        "Is an old actress waiting for them at the station?",
        "Wartet eine alte Schauspielerin gerade auf sie am Bahnhof?",
        "Est-ce qu'une vieille actrice est en train de les attendre à la gare ?",
    ),
    # Future, if, inversion; s'il
    (
        said(
            Clause(HE, "be", adj="tired"),
            Clause(NP("child", "two", True), "go to", NP("market"), tense="fut"),
            word="if",
            kind="when",
        ),
        "If he is tired, two children will go to the market.",
        "Wenn er müde ist, werden zwei Kinder zum Markt gehen.",
        "S'il est fatigué, deux enfants iront au marché.",
    ),
    # Fronted question word; an adverb between the parts of the verb
    (
        said(
            Clause(YOU, "lose", NP("key", "you"), tense="past", often=("often", "oft", "souvent")),
            word="where",
            kind="question",
        ),
        "Where did you often lose your key?",
        "Wo hast du oft deinen Schlüssel verloren?",
        "Où est-ce que tu as souvent perdu ta clé ?",
    ),
    # never; mon before a feminine vowel
    (
        said(
            Clause(THEY, "answer", ME, often=("never", "nie", "jamais")),
            Clause(NP("nurse", "he"), "answer", THEY),
            kind="but",
        ),
        "They never answer me, but his nurse answers them.",
        "Sie antworten mir nie, aber seine Krankenschwester antwortet ihnen.",
        "Ils ne me répondent jamais, mais son infirmière leur répond.",
    ),
]


@pytest.mark.parametrize(("made", "en", "de", "fr"), SENTENCES, ids=[case[1] for case in SENTENCES])
def test_sentence(made, en, de, fr):
    assert made == (en, de, fr)


@pytest.fixture(scope="module")
def made():
    return g.generate({"test": 300, "dev": 300, "train": 4000}, seed=7)


def test_no_sentence_twice_in_any_language(made):
    assert {split: len(triples) for split, triples in made.items()} == {"test": 300, "dev": 300, "train": 4000}
    for side in range(3):
        sentences = [triple[side] for triples in made.values() for triple in triples]
        assert len(set(sentences)) == len(sentences)


def test_same_seed_same_sentences(made):
    assert g.generate({"test": 300, "dev": 300, "train": 4000}, seed=7) == made
    assert g.generate({"test": 300}, seed=8)["test"] != made["test"]


def test_first_split_does_not_depend_on_the_size_of_the_next(made):
    assert g.generate({"test": 300, "train": 10}, seed=7)["test"] == made["test"]


def test_sentences_are_well_formed(made):
    vowel = "[aeiouhâàéèêîôœAEIOUHÉ]"
    for triple in (triple for triples in made.values() for triple in triples):
        en, de, fr = triple
        assert all(2 <= len(text.split()) <= 30 for text in triple), triple
        assert all(re.fullmatch(r"[A-ZÀÉÊÜÄÖ][\w ,'-]+( \?|[.?])", text) for text in triple), triple
        assert not any(re.search(r"  | ,|,,|,[.?]|_", text) for text in triple), triple
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", en), en
        assert not re.search(rf"\b([JjLlMmTtDdNn]e|[Ll]a|[Qq]ue) (?!huit){vowel}|\b[Ss]i ils?\b", fr), fr
        assert not re.search(r"\b(in|an|zu|von) dem\b", de), de
        assert len({text[-1] for text in triple}) == 1, triple


def test_german_subordinate_verb_is_last(made):
    clauses = [re.split(", (?:weil|dass) ", de)[1] for _, de, _ in made["train"] if re.search(", (weil|dass) ", de)]
    lasts = {clause.rstrip(".").split()[-1] for clause in clauses if "," not in clause}
    assert len(clauses) > 500
    finite = {"ist", "hat", "wird", "kann", "muss", "war", "sind", "haben", "aufmacht"}
    assert finite <= lasts
    assert not lasts & {"aufgemacht", "gekauft", "gelesen", "auf", "zu"}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"test": 0}, "corpus grammar: test is 0; ask for 1 sentence or more"),
        (
            {"train": 1_000_000, "test": 1},
            "corpus grammar: 1,000,001 sentences asked for; it makes 1,000,000 at most, ask for fewer",
        ),
    ],
)
def test_grammar_counts(counts, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        g.generate(counts, 1)


def test_grammar_corpus():
    there, back = corpora.grammar("en-de", 50, 10, 20, seed=3), corpora.grammar("de-en", 50, 10, 20, seed=3)
    assert (len(there.train), len(there.dev), len(there.tests["test"])) == (50, 10, 20)
    assert there.languages == ("en", "de") and back.languages == ("de", "en")
    assert there.train.source == back.train.target and there.train.target == back.train.source
    assert there.digest == corpora.grammar("en-de", 50, 10, 20, seed=3).digest != back.digest
    assert there.digest != corpora.grammar("en-de", 50, 10, 20, seed=4).digest


def test_grammar_is_the_same_on_every_machine():
    # Runs are known by the bytes of their corpus: change this line only with the grammar.
    right = "8f8b24ece3abb78920d77e0d4f8e1595b4cd1f3896507b1e43c0b2febe278cab"
    assert corpora.grammar("en-de", 50, 10, 20, seed=3).digest == right


@pytest.mark.parametrize(
    ("counts", "seed", "right"),
    [
        ({"test": 20, "dev": 10, "train": 50}, 3, "cdba44c77d5ae6ff97beba5e43a11498ce5dc92a93964bbacb3fdcfb9815cc8d"),
        (
            {"test": 300, "dev": 300, "train": 4000},
            7,
            "8797480adb5833d27d577493bbaee03b48d5883d8795e7301a59a12ec0407db2",
        ),
        ({"train": 3000}, 0, "55788b72e6d6b050804aa5893af3aa295ca09178be5af9e5679ea742e2b753f4"),
        ({"b": 1000, "a": 1500}, 123456789, "b22e3bc78f5c84d6fbe413bfca80e2d9a96827889b88aaa371955ee95597d577"),
    ],
)
def test_grammar_makes_the_sentences_that_it_has_always_made(counts, seed, right):
    text = json.dumps(g.generate(counts, seed), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == right


@pytest.fixture(scope="module")
def structured():
    return g.generate({"train": 4000}, seed=7, structure=True)["train"]


def test_structure_leaves_the_sentences_as_they_are(structured):
    assert [triple for triple, _ in structured] == g.generate({"train": 4000}, seed=7)["train"]


def test_structure_of_each_kind_of_sentence(structured):
    types = {
        "statement": ["main"],
        "copula": ["main"],
        "question": ["main"],
        "because": ["main", "because"],
        "that": ["main", "that"],
        "when": [],
        "but": ["main", "main"],
    }
    assert {structure.kind for _, structure in structured} == set(types)
    for (en, de, _), structure in structured:
        found = [type for type, _ in structure.clauses if type != "relative"]
        assert found == (types[structure.kind] or [en.split()[0].lower(), "main"])
        assert de.count(", weil ") == found.count("because") and de.count(", dass ") == found.count("that")
        relative = [clause for type, clause in structure.clauses if type == "relative"]
        assert len(relative) == len(re.findall(r"\b(?:who|that)\b", en)) - found.count("that")
        assert all(bool(clause.gap) == (type == "relative") for type, clause in structure.clauses)
        roles = operator.attrgetter("subj", "to", "obj", "than", "place")
        owners = any(phrase.owner for _, clause in structure.clauses for phrase in roles(clause) if phrase)
        assert (structure.depth > 0) == (owners or {*found} != {"main"} or bool(relative))


def test_structure_tells_number_and_gender(structured):
    """The finite verb and the article of the text, which other code writes, agree with the structure."""
    verbs, articles = set(), set()
    for (en, de, _), structure in structured:
        if structure.kind != "statement" or len(structure.clauses) > 1:
            continue
        [(_, clause)] = structure.clauses
        noun = clause.subj
        if clause.tense == "prog" and noun.head not in PRONOUN:
            verb = re.search(r"\b(is|are)\b", en)[1]
            assert (verb == "are") == noun.plural
            verbs.add(verb)
        if noun.head in NOUN and (start := re.match(r"(Der|Die|Das) ", de)):
            gender = NOUN[noun.head].gender[0]
            right = "Die" if noun.plural else {"m": "Der", "f": "Die", "n": "Das"}[gender]
            assert start[1] == right, de
            articles.add(right + gender)
    assert verbs == {"is", "are"} and len(articles) >= 5


def test_structure_of_relative_clauses():
    owned = NP("dog", plural=True, owner=NP("neighbor"))
    actor = NP("man", plural=True, rel=Clause(NP("man", plural=True), "read", NP("letter", "a"), gap="subj"))
    flower = NP("flower", rel=Clause(ANNA, "buy", NP("flower"), tense="past", gap="obj"))
    main, reason = Clause(owned, "sleep", neg=True), Clause(actor, "give", flower, PAUL)
    found = g.Structure.of(Sentence("because", (main, reason)))
    assert found.clauses == (("main", main), ("because", reason), ("relative", actor.rel), ("relative", flower.rel))
    assert found.depth == 2 and g.Structure.of(Sentence("statement", (main,))).depth == 1


def test_digest_sees_every_byte_and_every_boundary():
    split = corpora.Split("dev", ("a b", "c"), ("d", "e"))
    others = [
        (("a b", "C"), ("d", "e")),
        (("a b", "c "), ("d", "e")),
        (("a", "bc"), ("d", "e")),
        (("a b", "c", "d"), ("e",)),
        (("c", "a b"), ("d", "e")),
        (("d", "e"), ("a b", "c")),
    ]
    digests = {corpora.Split("dev", *sides).digest for sides in others} | {split.digest}
    assert len(digests) == len(others) + 1
    assert dataclasses.replace(split, name="other").digest == split.digest
    corpus = corpora.Corpus("x", "en-de", split, split, {})
    assert corpus.digest == dataclasses.replace(corpus, tests={"test": split}).digest
    assert corpus.digest != dataclasses.replace(corpus, dev=corpora.Split("dev", *others[0])).digest


@pytest.mark.parametrize("pair", ["en-xx", "en-en", "en", "", "en-de-fr", "EN-DE"])
def test_unknown_pair(pair):
    known = "en-de, en-fr, de-en, de-fr, fr-en, fr-de"
    for name, call in (
        ("grammar", lambda: corpora.grammar(pair, 1, 1, 1, 1)),
        ("multi30k", lambda: corpora.multi30k(pair)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == f"corpus {name}: no language pair {pair!r}; take one of {known}"


# Multi30k


@pytest.fixture
def data(monkeypatch):
    folder = Path(os.environ.get("SLT_DATA") or SHARED)
    if not (folder / "multi30k" / "train.en.gz").is_file():
        pytest.skip("Multi30k is in neither $SLT_DATA nor ../shared/data")
    monkeypatch.setenv("SLT_DATA", str(folder))


@pytest.mark.parametrize("pair", ["en-de", "en-fr"])
def test_multi30k(data, pair):
    corpus = corpora.multi30k(pair)
    assert (len(corpus.train), len(corpus.dev)) == (29000, 1014)
    assert {name: len(split) for name, split in corpus.tests.items()} == {
        "test_2016_flickr": 1000,
        "test_2017_flickr": 1000,
        "test_2017_mscoco": 461,
    }
    assert corpus.train.source[0] == "Two young, White males are outside near many bushes."
    assert (
        corpus.train.target[0]
        == {
            "en-de": "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
            "en-fr": "Deux jeunes hommes blancs sont dehors près de buissons.",
        }[pair]
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self.path.endswith("cut.gz"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 500)  # and the connection ends


@pytest.fixture
def public(tmp_path, monkeypatch):
    """The folder behind a public address, `corpora.MULTI30K_URL`."""
    folder = tmp_path / "server"
    folder.mkdir()
    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(corpora, "MULTI30K_URL", f"http://127.0.0.1:{running.server_port}")
        yield folder
        running.shutdown()


@pytest.fixture
def server(public, tmp_path, monkeypatch):
    """A folder of small files behind the public address; their sums are pinned instead of the real ones."""
    folder = public
    sums = {}
    for name in corpora.MULTI30K_SHA256:
        split, language, _ = name.split(".")
        (folder / name).write_bytes(gzip.compress("".join(f"{split} {language} {n}\n" for n in range(3)).encode()))
        sums[name] = corpora.checksum(folder / name)
    monkeypatch.setattr(corpora, "MULTI30K_SHA256", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SLT_DATA", raising=False)
    return folder


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_download_then_cache(server, tmp_path):
    corpus = corpora.multi30k("de-fr")
    assert corpus.train.source == ("train de 0", "train de 1", "train de 2")
    assert corpus.dev.target[0] == "val fr 0"
    cache = tmp_path / "cache" / "slt_lib" / "multi30k"
    assert everything(cache) == sorted(name for name in corpora.MULTI30K_SHA256 if ".en." not in name)
    for path in server.iterdir():
        path.unlink()
    assert corpora.multi30k("de-fr") == corpus


def test_wrong_file_in_the_cache_is_replaced(server, tmp_path):
    corpus = corpora.multi30k("en-de")
    cached = tmp_path / "cache" / "slt_lib" / "multi30k" / "val.en.gz"
    cached.write_bytes(gzip.compress(b"something else\n" * 3))
    assert corpora.multi30k("en-de") == corpus
    assert cached.read_bytes() == (server / "val.en.gz").read_bytes()


def test_wrong_file_of_the_user_is_named_and_kept(server, tmp_path, monkeypatch):
    mine = tmp_path / "mine" / "multi30k" / "train.de.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    monkeypatch.setenv("SLT_DATA", str(tmp_path / "mine"))
    with pytest.raises(InputError) as caught:
        corpora.multi30k("de-en")
    url, right = f"{corpora.MULTI30K_URL}/train.de.gz", corpora.MULTI30K_SHA256["train.de.gz"]
    assert (
        str(caught.value) == f"{mine}: sha256 is {corpora.checksum(mine)}, not {right}; delete it, or put {url} there"
    )
    assert mine.read_bytes() == b"mine"


def test_file_that_cannot_be_had(server, tmp_path):
    (server / "train.en.gz").unlink()
    with pytest.raises(InputError) as caught:
        corpora.multi30k("en-de")
    line, url = str(caught.value), f"{corpora.MULTI30K_URL}/train.en.gz"
    path = tmp_path / "cache" / "slt_lib" / "multi30k" / "train.en.gz"
    assert line.startswith("train.en.gz: can't be downloaded (") and "\n" not in line
    assert line.endswith(f"); download {url} by hand to {path}")
    assert not path.exists()


def test_corrupted_download_leaves_nothing(server, tmp_path):
    (server / "train.en.gz").write_bytes(b"a login page of the hotel")
    with pytest.raises(InputError) as caught:
        corpora.multi30k("en-de")
    line, url = str(caught.value), f"{corpora.MULTI30K_URL}/train.en.gz"
    path = tmp_path / "cache" / "slt_lib" / "multi30k" / "train.en.gz"
    found = corpora.checksum(server / "train.en.gz")
    assert line.startswith("train.en.gz: can't be downloaded (SHA256 hash of downloaded file") and found in line
    assert line.endswith(f"); download {url} by hand to {path}")
    assert "train.en.gz" not in " ".join(everything(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (None, InputError, "can't be downloaded (IncompleteRead(500 bytes read, 500 more"),
        (ConnectionResetError("reset by peer"), InputError, "can't be downloaded (reset by peer); download"),
        (TimeoutError("timed out"), InputError, "can't be downloaded (timed out); download"),
        (OSError(28, "No space left on device"), InputError, "No space left on device"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_interrupted_download_leaves_nothing(public, home, tmp_path, monkeypatch, error, raised, told):
    """The connection ends after half of the file: in silence, or with an error."""

    def half(*_, **__):
        yield b"x" * 500
        raise error

    if error:
        monkeypatch.setattr(requests.Response, "iter_content", half)
    with pytest.raises(raised) as caught:
        corpora.find("multi30k", f"{corpora.MULTI30K_URL}/cut.gz", f"sha256:{'0' * 64}")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert everything(tmp_path) == []


# The user's own files


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.delenv("SLT_DATA", raising=False)
    for split in ("train", "dev", "news"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text(f"{split} {language} 0\n{split} {language} 1\n")
    return tmp_path


def test_files(own, monkeypatch):
    (own / "dev.en").unlink()
    (own / "dev.en.gz").write_bytes(gzip.compress("\ufeffHüte\u2028und\x85mehr\r\nzwei\r\n".encode()))
    # Training pairs with an empty side are skipped; a missing last newline loses nothing.
    (own / "train.en").write_text("one\n \nthree\nfour")
    (own / "train.de").write_text("eins\nzwei\n\nvier\n")
    corpus = corpora.files(own, "en-de", ["news"])
    assert corpus.dev.source == ("Hüte\u2028und\x85mehr", "zwei")
    assert (corpus.train.source, corpus.train.target) == (("one", "four"), ("eins", "vier"))
    assert list(corpus.tests) == ["news"] and corpus.tests["news"].target == ("news de 0", "news de 1")
    monkeypatch.chdir(own.parent)
    assert corpora.files(own.name, "en-de", ["news"]) == corpus
    monkeypatch.chdir("/")
    monkeypatch.setenv("SLT_DATA", str(own.parent))
    assert corpora.files(own.name, "en-de", ["news"]) == corpus


BAD = [
    ("train.de", None, "{0}/train.de: there is no such file, nor train.de.gz; put it there, one sentence per line"),
    ("train.de", b"", "{0}/train.de: the file is empty; give it one sentence per line"),
    (
        "train.de",
        b"\n \n",
        "{0}/train.en: no line has text both here and in {0}/train.de; give at least one sentence pair",
    ),
    ("dev.de", b"one\n", "{0}/dev.en: 2 lines, but {0}/dev.de has 1; line i of one must translate line i of the other"),
    ("dev.de", "eins\nTür\n".encode("latin-1"), "{0}/dev.de: line 2 is not UTF-8; save the file as UTF-8"),
    ("news.de", b"eins\n\n", "{0}/news.de: line 2 is empty; news needs a sentence on every line of both sides"),
]


@pytest.mark.parametrize(("name", "content", "line"), BAD, ids=[line[4:40] for _, _, line in BAD])
def test_bad_files(own, name, content, line):
    (own / name).unlink()
    if content is not None:
        (own / name).write_bytes(content)
    before = everything(own)
    with pytest.raises(InputError) as caught:
        corpora.files(own, "en-de", ["news"])
    assert str(caught.value) == line.format(own)
    assert everything(own) == before


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"plain", lambda data: data[:12] + b"\xff" * 9]
)
def test_damaged_gzip(own, damage):
    (own / "dev.en").unlink()
    path = own / "dev.en.gz"
    path.write_bytes(damage(gzip.compress(b"one\ntwo\n" * 50)))
    with pytest.raises(InputError) as caught:
        corpora.files(own, "en-de", ["news"])
    line = str(caught.value)
    assert line.startswith(f"{path}: can't be read (") and line.endswith("); check the file, or copy it again")
    assert "\n" not in line


def test_missing_folder_and_odd_pair(own):
    with pytest.raises(InputError, match="there is no such folder; name the one that holds train.en"):
        corpora.files(own / "nowhere", "en-de")
    with pytest.raises(InputError, match="'en/de' is not a language pair; write source-target, as in en-de"):
        corpora.files(own, "en/de")
    with pytest.raises(InputError, match="dev.en: can't be read"):
        (own / "dev.en").unlink()
        (own / "dev.en").mkdir()
        corpora.files(own, "en-de")
