"""Chains: recipes with labels, and how many of them advance together."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from slt_lib.base import distributed
from slt_lib.study.opening import Opened
from slt_lib.study.operations import Rewind
from slt_lib.study.runs import Failed, Run, StandIn
from slt_lib.study.tickets import Ticket

Asked = Ticket | list[Ticket]
Recipe = Generator[Asked, Run | list[Run], Any]


@dataclass
class Chain:
    """A generator of tickets with its labels and the runs so far; `reason` says why it stopped early.

    `seed`: None until a bare generator yields its first ticket. `levels`: those that the recipe was given. `path`: maps
    levels to those that a training depends on. `again`: the same recipe for other levels. `scored`: the checkpoints of
    its runs that get rows (`Run.weights`).
    """

    technique: str
    variant: str
    seed: int | None
    generator: Recipe = field(repr=False)
    runs: list[Run] = field(default_factory=list)
    reason: str = ""
    levels: list[float] = field(default_factory=list, repr=False)
    path: Callable[[list[float]], list[float]] = field(default=lambda levels: [], repr=False)
    again: Callable[[list[float]], Recipe] | None = field(default=None, repr=False)
    scored: tuple[str, ...] = field(default=("best",), repr=False)

    @staticmethod
    def of(generator: Recipe) -> "Chain":
        """The chain of a generator that was not made by `Study.chain`, labelled by the generator's name."""
        return Chain(generator.__name__.replace("_", "-"), "", None, generator)

    def variant_of(self, run: Run) -> str:
        """Variant of one of its runs: the chain's, with the levels before it if the study would take others."""
        upto = [level for level in self.levels if level <= run.sparsity]
        usual = [level for level in run.study.params.levels if level < run.sparsity]
        usual += [level for level in self.levels if level == run.sparsity]
        same = self.path(upto) == self.path(usual)
        levels = "" if same else f"levels={'+'.join(f'{level:g}' for level in upto)}"
        noise = f"noise={run.ticket.noise}" if run.ticket.noise else ""
        return ",".join(filter(None, [self.variant, levels, noise]))


class Waves:
    """Chains that advance together: `tickets` lists what they wait for, `answer` sends them the runs.

    `done(chain, run)` is called for each run that gets rows, on rank 0.
    """

    def __init__(self, chains: list[Chain], done: Callable[[Chain, Run], None]):
        self.chains, self.done = chains, done
        self.runs: dict[str, Run] = {}
        self.reported: set[tuple[int, str]] = set()  # number of a chain and run, of those that `done` knows
        self.waiting: dict[int, Asked] = {}  # number of a chain -> what it yielded last
        for i in range(len(chains)):
            self._advance(i, None)

    def tickets(self) -> list[Ticket]:
        """The tickets that the chains wait for and that have no run yet, the most urgent first."""
        return by_urgency(self.waiting, self.runs)

    def answer(self, runs: Iterable[Run]) -> None:
        """Advance each chain whose tickets are all trained."""
        self.runs |= {run.id: run for run in runs}
        for i, asked in list(self.waiting.items()):
            self._report_early(i, each(asked))
            if all(ticket.train_id in self.runs for ticket in each(asked)):
                del self.waiting[i]
                self._answer(i, asked)

    def _report_early(self, i: int, asked: list[Ticket]) -> None:
        """Call `done` for the runs of a list before all of it is trained, unless another ticket there looks alike."""
        chain, places = self.chains[i], [(ticket.sparsity, ticket.noise) for ticket in asked]
        there = [ticket for ticket in asked if ticket.listed and ticket.train_id in self.runs]
        for ticket in there if len(asked) > 1 else ():
            key = (i, ticket.train_id)
            if key not in self.reported and places.count((ticket.sparsity, ticket.noise)) == 1:
                self.reported.add(key)
                so_far = replace(chain, runs=[*chain.runs, *(self.runs[other.train_id] for other in there)])
                distributed.broadcast(lambda: self.done(so_far, self.runs[ticket.train_id]))  # noqa: B023

    def _advance(self, i: int, answer: Run | list[Run] | None) -> None:
        chain = self.chains[i]
        try:
            asked = chain.generator.send(answer)
        except StopIteration:
            return
        except Failed as error:
            chain.reason = str(error)
            return
        if chain.seed is None and each(asked):
            chain.seed = each(asked)[0].seed
        self.waiting[i] = asked

    def _answer(self, i: int, asked: Asked) -> None:
        chain, answer = self.chains[i], [self.runs[ticket.train_id] for ticket in each(asked)]
        for run, ticket in zip(answer, each(asked), strict=True):
            if ticket.listed:
                chain.runs.append(run)
                if (i, run.id) not in self.reported:
                    distributed.broadcast(lambda: self.done(chain, run))  # noqa: B023 (called at once)
        if not isinstance(asked, Ticket):
            self._advance(i, answer)
        elif answer[0].record["status"] == "failed":
            chain.reason = f"run {answer[0].id[:12]} failed: {answer[0].record['reason']}"
            chain.generator.close()
        else:
            self._advance(i, answer[0])


def each(asked: Asked) -> list[Ticket]:
    """The tickets that a recipe yielded, as a list."""
    return [asked] if isinstance(asked, Ticket) else list(asked)


def by_urgency(waiting: dict[int, Asked], runs: dict[str, Run]) -> list[Ticket]:
    """The tickets without a run, each once, sorted by the number of chains that wait for them.

    A list (the levels of MP) ends its chain and does not count, so its tickets come last.
    """
    tickets, weight = {}, {}
    for asked in waiting.values():
        for ticket in each(asked):
            if ticket.train_id not in runs:
                tickets[ticket.train_id] = ticket
                weight[ticket.train_id] = weight.get(ticket.train_id, 0) + isinstance(asked, Ticket)
    return sorted(tickets.values(), key=lambda ticket: -weight[ticket.train_id])


def rewound_steps(study: Opened, chains: Iterable[Chain]) -> dict[str, set[int]]:
    """The steps that chains will rewind to, known before anything is trained: train_id -> steps."""
    steps: dict[str, set[int]] = {}
    for chain in chains:
        for ticket in _foreseen(study, chain.again(chain.levels)) if chain.again else ():
            for operation in ticket.operations:
                if isinstance(operation, Rewind):
                    steps.setdefault(operation.run.id, set()).add(operation.step)
    return steps


def _foreseen(study: Opened, generator: Recipe) -> list[Ticket]:
    """The tickets that a recipe yields; if it reads its runs, those before it does."""
    found, answer = [], None
    try:
        while True:
            asked = generator.send(answer)
            found += each(asked)
            runs = [StandIn(ticket, study) for ticket in each(asked)]
            answer = runs[0] if isinstance(asked, Ticket) else runs
    except Exception:  # StopIteration, or any error of a user's recipe that reads an untrained run
        return found
