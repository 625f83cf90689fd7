"""The loop that turns a ticket into a run: it reads top to bottom, and a killed training goes on where it was."""

import contextlib
import datetime
import functools
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from slt_lib import masks, schedules
from slt_lib.adafactor import Adafactor
from slt_lib.base import distributed
from slt_lib.base.devices import device
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.base.store import RECORD, RESUME, Damaged, RunFolder, checksum, digest, sealed, write_json
from slt_lib.data.batches import Batches, Position
from slt_lib.data.vocabulary import Encoded, Vocabulary
from slt_lib.evaluation import decoding, scoring
from slt_lib.transformer import Batch, Shape, SoftmaxLoss, Transformer, dropout_masks, dropout_sites, prunable

DEV_BATCH = 256  # sentences decoded at once; no result depends on it beyond float error


@dataclass(frozen=True)
class Data:
    """A corpus as the trainer reads it."""

    vocabulary: Vocabulary
    source: Encoded
    target: Encoded
    dev_source: Encoded
    dev_reference: list[str]


@dataclass(frozen=True)
class Start:
    """A ticket's values: weights by name (theta_0, theta_t, ...), what may be left of them, and how it trains.

    `mask`: name of each prunable matrix -> BoolTensor, True = kept; None: dense. `gradual`: (initial, final) sparsity
    of magnitude pruning while training, or None for a mask that stays. `depth`: trainings before it in the chain.
    `noise`: number of a copy that sees other sentences and dropout at the same depth; 0 is the study's own training.
    `parents`: id of each run that these values come from -> hash of that run's final weights.
    """

    weights: Mapping[str, Tensor]
    mask: Mapping[str, Tensor] | None
    gradual: tuple[float, float] | None
    optimizer: str
    seed: int
    depth: int
    noise: int = 0
    parents: Mapping[str, str] = field(default_factory=dict)


class NotFinite(Exception):
    """The loss or a weight is no number any more: the run has failed."""


def new_model(training: Training, vocabulary: int, seed: int | None = None) -> Transformer:
    """The study's Transformer, with theta_0 of `seed` where one is given."""
    sizes = training.model
    return Transformer(Shape(vocabulary, sizes.layers, sizes.hidden, sizes.filter, sizes.heads), seed)


def noise_of(training: Training, start: Start) -> str:
    """What the order of sentences and dropout depend on beside the seed: the depth in the chain and the copy's number.

    With `order: same` all trainings of a chain share both.
    """
    depth = start.depth if training.order == "fresh" else 0
    return f"{depth}+{start.noise}" if start.noise else f"{depth}"


def new_batches(training: Training, data: Data, start: Start) -> Batches:
    """The sentences of a ticket, from the first."""
    shape = training.batch
    noise = noise_of(training, start)
    return Batches(data.source, data.target, shape.rows, shape.length, start.seed, noise, shape.packed)


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits that any change of a weight changes; kept in a run's record for every checkpoint."""
    return checksum({name: weight.detach().cpu() for name, weight in weights.items()})[:16]


def dropout_plan(training: Training, shape: Shape) -> tuple[dict, dict[str, float]]:
    """Sites of dropout in a batch, and the rate of each kind."""
    rows, length, sizes = training.batch.rows, training.batch.length, training.model
    rates = {"residual": sizes.residual_dropout, "attention": sizes.attention_dropout, "relu": sizes.relu_dropout}
    return dropout_sites(shape, rows, length, length), rates


def checkpoints(training: Training) -> list[int]:
    """Steps after which dev is scored and the training can be resumed."""
    return schedules.every(training.checkpoint, 1.0, training.steps)


