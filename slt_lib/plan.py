"""The cost of a study before it is run: its trainings, their order, time and disk space.

The recipes are followed with placeholders for the trained runs, so that shared trainings and dependences are those of a
real study. Nothing is trained, downloaded or prepared, and no lock of a training is waited for.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterable

import numpy as np
import torch

from slt_lib.base.devices import device
from slt_lib.base.errors import InputError
from slt_lib.base.seeds import stream
from slt_lib.base.settings import Training, Wmt14, load
from slt_lib.base.store import Damaged, unseal
from slt_lib.data import wmt14
from slt_lib.data.vocabulary import Encoded
from slt_lib.study import Chain, Study, Ticket
from slt_lib.study.operations import Context
from slt_lib.study.runs import Run, StandIn
from slt_lib.techniques import RECIPES, ablations
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import checkpoints
from slt_lib.transformer import prunable, theta_0

FLOAT, BOOL = 4, 1  # bytes
SECONDS = 40.0  # target duration of `measure`
GIB = 2**30


class Planned(Study):
    """A study that trains nothing: each training is represented by its stored run, or else by a placeholder.

    `done`: the stored runs by id, or None if the corpus is not available. Finding a run reads all of its files.
    """

    def __init__(self, study: str = "quick", pair: str = ""):
        super().__init__(study, pair)
        self.tickets: dict[str, Ticket] = {}
        self.keep: dict[str, set[int]] = {}
        prepared = self.corpus_at_hand()
        self.done: dict[str, Run] | None = {} if prepared else None
        self.searched = prepared and self.vocabulary_file().exists()  # without a vocabulary there are no runs
        if prepared:
            self.counts = len(self.corpus.dev), list(map(len, self.corpus.tests.values()))

    @property
    def context(self) -> Context:
        """What the tickets need from the study; without digests if there is no vocabulary yet."""
        return super().context if self.searched else Context(self.params.training, "", "", self.params.vocabulary)

    def prepare(self) -> None:
        """Do nothing: a plan builds no data."""

    def train(self, tickets: Iterable[Ticket], progress=None, stored: bool = False, keep=()) -> list[Run]:
        """A run for each of `tickets`; the tickets and the steps in `keep` are recorded."""
        for train_id, steps in dict(keep).items():
            self.keep.setdefault(train_id, set()).update(steps)
        return [self._run(ticket) for ticket in tickets]

    def _run(self, ticket: Ticket) -> Run:
        if ticket.train_id not in self.tickets:
            self.tickets[ticket.train_id] = ticket
            if self.searched and (found := self.find(ticket, tell=False)):
                self.done[found.id] = found
        return (self.done or {}).get(ticket.train_id) or StandIn(ticket, self)

    @functools.cached_property
    def outline(self) -> torch.nn.Module:
        """The model on the meta device; it needs no vocabulary."""
        with torch.device("meta"):
            return training.new_model(self.params.training, self.params.vocabulary)


@dataclasses.dataclass(frozen=True)
class Row:
    """One technique: its new `tickets`, and the number of `shared` trainings that a row above counts."""

    technique: str
    tickets: dict[str, Ticket]
    shared: int
    waves: int


def rows(study: Planned) -> list[Row]:
    """Dense, the pair's techniques and, for the pair that has them, the ablations; each training counted once."""
    names = ["dense", *study.params.pairs[study.pair]]
    wanted = {name: [study.chain(RECIPES[name], seed) for seed in study.seeds] for name in names}
    if study.params.ablations and study.pair == next(iter(study.params.pairs)):
        wanted["ablations"] = ablations(study)
    found = []
    for name, chains in wanted.items():
        before = set(study.tickets)
        mine = _followed(study, chains)
        new = {key: ticket for key, ticket in mine.items() if key not in before}
        waves = 1 + max((ticket.depth for ticket in mine.values()), default=-1)
        found.append(Row(name, new, len(mine) - len(new), waves))
    return found


def _followed(study: Planned, chains: Iterable[Chain]) -> dict[str, Ticket]:
    """All tickets that `chains` yield, including those without rows in the results."""
    known, study.tickets = study.tickets, {}
    study.follow(chains)
    mine = study.tickets
    study.tickets = known | mine
    return mine


# What a training takes ------------------------------------------------------------


def flops(model: torch.nn.Module, rows: int, length: int) -> int:
    """Floating-point operations of one step, forward and backward, on `rows` rows of `length` slots a side.

    6 * W * rows * length for the W weights of the matrices, the embedding once, as the softmax (a multiplication and an
    addition a weight and slot, twice that backward), and 36 * layers * hidden * rows * length ** 2 for attention: 4 *
    hidden * length ** 2 a row for scores and for what they weigh, in three attentions a layer pair, times three for the
    backward pass. Padding is computed like the rest. Norms, dropout, the optimizer and masks are left out.
    """
    weights = sum(weight.numel() for weight in prunable(dict(model.named_parameters())).values())
    shape = model.shape
    return 6 * weights * rows * length + 36 * shape.layers * shape.hidden * rows * length**2


