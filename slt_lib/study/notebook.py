"""Cells that the notebooks of the techniques share: lists and checks of runs, pictures, and the answer."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor

from slt_lib import masks, schedules
from slt_lib.report import pictures
from slt_lib.report.data import label, percent
from slt_lib.report.tables import ablations
from slt_lib.study import results
from slt_lib.study.answers import compare, in_memory, usual
from slt_lib.study.chains import foresee
from slt_lib.study.operations import Rewind
from slt_lib.study.runs import Run
from slt_lib.study.study import Chain, Study
from slt_lib.study.tickets import Ticket
from slt_lib.transformer import prunable

LEVEL = 0.9  # the weights of this level are shown, or of the nearest one


def list_runs(chains: Iterable[Chain]) -> None:
    """Print one line per run: seed, kind of training, sparsity (percent), id (first 12 digits) and status."""
    for chain in chains:
        for run in chain.runs:
            status = run.record["status"]
            print(f"seed {chain.seed}  {run.ticket.trained_with} {100 * run.sparsity:g}%  {run.id[:12]}  {status}")


def check_masks(chains: Iterable[Chain]) -> None:
    """Print one line per pruned run: seed, sparsity (percent), number of kept weights, and two checks of its mask.

    `exact`: each matrix has exactly `round(sparsity * size)` pruned weights. `nested`: no weight is kept that one of
    the runs it was made from had pruned.
    """
    for chain in chains:
        for run in chain.runs:
            if run.mask is None:
                continue
            exact = all(int((~kept).sum()) == round(run.sparsity * kept.numel()) for kept in run.mask.values())
            parents = [parent.mask for parent in run.ticket.runs.values() if parent.mask is not None]
            nested = all(masks.nested(run.mask, mask) for mask in parents)
            kept = masks.kept(run.mask)
            print(f"seed {chain.seed}  {100 * run.sparsity:g}%  kept {kept:,}  exact {exact}  nested {nested}")


# Pictures ------------------------------------------------------------


def show_plan(study: Study, recipe: Callable, **knobs) -> Figure:
    """Sparsity and learning rate of every training of a recipe, before anything is trained; first seed."""
    chain = study.chain(recipe, study.seeds[0], **knobs)
    plans = [plan(run.ticket) for run in foresee(study, chain)]
    knobs = f" ({chain.variant})" if chain.variant else ""
    return pictures.plot_plan(plans, f"{study.name}: {label(chain.technique)}{knobs}, as planned")


def plan(ticket: Ticket) -> pictures.Plan:
    """A ticket's schedules over the steps of its training."""
    settings, first = ticket.context.settings, ticket.operations[0]
    steps, count = range(settings.steps + 1), settings.steps
    sparsity = [ticket.sparsity] * len(steps)
    if ticket.schedule:
        end, marks = schedules.at_step(settings.gradual.until, count), {0}
        marks |= {*schedules.every(settings.gradual.every, settings.gradual.until, count)}
        at = [max(mark for mark in marks if mark <= step) for step in steps]
        sparsity = [schedules.gradual_sparsity(step, *ticket.schedule, end) for step in at]
    warmup, peak = max(1, schedules.at_step(settings.warmup, count)), getattr(settings.peak_lr, ticket.optimizer)
    rates = [schedules.learning_rate(step, warmup, peak, ramp=ticket.optimizer == "adam") for step in steps]
    origin = (first.run.ticket.depth, first.step) if isinstance(first, Rewind) else None
    return pictures.Plan(ticket.depth, ticket.sparsity, sparsity, rates, origin)


def show_curves(chains: Iterable[Chain]) -> Figure:
    """Loss, dev BLEU and sparsity of every training of the chains, those without a row in the results too."""
    variants, runs, chains = {}, {}, list(chains)
    for chain in chains:  # the dense run is that of the default too
        for run in chain.runs:
            variants.setdefault(run.id, results.labels(run.study, chain, run)[1])
    for chain in chains:
        waiting = [*chain.runs]
        while waiting:
            run = waiting.pop()
            runs[run.id] = run
            variants.setdefault(run.id, chain.variant)
            waiting += [parent for parent in run.ticket.runs.values() if parent.id not in runs]
    curves = []
    for run in runs.values():
        about = run.ticket.trained_with, run.sparsity, run.ticket.seed, run.curve
        curves.append(pictures.Curve(*about, variants[run.id]))
    return pictures.plot_curves(curves, max(run.record["steps"] for run in runs.values()))


