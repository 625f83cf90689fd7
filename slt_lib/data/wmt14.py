"""WMT14 from its public archives, streamed: en-fr has 40.8M pairs, so no step holds more than a chunk of them.

Archives, sums and counts: FACTS.md section 6. Members as in tensor2tensor's translate_ende.py and translate_enfr.py, in
their order, and in TensorFlow Datasets' wmt_utils.py. As tensor2tensor does, lines are stripped and pairs with an empty
side are left out: 4,508,785 pairs are expected of en-de with news-commentary v9, 4,592,289 with v13, 40,836,715 of
en-fr.

What is made stays in the store: the cleaned text in chunks (`wmt14/<key>`, about 0.6 and 5 GB) and its word pieces as
flat arrays that are mapped, not read (`encoded/<key>`, about 0.6 and 6 GB). A preparation that was killed goes on with
the next chunk. The archives are read as streams; nothing but the members named here is looked at, and none is unpacked.
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import io
import itertools
import logging
import os
import shutil
import socket
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from slt_lib.base.errors import InputError
from slt_lib.base.files import sweep, write_bytes
from slt_lib.base.processes import cores, in_order
from slt_lib.base.settings import Wmt14
from slt_lib.base.store import Damaged, Store, digest, sealed, unseal, write_json
from slt_lib.data import corpora
from slt_lib.data.corpora import Corpus, Split
from slt_lib.data.vocabulary import Encoded, Vocabulary

TEXT_VERSION = 1  # raise when a change of code changes the cleaned text
ENCODING_VERSION = 1  # the same for the arrays
CHUNK = 100_000  # lines of an archive that are read, and later encoded, at once
ENCODE = 5_000  # sentences handed to the tokenizer at once: it takes several KB a sentence
SMALL = 1 << 24  # bytes that are done before other processes have begun
SIDES = ("source", "target")


@dataclass(frozen=True)
class Archive:
    """A pinned download; `member` names a side inside it, one sentence a line, itself packed where it ends in .gz."""

    url: str
    size: int
    sha256: str
    member: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


ARCHIVES = {
    "europarl-v7": Archive(
        "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
        657_632_379,
        "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        "training/europarl-v7.{pair}.{language}",
    ),
    "commoncrawl": Archive(
        "https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
        918_311_367,
        "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        "commoncrawl.{pair}.{language}",
    ),
    "news-commentary-v9": Archive(
        "https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
        80_418_416,
        "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        "training/news-commentary-v9.{pair}.{language}",
    ),
    "news-commentary-v13": Archive(
        "https://data.statmt.org/wmt18/translation-task/training-parallel-nc-v13.tgz",
        113_157_482,
        "17992b7e919cfb754c60f4e754148bc23b80706ad0ed7b34150831a554b40c91",
        "training-parallel-nc-v13/news-commentary-v13.{pair}.{language}",
    ),
    "un": Archive(
        "https://www.statmt.org/wmt13/training-parallel-un.tgz",
        2_365_634_246,
        "29141b5c1eba149a94f7a59d3b1a834b2e47fe0f8758d68dcd77a3d3f497ee47",
        "un/undoc.2000.{pair}.{language}",
    ),
    "giga-fren": Archive(
        "https://www.statmt.org/wmt10/training-giga-fren.tar",
        2_595_102_720,
        "3ff8319f6919393520559bfbc7ad6a747ec81b3abc7be9993b338d4b017b4d9a",
        "giga-fren.release2.fixed.{language}.gz",
    ),
}
# The language beside English -> archives in tensor2tensor's order; which news-commentary is a parameter.
PARTS = {
    "de": ("news-commentary", "commoncrawl", "europarl-v7"),
    "fr": ("commoncrawl", "europarl-v7", "news-commentary", "giga-fren", "un"),
}

# Split -> name in sacrebleu and sentences by language; of the filtered en-fr set no source gives the count.
TEST_SETS = {
    "dev": ("wmt13", {"de": 3000, "fr": 3000}),
    "newstest2014": ("wmt14/full", {"de": 3003, "fr": 3003}),
    "newstest2014-filtered": ("wmt14", {"de": 2737}),
}


def corpus(pair: str, settings: Wmt14, store: Store) -> Corpus:
    """WMT14 for en-de, en-fr or their reverse; prepared once in `store`, then known by its manifest.

    A core takes some two minutes a million pairs, most of them for word pieces. Up to four processes clean and encode,
    the tokenizer's threads take the other cores; all of them together hold 1.2 GiB. Dev is newstest2013; newstest2014
    comes whole and, beside it, filtered (the official set). Raises InputError where an archive or test set can't be had
    or is not the pinned one, or the disk is full.
    """
    parts = _parts(pair, settings)
    tests = _tests(pair, store)
    dev = tests.pop("dev")
    return Corpus("wmt14", pair, _train(pair, parts, settings, store), dev, tests)


def _parts(pair: str, settings: Wmt14) -> dict[str, Archive]:
    """Name -> archive, in the order in which the pair's text is joined."""
    known = ", ".join(f"{a}-{b}" for other in PARTS for a, b in (("en", other), (other, "en")))
    if pair not in known.split(", "):
        raise InputError(f"corpus wmt14: no language pair {pair!r}; take one of {known}")
    if _other(pair) == "fr" and settings.news_commentary == "v13":
        raise InputError("corpus.news_commentary: v13 has no French; write v9 for en-fr, as tensor2tensor does")
    newest = {"news-commentary": f"news-commentary-{settings.news_commentary}"}
    names = [newest.get(name, name) for name in PARTS[_other(pair)]]
    return {name: ARCHIVES[name] for name in names}


