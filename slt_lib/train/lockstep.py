"""Many tickets trained at once on one device: a small model leaves a GPU idle between kernel launches.

All tickets take the same step on stacked weights (`stack.Stack`). A ticket's files are those of `loop.train`; either of
the two can continue what the other has begun, and their weights agree within float error.
"""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from slt_lib.base import devices
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.base.store import RunFolder
from slt_lib.data.batches import Batches, Position
from slt_lib.evaluation import decoding, scoring
from slt_lib.train.checkpoint import Marks, finish, keep_weights, marks_of, resume, write_checkpoint
from slt_lib.train.greedy import translate_all
from slt_lib.train.loop import DEV_BATCH, Report, dev_bleu, dev_sentences, silent, train
from slt_lib.train.stack import Stack
from slt_lib.train.state import Data, NotFinite, Start, TrainState
from slt_lib.train.step import grown_mask, new_batches, noise_of
from slt_lib.transformer import dropout_kept

WRITERS = 8  # files written at once
AHEAD = 4  # steps whose sentences and dropout are drawn before they are needed
DECODED_ROWS = 32768  # sentences times tickets decoded at once on CUDA, at most


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
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return 1
    if asked or (device := devices.device()).type == "cpu":
        return int(asked or 1)
    return max(1, int(0.7 * _free(device) / bytes_per_ticket(training, vocabulary)))


def _free(device: torch.device) -> int:
    """Bytes of a CUDA device that are free, or held unused by torch."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def bytes_per_ticket(training: Training, vocabulary: int) -> int:
    """A generous estimate of the memory of a ticket in lockstep: weights, optimizer, activations and logits."""
    model, slots, numbers = training.model, training.batch.rows * training.batch.length, 4
    matrices = vocabulary * model.hidden + model.layers * (12 * model.hidden**2 + 4 * model.hidden * model.filter)
    layer = 40 * model.hidden + 6 * model.filter + 8 * model.heads * training.batch.length
    return numbers * (8 * matrices + slots * (2 * model.layers * layer + 6 * vocabulary))


# Training ------------------------------------------------------------


@dataclass
class TicketState:
    """A ticket in lockstep: its state at its last checkpoint, where it writes, and its record once it has ended."""

    state: TrainState
    folder: RunFolder
    marks: Marks
    report: Report = silent
    record: dict | None = None


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
    tickets = [open_ticket(training, *each) for each in parts]
    while True:
        for ticket in tickets:
            if ticket.record is None and (ticket.state.failure or ticket.state.step == training.steps):
                dropped = new_batches(training, data, ticket.state.start).dropped
                ticket.record = finish(ticket.folder, training, ticket.state, dropped)
        running = [ticket for ticket in tickets if ticket.record is None]
        if not running:
            return [ticket.record for ticket in tickets]
        first, *later = sorted({ticket.state.step for ticket in running})
        group = [ticket for ticket in running if ticket.state.step == first]
        device = devices.device()
        try:
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                _advance(training, data, group, later[0] if later else training.steps)
        except torch.cuda.OutOfMemoryError:
            many = f"{len(group)} tickets in lockstep do not fit into the memory of {device}"
            raise InputError(f"{many}; set SLT_LOCKSTEP to fewer, and they go on where they were") from None


def open_ticket(
    training: Training, start: Start, folder: RunFolder, keep: Collection[int] = (), report: Report = silent
) -> TicketState:
    """A ticket with the state that its folder holds."""
    ticket = TicketState(resume(folder, training, start), folder, marks_of(training, start, keep), report)
    if ticket.state.step:
        report(ticket.state.step, None)
    return ticket


def _advance(training: Training, data: Data, group: list[TicketState], last: int) -> None:
    """Train `group`, all at one step, up to step `last` or the checkpoint at which one of them has failed."""
    began, first = time.monotonic(), group[0].state.step
    streams, of_stream = streams_of(training, data, group)
    stack = Stack(training, len(data.vocabulary), [ticket.state for ticket in group], of_stream)
    checkpoints = set(group[0].marks.checkpoints)
    stops = checkpoints.union(*({*ticket.marks.kept, *ticket.marks.updates} for ticket in group))
    losses, tokens = [], []
    inputs = inputs_of(streams, stack, range(first, last))
    with contextlib.closing(inputs):
        for number, (ids, bits, counts, positions) in zip(range(first, last), inputs, strict=True):
            losses.append(stack.step(ids, bits, number))
            tokens.append(counts)
            done = number + 1
            if done not in stops:
                continue
            for i, values in enumerate(torch.stack(losses).t().tolist()):  # waits for the device
                _add_losses(group[i], values, [counts[of_stream[i]] for counts in tokens], done)
            losses, tokens = [], []
            for i, ticket in enumerate(group):
                if done in ticket.marks.updates:
                    _prune(training, stack, i, ticket, done)
                if ticket.state.failure is None and done in ticket.marks.kept - checkpoints:
                    ticket.state.step, ticket.state.weights = done, stack.weights(i)
                    keep_weights(ticket.folder, ticket.state)
            if done in checkpoints:
                for ticket, stream in zip(group, of_stream, strict=True):
                    ticket.state.step, ticket.state.position = done, positions[stream]
                _checkpoint(training, data, stack, group, began)
                began = time.monotonic()
                if any(ticket.state.failure for ticket in group):
                    return


def streams_of(training: Training, data: Data, group: Sequence[TicketState]) -> tuple[list[Batches], list[int]]:
    """The streams of batches of a group, and the number of each ticket's: tickets of one seed and noise share one."""
    streams = {}
    keys = [(ticket.state.start.seed, noise_of(training, ticket.state.start)) for ticket in group]
    for key, ticket in zip(keys, group, strict=True):
        if key not in streams:
            streams[key] = new_batches(training, data, ticket.state.start)
            streams[key].position = ticket.state.position
    numbers = {key: number for number, key in enumerate(streams)}
    return list(streams.values()), [numbers[key] for key in keys]


