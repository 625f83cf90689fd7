import dataclasses
import gzip
import os
import re
from pathlib import Path

import pytest

from slt_lib.base.errors import InputError
from slt_lib.data import corpora
from slt_lib.data import grammar as g
from slt_lib.data.grammar import NP, Clause
from slt_lib.study import Study

ME, YOU, HE, SHE, WE, THEY = (NP(word) for word in ("I", "you", "he", "she", "we", "they"))
ANNA, PAUL = NP("Anna"), NP("Paul")
SHARED = Path(__file__).parents[2] / "shared" / "data"
YESTERDAY = ("yesterday", "gestern", "hier")


# Checked by hand, each for what stands beside it.
SENTENCES = [
    # V2 after an adverbial, separable verb; French comma
    (
        g.statement(Clause(NP("man"), "open", NP("door"), time=("today", "heute", "aujourd'hui"), front=True)),
        ("Today the man opens the door.", "Heute macht der Mann die Tür auf.", "Aujourd'hui, l'homme ouvre la porte."),
    ),
    # Perfect with sein and with être, which agrees
    (
        g.statement(Clause(NP("girl", plural=True), "come back", tense="past", time=YESTERDAY)),
        (
            "The girls came back yesterday.",
            "Die Mädchen sind gestern zurückgekommen.",
            "Les filles sont revenues hier.",
        ),
    ),
    # kein, pas de; do-support; mixed adjective ending
    (
        g.statement(Clause(HE, "read", NP("letter", "a", adj="long"), neg=True)),
        ("He does not read a long letter.", "Er liest keinen langen Brief.", "Il ne lit pas de longue lettre."),
    ),
    # nicht after a definite object, before the participle; the clitic asks the participle to agree
    (
        g.statement(Clause(ME, "invite", SHE, tense="past", neg=True)),
        ("I did not invite her.", "Ich habe sie nicht eingeladen.", "Je ne l'ai pas invitée."),
    ),
    # Dative before accusative, weak noun, strong plural; French order, à + le
    (
        g.statement(Clause(WE, "give", NP("apple", "two", True, "red"), NP("boy", adj="small"))),
        (
            "We give the small boy two red apples.",
            "Wir geben dem kleinen Jungen zwei rote Äpfel.",
            "Nous donnons deux pommes rouges au petit garçon.",
        ),
    ),
    # Mass nouns: strong singular ending, partitive with elision
    (
        g.statement(Clause(NP("horse", plural=True), "buy", NP("water", "bare", adj="cold"), semi="want")),
        (
            "The horses want to buy cold water.",
            "Die Pferde wollen kaltes Wasser kaufen.",
            "Les chevaux veulent acheter de l'eau froide.",
        ),
    ),
    # Verb last, and with zu inside a separable verb; essayer de + clitic, which never contracts
    (
        g.because(Clause(THEY, "laugh"), Clause(SHE, "call", HE, semi="try")),
        (
            "They laugh because she tries to call him.",
            "Sie lachen, weil sie versucht, ihn anzurufen.",
            "Ils rient parce qu'elle essaie de l'appeler.",
        ),
    ),
    # Commas of clauses that close together don't pile up
    (
        g.when(
            Clause(NP("man", rel=Clause(NP("man"), "open", NP("box", "she"), semi="try", gap="subj")), "sleep"),
            Clause(NP("dog", "every"), "run"),
        ),
        (
            "When the man who tries to open her box sleeps, every dog runs.",
            "Wenn der Mann, der versucht, ihre Kiste aufzumachen, schläft, läuft jeder Hund.",
            "Quand l'homme qui essaie d'ouvrir sa boîte dort, chaque chien court.",
        ),
    ),
    # Relative clause on the object: den, and French agreement with what went before
    (
        g.statement(
            Clause(
                NP("flower", plural=True, rel=Clause(ANNA, "buy", NP("flower", plural=True), tense="past", gap="obj")),
                "be",
                adj="beautiful",
            )
        ),
        (
            "The flowers that Anna bought are beautiful.",
            "Die Blumen, die Anna gekauft hat, sind schön.",
            "Les fleurs qu'Anna a achetées sont belles.",
        ),
    ),
    # Dative plural of the relative pronoun and of the noun; cet before a vowel
    (
        g.statement(
            Clause(
                NP("child", "this"),
                "follow",
                NP("man", plural=True, rel=Clause(PAUL, "help", NP("man", plural=True), gap="obj")),
            )
        ),
        (
            "This child follows the men that Paul helps.",
            "Dieses Kind folgt den Männern, denen Paul hilft.",
            "Cet enfant suit les hommes que Paul aide.",
        ),
    ),
    # Genitive of a weak and of a strong noun, of a name; de + le, elision
    (
        g.statement(Clause(NP("dog", owner=NP("neighbor")), "look for", NP("hat", adj="new", owner=ANNA))),
        (
            "The neighbor's dog looks for Anna's new hat.",
            "Der Hund des Nachbarn sucht Annas neuen Hut.",
            "Le chien du voisin cherche le nouveau chapeau d'Anna.",
        ),
    ),
    # The person before an object with a relative clause, in French too
    (
        g.statement(Clause(HE, "bring", NP("letter", rel=Clause(SHE, "write", NP("letter"), gap="obj")), NP("judge"))),
        (
            "He brings the judge the letter that she writes.",
            "Er bringt dem Richter den Brief, den sie schreibt.",
            "Il apporte au juge la lettre qu'elle écrit.",
        ),
    ),
    # Comparison; vieil and bel before a vowel are for the attribute only
    (
        g.says(YOU, "know", Clause(NP("man", "this", adj="old"), "be", adj="beautiful", than=NP("uncle", "he"))),
        (
            "You know that this old man is more beautiful than his uncle.",
            "Du weißt, dass dieser alte Mann schöner als sein Onkel ist.",
            "Tu sais que ce vieil homme est plus beau que son oncle.",
        ),
    ),
    # Contractions of place; progressive in a question; an
    (
        g.question(Clause(NP("actress", "a", adj="old"), "wait for", THEY, tense="prog", place=NP("station"))),
        (
            "Is an old actress waiting for them at the station?",
            "Wartet eine alte Schauspielerin gerade auf sie am Bahnhof?",
            "Est-ce qu'une vieille actrice est en train de les attendre à la gare ?",
        ),
    ),
    # Future, if, inversion; s'il
    (
        g.when(
            Clause(HE, "be", adj="tired"), Clause(NP("child", "two", True), "go to", NP("market"), tense="fut"), "if"
        ),
        (
            "If he is tired, two children will go to the market.",
            "Wenn er müde ist, werden zwei Kinder zum Markt gehen.",
            "S'il est fatigué, deux enfants iront au marché.",
        ),
    ),
    # Fronted question word; an adverb between the parts of the verb
    (
        g.question(Clause(YOU, "lose", NP("key", "you"), tense="past", often=("often", "oft", "souvent")), g.ASK[0]),
        (
            "Where did you often lose your key?",
            "Wo hast du oft deinen Schlüssel verloren?",
            "Où est-ce que tu as souvent perdu ta clé ?",
        ),
    ),
    # never; mon before a feminine vowel
    (
        g.but(Clause(THEY, "answer", ME, often=("never", "nie", "jamais")), Clause(NP("nurse", "he"), "answer", THEY)),
        (
            "They never answer me, but his nurse answers them.",
            "Sie antworten mir nie, aber seine Krankenschwester antwortet ihnen.",
            "Ils ne me répondent jamais, mais son infirmière leur répond.",
        ),
    ),
]


