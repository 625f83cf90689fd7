"""WMT14 from the parquet files on the Hugging Face Hub, streamed: en-fr has 40.8M pairs, so memory stays bounded.

The data sets are those of FACTS.md section 6, at pinned revisions: `wmt/wmt14` (news-commentary v9) and `wmt/wmt_t2t`
(v13, the mix that tensor2tensor trains en-de on). As in tensor2tensor, lines are stripped and pairs with an empty side
are left out.

The results stay in the store, and each folder appears whole or not at all: the cleaned text as one Arrow file
(`wmt14/<key>`) and its word pieces as flat arrays (`encoded/<key>`). Both are memory-mapped. A preparation that was
killed starts again with the stage, text or word pieces, that it had not finished.
"""

import contextlib
import importlib.metadata
import itertools
import logging
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from slt_lib.base.errors import InputError
from slt_lib.base.files import remedy
from slt_lib.base.processes import cores, in_order
from slt_lib.base.settings import Wmt14
from slt_lib.base.store import Damaged, Store, digest, sealed, unseal, write_json
from slt_lib.data import corpora
from slt_lib.data.corpora import Corpus, Split
from slt_lib.data.vocabulary import Encoded, Vocabulary

TEXT_VERSION = 2  # raise when a change of code changes the cleaned text
ENCODING_VERSION = 1  # the same for the arrays
CHUNK = 50_000  # pairs that are read, and later encoded, at once
ENCODE = 5_000  # sentences handed to the tokenizer at once: it takes several KB per sentence
SMALL = 200_000  # pairs that one process encodes before others would have started
SIDES = ("source", "target")
KINDS = ("flat", "offsets")


@dataclass(frozen=True)
class Source:
    """A data set on the Hub; `rows` counts its training pairs by the language beside English."""

    repo: str
    revision: str
    rows: dict[str, int]


# By corpus.news_commentary. Both revisions are the commits "Convert dataset to Parquet" of the main branch.
SOURCES = {
    "v9": Source("wmt/wmt14", "b199e406369ec1b7634206d3ded5ba45de2fe696", {"de": 4_508_785, "fr": 40_836_715}),
    "v13": Source("wmt/wmt_t2t", "4c6696c8a5ea80b1993611b14e7b42bcd7fb2fb2", {"de": 4_592_289}),
}

# Split -> name in sacrebleu and sentences by language; of the filtered en-fr set no source gives the count.
TEST_SETS = {
    "dev": ("wmt13", {"de": 3000, "fr": 3000}),
    "newstest2014": ("wmt14/full", {"de": 3003, "fr": 3003}),
    "newstest2014-filtered": ("wmt14", {"de": 2737}),
}


def corpus(pair: str, settings: Wmt14, store: Store) -> Corpus:
    """WMT14 for en-de, en-fr or their reverse, prepared once in `store`.

    Dev is newstest2013. The test sets are newstest2014, whole and filtered (the official set). Raises InputError if a
    file can't be had or is not the expected one, or if the disk is full.
    """
    source = _source(pair, settings)
    tests = _tests(pair, store)
    dev = tests.pop("dev")
    return Corpus("wmt14", pair, _train(pair, source, settings, store), dev, tests)


def at_hand(pair: str, settings: Wmt14, store: Store) -> bool:
    """Whether `store` holds all of `corpus` already, so that it downloads, prepares and waits for nothing."""
    try:
        for name in TEST_SETS:
            unseal(store.path / "wmt14" / f"{name}.{pair}.json")
    except Damaged:
        return False
    return _whole(store.path / "wmt14" / _key(pair, _source(pair, settings), settings)) is not None


def _source(pair: str, settings: Wmt14) -> Source:
    other = _other(pair)
    known = SOURCES["v9"].rows
    if other not in known or pair not in (f"en-{other}", f"{other}-en"):
        pairs = ", ".join(f"{a}-{b}" for other in known for a, b in (("en", other), (other, "en")))
        raise InputError(f"corpus wmt14: no language pair {pair!r}; take one of {pairs}")
    if other not in SOURCES[settings.news_commentary].rows:
        raise InputError("corpus.news_commentary: v13 has no French; write v9 for en-fr, as tensor2tensor does")
    return SOURCES[settings.news_commentary]


def _other(pair: str) -> str:
    """The language beside English."""
    return pair.replace("en", "").strip("-")


# Files of the store ------------------------------------------------------------