def inputs_of(
    streams: Sequence[Batches], stack: Stack, steps: range
) -> Iterator[tuple[Tensor, list[Tensor], list[int], list[Position]]]:
    """The inputs of each step: ids [7, streams, rows, length], and per stream dropout bits, tokens and position.

    They are drawn a few steps ahead by threads, since numpy releases the interpreter lock while it draws.
    """

    def pinned(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if stack.device.type == "cuda" else tensor

    def sentences():
        batches = [(next(stream), stream.position) for stream in streams]
        ids = torch.stack([torch.stack(batch) for batch, _ in batches], dim=1)
        return pinned(ids), [batch.tokens for batch, _ in batches], [position for _, position in batches]

    def bits(stream: Batches, step: int) -> Tensor:
        kept = dropout_kept(stack.sites, stack.rates, stream.seed, stream.noise, step)
        return pinned(torch.cat([values.flatten() for values in kept.values()]))

    def collected(batch, drawn):
        ids, tokens, positions = batch.result()
        return ids, [each.result() for each in drawn], tokens, positions

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(8) as many:  # sentences come in order, dropout in any
        waiting = deque()
        for step in steps:
            drawn = [many.submit(bits, stream, step) for stream in streams if stack.counts]
            waiting.append((one.submit(sentences), drawn))
            if len(waiting) > AHEAD:
                yield collected(*waiting.popleft())
        while waiting:
            yield collected(*waiting.popleft())


def _add_losses(ticket: TicketState, losses: list[float], tokens: list[int], step: int) -> None:
    """Add the losses and tokens of the steps up to `step`, or record at which of them the loss was not finite."""
    state = ticket.state
    for at, (loss, count) in enumerate(zip(losses, tokens, strict=True), start=step + 1 - len(losses)):
        if state.failure is None and not math.isfinite(loss):
            state.failure = f"loss not finite at step {at}"
        if state.failure is None:
            state.loss += loss
            state.since += 1
            state.tokens += count
    if state.failure is None:
        ticket.report(len(losses), None)


def _prune(training: Training, stack: Stack, i: int, ticket: TicketState, step: int) -> None:
    """Give a gradual ticket its next mask."""
    state = ticket.state
    try:
        if state.failure is None:
            state.mask = grown_mask(training, state.start, step, ticket.marks.end, stack.weights(i), state.mask)
            stack.set_mask(i, state.mask)
    except NotFinite as error:
        state.failure = str(error)


# Checkpoints ------------------------------------------------------------


def _checkpoint(training: Training, data: Data, stack: Stack, group: list[TicketState], began: float) -> None:
    """Score dev and write the files of each ticket that has not failed. `began`: time of the checkpoint before."""
    for ticket, finite in zip(group, stack.finite(), strict=True):
        if ticket.state.failure is None and not finite:
            ticket.state.failure = f"weights not finite at step {ticket.state.step}"
    scores = _dev_bleu(training, data, stack, group)
    seconds = (time.monotonic() - began) / len(group)

    def write(ticket: TicketState, copies, bleu: float) -> None:
        if ticket.state.failure is None:
            ticket.state.weights, ticket.state.optimizer = copies
            ticket.state.seconds += seconds
            write_checkpoint(ticket.folder, training, ticket.marks, ticket.state, bleu)

    with ThreadPoolExecutor(WRITERS) as pool:  # hashing and the disk take longer than the steps between two checkpoints
        list(pool.map(write, group, stack.copies(), scores))
    for ticket in group:
        if ticket.state.failure is None:
            ticket.report(0, ticket.state.curve[-1])


def _dev_bleu(training: Training, data: Data, stack: Stack, group: list[TicketState]) -> list[float]:
    """BLEU on dev of each ticket; a ticket whose logits hold NaN fails."""
    scores = [0.0] * len(group)
    standing = [i for i, ticket in enumerate(group) if ticket.state.failure is None]
    if training.dev_beam > 1:
        for i in standing:
            try:
                scores[i] = dev_bleu(stack.solo(i), data, training)
            except NotFinite as error:
                group[i].state.failure = str(error)
        return scores
    sources, references = dev_sentences(data, training)
    found = translate_dev(stack, sources, training.dev_extra, standing)
    for i in standing:
        if found[i] is None:
            group[i].state.failure = f"logits not finite on dev: {decoding.DIVERGED}"
    standing = [i for i in standing if found[i] is not None]
    texts = [data.vocabulary.decode(found[i]) for i in standing]
    for i, bleu in zip(standing, scoring.bleu_of_each(texts, references), strict=True):
        scores[i] = bleu
    return scores


def translate_dev(stack: Stack, sources: Sequence[Sequence[int]], extra: int, standing: Sequence[int]) -> list:
    """`translate_all` with as many sentences at once as half of the free memory of a CUDA device holds."""
    rows = DEV_BATCH
    if stack.device.type == "cuda":
        shape, longest = stack.model.shape, max(len(ids) for ids in sources)
        cached = 2 * shape.layers * shape.hidden * (2 * longest + extra)  # keys and values of both attentions
        bytes_per_row = 4 * (3 * cached + 4 * shape.vocabulary)  # a grown cache is made next to the one before
        most = _free(stack.device) // 2 // bytes_per_row // stack.count
        rows = min(max(1, most), DECODED_ROWS // stack.count + 1)
    return translate_all(stack.model, stack.leaves, sources, extra, rows, standing)
