"""Parallel text: the made `grammar`, the downloaded `multi30k` and the user's own `files`, read and checked alike.

`wmt14`, too large to be held in memory, has a module of its own.
"""

import gzip
import hashlib
import http.client
import inspect
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from urllib.request import urlopen

from tqdm.auto import tqdm

from slt_lib.base.errors import InputError
from slt_lib.data.grammar import LANGUAGES, generate

GRAMMAR_CODE = Path(inspect.getfile(generate))  # other code makes other sentences

# Multi30k, task 1, raw (Elliott et al. 2016, 2017; Barrault et al. 2018), at a commit that will not change.
MULTI30K_URL = (
    "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw"
)
MULTI30K_TESTS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco")
MULTI30K_SHA256 = {
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.fr.gz": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
    "test_2017_flickr.de.gz": "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee",
    "test_2017_flickr.en.gz": "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074",
    "test_2017_flickr.fr.gz": "3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496",
    "test_2017_mscoco.de.gz": "799e4854c25d601cb6cb6be29eabe5667734c61ace2f495e03e429031a0bc338",
    "test_2017_mscoco.en.gz": "aab300bfb4427697987e02cd0aacd44bfe8aa50456231b6474c08038bbed2b58",
    "test_2017_mscoco.fr.gz": "754f3072ba9f124569ba5258b32730fc1d214bbf8e0c6dfb2b74401676220db0",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.fr.gz": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.fr.gz": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
}


@dataclass(frozen=True)
class Split:
    """Sentences and their translations, line by line."""

    name: str
    source: Sequence[str]
    target: Sequence[str]

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the exact text of both sides, each sentence led by its length."""
        whole = hashlib.sha256()
        for side in (self.source, self.target):
            whole.update(b"%d;" % len(side))
            for sentence in side:
                text = sentence.encode()
                whole.update(b"%d:%b" % (len(text), text))
        return whole.hexdigest()

    @property
    def sample(self) -> int | None:
        """Bytes of each file that a vocabulary is built from; None: all."""
        return None

    def sentences(self) -> Iterable[str]:
        """What a vocabulary is built from."""
        return chain(self.source, self.target)

    def encoded(self, vocabulary):
        """Both sides as vocabulary.Encoded."""
        return vocabulary.encode(self.source), vocabulary.encode(self.target)


@dataclass(frozen=True)
class Corpus:
    """What a study trains, chooses and is tested on; pair: source and target language, "en-de"."""

    name: str
    pair: str
    train: Split
    dev: Split
    tests: dict[str, Split]

    @property
    def languages(self) -> tuple[str, str]:
        source, target = self.pair.split("-")
        return source, target

    @cached_property
    def digest(self) -> str:
        """SHA-256 of train and dev, which reach the weights; each test set has its own."""
        return hashlib.sha256(f"{self.train.digest}{self.dev.digest}".encode()).hexdigest()


def grammar(pair: str, train: int, dev: int, test: int, seed: int, made: Mapping | None = None) -> Corpus:
    """As many sentences as asked for, made by `grammar.py`. Raises InputError for a pair or number beyond it.

    `made`: what `grammar_sentences` gave for the same numbers, if it was kept.
    """
    sides = [LANGUAGES.index(language) for language in languages_of(pair, "grammar")]
    made = made or grammar_sentences(train, dev, test, seed)
    splits = {
        name: Split(name, *(tuple(triple[side] for triple in triples) for side in sides))
        for name, triples in made.items()
    }
    return Corpus("grammar", pair, splits["train"], splits["dev"], {"test": splits["test"]})


def grammar_sentences(train: int, dev: int, test: int, seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Split -> (English, German, French); the test set first, so that it stays where more training is asked for."""
    return generate({"test": test, "dev": dev, "train": train}, seed)


def multi30k(pair: str) -> Corpus:
    """Multi30k from $SLT_DATA/multi30k, the cache or its public address. Raises InputError where it can't be had."""
    languages = languages_of(pair, "multi30k")

    def split(name: str, file: str, training: bool = False) -> Split:
        return _read_split(name, *(_multi30k_file(f"{file}.{language}.gz") for language in languages), training)

    tests = {name: split(name, name) for name in MULTI30K_TESTS}
    return Corpus("multi30k", pair, split("train", "train", True), split("dev", "val"), tests)


def multi30k_at_hand(pair: str) -> bool:
    """Whether all files of `multi30k(pair)` are in $SLT_DATA/multi30k or the cache, so that none is downloaded."""
    splits = ("train", "val", *MULTI30K_TESTS)
    names = [f"{split}.{language}.gz" for split in splits for language in languages_of(pair, "multi30k")]
    folders = [folder / "multi30k" for folder in (data_folder(), cache_folder()) if folder]
    return all(any((folder / name).exists() for folder in folders) for name in names)


