"""The files of a training: checkpoints, the state to resume from, and the record of the run."""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from slt_lib import masks, schedules
from slt_lib.base import distributed
from slt_lib.base.settings import Training
from slt_lib.base.store import RECORD, RESUME, Damaged, RunFolder, checksum, digest, sealed, write_json
from slt_lib.train.provenance import commit, provenance
from slt_lib.train.state import Start, TrainState
from slt_lib.transformer import prunable


@dataclass(frozen=True)
class Marks:
    """Steps after which something besides a training step is due.

    `checkpoints`: dev is scored and the resume file written. `kept`: the weights are saved. `updates`: the mask of a
    gradual training grows, for the last time at `end`. `candidates`: the checkpoints that may be the best.
    """

    checkpoints: Collection[int]
    kept: Collection[int]
    updates: Collection[int]
    end: int
    candidates: Collection[int]


def marks_of(training: Training, start: Start, keep: Collection[int] = ()) -> Marks:
    """The marks of a training that keeps its weights at the steps `keep`."""
    gradual, end = bool(start.gradual), schedules.at_step(training.gradual.until, training.steps)
    updates = schedules.every(training.gradual.every, training.gradual.until, training.steps) if gradual else ()
    return Marks(checkpoints(training), set(keep) - {0}, set(updates), end, candidates(training, gradual))


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


def resume(folder: RunFolder, training: Training, start: Start) -> TrainState:
    """The state in `folder` of a training that was interrupted, or that before the first step.

    A resume file that is damaged, or of another run, other settings or other parents, is reported and removed.
    """
    if (folder / RESUME).exists():
        try:
            tensors, values = folder.load(RESUME)
            if values.get("of") != _owner(folder, training, start):
                raise Damaged(f"{folder / RESUME} belongs to another training")
            folder.verify(values["files"])
        except Damaged as error:
            if not distributed.first():  # rank 0 has read it without an error
                raise
            print(f"{error}; starting this training again", file=sys.stderr)
            (folder / RESUME).unlink()
        else:
            state = TrainState.restore(start, tensors, values)
            state.commits = list(dict.fromkeys([*state.commits, commit()]))
            return state
    state = TrainState.begin(start)
    state.commits = [commit()]
    return state


def _owner(folder: RunFolder, training: Training, start: Start) -> str:
    """Hash of what a resume file belongs to: the run, its settings and its parents."""
    return digest([folder.path.name, training.model_dump(), dict(start.parents)])


def keep_weights(folder: RunFolder, state: TrainState) -> None:
    """Save the weights of this step."""
    name = folder.theta(state.step)
    state.files[name] = folder.save(name, state.weights)


def write_checkpoint(folder: RunFolder, training: Training, marks: Marks, state: TrainState, bleu: float) -> None:
    """Add a point with the BLEU of dev to the curve; save the weights if they are to stay, and the resume file."""
    point = {
        "step": state.step,
        "loss": state.loss / state.since,
        "dev_bleu": bleu,
        "sparsity": masks.sparsity(state.mask) if state.mask else 0.0,
        "tokens": state.tokens,
        "weights": weights_hash(state.weights),
    }
    state.curve, state.loss, state.since = [*state.curve, point], 0.0, 0
    if state.step in marks.candidates and (state.best is None or bleu > state.best["dev_bleu"]):
        state.best = {"step": state.step, "dev_bleu": bleu}
    if not distributed.first():
        return
    stay = marks.kept | {training.steps} | ({state.best["step"]} if state.best else set())
    if state.step in stay:
        keep_weights(folder, state)
    names = {folder.theta(step) for step in stay}
    state.files = {name: sha for name, sha in state.files.items() if name in names}
    folder.save(RESUME, state.tensors(), state.values() | {"of": _owner(folder, training, state.start)})
    folder.drop(names)


def finish(folder: RunFolder, training: Training, state: TrainState, dropped: int) -> dict:
    """Write the record of a training that has ended or failed, and return it; `dropped` pairs did not fit a row."""
    record = _finish(folder, training, state, dropped) if distributed.first() else None
    return distributed.broadcast(lambda: record)


def _finish(folder: RunFolder, training: Training, state: TrainState, dropped: int) -> dict:
    start, mask = state.start, state.mask
    if mask is not None:
        state.files["mask.safetensors"] = folder.save("mask.safetensors", mask)
    size = sum(w.numel() for w in prunable(start.weights).values())
    record = {
        "steps": training.steps,
        "optimizer": start.optimizer,
        "status": "failed" if state.failure else "ok",
        "reason": state.failure or "",
        "curve": state.curve,
        "best": state.best,
        "files": state.files,
        "kept": masks.kept(mask) if mask else size,
        "prunable": size,
        "target_tokens": state.tokens,
        "dropped_pairs": dropped,
        "parents": dict(start.parents),
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    known = provenance() | {"precision": training.precision}
    known |= {"seconds": round(state.seconds, 3), "commit": " ".join(state.commits)}
    write_json(folder / "provenance.json", sealed(known))
    write_json(folder / RECORD, sealed(record))
    (folder / RESUME).unlink(missing_ok=True)
    return record
