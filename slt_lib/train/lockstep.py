"""Many tickets trained at once on one device: small models leave a GPU idle between launches.

Weights are stacked along a leading axis, and the model's own code runs under `torch.func.vmap`. Each ticket has its own
mask, schedule, sentences, dropout and optimizer statistics; no number of one reaches another. On CUDA the whole step is
captured as a graph: a replay is one launch. A ticket's files are those of `training.train`, and each of the two goes on
with what the other has begun; their weights agree within float error.
"""

import contextlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slt_lib import adafactor, schedules
from slt_lib.base import devices
from slt_lib.base.errors import InputError
from slt_lib.base.settings import Training
from slt_lib.base.store import RunFolder
from slt_lib.data.batches import Batches, Position
from slt_lib.evaluation import decoding, scoring
from slt_lib.train.loop import (
    DEV_BATCH,
    Data,
    Marks,
    NotFinite,
    Start,
    checkpoint,
    dev_bleu,
    dev_sentences,
    dropout_plan,
    finish,
    marks_of,
    must_be_finite,
    new_batches,
    new_mask,
    new_model,
    new_optimizer,
    new_state,
    noise_of,
    rate_at,
    resume,
    train,
)
from slt_lib.transformer import Batch, Transformer, dropout_kept, prunable, smoothed_cross_entropy

WRITERS = 8  # files written at once
AHEAD = 4  # steps whose sentences and dropout are drawn before they are needed
EAGER = 3  # steps before the graph is captured: optimizer state and libraries' workspaces come to be in them
DECODED_ROWS = 32768  # sentences times tickets decoded at once on CUDA, at most


def group_size(training: Training, vocabulary: int) -> int:
    """How many tickets `Study.train` trains at once in this process.

    SLT_LOCKSTEP says it; without it as many as fit into the free memory of a CUDA device, on the CPU 1 (each ticket by
    itself, as `training.train` does), and also where several processes train one ticket together (torchrun).
    Raises InputError for an SLT_LOCKSTEP that is no whole number from 1.
    """
    asked = os.environ.get("SLT_LOCKSTEP", "")
    if asked and not (asked.isdecimal() and int(asked) > 0):
        raise InputError(f"SLT_LOCKSTEP={asked}: not a whole number from 1; it says how many tickets train at once")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return 1
    if asked:
        return int(asked)
    device = devices.device()
    if device.type == "cpu":
        return 1
    return max(1, int(0.7 * _free(device) / bytes_per_ticket(training, vocabulary)))


