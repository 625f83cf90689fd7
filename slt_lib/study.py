"""Study, Ticket and Run: the small algebra that the paper's section 3 is written in.

A Ticket is a value: where its weights, its mask and its schedule come from. Making one computes nothing. A Run is a
trained ticket. `Study.train` turns tickets into runs, from the store where it has them; `Study.follow` advances many
generators of tickets in waves.
"""

import contextlib
import functools
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slt_lib import (
    corpora,
    decoding,
    distributed,
    lockstep,
    masks,
    memory,
    params,
    schedules,
    scoring,
    training,
    wmt14,
    workers,
)
from slt_lib.devices import device
from slt_lib.errors import InputError
from slt_lib.files import sweep
from slt_lib.seeds import stream
from slt_lib.store import RECORD, RESUME, TICKET, Damaged, RunFolder, Store, digest, sealed, unseal, write_json
from slt_lib.transformer import Transformer, glorot, prunable, theta_0
from slt_lib.vocabulary import Vocabulary

SCORE_VERSION = 1  # the same for scores

CONSTANT_SIGNS = ("kept", "random")
CONSTANT_MAGNITUDES = ("constant", "redrawn", "shuffled")

Recipe = Generator["Ticket | list[Ticket]", "Run | list[Run]", Any]


class Failed(InputError):
    """The run that a chain builds on has failed: its reason."""


