"""The training loop: it turns a ticket into a run, and continues a training that was interrupted."""

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from slt_lib.base import distributed
from slt_lib.base.devices import device
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.base.store import RunFolder
from slt_lib.evaluation import decoding, scoring
from slt_lib.train.checkpoint import Job, Report, silent, weights_hash
from slt_lib.train.state import Data, NotFinite, Start, TrainState
from slt_lib.train.step import (
    Parameters,
    dropout_plan,
    grown_mask,
    mask_updates,
    must_be_finite,
    new_batches,
    new_model,
    new_optimizer,
    set_rate,
    step,
)
from slt_lib.transformer import Batch, SoftmaxLoss, Transformer, dropout_masks

DEV_BATCH = 256  # sentences decoded at once; no result depends on it beyond float error


def train(
    training: Training,
    data: Data,
    start: Start,
    folder: RunFolder,
    keep: Collection[int] = (),
    report: Report = silent,
    accumulate: int = 1,
) -> dict:
    """Train `start` for `training.steps` steps and write the run into `folder`; returns its record.

    Checkpoints stay at the steps `keep`, at the best step on dev and at the last step. A training found in `folder` is
    resumed and ends in the same bytes as an uninterrupted one. `report(steps, point)` is called after each step and
    each checkpoint. A loss, weight or logit that is not finite ends the training: the record says so. Source: FACTS.md
    section 7, TRAIN.

    It computes on `devices.device()`; the files and the record are on the CPU. With several processes (`distributed`)
    each computes its share of every batch, in `accumulate` parts; only rank 0 writes, and all return the record.
    Raises InputError if the rows can't be divided evenly, or if the processes do not hold the same state.
    """
    began = time.monotonic()
    with distributed.in_turn():  # rank 0 removes what can't be used before the others look
        job = Job(training, start, folder, keep, report)
    state = job.state
    if not distributed.agree(lambda: state.step):
        raise InputError(f"{folder.path}: not the same for all processes; set SLT_RUNS to a disk that they share")
    with job.failing():
        for model in steps(training, data, state, accumulate):
            report(1, None)
            if state.step in job.checkpoints:
                if not distributed.agree(lambda: weights_hash(state.weights)):
                    again = "run the same command again, and it goes on from the last checkpoint"
                    raise InputError(f"{folder.path}: the processes' weights differ at step {state.step}; {again}")
                must_be_finite(state)
                bleu = dev_bleu(model, data, training)
                state.seconds += time.monotonic() - began
                began = time.monotonic()
                job.checkpoint(bleu)
                report(0, state.curve[-1])
            elif state.step in job.kept and distributed.first():
                job.keep_weights()
    return job.finish(data)


def replay(
    training: Training,
    data: Data,
    start: Start,
    wanted: Collection[int],
    report: Report = silent,
    accumulate: int = 1,
) -> dict[int, dict[str, Tensor]]:
    """Train `start` up to the last of the steps `wanted` and return step -> weights on the CPU; writes nothing.

    Raises NotFinite if the training fails before, and ValueError if `wanted` is empty.
    """
    state, taken = TrainState.begin(start), {}
    for _ in steps(training, data, state, accumulate):
        report(1, None)
        if state.step in wanted:
            taken[state.step] = {name: w.detach().to("cpu", copy=True) for name, w in state.weights.items()}
        if state.step >= max(wanted):
            break
    return taken


def steps(training: Training, data: Data, state: TrainState, accumulate: int = 1) -> Iterator[Transformer]:
    """Train from `state` on and yield the model after each step, with `state` up to date.

    The tensors of `state` become those of the model and its optimizer, on `devices.device()`. Raises NotFinite at a
    loss that is not finite, and where a gradual mask is to grow on weights that are not finite.
    """
    shares = _shares(training.batch.rows, accumulate)
    updates = mask_updates(training, state.start)
    batches = new_batches(training, data, state.start)
    batches.position = state.position
    model = new_model(training, len(data.vocabulary)).to(device())
    sites, rates = dropout_plan(training, model.shape)
    parameters = _on_device(training, model, state)
    loss_of = distributed.parallel(_Loss(model, training))
    for number in range(state.step, training.steps):
        batch = next(batches)
        drop = dropout_masks(sites, rates, batches.seed, batches.noise, number)
        set_rate(parameters.optimizer, training, number)
        loss = step(parameters, partial(_backward, loss_of, batch, drop, shares, number))
        state.step, state.position = number + 1, batches.position
        if state.step in updates:
            parameters.restore_stale()
            state.mask = grown_mask(training, state)
            parameters.set_mask(state.mask)
        state.count(loss, batch.tokens)
        yield model