def files(folder: str | Path, pair: str, tests: Sequence[str] = ("test",)) -> Corpus:
    """The user's own text: train.<language>, dev.<language> and <test>.<language> in a folder, plain or .gz.

    UTF-8, a sentence a line. A relative folder is looked for in $SLT_DATA, then from the current directory. Raises
    InputError where a file is missing, empty, not UTF-8, damaged, or not as long as its translation.
    """
    languages = languages_of(pair, "files")
    folder = Path(folder).expanduser()
    if (data := data_folder()) and (data / folder).is_dir():
        folder = data / folder
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; name the one that holds train.{languages[0]}")

    def split(name: str) -> Split:
        return _read_split(
            name, *(_plain_or_gz(folder / f"{name}.{language}") for language in languages), name == "train"
        )

    return Corpus("files", pair, split("train"), split("dev"), {name: split(name) for name in tests})


def cache_folder() -> Path:
    """Where downloads go: $XDG_CACHE_HOME/slt_lib, ~/.cache/slt_lib without it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slt_lib"


def fetch(url: str, path: Path, sha256: str, label: str, opener: Callable = urlopen) -> Path:
    """Download url to path with a progress bar, unless path holds the file already. Never leaves a part of it at path.

    Raises InputError where the file can't be had, is not the pinned one, or can't be stored.
    """
    by_hand = f"download {url} by hand to {path}"
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if path.exists():
            if file_sha256(path) == sha256:
                return path
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a time limit a server that falls silent would hold the study for ever.
        with opener(url, timeout=60) as source, part.open("xb") as sink:
            size = int(source.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=label, unit="B", unit_scale=True, leave=False) as bar:
                while block := source.read(1 << 16):
                    sink.write(block)
                    bar.update(len(block))
            sink.flush()
            os.fsync(sink.fileno())
        if (found := file_sha256(part)) != sha256:
            got = part.stat().st_size
            what = f"cut short at {got} of {size} bytes" if got < size else f"not the expected file (sha256 {found})"
            raise InputError(f"{path.name}: what came from {url} is {what}; try again, or {by_hand}")
        os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise InputError(f"{path.name}: can't be downloaded ({reason}); {by_hand}") from error
    finally:
        # An interrupt comes through here as well.
        if part.exists():
            part.unlink()
    return path


def check(path: Path, url: str, sha256: str, size: int = 0) -> None:
    """Raises InputError unless path holds the pinned file; size: its bytes, where known."""
    try:
        got = path.stat().st_size
        found = file_sha256(path) if got >= size else ""
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); mend it, or put {url} there") from error
    if not found:
        raise InputError(f"{path}: cut short at {got} of {size} bytes; put {url} there again")
    if found != sha256:
        raise InputError(f"{path}: sha256 is {found}, not {sha256}; delete it, or put {url} there")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_folder() -> Path | None:
    """$SLT_DATA, where corpora are looked for first."""
    return Path(text).expanduser() if (text := os.environ.get("SLT_DATA")) else None


def languages_of(pair: str, corpus: str) -> tuple[str, str]:
    """Source and target: two of those that the named corpus holds, or, of `files`, any two. Raises InputError."""
    source, _, target = pair.partition("-")
    if corpus != "files" and (source == target or not {source, target} <= set(LANGUAGES)):
        known = ", ".join(f"{a}-{b}" for a in LANGUAGES for b in LANGUAGES if a != b)
        raise InputError(f"corpus {corpus}: no language pair {pair!r}; take one of {known}")
    if source == target or not (source.isalnum() and target.isalnum()):
        raise InputError(f"corpus files: {pair!r} is no language pair; write source-target, as in en-de")
    return source, target


def _multi30k_file(name: str) -> Path:
    url, sha256 = f"{MULTI30K_URL}/{name}", MULTI30K_SHA256[name]
    if (data := data_folder()) and (path := data / "multi30k" / name).exists():
        check(path, url, sha256)
        return path
    return fetch(url, cache_folder() / "multi30k" / name, sha256, name)


def _plain_or_gz(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.exists() and not path.exists() else path


def _read_split(name: str, source: Path, target: Path, training: bool) -> Split:
    """Both sides, checked. Pairs with an empty side are skipped in training text, an error elsewhere."""
    sides = [_read_lines(path) for path in (source, target)]
    counts = [len(lines) for lines in sides]
    if counts[0] != counts[1]:
        raise InputError(
            f"{source}: {counts[0]} lines, but {target} has {counts[1]}; line by line one must translate the other"
        )
    for path, lines in zip((source, target), sides, strict=True):
        for number, line in enumerate(lines if not training else (), 1):
            if not line.strip():
                raise InputError(f"{path}: line {number} is empty; {name} needs a sentence on every line of both sides")
    pairs = [pair for pair in zip(*sides, strict=True) if pair[0].strip() and pair[1].strip()]
    if not pairs:
        raise InputError(f"{source}: no line has text both here and in {target}; give at least one sentence pair")
    return Split(name, tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def _read_lines(path: Path) -> list[str]:
    if not path.exists():
        raise InputError(f"{path}: there is no such file, nor {path.name}.gz; put it there, one sentence a line")
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); pack it or copy it again") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check that it is a file you may read") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from error
    text = text.removeprefix("\ufeff").removesuffix("\n")
    if not text:
        raise InputError(f"{path}: the file is empty; give it one sentence a line")
    # Not str.splitlines: it also splits inside sentences, at U+2028 and the like.
    return [line.removesuffix("\r") for line in text.split("\n")]
