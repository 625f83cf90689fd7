"""What a training reads, and its state between two steps."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from torch import Tensor

from slt_lib.data.batches import Position
from slt_lib.data.vocabulary import Encoded, Vocabulary

# The fields of TrainState that are not tensors, as a resume file names them.
VALUES = ("step", "position", "curve", "best", "files", "loss", "since", "tokens", "seconds", "commits")


@dataclass(frozen=True)
class Data:
    """An encoded corpus: the training pairs, and dev with its references as text."""

    vocabulary: Vocabulary
    source: Encoded
    target: Encoded
    dev_source: Encoded
    dev_reference: list[str]


@dataclass(frozen=True)
class Start:
    """The values of a ticket: initial weights, mask, and how it is trained.

    `weights`: name -> tensor (theta_0, theta_t, ...). `mask`: name of each prunable matrix -> BoolTensor, True = kept;
    None: dense. `gradual`: (initial, final) sparsity of magnitude pruning during training, or None for a fixed mask.
    `depth`: number of trainings before this one in the chain. `noise`: number of a copy that sees other sentences and
    dropout at the same depth; 0 is the study's own training. `parents`: id of each run that these values come from ->
    hash of that run's final weights.
    """

    weights: Mapping[str, Tensor]
    mask: Mapping[str, Tensor] | None
    gradual: tuple[float, float] | None
    optimizer: str
    seed: int
    depth: int
    noise: int = 0
    parents: Mapping[str, str] = field(default_factory=dict)


class NotFinite(Exception):
    """The loss, a weight or a logit is not finite: the run has failed."""


@dataclass
class TrainState:
    """The state of a training after `step` steps: the content of its resume file, and how it failed, if it did.

    weights: name -> tensor.
    mask: name of each prunable matrix -> BoolTensor, True = kept; None: dense.
    optimizer: name of each weight -> its statistics (Adafactor: row and column, or moment; Adam: step and moments).
    stale: name -> values of the pruned entries, under `pruned: stale` (FACTS.md section 2); else empty.
    position: where the stream of batches continues.
    curve, best, files: the points, the best checkpoint on dev, and the saved files with their checksums, as in the
        run's record.
    loss, since: sum of the losses since the last checkpoint, and the number of their steps.
    tokens: target tokens read so far. seconds: time up to the last checkpoint. commits: of the code that trained it.
    """

    start: Start
    weights: dict[str, Tensor]
    mask: dict[str, Tensor] | None
    optimizer: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    stale: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    position: Position = field(default_factory=Position)
    curve: list[dict] = field(default_factory=list)
    best: dict | None = None
    files: dict[str, str] = field(default_factory=dict)
    loss: float = 0.0
    since: int = 0
    tokens: int = 0
    seconds: float = 0.0
    commits: list[str] = field(default_factory=list)
    failure: str | None = None

    @classmethod
    def begin(cls, start: Start) -> "TrainState":
        """The state before the first step."""
        return cls(start, dict(start.weights), None if start.mask is None else dict(start.mask))

    @classmethod
    def restore(cls, start: Start, tensors: Mapping[str, Tensor], values: Mapping) -> "TrainState":
        """The inverse of `tensors` and `values`."""
        parts = {"theta": {}, "mask": {}, "optimizer": {}, "stale": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part == "optimizer":
                slot, _, name = name.partition(".")
                parts[part].setdefault(name, {})[slot] = tensor
            else:
                parts[part][name] = tensor
        epoch, offset, waiting = values["position"]
        values = {name: values[name] for name in VALUES} | {"position": Position(epoch, offset, tuple(waiting))}
        return cls(start, parts["theta"], parts["mask"] or None, parts["optimizer"], parts["stale"], **values)

    def count(self, loss: float, tokens: int) -> None:
        """Add the loss and the target tokens of a step."""
        self.loss += loss
        self.since += 1
        self.tokens += tokens

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the resume file, by name."""
        parts = {"theta": self.weights, "mask": self.mask or {}, "stale": self.stale}
        found = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        for name, slots in self.optimizer.items():
            found |= {f"optimizer.{slot}.{name}": value for slot, value in slots.items()}
        return found

    def values(self) -> dict:
        """The other values of the resume file, ready for JSON."""
        return {name: getattr(self, name) for name in VALUES} | {"position": list(astuple(self.position))}
