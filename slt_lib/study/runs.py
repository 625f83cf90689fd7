"""A run: a trained ticket. Its checkpoints, mask and learning curve are read from the store on demand."""

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from slt_lib import schedules
from slt_lib.base import distributed
from slt_lib.base.devices import threads
from slt_lib.base.errors import InputError
from slt_lib.base.store import Damaged, RunFolder, unseal
from slt_lib.study.opening import Opened
from slt_lib.study.operations import Mask, Rewind, Theta0
from slt_lib.study.tickets import Ticket, check_choice, number
from slt_lib.train import loop as training
from slt_lib.train.checkpoint import candidates, weights_hash


class Failed(InputError):
    """A chain depends on a run that has failed."""


class Run:
    """A trained ticket: record, checkpoints and mask, read from the store on demand. Runs of one id are equal."""

    def __init__(self, ticket: Ticket, record: dict, study: Opened):
        self.ticket, self.record, self.study = ticket, record, study
        self.id = ticket.train_id

    def __eq__(self, other) -> bool:
        return isinstance(other, Run) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Run({self.id[:12]}, {self.ticket.trained_with}, sparsity {self.sparsity}, {self.record['status']})"

    @property
    def folder(self) -> RunFolder:
        """Its folder in the store."""
        return self.study.store.folder(self.id)

    @property
    def sparsity(self) -> float:
        """The requested sparsity; each matrix has exactly round(sparsity * size) zeros."""
        return self.ticket.sparsity

    @property
    def root(self) -> "Run":
        """The first run of its chain: the dense one, or a gradually pruned one."""
        return next(iter(self.ticket.runs.values())).root if self.ticket.runs else self

    @property
    def curve(self) -> list[dict]:
        """One point per checkpoint: step, loss (mean since the last), dev_bleu, sparsity, tokens, weights (a hash)."""
        return self.record["curve"]

    @property
    def weights_hash(self) -> str:
        """Hash of its weights at its last checkpoint; empty if it has none."""
        return self.curve[-1]["weights"] if self.curve else ""

    @functools.cached_property
    def mask(self) -> dict[str, Tensor] | None:
        """Its final mask, name -> BoolTensor; None for a dense run. Raises Damaged."""
        return self._load("mask.safetensors") if "mask.safetensors" in self.record["files"] else None

    def weights(self, checkpoint: str = "final") -> dict[str, Tensor]:
        """theta_T ("final"), the best on dev ("best"), or the mean of the last N checkpoints ("average N").

        Pruned entries are zero: an average of a gradual training uses only checkpoints at its final sparsity. Raises
        InputError for another name, Failed if the run has failed.
        """
        self.must_stand()
        if checkpoint in ("final", "best"):
            return self.theta(self.record["steps"] if checkpoint == "final" else self.record["best"]["step"])
        if steps := self.averaged_steps(checkpoint):
            thetas = self.thetas(steps).values()
            return {name: torch.stack([theta[name] for theta in thetas]).mean(0) for name in self.study.shapes}
        raise InputError(f'checkpoint {checkpoint!r} is none of "final", "best", "average 4"')

    def averaged_steps(self, checkpoint: str) -> list[int]:
        """The steps that "average N" averages; empty for any other checkpoint."""
        match checkpoint.split():
            case ["average", count] if count.isdigit() and int(count) > 0:
                gradual = self.ticket.schedule is not None
                return candidates(self.study.params.training, gradual)[-int(count) :]
        return []

    def theta(self, step: int) -> dict[str, Tensor]:
        """Weights after `step` steps. Errors as for `thetas`."""
        return self.thetas([step])[step]

    def thetas(self, steps: Iterable[int]) -> dict[int, dict[str, Tensor]]:
        """Step -> weights. Weights that were not kept are recomputed: see `_replay` and its error.

        Raises Damaged if a file is missing or was altered.
        """
        found = {step: self._stored(step) for step in steps}
        missing = [step for step, theta in found.items() if theta is None]
        return found | (self._replay(missing) if missing else {})

    def _stored(self, step: int) -> dict[str, Tensor] | None:
        """The weights after `step` steps without a training, or None."""
        if step == 0:
            return self.ticket.start().weights
        if (name := RunFolder.theta(step)) in self.record["files"]:
            return self._load(name)
        return self._load(name) if (self.folder / (name := _replayed(step))).exists() else None

    def _replay(self, steps: list[int]) -> dict[int, dict[str, Tensor]]:
        """Train the ticket again up to the first checkpoint at or after `steps`; store the weights at `steps`.

        Raises InputError if the weights at that checkpoint differ from those of the run. Another processor, thread
        count or way of training (lockstep) sums in another order.
        """
        self.must_stand()
        study, here, known = self.study, self.id[:12], {}
        with contextlib.suppress(Damaged):
            known = unseal(self.folder / "provenance.json")
        end = next(point for point in self.curve if point["step"] >= max(steps))
        wanted, parts = {*steps, end["step"]}, study.params.accumulate
        with threads(known.get("threads", study.params.threads)):
            again = training.replay(study.params.training, study.data, self.ticket.start(), wanted, accumulate=parts)
        if weights_hash(again[end["step"]]) != end["weights"]:
            points = ", ".join(f"{step / self.record['steps']:g}" for step in steps)
            raise InputError(
                f"run {here}: weights at {points} of its training were not kept, and training it again here gives "
                f"other weights at step {end['step']} than it had; add {points} to `keep` in {study.file()}, then "
                f"`python -m slt_lib runs remove {here}` and `python -m slt_lib run {study.name}`"
            )
        if distributed.first():
            for step in steps:
                self.folder.save(_replayed(step), again[step], {"run": self.id, "step": step})
        return {step: again[step] for step in steps}

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            tensors = self.folder.load(name, self.record["files"].get(name))[0]
        except Damaged as error:  # damaged after the run was opened
            raise Damaged(f"{error}; run it again, and it is trained again") from None
        shapes = self.study.shapes
        expected = {key: shapes.get(key) for key in tensors} if name == "mask.safetensors" else shapes
        if {key: tensor.shape for key, tensor in tensors.items()} != expected:  # a valid file, written elsewhere
            remedy = f"`python -m slt_lib runs remove {self.id[:12]}`, and it is trained again"
            raise Damaged(f"{self.folder / name} is not of this study's model; {remedy}")
        return tensors

    def must_stand(self) -> None:
        """Raise Failed if the run has failed."""
        if self.record["status"] == "failed":
            raise Failed(f"run {self.id[:12]} failed: {self.record['reason']}")

    def rewind(self, at: float, source: str = "last") -> Ticket:
        """A ticket with the weights at the fraction `at` of a run's training and this run's mask.

        `source`: "last", this run (the paper), or "dense", the first run of its chain (Frankle et al.). `at` 0 gives
        the start, which is theta_0 itself for a chain from theta_0; 1 gives the end. Raises InputError for another
        source or fraction, Failed if this run has failed. Source: FACTS.md section 7, ambiguity 3.
        """
        check_choice("source", source, ("last", "dense"))
        if not 0 <= number("rewind", at) <= 1:
            raise InputError(f"rewind {at} is not a fraction of the training from 0 to 1")
        self.must_stand()
        run = self if source == "last" else self.root
        step, operations = schedules.at_step(at, self.record["steps"]), run.ticket.operations
        changed = any(operation.sets_weights for operation in operations)
        start = Theta0() if step == 0 and operations[0] == Theta0() and not changed else Rewind(run, step)
        return replace(self.ticket, operations=(start, Mask(self)) if self.sparsity else (start,), listed=True)


def _replayed(step: int) -> str:
    """File name of recomputed weights; the file contains its own checksum."""
    return f"replayed_{step:07d}.safetensors"


class StandIn(Run):
    """Placeholder for a run that is not trained, to find out what a recipe trains next. It has an id but no weights."""

    def __init__(self, ticket: Ticket, study: Opened):
        steps = study.params.training.steps
        best = {"step": steps, "dev_bleu": 0.0}
        super().__init__(ticket, {"steps": steps, "status": "ok", "best": best, "files": {}, "curve": []}, study)

    def thetas(self, steps: Iterable[int]) -> dict[int, dict[str, Tensor]]:
        raise Failed(f"run {self.id[:12]} is not trained")
