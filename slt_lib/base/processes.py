"""Process pools: run plain functions on all cores of this machine."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
FORKS = sys.platform == "linux"  # where a process can be copied quickly and safely


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(jobs: int, threads: int = 1) -> ProcessPoolExecutor:
    """A pool of `jobs` processes with `threads` threads each; they exit when this process ends, even by a kill."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (threads,))


def in_order(function: Callable[..., Result], calls: Iterable[tuple], jobs: int, threads: int = 1) -> Iterator[Result]:
    """Yield `function(*call)` for each call, in order; at most `jobs` + 2 results are held at once.

    If the worker processes die, the remaining calls run in this process. That is the case in a script without a main
    guard, which the spawned processes cannot import.
    """
    if jobs == 1:
        yield from itertools.starmap(function, calls)
        return
    waiting, workers = deque(), pool(jobs, threads)

    def result(call: tuple, future: Future | None) -> Result:
        try:
            return future.result() if future else function(*call)
        except BrokenExecutor:
            return function(*call)

    try:
        for call in calls:
            future = None
            with contextlib.suppress(BrokenExecutor):
                future = workers.submit(function, *call)
            waiting.append((call, future))
            if len(waiting) > jobs + 1:
                yield result(*waiting.popleft())
        for call, future in waiting:
            yield result(call, future)
    finally:
        workers.shutdown(cancel_futures=True)


@contextlib.contextmanager
def forked(function: Callable[..., Result], jobs: int) -> Iterator[Callable[[Iterable], Iterator[Result]]]:
    """`map` of `function`, which need not be importable, on `jobs` copies of this process that share its memory.

    With fewer than two jobs, this process does the work. See FORKS for where more are possible.
    """
    if jobs < 2:
        yield functools.partial(map, function)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _adopt, (function,)) as copies:
        yield functools.partial(copies.map, _call)


def _adopt(function: Callable) -> None:
    """Set up a copy of this process. Ctrl-C reaches the copies too, but only the first process handles it."""
    global _function
    _begin(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _function = function


def _call(argument) -> object:
    return _function(argument)


def _begin(threads: int) -> None:
    """Set up a worker process: limit its threads, and exit when the parent process has ended."""
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the cleanup of unfinished files
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
