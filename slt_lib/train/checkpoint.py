"""The files of a training: checkpoints, the state to resume from, and the record of the run."""

import contextlib
import sys
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from slt_lib import masks, schedules
from slt_lib.base import distributed
from slt_lib.base.settings import Training
from slt_lib.base.store import RECORD, RESUME, Damaged, RunFolder, checksum, digest, sealed, write_json
from slt_lib.train.provenance import commit, provenance
from slt_lib.train.state import Data, NotFinite, Start, TrainState
from slt_lib.train.step import new_batches
from slt_lib.transformer import prunable

Report = Callable[[int, dict | None], None]  # (finished steps, point of the curve)


def silent(steps: int, point: dict | None) -> None:
    """A report that does nothing."""


def checkpoints(training: Training) -> list[int]:
    """Steps after which dev is scored and the training can be resumed."""
    return schedules.every(training.checkpoint, 1.0, training.steps)


def candidates(training: Training, gradual: bool) -> list[int]:
    """The checkpoints that may be the best; in a gradual training only those at its final sparsity.

    In the paper these are the last four (section 4).
    """
    end = schedules.at_step(training.gradual.until, training.steps)
    return [step for step in checkpoints(training) if not gradual or step > end or step == training.steps]


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """16 hex digits of a hash of the weights; a run's record holds it for every checkpoint."""
    return checksum({name: weight.detach().cpu() for name, weight in weights.items()})[:16]


class Job:
    """A training under way: its settings, its state, and its files in `folder`.

    It continues from the state that the folder holds. `kept`: steps whose weights stay. `checkpoints`: steps after
    which dev is scored and the resume file is written. `report`: see `loop.train`.
    """

    def __init__(
        self, training: Training, start: Start, folder: RunFolder, keep: Collection[int] = (), report: Report = silent
    ):
        self.training, self.folder, self.report = training, folder, report
        self.kept = {*keep, training.steps} - {0}
        self.checkpoints = checkpoints(training)
        self.owner = digest([folder.path.name, training.model_dump(), dict(start.parents)])  # of the resume file
        self.state = self._resumed(start) or TrainState.begin(start)
        self.state.commits = list(dict.fromkeys([*self.state.commits, commit()]))
        if self.state.step:
            report(self.state.step, None)

    def _resumed(self, start: Start) -> TrainState | None:
        """The state in the resume file. A file that is damaged or of another training is reported and removed."""
        path = self.folder / RESUME
        if not path.exists():
            return None
        try:
            tensors, values = self.folder.load(RESUME)
            if values.get("of") != self.owner:
                raise Damaged(f"{path} belongs to another training")
            self.folder.verify(values["files"])
            return TrainState.restore(start, tensors, values)
        except Damaged as error:
            if not distributed.first():  # rank 0 has read it without an error
                raise
            print(f"{error}; starting this training again", file=sys.stderr)
            path.unlink()
            return None

    @contextlib.contextmanager
    def failing(self):
        """Context that records NotFinite as the failure of this training."""
        try:
            yield
        except NotFinite as error:
            self.state.failure = str(error)

    def keep_weights(self) -> None:
        """Save the weights of this step."""
        name = self.folder.theta(self.state.step)
        self.state.files[name] = self.folder.save(name, self.state.weights)

    def checkpoint(self, bleu: float) -> None:
        """Add a point with the BLEU of dev to the curve; save the weights if they are to stay, and the resume file."""
        state = self.state
        point = {
            "step": state.step,
            "loss": state.loss / state.since,
            "dev_bleu": bleu,
            "sparsity": masks.sparsity(prunable(state.mask)) if state.mask else 0.0,
            "tokens": state.tokens,
            "weights": weights_hash(state.weights),
        }
        state.curve, state.loss, state.since = [*state.curve, point], 0.0, 0
        competing = state.step in candidates(self.training, bool(state.start.gradual))
        if competing and (state.best is None or bleu > state.best["dev_bleu"]):
            state.best = {"step": state.step, "dev_bleu": bleu}
        if not distributed.first():
            return
        stay = self.kept | ({state.best["step"]} if state.best else set())
        if state.step in stay:
            self.keep_weights()
        names = {self.folder.theta(step) for step in stay}
        state.files = {name: sha for name, sha in state.files.items() if name in names}
        self.folder.save(RESUME, state.tensors(), state.values() | {"of": self.owner})
        self.folder.drop(names)

    def finish(self, data: Data) -> dict:
        """Write the record of a training that has ended or failed, and return it in all processes."""
        record = self._write_record(data) if distributed.first() else None
        return distributed.broadcast(lambda: record)

    def _write_record(self, data: Data) -> dict:
        state, start, mask = self.state, self.state.start, self.state.mask
        if mask is not None:
            state.files["mask.safetensors"] = self.folder.save("mask.safetensors", mask)
        size = sum(w.numel() for w in prunable(start.weights).values())
        record = {
            "steps": self.training.steps,
            "optimizer": start.optimizer,
            "status": "failed" if state.failure else "ok",
            "reason": state.failure or "",
            "curve": state.curve,
            "best": state.best,
            "files": state.files,
            "kept": masks.kept(prunable(mask)) if mask else size,
            "prunable": size,
            "target_tokens": state.tokens,
            "dropped_pairs": new_batches(self.training, data, start).dropped,
            "parents": dict(start.parents),
        }
        self.folder.path.mkdir(parents=True, exist_ok=True)
        known = provenance() | {"precision": self.training.precision}
        known |= {"seconds": round(state.seconds, 3), "commit": " ".join(state.commits)}
        write_json(self.folder / "provenance.json", sealed(known))
        write_json(self.folder / RECORD, sealed(record))
        (self.folder / RESUME).unlink(missing_ok=True)
        return record