def _other(pair: str) -> str:
    """The language beside English."""
    return pair.replace("en", "").strip("-")


# Archives ------------------------------------------------------------


def locate(archive: Archive, store: Store) -> Path:
    """Where an archive lies: $SLT_DATA/wmt14, the cache, or freshly downloaded to it; its sha256 is checked.

    The check of 2.6 GB takes a while, so the store remembers it for as long as size and time of the file stay.
    """
    memory = store.path / "wmt14" / "verified.json"
    try:
        verified = unseal(memory)
    except Damaged:
        verified = {}

    def whole(path: Path) -> bool:
        return verified.get(str(path)) == [*_stamp(path), archive.sha256]

    data = corpora.data_folder()
    own = data is not None and (data / "wmt14" / archive.name).exists()
    path = (data if own else corpora.cache_folder()) / "wmt14" / archive.name
    if path.exists() and whole(path):
        return path
    if own:
        corpora.check(path, archive.url, archive.sha256, archive.size)
    else:
        corpora.fetch(archive.url, path, archive.sha256)
    write_json(memory, sealed(verified | {str(path): [*_stamp(path), archive.sha256]}))
    return path


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def blocks(path: Path, member: str, url: str) -> Iterator[list[bytes]]:
    """CHUNK raw lines of a member at a time, read as a stream. Raises InputError for a damaged archive or no member."""
    try:
        with tarfile.open(path, "r|*", bufsize=1 << 20) as tar:
            for entry in tar:
                if entry.isfile() and entry.name.removeprefix("./") == member:
                    lines = tar.extractfile(entry)
                    if member.endswith(".gz"):
                        lines = io.BufferedReader(gzip.GzipFile(fileobj=lines), 1 << 20)
                    while block := list(itertools.islice(lines, CHUNK)):
                        yield block
                    return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: {member} can't be read to its end ({reason}); put {url} there") from error
    raise InputError(f"{path}: there is no {member} inside; put {url} there")


# Cleaned text ------------------------------------------------------------


class Lines(Sequence):
    """One side of the cleaned text, read a chunk at a time. `label`: a progress bar while all of it is read."""

    def __init__(self, folder: Path, chunks: list[dict], side: str, label: str = ""):
        self.folder, self.chunks, self.side, self.label = folder, chunks, side, label
        self.starts = [0, *itertools.accumulate(chunk["pairs"] for chunk in chunks)]
        self.held = (-1, [])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]  # from the end, and IndexError, as a list has them
        number = int(np.searchsorted(self.starts, at, side="right")) - 1
        if self.held[0] != number:
            self.held = (number, self.chunk(number))
        return self.held[1][at - self.starts[number]]

    def __iter__(self) -> Iterator[str]:
        for number in tqdm(range(len(self.chunks)), self.label, unit="chunk", leave=False, disable=not self.label):
            yield from self.chunk(number)

    def chunk(self, number: int) -> list[str]:
        """The lines of one chunk. Raises InputError where its file is missing or altered."""
        chunk = self.chunks[number]
        path = self.folder / _file(chunk, self.side)
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror}); run it again to make it anew") from error
        if hashlib.sha256(packed).hexdigest() != chunk[self.side]["sha256"]:
            raise InputError(f"{path}: not what was written; delete it and run it again to make it anew")
        return gzip.decompress(packed).decode().split("\n") if chunk["pairs"] else []


