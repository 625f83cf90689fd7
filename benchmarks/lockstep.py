"""How fast tickets train in lockstep: python -m benchmarks.lockstep [--tickets 1 2 4 ...] [--study multi30k].

Without --study: target tokens per second by number of tickets, on sentences of random ids of the shape of Multi30k (no
corpus needed), the time to score dev, peak memory, and the estimated time of the 128 trainings of one pair with two
seeds; written to benchmarks/lockstep.csv. Without a GPU a tiny model is trained, only to show that it works.
With --study: all chains of one pair are trained and the groups are timed, in a temporary store unless SLT_RUNS is set
(then an interrupted call continues). No test set is decoded.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from slt_lib.base import devices
from slt_lib.base import settings as params
from slt_lib.base.errors import InputError
from slt_lib.base.store import RunFolder
from slt_lib.data.vocabulary import Encoded
from slt_lib.train import lockstep
from slt_lib.train.checkpoint import Job, checkpoints, silent
from slt_lib.train.provenance import processor
from slt_lib.train.stack import Stack
from slt_lib.train.state import Data, Start
from slt_lib.train.step import new_model
from slt_lib.transformer import theta_0

OUTPUT = Path(__file__).with_name("lockstep.csv")
TICKETS = (1, 2, 4, 8, 16, 32)
SEEDS = 2  # as in the study; tickets of one seed and depth share sentences and dropout
WAVES = (26, 10, 10, 20, 8, 8, 8, 8, 6, 6, 6, 6, 6)  # tickets ready together in multi30k en-de, seeds 1 and 2
TINY = {"layers": 1, "hidden": 32, "filter": 64, "heads": 2}


class Ids:
    """A vocabulary without text: training needs only its size."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


def sentences(count: int, vocabulary: int, draw: np.random.Generator) -> Encoded:
    """Sentences of random ids, about as long as those of Multi30k: 15 word pieces on average, 4 to 40."""
    lengths = np.clip(draw.normal(15, 5, count).astype(np.int64), 4, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = draw.integers(3, vocabulary, offsets[-1]).astype(np.int32)
    flat[offsets[1:] - 1] = 1
    return Encoded(flat, offsets)


def measured(settings: params.Training, data: Data, count: int, seconds: float, folder: Path) -> dict[str, float]:
    """Tokens per second and other measures of `count` tickets in lockstep."""
    device, seeds = devices.device(), range(1, min(SEEDS, count) + 1)
    vocabulary = len(data.vocabulary)
    weights = {seed: theta_0(new_model(settings, vocabulary), seed) for seed in seeds}
    mask = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights[1].items() if w.dim() == 2}
    mask.pop("target_space")
    group = []
    for i in range(count):
        seed = seeds[i % len(seeds)]
        start = Start(weights[seed], mask, None, settings.optimizer, seed, 0)
        group.append(Job(settings, start, RunFolder(folder / str(i))))
    streams, of_stream = lockstep.streams_of(settings, data, group)
    stack = Stack(settings, vocabulary, [job.state for job in group], of_stream)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    warm = 10 if device.type == "cuda" else 2
    tokens, taken, losses = 0, 0, None
    with contextlib.closing(lockstep.inputs_of(streams, stack, 0)) as inputs:
        for step, (ids, bits, counts, _) in enumerate(inputs):
            losses = stack.step(ids, bits, step)
            if step < warm:
                losses.tolist()
                began = time.monotonic()
                continue
            tokens += sum(counts[stream] for stream in of_stream)
            taken += 1
            if taken % 10 == 0:
                losses.tolist()  # waits for the device
                if time.monotonic() - began > seconds:
                    break
    passed = time.monotonic() - began
    stack.translate(data.dev_source.lists()[:8], 2)  # warm-up of libraries
    began = time.monotonic()
    stack.translate(data.dev_source.lists(), 20)  # untrained: no sentence ends early
    return {
        "tokens_per_second": tokens / passed,
        "step_ms": 1000 * passed / taken,
        "dev_seconds": time.monotonic() - began,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0,
        "estimate_gib": count * lockstep.bytes_per_ticket(settings, vocabulary) / 2**30,
        "graph": float(bool(stack.graph)),
        "ok": float(device.type == "cpu" or bool(torch.isfinite(losses).all())),
    }