@dataclass(frozen=True)
class Ticket:
    """A start: initial weights, a mask, a sparsity schedule, an optimizer, and where each comes from.

    `operations` are plain values, each naming the runs it leans on by their id; `runs` holds those runs.
    """

    study: "Study" = field(repr=False, compare=False)
    seed: int
    operations: tuple[dict, ...]
    optimizer: str
    sparsity: float = 0.0
    runs: Mapping[str, "Run"] = field(default_factory=dict, repr=False, compare=False)
    listed: bool = field(default=True, compare=False)

    # The algebra ------------------------------------------------------------

    def prune(self, by: "Run", sparsity: float, checkpoint: str = "final") -> "Ticket":
        """Keep the largest magnitudes of `by`'s weights: exactly `sparsity` of each matrix is zero, masks nest.

        `checkpoint`: "final" (theta_T, the paper's text) or "best" on dev. Raises InputError for a sparsity outside
        0..1 or below that of the mask. Source: paper section 3; FACTS.md section 7, ambiguity 6.
        """
        _among("checkpoint", checkpoint, ("final", "best"))
        self._check_sparsity(sparsity, max(self.sparsity, by.sparsity))
        last = self.operations[-1]
        known = self.operations[:-1] if last == {"do": "mask", "run": by.id} else self.operations
        operation = {"do": "prune", "by": by.id, "sparsity": float(sparsity), "checkpoint": checkpoint}
        return self._with((*known, operation), by, sparsity=float(sparsity))

    def prune_randomly(self, sparsity: float) -> "Ticket":
        """A control: a random mask of the same sparsity in each matrix, nested in the ticket's own."""
        self._check_sparsity(sparsity, self.sparsity)
        operation = {"do": "prune_randomly", "sparsity": float(sparsity)}
        return self._with((*self.operations, operation), sparsity=float(sparsity))

    def gradual(self, final: float, initial: float = 0.0) -> "Ticket":
        """Prune while training, from `initial` to `final` sparsity by the cubic schedule (paper section 3.1)."""
        self._check_sparsity(final, max(initial, self.sparsity))
        if self.schedule is not None:
            raise InputError(
                "gradual: this ticket is pruned gradually already; a second schedule would not be followed"
            )
        if initial < self.sparsity:
            raise InputError(f"gradual from sparsity {initial}: the mask already has {self.sparsity}; start from there")
        operation = {"do": "gradual", "initial": float(initial), "final": float(final)}
        return self._with((*self.operations, operation), sparsity=float(final))

    def constant(self, signs: str = "kept", magnitudes: str = "constant") -> "Ticket":
        """Replace the matrices by +-alpha, alpha = sqrt(6 / (n_in + n_out)); all other parameters stay.

        `signs`: "kept" or "random". `magnitudes`: "constant", or as controls "redrawn" (from theta_0's distribution) or
        "shuffled" within the kept weights of a matrix. Source: paper section 3.4; FACTS.md section 7, 10 and 11.
        """
        _among("signs", signs, CONSTANT_SIGNS)
        _among("magnitudes", magnitudes, CONSTANT_MAGNITUDES)
        return self._with((*self.operations, {"do": "constant", "signs": signs, "magnitudes": magnitudes}))

    def reinitialised(self) -> "Ticket":
        """A control: fresh random weights under the same mask."""
        return self._with((*self.operations, {"do": "reinitialise"}))

    def unlisted(self) -> "Ticket":
        """The same ticket, trained because its chain needs it, with no row in the results."""
        return replace(self, listed=False)

    def _with(self, operations: tuple[dict, ...], *runs: "Run", **changes) -> "Ticket":
        return replace(self, operations=operations, runs={**self.runs, **{run.id: run for run in runs}}, **changes)

    def _check_sparsity(self, sparsity: float, least: float) -> None:
        if not 0 <= _number("sparsity", sparsity) < 1:
            raise InputError(f"sparsity {sparsity} is not a fraction from 0 to below 1 (0.9 means 90%)")
        if sparsity < least:
            raise InputError(f"sparsity {sparsity} is below {least}, which is pruned already: levels must rise")

    # Identity ------------------------------------------------------------

    @functools.cached_property
    def depth(self) -> int:
        """How many trainings come before it in its chain."""
        return 1 + max(run.ticket.depth for run in self.runs.values()) if self.runs else 0

    @property
    def schedule(self) -> tuple[float, float] | None:
        """(initial, final) of gradual pruning, or None."""
        for operation in self.operations:
            if operation["do"] == "gradual":
                return operation["initial"], operation["final"]
        return None

    @functools.cached_property
    def identity(self) -> dict:
        """All that reaches the weights of its run."""
        settings = self.study.params.training.model_dump()
        settings["peak_lr"] = settings["peak_lr"][self.optimizer]
        settings["optimizer"] = self.optimizer
        if self.schedule is None:
            for key in ("gradual", "thresholds"):
                del settings[key]
        return {
            "recipe": params.RECIPE_VERSION,
            "training": settings,
            "corpus": self.study.corpus.digest,
            "vocabulary": self.study.vocabulary.digest,
            "seed": self.seed,
            "operations": list(self.operations),
            "depth": self.depth,
        }

    @functools.cached_property
    def train_id(self) -> str:
        return digest(self.identity)[:32]

    @property
    def trained_with(self) -> str:
        """The kind of training: dense, mp, lt, slt or clt."""
        kinds = [operation["do"] for operation in self.operations]
        if "gradual" in kinds:
            return "mp"
        if "constant" in kinds:
            return "clt"
        if not self.sparsity:
            return "dense"
        return "slt" if kinds[0] == "rewind" else "lt"

    # Values ------------------------------------------------------------

    def start(self) -> training.Start:
        """The weights and mask it stands for; reads the runs it leans on."""
        weights, mask = {}, None
        for operation in self.operations:
            match operation:
                case {"do": "theta_0"}:
                    weights = theta_0(self.study.model(), self.seed)
                case {"do": "rewind", "run": run, "step": step}:
                    weights = self.runs[run].theta(step)
                case {"do": "mask", "run": run}:
                    mask = self.runs[run].mask
                case {"do": "prune", "by": by, "sparsity": sparsity, "checkpoint": checkpoint}:
                    run = self.runs[by]
                    outer = _both(mask, run.mask)
                    mask = masks.magnitude_mask(prunable(run.weights(checkpoint)), sparsity, outer)
                case {"do": "prune_randomly", "sparsity": sparsity}:
                    mask = masks.random_mask(prunable(weights), sparsity, self._stream(operation), mask)
                case {"do": "constant", "signs": signs, "magnitudes": magnitudes}:
                    weights = self._constant(weights, mask, signs, magnitudes, operation)
                case {"do": "reinitialise"}:
                    weights = theta_0(self.study.model(), int(self._stream(operation).integers(1 << 62)))
        return training.Start(weights, mask, self.schedule, self.optimizer, self.seed, self.depth)

    def _stream(self, operation: dict) -> np.random.Generator:
        return stream(self.seed, operation["do"], self.depth, digest(list(self.operations)))

    def _constant(self, weights, mask, signs: str, magnitudes: str, operation: dict) -> dict[str, Tensor]:
        generator, result = self._stream(operation), dict(weights)
        fresh = theta_0(self.study.model(), int(generator.integers(1 << 62))) if magnitudes == "redrawn" else None
        for name, weight in prunable(weights).items():
            alpha = glorot(weight)
            sign = torch.where(weight < 0, -1.0, 1.0)
            if signs == "random":
                sign = torch.from_numpy(generator.integers(0, 2, size=tuple(weight.shape)).astype(np.float32) * 2 - 1)
            if magnitudes == "constant":
                magnitude = torch.full_like(weight, alpha)
            elif magnitudes == "redrawn":
                magnitude = fresh[name].abs()
            else:
                magnitude = weight.abs()
                kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask[name]
                order = torch.from_numpy(generator.permutation(int(kept.sum())))
                magnitude[kept] = magnitude[kept][order]
            result[name] = sign * magnitude
        return result