def at_hand(pair: str, settings: Wmt14, store: Store) -> bool:
    """Whether `corpus` finds all it gives prepared in `store`, so that it downloads, reads and waits for nothing."""
    folder = _folder(pair, _parts(pair, settings), settings, store)
    try:
        manifest = unseal(folder / "manifest.json")
        for name in TEST_SETS:
            unseal(store.path / "wmt14" / f"{name}.{pair}.json")
    except Damaged:
        return False
    chunks = [chunk for state in manifest["parts"].values() for chunk in state["chunks"]]
    return "digest" in manifest and all(_there(folder, chunk) for chunk in chunks)


def _file(chunk: dict, side: str) -> str:
    return f"{chunk['part']}.{chunk['number']:05d}.{side}.gz"


@dataclass(frozen=True)
class Streamed(Split):
    """Training text too large to hold; `known` is its digest, `sample` bytes of each file build the vocabulary."""

    store: Store = field(repr=False, compare=False)
    chunks: list[dict] = field(repr=False, compare=False)
    known: str
    sample: int | None = None

    @property
    def digest(self) -> str:
        return self.known

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Archive -> lines read, pairs kept, and what was left out for which reason."""
        found: dict[str, Counter] = {}
        for chunk in self.chunks:
            found.setdefault(chunk["part"], Counter()).update({"pairs": chunk["pairs"], **chunk["read"]})
        return {part: dict(counter) for part, counter in found.items()}

    def sentences(self) -> Iterator[str]:
        """Both sides, or, as tensor2tensor samples them, every n-th line of each file, `sample` bytes in all."""
        for side in (self.source, self.target):
            lines = Lines(side.folder, side.chunks, side.side, f"vocabulary, {side.side}")
            if self.sample is None:
                yield from lines
                continue
            sizes = Counter()
            for chunk in self.chunks:
                sizes[chunk["part"]] += chunk[side.side]["text"]
            seen = Counter()
            for number, chunk in enumerate(self.chunks):
                stride = max(1, -(-sizes[chunk["part"]] // self.sample))
                first = -seen[chunk["part"]] % stride
                seen[chunk["part"]] += chunk["pairs"]
                if first < chunk["pairs"]:
                    yield from lines.chunk(number)[first::stride]

    def encoded(self, vocabulary: Vocabulary) -> tuple[Encoded, Encoded]:
        return _encoded(self, vocabulary)


def _folder(pair: str, parts: dict[str, Archive], settings: Wmt14, store: Store) -> Path:
    """Where the cleaned text of these archives is kept."""
    limits = settings.max_words, settings.max_ratio
    sums = [[name, archive.sha256, archive.member] for name, archive in parts.items()]
    key = digest({"pair": pair, "archives": sums, "limits": limits, "chunk": CHUNK, "version": TEXT_VERSION})[:32]
    return store.path / "wmt14" / key


def _train(pair: str, parts: dict[str, Archive], settings: Wmt14, store: Store) -> Streamed:
    """The cleaned text of all archives, from the store as far as it is there. Archives are opened for what is not."""
    limits = settings.max_words, settings.max_ratio
    folder = _folder(pair, parts, settings, store)
    record = folder / "manifest.json"
    with store.lock(f"wmt14-{folder.name}"):
        sweep(folder)
        try:
            manifest = unseal(record)
        except Damaged:
            manifest = {"parts": {name: {"chunks": [], "whole": False} for name in parts}}
        for state in manifest["parts"].values():
            there = list(itertools.takewhile(lambda chunk: _there(folder, chunk), state["chunks"]))
            if len(there) < len(state["chunks"]):
                state |= {"chunks": there, "whole": False}
                manifest.pop("digest", None)
        # every archive is checked before hours go into the first
        paths = {name: locate(parts[name], store) for name, state in manifest["parts"].items() if not state["whole"]}
        for name, path in paths.items():
            state = manifest["parts"][name]
            for chunk in _read(pair, name, parts[name], path, state["chunks"], limits, folder):
                state["chunks"].append(chunk)
                write_json(record, sealed(manifest))
            state["whole"] = True
            write_json(record, sealed(manifest))
        chunks = [chunk for name in parts for chunk in manifest["parts"][name]["chunks"]]
        if not sum(chunk["pairs"] for chunk in chunks):
            raise InputError(f"corpus wmt14: no pair of {pair} is left; raise corpus.max_words and corpus.max_ratio")
        if "digest" not in manifest:
            sides = [Lines(folder, chunks, side, f"checksum, {side}") for side in SIDES]
            manifest["digest"] = Split("train", *sides).digest
            write_json(record, sealed(manifest))
    sides = [Lines(folder, chunks, side) for side in SIDES]
    return Streamed("train", *sides, store, chunks, manifest["digest"], settings.sample)


def _there(folder: Path, chunk: dict) -> bool:
    try:
        return all((folder / _file(chunk, side)).stat().st_size == chunk[side]["packed"] for side in SIDES)
    except OSError:
        return False


def _read(
    pair: str, name: str, archive: Archive, path: Path, done: list[dict], limits: tuple, folder: Path
) -> Iterator[dict]:
    """Write the chunks of one archive that come after `done`, and yield the record of each."""
    joined = f"{_other(pair)}-en"
    members = [archive.member.format(pair=joined, language=language) for language in pair.split("-")]
    streams = [blocks(path, member, archive.url) for member in members]
    jobs = _jobs(path.stat().st_size)

    def unread() -> Iterator[tuple]:
        ahead = [readers.submit(next, stream, []) for stream in streams]
        for number in itertools.count():
            sides = [future.result() for future in ahead]
            if len(sides[0]) != len(sides[1]):
                differ = f"{members[0]} and {members[1]} differ in their count of lines"
                raise InputError(f"{path}: {differ}; put {archive.url} there")
            if not sides[0]:
                return
            ahead = [readers.submit(next, stream, []) for stream in streams]
            if number >= len(done):
                yield number, sides, limits
            else:
                bar.update(len(sides[0]))

    # a thread a side unpacks the archive, processes clean what it holds
    label = f"{pair} {name}"
    with ThreadPoolExecutor(2) as readers, tqdm(desc=label, unit="pair", unit_scale=True, leave=False) as bar:
        for number, read, pairs, texts in in_order(_cleaned, unread(), jobs):
            chunk = {"part": name, "number": number, "pairs": pairs, "read": read}
            for side, (size, content) in zip(SIDES, texts, strict=True):
                sha256 = write_bytes(folder / _file(chunk, side), content)
                chunk[side] = {"text": size, "packed": len(content), "sha256": sha256}
            yield chunk
            bar.update(read["lines"])


def _jobs(size: int) -> int:
    """Processes for `size` bytes of text: one a core, up to what the memory promised has room for."""
    return min(cores(), 4) if size >= SMALL else 1


def _cleaned(number: int, sides: list[list[bytes]], limits: tuple) -> tuple[int, dict, int, list[tuple[int, bytes]]]:
    """In a process: a chunk's number, what was read, its pairs, and of each side its size and its packed bytes."""
    kept, read = _clean(*sides, limits)
    texts = ["\n".join(lines).encode() for lines in kept]
    return number, read, len(kept[0]), [(len(text), gzip.compress(text, 1, mtime=0)) for text in texts]


