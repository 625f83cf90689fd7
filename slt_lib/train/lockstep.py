"""Many tickets trained at once on one device: a small model leaves a GPU idle between kernel launches.

All tickets take the same step on stacked weights (`stack.Stack`). A ticket's files are those of `loop.train`; either of
the two can continue what the other has begun, and their weights agree within float error.
"""

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from slt_lib.base import devices
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.base.store import RunFolder
from slt_lib.data.batches import Batches, Position
from slt_lib.evaluation import scoring
from slt_lib.evaluation.decoding import DIVERGED
from slt_lib.train.checkpoint import Job, Report, silent
from slt_lib.train.loop import dev_bleu, dev_sentences, train
from slt_lib.train.stack import Stack
from slt_lib.train.state import Data, NotFinite, Start
from slt_lib.train.step import grown_mask, mask_updates, must_be_finite, new_batches
from slt_lib.transformer import dropout_kept

WRITERS = 8  # files written at once
AHEAD = 4  # steps whose sentences and dropout are drawn before they are needed

# How many ------------------------------------------------------------


def group_size(training: Training, vocabulary: int) -> int:
    """How many tickets `Study.train` trains at once in this process.

    The value of SLT_LOCKSTEP; without it, as many as fit into the free memory of a CUDA device, and 1 on the CPU
    (one ticket after another, by `loop.train`). 1 also if several processes train one ticket together (torchrun).
    Raises InputError if SLT_LOCKSTEP is not a whole number from 1.
    """
    asked = os.environ.get("SLT_LOCKSTEP", "")
    if asked and not (asked.isdecimal() and int(asked) > 0):
        raise InputError(f"SLT_LOCKSTEP={asked}: not a whole number from 1; it says how many tickets train at once")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return 1
    if asked or devices.device().type == "cpu":
        return int(asked or 1)
    return max(1, int(0.7 * devices.free_memory(devices.device()) / bytes_per_ticket(training, vocabulary)))


def bytes_per_ticket(training: Training, vocabulary: int) -> int:
    """A generous estimate of the memory of a ticket in lockstep: weights, optimizer, activations and logits."""
    model, slots, numbers = training.model, training.batch.rows * training.batch.length, 4
    matrices = vocabulary * model.hidden + model.layers * (12 * model.hidden**2 + 4 * model.hidden * model.filter)
    layer = 40 * model.hidden + 6 * model.filter + 8 * model.heads * training.batch.length
    return numbers * (8 * matrices + slots * (2 * model.layers * layer + 6 * vocabulary))


# Training ------------------------------------------------------------


def train_together(
    training: Training,
    data: Data,
    starts: Sequence[Start],
    folders: Sequence[RunFolder],
    keeps: Sequence[Collection[int]] = (),
    reports: Sequence[Report] = (),
) -> list[dict]:
    """Train all `starts` at once, each into its folder as `loop.train` does it; returns their records.

    What is found in a folder is resumed: tickets that lag behind catch up, then all continue together. A ticket that
    diverges fails alone. `reports` are called for several steps at a time. With `pruned: stale` the tickets are trained
    one after another. Raises ValueError if they have different optimizers, and InputError if they do not fit into the
    device's memory.
    """
    reports = reports or [silent] * len(starts)
    keeps = keeps or [()] * len(starts)
    parts = list(zip(starts, folders, keeps, reports, strict=True))
    if training.pruned == "stale":
        return [train(training, data, *each) for each in parts]
    if len({start.optimizer for start in starts}) > 1:
        raise ValueError("tickets in lockstep need one optimizer")
    jobs, device = [Job(training, *each) for each in parts], devices.device()
    while running := [job for job in _standing(jobs).values() if job.state.step < training.steps]:
        first, *later = sorted({job.state.step for job in running})
        group = [job for job in running if job.state.step == first]
        try:
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                _advance(training, data, group, later[0] if later else training.steps)
        except torch.cuda.OutOfMemoryError:
            many = f"{len(group)} tickets in lockstep do not fit into the memory of {device}"
            raise InputError(f"{many}; set SLT_LOCKSTEP to fewer, and they go on where they were") from None
        for job in group:
            if job.state.failure:  # its record does not wait for the others
                job.finish(data)
    return [job.finish(data) for job in jobs]


def _standing(group: Sequence[Job]) -> dict[int, Job]:
    """Number in the group -> job, of the jobs that have not failed."""
    return {i: job for i, job in enumerate(group) if job.state.failure is None}


