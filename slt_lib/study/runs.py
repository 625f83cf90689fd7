"""A run: a trained ticket, read from the store when it is asked; what is computed of it is stored beside it."""

import functools
import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from slt_lib import memory, schedules
from slt_lib.base import distributed
from slt_lib.base.devices import device, threads
from slt_lib.base.errors import InputError
from slt_lib.base.store import Damaged, RunFolder, digest, recall, remember, unseal
from slt_lib.evaluation import decoding, scoring
from slt_lib.study.tickets import Ticket, among, number
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import candidates, weights_hash
from slt_lib.transformer import prunable

SCORE_VERSION = 1  # raise when a change of code changes scores


class Failed(InputError):
    """The run that a chain builds on has failed: its reason."""


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
        """One point per checkpoint: step, loss (mean since the last), dev_bleu, sparsity, tokens, weights (a hash)."""
        return self.record["curve"]

    @property
    def weights_hash(self) -> str:
        """The hash of its weights at its last checkpoint; empty where it has none."""
        return self.curve[-1]["weights"] if self.curve else ""

    @functools.cached_property
    def mask(self) -> dict[str, Tensor] | None:
        return self._load("mask.safetensors") if "mask.safetensors" in self.record["files"] else None

    def weights(self, checkpoint: str = "final") -> dict[str, Tensor]:
        """theta_T ("final"), the best on dev ("best"), or the mean of the last N checkpoints ("average N").

        Pruned entries are zero: of a gradual training only checkpoints at its final sparsity are averaged. Raises
        InputError for another name, Failed where the run has no such checkpoint.
        """
        self._must_stand()
        if checkpoint == "final":
            return self.theta(self.record["steps"])
        if checkpoint == "best":
            return self.theta(self.record["best"]["step"])
        if steps := self._averaged(checkpoint):
            thetas = list(self.thetas(steps).values())
            return {name: torch.stack([theta[name] for theta in thetas]).mean(0) for name in thetas[0]}
        raise InputError(f'checkpoint {checkpoint!r} is none of "final", "best", "average 4"')

    def _averaged(self, checkpoint: str) -> list[int]:
        """The steps of "average N"; empty for any other name."""
        match checkpoint.split():
            case ["average", count] if count.isdigit() and int(count) > 0:
                gradual = self.ticket.schedule is not None
                return candidates(self.study.params.training, gradual)[-int(count) :]
        return []

    def theta(self, step: int) -> dict[str, Tensor]:
        """Weights after `step` steps."""
        return self.thetas([step])[step]

    def thetas(self, steps: Iterable[int]) -> dict[int, dict[str, Tensor]]:
        """Step -> weights. Those that were not kept are replayed: see `_replay`, and its error."""
        steps = list(steps)
        found = {step: self._load(name) for step in steps if (name := RunFolder.theta(step)) in self.record["files"]}
        if 0 in steps:
            found[0] = self.ticket.start().weights
        missing = [step for step in steps if step not in found]
        found |= {step: self._load(name) for step in missing if (self.folder / (name := _replayed(step))).exists()}
        missing = [step for step in steps if step not in found]
        found |= self._replay(missing) if missing else {}
        return {step: found[step] for step in steps}

    def _replay(self, steps: list[int]) -> dict[int, dict[str, Tensor]]:
        """Train the ticket again up to the first checkpoint from `steps` on, and keep the weights at `steps`.

        Raises InputError where the weights at that checkpoint are not those of the run: another processor, thread
        count or way of training (lockstep) adds in another order.
        """
        self._must_stand()
        settings, final = self.study.params.training, self.record["steps"]
        end = next(point["step"] for point in self.curve if point["step"] >= max(steps))
        with threads(self._provenance().get("threads", self.study.params.threads)):
            parts = self.study.params.accumulate
            again = training.replay(settings, self.study.data, self.ticket.start(), {*steps, end}, accumulate=parts)
        [known] = [point["weights"] for point in self.curve if point["step"] == end]
        if weights_hash(again[end]) != known:
            points = ", ".join(f"{step / final:g}" for step in steps)
            raise InputError(
                f"run {self.id[:12]}: weights at {points} of its training were not kept, and training it again here "
                f"gives other weights at step {end} than it had; add {points} to `keep` in {self.study.file()}, then "
                f"`python -m slt_lib runs remove {self.id[:12]}` and `python -m slt_lib run {self.study.name}`"
            )
        if distributed.first():
            for step in steps:
                self.folder.save(_replayed(step), again[step], {"run": self.id, "step": step})
        return {step: again[step] for step in steps}

    def _provenance(self) -> dict:
        try:
            return unseal(self.folder / "provenance.json")
        except Damaged:
            return {}

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            tensors = self.folder.load(name, self.record["files"].get(name))[0]
        except Damaged as error:  # since the run was found whole
            raise Damaged(f"{error}; run it again, and it is trained again") from None
        shapes = self.study.shapes
        expected = {key: shapes.get(key) for key in tensors} if name == "mask.safetensors" else shapes
        if {key: tensor.shape for key, tensor in tensors.items()} != expected:  # sealed by whoever wrote it elsewhere
            remedy = f"`python -m slt_lib runs remove {self.id[:12]}`, and it is trained again"
            raise Damaged(f"{self.folder / name} is not of this study's model; {remedy}")
        return tensors

    def _must_stand(self) -> None:
        if RunFolder.theta(self.record["steps"]) not in self.record["files"]:
            raise Failed(f"run {self.id[:12]} failed: {self.record['reason']}")

    def rewind(self, at: float, source: str = "last") -> Ticket:
        """A ticket with the weights at the fraction `at` of this run's training, its mask kept.

        `source`: "last", this run (the paper), or "dense", the run its chain began with (Frankle et al.). 0 gives the
        start, which for a chain from theta_0 is theta_0 itself; 1 the end. Source: FACTS.md section 7, ambiguity 3.
        """
        among("source", source, ("last", "dense"))
        if not 0 <= number("rewind", at) <= 1:
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

    def scored(self, checkpoint: str = "best") -> bool:
        """Whether every test set's scores of a checkpoint are in the store."""
        return all(self.folder.score(self.score_id(name, checkpoint)).exists() for name in self.study.corpus.tests)

    def score_id(self, test_set: str, checkpoint: str = "best") -> str:
        """Identity of a score: the run, the test set and what only reaches scores."""
        steps = self._averaged(checkpoint)
        return digest(
            ({"steps": steps} if steps else {})
            | {
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
        if (score := recall(path, "bleu", "ter", "ter_13a", "signatures", "statistics")) is not None:
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
        remember(path, score)
        return score

    def magnitudes(self, start: training.Start | None = None) -> dict[str, dict]:
        """Matrix -> rows, columns, kept, and mean |w| of the weights kept to the end, at the start and at the end.

        Stored once computed; `start` spares reading the ticket's start again. Empty for a run that has no end.
        """
        path = self.folder / "magnitudes.json"
        if (stored := recall(path, "matrices")) is not None:
            return stored["matrices"]
        if RunFolder.theta(self.record["steps"]) not in self.record["files"]:
            return {}
        first = (start or self.ticket.start()).weights
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
        remember(path, {"matrices": matrices})
        return matrices

    @functools.cached_property
    def memory_mib(self) -> float:
        """The paper's memory column of its best checkpoint, in MiB (FACTS.md section 4)."""
        return memory.paper_mib(prunable(self.weights("best")))


def _replayed(step: int) -> str:
    """Name of a file of weights that were replayed; it carries its own checksum."""
    return f"replayed_{step:07d}.safetensors"


class StandIn(Run):
    """In the place of a run that nobody trained: asks a recipe what it trains next. It has an id, and no weights."""

    def __init__(self, ticket: Ticket):
        steps = ticket.study.params.training.steps
        best = {"step": steps, "dev_bleu": 0.0}
        files = {RunFolder.theta(steps): ""}
        super().__init__(ticket, {"steps": steps, "status": "ok", "best": best, "files": files, "curve": []})

    def thetas(self, steps: Iterable[int]) -> dict[int, dict[str, Tensor]]:
        raise Failed(f"run {self.id[:12]} is not trained")