def _clean(
    sources: Iterable[bytes], targets: Iterable[bytes], limits: tuple[int | None, float | None]
) -> tuple[tuple[list[str], list[str]], dict[str, int]]:
    """Pairs that stay, and why others don't. Words are counted between spaces, as Moses' clean-corpus-n counts them."""
    most, ratio = limits[0] or float("inf"), limits[1] or float("inf")
    measured = limits != (None, None)
    kept, read = ([], []), Counter()
    for pair in zip(sources, targets, strict=True):
        read["lines"] += 1
        try:
            source, target = (line.decode().strip() for line in pair)
        except UnicodeDecodeError:
            read["not UTF-8"] += 1
            continue
        if not source or not target:
            read["empty"] += 1
            continue
        if measured:
            few, many = sorted((len(source.split()), len(target.split())))
            if many > most or many > ratio * few:
                read["length"] += 1
                continue
        kept[0].append(source)
        kept[1].append(target)
    return kept, dict(read)


# Word pieces ------------------------------------------------------------


def _encoded(train: Streamed, vocabulary: Vocabulary) -> tuple[Encoded, Encoded]:
    """Both sides as arrays mapped from the store, uint16 where the vocabulary fits, int32 else; encoded once."""
    dtype = np.dtype(np.uint16 if len(vocabulary) <= 1 << 16 else np.int32)
    key = digest(
        {
            "text": train.digest,
            "vocabulary": vocabulary.digest,
            "tokenizers": importlib.metadata.version("tokenizers"),
            "version": ENCODING_VERSION,
        }
    )[:32]
    folder = train.store.path / "encoded" / key
    record = folder / "encoded.json"
    paths = [folder / f"{side}.{kind}" for side in SIDES for kind in ("flat", "offsets")]
    with train.store.lock(f"encoded-{key}"):
        sweep(folder)
        try:
            state = unseal(record)
        except Damaged:
            state = _nothing()
        if not ("sums" in state and _unaltered(paths, state, record)):
            _encode(train, vocabulary, dtype, paths, state, record)
    flat, offsets = ([_mapped(path, kind) for path in paths[i::2]] for i, kind in enumerate((dtype, np.int64)))
    return Encoded(flat[0], offsets[0]), Encoded(flat[1], offsets[1])


