"""Parallel trainings on a CPU, one process each, so that no core waits for a slower training."""

import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait

from slt_lib.base.devices import device
from slt_lib.base.errors import InputError
from slt_lib.base.processes import cores, pool
from slt_lib.study.progress import Progress, label
from slt_lib.study.scores import scores
from slt_lib.study.tickets import Ticket


def default_jobs(threads: int) -> int:
    """Default number of parallel trainings: available cores divided by `threads` per training.

    1 on a GPU, with SLT_LOCKSTEP and under torchrun, which train several tickets or one ticket in other ways.
    """
    if device().type != "cpu" or os.environ.get("SLT_LOCKSTEP") or int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return 1
    return max(1, cores() // threads)


class Workers:
    """At most `jobs` parallel trainings of a `Study`.

    A context manager: an error inside it stops the running trainings, which the next command resumes.
    """

    def __init__(self, study, jobs: int):
        self.study, self.jobs, self.running = study, jobs, {}
        self.pool = pool(jobs, study.params.threads)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is not None:
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
        self.pool.shutdown(cancel_futures=True)

    def first_done(
        self, wanted: Iterable[Ticket], keep: Mapping[str, Collection[int]], scored: tuple[str, ...]
    ) -> set[Ticket]:
        """Start tickets in the order of `wanted` while processes are free, wait, return the tickets that ended.

        `keep`: see `Study.train`; `scored`: the checkpoints to score. Raises InputError, which names the ticket, if a
        process was killed.
        """
        for ticket in wanted:
            if len(self.running) < self.jobs and ticket not in self.running:
                steps = keep.get(ticket.train_id, ())
                self.running[ticket] = self.pool.submit(_train, self.study, ticket, steps, scored)
        self.pool.submit(int)  # from this call on, the pool notices a kill of the process that it started last
        try:
            wait(self.running.values(), return_when=FIRST_COMPLETED)
            ended = {ticket for ticket, future in self.running.items() if future.done()}
            for ticket in ended:
                self.running[ticket].result()  # raises the error of the training
                del self.running[ticket]
        except BrokenExecutor:
            raise InputError(self._killed()) from None
        return ended

    def _killed(self) -> str:
        """Error message that names the training whose process was killed: it left its pid in the lock of its ticket."""
        self.pool.shutdown()
        killed = [ticket for ticket in self.running if self.study.store.abandoned(ticket.train_id)] or self.running
        names = " or ".join(label(ticket, self.study.pair) for ticket in killed)
        return (
            f"the process that trained {names} was killed, by hand or because memory ran out; the same command goes on "
            "from its last checkpoint (fewer --jobs need less memory)"
        )


def _train(study, ticket: Ticket, keep: Collection[int] = (), scored: tuple[str, ...] = ("best",)) -> None:
    """In a worker process: train the ticket and score it, into the store, where the parent process finds both."""
    [run] = study.train([ticket], Progress(lines=True), keep={ticket.train_id: keep})
    if ticket.listed and run.record["status"] == "ok":
        for checkpoint in scored:
            scores(run, checkpoint)
