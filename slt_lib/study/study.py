"""The study: it makes the dense ticket, turns tickets into runs, and follows chains of them."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from slt_lib.base import distributed
from slt_lib.base.errors import InputError
from slt_lib.base.files import sweep
from slt_lib.base.store import RECORD, RESUME, TICKET, Damaged, write_json
from slt_lib.sparse import files
from slt_lib.study import operations as op
from slt_lib.study.chains import Asked, Chain, Recipe, by_urgency, each, rewound_steps
from slt_lib.study.opening import Opened
from slt_lib.study.progress import Progress
from slt_lib.study.runs import Run
from slt_lib.study.scores import magnitudes, scored
from slt_lib.study.tickets import Ticket, check_choice, check_seed
from slt_lib.study.workers import Workers
from slt_lib.train import lockstep
from slt_lib.train import loop as training


class Study(Opened):
    """A study file's parameters for one pair, with its corpus, vocabulary and store; it trains tickets into runs."""

    def ticket(self, seed: int, optimizer: str = "") -> Ticket:
        """The dense ticket: theta_0 of `seed`, no mask.

        `optimizer`: "adafactor", "adam", or empty for the study's own. Raises InputError for another seed or optimizer.
        """
        optimizer = optimizer or self.params.training.optimizer
        check_choice("optimizer", optimizer, ("adafactor", "adam"))
        return Ticket(self.context, check_seed("seeds", seed), (op.Theta0(),), optimizer)

    def ticket_from(self, path: str | Path, seed: int | None = None) -> Ticket:
        """The ticket in a folder that `export --ticket` wrote, to be trained with this study's settings and corpus.

        `seed`: of the order of sentences and of dropout; None: that of the ticket. Initial weights and mask stay.
        Raises InputError if the folder holds no ticket, is damaged, or has a model of another shape or another
        vocabulary.
        """
        found = files.load(path)
        about, file = found.config, Path(path) / files.CONFIG
        if about.get("kind") != "ticket":
            raise InputError(f"{file}: holds no ticket; export it with --ticket")
        if found.shape != self.shape:
            raise InputError(f"{file}: {found.shape}; {self.file()} has {self.shape}; use a study of the same sizes")
        if found.vocabulary.digest != self.vocabulary.digest:
            other = f"its vocabulary is not that of {self.name} {self.pair}"
            raise InputError(f"{file}: {other}; use the corpus and vocabulary size that it was trained with")
        arrays = about["sha256"][files.ARRAYS], Path(path)
        own = about["seed"] if seed is None else seed
        first = op.FileWeights(*arrays) if found.weights else op.Theta0(None if own == about["seed"] else about["seed"])
        gradual = [op.Gradual(*about["gradual"])] if about["gradual"] else []
        operations = (first, op.FileMask(*arrays, tuple(about["pruning"])), *gradual)
        return replace(self.ticket(own), operations=operations, sparsity=about["sparsity"])

    def train(
        self,
        tickets: Iterable[Ticket],
        progress: Progress | None = None,
        keep: Mapping[str, Collection[int]] | None = None,
    ) -> list[Run]:
        """The runs of `tickets`, in their order: from the store if they are complete there, trained otherwise.

        `keep`: train_id -> steps at which the weights are kept, in addition to those of the study file. On a GPU, or
        with SLT_LOCKSTEP, several tickets are trained at once (`lockstep.group_size`).
        """
        tickets = list(tickets)
        self.prepare()
        found = self._found(tickets)
        missing = list({ticket.train_id: ticket for ticket in tickets if ticket.train_id not in found}.values())
        if missing:
            most = lockstep.group_size(self.params.training, self.params.vocabulary)
            for group in _groups(missing, most):
                found |= self._train(group, progress or Progress(), most > 1, keep or {})
        return [found[ticket.train_id] for ticket in tickets]

    def find(self, ticket: Ticket, tell: bool = True) -> Run | None:
        """The complete run of `ticket` in the store, or None.

        None also for a damaged run, and for one whose parents have other weights now, because they were trained again
        on another machine. With `tell` the reason is printed.
        """
        folder = self.store.folder(ticket.train_id)
        try:
            if (record := folder.record()) is None:
                return None
            folder.ticket()
            for parent in ticket.runs.values():
                if parent.weights_hash and record["parents"].get(parent.id) != parent.weights_hash:
                    what = f"it was made from other weights of run {parent.id[:12]}, which was trained again since"
                    raise Damaged(f"run {ticket.train_id[:12]}: {what}")
        except Damaged as error:
            if tell:
                print(f"{error}; it must be trained again", file=sys.stderr)
            return None
        return Run(ticket, record, self)

    def _found(self, tickets: Iterable[Ticket], tell: bool = True) -> dict[str, Run]:
        """train_id -> run, of the tickets with a complete run in the store; only rank 0 reads the store."""
        tickets = {ticket.train_id: ticket for ticket in tickets}
        runs = (self.find(ticket, tell) for ticket in tickets.values())
        records = distributed.broadcast(lambda: {run.id: run.record for run in runs if run})
        return {train_id: Run(tickets[train_id], record, self) for train_id, record in records.items()}

    def _train(self, tickets: list[Ticket], progress: Progress, together: bool, keep) -> dict[str, Run]:
        first, settings = distributed.first(), self.params.training
        with contextlib.ExitStack() as stack:
            for train_id in sorted(ticket.train_id for ticket in tickets) if first else ():  # sorted: no deadlock
                stack.enter_context(self.store.lock(train_id))
            # another process may have trained some of them in the meantime
            runs = self._found(tickets, tell=False)
            tickets = [ticket for ticket in tickets if ticket.train_id not in runs]
            with distributed.in_turn():  # rank 0 encodes the text, the others read it
                data = self.data
            folders = [self.store.folder(ticket.train_id) for ticket in tickets]
            keeps = [self.params.kept_steps() | set(keep.get(ticket.train_id, ())) for ticket in tickets]
            try:
                for ticket, folder in zip(tickets, folders, strict=True) if first else ():
                    if (folder / RECORD).exists():  # damaged: nothing of it is reused
                        self.store.remove(ticket.train_id)
                    sweep(folder.path)
                    write_json(folder / TICKET, ticket.identity)
                starts = [ticket.start() for ticket in tickets]
                reports = [stack.enter_context(progress.training(ticket, self.pair)) for ticket in tickets]
                columns = starts, folders, keeps, reports
                with self.threads():
                    if together:
                        records = lockstep.train_together(settings, data, *columns)
                    else:
                        train = functools.partial(training.train, settings, data, accumulate=self.params.accumulate)
                        records = [train(*row) for row in zip(*columns, strict=True)]
            except BaseException:
                for folder in folders if first else ():
                    if not (folder / RESUME).exists() and not (folder / RECORD).exists():  # nothing to resume
                        self.store.remove(folder.path.name)
                raise
            for ticket, start, record in zip(tickets, starts, records, strict=True):
                runs[ticket.train_id] = run = Run(ticket, record, self)
                if first:
                    magnitudes(run, start)  # while the start is in memory
            return runs

    def chain(
        self,
        recipe: Callable[..., Recipe],
        seed: int,
        levels: Iterable[float] = (),
        label: tuple[str, str] | None = None,
        scored: tuple[str, ...] = ("best",),
        **knobs,
    ) -> Chain:
        """A recipe for one seed, labelled: technique by the recipe's name, variant by the knobs that differ.

        `levels`: empty for the study's; `label`: another technique and variant; `scored`: see `Chain`. A training that
        follows other levels than the study's is a variant of its own. `recipe.path(levels, knobs)`, if there is one,
        gives the levels that it depends on; the default is all of them. Raises InputError for an unknown knob.
        """
        defaults = {name: parameter.default for name, parameter in inspect.signature(recipe).parameters.items()}
        for name in knobs:
            if name not in defaults:
                raise InputError(f"{recipe.__name__} has no knob {name!r}; it has {', '.join(defaults)}")
        changed = {name: value for name, value in knobs.items() if value != defaults[name]}
        if changed.get("optimizer") in ("", self.params.training.optimizer):
            del changed["optimizer"]
        variant = ",".join(f"{name}={value}" for name, value in sorted(changed.items()))
        names = label or (getattr(recipe, "technique", _technique(recipe)), variant)
        path = functools.partial(getattr(recipe, "path", lambda levels, knobs: levels), knobs=defaults | knobs)
        levels = list(levels) or self.levels
        again = functools.partial(recipe, self, seed, levels, **knobs)
        return Chain(*names, seed, again(), levels=levels, path=path, again=again, scored=scored)

    def through(self, recipe: Callable[..., Recipe], seed: int, levels: Sequence[float]) -> Chain:
        """A chain at `levels`, plus the other study levels that their trainings depend on."""
        upto = [level for level in self.levels if level <= max(levels)]
        needed = self.chain(recipe, seed, upto).path(upto)
        return self.chain(recipe, seed, sorted({*needed, *levels}))

    def follow(
        self,
        chains: Iterable[Chain | Recipe],
        progress: Progress | None = None,
        stored: bool = False,
        jobs: int = 1,
        done: Callable[[Chain, Run], None] = lambda chain, run: None,
    ) -> list[Chain]:
        """Advance all chains until each has ended; a chain may be a bare generator of a recipe of your own.

        Tickets that are ready train together, in waves; equal tickets are trained once. With `jobs` above 1 that many
        processes train and score at the same time, with the study's `threads` each, and a chain advances as soon as its
        own run is done. A chain whose run failed stops there with a reason; the others continue. `done(chain, run)` is
        called for each run that gets rows, as soon as it is trained. With `stored` nothing is trained: a chain stops,
        with a reason, at the first ticket that has no run.
        """
        chains = [chain if isinstance(chain, Chain) else Chain(_technique(chain), "", None, chain) for chain in chains]
        if not stored:
            self.prepare()
        keep, runs, progress = rewound_steps(self, chains), {}, progress or Progress()
        checkpoints = tuple(dict.fromkeys(kind for chain in chains for kind in chain.scored))
        side_by_side = jobs > 1 and not stored
        for chain in chains:
            chain.advance()
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(Workers(self, jobs)) if side_by_side else None
            tell = stack.enter_context(progress.trainings(side_by_side))
            while waiting := [chain for chain in chains if chain.asked is not None]:
                tickets, ended = by_urgency(waiting, runs), set()
                if pool and (missing := [ticket for ticket in tickets if self._unscored(ticket, checkpoints)]):
                    ended = pool.first_done(missing, keep, checkpoints)
                    tickets = [ticket for ticket in tickets if ticket in ended or ticket not in missing]
                found = self._found(tickets).values() if stored else self.train(tickets, progress, keep)
                tell(run for run in found if run.ticket in ended)
                runs |= {run.id: run for run in found}
                for chain in waiting:
                    asked = chain.asked
                    chain.receive(runs, done)
                    if stored and chain.asked is asked:
                        chain.stop(self._untrained(asked, runs))
        return chains

    def _untrained(self, asked: Asked, runs: Mapping[str, Run]) -> str:
        """Which ticket of those that a chain waits for is not among `runs`."""
        ticket = next(ticket for ticket in each(asked) if ticket.train_id not in runs)
        what = f"{ticket.trained_with} at sparsity {ticket.sparsity:g} is not trained yet"
        return f"{self.name} {self.pair} seed {ticket.seed}: {what}; `python -m slt_lib run {self.name}` does it"

    def _unscored(self, ticket: Ticket, checkpoints: tuple[str, ...]) -> bool:
        """Whether a worker process still has to train the ticket or to score one of `checkpoints`."""
        run = self.find(ticket, tell=False)
        if run is None:
            return True
        return ticket.listed and run.record["status"] == "ok" and not all(scored(run, kind) for kind in checkpoints)


def _technique(recipe: Callable | Recipe) -> str:
    return recipe.__name__.replace("_", "-")


def _groups(tickets: list[Ticket], most: int) -> Iterator[list[Ticket]]:
    """Split tickets into groups of one optimizer and similar size, at most `most` in each."""
    for optimizer in dict.fromkeys(ticket.optimizer for ticket in tickets):
        alike = [ticket for ticket in tickets if ticket.optimizer == optimizer]
        count = -(-len(alike) // most)
        for i in range(count):
            yield alike[i * len(alike) // count : (i + 1) * len(alike) // count]
