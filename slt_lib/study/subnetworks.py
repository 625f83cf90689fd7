"""Subnetworks of a trained run: structured pruning step by step, and good, random and bad ones of one size.

Source: Prasanna, Rogers and Rumshisky (2020), "When BERT plays the lottery, all tickets are winning", sections 3 and 4.
Their loop removes whole MLPs; here it is an eighth of one, because a small translation model has few of them.
Importance is measured on training text, dev chooses the size, and the test sets give the scores.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from slt_lib import masks, parts
from slt_lib.base.seeds import stream
from slt_lib.base.store import digest, recall, remember
from slt_lib.study.importance import SENTENCES, measured
from slt_lib.study.runs import Run, StandIn
from slt_lib.study.scores import decoder
from slt_lib.study.tickets import Ticket, check_choice
from slt_lib.train import loop as training
from slt_lib.transformer import prunable

KINDS = ("both", "heads", "feed-forward")  # what a loop removes
SUBNETWORKS = ("good", "random", "bad")
HEADS_PER_STEP = 0.1  # of all heads
BLOCKS = 8  # a step removes one of this many blocks of a feed-forward layer's units
SHARE = 0.9  # of the dense model's dev BLEU, which a good subnetwork keeps
STOP = {"both": 0.5, "heads": 0.0, "feed-forward": 0.5}  # of that BLEU, where a loop ends; 0: when nothing is left
VERSION = 2  # raise when a change of code changes a step of a loop
CHECKPOINT = "best"  # whose weights are pruned: the ones that are scored
Removed = tuple[Sequence[str], Mapping[str, Sequence[int]]]  # heads, and feed-forward layer -> units


def pruned(run: Run, removed: Removed) -> dict[str, Tensor]:
    """The run's best weights without heads and units."""
    weights, (heads, units) = run.weights(CHECKPOINT), removed
    return masks.apply(weights, parts.mask(prunable(weights), run.study.shape.heads, heads, units))


def prune_stepwise(run: Run, kind: str = "both") -> list[dict]:
    """Remove the least important parts of a run step by step; returns the steps, the whole model first.

    Each step removes 10% of all heads and the least important eighth of one feed-forward layer, or one of the two
    (`kind`), and measures importance again. It ends when dev BLEU is below half of the whole model's or nothing is
    left; heads alone go on until none is left. A step has `heads` and `units`, the removed parts so far, and
    `dev_bleu`. Every step is stored, so that a loop that was interrupted goes on. Raises InputError for another kind,
    Failed if the run has failed.
    """
    check_choice("kind", kind, KINDS)
    study, path, steps = run.study, _file(run, kind), stored_steps(run, kind)
    if not steps:
        steps = [{"heads": [], "units": {}, "dev_bleu": dev_bleu(study, run.weights(CHECKPOINT))}]
    while not ended(steps, kind):
        removed = next_step(run, kind, (steps[-1]["heads"], steps[-1]["units"]))
        if removed is None:
            steps[-1]["last"] = True
        else:
            heads, units = removed
            steps.append({"heads": heads, "units": units, "dev_bleu": dev_bleu(study, pruned(run, removed))})
        remember(path, {"steps": steps})
    return steps


def _file(run: Run, kind: str) -> Path:
    key = digest([run.id, run.weights_hash, kind, SENTENCES, HEADS_PER_STEP, BLOCKS, CHECKPOINT, VERSION])[:32]
    return run.study.store.path / "subnetworks" / f"{key}.json"


def stored_steps(run: Run, kind: str) -> list[dict]:
    """The steps of a loop that are in the store; empty if it has not begun."""
    return (recall(_file(run, kind), "steps") or {"steps": []})["steps"]


def ended(steps: list[dict], kind: str) -> bool:
    """Whether a loop has reached its end."""
    return bool(steps) and ("last" in steps[-1] or steps[-1]["dev_bleu"] < STOP[kind] * steps[0]["dev_bleu"])


