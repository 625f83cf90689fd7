"""Trainings side by side on a CPU: a process each, so that every core has one and none waits for a slower one."""

import os
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from slt_lib.processes import cores, pool
from slt_lib.progress import Progress


def default_jobs(threads: int) -> int:
    """Processes that train at once where nobody says: one for `threads` of the cores that this one may use.

    One on a GPU and where SLT_LOCKSTEP or torchrun asks for another way of training many or training together.
    """
    from slt_lib.devices import device

    if device().type != "cpu" or os.environ.get("SLT_LOCKSTEP") or int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return 1
    return max(1, cores() // threads)


class Workers:
    """At most `jobs` trainings at once. A context: leaving it by an error ends those that run; they go on next time."""

    def __init__(self, jobs: int, threads: int):
        self.jobs, self.running = jobs, {}
        self.pool = pool(jobs, threads)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is not None:
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    def first_done(self, wanted: Iterable[Any]) -> set[str]:
        """Start of the tickets `wanted`, the most urgent first, what there is room for; the ids of those that ended."""
        for ticket in wanted:
            if len(self.running) == self.jobs:
                break
            if ticket.train_id not in self.running.values():
                self.running[self.pool.submit(_train, ticket)] = ticket.train_id
        ended: set[Future] = wait(self.running, return_when=FIRST_COMPLETED).done
        for future in ended:
            future.result()  # raises what the training raised
        return {self.running.pop(future) for future in ended}


def _train(ticket) -> None:
    """In a worker: train the ticket and score it, into the store, where the parent finds both."""
    [run] = ticket.study.train([ticket], Progress(lines=True))
    if ticket.listed and run.record["status"] == "ok":
        run.scores()
