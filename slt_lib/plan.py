"""The cost of a study before it is run: number and order of its trainings, time and disk space.

The recipes are followed with placeholders for runs that are not trained yet. Nothing is trained, downloaded or
prepared, and no lock is waited for.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from slt_lib.base.devices import device
from slt_lib.base.seeds import stream
from slt_lib.base.settings import Wmt14, load
from slt_lib.base.store import Damaged, unseal
from slt_lib.data import wmt14
from slt_lib.data.vocabulary import Encoded
from slt_lib.study import Chain, Study, Ticket
from slt_lib.study.operations import Context
from slt_lib.study.runs import Run, StandIn
from slt_lib.techniques import RECIPES, ablations, dissected, retrained
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import checkpoints
from slt_lib.transformer import prunable, theta_0

FLOAT = 4  # bytes
SECONDS = 40.0  # target duration of `measure`
GIB = 2**30


class Planned(Study):
    """A study that trains nothing: `train` returns stored runs, and placeholders for runs that are not stored.

    `tickets`: those that `train` was asked for. `runs`: their runs and placeholders. `keep`: steps at which weights are
    kept, by train_id. `prepared`: whether the corpus is available; without it the stored runs are unknown.
    """

    computes = False

    def __init__(self, study: str = "quick", pair: str = ""):
        super().__init__(study, pair)
        self.tickets: dict[str, Ticket] = {}
        self.runs: dict[str, Run] = {}
        self.keep: dict[str, set[int]] = {}
        self.prepared = self.corpus_at_hand()
        self.searched = self.prepared and self.vocabulary_file().exists()  # without a vocabulary there are no runs

    @property
    def context(self) -> Context:
        """What the tickets need from the study; without digests if there is no vocabulary yet."""
        return super().context if self.searched else Context(self.params.training, "", "", self.params.vocabulary)

    def prepare(self) -> None:
        """Do nothing: a plan builds no data."""

    def train(self, tickets: Iterable[Ticket], progress=None, keep=()) -> list[Run]:
        """A run or placeholder for each of `tickets`; records the tickets and the steps in `keep`."""
        for train_id, steps in dict(keep).items():
            self.keep.setdefault(train_id, set()).update(steps)
        tickets = list(tickets)
        for ticket in tickets:
            self.tickets[ticket.train_id] = ticket
            if ticket.train_id not in self.runs:
                found = self.find(ticket, tell=False) if self.searched else None
                self.runs[ticket.train_id] = found or StandIn(ticket, self)
        return [self.runs[ticket.train_id] for ticket in tickets]

    def tickets_of(self, chains: Iterable[Chain]) -> dict[str, Ticket]:
        """All tickets that `chains` yield, including those without rows in the results."""
        self.tickets = {}
        self.follow(chains)
        return self.tickets

    @property
    def done(self) -> dict[str, Run]:
        """The stored runs that `train` found."""
        return {train_id: run for train_id, run in self.runs.items() if not isinstance(run, StandIn)}


@dataclasses.dataclass(frozen=True)
class Row:
    """One technique: its new `tickets`, the number of trainings `shared` with rows above, and its longest chain."""

    technique: str
    tickets: dict[str, Ticket]
    shared: int
    waves: int


def rows(study: Planned) -> list[Row]:
    """Dense, the pair's techniques and, for the first pair, what notebooks 8, 10 and 11 train more.

    Each training is counted once.
    """
    names = ["dense", *study.params.pairs[study.pair]]
    wanted = {name: [study.chain(RECIPES[name], seed) for seed in study.seeds] for name in names}
    if study.pair == next(iter(study.params.pairs)):
        if asked := study.params.ablations:
            wanted["ablations"] = ablations(study)
        if study.params.dissect:
            wanted["dissect"] = list(itertools.chain(*dissected(study).values()))
        if asked and (study.params.rehearsal or (asked is not True and "subnetworks" in asked)):
            wanted["subnetworks"] = retrained(study)
    found = []
    for name, chains in wanted.items():
        above = set(study.runs)
        asked = study.tickets_of(chains)
        new = {train_id: ticket for train_id, ticket in asked.items() if train_id not in above}
        waves = 1 + max((ticket.depth for ticket in asked.values()), default=-1)
        found.append(Row(name, new, len(asked) - len(new), waves))
    return found


# What a training takes ------------------------------------------------------------


def flops(model: torch.nn.Module, rows: int, length: int) -> int:
    """Floating-point operations of one step, forward and backward, on `rows` rows of `length` slots per side.

    6 * W * rows * length for the W weights of the matrices: one multiplication and one addition per weight and slot,
    and twice that backward. The embedding counts once, as the softmax. Attention adds 36 * layers * hidden * rows *
    length ** 2: 4 * hidden * length ** 2 per row in each of three attentions, times three for the backward pass.
    Padding is included. Norms, dropout, the optimizer and masks are left out.
    """
    attention = 36 * model.shape.layers * model.shape.hidden * length
    return (6 * matrices(model) + attention) * rows * length


def matrices(model: torch.nn.Module) -> int:
    """Number of prunable weights."""
    return _size(prunable(dict(model.named_parameters())).values())


def disk(study: Planned, ticket: Ticket) -> tuple[int, int]:
    """Bytes of a finished run, and the additional bytes that a running training may need.

    A finished run has its fp32 checkpoints (best and final as two) and its mask. A running training has the resume
    file, the one that will replace it, and one more checkpoint.
    """
    weights, settings = list(study.outline.parameters()), study.params.training
    theta = FLOAT * _size(weights)
    mask = matrices(study.outline) if ticket.sparsity else 0
    steps = study.params.kept_steps() | study.keep.get(ticket.train_id, set())
    if ticket.optimizer == "adam":
        moments = 2 * _size(weights)
    else:
        moments = sum(sum(weight.shape) if weight.dim() > 1 else weight.numel() for weight in weights)
    stale = FLOAT * mask if settings.pruned == "stale" else 0
    resume = theta + FLOAT * moments + mask + stale
    return (len(steps - {0, settings.steps}) + 2) * theta + mask, 2 * resume + theta


def _size(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def sentences(study: Planned) -> tuple[int, int] | None:
    """Sentences decoded during a training (dev, at each checkpoint) and afterwards (test sets); None if unknown."""
    if study.prepared:
        dev, *tests = [len(split) for split in (study.corpus.dev, *study.corpus.tests.values())]
    elif isinstance(study.params.corpus, Wmt14):
        other = study.pair.replace("en", "").strip("-")
        dev, *tests = [counts.get(other, 0) for _, counts in wmt14.TEST_SETS.values()]
    else:
        return None
    settings = study.params.training
    return len(checkpoints(settings)) * min(settings.dev_sentences or dev, dev), sum(tests)


def makespan(tickets: dict[str, Ticket], devices: int) -> int:
    """Rounds until all `tickets` are trained on `devices` devices, one training each, the longest chains first.

    All trainings of a study take the same number of steps. Parents that are not in `tickets` are trained already.
    """
    height = dict.fromkeys(tickets, 1)
    for train_id, ticket in sorted(tickets.items(), key=lambda item: -item[1].depth):
        for parent in ticket.runs.keys() & tickets.keys():
            height[parent] = max(height[parent], height[train_id] + 1)
    left, rounds = dict(tickets), 0
    while left:
        ready = [train_id for train_id, ticket in left.items() if not ticket.runs.keys() & left.keys()]
        for train_id in sorted(ready, key=height.get, reverse=True)[:devices]:
            del left[train_id]
        rounds += 1
    return rounds


# Rates ------------------------------------------------------------


def stored_rate(study: Planned) -> tuple[float, str] | None:
    """Median of target tokens per second over the study's finished runs, dev scoring included."""
    found = []
    for run in study.done.values():
        try:
            seconds = unseal(run.folder / "provenance.json")["seconds"]
        except (Damaged, KeyError):
            continue
        if seconds > 0:
            found.append(run.record["target_tokens"] / seconds)
    return (statistics.median(found), f"median of {len(found)} finished runs") if found else None


