"""Plain functions on every core of this machine, each call in a process of its own."""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(jobs: int, threads: int = 1) -> ProcessPoolExecutor:
    """`jobs` processes of `threads` threads each that end with this one, however it ends."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (threads,))


def in_order(function: Callable[..., Result], calls: Iterable[tuple], jobs: int, threads: int = 1) -> Iterator[Result]:
    """`function(*call)` of each call, in their order; no more than `jobs` + 2 of them are held at once.

    What a process that died leaves undone is done here: a script without a main guard can't be opened by another.
    """
    if jobs == 1:
        yield from itertools.starmap(function, calls)
        return
    waiting, workers = deque(), pool(jobs, threads)

    def first() -> Result:
        future, call = waiting.popleft()
        try:
            return future.result()
        except BrokenExecutor:
            return function(*call)

    try:
        for call in calls:
            try:
                waiting.append((workers.submit(function, *call), call))
            except BrokenExecutor:
                while waiting:
                    yield first()
                yield function(*call)
            if len(waiting) > jobs + 1:
                yield first()
        while waiting:
            yield first()
    finally:
        workers.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """In a worker: no more threads than its share, and no life after the parent's, which a kill may end."""
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it was writing is taken away
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