def sweep(tickets: list[int], seconds: float) -> None:
    """Print the table of tokens per second by number of tickets, and write the CSV on a GPU."""
    device = devices.device()
    study = params.load("multi30k")
    settings, vocabulary = study.training, study.vocabulary
    if device.type == "cpu":
        shape = params.BatchShape(rows=8, length=32)
        settings = settings.model_copy(update={"model": params.Model(**TINY), "batch": shape, "precision": "fp32"})
        vocabulary, tickets, seconds = 200, [n for n in tickets if n <= 4], min(seconds, 1.0)
    draw = np.random.default_rng(1)
    source, target = (sentences(5000, vocabulary, draw) for _ in range(2))
    dev = sentences(1014 if device.type == "cuda" else 16, vocabulary, draw)
    data = Data(Ids(vocabulary), source, target, dev, [])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    setting = "multi30k" if device.type == "cuda" else "tiny"
    print(f"{name}, torch {torch.__version__}, {settings.precision}, {setting}: target tokens per second", flush=True)
    print("tickets  tokens/s  times one  ms a step  dev s  peak GiB  estimated  graph", flush=True)
    rows, found = [], {}
    for count in tickets:
        with tempfile.TemporaryDirectory() as folder:
            try:
                got = measured(settings, data, count, seconds, Path(folder))
            except torch.cuda.OutOfMemoryError:
                print(f"{count:7}  out of memory", flush=True)
                break
        found[count] = got
        ratio = got["tokens_per_second"] / found[tickets[0]]["tokens_per_second"]
        print(
            f"{count:7} {got['tokens_per_second']:9.0f} {ratio:10.2f} {got['step_ms']:10.2f} {got['dev_seconds']:6.2f}"
            f" {got['peak_gib']:9.2f} {got['estimate_gib']:10.2f}  {'yes' if got['graph'] else 'no'}"
            f"{'' if got['ok'] else '  LOSS NOT FINITE'}",
            flush=True,
        )
        units = {"tokens_per_second": "tokens/s", "step_ms": "ms", "dev_seconds": "s", "peak_gib": "GiB"}
        for key, unit in units.items():
            times = f"{got[key] / found[tickets[0]][key]:.3f}" if found[tickets[0]][key] else ""
            rows.append((f"lockstep {key}", f"{setting}, {count} tickets", name, f"{got[key]:.4g}", unit, times))
        if device.type == "cuda":
            with OUTPUT.open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("measure", "setting", "system", "value", "unit", "ratio"))
                writer.writerows(rows)
    if len(found) > 1 and device.type == "cuda":
        known = sorted(found)

        def at(key: str, width: int) -> float:
            """Interpolated in the table; proportional to the width beyond its end."""
            value = float(np.interp(width, known, [found[n][key] for n in known]))
            return value * max(1.0, width / known[-1])

        marks = len(checkpoints(settings))
        stepping = sum(settings.steps * at("step_ms", width) / 1000 for width in WAVES)
        scoring = sum(marks * at("dev_seconds", width) for width in WAVES)
        print(
            f"{sum(WAVES)} trainings in {len(WAVES)} waves: {stepping:.0f} s of steps, {scoring:.0f} s of decoding dev "
            f"(20 pieces more than the source), files, BLEU and masks not counted"
        )


def whole(name: str, pair: str, seeds: list[int]) -> None:
    """Train all chains of one pair and print how long each group took."""
    from slt_lib.study import Study
    from slt_lib.techniques import RECIPES

    study = Study(name, pair, seeds)
    data = study.data  # read before the clock starts
    del data
    trained, real = [], lockstep.train_together

    def timed(settings, data, starts, folders, keeps, reports):
        before = time.monotonic()
        records = real(settings, data, starts, folders, keeps, [silent] * len(starts))
        seconds = time.monotonic() - before
        tokens = sum(record["target_tokens"] for record in records)
        failed = sum(record["status"] == "failed" for record in records)
        trained.append(len(records))
        print(
            f"{len(records):3} tickets {seconds:7.1f} s {tokens / seconds:10.0f} tokens/s, {failed} failed; "
            f"{time.monotonic() - began:.0f} s so far",
            flush=True,
        )
        return records

    lockstep.train_together = timed
    wanted = ["dense", *study.params.pairs[study.pair]]
    began = time.monotonic()
    study.follow([study.chain(RECIPES[technique], seed) for seed in study.seeds for technique in wanted])
    seconds = time.monotonic() - began
    print(f"{study.name} {study.pair}, seeds {study.seeds}: {sum(trained)} trainings in {seconds:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tickets", type=int, nargs="+", default=list(TICKETS))
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each number of tickets is measured")
    parser.add_argument("--study", default="", help="train this study instead, such as multi30k")
    parser.add_argument("--pair", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    options = parser.parse_args()
    try:
        if not options.study:
            sweep(sorted(options.tickets), options.seconds)
            return 0
        if devices.device().type == "cpu":
            os.environ["SLT_LOCKSTEP"] = os.environ.get("SLT_LOCKSTEP") or "4"
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SLT_RUNS"] = os.environ.get("SLT_RUNS") or folder
            whole(options.study, options.pair, options.seeds)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