class Run:
    """A trained ticket: checkpoints, mask, curve and scores, read from the store when asked for."""

    def __init__(self, ticket: Ticket, record: dict):
        self.ticket, self.record, self.study = ticket, record, ticket.study
        self.id = ticket.train_id

    def __repr__(self) -> str:
        return f"Run({self.id[:12]}, {self.ticket.trained_with}, sparsity {self.sparsity}, {self.record['status']})"

    @property
    def folder(self) -> RunFolder:
        return self.study.store.folder(self.id)

    @property
    def sparsity(self) -> float:
        """The level that was asked for; each matrix has exactly round(sparsity * size) zeros."""
        return self.ticket.sparsity

    @property
    def root(self) -> "Run":
        """The dense run (or the gradual one) that its chain began with."""
        return next(iter(self.ticket.runs.values())).root if self.ticket.runs else self

    @property
    def curve(self) -> list[dict]:
        """One point a checkpoint: step, loss (mean since the last), dev_bleu, sparsity, tokens."""
        return self.record["curve"]

    @functools.cached_property
    def mask(self) -> dict[str, Tensor] | None:
        return self._load("mask.safetensors") if "mask.safetensors" in self.record["files"] else None

    def weights(self, checkpoint: str = "final") -> dict[str, Tensor]:
        """theta_T ("final"), the best on dev ("best"), or the mean of the last N checkpoints ("average N").

        Pruned entries are zero. Raises InputError for another name, Failed where the run has no such checkpoint.
        """
        self._must_stand()
        match checkpoint.split():
            case ["final"]:
                return self.theta(self.record["steps"])
            case ["best"]:
                return self.theta(self.record["best"]["step"])
            case ["average", count] if count.isdigit() and int(count) > 0:
                steps = training.checkpoints(self.study.params.training)[-int(count) :]
                thetas = list(self.thetas(steps).values())
                return {name: torch.stack([theta[name] for theta in thetas]).mean(0) for name in thetas[0]}
        raise InputError(f'checkpoint {checkpoint!r} is none of "final", "best", "average 4"')

    def theta(self, step: int) -> dict[str, Tensor]:
        """Weights after `step` steps."""
        return self.thetas([step])[step]

    def thetas(self, steps: Iterable[int]) -> dict[int, dict[str, Tensor]]:
        """Step -> weights; those that were not kept come from training the ticket again up to there."""
        steps = list(steps)
        found = {step: self._load(name) for step in steps if (name := RunFolder.theta(step)) in self.record["files"]}
        if 0 in steps:
            start = self.ticket.start()
            found[0] = masks.apply(start.weights, start.mask or {})
        missing = [step for step in steps if step not in found]
        if missing:
            with self.study.threads():
                settings = self.study.params.training
                parts = self.study.params.accumulate
                found |= training.train(settings, self.study.data, self.ticket.start(), until=missing, accumulate=parts)
        return {step: found[step] for step in steps}

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return self.folder.load(name, self.record["files"][name])[0]
        except Damaged as error:  # since the run was found whole
            raise Damaged(f"{error}; run it again, and it is trained again") from None

    def _must_stand(self) -> None:
        if RunFolder.theta(self.record["steps"]) not in self.record["files"]:
            raise Failed(f"run {self.id[:12]} failed: {self.record['reason']}")

    def rewind(self, at: float, source: str = "last") -> Ticket:
        """A ticket with the weights at the fraction `at` of this run's training, its mask kept.

        `source`: "last", this run (the paper), or "dense", the run its chain began with (Frankle et al.). 0 gives the
        start, which for a chain from theta_0 is theta_0 itself; 1 the end. Source: FACTS.md section 7, ambiguity 3.
        """
        _among("source", source, ("last", "dense"))
        if not 0 <= _number("rewind", at) <= 1:
            raise InputError(f"rewind {at} is not a fraction of the training from 0 to 1")
        self._must_stand()
        run = self if source == "last" else self.root
        step = schedules.at_step(at, self.record["steps"])
        first = run.ticket.operations[0]
        untouched = first == {"do": "theta_0"} and not {"constant", "reinitialise"} & {
            operation["do"] for operation in run.ticket.operations
        }
        if step == 0 and untouched:
            operations, runs = (first,), {}
        else:
            operations, runs = ({"do": "rewind", "run": run.id, "step": step},), {run.id: run}
        if self.sparsity:
            operations, runs = (*operations, {"do": "mask", "run": self.id}), {**runs, self.id: self}
        return replace(self.ticket, operations=operations, runs=runs, listed=True)

    def translate(self, sentences: list[str], checkpoint: str = "best", progress: Callable | None = None) -> list[str]:
        """Translations of raw sentences by beam search with the study's decoding settings."""
        model = self.study.model()
        model.load_state_dict(self.weights(checkpoint))
        model.to(device())
        options = self.study.params.decoding
        sources = self.study.vocabulary.encode(sentences).lists()
        with self.study.threads():
            found = decoding.translate(
                model, sources, options.beam, options.alpha, options.extra, self.study.decode_batch, progress
            )
        return self.study.vocabulary.decode(found)

    def scores(self, checkpoint: str = "best") -> dict[str, dict]:
        """Test set -> bleu, ter, ter_13a (percent), signatures, sentence statistics; stored once computed."""
        return {name: self._score(name, checkpoint) for name in self.study.corpus.tests}

    def scored(self) -> bool:
        """Whether every test set's scores of its best checkpoint are in the store."""
        return all(self.folder.score(self.score_id(name)).exists() for name in self.study.corpus.tests)

    def score_id(self, test_set: str, checkpoint: str = "best") -> str:
        """Identity of a score: the run, the test set and what only reaches scores."""
        return digest(
            {
                "run": self.id,
                "version": SCORE_VERSION,
                "sacrebleu": importlib.metadata.version("sacrebleu"),
                "decoding": self.study.params.decoding.model_dump(),
                "checkpoint": checkpoint,
                "test": self.study.corpus.tests[test_set].digest,
            }
        )[:32]

    def _score(self, test_set: str, checkpoint: str) -> dict:
        path = self.folder.score(self.score_id(test_set, checkpoint))
        if (score := _stored(path, "bleu", "ter", "ter_13a", "signatures", "statistics")) is not None:
            return score
        split = self.study.corpus.tests[test_set]
        hypotheses = self.translate(list(split.source), checkpoint)
        statistics = scoring.sentence_statistics(hypotheses, list(split.target))
        score = {
            "test_set": test_set,
            "bleu": float(scoring.corpus_bleu(statistics)),
            "ter": float(scoring.corpus_ter(statistics)),
            "ter_13a": float(scoring.corpus_ter_13a(statistics)),
            "signatures": scoring.signatures(),
            "statistics": {name: [int(value) for value in values] for name, values in statistics.items()},
            "hypotheses": hypotheses,
        }
        _store(path, score)
        return score

    def magnitudes(self, start: training.Start | None = None) -> dict[str, dict]:
        """Matrix -> rows, columns, kept, and mean |w| of the weights kept to the end, at the start and at the end.

        Stored once computed; `start` spares reading the ticket's start again. Empty for a run that has no end.
        """
        path = self.folder / "magnitudes.json"
        if (stored := _stored(path, "matrices")) is not None:
            return stored["matrices"]
        if RunFolder.theta(self.record["steps"]) not in self.record["files"]:
            return {}
        start = start or self.ticket.start()
        first = masks.apply(start.weights, start.mask or {})
        matrices = {}
        for name, weight in prunable(self.weights("final")).items():
            kept = self.mask[name] if self.mask is not None else torch.ones_like(weight, dtype=torch.bool)
            matrices[name] = {
                "rows": weight.shape[0],
                "columns": weight.shape[1],
                "kept": int(kept.sum()),
                "mean_abs_start": float(first[name][kept].abs().mean()),
                "mean_abs_final": float(weight[kept].abs().mean()),
            }
        _store(path, {"matrices": matrices})
        return matrices

    @functools.cached_property
    def memory_mib(self) -> float:
        """The paper's memory column of its best checkpoint, in MiB (FACTS.md section 4)."""
        return memory.paper_mib(prunable(self.weights("best")))


