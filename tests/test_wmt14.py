"""WMT14 from parquet files of the schema of the Hub, small here, to batches; and the paper's presets, line by line."""

import fnmatch
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sacrebleu.dataset as sets
import torch
from datasets import Dataset, Features, Translation

from slt_lib import __main__ as cli
from slt_lib import schedules
from slt_lib.base import settings as params
from slt_lib.base import store
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Wmt14
from slt_lib.base.store import Store
from slt_lib.data import corpora, wmt14
from slt_lib.data.batches import Batches
from slt_lib.data.grammar import generate
from slt_lib.data.vocabulary import Encoded
from slt_lib.study import Study
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import checkpoints
from slt_lib.transformer import glorot, prunable

# As the Hub names them; not taken from the code under test.
FOLDERS = [("wmt14", "de-en"), ("wmt14", "fr-en"), ("wmt_t2t", "de-en")]
LINES = 23  # of a file
FILES = 3
ODD = [  # English, the other side: what stays of it, or None
    ("", "only here", None),
    ("only here", " \t ", None),
    ("no value", None, None),
    ("  around \r", "drum herum\r", ("around", "drum herum")),
    ("one\u2028line\x85still", "eins", ("one\u2028line\x85still", "eins")),
    ("</s> <pad>", "\ufeffzwei", ("</s> <pad>", "\ufeffzwei")),
]


def write_rows(path: Path, rows: list[tuple[str, str]], other: str) -> None:
    """A parquet file with the schema of the Hub's: one column, a struct of a string per language."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({"translation": Translation(languages=[other, "en"])})
    pairs = [{other: translation, "en": english} for english, translation in rows]
    Dataset.from_dict({"translation": pairs}, features=features).to_parquet(path)


class Public:
    """What the public addresses hold, in a folder: parquet files, and what should be read of them."""

    def __init__(self, folder: Path):
        self.folder = folder / "data" / "wmt14"
        triples = iter(generate({"all": len(FOLDERS) * FILES * LINES}, seed=3)["all"])
        self.right: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for name, config in FOLDERS:
            other, right = config[:2], []
            for number in range(FILES):
                kept = [(t[0], t[1 if other == "de" else 2]) for t in (next(triples) for _ in range(LINES - len(ODD)))]
                rows = kept + [odd[:2] for odd in ODD]
                write_rows(self.folder / name / config / f"train-{number:05d}-of-{FILES:05d}.parquet", rows, other)
                right += kept + [odd[2] for odd in ODD if odd[2]]
            write_rows(self.folder / name / config / "validation-00000-of-00001.parquet", [("dev", "dev")], other)
            self.right[name, other] = right
        self.tests()

    def pin(self, patch, rows: int = FILES * LINES) -> None:
        """Addresses, checksums and counts of what lies there, in place of the real ones."""
        for key, source in dict(wmt14.SOURCES).items():
            patch.setitem(wmt14.SOURCES, key, source._replace(rows=rows))
        for name in ("wmt13", "wmt14/full", "wmt14"):
            path = self.archive(name)
            patch.setattr(sets.DATASETS[name], "data", [f"http://nowhere/{name}.tgz"])
            patch.setattr(sets.DATASETS[name], "md5", [hashlib.md5(path.read_bytes()).hexdigest()])
        counts = {"dev": ("wmt13", 4), "newstest2014": ("wmt14/full", 5), "newstest2014-filtered": ("wmt14", 3)}
        patch.setattr(wmt14, "TEST_SETS", {split: (name, {"de": count}) for split, (name, count) in counts.items()})

    def archive(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '_')}.{name.rpartition('/')[2]}.tgz"

    def text(self, other: str, news: str = "v9") -> list[tuple[str, str]]:
        """English and its translation, cleaned, of all files of a pair."""
        return self.right["wmt_t2t" if news == "v13" else "wmt14", other]

    def archives_only(self) -> Path:
        """Another $SLT_DATA, without the parquet files."""
        shutil.copytree(
            self.folder, self.folder.parents[1] / "less" / "wmt14", ignore=shutil.ignore_patterns("*.parquet")
        )
        return self.folder.parents[1] / "less"

    def tests(self) -> None:
        """Sacrebleu's archives: newstest2013 of 4 sentences, newstest2014 of 5, of which 3 are in the filtered set."""
        self.sentences = {}
        made = generate({"dev": 4, "test": 5}, seed=4)
        for name, triples in (("wmt13", made["dev"]), ("wmt14/full", made["test"]), ("wmt14", made["test"][:3])):
            for place, language in enumerate(("en", "de", "fr")):
                self.sentences[name, language] = tuple(triple[place] for triple in triples)
            members = {member for files in sets.DATASETS[name].langpairs.values() for member in files}
            with tarfile.open(self.archive(name), "w:gz") as tar:
                for member in sorted(members):
                    if (key := (name, member.split(".")[-2])) in self.sentences:
                        rows = [f'<seg id="{n}">  {line} </seg>' for n, line in enumerate(self.sentences[key])]
                        content = "\n".join(["<refset>", '<doc docid="1">', *rows, "</doc>"]).encode()
                        entry = tarfile.TarInfo(member)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def public(home, monkeypatch):
    """The public files in $SLT_DATA/wmt14, read 5 rows at a time; a download fails the test."""
    made = Public(home)
    made.pin(monkeypatch)
    monkeypatch.setenv("SLT_DATA", str(home / "data"))
    monkeypatch.setattr(wmt14, "CHUNK", 5)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download"))
    return made


