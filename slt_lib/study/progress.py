"""Progress reporting: bars and learning curves in a notebook, one line per checkpoint in a log."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from tqdm.auto import tqdm

from slt_lib.base import distributed
from slt_lib.study.tickets import Ticket

PAUSE = 1.0  # least seconds between two drawings of the curves
SHARE = 0.1  # most of the time that is spent on drawing them


class Progress:
    """In a notebook one progress bar per training, and a picture of all learning curves.

    One line per checkpoint elsewhere or with SLT_PROGRESS=lines.
    """

    def __init__(self, lines: bool = False):
        self.lines = lines or os.environ.get("SLT_PROGRESS") == "lines" or "ipykernel" not in sys.modules
        self.picture = Picture(show=not self.lines)

    @contextlib.contextmanager
    def training(self, ticket: Ticket, pair: str) -> Iterator[Callable[[int, dict | None], None]]:
        """Context that reports one training; its value is the `report` argument of the trainer."""
        name, steps, points = label(ticket, pair), ticket.context.settings.steps, []
        with self.picture, tqdm(total=steps, desc=name, unit="step", leave=False, disable=self.lines) as bar:

            def report(count: int, point: dict | None) -> None:
                bar.update(count)
                if point is None:
                    return
                text = f"loss {point['loss']:.3f}, dev BLEU {point['dev_bleu']:.1f}"
                text += f", sparsity {100 * point['sparsity']:.1f}%"
                bar.set_postfix_str(text, refresh=False)
                points.append(point)
                self.picture.add(ticket, points)
                if self.lines and distributed.first():
                    # one write even if Python does not buffer: the lines of several processes stay whole
                    line = f"{name}: step {point['step']}/{steps}, {text}\n"
                    print(line, end="", file=sys.stderr, flush=True)

            yield report

    @contextlib.contextmanager
    def trainings(self, shown: bool) -> Iterator[Callable[[Iterable], None]]:
        """Context of trainings in worker processes, which show nothing; its value is called with runs that ended."""
        with self.picture, tqdm(desc="trainings", unit="training", disable=self.lines or not shown) as bar:

            def ended(runs: Iterable) -> None:
                for run in runs:
                    bar.update()
                    self.picture.add(run.ticket, run.curve)

            yield ended


class Picture:
    """The learning curves of trainings under way, one picture that is drawn anew at checkpoints.

    As a context manager it draws what is still to be drawn at its end, so the picture is complete.
    """

    def __init__(self, show: bool):
        self.show, self.curves, self.shown = show, {}, None
        self.drawn, self.due = True, 0.0

    def __enter__(self) -> "Picture":
        return self

    def __exit__(self, *error) -> None:
        self.draw()

    def add(self, ticket: Ticket, points: Sequence[dict]) -> None:
        """Set the curve of a training, and draw the picture if it is time."""
        if self.show and points:
            self.curves[ticket.train_id] = ticket.trained_with, ticket.sparsity, ticket.seed, points
            self.steps, self.drawn = ticket.context.settings.steps, False
            if time.monotonic() >= self.due:
                self.draw()

    def draw(self) -> None:
        """Draw the picture unless it is drawn already."""
        if self.drawn:
            return
        from IPython.display import Image, display  # only a notebook gets here; others start faster without these

        from slt_lib.report.pictures import Curve, plot_curves, png

        began = time.monotonic()
        image = Image(png(plot_curves([Curve(*curve) for curve in self.curves.values()], self.steps)))
        if self.shown:
            self.shown.update(image)
        else:
            self.shown = display(image, display_id=True)
        self.drawn, spent = True, time.monotonic() - began
        self.due = time.monotonic() + max(PAUSE, spent / SHARE)


def label(ticket: Ticket, pair: str) -> str:
    """Name of a training in progress reports: pair, seed, kind, sparsity and id."""
    kind = (
        ticket.trained_with if ticket.trained_with == "dense" else f"{ticket.trained_with} {100 * ticket.sparsity:g}%"
    )
    return f"{pair} seed {ticket.seed} {kind} {ticket.train_id[:8]}"