def tokens(settings: Training) -> int:
    """Target slots of one training: an upper bound of its tokens, as rows are not filled to the last slot."""
    return settings.steps * settings.batch.rows * settings.batch.length


def kept_bytes(study: Planned, ticket: Ticket) -> int:
    """Bytes of a finished run: the checkpoints kept (best and final apart) in fp32, and its mask."""
    steps = study.params.kept_steps() | study.keep.get(ticket.train_id, set())
    thetas = len(steps - {0, study.params.training.steps}) + 2
    return thetas * _theta_bytes(study) + _mask_bytes(study, ticket)


def working_bytes(study: Planned, ticket: Ticket) -> int:
    """Additional bytes that a running training may need: the resume file and its successor."""
    optimizer = 0
    for weight in study.outline.parameters():
        if ticket.optimizer == "adam":
            optimizer += 2 * weight.numel()
        else:
            optimizer += sum(weight.shape) if weight.dim() > 1 else weight.numel()
    stale = _mask_bytes(study, ticket) // BOOL * FLOAT if study.params.training.pruned == "stale" else 0
    resume = _theta_bytes(study) + FLOAT * optimizer + _mask_bytes(study, ticket) + stale
    return 2 * resume + _theta_bytes(study)


def _theta_bytes(study: Planned) -> int:
    return FLOAT * sum(weight.numel() for weight in study.outline.parameters())


def _mask_bytes(study: Planned, ticket: Ticket) -> int:
    matrices = prunable(dict(study.outline.named_parameters()))
    return BOOL * sum(weight.numel() for weight in matrices.values()) if ticket.sparsity else 0


def sentences(study: Planned) -> tuple[int, int] | None:
    """Sentences decoded during a training (dev, at each checkpoint) and afterwards (test sets); None if unknown."""
    if study.done is not None:
        dev, tests = study.counts
    elif isinstance(study.params.corpus, Wmt14):
        other = study.pair.replace("en", "").strip("-")
        dev, *tests = [counts.get(other, 0) for _, counts in wmt14.TEST_SETS.values()]
    else:
        return None
    settings = study.params.training
    return len(checkpoints(settings)) * min(settings.dev_sentences or dev, dev), sum(tests)


def makespan(tickets: dict[str, Ticket], devices: int) -> int:
    """Trainings one after another until all of `tickets` are trained on `devices` devices, the longest chains first.

    All trainings of a study take the same number of steps; those that `tickets` lean on and do not hold are done.
    """
    height: dict[str, int] = {}
    for key, ticket in sorted(tickets.items(), key=lambda item: -item[1].depth):
        height.setdefault(key, 1)
        for parent in ticket.runs:
            height[parent] = max(height.get(parent, 1), height[key] + 1)
    left, trained, rounds = dict(tickets), set(), 0
    while left:
        ready = [key for key, ticket in left.items() if not (set(ticket.runs) & tickets.keys()) - trained]
        chosen = sorted(ready, key=lambda key: -height[key])[:devices]
        trained |= set(chosen)
        left = {key: ticket for key, ticket in left.items() if key not in trained}
        rounds += 1
    return rounds


# Rates ------------------------------------------------------------


def stored_rate(study: Planned) -> tuple[float, str] | None:
    """Median of target tokens per second over the study's finished runs, dev scoring included."""
    found = []
    for run in (study.done or {}).values():
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
    where = f"measured over {steps} steps of {most} x {batch.length} on {device()}"
    return rate, where + ("" if most == batch.rows else f", fewer rows than the study's {batch.rows}")


def _step_seconds(study: Planned, count: int, steps: int) -> float:
    """Median seconds per step with `count` rows, without the first step."""
    settings, size = study.params.training, study.params.vocabulary
    length = settings.batch.length
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"rows": count})})
    ids = stream(0, "measure").integers(3, size, size=(count * (steps + 1), length), dtype=np.int32)
    side = Encoded(ids.reshape(-1), np.arange(len(ids) + 1) * length)
    data = training.Data(range(size), side, side, side, [])
    start = training.Start(theta_0(training.new_model(settings, size), 0), None, None, settings.optimizer, 0, 0)
    marks = []
    with study.threads():
        training.replay(settings, data, start, [steps], report=lambda *_: marks.append(time.perf_counter()))
    return statistics.median(np.diff(marks))


# The text ------------------------------------------------------------