def _free(device: torch.device) -> int:
    """Bytes of a CUDA device that are free, or held unused by torch."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def bytes_per_ticket(training: Training, vocabulary: int) -> int:
    """A generous estimate of what a ticket takes in lockstep: weights and all of their size, activations, logits."""
    model, slots, numbers = training.model, training.batch.rows * training.batch.length, 4
    matrices = vocabulary * model.hidden + model.layers * (12 * model.hidden**2 + 4 * model.hidden * model.filter)
    layer = 40 * model.hidden + 6 * model.filter + 8 * model.heads * training.batch.length
    return numbers * (8 * matrices + slots * (2 * model.layers * layer + 6 * vocabulary))


@dataclass
class _Course:
    """A ticket on its way. `tensors`: what its resume file holds or would hold, at `state["step"]`."""

    start: Start
    folder: RunFolder
    report: Callable[[int, dict | None], None]
    marks: Marks
    state: dict
    tensors: dict[str, Tensor]
    mask: dict[str, Tensor] | None
    failure: str | None = None
    record: dict | None = None


def train_together(
    training: Training,
    data: Data,
    starts: Sequence[Start],
    folders: Sequence[RunFolder],
    keeps: Sequence[Collection[int]] = (),
    reports: Sequence[Callable[[int, dict | None], None]] = (),
) -> list[dict]:
    """Train all `starts` at once, each into its folder as `training.train` does it; returns their records.

    What is found in a folder is resumed: tickets that lag behind the others catch up, then all go on together. A ticket
    that diverges fails alone. `reports` hear of finished steps a few at a time. The tickets need one optimizer: raises
    ValueError, and InputError where they do not fit into the device's memory. With `pruned: stale` they are trained one
    after another.
    """
    reports = reports or [lambda steps, point: None] * len(starts)
    keeps = keeps or [()] * len(starts)
    if training.pruned == "stale":
        parts = zip(starts, folders, keeps, reports, strict=True)
        return [train(training, data, start, folder, keep, report) for start, folder, keep, report in parts]
    if len({start.optimizer for start in starts}) > 1:
        raise ValueError("tickets in lockstep need one optimizer")
    courses = [_course(training, *parts) for parts in zip(starts, folders, keeps, reports, strict=True)]
    while True:
        running = [course for course in courses if course.record is None]
        for course in running:
            if course.failure or course.state["step"] == training.steps:
                dropped = new_batches(training, data, course.start).dropped
                ending = course.start, course.state, course.mask, dropped, course.failure
                course.record = finish(course.folder, training, *ending)
        running = [course for course in running if course.record is None]
        if not running:
            return [course.record for course in courses]
        first, *later = sorted({course.state["step"] for course in running})
        group = [course for course in running if course.state["step"] == first]
        device = devices.device()
        try:
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                _advance(training, data, group, later[0] if later else training.steps)
        except torch.cuda.OutOfMemoryError:
            many = f"{len(group)} tickets in lockstep do not fit into the memory of {device}"
            raise InputError(f"{many}; set SLT_LOCKSTEP to fewer, and they go on where they were") from None


def _course(training: Training, start: Start, folder: RunFolder, keep: Collection[int], report) -> _Course:
    marks, resumed = marks_of(training, start, keep), resume(folder, training, start)
    if resumed is None:
        tensors = {f"theta.{name}": weight for name, weight in start.weights.items()}
        mask = dict(start.mask) if start.mask is not None else None
        return _Course(start, folder, report, marks, new_state(), tensors, mask)
    state, tensors = resumed
    mask = {name.removeprefix("mask."): tensors.pop(name) for name in list(tensors) if name.startswith("mask.")}
    report(state["step"], None)
    return _Course(start, folder, report, marks, state, tensors, mask or None)


def _advance(training: Training, data: Data, group: list[_Course], last: int) -> None:
    """Train `group`, all at one step, up to step `last` or the checkpoint at which one of them has failed."""
    began, first = time.monotonic(), group[0].state["step"]
    streams, of_stream = _streams(training, data, group)
    stack = Stack(training, len(data.vocabulary), group, of_stream)
    losses, told = [], []

    def settle() -> None:
        """Hear what became of the steps since the last call: the one wait for the device."""
        values = torch.stack(losses).tolist()
        for i, course in enumerate(group):
            steps = range(step + 1 - len(values), step + 1)
            for at, value, streamed in zip(steps, (row[i] for row in values), told, strict=True):
                if course.failure is None and not math.isfinite(value):
                    course.failure = f"loss not finite at step {at + 1}"
                if course.failure is None:
                    course.state["loss"] += value
                    course.state["since"] += 1
                    course.state["tokens"] += streamed[of_stream[i]][0]
            if course.failure is None:
                course.report(len(values), None)
        losses.clear()
        told.clear()

    inputs = _inputs(streams, stack.sites, stack.rates, range(first, last), stack.device.type == "cuda")
    with contextlib.closing(inputs):
        for step, (ids, bits, streamed) in zip(range(first, last), inputs, strict=True):
            losses.append(stack.step(ids, bits, step))
            told.append(streamed)
            done = step + 1
            at_checkpoint = done in group[0].marks.checkpoints
            if not (at_checkpoint or any(done in {*course.marks.kept, *course.marks.updates} for course in group)):
                continue
            settle()
            for i, course in enumerate(group):
                if course.failure is None and done in course.marks.updates:
                    _prune(training, stack, i, course, done)
                if course.failure is None and done in course.marks.kept and not at_checkpoint:
                    name = course.folder.theta(done)
                    course.state["files"][name] = course.folder.save(name, stack.weights(i))
            if at_checkpoint:
                positions = [streamed[stream][1] for stream in of_stream]
                _checkpoint(training, data, stack, group, done, began, positions)
                began = time.monotonic()
                if any(course.failure for course in group):
                    return


def _streams(training: Training, data: Data, group: list[_Course]) -> tuple[list[Batches], list[int]]:
    """The streams of sentences of a group, and the number of each ticket's: those of one seed and noise share one."""
    streams, of_stream = {}, []
    for course in group:
        key = course.start.seed, noise_of(training, course.start)
        if key not in streams:
            streams[key] = new_batches(training, data, course.start)
            if "position" in course.state:
                epoch, offset, waiting = course.state["position"]
                streams[key].position = Position(epoch, offset, tuple(waiting))
        of_stream.append(list(streams).index(key))
    return list(streams.values()), of_stream