def measure(study: Planned, seconds: float = SECONDS) -> tuple[float, str]:
    """Target slots per second on this machine, from a few dense steps with the study's shapes and random ids.

    If whole batches would take longer than `seconds`, fewer rows are used, and the text says so. Dev is not scored.
    Rows are full, so a slot is a token.
    """
    batch = study.params.training.batch
    first = _step_seconds(study, 1, 2)
    most = max(1, min(batch.rows, int(seconds / (4 * first))))
    steps = min(study.params.training.steps, max(3, min(20, int(seconds / (first * most)))))
    rate = most * batch.length / _step_seconds(study, most, steps)
    fewer = "" if most == batch.rows else f", fewer rows than the study's {batch.rows}"
    return rate, f"measured over {steps} steps of {most} x {batch.length} on {device()}{fewer}"


def _step_seconds(study: Planned, count: int, steps: int) -> float:
    """Median seconds per step with `count` rows, without the first step."""
    settings, size = study.params.training, study.params.vocabulary
    length = settings.batch.length
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"rows": count})})
    ids = stream(0, "measure").integers(3, size, size=(count * (steps + 1), length), dtype=np.int32)
    side = Encoded(ids.reshape(-1), np.arange(len(ids) + 1) * length)
    data = training.Data(range(size), side, side, side, [])
    start = training.Start(theta_0(study.model(), 0), None, None, settings.optimizer, 0, 0)
    marks = []
    with study.threads():
        training.replay(settings, data, start, [steps], report=lambda *_: marks.append(time.perf_counter()))
    return statistics.median(np.diff(marks))


