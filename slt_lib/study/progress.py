"""Progress reporting: one bar per training in a notebook, one line per checkpoint in a log."""

import os
import sys
from collections.abc import Callable

from slt_lib.base import distributed
from slt_lib.study.tickets import Ticket


class Progress:
    """One progress bar per training in a notebook; one line per checkpoint elsewhere or with SLT_PROGRESS=lines."""

    def __init__(self, lines: bool = False):
        self.lines = lines or os.environ.get("SLT_PROGRESS") == "lines" or "ipykernel" not in sys.modules

    def training(self, ticket: Ticket, pair: str):
        """Context that reports one training; its value is the `report` argument of the trainer."""
        return _Report(ticket, pair, self.lines)

    def trainings(self, shown: bool):
        """Bar that counts finished trainings, for trainings in worker processes, which show no bar."""
        from tqdm.auto import tqdm

        return tqdm(desc="trainings", unit="training", disable=self.lines or not shown)


def label(ticket: Ticket, pair: str) -> str:
    """Name of a training in progress reports: pair, seed, kind, sparsity and id."""
    name = {"dense": "dense"}.get(ticket.trained_with, f"{ticket.trained_with} {100 * ticket.sparsity:g}%")
    return f"{pair} seed {ticket.seed} {name} {ticket.train_id[:8]}"


class _Report:
    def __init__(self, ticket: Ticket, pair: str, lines: bool):
        self.lines, self.steps = lines, ticket.context.settings.steps
        self.label = label(ticket, pair)

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