def _nothing() -> dict:
    """The state of an encoding that has not begun: pairs done, and the sizes of the files that hold them."""
    return {"pairs": 0, "sizes": [0, 0, 0, 0]}


def _mapped(path: Path, dtype) -> np.ndarray:
    # a plain view: each slice of a memmap would be a memmap again, which takes ten times as long
    return np.memmap(path, dtype, "r").view(np.ndarray)


def _unaltered(paths: list[Path], state: dict, record: Path) -> bool:
    """True where each file is what was written: by its size and time, or, where these changed, by its sum."""
    try:
        stamps = [_stamp(path) for path in paths]
        if stamps == state["stamps"]:
            return True
        if [corpora.file_sha256(path) for path in paths] == state["sums"]:
            write_json(record, sealed(state | {"stamps": stamps}))
            return True
    except OSError:
        pass
    return False


def _encode(
    train: Streamed, vocabulary: Vocabulary, dtype: np.dtype, paths: list[Path], state: dict, record: Path
) -> None:
    """Append chunk after chunk to the four files. `state` counts what is safe on the disk; a cut leaves no more.

    A finished `state` is one whose files were altered: all is made anew.
    """
    starts, sides = train.source.starts, (train.source, train.target)
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    short = any(size < safe for size, safe in zip(sizes, state["sizes"], strict=True))
    if short or "sums" in state or state["pairs"] not in starts:
        state = _nothing()
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(path.open("ab")) for path in paths]
            bar = stack.enter_context(tqdm(total=len(train), desc="word pieces", unit="pair", leave=False))
            bar.update(state["pairs"])
            for file, safe in zip(opened, state["sizes"], strict=True):
                file.seek(file.truncate(safe))
            first = starts.index(state["pairs"])
            jobs = _jobs(sum(chunk["source"]["text"] for chunk in train.chunks[first:]))
            calls = (
                ([Lines(lines.folder, [chunk], lines.side) for lines in sides], vocabulary, dtype)
                for chunk in train.chunks[first:]
            )
            done = in_order(_pieces, calls, jobs, max(1, cores() // jobs))
            for number, encoded in enumerate(done, first):
                for (ids, ends), flat, offsets in zip(encoded, opened[::2], opened[1::2], strict=True):
                    if not offsets.tell():
                        offsets.write(np.zeros(1, np.int64).tobytes())
                    offsets.write((ends + flat.tell() // dtype.itemsize).tobytes())
                    flat.write(ids)
                for file in opened:
                    file.flush()
                    os.fsync(file.fileno())
                bar.update(starts[number + 1] - state["pairs"])
                state = {"pairs": starts[number + 1], "sizes": [file.tell() for file in opened]}
                write_json(record, sealed(state))
        sums = {"sums": [corpora.file_sha256(path) for path in paths], "stamps": [_stamp(path) for path in paths]}
        write_json(record, sealed(state | sums))
    except BaseException as error:
        for path, safe in zip(paths, state["sizes"], strict=True):
            with contextlib.suppress(OSError):
                os.truncate(path, safe)
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{record.parent}: word pieces can't be written ({error.strerror}); make room there, then run it again"
        ) from error


def _pieces(sides: list[Lines], vocabulary: Vocabulary, dtype: np.dtype) -> list[tuple[bytes, np.ndarray]]:
    """In a process: of each side of a chunk its ids as bytes, and where each sentence ends in them."""
    found = []
    for lines in (side.chunk(0) for side in sides):
        parts = [vocabulary.encode(lines[i : i + ENCODE]) for i in range(0, len(lines), ENCODE)]
        lengths = [np.diff(part.offsets) for part in parts]
        ids = b"".join(part.flat.astype(dtype).tobytes() for part in parts)
        found.append((ids, np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))))
    return found


# Dev and test ------------------------------------------------------------


def _tests(pair: str, store: Store) -> dict[str, Split]:
    """The splits of TEST_SETS through sacrebleu, kept in the store so that a job without network has them."""
    from sacrebleu.dataset import DATASETS

    found = {}
    for name, (known, counts) in TEST_SETS.items():
        of = {"md5": DATASETS[known].md5, "sacrebleu": importlib.metadata.version("sacrebleu")}
        path = store.path / "wmt14" / f"{name}.{pair}.json"
        with store.lock(f"wmt14-{name}-{pair}"):
            try:
                kept = unseal(path)
                if kept["of"] != of:
                    raise Damaged(f"{path} is of another release")
            except Damaged:
                kept = {"of": of, **dict(zip(SIDES, _test_set(known, pair, counts.get(_other(pair))), strict=True))}
                write_json(path, sealed(kept))
        found[name] = Split(name, tuple(kept["source"]), tuple(kept["target"]))
    return found


def _test_set(name: str, pair: str, count: int | None) -> tuple[list[str], list[str]]:
    """Source and reference of one of sacrebleu's sets, md5-checked each time. Raises InputError with the remedy."""
    from sacrebleu.dataset import DATASETS
    from sacrebleu.utils import extract_tarball, get_md5sum, sacrelogger

    dataset = DATASETS[name]
    url = dataset.data[0]
    # Both by sacrebleu's own rule; requirements.txt pins the release.
    raw = Path(dataset._rawdir)
    archive = raw / dataset._get_tarball_filename(url)
    remedy = f"download {url} by hand to {archive}"
    level, limit = sacrelogger.level, socket.getdefaulttimeout()
    sacrelogger.setLevel(logging.CRITICAL + 1)  # its failures are told below, in one line
    socket.setdefaulttimeout(60)
    try:
        own = data / "wmt14" / archive.name if (data := corpora.data_folder()) else archive
        if not archive.exists() and own.exists():
            raw.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own, archive)
        dataset.maybe_download()
        # It checks only what it has just downloaded, and unpacks only that.
        if get_md5sum(archive) != dataset.md5[0]:
            raise SystemExit
        extract_tarball(str(archive), str(raw))
        dataset.process_to_text(pair)
        files = [dataset.get_source_file(pair), *dataset.get_reference_files(pair)]
        sides = [Path(file).read_text(encoding="utf-8").removesuffix("\n").split("\n") for file in files]
    except SystemExit:
        archive.unlink(missing_ok=True)
        raise InputError(f"{name}: {archive.name} is not the pinned file (md5); try again, or {remedy}") from None
    except Exception as error:  # whatever the network, tar and sacrebleu raise
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise InputError(f"{name}: can't be had through sacrebleu ({reason}); {remedy}") from error
    finally:
        sacrelogger.setLevel(level)
        socket.setdefaulttimeout(limit)
    lengths = {len(side) for side in sides}
    if len(sides) != 2 or len(lengths) != 1 or (count and lengths != {count}) or not all(map(all, sides)):
        raise InputError(
            f"{name}: {pair} has {' and '.join(map(str, map(len, sides)))} sentences"
            f"{f', not {count}' if count else ''}, or an empty one; delete {raw.parent} and run it again"
        )
    return sides[0], sides[1]