def train(
    training: Training,
    data: Data,
    start: Start,
    folder: RunFolder | None = None,
    keep: Collection[int] = (),
    report: Callable[[int, dict | None], None] = lambda steps, point: None,
    until: Collection[int] = (),
    accumulate: int = 1,
) -> dict:
    """Train `start` for `training.steps` steps and write the run into `folder`; returns its record.

    Checkpoints stay at the steps `keep`, at the best step on dev and at the last step. A training found in
    `folder` is resumed and ends in the same bytes as one without a cut. `report(steps, point)` hears of finished
    steps and of each checkpoint. With `until` (steps) nothing is written: the training goes up to the last of
    them, and what is returned is step -> weights. Raises NotFinite then; else a failure is part of the record. Source:
    FACTS.md section 7, TRAIN.

    It computes on `devices.device()`; what is written and returned is on the CPU. Of several processes (`distributed`)
    each takes its share of every batch, in `accumulate` parts, and the first alone writes; the record is returned in
    all. Raises InputError for rows that can't be shared out evenly, and where the processes do not hold the same.
    """
    began = time.monotonic()
    where, writes = device(), distributed.first()
    parts = _parts(training.batch.rows, accumulate)
    model = new_model(training, len(data.vocabulary)).to(where)
    weights = dict(model.named_parameters())
    matrices = prunable(weights)
    optimizer = new_optimizer(training, start.optimizer, weights.values())
    batches, noise = new_batches(training, data, start), noise_of(training, start)
    sites, rates = dropout_plan(training, model.shape)
    marks = marks_of(training, start, keep)
    state = new_state()
    first = None if start.mask is None else _moved(start.mask, where)
    mask = first
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(start.weights[name])
    resumed = None
    if not until:
        with distributed.in_turn():  # what can't be used, the first has thrown away when the others look
            resumed = resume(folder, training, start)
    if resumed:
        state, tensors = resumed
        mask = {k.removeprefix("mask."): v for k, v in tensors.items() if k.startswith("mask.")}
        mask = _moved(mask, where) or None
        batches.position = Position(*state["position"][:2], tuple(state["position"][2]))
        _restore(model, optimizer, tensors, state["step"])
        report(state["step"], None)
    if not distributed.agree(lambda: state["step"]):
        raise InputError(f"{folder.path}: not the same for all processes; set SLT_RUNS to a disk that they share")
    loss_of = distributed.parallel(_LossOf(model, training))
    factors = _factors(mask)
    hide = _split if training.pruned == "stale" else _zero
    stale = hide(matrices, factors)
    # without momentum a weight with no gradient makes no step: what is zero stays so until the next mask
    rests = hide is _zero and isinstance(optimizer, Adafactor)
    if resumed and stale:
        stale = _moved({name: tensors[f"stale.{name}"] for name in stale}, where)

    failure = None
    taken = {}
    last = max(until) if until else training.steps
    try:
        for step in range(state["step"], last):
            batch = next(batches)
            drop = dropout_masks(sites, rates, start.seed, noise, step)
            value = _backward(loss_of, batch, drop, parts, where)
            if not math.isfinite(value):  # in all processes alike
                raise NotFinite(f"loss not finite at step {step + 1}")
            with torch.no_grad():
                for name, factor in factors.items():
                    matrices[name].grad.mul_(factor)
                for name, values in stale.items():  # the optimizer sees what is stored (FACTS.md section 2)
                    matrices[name].add_(values)
                _set_rate(optimizer, training, step)
                optimizer.step()
                for weight in weights.values():
                    weight.grad = None
                if step + 1 in marks.updates:
                    must_be_finite(weights, step + 1)
                    wanted = schedules.gradual_sparsity(step + 1, *start.gradual, marks.end)
                    mask = new_mask(training, matrices, wanted, mask, first)
                    factors = _factors(mask)
                if not rests or step + 1 in marks.updates:
                    stale = hide(matrices, factors)
            state["loss"] += value
            state["since"] += 1
            state["tokens"] += batch.tokens
            report(1, None)

            if until:
                if step + 1 in until:
                    taken[step + 1] = {name: w.detach().to("cpu", copy=True) for name, w in weights.items()}
                continue
            if writes and step + 1 in marks.kept and step + 1 not in marks.checkpoints:
                state["files"][folder.theta(step + 1)] = folder.save(folder.theta(step + 1), weights)
            if step + 1 in marks.checkpoints:
                if not distributed.agree(lambda: _fingerprint(weights.values())):
                    again = "run the same command again, and it goes on from the last checkpoint"
                    raise InputError(f"{folder.path}: the processes' weights differ at step {step + 1}; {again}")
                must_be_finite(weights, step + 1)
                bleu = dev_bleu(model, data, training)
                state["seconds"] += time.monotonic() - began
                began = time.monotonic()
                tensors = _tensors(model, optimizer, mask, stale)
                checkpoint(folder, training, start, marks, state, step + 1, bleu, tensors, batches.position)
                report(0, state["curve"][-1])
    except NotFinite as error:
        failure = str(error)

    if until:
        if failure:
            raise NotFinite(failure)
        return taken
    return finish(folder, training, start, state, mask, batches.dropped, failure)