def _made(folder: Path, store: Store, make: Callable[[Path], dict]) -> dict:
    """The record of a folder that appears whole or not at all. `make` fills a temporary folder and returns the record.

    A folder with a file that is missing or altered is made again. Raises InputError if the disk is full.
    """
    part = folder.with_name(f".{folder.name}.part")
    with store.lock(f"{folder.parent.name}-{folder.name}"):
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        if (record := _whole(folder)) is not None:
            return record
        try:
            part.mkdir(parents=True)
            record = make(part)
            files = {}
            for path in sorted(part.iterdir()):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                files[path.name] = [*_stamp(path), corpora.file_sha256(path)]
            write_json(part / "manifest.json", sealed(record | {"files": files}))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
        except OSError as error:
            raise InputError(f"{folder}: {remedy(error)}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return record


def _whole(folder: Path) -> dict | None:
    """What `_made` recorded, if each file is unaltered: by its size and time or, where these differ, by its SHA-256."""
    try:
        record = unseal(folder / "manifest.json")
        stamps = {name: _stamp(folder / name) for name in record["files"]}
        changed = {name: stamp for name, stamp in stamps.items() if stamp != record["files"][name][:2]}
        if any(corpora.file_sha256(folder / name) != record["files"][name][2] for name in changed):
            return None
        if changed:  # a copy, say: the next look is quick again
            record["files"] |= {name: [*stamp, record["files"][name][2]] for name, stamp in changed.items()}
            write_json(folder / "manifest.json", sealed(record))
    except (Damaged, OSError):
        return None
    return record


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


# Cleaned text ------------------------------------------------------------


class Lines(Sequence):
    """One side of the cleaned text: a column of a memory-mapped Arrow file."""

    def __init__(self, column):
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.column[index].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            yield from chunk.to_pylist()


@dataclass(frozen=True)
class Streamed(Split):
    """Training text that is too large to hold in memory.

    Attributes:
        known: its digest.
        counts: rows read, pairs kept, rows left out by reason ("empty", "length"), and the bytes of each side.
        sample: bytes of each side that a vocabulary is built from; None: all.
    """

    store: Store = field(repr=False, compare=False)
    known: str
    counts: dict[str, int]
    sample: int | None = None

    @property
    def digest(self) -> str:
        return self.known

    def sentences(self) -> Iterator[str]:
        """Both sides, or every n-th line of each, so that `sample` bytes remain."""
        for name, side in zip(SIDES, (self.source, self.target), strict=True):
            stride = max(1, -(-self.counts[f"{name} bytes"] // self.sample)) if self.sample else 1
            label = f"vocabulary, {name}"
            lines = itertools.islice(side, 0, None, stride)
            yield from tqdm(lines, label, -(-len(side) // stride), unit="line", unit_scale=True, leave=False)

    def encoded(self, vocabulary: Vocabulary) -> tuple[Encoded, Encoded]:
        """Both sides as arrays mapped from the store, uint16 if the vocabulary fits, else int32; encoded once."""
        dtype = np.dtype(np.uint16 if len(vocabulary) <= 1 << 16 else np.int32)
        of = {"text": self.digest, "vocabulary": vocabulary.digest, "version": ENCODING_VERSION}
        key = digest(of | {"tokenizers": importlib.metadata.version("tokenizers")})[:32]
        folder = self.store.path / "encoded" / key
        _made(folder, self.store, lambda part: _encode(self, vocabulary, dtype, part))
        flat, offsets = (
            [_mapped(folder / f"{side}.{kind}", t) for side in SIDES]
            for kind, t in zip(KINDS, (dtype, np.int64), strict=True)
        )
        return Encoded(flat[0], offsets[0]), Encoded(flat[1], offsets[1])


def _key(pair: str, source: Source, settings: Wmt14) -> str:
    limits = settings.max_words, settings.max_ratio
    of = {"pair": pair, "repo": source.repo, "revision": source.revision, "limits": limits, "version": TEXT_VERSION}
    return digest(of)[:32]


def _train(pair: str, source: Source, settings: Wmt14, store: Store) -> Streamed:
    import pyarrow as pa

    folder = store.path / "wmt14" / _key(pair, source, settings)
    record = _made(folder, store, lambda part: _clean_all(pair, source, settings, part / "text.arrow"))
    table = pa.ipc.open_file(pa.memory_map(str(folder / "text.arrow"))).read_all()
    sides = [Lines(table[side]) for side in SIDES]
    return Streamed("train", *sides, store, record["digest"], record["counts"], settings.sample)


def _clean_all(pair: str, source: Source, settings: Wmt14, path: Path) -> dict:
    """Write the cleaned pairs to `path`, and return their digest and counts."""
    import pyarrow as pa

    counts, limits = Counter(), (settings.max_words, settings.max_ratio)
    rows = source.rows[_other(pair)]
    schema = pa.schema([(side, pa.large_string()) for side in SIDES])
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
        tqdm(total=rows, desc=f"{pair} text", unit="pair", unit_scale=True, leave=False) as bar,
    ):
        for sides in _read(pair, source):
            kept = _clean(*sides, limits, counts)
            columns = [pa.array(side, pa.large_string()) for side in kept]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            for name, column in zip(SIDES, kept, strict=True):
                counts[f"{name} bytes"] += sum(len(line.encode()) + 1 for line in column)
            bar.update(len(sides[0]))
    if counts["rows"] != rows:
        folder = _places(pair, source)[-1]
        raise InputError(
            f"corpus wmt14: the files of {pair} hold {counts['rows']:,} pairs, not {rows:,}; put those of "
            f"{_address(pair, source)} into {folder}"
        )
    if not counts["pairs"]:
        raise InputError(f"corpus wmt14: no pair of {pair} is left; raise corpus.max_words and corpus.max_ratio")
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return {"digest": Split("train", *(Lines(table[side]) for side in SIDES)).digest, "counts": dict(counts)}


def _places(pair: str, source: Source) -> list[Path]:
    """Folders that may hold the parquet files of a pair, in the order in which they are searched."""
    folders = [folder for folder in (corpora.data_folder(), corpora.cache_folder()) if folder]
    return [folder / "wmt14" / source.repo.rpartition("/")[2] / f"{_other(pair)}-en" for folder in folders]


def _address(pair: str, source: Source) -> str:
    return f"https://huggingface.co/datasets/{source.repo}/tree/{source.revision}/{_other(pair)}-en"


def _files(pair: str, source: Source) -> list[Path]:
    """The parquet files, from $SLT_DATA/wmt14, the cache, or downloaded to it. Raises InputError."""
    for folder in _places(pair, source):
        if paths := _complete(folder):
            return paths
    from huggingface_hub import snapshot_download

    try:
        patterns = f"{folder.name}/train-*.parquet"
        snapshot_download(
            source.repo,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=patterns,
            local_dir=folder.parent,
        )
        if paths := _complete(folder):
            return paths
        reason = "some are missing"
    except Exception as error:  # errors of the network, of the Hub and of the disk share no other class
        reason = " ".join(str(error).split())
    raise InputError(
        f"corpus wmt14: {patterns} of {source.repo} can't be downloaded ({reason}); download the files of "
        f"{_address(pair, source)} by hand to {folder}"
    )


def _complete(folder: Path) -> list[Path]:
    """The training files, named train-00000-of-00003.parquet and so on, if none is missing."""
    paths = sorted(folder.glob("train-*-of-*.parquet"))
    wanted = int(paths[0].stem.rpartition("-")[2]) if paths else 0
    return paths if len(paths) == wanted else []


def _read(pair: str, source: Source) -> Iterator[tuple[list[str], list[str]]]:
    """Both sides of CHUNK rows at a time, in the order of the files. Raises InputError for a damaged file."""
    from datasets import load_dataset

    for path in _files(pair, source):
        try:
            rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
            for table in rows.with_format("arrow").iter(CHUNK):
                column = table["translation"].combine_chunks()
                yield tuple(column.field(language).to_pylist() for language in pair.split("-"))
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
            reason = " ".join(str(error).split())
            url = f"{_address(pair, source)}/{path.name}"
            raise InputError(f"{path}: can't be read ({reason}); delete it, or put {url} there") from error


def _clean(
    sources: list[str], targets: list[str], limits: tuple[int | None, float | None], counts: Counter
) -> tuple[list[str], list[str]]:
    """The pairs that stay. Words are separated by spaces, as in Moses' clean-corpus-n."""
    most, ratio = limits[0] or float("inf"), limits[1] or float("inf")
    kept = [], []
    for source, target in zip(sources, targets, strict=True):
        counts["rows"] += 1
        source, target = (source or "").strip(), (target or "").strip()
        if not source or not target:
            counts["empty"] += 1
            continue
        if limits != (None, None):
            few, many = sorted((len(source.split()), len(target.split())))
            if many > most or many > ratio * few:
                counts["length"] += 1
                continue
        kept[0].append(source)
        kept[1].append(target)
    counts["pairs"] += len(kept[0])
    return kept


# Word pieces ------------------------------------------------------------


def _mapped(path: Path, dtype) -> np.ndarray:
    # A plain view: each slice of a memmap would be a memmap again, which takes ten times as long.
    return np.memmap(path, dtype, "r").view(np.ndarray)


def _encode(train: Streamed, vocabulary: Vocabulary, dtype: np.dtype, part: Path) -> dict:
    """Write the ids of both sides and where each sentence starts in them, chunk by chunk."""
    chunks = zip(train.source.column.chunks, train.target.column.chunks, strict=True)
    calls = (([side.to_pylist() for side in sides], vocabulary, dtype) for sides in chunks)
    jobs = min(cores(), 4) if len(train) > SMALL else 1
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context((part / f"{side}.{kind}").open("wb")) for kind in KINDS] for side in SIDES]
        bar = tqdm(total=len(train), desc="word pieces", unit="pair", unit_scale=True, leave=False)
        stack.enter_context(bar)
        for _, offsets in files:
            offsets.write(np.zeros(1, np.int64).tobytes())
        for encoded in in_order(_pieces, calls, jobs, max(1, cores() // jobs)):
            for (ids, ends), (flat, offsets) in zip(encoded, files, strict=True):
                offsets.write((ends + flat.tell() // dtype.itemsize).tobytes())
                flat.write(ids)
            bar.update(len(encoded[0][1]))
    return {"pairs": len(train)}


def _pieces(sides: list[list[str]], vocabulary: Vocabulary, dtype: np.dtype) -> list[tuple[bytes, np.ndarray]]:
    """In a process: of each side of a chunk its ids as bytes, and where each sentence ends in them."""
    found = []
    for lines in sides:
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
