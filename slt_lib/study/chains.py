"""Chains: recipes with labels, which advance as their tickets are trained."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from slt_lib.base import distributed
from slt_lib.study.opening import Opened
from slt_lib.study.operations import Rewind
from slt_lib.study.runs import Failed, Run, StandIn
from slt_lib.study.tickets import Ticket

Asked = Ticket | list[Ticket]
Recipe = Generator[Asked, Run | list[Run], Any]


@dataclass(eq=False)
class Chain:
    """A generator of tickets with its labels and the runs so far; `reason` says why it stopped early.

    `seed`: None until a bare generator yields its first ticket. `levels`: those that the recipe was given. `path`: maps
    levels to those that a training depends on. `again`: makes the generator once more. `scored`: the checkpoints of
    its runs that get rows (`Run.weights`). `asked`: what it waits for; None before its start and after its end.
    """

    technique: str
    variant: str
    seed: int | None
    generator: Recipe = field(repr=False)
    runs: list[Run] = field(default_factory=list)
    reason: str = ""
    levels: list[float] = field(default_factory=list, repr=False)
    path: Callable[[list[float]], list[float]] = field(default=lambda levels: [], repr=False)
    again: Callable[[], Recipe] | None = field(default=None, repr=False)
    scored: tuple[str, ...] = field(default=("best",), repr=False)
    asked: Asked | None = field(default=None, init=False, repr=False)
    before: int = field(default=0, init=False, repr=False)  # number of `runs` before those that it waits for

    def variant_of(self, run: Run) -> str:
        """Variant of one of its runs: the chain's, with the levels before it if the study would take others."""
        upto = [level for level in self.levels if level <= run.sparsity]
        usual = [level for level in run.study.params.levels if level < run.sparsity]
        usual += [level for level in self.levels if level == run.sparsity]
        same = self.path(upto) == self.path(usual)
        levels = "" if same else f"levels={'+'.join(f'{level:g}' for level in upto)}"
        noise = f"noise={run.ticket.noise}" if run.ticket.noise else ""
        return ",".join(filter(None, [self.variant, levels, noise]))

    def advance(self, answer: Run | list[Run] | None = None) -> None:
        """Send the recipe what it waits for, or None to start it. It stops if it depends on a failed run."""
        self.asked, self.before = None, len(self.runs)
        try:
            if isinstance(answer, Run):
                answer.must_stand()
            self.asked = self.generator.send(answer)
        except StopIteration:
            pass
        except Failed as error:
            self.stop(str(error))
        if self.seed is None and (tickets := each(self.asked)):
            self.seed = tickets[0].seed

    def stop(self, reason: str) -> None:
        """End the chain before its recipe does."""
        self.asked, self.reason = None, reason
        self.generator.close()

    def receive(self, runs: Mapping[str, Run], done: Callable[["Chain", Run], None] | None = None) -> None:
        """Take those of `runs` (by id) that the chain waits for, and advance it if all are there.

        `done`: see `Study.follow`. The label of a row depends on earlier runs at its sparsity, so a run waits until
        these are present.
        """
        ready, absent = [], set()
        for ticket in each(self.asked):
            if ticket.train_id not in runs:
                absent.add(ticket.sparsity)
            elif ticket.listed and ticket.sparsity not in absent:
                ready.append(runs[ticket.train_id])
        new = [run for run in ready if run not in self.runs[self.before :]]
        self.runs[self.before :] = ready
        for run in new if done else ():
            distributed.broadcast(lambda run=run: done(self, run))
        if not absent:
            answer = [runs[ticket.train_id] for ticket in each(self.asked)]
            self.advance(answer[0] if isinstance(self.asked, Ticket) else answer)


def each(asked: Asked | None) -> list[Ticket]:
    """The tickets that a recipe yielded, as a list."""
    return [asked] if isinstance(asked, Ticket) else list(asked or ())


def by_urgency(chains: Iterable[Chain], runs: Mapping[str, Run]) -> list[Ticket]:
    """The tickets that chains wait for and that are not in `runs`, each once, the most wanted first.

    A list of tickets (MP's levels) ends its chain, so it adds no urgency.
    """
    tickets, wanted = {}, Counter()
    for chain in chains:
        for ticket in each(chain.asked):
            if ticket.train_id not in runs:
                tickets[ticket.train_id] = ticket
                wanted[ticket.train_id] += isinstance(chain.asked, Ticket)
    return sorted(tickets.values(), key=lambda ticket: -wanted[ticket.train_id])


def foresee(study: Opened, chain: Chain, find: Callable[[Ticket], Run | None] = lambda ticket: None) -> Iterator[Run]:
    """Advance a chain to its end without training anything; yields the runs that it asks for.

    `find`: gives the run of a ticket, or None, for which a `StandIn` takes its place.
    """
    chain.advance()
    while chain.asked is not None:
        runs = {ticket.train_id: find(ticket) or StandIn(ticket, study) for ticket in each(chain.asked)}
        yield from runs.values()
        chain.receive(runs)


def rewound_steps(study: Opened, chains: Iterable[Chain]) -> dict[str, set[int]]:
    """The steps that chains will rewind to, known before anything is trained: train_id -> steps.

    A recipe that reads its runs is followed up to there.
    """
    steps = defaultdict(set)
    for chain in (chain for chain in chains if chain.again):
        with contextlib.suppress(Exception):  # a recipe of one's own that reads an untrained run
            for run in foresee(study, Chain("", "", chain.seed, chain.again())):
                for operation in run.ticket.operations:
                    if isinstance(operation, Rewind):
                        steps[operation.run.id].add(operation.step)
    return steps