def _inputs(streams, sites, rates, steps: range, pin: bool) -> Iterator[tuple[Tensor, list[Tensor], list]]:
    """For each step ids [7, streams, rows, length], and dropout bits [all sites] and (tokens, position) of each stream;
    drawn a few steps ahead by threads, since numpy lets others run while it draws."""

    def fixed(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if pin else tensor

    def sentences():
        batches = [(next(stream), stream.position) for stream in streams]
        ids = torch.stack([torch.stack(batch) for batch, _ in batches], dim=1)
        return fixed(ids), [(batch.tokens, position) for batch, position in batches]

    def bits(stream: Batches, step: int) -> Tensor:
        kept = dropout_kept(sites, rates, stream.seed, stream.noise, step)
        return fixed(torch.cat([values.flatten() for values in kept.values()]))

    def collected(sentences, bits):
        ids, streamed = sentences.result()
        return ids, [drawn.result() for drawn in bits], streamed

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(8) as many:  # sentences come in order, dropout in any
        waiting = deque()
        dropout = any(rates.values())
        for step in steps:
            waiting.append((one.submit(sentences), [many.submit(bits, each, step) for each in streams if dropout]))
            if len(waiting) > AHEAD:
                yield collected(*waiting.popleft())
        while waiting:
            yield collected(*waiting.popleft())


def _prune(training: Training, stack: "Stack", i: int, course: _Course, step: int) -> None:
    """A new mask of a gradual ticket."""
    weights = stack.weights(i)
    try:
        must_be_finite(weights, step)
    except NotFinite as error:
        course.failure = str(error)
        return
    wanted = schedules.gradual_sparsity(step, *course.start.gradual, course.marks.end)
    there = [
        mask and {name: kept.to(stack.device) for name, kept in mask.items()}
        for mask in (course.mask, course.start.mask)
    ]
    mask = new_mask(training, prunable(weights), wanted, *there)
    stack.set_mask(i, mask)
    course.mask = {name: kept.cpu() for name, kept in mask.items()}


def _checkpoint(training: Training, data: Data, stack: "Stack", group: list[_Course], step: int, began, positions):
    """Score dev, write what stays of each ticket that stands, and leave in `tensors` how each goes on."""
    for course, finite in zip(group, stack.finite(), strict=True):
        if course.failure is None and not finite:
            course.failure = f"weights not finite at step {step}"
    found = _dev_bleu(training, data, stack, group)
    seconds = (time.monotonic() - began) / len(group)

    def write(course: _Course, tensors: dict[str, Tensor], bleu: float, position: Position) -> None:
        if course.failure is None:
            course.tensors = tensors
            course.state["seconds"] += seconds  # its share
            masked = {f"mask.{name}": kept for name, kept in (course.mask or {}).items()}
            where = course.folder, training, course.start, course.marks, course.state
            checkpoint(*where, step, bleu, tensors | masked, position)

    with ThreadPoolExecutor(WRITERS) as pool:  # hashing and the disk take longer than the steps between two checkpoints
        list(pool.map(write, group, stack.tensors(), found, positions))
    for course in group:
        if course.failure is None:
            course.report(0, course.state["curve"][-1])


def _dev_bleu(training: Training, data: Data, stack: "Stack", group: list[_Course]) -> list[float]:
    """BLEU on dev of each ticket; one whose logits hold NaN fails."""
    found = [0.0] * len(group)
    standing = [i for i, course in enumerate(group) if course.failure is None]
    if training.dev_beam > 1:
        for i in standing:
            try:
                found[i] = dev_bleu(stack.solo(i), data, training)
            except NotFinite as error:
                group[i].failure = str(error)
        return found
    sources, references = dev_sentences(data, training)
    translations = stack.translate(sources, training.dev_extra, standing)
    for i in standing:
        if translations[i] is None:
            group[i].failure = f"logits not finite on dev: {decoding.DIVERGED}"
    standing = [i for i in standing if group[i].failure is None]
    texts = [data.vocabulary.decode(translations[i]) for i in standing]
    for i, bleu in zip(standing, scoring.bleu_of_each(texts, references), strict=True):
        found[i] = bleu
    return found


class _Method(nn.Module):
    """A model whose methods `functional_call` can call."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


class Stack:
    """The weights of many tickets on one device, and the step that trains them all.

    Parameters of one shape are held together in a family [of its names, tickets, *shape], so that the optimizer takes
    a few large tensors instead of many small ones; `leaves` are views of them, name -> [tickets, *shape].
    """

    def __init__(self, training: Training, vocabulary: int, courses, of_stream: list[int]):
        self.training, self.count, self.device = training, len(courses), devices.device()
        self.model = new_model(training, vocabulary).to(self.device).requires_grad_(False)
        names = dict(self.model.named_parameters())
        masked = prunable(names) if any(c.mask is not None or c.start.gradual for c in courses) else {}
        families = {}
        for name, parameter in names.items():
            families.setdefault((tuple(parameter.shape), name in masked), []).append(name)
        self.names = list(families.values())
        self.families = [self._gathered(courses, "theta.", names) for names in self.names]
        self.kept = [
            torch.ones_like(family, dtype=torch.bool) if prune else None
            for (_, prune), family in zip(families, self.families, strict=True)
        ]
        self.leaves = {
            name: family[j].detach().requires_grad_()
            for family, names in zip(self.families, self.names, strict=True)
            for j, name in enumerate(names)
        }
        for i, course in enumerate(courses):
            if course.mask is not None:
                self.set_mask(i, course.mask)
        self._optimizer(courses)
        self._buffers(of_stream)
        self.graph, self.steps, self.losses = None, 0, None

    def _gathered(self, courses, prefix: str, names: list[str]) -> Tensor:
        """[names, tickets, ...] of the tensors with these names, on the device and of the model's type."""
        stacked = torch.stack([torch.stack([course.tensors[prefix + name] for course in courses]) for name in names])
        return stacked.to(self.device, self.model.embedding.dtype)

    def _optimizer(self, courses) -> None:
        """Fresh statistics, or those of the tickets: `state` holds a family's by slot, [names, tickets, ...]."""
        self.optimizer = courses[0].start.optimizer
        known = courses[0].tensors
        slots = sorted({key.split(".")[1] for key in known if key.startswith("optimizer.")} - {"step"})
        self.state = []
        for names in self.names:
            own = [slot for slot in slots if f"optimizer.{slot}.{names[0]}" in known]
            self.state.append({slot: self._gathered(courses, f"optimizer.{slot}.", names) for slot in own})
        # scalars of a step, on the device so that a graph reads their newest value
        self.rate = torch.zeros((), dtype=self.model.embedding.dtype, device=self.device)
        self.beta2 = torch.zeros((), dtype=torch.float64, device=self.device)
        if self.optimizer == "adam":
            self.adam = new_optimizer(self.training, "adam", self.families)
            for family, names, state in zip(self.families, self.names, self.state, strict=True):
                if slots:
                    step = known[f"optimizer.step.{names[0]}"]
                    state["step"] = step.to(self.device) if self.device.type == "cuda" else step.clone()
                    self.adam.state[family] = state
            if self.device.type == "cuda":
                for group in self.adam.param_groups:
                    group["capturable"], group["lr"] = True, self.rate

    def _buffers(self, of_stream: list[int]) -> None:
        """What a step reads: always at the same place, so that a graph finds it."""
        shape, sizes = self.training.batch, self.model.shape
        self.sites, self.rates = dropout_plan(self.training, sizes)
        self.dropped = {site: s for site, (kind, s) in self.sites.items() if self.rates[kind] > 0}
        self.counts = [math.prod(s) for s in self.dropped.values()]
        scales = [1 / (1 - self.rates[self.sites[site][0]]) for site in self.dropped]
        self.of_stream = torch.tensor(of_stream, device=self.device)
        streams = max(of_stream) + 1
        self.ids = torch.zeros(7, streams, shape.rows, shape.length, dtype=torch.long, device=self.device)
        self.bits = torch.zeros(streams, sum(self.counts), dtype=torch.bool, device=self.device)
        each = [torch.full((count,), scale) for count, scale in zip(self.counts, scales, strict=True)]
        self.scale = torch.cat(each).to(self.device) if each else None

    # Training ------------------------------------------------------------

    def step(self, ids: Tensor, bits: Sequence[Tensor], step: int) -> Tensor:
        """One step of all tickets; their losses [tickets], which nothing has waited for."""
        self.ids.copy_(ids, non_blocking=True)
        for row, drawn in zip(self.bits, bits, strict=bool(self.counts)):
            row.copy_(drawn, non_blocking=True)
        rate = rate_at(self.training, self.optimizer, step)
        self.rate.fill_(rate)
        self.beta2.fill_(adafactor.decay(step))
        if self.optimizer == "adam" and self.device.type != "cuda":
            for group in self.adam.param_groups:
                group["lr"] = rate
        self.steps += 1
        if self.device.type != "cuda":
            return self._step()
        if self.steps <= EAGER:
            return self._aside(self._step)
        if self.graph is None:
            self._capture()
        if self.graph is False:  # it could not be captured
            return self._step()
        self.graph.replay()
        return self.losses.clone()

    def _aside(self, work):
        """Do `work` on a stream of its own, as what is captured later must have been done before."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            result = work()
        here.wait_stream(aside)
        result.record_stream(here)
        return result

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads pin memory meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.losses = self._step()
            self.graph = graph
        except RuntimeError as error:
            self.graph = False
            torch.cuda.synchronize()
            print(f"lockstep: no CUDA graph, steps are launched one by one ({_line(error)})", file=sys.stderr)

    def _step(self) -> Tensor:
        batch = Batch(*self.ids.index_select(1, self.of_stream).unbind(0))
        drop = {}
        if self.counts:
            masks = (self.bits.index_select(0, self.of_stream) * self.scale).split(self.counts, dim=1)
            drop = {s: m.view(-1, *shape) for (s, shape), m in zip(self.dropped.items(), masks, strict=True)}
        losses = torch.vmap(self._loss)(self.leaves, batch, drop)
        found = torch.autograd.grad(losses.sum(), list(self.leaves.values()))
        gradients = dict(zip(self.leaves, found, strict=True))
        with torch.no_grad():
            together = [torch.stack([gradients[name] for name in names]) for names in self.names]
            for gradient, kept in zip(together, self.kept, strict=True):
                if kept is not None:
                    gradient.mul_(kept)
            self._update(together)
            for family, kept in zip(self.families, self.kept, strict=True):
                if kept is not None:
                    family.mul_(kept)
        return losses.detach()

    def _loss(self, weights: dict[str, Tensor], batch: Batch, drop: dict[str, Tensor]) -> Tensor:
        """The loss of one ticket: `training`'s, in the terms of `vmap`."""
        low = self.training.precision == "bf16"
        if low:  # vmap adds a bias after the product, where autocast does not see it: it would raise the type again
            weights = {name: w.bfloat16() if name.endswith("_bias") else w for name, w in weights.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            hidden = functional_call(self.model, weights, (batch, drop))
        dtype = torch.bfloat16 if low else hidden.dtype
        logits = hidden.flatten(0, 1).to(dtype) @ weights["embedding"].to(dtype).t()
        return smoothed_cross_entropy(logits, batch.target.flatten(), self.training.label_smoothing)

    def _update(self, gradients: list[Tensor]) -> None:
        if self.optimizer == "adam":
            for family, gradient in zip(self.families, gradients, strict=True):
                family.grad = gradient
            self.adam.step()
            for family in self.families:
                family.grad = None
            self.state = [self.adam.state[family] for family in self.families]
            return
        for family, gradient, state in zip(self.families, gradients, self.state, strict=True):
            adafactor.update(family, gradient, state, self.beta2, self.rate, stacked=2)

    # One ticket of them ------------------------------------------------------------

    def weights(self, i: int) -> dict[str, Tensor]:
        """Views of the weights of ticket `i`."""
        return {name: leaf.detach()[i] for name, leaf in self.leaves.items()}

    def set_mask(self, i: int, mask: dict[str, Tensor]) -> None:
        """From now on ticket `i` has this mask."""
        with torch.no_grad():
            for family, kept, names in zip(self.families, self.kept, self.names, strict=True):
                if kept is not None:
                    for j, name in enumerate(names):
                        kept[j, i].copy_(mask[name])
                        family[j, i].mul_(kept[j, i])

    def solo(self, i: int) -> Transformer:
        """The model with the weights of ticket `i`, until the next call."""
        self.model.load_state_dict(self.weights(i))
        return self.model

    def finite(self) -> list[bool]:
        """Whether all weights of each ticket are numbers."""
        found = [family.isfinite().flatten(2).all(-1).all(0) for family in self.families]
        return torch.stack(found).all(0).tolist()

    def tensors(self) -> list[dict[str, Tensor]]:
        """For each ticket copies of what its resume file holds, but for its mask."""
        found = [{} for _ in range(self.count)]
        for names, family, state in zip(self.names, self.families, self.state, strict=True):
            for prefix, stacked in {"theta": family, **{f"optimizer.{slot}": v for slot, v in state.items()}}.items():
                stacked = stacked.cpu()
                for j, name in enumerate(names):
                    for i, tensors in enumerate(found):
                        tensors[f"{prefix}.{name}"] = (stacked[j, i] if stacked.dim() else stacked).clone()
        return found

    # Decoding ------------------------------------------------------------

    @torch.no_grad()
    def translate(
        self, sources: Sequence[Sequence[int]], extra: int, standing: Sequence[int]
    ) -> list[list[list[int]] | None]:
        """Greedy translations of each ticket in `standing`, as `decoding.translate` gives them; None where NaN came up.

        All tickets decode the same sentences at once; a sentence leaves when all have ended it.
        """
        answers = [[] for _ in range(self.count * len(sources))]
        lost = torch.ones(self.count, dtype=torch.bool, device=self.device)
        lost[list(standing)] = False
        order = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
        rows = self._sentences(len(sources[order[0]]), extra)
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            self._greedy([sources[index] for index in chosen], chosen, len(sources), extra, answers, lost)
        by_ticket = [answers[i * len(sources) : (i + 1) * len(sources)] for i in range(self.count)]
        return [None if gone else found for gone, found in zip(lost.tolist(), by_ticket, strict=True)]

    def _sentences(self, longest: int, extra: int) -> int:
        """How many sentences are decoded at once: on CUDA as many as half of its free memory holds for all tickets."""
        if self.device.type == "cpu":
            return DEV_BATCH
        shape = self.model.shape
        cached = 2 * shape.layers * shape.hidden * (2 * longest + extra)  # keys and values of both attentions
        bytes_per_row = 4 * (3 * cached + 4 * shape.vocabulary)  # a longer cache is made while the old one stands
        return min(max(1, _free(self.device) // 2 // bytes_per_row // self.count), DECODED_ROWS // self.count + 1)

    def _greedy(self, sources, chosen: list[int], total: int, extra: int, answers: list[list[int]], lost: Tensor):
        """One batch [tickets, sentences]; `answers` of ticket i and sentence s stand at i * total + s."""
        longest = max(len(ids) for ids in sources)
        padded = [list(ids) + [decoding.PAD] * (longest - len(ids)) for ids in sources]
        source = torch.tensor(padded, device=self.device)
        limits = torch.tensor([len(ids) + extra for ids in sources], device=self.device)
        numbers = torch.arange(self.count, device=self.device)[:, None] * total
        numbers = numbers + torch.tensor(chosen, device=self.device)
        weights = {f"model.{name}": leaf.detach() for name, leaf in self.leaves.items()}
        model = _Method(self.model)

        def begin(weights):
            memory = functional_call(model, weights, ("encode", source))
            return functional_call(model, weights, ("start", memory, source))

        def step(weights, previous, cache):
            cache = dict(cache)
            return functional_call(model, weights, ("step", previous, tokens.shape[2], cache)), cache

        cache = torch.vmap(begin)(weights)
        previous = torch.full_like(numbers, decoding.PAD)
        tokens = numbers.new_empty(*numbers.shape, 0)
        done = lost[:, None].expand_as(numbers).clone()
        while numbers.shape[1]:
            logits, cache = torch.vmap(step)(weights, previous, cache)
            values, previous = logits.max(dim=2)
            lost |= values.isnan().any(1)
            tokens = torch.cat([tokens, previous.masked_fill(done, decoding.EOS)[:, :, None]], dim=2)
            done |= (previous == decoding.EOS) | (tokens.shape[2] >= limits) | lost[:, None]
            ended = done.all(0)
            if decoding._worth_dropping(ended):
                decoding._record(answers, numbers[:, ended].flatten(), tokens[:, ended].flatten(0, 1))
                stay = (~ended).nonzero()[:, 0]
                numbers, done, previous, tokens = (x.index_select(1, stay) for x in (numbers, done, previous, tokens))
                limits = limits[stay]
                cache = {name: value.index_select(1, stay) for name, value in cache.items()}


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