def _advance(training: Training, data: Data, group: list[Job], last: int) -> None:
    """Train `group`, all at one step, up to step `last` or the checkpoint at which one of them has failed."""
    began, first = time.monotonic(), group[0].state.step
    streams, of_stream = streams_of(training, data, group)
    stack = Stack(training, len(data.vocabulary), [job.state for job in group], of_stream)
    updates = [mask_updates(training, job.state.start) for job in group]
    stops = set(group[0].checkpoints).union(*updates, *(job.kept for job in group))
    losses, tokens = [], []
    with contextlib.closing(inputs_of(streams, stack, first)) as inputs:
        for step, (ids, bits, counts, positions) in zip(range(first + 1, last + 1), inputs, strict=False):
            losses.append(stack.step(ids, bits, step - 1))
            tokens.append(counts)
            if step not in stops:
                continue
            since = torch.stack(losses).t().tolist()  # waits for the device
            for i, job in _standing(group).items():
                state, stream = job.state, of_stream[i]
                state.step, state.position, state.weights = step, positions[stream], stack.weights(i)
                with job.failing():
                    _count(job, since[i], [counts[stream] for counts in tokens])
                    if step in updates[i]:
                        state.mask = grown_mask(training, state)
                        stack.set_mask(i, state.mask)
                    if step in job.kept and step not in job.checkpoints:
                        job.keep_weights()
            losses, tokens = [], []
            if step in group[0].checkpoints:
                _checkpoint(training, data, stack, group, began)
                began = time.monotonic()
                if len(_standing(group)) < len(group):
                    return


def streams_of(training: Training, data: Data, group: Sequence[Job]) -> tuple[list[Batches], list[int]]:
    """The streams of batches of a group, and the number of each ticket's: tickets of one seed and noise share one."""
    streams, of_stream = {}, []
    for job in group:
        batches = new_batches(training, data, job.state.start)
        batches.position = job.state.position
        streams.setdefault((batches.seed, batches.noise), batches)
        of_stream.append(list(streams).index((batches.seed, batches.noise)))
    return list(streams.values()), of_stream


def inputs_of(
    streams: Sequence[Batches], stack: Stack, first: int
) -> Iterator[tuple[Tensor, Tensor, list[int], list[Position]]]:
    """The inputs of each step from `first` on, without end.

    Yields ids [7, streams, rows, length], dropout bits [streams, entries], and the tokens and position of each stream.
    They are drawn a few steps ahead by threads, since numpy releases the interpreter lock while it draws.
    """

    def pinned(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if stack.device.type == "cuda" else tensor

    def sentences() -> tuple[Tensor, list[int], list[Position]]:
        batches = [next(stream) for stream in streams]
        ids = torch.stack([torch.stack(batch) for batch in batches], dim=1)
        return pinned(ids), [batch.tokens for batch in batches], [stream.position for stream in streams]

    def bits(step: int) -> Tensor:
        drawn = torch.empty(stack.bits.shape, dtype=torch.bool)
        for row, stream in zip(drawn, streams, strict=True):
            kept = dropout_kept(stack.sites, stack.rates, stream.seed, stream.noise, step).values()
            for part, values in zip(row.split(stack.counts), kept, strict=True):
                part.copy_(values.flatten())
        return pinned(drawn)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(AHEAD) as many:  # sentences come in order, dropout in any
        waiting = deque()
        for step in itertools.count(first):
            waiting.append((one.submit(sentences), many.submit(bits, step)))
            if len(waiting) > AHEAD:
                batch, drawn = (future.result() for future in waiting.popleft())
                yield batch[0], drawn, *batch[1:]


def _count(job: Job, losses: list[float], tokens: list[int]) -> None:
    """Add the losses and tokens of the last steps to the state. Raises NotFinite at a loss that is not finite."""
    for step, (loss, count) in enumerate(zip(losses, tokens, strict=True), start=job.state.step + 1 - len(losses)):
        if not math.isfinite(loss):
            raise NotFinite(f"loss not finite at step {step}")
        job.state.count(loss, count)
    job.report(len(losses), None)


# Checkpoints ------------------------------------------------------------


def _checkpoint(training: Training, data: Data, stack: Stack, group: list[Job], began: float) -> None:
    """Score dev and write the files of each ticket that has not failed. `began`: time of the checkpoint before."""
    on_cpu = stack.on_cpu()
    for i, job in _standing(group).items():
        job.state.weights, job.state.optimizer = on_cpu[i]
        with job.failing():
            must_be_finite(job.state)
    scores = _dev_bleu(training, data, stack, group)
    seconds = (time.monotonic() - began) / len(group)

    def write(i: int) -> None:
        group[i].state.seconds += seconds
        group[i].checkpoint(scores[i])

    with ThreadPoolExecutor(WRITERS) as pool:  # hashing and the disk take longer than the steps between two checkpoints
        list(pool.map(write, scores))
    for i in scores:
        group[i].report(0, group[i].state.curve[-1])


def _dev_bleu(training: Training, data: Data, stack: Stack, group: list[Job]) -> dict[int, float]:
    """Number of each ticket that has not failed -> BLEU on dev. A ticket whose logits hold NaN fails."""
    scores = {}
    if training.dev_beam > 1:
        for i, job in _standing(group).items():
            with job.failing():
                scores[i] = dev_bleu(stack.solo(i), data, training)
        return scores
    sources, references = dev_sentences(data, training)
    found = stack.translate(sources, training.dev_extra)
    for i, job in _standing(group).items():
        if found[i] is None:
            job.state.failure = f"logits not finite on dev: {DIVERGED}"
    texts = {i: data.vocabulary.decode(found[i]) for i in _standing(group)}
    return dict(zip(texts, scoring.bleu_of_each(list(texts.values()), references), strict=True))
