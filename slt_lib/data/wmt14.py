"""WMT14 from the parquet files on the Hugging Face Hub, streamed: en-fr has 40.8M pairs, so memory stays bounded.

The data sets are those of FACTS.md section 6, at pinned revisions: `wmt/wmt14` (news-commentary v9) and `wmt/wmt_t2t`
(v13, the mix that tensor2tensor trains en-de on). As in tensor2tensor, lines are stripped and pairs with an empty side
are left out.

The cleaned text (`wmt14/<key>`) and its word pieces (`encoded/<key>`) are kept in the store and mapped into memory.
Each folder appears whole or not at all. A preparation that was killed starts its unfinished folder again.
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from slt_lib.base.errors import InputError
from slt_lib.base.files import remedy
from slt_lib.base.settings import Wmt14
from slt_lib.base.store import Damaged, Store, digest, sealed, unseal, write_json
from slt_lib.data import corpora
from slt_lib.data.corpora import Corpus, Split
from slt_lib.data.vocabulary import Encoded, Vocabulary

TEXT_VERSION = 3  # raise when a change of code changes the cleaned text
ENCODING_VERSION = 1  # the same for the arrays
CHUNK = 5_000  # pairs that are read or encoded at once: the tokenizer takes several KB per sentence
SIDES = ("source", "target")


class Source(NamedTuple):
    """A folder of parquet files on the Hub; `rows` counts its training pairs."""

    repo: str
    revision: str
    folder: str
    rows: int


# By corpus.news_commentary and the language beside English. The commits are "Convert dataset to Parquet" on main.
SOURCES = {
    ("v9", "de"): Source("wmt/wmt14", "b199e406369ec1b7634206d3ded5ba45de2fe696", "de-en", 4_508_785),
    ("v9", "fr"): Source("wmt/wmt14", "b199e406369ec1b7634206d3ded5ba45de2fe696", "fr-en", 40_836_715),
    ("v13", "de"): Source("wmt/wmt_t2t", "4c6696c8a5ea80b1993611b14e7b42bcd7fb2fb2", "de-en", 4_592_289),
}

# Split -> name in sacrebleu and sentences by language; of the filtered en-fr set no source gives the count.
TEST_SETS = {
    "dev": ("wmt13", {"de": 3000, "fr": 3000}),
    "newstest2014": ("wmt14/full", {"de": 3003, "fr": 3003}),
    "newstest2014-filtered": ("wmt14", {"de": 2737}),
}


def corpus(pair: str, settings: Wmt14, store: Store) -> Corpus:
    """WMT14 for en-de, en-fr or their reverse; the training text is prepared once in `store`.

    Dev is newstest2013. The test sets are newstest2014, whole and filtered (the official set). Raises InputError if a
    file is not available or not the expected one, or if the disk is full.
    """
    from datasets import Dataset

    folder = _folder(pair, settings, store)
    tests = {name: _test_set(name, pair) for name in TEST_SETS}
    record = _made(folder, store, lambda part: _clean(pair, settings, part / "text.arrow"))
    text = Dataset.from_file(str(folder / "text.arrow"))
    train = Streamed("train", text["source"], text["target"], settings.sample, store=store, record=record)
    return Corpus("wmt14", pair, train, tests.pop("dev"), tests)


def at_hand(pair: str, settings: Wmt14, store: Store) -> bool:
    """Whether all of `corpus` is here already, so that it downloads, prepares and waits for nothing."""
    archives = [_archive(name)["name"] for name in TEST_SETS]
    return corpora.at_hand("wmt14", archives) and bool(_whole(_folder(pair, settings, store)))


def _source(pair: str, settings: Wmt14) -> Source:
    """The parquet files of a pair. Raises InputError if there are none."""
    corpora.languages_of(pair, "wmt14")
    if (source := SOURCES.get((settings.news_commentary, _other(pair)))) is None:
        raise InputError("corpus.news_commentary: v13 has no French; write v9 for en-fr, as tensor2tensor does")
    return source


def _other(pair: str) -> str:
    """The language beside English."""
    return pair.replace("en", "").strip("-")


@dataclass(frozen=True, kw_only=True)
class Streamed(Split):
    """Training text that is too large to hold in memory.

    `record` holds its digest, the rows read, the pairs kept, those left out by reason ("empty", "length"), and the
    bytes of each side.
    """

    store: Store = field(repr=False, compare=False)
    record: dict

    @property
    def digest(self) -> str:
        return self.record["digest"]

    def sentences(self) -> Iterator[str]:
        """Both sides, or every n-th line of each, so that `sample` bytes remain."""
        for name, side in zip(SIDES, (self.source, self.target), strict=True):
            size = self.record["counts"][f"{name} bytes"]
            stride = -(-size // min(size, self.sample or size))
            yield from islice(chain.from_iterable(_chunks(side, f"vocabulary, {name}")), 0, None, stride)

    def encoded(self, vocabulary: Vocabulary) -> tuple[Encoded, Encoded]:
        """Both sides as arrays mapped from the store, uint16 if the vocabulary fits, else int32; encoded once."""
        dtype = np.dtype(np.uint16 if len(vocabulary) <= 1 << 16 else np.int32)
        of = {"text": self.digest, "vocabulary": vocabulary.digest, "version": ENCODING_VERSION}
        key = digest(of | {"tokenizers": importlib.metadata.version("tokenizers")})[:32]
        folder = self.store.path / "encoded" / key
        _made(folder, self.store, lambda part: _encode(self, vocabulary, dtype, part))

        def mapped(name: str, kind) -> np.ndarray:
            # A plain view: each slice of a memmap would be a memmap again, which takes ten times as long.
            return np.memmap(folder / name, kind, "r").view(np.ndarray)

        source, target = (Encoded(mapped(f"{side}.flat", dtype), mapped(f"{side}.offsets", np.int64)) for side in SIDES)
        return source, target


def _chunks(side: Sequence[str], label: str) -> Iterable[list[str]]:
    return tqdm(corpora.chunks(side, CHUNK), label, len(side) // CHUNK + 1, unit_scale=CHUNK, leave=False)


def _encode(train: Streamed, vocabulary: Vocabulary, dtype: np.dtype, part: Path) -> dict:
    """Write the ids of both sides and where each sentence starts in them, chunk by chunk."""
    for name, side in zip(SIDES, (train.source, train.target), strict=True):
        end = np.zeros(1, np.int64)
        with (part / f"{name}.flat").open("wb") as flat, (part / f"{name}.offsets").open("wb") as offsets:
            offsets.write(end)
            for lines in _chunks(side, f"word pieces, {name}"):
                found = vocabulary.encode(lines)
                flat.write(found.flat.astype(dtype))
                offsets.write(end + found.offsets[1:])
                end += found.offsets[-1]
    return {"pairs": len(train)}


# Folders of the store ------------------------------------------------------------


def _folder(pair: str, settings: Wmt14, store: Store) -> Path:
    """Folder of the cleaned text."""
    source, limits = _source(pair, settings), (settings.max_words, settings.max_ratio)
    of = {"pair": pair, "repo": source.repo, "revision": source.revision, "limits": limits, "version": TEXT_VERSION}
    return store.path / "wmt14" / digest(of)[:32]


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
            record = make(part) | {"files": {}}
            for path in sorted(part.iterdir()):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                stamp = path.stat()
                record["files"][path.name] = [stamp.st_size, stamp.st_mtime_ns, corpora.checksum(path)]
            write_json(part / "manifest.json", sealed(record))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
        except OSError as error:
            raise InputError(f"{folder}: {remedy(error)}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return record


def _whole(folder: Path) -> dict | None:
    """What `_made` recorded, if each file is unaltered: by its size and time or, if these differ, by its SHA-256."""
    with contextlib.suppress(Damaged, OSError):
        record = unseal(folder / "manifest.json")
        for name, (size, time, sha256) in record["files"].items():
            stamp = (folder / name).stat()
            if (stamp.st_size, stamp.st_mtime_ns) != (size, time):
                if corpora.checksum(folder / name) != sha256:
                    return None
                os.utime(folder / name, ns=(time, time))  # a copy, for example: the next look is quick again
        return record
    return None


# Cleaned text ------------------------------------------------------------


def _clean(pair: str, settings: Wmt14, path: Path) -> dict:
    """Write the cleaned pairs to `path` as an Arrow stream, and return their digest and counts."""
    import pyarrow as pa
    from datasets import Dataset

    source, counts = _source(pair, settings), Counter()
    files, total = _files(source), source.rows // CHUNK + 1
    schema = pa.schema([(side, pa.string()) for side in SIDES])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for rows in tqdm(_read(files, pair), f"{pair} text", total, unit_scale=CHUNK, leave=False):
            pairs = [[(line or "").strip() for line in row] for row in rows]
            verdicts = [_verdict(*lines, settings) for lines in pairs]
            counts.update(verdicts)
            kept = [lines for lines, verdict in zip(pairs, verdicts, strict=True) if verdict == "pairs"]
            columns = {side: [lines[number] for lines in kept] for number, side in enumerate(SIDES)}
            for side, lines in columns.items():
                counts[f"{side} bytes"] += sum(len(line.encode()) + 1 for line in lines)
            counts["rows"] += len(rows)
            writer.write_table(pa.table(columns, schema))
    if counts["rows"] != source.rows:
        raise InputError(
            f"corpus wmt14: the files of {pair} in {files[0].parent} hold {counts['rows']:,} pairs, not "
            f"{source.rows:,}; delete them, and they are downloaded again"
        )
    if not counts["pairs"]:
        raise InputError(f"corpus wmt14: no pair of {pair} is left; raise corpus.max_words and corpus.max_ratio")
    text = Dataset.from_file(str(path))
    return {"digest": Split("train", text["source"], text["target"]).digest, "counts": dict(counts)}


def _verdict(source: str, target: str, settings: Wmt14) -> str:
    """Why a pair is left out, "empty" or "length", else "pairs". Words are separated by spaces, as in Moses."""
    if not source or not target:
        return "empty"
    if settings.max_words or settings.max_ratio:
        few, many = sorted((len(source.split()), len(target.split())))
        if many > (settings.max_words or many) or many > (settings.max_ratio or many) * few:
            return "length"
    return "pairs"


def _read(files: list[Path], pair: str) -> Iterator[list[tuple[str | None, ...]]]:
    """CHUNK pairs at a time. Raises InputError for a damaged file."""
    from datasets import load_dataset

    for path in files:
        try:
            rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
            for table in rows.with_format("arrow").iter(CHUNK):
                column = table["translation"].combine_chunks()
                yield list(zip(*(column.field(language).to_pylist() for language in pair.split("-")), strict=True))
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among them
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: can't be read ({reason}); delete it, and it is downloaded again") from error


def _files(source: Source) -> list[Path]:
    """The parquet files, from $SLT_DATA/wmt14, the cache, or downloaded to it. Raises InputError."""
    from huggingface_hub import snapshot_download

    def complete(folder: Path) -> list[Path]:  # named train-00000-of-00003.parquet and so on
        paths = sorted(folder.glob("train-*-of-*.parquet"))
        return paths if paths and len(paths) == int(paths[0].stem.rpartition("-")[2]) else []

    folders = [place / source.repo.rpartition("/")[2] / source.folder for place in corpora.places("wmt14")]
    if found := complete(folders[0]) or complete(folders[-1]):
        return found
    patterns, reason = f"{source.folder}/train-*.parquet", "some are missing"
    try:
        pinned = {"repo_type": "dataset", "revision": source.revision, "allow_patterns": patterns}
        snapshot_download(source.repo, **pinned, local_dir=folders[-1].parent)
    except Exception as error:  # errors of the network, of the Hub and of the disk share no other class
        reason = " ".join(str(error).split())
    if found := complete(folders[-1]):
        return found
    raise InputError(
        f"corpus wmt14: {patterns} of {source.repo} can't be downloaded ({reason}); download the files of "
        f"https://huggingface.co/datasets/{source.repo}/tree/{source.revision}/{source.folder} by hand to {folders[-1]}"
    )


# Dev and test ------------------------------------------------------------


def _archive(name: str) -> dict[str, str]:
    """Address, checksum and file name of the archive that holds a test set, by sacrebleu."""
    from sacrebleu.dataset import DATASETS

    found = DATASETS[TEST_SETS[name][0]]
    url = found.data[0]
    return {"url": url, "known": f"md5:{found.md5[0]}", "name": found._get_tarball_filename(url)}


def _test_set(name: str, pair: str) -> Split:
    """A split of TEST_SETS, read as sacrebleu reads it. Raises InputError if its archive is not available."""
    from sacrebleu.dataset import DATASETS

    known, counts = TEST_SETS[name]
    archive, sides = corpora.find("wmt14", **_archive(name)), []
    with tarfile.open(archive) as tar:
        for member in DATASETS[known].langpairs[pair]:
            rows = tar.extractfile(member).read().decode("utf-8").split("\n")
            texts = [re.sub("<seg.*?>(.*)</seg>", r"\1", row) for row in rows if row.startswith("<seg ")]
            sides.append(tuple(" ".join(text.split()) for text in texts))
    count = counts.get(_other(pair), len(sides[0]))
    if [len(side) for side in sides] != [count] * 2 or not all(map(all, sides)):
        raise InputError(f"{archive}: {pair} is not {count} whole sentence pairs; install the pinned sacrebleu")
    return Split(name, *sides)