def _on_device(training: Training, model: Transformer, state: TrainState) -> Parameters:
    """Load `state` into `model` and a new optimizer; from then on it holds their tensors."""
    where = device()
    model.load_state_dict(state.weights)
    state.weights = dict(model.named_parameters())
    optimizer = new_optimizer(training, state.start.optimizer, state.weights.values())
    for name, slots in state.optimizer.items():
        # Adam counts its steps in a scalar on the CPU
        slots = {slot: value.to(where) if value.dim() else value for slot, value in slots.items()}
        optimizer.state[state.weights[name]].update(slots)
    state.optimizer = {name: optimizer.state[weight] for name, weight in state.weights.items()}
    parameters = Parameters(state.weights, optimizer, keep_stale=training.pruned == "stale")
    if state.mask is not None:
        state.mask = {name: kept.to(where) for name, kept in state.mask.items()}
        parameters.set_mask(state.mask)
    parameters.stale.update({name: values.to(where) for name, values in state.stale.items()})
    state.stale = parameters.stale
    return parameters


# Loss ------------------------------------------------------------


class _Loss(nn.Module):
    """Model and loss as one module, so that DistributedDataParallel sees the use of the embedding in the loss too."""

    def __init__(self, model: Transformer, training: Training):
        super().__init__()
        self.model, self.settings = model, training

    def forward(self, batch: Batch, drop: Mapping[str, Tensor], count: float) -> Tensor:
        """The loss summed over the target tokens of a batch, divided by `count`."""
        model, training = self.model, self.settings
        low = training.precision == "bf16"
        with torch.autocast(model.embedding.device.type, torch.bfloat16, enabled=low):
            hidden = model(batch, drop)
        dtype = torch.bfloat16 if low else hidden.dtype
        return SoftmaxLoss.apply(hidden, model.embedding, batch.target, training.label_smoothing, dtype, count)


def _shares(rows: int, accumulate: int) -> list[slice]:
    """The rows of each batch that this process computes, in `accumulate` parts.

    Raises InputError if the rows can't be divided evenly.
    """
    processes = distributed.size()
    count = accumulate * processes
    if rows % count:
        raise InputError(
            f"training.batch.rows: {rows} rows are not a multiple of {processes} processes x accumulate {accumulate}; "
            "change rows, accumulate or torchrun's --nproc-per-node"
        )
    own = distributed.rank() * accumulate
    return [slice(i * rows // count, (i + 1) * rows // count) for i in range(own, own + accumulate)]


def _backward(loss_of: nn.Module, batch: Batch, drop, shares: list[slice], number: int) -> float:
    """Leave the gradient of the mean loss over the target tokens of the whole batch in the weights; return this loss.

    The gradients of the processes are averaged, so each divides its sum by the tokens of the whole batch per process.
    Raises NotFinite, on all ranks, if the loss of step `number` (from 0) is not finite.
    """
    count, where = batch.tokens / distributed.size(), device()
    total = 0.0
    for share in shares:
        rows = Batch(*(side[share].to(where) for side in batch))
        # the masks of attention, [length, keys], are the same for all rows
        own = {site: (mask if mask.dim() == 2 else mask[share]).to(where) for site, mask in drop.items()}
        last = share is shares[-1]
        alone = last or distributed.size() == 1
        with contextlib.nullcontext() if alone else loss_of.no_sync():  # averaged with the last part
            loss = loss_of(rows, own, count)
            total = total + loss.detach()
            if last and not math.isfinite(mean := distributed.mean(total).item()):
                raise NotFinite(f"loss not finite at step {number + 1}")
            loss.backward()
    return mean


# Dev ------------------------------------------------------------


def dev_bleu(model: Transformer, data: Data, training: Training) -> float:
    """BLEU (13a, cased) on the dev set, or its first `dev_sentences`, with `dev_beam`. Raises NotFinite."""
    sources, references = dev_sentences(data, training)

    def translated(share: list[list[int]]) -> list[list[int]]:
        return decoding.translate(model, share, training.dev_beam, extra=training.dev_extra, batch_sentences=DEV_BATCH)

    try:
        found = distributed.spread(sources, translated)
    except FloatingPointError as error:
        raise NotFinite(f"logits not finite on dev: {error}") from None
    return scoring.bleu(data.vocabulary.decode(found), references)


def dev_sentences(data: Data, training: Training) -> tuple[list[list[int]], list[str]]:
    """Sources and references of the dev set, or of its first `dev_sentences`."""
    count = min(training.dev_sentences or len(data.dev_source), len(data.dev_source))
    return data.dev_source.lists()[:count], data.dev_reference[:count]