def show_kept(chains: Iterable[Chain], level: float = LEVEL) -> Figure | None:
    """Share of kept weights by block of each matrix: first seed, the level nearest to `level`.

    None, with a line, if no pruned run was trained to its end.
    """
    run = nearest(chains, level)
    if run is None or run.mask is None:
        print("No pruned run of the first seed was trained to its end.")
        return None
    kept = {name: run.mask[name].numpy() for name in run.study.shapes if name in prunable(run.mask)}
    return pictures.plot_blocks(kept, f"{about(run)}: share of kept weights by block", run.study.shape.heads)


def show_magnitudes(chains: Iterable[Chain], level: float = LEVEL) -> Figure | None:
    """Histograms of |w|, kept and pruned: where the mask was read, at the start, and at the end of the training.

    First seed, the level nearest to `level`; None, with a line, if no run was trained to its end.
    """
    if (run := nearest(chains, level)) is None:
        print("No run of the first seed was trained to its end.")
        return None
    ticket, panels = run.ticket, {}
    first = ticket.operations[0]
    if by := [operation.by for operation in ticket.operations if getattr(operation, "by", None)]:
        what = "the first mask" if ticket.schedule else "the mask"  # gradual pruning gives the later ones
        panels[rf"$\theta_T$ before, which gives {what}"] = divided(by[-1].weights("final"), run)
    symbol = r"$\theta_t$" if isinstance(first, Rewind) else r"$\theta_0$"
    # the ticket's own weights; those of pruned ones are zero there, so they come from its origin
    origin, start = divided(first.apply({}, None, ticket)[0], run), divided(ticket.start().weights, run)
    text = f"signs of {symbol}" if ticket.trained_with == "clt" else symbol
    panels[f"start of the training: {text}"] = origin | {"kept": start["kept"]}
    panels[r"end of the training: $\theta_T$"] = divided(run.weights("final"), run)
    return pictures.plot_histograms(panels, f"{about(run)}: magnitudes", ticket.trained_with)


def divided(weights: Mapping[str, Tensor], run: Run) -> dict[str, np.ndarray]:
    """All prunable weights that the run's mask keeps, and all that it prunes."""
    matrices = prunable(weights)
    values = torch.cat([weight.flatten() for weight in matrices.values()]).numpy()
    kept = torch.cat([(run.mask or {}).get(name, torch.ones_like(w)).flatten() for name, w in matrices.items()])
    kept = kept.bool().numpy()
    return {"kept": values[kept], "pruned": values[~kept]}


def nearest(chains: Iterable[Chain], level: float) -> Run | None:
    """The run of the first chain whose sparsity is nearest to `level`; None if all failed."""
    runs = [run for run in next(iter(chains)).runs if run.record["status"] == "ok"]
    return min(runs, key=lambda run: abs(run.sparsity - level), default=None)


def about(run: Run) -> str:
    """Study, kind of training, sparsity and seed of a run, for titles."""
    level = f" {percent(run.sparsity)}%" if run.sparsity else ""
    return f"{run.study.name}: {label(run.ticket.trained_with)}{level}, seed {run.ticket.seed}"


# The answer ------------------------------------------------------------


def answer(study: Study, chains: Iterable[Chain], dense: Iterable[Chain]) -> None:
    """Show BLEU against sparsity, next to the recipe's default if a knob differs from it, and the differences.

    The default's runs come from the store or from the study's figures folder; if they are in neither, a line says how
    to get them.
    """
    chains = list(chains)
    found, lacking = compare(study, chains, dense)
    if lacking:
        levels = ", ".join(f"{percent(level)}%" for level in lacking)
        knobs = ", ".join(f"{name} = {value!r}" for name, value in usual(chains[0]).items())
        where = f"neither in the store nor in the figures folder {results.figures(study.name)}"
        print(f"The default's runs at {levels} are {where}; run this notebook with {knobs}, and they are trained.")
    display(pictures.plot_answer(found), pictures.answer_table(found))


def answer_ablations(study: Study, chains: Iterable[Chain]) -> None:
    """Record the chains of a comparison and show each variant next to its default: a plot and a table."""
    chains = list(chains)
    results.record(study, chains)
    display(show_curves(chains))
    figures = in_memory(study, [(chain, run, kind) for chain in chains for run in chain.runs for kind in chain.scored])
    if figure := pictures.plot_variants(figures, study.pair):
        display(figure)
    display(ablations(figures, study.pair))
