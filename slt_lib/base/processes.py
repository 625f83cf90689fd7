"""Process pools: run plain functions on all cores of this machine."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
FORKS = sys.platform == "linux"  # where a process can be copied quickly and safely


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool(jobs: int, threads: int = 1) -> ProcessPoolExecutor:
    """A pool of `jobs` processes with `threads` threads each; they exit when this process ends, even by a kill."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (threads,))


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
