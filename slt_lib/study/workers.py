"""Trainings side by side on a CPU: a process each, so that every core has one and none waits for a slower one."""

import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any

from slt_lib.base.errors import InputError
from slt_lib.base.processes import cores, pool
from slt_lib.study.progress import Progress, label


def default_jobs(threads: int) -> int:
    """Processes that train at once where nobody says: one for `threads` of the cores that this one may use.

    One on a GPU and where SLT_LOCKSTEP or torchrun asks for another way of training many or training together.
    """
    from slt_lib.base.devices import device

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

    def first_done(
        self, wanted: Iterable[Any], keep: Mapping[str, Collection[int]], scored: tuple[str, ...]
    ) -> set[str]:
        """Start as many of the tickets `wanted` as there is room for, in their order; the ids of those that ended.

        `keep` as in `Study.train`; `scored`: the checkpoints that are scored too. Raises InputError, which names the
        ticket, where a process was killed.
        """
        under_way = {ticket.train_id for ticket in self.running.values()}
        for ticket in wanted:
            if len(self.running) == self.jobs:
                break
            if ticket.train_id not in under_way:
                self.running[self.pool.submit(_train, ticket, keep.get(ticket.train_id, ()), scored)] = ticket
        try:
            ended: set[Future] = wait(self.running, return_when=FIRST_COMPLETED).done
            for future in ended:
                future.result()  # raises what the training raised
        except BrokenExecutor:
            raise InputError(self._killed()) from None
        return {self.running.pop(future).train_id for future in ended}

    def _killed(self) -> str:
        """Name the training whose process was killed: it alone left its name in the lock of its ticket."""
        self.pool.shutdown()
        tickets = list(self.running.values())
        killed = [ticket for ticket in tickets if ticket.study.store.abandoned(ticket.train_id)] or tickets
        names = " or ".join(label(ticket) for ticket in killed)
        return (
            f"the process that trained {names} was killed, by hand or because memory ran out; the same command goes on "
            "from its last checkpoint (fewer --jobs need less memory)"
        )


def _train(ticket, keep: Collection[int] = (), scored: tuple[str, ...] = ("best",)) -> None:
    """In a worker: train the ticket and score it, into the store, where the parent finds both."""
    [run] = ticket.study.train([ticket], Progress(lines=True), keep={ticket.train_id: keep})
    if ticket.listed and run.record["status"] == "ok":
        for checkpoint in scored:
            run.scores(checkpoint)
