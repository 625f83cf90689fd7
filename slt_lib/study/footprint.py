"""Measure size on disk and speed of trained runs: notebook 12. The rows go to footprint.csv."""

import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd
import torch

from slt_lib import memory
from slt_lib.base.devices import threads
from slt_lib.base.files import write_bytes
from slt_lib.base.processes import cores
from slt_lib.base.store import digest
from slt_lib.evaluation import decoding
from slt_lib.report.footprint import COLUMNS, FILE, WAYS
from slt_lib.sparse import files
from slt_lib.sparse.engine import Engine
from slt_lib.study.chains import Chain
from slt_lib.study.opening import Opened
from slt_lib.study.results import figures
from slt_lib.study.runs import Run
from slt_lib.study.scores import scores
from slt_lib.train.provenance import processor
from slt_lib.transformer import prunable

SINGLES = 8  # sentences that are translated one by one
EXTRA = 20  # word pieces by which a translation may be longer than its source


def record_footprint(
    study: Opened, chains: Iterable[Chain], sentences: int = 64, seconds: float = 0.5, levels: Collection[float] = ()
) -> pd.DataFrame:
    """Rows of all scored runs of `chains`, which may come from studies with other models; written to footprint.csv.

    Speeds are of the first `sentences` of the first test set on the CPU, the best of the calls that fit into `seconds`,
    and of the first seed only: speed does not depend on the seed. `levels`: sparsities that are measured beside the
    dense models; empty: all. Rows of the same run are replaced.
    """
    every = [(chain, run) for chain in chains for run in chain.runs if not levels or run.sparsity in {0, *levels}]
    done = [(chain, run) for chain, run in every if run.ticket.listed and run.record["status"] == "ok"]
    frame = pd.DataFrame([_row(study, chain, run, sentences, seconds) for chain, run in done], columns=COLUMNS)
    frame = frame.drop_duplicates("run")
    path = figures(study.name) / FILE
    with study.store.lock(f"footprint-{digest(str(path))[:16]}"):
        known = pd.read_csv(path) if path.is_file() else frame[:0]
        both = pd.concat([known[~known.run.isin(frame.run)], frame]) if len(known) else frame
        both = both.sort_values(["pair", "study", "technique", "sparsity", "seed"])
        write_bytes(path, both.to_csv(index=False, float_format="%.6g").encode())
    return frame


def _row(study: Opened, chain: Chain, run: Run, sentences: int, seconds: float) -> list:
    weights, own = run.weights("best"), run.study
    technique = chain.technique if run.sparsity else "dense"
    score = next(iter(scores(run).values()))["bleu"]
    about = [study.pair, technique, run.sparsity, run.ticket.seed, own.name, run.id]
    about += [sum(weight.numel() for weight in weights.values()), *_bytes(run, weights), score]
    if run.ticket.seed != study.seeds[0]:
        return [*about, *[float("nan")] * len(WAYS), cores(), processor()]
    engine = Engine(own.shape, weights)
    text = next(iter(own.corpus.tests.values())).source[:sentences]
    sources = own.vocabulary.encode(list(text)).lists()
    return [*about, *(_speed(engine, sources, way, seconds) for way in WAYS), cores(), processor()]


def _bytes(run: Run, weights: dict[str, torch.Tensor]) -> list[int]:
    """Bytes on disk in the order of `report.footprint.SIZES`; vectors are counted as fp32 everywhere."""
    found, matrices = [], prunable(weights)
    for mask, dtype in ((run.mask, "fp32"), (None, "fp32"), (None, "bf16")):
        with tempfile.TemporaryDirectory() as folder:
            files.save(Path(folder), run.study.shape, weights, mask, "", "", {}, dtype)
            found.append((Path(folder) / files.ARRAYS).stat().st_size)
    others = sum(4 * weight.numel() for name, weight in weights.items() if name not in matrices)
    return [*found, memory.csc_bytes(matrices) + others, memory.compressed_csc_bytes(matrices) + others]


def _speed(engine: Engine, sources: list[list[int]], way: str, seconds: float) -> float:
    """Sentences per second."""
    beam, batch, every = WAYS[way]
    chosen = sources if batch > 1 else sources[:SINGLES]
    best, until, turns = float("inf"), time.perf_counter() + seconds, 0
    with threads(cores() if every else 1):
        while turns < 2 or time.perf_counter() < until:
            began = time.perf_counter()
            decoding.translate(engine, chosen, beam, extra=EXTRA, batch_sentences=batch)
            best, turns = min(best, time.perf_counter() - began), turns + 1
    return len(chosen) / best