# Checkpoints ------------------------------------------------------------


@dataclass(frozen=True)
class Marks:
    """Steps after which more happens than a step.

    `checkpoints`: dev is scored, the training can be resumed; `kept`: the weights stay; `updates`: a gradual mask
    grows, the last time at `end`; `candidates`: those of the checkpoints that may be the best.
    """

    checkpoints: Collection[int]
    kept: Collection[int]
    updates: Collection[int]
    end: int
    candidates: Collection[int]


def marks_of(training: Training, start: Start, keep: Collection[int]) -> Marks:
    marks, end = checkpoints(training), schedules.at_step(training.gradual.until, training.steps)
    kept = set(keep) - {0}
    updates = schedules.every(training.gradual.every, training.gradual.until, training.steps) if start.gradual else ()
    return Marks(marks, kept, set(updates), end, candidates(training, bool(start.gradual)))


def candidates(training: Training, gradual: bool) -> list[int]:
    """The checkpoints that may be the best: of a gradual training those at its final sparsity alone.

    The paper's last four (section 4).
    """
    marks, end = checkpoints(training), schedules.at_step(training.gradual.until, training.steps)
    return [mark for mark in marks if not gradual or mark > end or mark == training.steps]


def new_state() -> dict:
    """What a resume file says beside its tensors, of a training that has not begun."""
    fresh = {"step": 0, "curve": [], "files": {}, "best": None, "loss": 0.0, "since": 0, "tokens": 0, "seconds": 0.0}
    return fresh | {"commits": [commit()]}


def checkpoint(folder, training: Training, start: Start, marks: Marks, state: dict, step: int, bleu, tensors, position):
    """Add a point to the curve in `state` and write what stays of `step`: the weights if they do, the resume file.

    `tensors` as `_tensors` gives them; `position` of the batches.
    """
    mask = {name: kept for name, kept in tensors.items() if name.startswith("mask.")}
    point = {
        "step": step,
        "loss": state["loss"] / state["since"],
        "dev_bleu": bleu,
        "sparsity": masks.sparsity(mask) if mask else 0.0,
        "tokens": state["tokens"],
        "weights": weights_hash(weights_of(tensors)),
    }
    state |= {"step": step, "curve": [*state["curve"], point], "loss": 0.0, "since": 0}
    if step in marks.candidates and (state["best"] is None or point["dev_bleu"] > state["best"]["dev_bleu"]):
        state["best"] = {"step": step, "dev_bleu": point["dev_bleu"]}
    if not distributed.first():
        return
    named = {folder.theta(s) for s in marks.kept | {state["best"]["step"] if state["best"] else 0}}
    if folder.theta(step) in named or step == training.steps:
        state["files"][folder.theta(step)] = folder.save(folder.theta(step), weights_of(tensors))
    named |= {folder.theta(training.steps)}
    state["files"] = {name: sha for name, sha in state["files"].items() if name in named}
    state["position"] = [position.epoch, position.offset, list(position.waiting)]
    folder.save(RESUME, tensors, state | {"of": _owner(folder, training, start)})
    folder.drop(named)