@pytest.mark.parametrize(("made", "right"), SENTENCES, ids=[right[0] for _, right in SENTENCES])
def test_sentence(made, right):
    assert made == right


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


def test_sentences_that_were_kept_are_those_that_are_made(tmp_path, monkeypatch, capsys):
    def corpus():
        return Study("quick").corpus

    monkeypatch.setenv("SLT_RUNS", str(tmp_path))
    made = corpus()
    assert not (tmp_path / "sentences").exists()  # a look leaves nothing
    Study("quick").prepare()
    [file] = (tmp_path / "sentences").iterdir()
    calls = []
    monkeypatch.setattr(corpora, "generate", lambda *given: calls.append(given) or g.generate(*given))
    assert corpus() == made and not calls
    file.write_text(file.read_text().replace("the", "teh", 1))
    assert corpus() == made and len(calls) == 1
    assert "was altered" in capsys.readouterr().err


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


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A stand-in for the public address: a folder of small files whose sums are pinned instead."""
    folder = tmp_path / "server"
    folder.mkdir()
    sums = {}
    for name in corpora.MULTI30K_SHA256:
        split, language, _ = name.split(".")
        (folder / name).write_bytes(gzip.compress("".join(f"{split} {language} {n}\n" for n in range(3)).encode()))
        sums[name] = corpora.file_sha256(folder / name)
    monkeypatch.setattr(corpora, "MULTI30K_SHA256", sums)
    monkeypatch.setattr(corpora, "MULTI30K_URL", folder.as_uri())
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
    url, right = f"{server.as_uri()}/train.de.gz", corpora.MULTI30K_SHA256["train.de.gz"]
    assert (
        str(caught.value)
        == f"{mine}: sha256 is {corpora.file_sha256(mine)}, not {right}; delete it, or put {url} there"
    )
    assert mine.read_bytes() == b"mine"


def test_file_that_cannot_be_had(server, tmp_path):
    (server / "train.en.gz").unlink()
    with pytest.raises(InputError) as caught:
        corpora.multi30k("en-de")
    line, url = str(caught.value), f"{server.as_uri()}/train.en.gz"
    path = tmp_path / "cache" / "slt_lib" / "multi30k" / "train.en.gz"
    assert line.startswith("train.en.gz: can't be downloaded (") and "\n" not in line
    assert line.endswith(f"); download {url} by hand to {path}")
    assert not path.exists()


def test_corrupted_download_leaves_nothing(server, tmp_path):
    (server / "train.en.gz").write_bytes(b"a login page of the hotel")
    with pytest.raises(InputError) as caught:
        corpora.multi30k("en-de")
    line, url = str(caught.value), f"{server.as_uri()}/train.en.gz"
    path = tmp_path / "cache" / "slt_lib" / "multi30k" / "train.en.gz"
    found = corpora.file_sha256(server / "train.en.gz")
    assert line == (
        f"train.en.gz: what came from {url} is not the expected file (sha256 {found}); "
        f"try again, or download {url} by hand to {path}"
    )
    assert "train.en.gz" not in " ".join(everything(tmp_path / "cache"))


class Cut:
    """A connection that ends after half of the file: in silence, or with an error."""

    def __init__(self, data, error=None):
        self.blocks, self.error = [data[: len(data) // 2]], error
        self.headers = {"Content-Length": str(len(data))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def read(self, _):
        if self.blocks:
            return self.blocks.pop()
        if self.error:
            raise self.error
        return b""


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (None, InputError, "is cut short at 500 of 1000 bytes; try again, or download"),
        (ConnectionResetError("reset by peer"), InputError, "can't be downloaded (reset by peer); download"),
        (TimeoutError("timed out"), InputError, "can't be downloaded (timed out); download"),
        (OSError(28, "No space left on device"), InputError, "No space left on device"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_interrupted_download_leaves_nothing(tmp_path, error, raised, told):
    path = tmp_path / "folder" / "file.gz"
    with pytest.raises(raised) as caught:
        corpora.fetch("https://x/file.gz", path, "0" * 64, "file", lambda url, timeout: Cut(b"x" * 1000, error))
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
    ("train.de", None, "{0}/train.de: there is no such file, nor train.de.gz; put it there, one sentence a line"),
    ("train.de", b"", "{0}/train.de: the file is empty; give it one sentence a line"),
    (
        "train.de",
        b"\n \n",
        "{0}/train.en: no line has text both here and in {0}/train.de; give at least one sentence pair",
    ),
    ("dev.de", b"one\n", "{0}/dev.en: 2 lines, but {0}/dev.de has 1; line by line one must translate the other"),
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
    assert line.startswith(f"{path}: not a whole gzip file (") and line.endswith("; pack it or copy it again")
    assert "\n" not in line


def test_missing_folder_and_odd_pair(own):
    with pytest.raises(InputError, match="there is no such folder; name the one that holds train.en"):
        corpora.files(own / "nowhere", "en-de")
    with pytest.raises(InputError, match="'en/de' is no language pair; write source-target, as in en-de"):
        corpora.files(own, "en/de")
    with pytest.raises(InputError, match="dev.en: can't be read"):
        (own / "dev.en").unlink()
        (own / "dev.en").mkdir()
        corpora.files(own, "en-de")
