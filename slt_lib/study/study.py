"""A study and its chains: the small algebra that the paper's section 3 is written in.

A Ticket is a value: where its weights, its mask and its schedule come from. Making one computes nothing. A Run is a
trained ticket. `Study.train` turns tickets into runs, from the store where it has them; `Study.follow` advances many
generators of tickets in waves.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import os
import sys
import types
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slt_lib.base import distributed
from slt_lib.base import settings as params
from slt_lib.base.devices import threads
from slt_lib.base.errors import InputError
from slt_lib.base.files import sweep
from slt_lib.base.store import RECORD, RESUME, TICKET, Damaged, Store, digest, recall, remember, write_json
from slt_lib.data import corpora, wmt14
from slt_lib.data.vocabulary import Vocabulary
from slt_lib.study import workers
from slt_lib.study.progress import Progress
from slt_lib.study.runs import Failed, Run, StandIn
from slt_lib.study.tickets import Ticket, check_choice, check_seed, number
from slt_lib.train import lockstep
from slt_lib.train import loop as training
from slt_lib.transformer import Transformer

Recipe = Generator[Ticket | list[Ticket], Run | list[Run], Any]


@dataclass
class Chain:
    """A generator of tickets with its labels, and the runs it has made so far; `reason` where it stopped early.

    `levels`: those it was given; `again`: the same recipe for other levels; `scored`: the checkpoints of its runs that
    get rows (`Run.weights`).
    """

    technique: str
    variant: str
    seed: int
    generator: Recipe = field(repr=False)
    runs: list[Run] = field(default_factory=list)
    reason: str = ""
    levels: list[float] = field(default_factory=list, repr=False)
    again: Callable[[list[float]], Recipe] | None = field(default=None, repr=False)
    scored: tuple[str, ...] = field(default=("best",), repr=False)

    def variant_of(self, run: Run) -> str:
        """The label of one of its runs: the chain's, and the levels that led there where the study's lead elsewhere."""
        upto = [level for level in self.levels if level <= run.sparsity]
        usual = [level for level in run.study.params.levels if level < run.sparsity]
        usual += [level for level in self.levels if level == run.sparsity]
        there = self.again is None or upto == usual or run.id in _foreseen(self.again(usual))
        levels = "" if there else f"levels={'+'.join(f'{level:g}' for level in upto)}"
        noise = f"noise={run.ticket.noise}" if run.ticket.noise else ""
        return ",".join(filter(None, [self.variant, levels, noise]))


class Study:
    """A study file's parameters for one pair, with its corpus, vocabulary and store."""

    def __init__(self, study: str = "quick", pair: str = "", seeds: Iterable[int] = (), levels: Iterable[float] = ()):
        """`study`: name of a file in params/; `pair`, `seeds`, `levels`: empty for the study's own.

        Raises InputError for a study, pair, seed or level that can't be.
        """
        for key, text in (("study", study), ("pair", pair)):
            if not isinstance(text, str):
                raise InputError(f"{key}: {text!r} is no name; give it as text")
        self._asked = (study,)
        self.name = os.path.basename(study).removesuffix(".yaml")
        self.params = params.load(study)
        self.pair = pair or next(iter(self.params.pairs))
        if self.pair not in self.params.pairs:
            raise InputError(f"pair {pair!r}: {self.file()} has {', '.join(self.params.pairs)}")
        if not isinstance(self.params.corpus, params.Wmt14):
            try:
                corpora.languages_of(self.pair, self.params.corpus.name)
            except InputError as error:
                raise InputError(f"{self.file()}: pairs: {error}") from None
        self.seeds = [check_seed("seeds", seed) for seed in _listed("seeds", seeds)] or list(self.params.seeds)
        self.levels = [number("levels", level) for level in _listed("levels", levels)] or list(self.params.levels)
        try:
            params.check_seeds(self.seeds)
            params.check_levels(self.levels)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.store = Store()
        self.decode_batch = 64
        self._asked = (study, pair, tuple(self.seeds), tuple(self.levels))

    def __reduce__(self):  # for a process of its own: opened again there, once, and nothing of it sent
        return _opened, self._asked

    def file(self) -> str:
        """The file of its parameters, as an error names it."""
        return os.path.relpath(params.file_of(self._asked[0]))

    def __repr__(self) -> str:
        return f"Study({self.name}, {self.pair}, seeds {self.seeds}, levels {self.levels})"

    # Data ------------------------------------------------------------

    @functools.cached_property
    def corpus(self) -> corpora.Corpus:
        match self.params.corpus:
            case params.Grammar() as made:
                kept = recall(self._sentences_file(made), "train", "dev", "test")
                return corpora.grammar(self.pair, made.train, made.dev, made.test, made.seed, kept)
            case params.Multi30k():
                return corpora.multi30k(self.pair)
            case params.Files() as own:
                return corpora.files(own.folder, self.pair, own.tests)
            case params.Wmt14() as public:
                return wmt14.corpus(self.pair, public, self.store)

    def _sentences_file(self, made: params.Grammar) -> Path:
        """Where made sentences are kept once a vocabulary is built of them: every notebook of a study asks for them."""
        code = hashlib.sha256(corpora.GRAMMAR_CODE.read_bytes()).hexdigest()
        return self.store.path / "sentences" / f"{digest([made.model_dump(), code])[:32]}.json"

    def corpus_at_hand(self) -> bool:
        """Whether opening the corpus neither downloads nor prepares anything, nor waits for one who does."""
        match self.params.corpus:
            case params.Multi30k():
                return corpora.multi30k_at_hand(self.pair)
            case params.Wmt14() as public:
                return wmt14.at_hand(self.pair, public, self.store)
        return True

    def vocabulary_file(self) -> Path:
        """Where the vocabulary of this corpus and size is kept, once it is built."""
        sample = self.corpus.train.sample
        of = {"corpus": self.corpus.digest, "size": self.params.vocabulary}
        of |= {"tokenizers": importlib.metadata.version("tokenizers")} | ({"sample": sample} if sample else {})
        return self.store.path / "vocabularies" / f"{digest(of)[:32]}.json"

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Built once from the training text, then read from the store by what it was built from."""
        size, split, path = self.params.vocabulary, self.corpus.train, self.vocabulary_file()
        with self.store.lock(f"vocabulary-{path.stem}"):
            if (stored := recall(path, "tokenizer")) is not None:
                try:
                    found = Vocabulary(stored["tokenizer"])
                    if len(found) == size:
                        return found
                except ValueError:
                    pass
                print(f"{path} is no vocabulary of {size} word pieces; building it again", file=sys.stderr)
            try:
                built = Vocabulary.build(split.sentences(), size)
            except InputError as error:
                raise InputError(f"{self.file()}: {error}") from None
            remember(path, {"tokenizer": built.text})
            if isinstance(made := self.params.corpus, params.Grammar):
                sentences = corpora.grammar_sentences(made.train, made.dev, made.test, made.seed)
                remember(self._sentences_file(made), sentences)
            return built

    @functools.cached_property
    def data(self) -> training.Data:
        train, dev = self.corpus.train, self.corpus.dev
        sides = train.encoded(self.vocabulary)
        return training.Data(self.vocabulary, *sides, self.vocabulary.encode(dev.source), list(dev.target))

    def model(self) -> Transformer:
        """A model of the study's shape, its weights not set."""
        return training.new_model(self.params.training, len(self.vocabulary))

    @functools.cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Of every parameter of the model, without one."""
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in self.model().state_dict().items()}

    def threads(self):
        return threads(self.params.threads)

    # Training ------------------------------------------------------------

    def ticket(self, seed: int, optimizer: str = "") -> Ticket:
        """The dense ticket: theta_0 of `seed`, no mask. `optimizer`: "adafactor", "adam" or the study's own."""
        optimizer = optimizer or self.params.training.optimizer
        check_choice("optimizer", optimizer, ("adafactor", "adam"))
        return Ticket(self, check_seed("seeds", seed), ({"do": "theta_0"},), optimizer)

    def train(
        self,
        tickets: Iterable[Ticket],
        progress: Progress | None = None,
        stored: bool = False,
        keep: Mapping[str, Collection[int]] = types.MappingProxyType({}),
    ) -> list[Run]:
        """The runs of `tickets`, in their order: from the store where they are whole, trained otherwise.

        `keep`: train_id -> steps at which the weights stay, beside those of the study file. With `stored` nothing is
        trained: raises InputError for a ticket without a run. On a GPU, or where SLT_LOCKSTEP asks for it, many are
        trained at once (`lockstep.group_size`).
        """
        tickets = list(tickets)
        with distributed.in_turn():  # the first makes the vocabulary, the others read it
            unique = {ticket.train_id: ticket for ticket in tickets}
        found = self._records(unique.values())
        missing = [ticket for ticket in unique.values() if ticket.train_id not in found]
        if stored:
            for ticket in missing:
                raise InputError(
                    f"{self.name} {self.pair} seed {ticket.seed}: {ticket.trained_with} at sparsity "
                    f"{ticket.sparsity:g} is not trained yet; `python -m slt_lib run {self.name}` does it"
                )
        if missing:
            most = lockstep.group_size(self.params.training, self.params.vocabulary)
            for group in _groups(missing, most):
                found |= {run.id: run for run in self._train(group, progress or Progress(), most > 1, keep)}
        return [found[ticket.train_id] for ticket in tickets]

    def find(self, ticket: Ticket, tell: bool = True) -> Run | None:
        """The whole run of `ticket` in the store, or None.

        A damaged one is named and counts as none, and so does one that was made from other weights of its parents: a
        parent that was trained again elsewhere may have come out differently.
        """
        folder = self.store.folder(ticket.train_id)
        try:
            record = folder.record()
            if record is None:
                return None
            folder.ticket()
            for parent in ticket.runs.values():
                if parent.weights_hash and record["parents"].get(parent.id) != parent.weights_hash:
                    what = f"it was made from other weights of run {parent.id[:12]}, which was trained again since"
                    raise Damaged(f"run {ticket.train_id[:12]}: {what}")
        except Damaged as error:
            if tell:
                print(f"{error}; training it again", file=sys.stderr)
            return None
        return Run(ticket, record)

    def _records(self, tickets: Iterable[Ticket], tell: bool = True) -> dict[str, Run]:
        """train_id -> run, of those that are whole in the store; of several processes the first alone looks."""
        tickets = {ticket.train_id: ticket for ticket in tickets}
        runs = lambda: [run for ticket in tickets.values() if (run := self.find(ticket, tell))]  # noqa: E731
        records = distributed.broadcast(lambda: {run.id: run.record for run in runs()})
        return {train_id: Run(tickets[train_id], record) for train_id, record in records.items()}

    def _train(self, tickets: list[Ticket], progress: Progress, together: bool, keep) -> list[Run]:
        first = distributed.first()
        with contextlib.ExitStack() as stack:
            for train_id in sorted(ticket.train_id for ticket in tickets):  # in one order: no two wait for each other
                stack.enter_context(self.store.lock(train_id) if first else contextlib.nullcontext())
            # another command may have trained some while this one waited
            runs = self._records(tickets, tell=False)
            tickets = [ticket for ticket in tickets if ticket.train_id not in runs]
            with distributed.in_turn():  # text that was not encoded yet is, once
                data = self.data
            folders = [self.store.folder(ticket.train_id) for ticket in tickets]
            settings = self.params.training
            keeps = [self.params.kept_steps() | set(keep.get(ticket.train_id, ())) for ticket in tickets]
            try:
                for ticket, folder in zip(tickets, folders, strict=True) if first else ():
                    if (folder / RECORD).exists():  # damaged: nothing of it is used again
                        self.store.remove(ticket.train_id)
                    sweep(folder.path)
                    write_json(folder / TICKET, ticket.identity)
                starts = [ticket.start() for ticket in tickets]
                with self.threads(), contextlib.ExitStack() as bars:
                    reports = [bars.enter_context(progress.training(ticket)) for ticket in tickets]
                    if together:
                        records = lockstep.train_together(settings, data, starts, folders, keeps, reports)
                    else:
                        parts = self.params.accumulate
                        records = [
                            training.train(settings, data, *each, accumulate=parts)
                            for each in zip(starts, folders, keeps, reports, strict=True)
                        ]
            except BaseException:
                for ticket, folder in zip(tickets, folders, strict=True) if first else ():
                    if not (folder / RESUME).exists() and not (folder / RECORD).exists():  # nothing to go on from
                        self.store.remove(ticket.train_id)
                raise
            for ticket, start, record in zip(tickets, starts, records, strict=True):
                runs[ticket.train_id] = run = Run(ticket, record)
                if first:
                    run.magnitudes(start)  # while the start is at hand
            return list(runs.values())

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

        `levels`: empty for the study's; `label`: another technique and variant; `scored`: see `Chain`. Raises
        InputError for a knob that the recipe does not have.
        """
        signature = inspect.signature(recipe)
        for name in knobs:
            if name not in signature.parameters:
                raise InputError(f"{recipe.__name__} has no knob {name!r}; it has {', '.join(signature.parameters)}")
        changed = {name: value for name, value in knobs.items() if value != signature.parameters[name].default}
        if changed.get("optimizer") in ("", self.params.training.optimizer):
            changed.pop("optimizer", None)
        variant = ",".join(f"{name}={value}" for name, value in sorted(changed.items()))
        levels = list(levels) or self.levels
        again = functools.partial(recipe, self, seed, **knobs)
        technique = getattr(recipe, "technique", recipe.__name__.replace("_", "-"))
        return Chain(*(label or (technique, variant)), seed, again(levels), levels=levels, again=again, scored=scored)

    def follow(
        self,
        chains: Iterable[Chain | Recipe],
        progress: Progress | None = None,
        stored: bool = False,
        jobs: int = 1,
        done: Callable[[Chain, Run], None] = lambda chain, run: None,
    ) -> list[Chain]:
        """Advance all chains until each has ended; a chain may be a bare generator of a recipe of your own.

        Tickets that are ready train together, in waves, equal ones once. With `jobs` above 1 so many processes train at
        the same time, the study's `threads` each, and a chain goes on as soon as its own run is there; they score it
        too. A chain whose run failed stops there with its reason; the others go on. `done(chain, run)` is called for
        each run that gets a row, as soon as it is there. With `stored` nothing is trained, as in `train`.
        """
        chains = [chain if isinstance(chain, Chain) else _bare(chain) for chain in chains]
        keep, scored = _rewound(chains), tuple(dict.fromkeys(kind for chain in chains for kind in chain.scored))
        waiting: dict[int, list[Ticket]] = {}
        shape: dict[int, bool] = {}
        runs: dict[str, Run] = {}

        def advance(i: int, answer) -> None:
            try:
                asked = chains[i].generator.send(answer)
            except StopIteration:
                return
            except Failed as error:
                chains[i].reason = str(error)
                return
            shape[i] = isinstance(asked, Ticket)
            waiting[i] = [asked] if shape[i] else list(asked)

        def answered(i: int, asked: list[Ticket]) -> None:
            answer = [runs[ticket.train_id] for ticket in asked]
            for run, ticket in zip(answer, asked, strict=True):
                if ticket.listed:
                    chains[i].runs.append(run)
                    distributed.broadcast(lambda: done(chains[i], run))  # noqa: B023 (called at once)
            if shape[i] and answer[0].record["status"] == "failed":
                chains[i].reason = f"run {answer[0].id[:12]} failed: {answer[0].record['reason']}"
                chains[i].generator.close()
            else:
                advance(i, answer[0] if shape[i] else answer)

        for i in range(len(chains)):
            advance(i, None)
        side_by_side = jobs > 1 and not stored
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(workers.Workers(jobs, self.params.threads)) if side_by_side else None
            bar = stack.enter_context((progress or Progress()).trainings(side_by_side))
            while waiting:
                tickets = _by_urgency(waiting, shape, runs)
                if pool and (missing := [ticket for ticket in tickets if self._unscored(ticket, scored)]):
                    ended = pool.first_done(missing, keep, scored)
                    bar.update(len(ended))
                    tickets = [ticket for ticket in tickets if ticket.train_id in ended or ticket not in missing]
                runs |= {run.id: run for run in self.train(tickets, progress, stored, keep)}
                for i, asked in list(waiting.items()):
                    if all(ticket.train_id in runs for ticket in asked):
                        answered(i, waiting.pop(i))
        return chains

    def _unscored(self, ticket: Ticket, scored: tuple[str, ...]) -> bool:
        """Whether there is still something to do for its run that a process of its own can do."""
        run = self.find(ticket, tell=False)
        return run is None or (ticket.listed and run.record["status"] == "ok" and not all(map(run.scored, scored)))


def _listed(key: str, values) -> list:
    """A list that papermill or a person gave; `-p seeds 1` gives a number."""
    if not isinstance(values, list | tuple | range):
        raise InputError(f"{key}: {values!r} is no list; write [{'' if values is None else values}]")
    return list(values)


def _groups(tickets: Iterable[Ticket], most: int) -> Iterator[list[Ticket]]:
    """Tickets that train at once: `most` of them, of one optimizer, in groups of about one size."""
    alike: dict[str, list[Ticket]] = {}
    for ticket in tickets:
        alike.setdefault(ticket.optimizer, []).append(ticket)
    for wave in alike.values():
        count = -(-len(wave) // most)
        for i in range(count):
            yield wave[i * len(wave) // count : (i + 1) * len(wave) // count]


@functools.cache
def _opened(*asked) -> Study:
    return Study(*asked)


def _by_urgency(waiting: dict[int, list[Ticket]], shape: dict[int, bool], runs: dict[str, Run]) -> list[Ticket]:
    """The tickets that no run answers yet, once each: first those on which the most chains wait, lists last.

    A list (the levels of MP) is the end of a chain, so it can fill the gaps that the chains leave.
    """
    tickets, weight = {}, {}
    for i, asked in waiting.items():
        for ticket in asked:
            if ticket.train_id not in runs:
                tickets[ticket.train_id] = ticket
                weight[ticket.train_id] = weight.get(ticket.train_id, 0) + (1 if shape[i] else 0)
    return sorted(tickets.values(), key=lambda ticket: -weight[ticket.train_id])


def _foreseen(generator: Recipe) -> dict[str, Ticket]:
    """All that a recipe would train, by id; of a recipe that looks into its runs, what comes before it does."""
    found, answer = {}, None
    try:
        while True:
            asked = generator.send(answer)
            runs = [StandIn(ticket) for ticket in ([asked] if isinstance(asked, Ticket) else asked)]
            found |= {run.id: run.ticket for run in runs}
            answer = runs[0] if isinstance(asked, Ticket) else runs
    except StopIteration:
        return found
    except Exception:  # a user's recipe may fail in any way where it is given no trained run
        return found


def _rewound(chains: Iterable[Chain]) -> dict[str, set[int]]:
    """The steps that chains will rewind to: train_id -> steps, known from the recipes before anything is trained."""
    steps: dict[str, set[int]] = {}
    for chain in chains:
        for ticket in _foreseen(chain.again(chain.levels)).values() if chain.again else ():
            for operation in ticket.operations:
                if operation["do"] == "rewind":
                    steps.setdefault(operation["run"], set()).add(operation["step"])
    return steps


def _bare(generator: Recipe) -> Chain:
    """Labels of a generator handed over without `Study.chain`."""
    arguments = inspect.getgeneratorlocals(generator)
    seeds = [value for key, value in arguments.items() if key == "seed"]
    return Chain(generator.__name__.replace("_", "-"), "", seeds[0] if seeds else 0, generator)