# The text ------------------------------------------------------------


def text(study: str, rate: float | None = None, devices: int = 1, measured: bool = False) -> str:
    """The plan of all pairs of a study as text.

    `rate`: target tokens per second of one training, by default that of the finished runs, with `measured` that of this
    machine. `devices`: number of devices, one training each.
    """
    given = None if rate is None else (rate, "as given")
    parts = []
    for pair in load(study).pairs:
        planned = Planned(study, pair)
        listed = rows(planned)
        if measured and given is None:
            given = measure(planned)
        parts.append(_pair_text(planned, listed, given or stored_rate(planned), devices))
    return "\n\n".join(parts)


def _pair_text(study: Planned, listed: list[Row], rate: tuple[float, str] | None, devices: int) -> str:
    settings, model, batch = study.params.training, study.outline, study.params.training.batch
    tickets = {train_id: ticket for row in listed for train_id, ticket in row.tickets.items()}
    total = Row("total", tickets, 0, max(row.waves for row in listed))
    left = {train_id: ticket for train_id, ticket in tickets.items() if train_id not in study.done}
    hours = settings.steps * batch.rows * batch.length / rate[0] / 3600 if rate else None
    table = pd.DataFrame([_cells(study, row, left, hours) for row in [*listed, total]]).set_index("technique")
    peak = max(disk(study, ticket)[1] for ticket in tickets.values())
    loss = "packing leaves a few percent of them empty" if batch.packed else "a row holds one sentence pair, padded"
    lines = [
        f"{study.name} {study.pair}: {_size(model.parameters()):,} parameters, {matrices(model):,} in matrices; "
        f"{settings.steps:,} steps of {batch.rows} x {batch.length} slots per side; "
        f"seeds {', '.join(map(str, study.seeds))}",
        "",
        table.rename_axis(index=None, columns="technique").to_string(),
        "",
        f"trainings: new in this row, in total {len(tickets)}; shared: counted in a row above",
        "waves: trainings in the longest chain; each waits for the one before it",
        f"tokens: target slots (rows x length x steps), an upper bound: {loss}",
        f"FLOPs: forward and backward pass, {flops(model, batch.rows, batch.length):.3g} per step",
        f"disk: GiB of the finished runs; a running training needs up to {peak / GIB:.3g} GiB more",
        "dev, test: sentences to decode, at all checkpoints and after the trainings",
    ]
    if not study.prepared:
        remedy = f"`python -m slt_lib data {study.name}` prepares it"
        lines.append(f"done, left: not known, because the corpus is not available yet; {remedy}")
    if hours is None:
        lines.append("hours: pass --rate TOKENS_PER_SECOND or --measure; no run of this study is finished here")
        return "\n".join(lines)
    on_devices = f"{_hours(hours * makespan(left, devices))} on {devices}, " if devices > 1 else ""
    lines += [
        "hours: for the trainings left, one after another; path: for the longest chain of them; "
        f"{rate[0]:,.0f} target tokens/s, {rate[1]}",
        f"a training: {_hours(hours)}; from checkpoint to checkpoint: {_hours(hours * settings.checkpoint)}, "
        "which a queue's time limit must allow",
        f"in total: {_hours(hours * len(left))} on one device, {on_devices}"
        f"{_hours(hours * makespan(left, len(left)))} on as many as can be used",
    ]
    return "\n".join(lines)


def _cells(study: Planned, row: Row, left: dict[str, Ticket], hours: float | None) -> dict[str, str]:
    settings, batch, count = study.params.training, study.params.training.batch, len(row.tickets)
    own = {train_id: ticket for train_id, ticket in row.tickets.items() if train_id in left}
    steps = settings.steps * count
    dev, test = sentences(study) or (None, None)
    return {
        "technique": row.technique,
        "trainings": f"{count}",
        "shared": "-" if row.technique == "total" else f"{row.shared}",
        "waves": f"{row.waves}",
        "steps": tqdm.format_sizeof(steps),
        "tokens": tqdm.format_sizeof(steps * batch.rows * batch.length),
        "FLOPs": f"{steps * flops(study.outline, batch.rows, batch.length):.2e}".replace("e+", "e"),
        "disk": f"{sum(disk(study, ticket)[0] for ticket in row.tickets.values()) / GIB:.3g}",
        "dev": "?" if dev is None else f"{dev * count:,}",
        "test": "?" if test is None else f"{test * count:,}",
        "done": f"{count - len(own)}" if study.prepared else "?",
        "left": f"{len(own)}" if study.prepared else "?",
        "hours": "-" if hours is None else _number(hours * len(own)),
        "path": "-" if hours is None else _number(hours * makespan(own, len(own))),
    }


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 99.5 else f"{value:,.0f}"


def _hours(value: float) -> str:
    return f"{_number(value)} h" + (f" ({_number(value / 24)} days)" if value >= 48 else "")