HEAD = "technique trainings shared waves steps tokens FLOPs disk dev test done left hours path".split()


def text(study: str, rate: float | None = None, devices: int = 1, measured: bool = False) -> str:
    """The plan of all pairs of a study as text.

    `rate`: target tokens per second of one training, by default that of the finished runs, with `measured` that of this
    machine. `devices`: number of devices, one training each. Raises InputError for an invalid rate or number.
    """
    if rate is not None and not 0 < rate < float("inf"):
        raise InputError(f"--rate {rate:g}: target tokens a second must be a number above 0")
    if rate is not None and measured:
        raise InputError("--rate and --measure: give one of them")
    if devices < 1:
        raise InputError(f"--gpus {devices}: at least 1 is needed")
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
    settings, model = study.params.training, study.outline
    batch, everything = settings.batch, study.tickets
    hours = tokens(settings) / rate[0] / 3600 if rate else None
    left = {key: ticket for key, ticket in everything.items() if key not in (study.done or {})}
    total = Row("total", everything, 0, max(row.waves for row in listed))
    cells = [HEAD, *(_cells(study, row, left, hours) for row in [*listed, total])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    weights = sum(weight.numel() for weight in model.parameters())
    matrices = sum(weight.numel() for weight in prunable(dict(model.named_parameters())).values())
    peak = max(working_bytes(study, ticket) for ticket in everything.values())
    aligned = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells)
    loss = "packing leaves a few percent of them empty" if batch.packed else "a row holds one pair, padded"
    lines = [
        f"{study.name} {study.pair}: {weights:,} parameters, {matrices:,} of them in matrices; "
        f"{settings.steps:,} steps of {batch.rows} x {batch.length} slots a side; "
        f"seeds {', '.join(map(str, study.seeds))}",
        "",
        *aligned,
        "",
        f"trainings: new ones, {len(everything) / len(study.seeds):g} a seed in all; shared: those of a row above",
        "waves: trainings of the longest chain, in which each waits for the one before",
        f"tokens: target slots, rows x length x steps, an upper bound: {loss}",
        f"FLOPs: forward and backward, {flops(model, batch.rows, batch.length):.3g} a step",
        f"disk: GiB of finished runs; a training under way takes up to {peak / GIB:.3g} GiB beside",
        "dev, test: sentences to decode, at each checkpoint and of each run",
    ]
    if study.done is None:
        remedy = f"`python -m slt_lib data {study.name}` prepares it"
        lines.append(f"done, left: not known, as the corpus is not there yet; {remedy}")
    if hours is None:
        lines.append("hours: pass --rate TOKENS_PER_SECOND, or --measure; no run of this study is finished here")
        return "\n".join(lines)
    lines += [
        "hours: of what is left, one training after another; path: along the longest chain; "
        f"{rate[0]:,.0f} target tokens/s, {rate[1]}",
        f"a training: {_hours(hours)}; from checkpoint to checkpoint, which a queue's time limit must allow: "
        f"{_hours(hours * settings.checkpoint)}",
        f"in all: {_hours(hours * len(left))} on one device, "
        + (f"{_hours(hours * makespan(left, devices))} on {devices}, " if devices > 1 else "")
        + f"{_hours(hours * makespan(left, len(left)))} on as many as can be used",
    ]
    return "\n".join(lines)


def _cells(study: Planned, row: Row, left: dict[str, Ticket], hours: float | None) -> list[str]:
    settings, count = study.params.training, len(row.tickets)
    own = {key: ticket for key, ticket in row.tickets.items() if key in left}
    work = flops(study.outline, settings.batch.rows, settings.batch.length) * settings.steps * count
    disk = sum(kept_bytes(study, ticket) for ticket in row.tickets.values())
    decoded = sentences(study)
    known = study.done is not None
    return [
        row.technique,
        f"{count}",
        f"{row.shared}" if row.technique != "total" else "-",
        f"{row.waves}",
        _short(settings.steps * count),
        _short(tokens(settings) * count),
        f"{work:.2e}".replace("e+", "e"),
        f"{disk / GIB:.3g}",
        *([f"{each * count:,}" for each in decoded] if decoded else ["?", "?"]),
        *([f"{count - len(own)}", f"{len(own)}"] if known else ["?", "?"]),
        *(["-", "-"] if hours is None else [_number(hours * len(own)), _number(hours * makespan(own, len(own)))]),
    ]


def _short(value: float) -> str:
    """Three digits and a unit prefix: 12M, 197G."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g}T"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 99.5 else f"{value:,.0f}"


def _hours(value: float) -> str:
    return f"{_number(value)} h" + (f" ({_number(value / 24)} days)" if value >= 48 else "")
