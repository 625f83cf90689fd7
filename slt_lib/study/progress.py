"""Progress reporting: one bar per training in a notebook, one line per checkpoint in a log."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm

from slt_lib.base import distributed
from slt_lib.study.tickets import Ticket


class Progress:
    """One progress bar per training in a notebook; one line per checkpoint elsewhere or with SLT_PROGRESS=lines."""

    def __init__(self, lines: bool = False):
        self.lines = lines or os.environ.get("SLT_PROGRESS") == "lines" or "ipykernel" not in sys.modules

    @contextlib.contextmanager
    def training(self, ticket: Ticket, pair: str) -> Iterator[Callable[[int, dict | None], None]]:
        """Context that reports one training; its value is the `report` argument of the trainer."""
        name, steps = label(ticket, pair), ticket.context.settings.steps
        with tqdm(total=steps, desc=name, unit="step", leave=False, disable=self.lines) as bar:

            def report(count: int, point: dict | None) -> None:
                bar.update(count)
                if point is None:
                    return
                text = f"loss {point['loss']:.3f}, dev BLEU {point['dev_bleu']:.1f}"
                text += f", sparsity {100 * point['sparsity']:.1f}%"
                bar.set_postfix_str(text, refresh=False)
                if self.lines and distributed.first():
                    print(f"{name}: step {point['step']}/{steps}, {text}", file=sys.stderr, flush=True)

            yield report

    def trainings(self, shown: bool):
        """Bar that counts finished trainings, for trainings in worker processes, which show no bar."""
        return tqdm(desc="trainings", unit="training", disable=self.lines or not shown)


def label(ticket: Ticket, pair: str) -> str:
    """Name of a training in progress reports: pair, seed, kind, sparsity and id."""
    kind = (
        ticket.trained_with if ticket.trained_with == "dense" else f"{ticket.trained_with} {100 * ticket.sparsity:g}%"
    )
    return f"{pair} seed {ticket.seed} {kind} {ticket.train_id[:8]}"