@dataclass
class Chain:
    """A generator of tickets with its labels, and the runs it has made so far; `reason` where it stopped early."""

    technique: str
    variant: str
    seed: int
    generator: Recipe = field(repr=False)
    runs: list[Run] = field(default_factory=list)
    reason: str = ""


class Study:
    """A study file's parameters for one pair, with its corpus, vocabulary and store."""

    def __init__(self, study: str = "quick", pair: str = "", seeds: Iterable[int] = (), levels: Iterable[float] = ()):
        """`study`: name of a file in params/; `pair`, `seeds`, `levels`: empty for the study's own.

        Raises InputError for a study, pair, seed or level that can't be.
        """
        for key, text in (("study", study), ("pair", pair)):
            if not isinstance(text, str):
                raise InputError(f"{key}: {text!r} is no name; give it as text")
        self.name = os.path.basename(study).removesuffix(".yaml")
        self.params = params.load(study)
        self.pair = pair or next(iter(self.params.pairs))
        if self.pair not in self.params.pairs:
            raise InputError(f"pair {pair!r}: params/{self.name}.yaml has {', '.join(self.params.pairs)}")
        self.seeds = [_whole(seed) for seed in _listed("seeds", seeds)] or list(self.params.seeds)
        self.levels = [_number("levels", level) for level in _listed("levels", levels)] or list(self.params.levels)
        try:
            params.check_levels(self.levels)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.store = Store()
        self.decode_batch = 64
        self._asked = (study, pair, tuple(self.seeds), tuple(self.levels))

    def __reduce__(self):  # for a process of its own: opened again there, once, and nothing of it sent
        return _opened, self._asked

    def __repr__(self) -> str:
        return f"Study({self.name}, {self.pair}, seeds {self.seeds}, levels {self.levels})"

    # Data ------------------------------------------------------------

    @functools.cached_property
    def corpus(self) -> corpora.Corpus:
        match self.params.corpus:
            case params.Grammar() as made:
                return corpora.grammar(self.pair, made.train, made.dev, made.test, made.seed)
            case params.Multi30k():
                return corpora.multi30k(self.pair)
            case params.Files() as own:
                return corpora.files(own.folder, self.pair, own.tests)
            case params.Wmt14() as public:
                return wmt14.corpus(self.pair, public, self.store)

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
            if (stored := _stored(path, "tokenizer")) is not None:
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
                raise InputError(f"params/{self.name}.yaml: {error}") from None
            _store(path, {"tokenizer": built.text})
            return built

    @functools.cached_property
    def data(self) -> training.Data:
        train, dev = self.corpus.train, self.corpus.dev
        sides = train.encoded(self.vocabulary)
        return training.Data(self.vocabulary, *sides, self.vocabulary.encode(dev.source), list(dev.target))

    def model(self) -> Transformer:
        """A model of the study's shape, its weights not set."""
        return training.new_model(self.params.training, len(self.vocabulary))

    def threads(self):
        return _Threads(self.params.threads)

    # Training ------------------------------------------------------------

    def ticket(self, seed: int, optimizer: str = "") -> Ticket:
        """The dense ticket: theta_0 of `seed`, no mask. `optimizer`: "adafactor", "adam" or the study's own."""
        optimizer = optimizer or self.params.training.optimizer
        _among("optimizer", optimizer, ("adafactor", "adam"))
        return Ticket(self, _whole(seed), ({"do": "theta_0"},), optimizer)

    def train(self, tickets: Iterable[Ticket], progress: "Progress | None" = None, stored: bool = False) -> list[Run]:
        """The runs of `tickets`, in their order: from the store where they are whole, trained otherwise.

        With `stored` nothing is trained: raises InputError for a ticket without a run. On a GPU, or where SLT_LOCKSTEP
        asks for it, many are trained at once (`lockstep.group_size`).
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
                found |= {run.id: run for run in self._train(group, progress or Progress(), most > 1)}
        return [found[ticket.train_id] for ticket in tickets]

    def find(self, ticket: Ticket, tell: bool = True) -> Run | None:
        """The whole run of `ticket` in the store, or None; a damaged one is named and counts as none."""
        folder = self.store.folder(ticket.train_id)
        try:
            record = folder.record()
            if record is not None:
                folder.ticket()
        except Damaged as error:
            if tell:
                print(f"{error}; training it again", file=sys.stderr)
            return None
        return None if record is None else Run(ticket, record)

    def _records(self, tickets: Iterable[Ticket], tell: bool = True) -> dict[str, Run]:
        """train_id -> run, of those that are whole in the store; of several processes the first alone looks."""
        tickets = {ticket.train_id: ticket for ticket in tickets}
        runs = lambda: [run for ticket in tickets.values() if (run := self.find(ticket, tell))]  # noqa: E731
        records = distributed.told(lambda: {run.id: run.record for run in runs()})
        return {train_id: Run(tickets[train_id], record) for train_id, record in records.items()}

    def _train(self, tickets: list[Ticket], progress: "Progress", together: bool) -> list[Run]:
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
            for ticket, folder in zip(tickets, folders, strict=True) if first else ():
                if (folder / RECORD).exists():  # damaged: nothing of it is used again
                    self.store.remove(ticket.train_id)
                sweep(folder.path)
                write_json(folder / TICKET, ticket.identity)
            starts = [ticket.start() for ticket in tickets]
            settings, keep = self.params.training, tuple(self.params.keep)
            try:
                with self.threads(), contextlib.ExitStack() as bars:
                    reports = [bars.enter_context(progress.training(ticket)) for ticket in tickets]
                    if together:
                        records = lockstep.train_together(settings, data, starts, folders, keep, reports)
                    else:
                        parts = self.params.accumulate
                        records = [
                            training.train(settings, data, start, folder, keep, report, accumulate=parts)
                            for start, folder, report in zip(starts, folders, reports, strict=True)
                        ]
            except InputError:
                for ticket, folder in zip(tickets, folders, strict=True) if first else ():
                    if not (folder / RESUME).exists() and not (folder / RECORD).exists():  # it could not begin
                        self.store.remove(ticket.train_id)
                raise
            for ticket, start, record in zip(tickets, starts, records, strict=True):
                runs[ticket.train_id] = run = Run(ticket, record)
                if first:
                    run.magnitudes(start)  # while the start is at hand
            return list(runs.values())

    def chain(self, recipe: Callable[..., Recipe], seed: int, levels: Iterable[float] = (), **knobs) -> Chain:
        """A recipe for one seed, labelled: technique by the recipe's name, variant by the knobs that differ.

        `levels`: empty for the study's. Raises InputError for a knob that the recipe does not have.
        """
        signature = inspect.signature(recipe)
        for name in knobs:
            if name not in signature.parameters:
                raise InputError(f"{recipe.__name__} has no knob {name!r}; it has {', '.join(signature.parameters)}")
        changed = {name: value for name, value in knobs.items() if value != signature.parameters[name].default}
        if changed.get("optimizer") in ("", self.params.training.optimizer):
            changed.pop("optimizer", None)
        variant = ",".join(f"{name}={value}" for name, value in sorted(changed.items()))
        generator = recipe(self, seed, list(levels) or self.levels, **knobs)
        technique = getattr(recipe, "technique", recipe.__name__.replace("_", "-"))
        return Chain(technique, variant, seed, generator)

    def follow(
        self,
        chains: Iterable[Chain | Recipe],
        progress: "Progress | None" = None,
        stored: bool = False,
        jobs: int = 1,
    ) -> list[Chain]:
        """Advance all chains until each has ended; a chain may be a bare generator of a recipe of your own.

        Tickets that are ready train together, in waves, equal ones once. With `jobs` above 1 so many processes train at
        the same time, the study's `threads` each, and a chain goes on as soon as its own run is there; they score it
        too. A chain whose run failed stops there with its reason; the others go on. With `stored` nothing is trained,
        as in `train`.
        """
        chains = [chain if isinstance(chain, Chain) else _bare(chain) for chain in chains]
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

        for i in range(len(chains)):
            advance(i, None)
        side_by_side = jobs > 1 and not stored
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(workers.Workers(jobs, self.params.threads)) if side_by_side else None
            bar = stack.enter_context((progress or Progress()).trainings(side_by_side))
            while waiting:
                tickets = _by_urgency(waiting, shape, runs)
                if pool and (missing := [ticket for ticket in tickets if self._unscored(ticket)]):
                    done = pool.first_done(missing)
                    bar.update(len(done))
                    tickets = [ticket for ticket in tickets if ticket.train_id in done or ticket not in missing]
                runs |= {run.id: run for run in self.train(tickets, progress, stored)}
                for i, asked in list(waiting.items()):
                    if all(ticket.train_id in runs for ticket in asked):
                        answer = [runs[ticket.train_id] for ticket in waiting.pop(i)]
                        chains[i].runs += [run for run, ticket in zip(answer, asked, strict=True) if ticket.listed]
                        advance(i, answer[0] if shape[i] else answer)
        return chains

    def _unscored(self, ticket: Ticket) -> bool:
        """Whether there is still something to do for its run that a process of its own can do."""
        run = self.find(ticket, tell=False)
        return run is None or (ticket.listed and run.record["status"] == "ok" and not run.scored())


class Progress:
    """A bar a training in a notebook; one line a checkpoint elsewhere, or where SLT_PROGRESS is "lines"."""

    def __init__(self):
        lines = os.environ.get("SLT_PROGRESS") == "lines" or "ipykernel" not in sys.modules
        self.lines = lines

    def training(self, ticket: Ticket):
        return _Report(ticket, self.lines)

    def trainings(self, shown: bool):
        """A bar that counts whole trainings, for those that run side by side and show none of their own."""
        from tqdm.auto import tqdm

        return tqdm(desc="trainings", unit="training", disable=self.lines or not shown)


class _Report:
    def __init__(self, ticket: Ticket, lines: bool):
        self.lines, self.steps = lines, ticket.study.params.training.steps
        name = {"dense": "dense"}.get(ticket.trained_with, f"{ticket.trained_with} {100 * ticket.sparsity:g}%")
        self.label = f"{ticket.study.pair} seed {ticket.seed} {name} {ticket.train_id[:8]}"

    def __enter__(self) -> Callable[[int, dict | None], None]:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=self.steps, desc=self.label, unit="step", leave=False, disable=self.lines)
        self.done = 0
        return self.report

    def report(self, steps: int, point: dict | None) -> None:
        self.done += steps
        self.bar.update(steps)
        if point is not None:
            text = (
                f"loss {point['loss']:.3f}, dev BLEU {point['dev_bleu']:.1f}, sparsity {100 * point['sparsity']:.1f}%"
            )
            self.bar.set_postfix_str(text, refresh=False)
            if self.lines and distributed.first():
                print(f"{self.label}: step {point['step']}/{self.steps}, {text}", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        self.bar.close()


class _Threads:
    """`torch.set_num_threads` for a while: the same count gives the same bytes, wherever the call comes from."""

    def __init__(self, count: int):
        self.count = count

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *error):
        torch.set_num_threads(self.before)


def _among(key: str, value: str, known: Iterator[str] | tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{key} {value!r} is none of {', '.join(known)}")


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


def _number(key: str, value) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{key}: {value!r} is not a number")
    return float(value)


def _whole(seed) -> int:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seeds: {seed!r} is not a whole number from 0")
    return seed


def _stored(path: Path, *keys: str) -> dict | None:
    """What `_store` wrote, or None where it is to be computed: it was not yet, or it is damaged, which is told."""
    if not os.path.lexists(path):
        return None
    try:
        value = unseal(path)
        if not value.keys() >= set(keys):
            raise Damaged(f"{path} lacks {', '.join(sorted(set(keys) - value.keys()))}")
        return value
    except Damaged as error:
        print(f"{error}; computing it again", file=sys.stderr)
        return None


def _store(path: Path, value: dict) -> None:
    sweep(path.parent, age=3600)  # others may be writing there now, but not for an hour
    write_json(path, sealed(value))


def _record(run: Run | None) -> dict | None:
    return None if run is None else run.record


def _both(one, other):
    if one is None or other is None:
        return one if other is None else other
    return {name: one[name] & other[name] for name in one}


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


def _bare(generator: Recipe) -> Chain:
    """Labels of a generator handed over without `Study.chain`."""
    arguments = inspect.getgeneratorlocals(generator)
    seeds = [value for key, value in arguments.items() if key == "seed"]
    return Chain(generator.__name__.replace("_", "-"), "", seeds[0] if seeds else 0, generator)
