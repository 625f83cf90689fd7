"""Data-parallel training: torchrun starts the processes, each computes its share of every batch.

    torchrun --nproc-per-node 4 -m slt_lib run STUDY

Only rank 0 reads the store, writes files and prints; the other ranks take the same steps, so that all hold equal
weights. If one process dies, torchrun ends the others; the same command resumes the training, on any number of
processes. Without torchrun the functions of this module do nothing.
"""

import contextlib
import datetime
import os
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slt_lib.base.devices import device
from slt_lib.base.errors import InputError

# Timeout of the control group: rank 0 may wait for a lock, prepare a corpus or score. Below 2**31 milliseconds. The
# group of the gradients keeps PyTorch's default.
PATIENCE = datetime.timedelta(days=14)

_control = None  # process group for control messages; None: this process works alone


@contextlib.contextmanager
def group():
    """Context in which the processes that torchrun started form one group: NCCL on GPUs, gloo on CPU.

    Raises InputError if there are more processes than GPUs, or if WORLD_SIZE was not set by torchrun.
    """
    global _control
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count == 1:
        yield
        return
    if "RANK" not in os.environ:
        raise InputError(f"WORLD_SIZE is {count}, but RANK is not set: start it with torchrun, or unset WORLD_SIZE")
    where, here = device(), int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if where.type == "cuda":
        if here > (gpus := torch.cuda.device_count()):
            raise InputError(f"{here} processes share {gpus} GPUs here; torchrun --nproc-per-node {gpus} at most")
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield  # after an error the group is not destroyed: the process exits, and torchrun ends the job
    _control = None
    dist.destroy_process_group()


def size() -> int:
    """Number of processes that train together."""
    return 1 if _control is None else dist.get_world_size()


def rank() -> int:
    """Rank of this process, from 0."""
    return 0 if _control is None else dist.get_rank()


def first() -> bool:
    """Whether this process is rank 0, which writes files and prints."""
    return rank() == 0


def broadcast(make: Callable):
    """Run `make` on rank 0, as if it were the only process, and return its result in all processes."""
    global _control
    if _control is None:
        return make()
    held, value = _control, [None]
    if first():
        _control = None
        try:
            value = [make()]
        finally:
            _control = held
    dist.broadcast_object_list(value, src=0, group=held)
    return value[0]


@contextlib.contextmanager
def in_turn():
    """Context whose body runs on rank 0 first, then on the other ranks, which can read what rank 0 wrote."""
    if not first():
        dist.barrier(_control)
    yield
    if first() and _control is not None:
        dist.barrier(_control)


def _gathered(value) -> list:
    values = [None] * size()
    dist.all_gather_object(values, value, group=_control)
    return values


def agree(make: Callable[[], object]) -> bool:
    """Whether `make` returns equal values in all processes; it is not called if there is only one."""
    return _control is None or len({repr(value) for value in _gathered(make())}) == 1


def spread(items: list, work: Callable[[list], list]) -> list:
    """Split `items` over the processes, apply `work` to each share, return all results in the order of `items`.

    A FloatingPointError in one process is raised in all of them.
    """
    if _control is None:
        return work(items)
    try:
        own = work(items[rank() :: size()])
    except FloatingPointError as error:
        own = error
    results = [None] * len(items)
    for i, part in enumerate(_gathered(own)):
        if isinstance(part, FloatingPointError):
            raise part
        results[i :: size()] = part
    return results


def mean(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, returned in all of them."""
    if _control is None:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / size()


def parallel(module: nn.Module) -> nn.Module:
    """Wrap `module` so that its backward pass averages the gradients over the processes.

    `module` must contain all trained parameters. Their values are broadcast from rank 0.
    """
    if _control is None:
        return module
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # a name that older versions lack
        # buffers hold constants, and their sizes may differ between processes
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