def next_step(run: Run, kind: str, removed: Removed) -> Removed | None:
    """The removed parts after one more step; None if nothing is left to remove."""
    shape, (heads, units) = run.study.shape, removed
    scores, unit_scores = measured(run.study, pruned(run, removed))
    every, units = parts.heads(shape.layers, shape.heads), dict(units)
    count = max(1, round(HEADS_PER_STEP * len(every))) if kind != "feed-forward" else 0
    gone = parts.least_heads(scores, heads, count)
    if kind != "heads" and (found := parts.least_units(unit_scores, units, shape.filter // BLOCKS)):
        units[found[0]] = sorted([*units.get(found[0], ()), *found[1]])
    after = sorted([*heads, *gone]), units
    return None if after == (list(heads), dict(removed[1])) else after


def dev_bleu(study, weights: Mapping[str, Tensor]) -> float:
    """BLEU of weights on dev, decoded as during the training."""
    with study.threads():
        return training.dev_bleu(decoder(study, weights), study.data, study.params.training)


# Good, random and bad ------------------------------------------------------------


def good(run: Run) -> Removed:
    """The parts removed at the last step before dev BLEU first falls below 90% of the whole model's.

    Those of the first step, if even that one is below. A plan computes nothing: without a finished loop in the store it
    takes half of the heads and units.
    """
    shape = run.study.shape
    if isinstance(run, StandIn) or not (run.study.computes or ended(stored_steps(run, "both"), "both")):
        every, units = parts.heads(shape.layers, shape.heads), parts.units(shape.layers, shape.filter)
        return every[::2], {name: numbers[::2] for name, numbers in units.items()}
    first, *steps = prune_stepwise(run)
    enough = [*itertools.takewhile(lambda step: step["dev_bleu"] >= SHARE * first["dev_bleu"], steps)]
    step = [first, *steps[:1], *enough][-1]
    return step["heads"], step["units"]


def subnetwork(run: Run, which: str = "good", draw: int = 0) -> Removed:
    """What a structured subnetwork leaves out: "good", "random" (number `draw`) or "bad"; all have one size.

    A bad one keeps what the good one leaves out, filled up at random with parts of the good one, or cut at random.
    """
    check_choice("which", which, SUBNETWORKS)
    heads, units = good(run)
    if which == "good":
        return heads, units
    shape, generator = run.study.shape, stream(run.ticket.seed, "subnetwork", which, draw)
    every = [(layer, i) for layer, numbers in parts.units(shape.layers, shape.filter).items() for i in numbers]
    gone = {(layer, i) for layer, numbers in units.items() for i in numbers}
    found = {}
    for layer, i in sorted(_exchanged(every, gone, which, generator)):
        found.setdefault(layer, []).append(i)
    return sorted(_exchanged(parts.heads(shape.layers, shape.heads), {*heads}, which, generator)), found


def _exchanged(every: list, gone: set, which: str, generator) -> list:
    """As many parts as `gone` has: random ones, or for "bad" first those that `gone` keeps."""
    order = [every[i] for i in generator.permutation(len(every))]
    if which == "bad":  # first what the good subnetwork keeps
        order.sort(key=lambda part: part in gone)
    return order[: len(gone)]


def pruned_ticket(ticket: Ticket, run: Run, pruning: str, which: str, draw: int, sparsity: float) -> Ticket:
    """`ticket` under the mask of a subnetwork of the dense `run`.

    `pruning`: "structured", of the size of `good`, or "unstructured", `sparsity` of each matrix, where good keeps the
    largest magnitudes and bad the smallest. Random single weights are drawn anew for each start of `ticket`. Raises
    InputError for another name.
    """
    check_choice("pruning", pruning, ("structured", "unstructured"))
    check_choice("which", which, SUBNETWORKS)
    if pruning == "unstructured":
        if which == "random":
            return ticket.prune_randomly(sparsity, draw)
        criterion = "magnitude" if which == "good" else "small_magnitude"
        return ticket.prune(by=run, sparsity=sparsity, checkpoint=CHECKPOINT, criterion=criterion)
    heads, units = subnetwork(run, which, draw)
    ticket = ticket.prune_heads(heads=heads) if heads else ticket
    return ticket.prune_feed_forward(units=units) if units else ticket
