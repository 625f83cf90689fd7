"""One measurement of one system in its own process: python -m benchmarks.worker WHAT PRECISION THREADS SECONDS.

It prints one line of JSON. Each measurement has a new process, so that all systems start from the same state.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import inference, plain
from benchmarks.setting import WARM, Setting
from slt_lib import masks
from slt_lib.base.errors import InputError
from slt_lib.base.products import product
from slt_lib.base.settings import Training
from slt_lib.base.store import RunFolder, Store
from slt_lib.data.batches import Batches
from slt_lib.evaluation import decoding, scoring
from slt_lib.sparse.engine import Engine
from slt_lib.study import Study, scores
from slt_lib.train import loop as training
from slt_lib.transformer import prunable

SPARSITY = 0.9
MANY = 100_000


class Enough(Exception):
    """The time is up."""


class Clock:
    """Called at each step; ends the training when `seconds` have passed since the warm-up."""

    def __init__(self, seconds: float, warm: int = WARM):
        self.seconds, self.warm = seconds, warm
        self.times: list[float] = []

    def step(self) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) > self.warm and self.taken >= self.seconds:
            raise Enough

    @property
    def taken(self) -> float:
        """Seconds since the warm-up."""
        return self.times[-1] - self.times[self.warm - 1]

    @property
    def steps(self) -> list[float]:
        """Seconds of each step after the warm-up."""
        counted = self.times[self.warm - 1 :]
        return [after - before for before, after in zip(counted, counted[1:], strict=False)]


def watched(settings: Training, data: training.Data, start: training.Start, seconds: float, steps: int = 0) -> Clock:
    """Run the steps of `training.train`, without checkpoints, for `seconds` or up to `steps`."""
    clock = Clock(seconds)
    try:
        training.replay(settings, data, start, [steps or settings.steps], report=lambda *_: clock.step())
    except Enough:
        pass
    return clock


def tokens(settings: Training, data: training.Data, start: training.Start, steps: int) -> list[int]:
    """Target tokens, without padding, of the first steps of a training."""
    shape = settings.batch
    depth = start.depth if settings.order == "fresh" else 0
    stream = Batches(data.source, data.target, shape.rows, shape.length, start.seed, depth, shape.packed)
    return [next(stream).tokens for _ in range(steps)]


def settings_of(setting: Setting, precision: str) -> Training:
    return setting.study.params.training.model_copy(update={"precision": precision})


def ours(setting: Setting, precision: str, seconds: float) -> dict:
    """Target tokens per second of our training."""
    settings, data, start = settings_of(setting, precision), setting.study.data, setting.study.ticket(1).start()
    clock = watched(settings, data, start, seconds)
    return {"rate": sum(tokens(settings, data, start, len(clock.times))[WARM:]) / clock.taken}


def plainly(setting: Setting, precision: str, seconds: float) -> dict:
    """Target tokens per second of the plain loop."""
    data, clock, counts = setting.study.data, Clock(seconds), []

    def report(count: int) -> None:
        counts.append(count)
        clock.step()

    try:
        plain.train(settings_of(setting, precision), len(data.vocabulary), data.source, data.target, report)
    except Enough:
        pass
    return {"rate": sum(counts[WARM:]) / clock.taken}


def products(setting: Setting, precision: str, seconds: float) -> dict:
    """Target tokens per second if a step were only its matrix products: one forward and two for the gradients each.

    Shapes are those of our step (packed rows, with padding), tokens those of our batches. Each product uses the library
    that our step uses.
    """
    settings, data = settings_of(setting, precision), setting.study.data
    sizes, rows, length = settings.model, settings.batch.rows, settings.batch.length
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    slots, groups, head = rows * length, rows * sizes.heads, sizes.hidden // sizes.heads
    square, wide, narrow = (sizes.hidden,) * 2, (sizes.hidden, sizes.filter), (sizes.filter, sizes.hidden)
    attentions = 3 * sizes.layers  # encoder, decoder, decoder to encoder
    linear = [square] * 4 * attentions + [wide, narrow] * 2 * sizes.layers + [(sizes.hidden, len(data.vocabulary))]
    made = [(torch.randn(slots, a), torch.randn(b, a), torch.randn(slots, b)) for a, b in linear]
    made += [
        (torch.randn(groups, length, a), torch.randn(groups, b, a), torch.randn(groups, length, b))
        for a, b in [(head, length), (length, head)] * attentions
    ]
    made = [tuple(part.to(dtype) for part in one) for one in made]
    clock = Clock(seconds)
    try:
        while True:
            for x, weight, gradient in made:
                multiply = product if x.dim() == 2 else _batched
                multiply(x, weight)
                multiply(gradient, weight.mT)
                multiply(gradient.mT, x.mT)
            clock.step()
    except Enough:
        pass
    count = statistics.mean(tokens(settings, data, setting.study.ticket(1).start(), 20))
    return {"rate": count * len(clock.steps) / clock.taken}


def _batched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b.mT


def masked(setting: Setting, precision: str, seconds: float, percent: int) -> dict:
    """Make one step under a mask of `percent` (0: no mask) for each line of standard input; the sentences are the same.

    Prints the seconds of each step on a line. Ends with the input.
    """
    settings, start = settings_of(setting, precision), setting.study.ticket(1).start()
    steps = max(settings.steps, MANY)  # never reached; the learning rates are those of the study's first steps
    settings = settings.model_copy(update={"steps": steps, "warmup": settings.warmup * settings.steps / steps})
    if percent:
        mask = masks.magnitude_mask(prunable(start.weights), percent / 100)
        start = dataclasses.replace(start, weights=masks.apply(start.weights, mask), mask=mask)
    began = 0.0

    def stepped(*_) -> None:
        nonlocal began
        if began:  # the first step is made before any input
            print(time.perf_counter() - began, flush=True)
        if not sys.stdin.readline():
            raise Enough
        began = time.perf_counter()

    with contextlib.suppress(Enough):
        training.replay(settings, setting.study.data, start, [settings.steps], report=stepped)
    return {}


def gradual(setting: Setting, precision: str, seconds: float) -> dict:
    """Seconds of all mask updates of a gradual training, and of its steps without them.

    Measured in a short training with the same updates, in which every second step is one.
    """
    settings, dense = settings_of(setting, precision), setting.study.ticket(1).start()
    count = round(settings.gradual.until / settings.gradual.every)
    short = settings.model_copy(update={"steps": round(2 / settings.gradual.every)})
    start = training.Start(dense.weights, None, (0.0, SPARSITY), dense.optimizer, dense.seed, dense.depth)
    steps = watched(short, setting.study.data, start, float("inf"), 2 * count).steps  # from step WARM + 1
    even = steps[::2] if WARM % 2 else steps[1::2]
    odd = steps[1::2] if WARM % 2 else steps[::2]
    step, update = statistics.median(odd), statistics.median(even)
    return {"updates": count * (update - step), "training": settings.steps * step}


def scored(setting: Setting, precision: str, seconds: float) -> dict:
    """Seconds of one scoring of dev, of all test sets, and of one training step, with a trained model."""
    study = setting.short
    [run] = study.train([study.ticket(1)])
    settings = settings_of(setting, precision)
    model = study.model()
    model.load_state_dict(run.weights("final"))
    began = time.perf_counter()
    training.dev_bleu(model, study.data, settings)
    dev = time.perf_counter() - began
    began = time.perf_counter()
    for split in study.corpus.tests.values():
        scoring.sentence_statistics(scores.translate(run, list(split.source), "final"), list(split.target))
    tests = time.perf_counter() - began
    clock = watched(settings, study.data, run.ticket.start(), seconds)
    return {"dev": dev, "tests": tests, "step": statistics.median(clock.steps)}


def trained(setting: Setting, precision: str, seconds: float) -> dict:
    """Train the model that decodes, unless it is in the store."""
    began = time.perf_counter()
    setting.short.train([setting.short.ticket(1)])
    return {"seconds": time.perf_counter() - began}


def decoded(setting: Setting, precision: str, seconds: float, beam: int, size: int, run_id: str = "") -> dict:
    """Sentences per second on the first test set, BLEU, and word pieces per translation.

    From text to text: encoding and decoding of word pieces are included. The model is the run `run_id`, by default that
    of `trained`.
    """
    study = setting.short
    if run_id:
        weights = chosen(run_id, study)
    else:
        [run] = study.train([study.ticket(1)])  # from the store
        weights = run.weights("final")
    model = Engine(study.shape, weights)
    split, options = next(iter(study.corpus.tests.values())), study.params.decoding
    decoding.translate(model, study.vocabulary.encode(split.source[:size]).lists(), beam, batch_sentences=size)  # warm
    began = time.perf_counter()
    sources = study.vocabulary.encode(list(split.source)).lists()
    found = decoding.translate(model, sources, beam, options.alpha, options.extra, size)
    text = study.vocabulary.decode(found)
    taken = time.perf_counter() - began
    return {
        "rate": len(text) / taken,
        "bleu": scoring.bleu(text, list(split.target)),
        "pieces": statistics.mean(map(len, found)),
    }


def chosen(run_id: str, study: Study) -> dict[str, torch.Tensor]:
    """Final weights of a run in the store (SLT_RUNS). Raises InputError if it is missing or of another model."""
    store = Store()
    matches = [train_id for train_id in store.ids() if train_id.startswith(run_id)]
    if len(matches) != 1:
        raise InputError(f"--run {run_id} names {len(matches)} runs under {store.path}; `runs list` shows them")
    folder = store.folder(matches[0])
    known, model = folder.ticket(), study.params.training.model.model_dump()
    if (known["vocabulary"], known["training"]["model"]) != (study.vocabulary.digest, model):
        raise InputError(f"--run {run_id}: its model or vocabulary is not that of {study.corpus.name} {study.pair}")
    return folder.load(RunFolder.theta(folder.record()["steps"]))[0]


def translated(setting: Setting, precision: str, seconds: float, shape: int, system: int) -> dict:
    """Measure translation with one of `inference.SYSTEMS` at one of `inference.SHAPES` for each line of input."""
    inference.speeds(list(inference.SHAPES.values())[shape], inference.SYSTEMS[system], seconds)
    return {}


WORK: dict[str, Callable] = {
    "ours": ours,
    "plain": plainly,
    "products": products,
    "masks": masked,
    "gradual": gradual,
    "scoring": scored,
    "train": trained,
    "decode": decoded,
    "inference": translated,
}


def main(arguments: list[str]) -> None:
    what, precision, threads, seconds, *more = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(WORK[what](Setting.read(), precision, float(seconds), *map(int, more[:2]), *more[2:])))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