def finish(folder, training: Training, start: Start, state: dict, mask, dropped: int, failure: str | None) -> dict:
    """Write the record of a training that has ended, by itself or by `failure`, and return it."""
    if not distributed.first():
        return distributed.broadcast(dict)  # what the first returns below
    if mask is not None:
        state["files"]["mask.safetensors"] = folder.save("mask.safetensors", mask)
    size = sum(w.numel() for w in prunable(start.weights).values())
    record = {
        "steps": training.steps,
        "optimizer": start.optimizer,
        "status": "failed" if failure else "ok",
        "reason": failure or "",
        "curve": state["curve"],
        "best": state["best"],
        "files": state["files"],
        "kept": masks.kept(mask) if mask else size,
        "prunable": size,
        "target_tokens": state["tokens"],
        "dropped_pairs": dropped,
        "parents": dict(start.parents),
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    known = provenance(training) | {"seconds": round(state["seconds"], 3), "commit": " ".join(state["commits"])}
    write_json(folder / "provenance.json", sealed(known))
    write_json(folder / RECORD, sealed(record))
    (folder / RESUME).unlink(missing_ok=True)
    return distributed.broadcast(lambda: record)


def must_be_finite(weights: Mapping[str, Tensor], step: int) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise NotFinite(f"weights not finite at step {step}")


def provenance(training: Training) -> dict:
    """What differs from machine to machine and reaches no identity."""
    return {
        "device": processor(),
        "processes": distributed.size(),
        "threads": torch.get_num_threads(),
        "precision": training.precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The name of the GPU that computes, or of the CPU where the system tells it; before it the number of processes."""
    where, count = device(), distributed.size()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _cpu()
    return f"{count} x {name}" if count > 1 else name


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """The checkout's commit, with + where tracked files differ from it; without .git the one that SLT_COMMIT names."""
    project = Path(__file__).resolve().parents[2]
    named = os.environ.get("SLT_COMMIT", "")
    if not (project / ".git").exists():
        return named
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=12"]  # no tag hides the hash
    try:
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return named


def _loss(model: Transformer, batch, drop, training: Training, count: float | None = None) -> Tensor:
    """The loss summed over a batch's target tokens, over `count`; None: over their number, which gives their mean."""
    low = training.precision == "bf16"
    with torch.autocast(model.embedding.device.type, torch.bfloat16, enabled=low):
        hidden = model(batch, drop)
    dtype = torch.bfloat16 if low else hidden.dtype
    return SoftmaxLoss.apply(hidden, model.embedding, batch.target, training.label_smoothing, dtype, count)


class _LossOf(nn.Module):
    """Model and loss as one module: so DistributedDataParallel sees the embedding in the softmax matrix too."""

    def __init__(self, model: Transformer, settings: Training):
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, batch: Batch, drop: Mapping[str, Tensor], count: float) -> Tensor:
        return _loss(self.model, batch, drop, self.settings, count)


def _parts(rows: int, accumulate: int) -> list[slice]:
    """The rows of each batch that are this process's, `accumulate` parts of them, one after another.

    Raises InputError where the rows can't be shared out evenly.
    """
    processes = distributed.size()
    count = accumulate * processes
    if rows % count:
        raise InputError(
            f"training.batch.rows: {rows} rows are no multiple of {processes} processes x accumulate {accumulate}; "
            "change rows, accumulate or torchrun's --nproc-per-node"
        )
    own = distributed.rank() * accumulate
    return [slice(i * rows // count, (i + 1) * rows // count) for i in range(own, own + accumulate)]


def _backward(loss_of: nn.Module, batch: Batch, drop, parts: list[slice], where: torch.device) -> float:
    """Leave the gradient of the loss, the mean over the target tokens of the whole batch, in the weights; return it.

    A loss that is no number leaves none. The processes' gradients are averaged; so each divides its sum by the tokens
    of the whole batch per process.
    """
    count = batch.tokens / distributed.size()
    total = 0.0
    for part in parts:
        rows = Batch(*(side[part].to(where) for side in batch))
        # attention's masks, [length, keys], are the same for all rows
        own = {site: (mask if mask.dim() == 2 else mask[part]).to(where) for site, mask in drop.items()}
        last = part is parts[-1]
        with contextlib.nullcontext() if last else distributed.apart(loss_of):
            loss = loss_of(rows, own, count)
            total = total + loss.detach()
            if last and not math.isfinite(value := distributed.mean(total).item()):
                return value
            loss.backward()
    return value


def _fingerprint(weights) -> list[int]:
    """A number a tensor that changes with any bit of it."""
    return [int(weight.detach().view(torch.int32).sum(dtype=torch.int64)) for weight in weights]


def dev_bleu(model: Transformer, data: Data, training: Training) -> float:
    """BLEU (13a, cased) on the dev set, or its first `dev_sentences`, with `dev_beam`."""
    sources, references = dev_sentences(data, training)

    def translated(share: list[list[int]]) -> list[list[int]]:
        return decoding.translate(model, share, training.dev_beam, extra=training.dev_extra, batch_sentences=DEV_BATCH)

    try:
        found = distributed.spread(sources, translated)
    except FloatingPointError as error:
        raise NotFinite(f"logits not finite on dev: {error}") from None
    return scoring.bleu(data.vocabulary.decode(found), references).value


def dev_sentences(data: Data, training: Training) -> tuple[list[list[int]], list[str]]:
    """Sources and references of the dev set, or of its first `dev_sentences`."""
    count = min(training.dev_sentences or len(data.dev_source), len(data.dev_source))
    return data.dev_source.lists()[:count], data.dev_reference[:count]


# Optimizer ------------------------------------------------------------


def new_optimizer(training: Training, name: str, weights) -> torch.optim.Optimizer:
    """Adafactor as in T2T, or Adam with T2T's settings for transformer_base (FACTS.md section 1)."""
    warmup = max(1, schedules.at_step(training.warmup, training.steps))
    if name == "adafactor":
        return Adafactor(weights, warmup, training.peak_lr.adafactor)
    return torch.optim.Adam(weights, lr=0.0, betas=(0.9, 0.997), eps=1e-9)


def _set_rate(optimizer, training: Training, step: int) -> None:
    if isinstance(optimizer, torch.optim.Adam):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(training, "adam", step)


def rate_at(training: Training, optimizer: str, step: int) -> float:
    """The learning rate at `step`, from 0."""
    warmup = max(1, schedules.at_step(training.warmup, training.steps))
    if optimizer == "adam":
        return schedules.learning_rate(step, warmup, training.peak_lr.adam, ramp=True)
    return schedules.learning_rate(step, warmup, training.peak_lr.adafactor)


# Masks ------------------------------------------------------------


def new_mask(training: Training, matrices, sparsity: float, mask, first):
    """The mask of a gradual step: nested in the last one, or, with stale weights, in the ticket's own alone."""
    within = first if training.pruned == "stale" else mask
    if training.thresholds == "histogram":
        return masks.histogram_mask(matrices, sparsity, within)
    return masks.magnitude_mask(matrices, sparsity, within)


def _moved(tensors: Mapping[str, Tensor], where: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(where) for name, tensor in tensors.items()}


def _factors(mask) -> dict[str, Tensor]:
    return {name: kept.float() for name, kept in (mask or {}).items()}


def _zero(matrices, factors) -> dict[str, Tensor]:
    with torch.no_grad():
        for name, factor in factors.items():
            matrices[name].mul_(factor)
    return {}


def _split(matrices, factors) -> dict[str, Tensor]:
    """Take the pruned entries out of the matrices and return them, to be put back for the optimizer."""
    stale = {}
    with torch.no_grad():
        for name, factor in factors.items():
            stale[name] = matrices[name] * (1 - factor)
            matrices[name].mul_(factor)
    return stale


# Resuming ------------------------------------------------------------


def _tensors(model, optimizer, mask, stale) -> dict[str, Tensor]:
    tensors = {}
    for name, weight in model.named_parameters():
        tensors[f"theta.{name}"] = weight
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state[weight].items()}
    tensors |= {f"stale.{name}": values for name, values in stale.items()}
    return tensors | {f"mask.{name}": kept for name, kept in (mask or {}).items()}


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights among what `_tensors` gives."""
    return {name.removeprefix("theta."): w for name, w in tensors.items() if name.startswith("theta.")}


def _restore(model, optimizer, tensors, step: int) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[f"theta.{name}"])
    weights = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, slot, name = key.split(".", 2)
            # Adam counts its steps in a scalar on the CPU
            optimizer.state[weights[name]][slot] = value.to(weights[name].device) if value.dim() else value
    for group in optimizer.param_groups:
        if "k" in group:  # Adafactor's own count of steps
            group["k"] = step


def _owner(folder: RunFolder, training: Training, start: Start) -> str:
    """What a resume file says of itself, so that one of another run, other settings or other parents is not used."""
    return digest([folder.path.name, training.model_dump(), dict(start.parents)])


def resume(folder: RunFolder, training: Training, start: Start) -> tuple[dict, dict] | None:
    """State and tensors of a training that was cut, or None; one that can't be used is named and thrown away."""
    if not (folder / RESUME).exists():
        return None
    try:
        tensors, state = folder.load(RESUME)
        if state.pop("of", None) != _owner(folder, training, start):
            raise Damaged(f"{folder / RESUME} belongs to another training")
        folder.verify(state["files"])
    except Damaged as error:
        if not distributed.first():  # the first found it whole
            raise
        print(f"{error}; starting this training again", file=sys.stderr)
        (folder / RESUME).unlink()
        return None
    state["commits"] = list(dict.fromkeys([*state["commits"], commit()]))
    return state, tensors
