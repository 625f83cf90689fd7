"""Cells that the notebooks of the six techniques share: the list of runs and the check of their masks."""

from collections.abc import Iterable

from slt_lib import masks
from slt_lib.study.study import Chain


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
