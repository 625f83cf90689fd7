"""Linear probes: can a label be read from frozen hidden states by a linear classifier?

A probe is logistic regression on standardised states. Beside its accuracy stands that of a control task (Hewitt and
Liang 2019), whose labels are drawn at random once per word form: their difference, the selectivity, is what the probe
does not owe to memorising words.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from slt_lib.base.errors import InputError
from slt_lib.base.seeds import stream

GROUPS = ("surface", "morphology", "syntax", "meaning")
TEST = 0.3  # share of the sentences, or of the word forms, that are held out
LEAST = 60  # examples of a task; with fewer it is left out
# Of lbfgs: steps at most, and the gradient at which it stops. At 1e-2 accuracies were up to 5 points from those of a
# converged probe, for some models below and for others above; at 1e-3 half a point on average.
STEPS, TOLERANCE = 200, 1e-3


@dataclass(frozen=True, eq=False)
class Task:
    """A label for each of n examples.

    Attributes:
        name, group: its name, and one of `GROUPS`.
        spans: sentence of each example, and its first piece and the piece after its last [n, 3]. The probe reads the
            mean of the states of these pieces.
        labels: [n], text.
        forms: word form of each example [n], of which control labels are a function.
        by_form: whether it is also tested on word forms that the probe has not seen.
    """

    name: str
    group: str
    spans: np.ndarray
    labels: np.ndarray
    forms: np.ndarray
    by_form: bool = False

    @classmethod
    def of(cls, name: str, group: str, examples: Sequence[tuple], by_form: bool = False) -> "Task | None":
        """A task of examples (span, label, form), without labels that occur in few examples; None if few are left."""
        labels = np.array([str(label) for _, label, _ in examples])
        known, counts = np.unique(labels, return_counts=True)
        kept = np.isin(labels, known[counts >= max(10, 0.01 * len(labels))])
        if kept.sum() < LEAST or len(set(labels[kept])) < 2:
            return None
        spans = np.array([span for span, _, _ in examples])
        forms = np.array([str(form) for _, _, form in examples])
        return cls(name, group, spans[kept], labels[kept], forms[kept], by_form)

    def control(self, draw: int) -> np.ndarray:
        """Control labels [n]: for each word form one, drawn from the distribution of the labels."""
        forms, place = np.unique(self.forms, return_inverse=True)
        return stream(draw, "control task", self.name).choice(self.labels, size=len(forms))[place]

    def split(self, draw: int, by_form: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Examples to fit and to test on; no sentence, or no word form, is on both sides."""
        groups = self.forms if by_form else self.spans[:, 0]
        splitter = GroupShuffleSplit(1, test_size=TEST, random_state=int(stream(draw, "probe split").integers(2**31)))
        return next(splitter.split(groups, groups=groups))


def vectors(states: ArrayLike, sentence: ArrayLike, tasks: Sequence[Task]) -> list[np.ndarray]:
    """For each task the mean state of each span [n, hidden]; `states` [pieces, hidden], `sentence` [pieces], rising.

    Raises InputError if a span has no pieces or reaches beyond its sentence.
    """
    sums = np.concatenate([np.zeros((1, np.shape(states)[1])), np.cumsum(states, axis=0, dtype=np.float64)])
    found = []
    for task in tasks:
        numbers, first, last = task.spans.T
        start, end = (np.searchsorted(sentence, numbers, side=side) for side in ("left", "right"))
        if (last <= first).any() or (start + last > end).any():
            raise InputError(
                f"probes: {task.name} has a word outside of its sentence; make it from the sentences probed"
            )
        found.append((sums[start + last] - sums[start + first]) / (last - first)[:, None])
    return found


def accuracy(x: np.ndarray, labels: np.ndarray, fit: np.ndarray, test: np.ndarray) -> float:
    """Share of right labels on `test` of a probe that was trained on `fit`; nan if `fit` has a single label."""
    if len(np.unique(labels[fit])) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # STEPS are enough for the accuracy
        classifier = LogisticRegression(max_iter=STEPS, tol=TOLERANCE)
        probe = make_pipeline(StandardScaler(), classifier).fit(x[fit], labels[fit])
    return float((probe.predict(x[test]) == labels[test]).mean())


def probe(task: Task, x: np.ndarray, draw: int) -> dict[str, float]:
    """Accuracy of the task and of its control, and of their majority labels, on held-out sentences; on held-out forms.

    `x`: the examples' vectors [n, hidden]. `draw`: number of the split and of the control labels. The same draw gives
    all models the same ones. `form_accuracy` and `form_majority` are nan for a task that is not tested by word form.
    """
    fit, test = task.split(draw)
    control = task.control(draw)
    found = {
        "accuracy": accuracy(x, task.labels, fit, test),
        "control": accuracy(x, control, fit, test),
        "majority": _majority(task.labels, fit, test),
        "control_majority": _majority(control, fit, test),
        "form_accuracy": float("nan"),
        "form_majority": float("nan"),
    }
    if task.by_form:
        fit, test = task.split(draw, by_form=True)
        found |= {"form_accuracy": accuracy(x, task.labels, fit, test)}
        found |= {"form_majority": _majority(task.labels, fit, test)}
    return found


def _majority(labels: np.ndarray, fit: np.ndarray, test: np.ndarray) -> float:
    known, counts = np.unique(labels[fit], return_counts=True)
    return float((labels[test] == known[counts.argmax()]).mean())