def corpus_of(pair="en-de", **settings):
    return wmt14.corpus(pair, Wmt14(name="wmt14", **settings), Store())


def memory_split(text) -> corpora.Split:
    return corpora.Split("train", *(tuple(side) for side in zip(*text, strict=True)))


def everything(folder: Path) -> dict[str, bytes]:
    """The files that a preparation wrote, without manifests, which hold times, and locks, which hold a process."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = [path for path in paths if path.name != "manifest.json" and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize(("pair", "news"), [("en-de", "v9"), ("en-de", "v13"), ("en-fr", "v9"), ("de-en", "v9")])
def test_from_files_to_batches(public, make_study, home, monkeypatch, pair, news):
    changes = {
        "pairs": {"en-de": None, pair: ["mp"]} if pair != "en-de" else {},
        "corpus": {"name": "wmt14", "news_commentary": news},
        "vocabulary": 90,
    }
    study = make_study(changes)
    text = public.text("fr" if "fr" in pair else "de", news)
    expected = memory_split(text if pair.startswith("en") else [(b, a) for a, b in text])
    train = study.corpus.train
    assert len(train) == len(expected) == FILES * (LINES - 3)
    assert (list(train.source), list(train.target)) == (list(expected.source), list(expected.target))
    assert train.digest == expected.digest
    counts = dict(train.record["counts"])
    sizes = [sum(len(line.encode()) + 1 for line in side) for side in (expected.source, expected.target)]
    assert [counts.pop(f"{side} bytes") for side in SIDES] == sizes
    assert counts == {"rows": FILES * LINES, "pairs": FILES * (LINES - 3), "empty": FILES * 3}
    source, target = pair.split("-")
    for name, split in {"wmt13": study.corpus.dev, "wmt14/full": study.corpus.tests["newstest2014"]}.items():
        assert (split.source, split.target) == (public.sentences[name, source], public.sentences[name, target])
    assert list(study.corpus.tests) == ["newstest2014", "newstest2014-filtered"]  # the full set decides
    assert study.corpus.tests["newstest2014-filtered"].source == public.sentences["wmt14", source]

    assert study.vocabulary.digest == wmt14.Vocabulary.build([*expected.source, *expected.target], 90).digest
    shape = study.params.training.batch
    streams = []
    for sides in ((study.data.source, study.data.target), expected.encoded(study.vocabulary)):
        assert all(side.offsets.dtype == np.int64 for side in sides)
        streams.append(Batches(*sides, shape.rows, shape.length, seed=1))
    assert [side.flat.dtype for side in (study.data.source, study.data.target)] == [np.uint16] * 2
    assert study.data.source.lists() == expected.encoded(study.vocabulary)[0].lists()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(*map(next, streams), strict=True))

    # All that is needed of the training text is in the store now: no parquet file, no tokenizer.
    for path in public.folder.rglob("*.parquet"):
        path.unlink()
    for name in ("_read", "_encode"):
        monkeypatch.setattr(wmt14, name, lambda *_: pytest.fail("not from the store"))
    again = make_study(changes)
    assert again.corpus.digest == study.corpus.digest and again.data.target.lists() == study.data.target.lists()


def test_the_same_sentences_are_the_same_study(public, make_study, home):
    # Where text comes from is no part of a training's identity: files that hold it give the same run.
    study = make_study({"corpus": {"name": "wmt14"}, "vocabulary": 90})
    own = home / "own"
    own.mkdir()
    for name, split in {"train": study.corpus.train, "dev": study.corpus.dev, "test": study.corpus.dev}.items():
        for language, side in zip(("en", "de"), (split.source, split.target), strict=True):
            (own / f"{name}.{language}").write_text("".join(f"{line}\n" for line in side), newline="\n")
    other = make_study({"corpus": {"name": "files", "folder": str(own)}, "vocabulary": 90})
    assert other.ticket(1).train_id == study.ticket(1).train_id


def test_length_filter(public):
    whole = public.text("fr")
    for most, ratio in ((6, None), (None, 1.5), (9, 1.2)):
        kept = [
            (a, b)
            for a, b in whole
            if max(len(a.split()), len(b.split())) <= (most or 99)
            and max(len(a.split()) / len(b.split()), len(b.split()) / len(a.split())) <= (ratio or 99)
        ]
        assert 0 < len(kept) < len(whole)
        train = corpus_of("en-fr", max_words=most, max_ratio=ratio).train
        assert train.digest == memory_split(kept).digest
        assert train.record["counts"]["length"] == len(whole) - len(kept)
    with pytest.raises(InputError, match=r"no pair of en-fr is left; raise corpus\.max_words and corpus\.max_ratio"):
        corpus_of("en-fr", max_words=1, max_ratio=1.0)


def test_vocabulary_sample(public, make_study):
    train = corpus_of(sample=800).train
    whole = [*train.source, *train.target]
    sample = list(train.sentences())
    assert not Counter(sample) - Counter(whole)
    # About 800 bytes of each side, evenly spread, whatever the chunks.
    assert 2 * 500 < sum(len(line.encode()) for line in sample) < 2 * 960
    size = len(train)
    for side in range(2):
        places = [i for i, line in enumerate(whole[side * size : (side + 1) * size]) if line in sample[: 10**9]]
        assert places[0] == 0 and len(places) < size / 2
    stride = -(-train.record["counts"]["source bytes"] // 800)
    assert sample[: -(-size // stride)] == list(train.source)[::stride] and stride > 1
    assert list(corpus_of(sample=10**9).train.sentences()) == whole == list(corpus_of().train.sentences())
    sampled, full = (make_study({"corpus": {"name": "wmt14", "sample": n}, "vocabulary": 70}) for n in (800, None))
    assert sampled.corpus.digest == full.corpus.digest and sampled.vocabulary.digest != full.vocabulary.digest


def test_at_hand_is_what_is_prepared(public, make_study, monkeypatch):
    """So that a plan neither downloads, prepares nor waits; of a text that is not whole it says so."""
    study = make_study({"corpus": {"name": "wmt14", "news_commentary": "v9"}, "vocabulary": 60})
    assert not study.corpus_at_hand()
    kept = corpus_of("en-de")
    assert study.corpus_at_hand() and not wmt14.at_hand("en-fr", Wmt14(name="wmt14"), Store())
    for name in ("_read", "_files"):
        monkeypatch.setattr(wmt14, name, None)
    assert study.corpus.digest == kept.digest
    [text] = Store().path.rglob("text.arrow")
    text.unlink()
    assert not study.corpus_at_hand()


@pytest.mark.parametrize(("pair", "news", "repo"), [("en-fr", "v9", "wmt14"), ("en-de", "v13", "wmt_t2t")])
def test_files_are_downloaded_where_they_are_not_there(public, home, monkeypatch, pair, news, repo):
    monkeypatch.setenv("SLT_DATA", str(public.archives_only()))
    asked = []

    def snapshot_download(name, *, repo_type, revision, allow_patterns, local_dir):
        asked.append((name, repo_type, revision))
        for path in (public.folder / repo).glob(allow_patterns):
            copy = local_dir / path.relative_to(public.folder / repo)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    right = memory_split(public.text(pair[3:], news)).digest
    assert corpus_of(pair, news_commentary=news).train.digest == right
    assert asked == [(f"wmt/{repo}", "dataset", wmt14.SOURCES[news, pair[3:]].revision)]
    corpus_of(pair, news_commentary=news, max_words=50)  # other text, the same files: they are in the cache
    assert len(asked) == 1


def test_files_that_cannot_be_downloaded(public, home, monkeypatch):
    monkeypatch.setenv("SLT_DATA", str(public.archives_only()))

    def refused(*_, **__):
        raise ConnectionError("no\nnetwork")

    for download, reason in ((refused, "no network"), (lambda *_, **__: None, "some are missing")):
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(InputError) as caught:
            corpus_of("en-fr")
        revision, folder = wmt14.SOURCES["v9", "fr"].revision, home / "cache" / "slt_lib" / "wmt14" / "wmt14" / "fr-en"
        assert str(caught.value) == (
            f"corpus wmt14: fr-en/train-*.parquet of wmt/wmt14 can't be downloaded ({reason}); download the files of "
            f"https://huggingface.co/datasets/wmt/wmt14/tree/{revision}/fr-en by hand to {folder}"
        )


# Each error in one line, and nothing left half-written


def cut(public, path, _):
    path.write_bytes(path.read_bytes()[:-100])
    return f"{path}: can't be read (*); delete it, and it is downloaded again"


def another_schema(public, path, _):
    write_rows(path, [("one", "eins")], "de")
    return f"{path}: can't be read (*); delete it, and it is downloaded again"


def other_rows(public, path, patch):
    write_rows(path, [("one", "un")] * 20, "fr")
    return (
        f"corpus wmt14: the files of en-fr in {path.parent} hold {2 * LINES + 20} pairs, not {3 * LINES}; "
        "delete them, and they are downloaded again"
    )


@pytest.mark.parametrize("damage", [cut, another_schema, other_rows])
def test_bad_files(public, home, monkeypatch, damage):
    path = public.folder / "wmt14" / "fr-en" / f"train-00001-of-{FILES:05d}.parquet"
    good = path.read_bytes()
    pattern = damage(public, path, monkeypatch)
    with pytest.raises(InputError) as caught:
        corpus_of("en-fr")
    line = str(caught.value)
    assert fnmatch.fnmatchcase(line, pattern) and "\n" not in line, line
    assert not list(home.rglob("*.part")) and not list(home.rglob("*.arrow"))
    path.write_bytes(good)  # the remedy helps
    assert corpus_of("en-fr").train.digest == memory_split(public.text("fr")).digest


def test_a_full_disk(public, make_study, home, monkeypatch):
    """Whenever the disk is full there is one line, no part of a file stays, and the next run goes on from there."""
    changes = {"corpus": {"name": "wmt14"}, "vocabulary": 90}
    right = make_study(changes).data.source.lists()
    whole = everything(home / "runs")
    monkeypatch.setenv("SLT_RUNS", str(home / "again"))
    true, failures, left = os.fsync, 0, 0

    def full(handle):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        true(handle)

    for room in range(20):
        left = room
        with monkeypatch.context() as patch:
            patch.setattr(store.os, "fsync", full)
            try:
                found = make_study(changes).data.source.lists()
                break
            except InputError as error:
                failures += 1
                line = str(error)
                assert line.startswith(str(home / "again")) and "\n" not in line
                assert "no space left on the disk (" in line
        assert not list((home / "again").rglob("*.part"))
    assert failures > 2 and found == right
    assert everything(home / "again") == whole


SIDES = ("source", "target")


KILLED = """
import os, signal, sys
from pathlib import Path
import pytest
sys.path.insert(0, sys.argv[1])
from test_wmt14 import Public
from slt_lib.data import vocabulary, wmt14
from slt_lib.study import Study
public = Public.__new__(Public)
public.folder = Path(sys.argv[2]) / "data" / "wmt14"
public.pin(pytest.MonkeyPatch())
wmt14.CHUNK = 5
place, name, left = (wmt14, "_verdict", 30) if sys.argv[3] == "text" else (vocabulary.Vocabulary, "encode", 4)
true = getattr(place, name)
def killed(*given):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*given)
setattr(place, name, killed)
Study(sys.argv[4]).data
"""


def test_a_killed_preparation_goes_on(public, study_file, home, monkeypatch):
    path = study_file({"corpus": {"name": "wmt14"}, "vocabulary": 90})
    Study(path).data  # noqa: B018
    whole = everything(home / "runs")
    assert any(name.endswith("target.flat") for name in whole)
    for stage in ("text", "pieces"):
        folder = home / f"killed_{stage}"
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(home), stage, path]
        environment = os.environ | {"SLT_RUNS": str(folder)}
        killed = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        [part] = folder.rglob(".*.part")
        texts = {file: file.stat().st_mtime_ns for file in folder.rglob("text.arrow") if file.parent != part}
        assert len(texts) == (stage == "pieces")
        monkeypatch.setenv("SLT_RUNS", str(folder))
        Study(path).data  # noqa: B018
        assert everything(folder) == whole
        assert all(file.stat().st_mtime_ns == time for file, time in texts.items())  # a finished stage stays


def test_what_was_altered_in_the_store_is_made_anew(public, make_study, home):
    changes = {"corpus": {"name": "wmt14"}, "vocabulary": 90}
    right = make_study(changes).data.target.lists()
    whole = everything(home / "runs")
    for name, lose in (("target.flat", False), ("text.arrow", False), ("target.flat", True), ("text.arrow", True)):
        [file] = (home / "runs").rglob(name)
        data = bytearray(file.read_bytes())
        data[10] ^= 1
        file.unlink() if lose else file.write_bytes(data)
        assert make_study(changes).data.target.lists() == right
        time, inode = file.stat().st_mtime_ns, file.stat().st_ino
        os.utime(file, (1, 1))  # copied elsewhere, for example: looked at again, and found whole
        assert make_study(changes).data.target.lists() == right
        assert (file.stat().st_mtime_ns, file.stat().st_ino) == (time, inode)  # the next look is quick again
    assert everything(home / "runs") == whole


@pytest.mark.parametrize("pair", ["en-cs", "en", "en-en", "de-fr"])
def test_unknown_pairs(public, pair):
    with pytest.raises(InputError) as caught:
        corpus_of(pair)
    assert str(caught.value) == f"corpus wmt14: no language pair {pair!r}; take one of en-de, en-fr, de-en, fr-en"


def test_a_news_commentary_without_french(public):
    with pytest.raises(InputError, match=r"^corpus\.news_commentary: v13 has no French; write v9 for en-fr"):
        corpus_of("en-fr", news_commentary="v13")


# Test sets through sacrebleu


def test_test_sets_are_downloaded(public, home, monkeypatch):
    """A wrong file in $SLT_DATA is an error. If there is none, the archive is downloaded, with its checksum."""
    path = public.archive("wmt14/full")
    url, cached = "http://nowhere/wmt14/full.tgz", home / "cache" / "slt_lib" / "wmt14" / path.name
    good = path.rename(home / "good")
    with pytest.raises(InputError, match=r"^wmt14_full\.full\.tgz: can't be downloaded \(.*\); download .* by hand to"):
        corpus_of()
    path.write_bytes(b"something else")
    with pytest.raises(InputError) as caught:
        corpus_of()
    found, wanted = hashlib.md5(b"something else").hexdigest(), hashlib.md5(good.read_bytes()).hexdigest()
    assert str(caught.value) == f"{path}: md5 is {found}, not {wanted}; delete it, or put {url} there"
    path.unlink()
    monkeypatch.setattr("pooch.HTTPDownloader", lambda **_: lambda url, to, _: shutil.copy(good, to))
    assert len(corpus_of().tests["newstest2014"]) == 5 and cached.read_bytes() == good.read_bytes()


def test_test_sets_are_read_as_sacrebleu_reads_them(home, monkeypatch):
    rows = [
        "<doc>",
        '<seg id="1"> a\u2028b &amp; <c>\t d </seg> ',
        '<seg id="2">e</seg>f',
        '<seg id="3">g',
        " <seg>no</seg>",
    ]
    for kind, text in (("_outdir", "out"), ("_rawdir", "out/raw")):
        monkeypatch.setattr(sets.DATASETS["wmt13"], kind, str(home / text))
    raw = home / "out" / "raw"
    (raw / "test").mkdir(parents=True)
    archive = raw / sets.DATASETS["wmt13"]._get_tarball_filename(sets.DATASETS["wmt13"].data[0])
    with tarfile.open(archive, "w:gz") as tar:
        for member in sets.DATASETS["wmt13"].langpairs["en-de"]:
            (raw / member).write_text("\r\n".join(rows), encoding="utf-8", newline="")
            tar.add(raw / member, member)
    monkeypatch.setattr(corpora, "find", lambda *_, **__: archive)
    monkeypatch.setattr(wmt14, "TEST_SETS", {"dev": ("wmt13", {"de": 3})})
    read = wmt14._test_set("dev", "en-de")
    assert list(read.source) == list(sets.DATASETS["wmt13"].source("en-de")) and len(read.target) == 3


def test_a_test_set_of_the_wrong_size(public, monkeypatch):
    monkeypatch.setitem(wmt14.TEST_SETS, "newstest2014", ("wmt14/full", {"de": 3003}))
    with pytest.raises(InputError, match=r"full\.tgz: en-de is not 3003 whole sentence pairs; install the pinned"):
        corpus_of()


def test_sizes_of_the_real_test_sets():
    assert wmt14.TEST_SETS == {
        "dev": ("wmt13", {"de": 3000, "fr": 3000}),
        "newstest2014": ("wmt14/full", {"de": 3003, "fr": 3003}),
        "newstest2014-filtered": ("wmt14", {"de": 2737}),
    }
    assert sets.DATASETS["wmt14/full"].md5 == ["a8cd784e006feb32ac6f3d9ec7eb389a"]


def test_counts_of_the_real_data_sets():
    """Against FACTS.md section 6, read as text."""
    facts = (Path(__file__).parents[1] / "FACTS.md").read_text(encoding="utf-8")
    german, french, mix = (wmt14.SOURCES[key] for key in (("v9", "de"), ("v9", "fr"), ("v13", "de")))
    assert f"WMT14 EnDe {german.rows:,} (HF wmt14 de-en); T2T EnDe {mix.rows:,} (HF wmt_t2t)" in facts
    assert f"WMT14 EnFr {french.rows:,}" in facts and len(wmt14.SOURCES) == 3
    assert f"`{german.repo}` now ships parquet" in facts and f"`{mix.repo}` de-en = T2T's own mix" in facts
    assert french[:2] == german[:2] and (german.folder, french.folder, mix.folder) == ("de-en", "fr-en", "de-en")


def test_the_command_line_counts(public, study_file, capsys):
    assert cli.main(["data", study_file({"corpus": {"name": "wmt14"}, "vocabulary": 90})]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "en-de: wmt14, train 60, dev 4, newstest2014 5, newstest2014-filtered 3 pairs"


# Size


class Letters:
    """Stands in for a vocabulary: an id a letter."""

    digest = "letters"

    def __len__(self):
        return 70_000  # one that needs int32

    def encode(self, sentences):
        offsets = np.concatenate([[0], np.cumsum([len(line) for line in sentences])]).astype(np.int64)
        return Encoded(np.frombuffer("".join(sentences).encode("utf-32-le"), np.int32), offsets)


def test_memory_does_not_grow_with_the_text(public, monkeypatch):
    peaks, sizes = [], (8_000, 80_000)
    monkeypatch.setattr(wmt14, "CHUNK", 2000)
    for count in sizes:
        path = public.folder / "wmt14" / "de-en" / f"train-00001-of-{FILES:05d}.parquet"
        write_rows(path, [(f"a {i} {count}", f"b {i} {count}") for i in range(count)], "de")
        public.pin(monkeypatch, count + (FILES - 1) * LINES)
        for file in Store().path.rglob("text.arrow"):
            file.unlink()
        tracemalloc.start()
        train = corpus_of("en-de").train
        source, target = train.encoded(Letters())
        stream = Batches(source, target, 8, 32, seed=1)
        next(stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert source.flat.dtype == np.int32 and len(train) > count
        assert stream.source.flat is source.flat and isinstance(source.flat.base, np.memmap)
    assert peaks[1] < 60 * sizes[1]


def test_indices_are_small_and_orders_the_same():
    lengths = np.arange(1, 41) % 7 + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sides = [Encoded(np.ones(offsets[-1], np.int32), offsets) for _ in range(2)]
    stream = Batches(*sides, 8, 8, seed=5)
    assert sides[0].lengths.dtype == stream.usable.dtype == stream.order(2).dtype == np.int32
    from slt_lib.base.seeds import stream as numbers

    wide = numbers(5, "sentences", 0, 2).permutation(stream.usable.astype(np.int64))
    assert stream.order(2).tolist() == wide.tolist()


# The presets


@pytest.fixture(params=["wmt14-en-de", "wmt14-en-fr"])
def preset(request):
    return params.load(str(Path(__file__).parents[1] / "params" / f"{request.param}.yaml"))


def test_presets_hold_the_paper_s_numbers(preset):
    """FACTS.md section 1; what is fixed in the model (norms, biases, initial values, zeros) is in test_transformer."""
    settings = preset.training
    assert settings.model.model_dump() == {
        "layers": 6,
        "hidden": 512,
        "filter": 2048,
        "heads": 8,
        "residual_dropout": 0.1,
        "attention_dropout": 0.1,
        "relu_dropout": 0.1,
    }
    assert settings.batch.model_dump() == {"rows": 64, "length": 256, "packed": True}
    assert settings.batch.rows * settings.batch.length == 16_384
    assert (settings.steps, settings.optimizer, settings.label_smoothing) == (500_000, "adafactor", 0.1)
    assert (settings.precision, settings.order, settings.pruned) == ("fp32", "fresh", "stale")
    assert checkpoints(settings) == list(range(25_000, 500_001, 25_000))
    assert preset.decoding.model_dump() == {"beam": 4, "alpha": 0.6, "extra": 100}
    assert (settings.dev_beam, settings.dev_extra, settings.dev_sentences) == (4, 100, None)
    assert tuple(preset.levels) == schedules.PAPER_LEVELS and preset.seeds == [1, 2] and not preset.rehearsal
    assert schedules.at_step(0.05, settings.steps) == 25_000 and 0.05 in preset.keep
    assert (preset.corpus.name, preset.corpus.max_words, preset.corpus.max_ratio) == ("wmt14", None, None)


def test_presets_train_what_the_paper_trained():
    folder = Path(__file__).parents[1] / "params"
    german, french = (params.load(str(folder / f"wmt14-en-{other}.yaml")) for other in ("de", "fr"))
    assert german.pairs == {"en-de": ["mp", "lt", "slt", "clt", "slt-mp", "mp-slt"]}
    assert french.pairs == {"en-fr": ["mp", "slt", "clt", "slt-mp"]}
    assert (german.vocabulary, french.vocabulary) == (33_708, 32_768)
    assert (german.corpus.news_commentary, french.corpus.news_commentary) == ("v13", "v9")
    steps = [schedules.at_step(t, german.training.steps) for t in german.keep]
    assert german.ablations and steps == [12_500, 25_000, 37_500]
    assert german.training == french.training


def test_presets_schedules(preset):
    """Check values of FACTS.md sections 2 and 3, from the preset's own numbers."""
    settings = preset.training
    warmup = schedules.at_step(settings.warmup, settings.steps)
    rates = [schedules.learning_rate(step, warmup, settings.peak_lr.adafactor) for step in (0, 9_999, 500_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.001414], abs=1e-6)
    # tensor2tensor's transformer_base: 2 * 512 ** -0.5 * step ** -0.5 once it has warmed up
    adam = schedules.learning_rate(40_000, warmup, settings.peak_lr.adam, ramp=True)
    assert adam == pytest.approx(2 * 512**-0.5 * 40_000**-0.5, rel=1e-4)
    updates = schedules.every(settings.gradual.every, settings.gradual.until, settings.steps)
    assert updates == list(range(10_000, 400_001, 10_000))
    found = [schedules.gradual_sparsity(step, 0.0, 0.9, updates[-1]) for step in (10_000, 200_000, 400_000)]
    assert found == pytest.approx([0.0658, 0.7875, 0.9], abs=5e-5)


def test_preset_s_model():
    settings = params.load(str(Path(__file__).parents[1] / "params" / "wmt14-en-de.yaml"))
    with torch.device("meta"):
        model = training.new_model(settings.training, settings.vocabulary)
    matrices = prunable(dict(model.named_parameters()))
    assert (len(matrices), sum(matrix.numel() for matrix in matrices.values())) == (97, 61_298_688)
    alphas = {tuple(sorted(matrix.shape)): round(glorot(matrix), 5) for matrix in matrices.values()}
    assert alphas == {(512, 512): 0.07655, (512, 2048): 0.04841, (512, 33_708): 0.01324}
