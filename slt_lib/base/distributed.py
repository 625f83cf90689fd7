"""Several processes that train as one: torchrun starts them, each computes its share of every batch.

    torchrun --nproc-per-node 4 -m slt_lib run STUDY

The first process alone looks into the store, writes and speaks; the others do the same steps beside it, so that all
hold equal weights. A process that is lost ends the job: torchrun ends the others, and the same command goes on where it
was, on any number of processes. Where torchrun has started nothing, nothing here does anything.
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

# Gradients wait for each other as long as PyTorch lets them by default; the others wait for the first while it holds
# still at a lock, prepares a corpus or scores. Below 2**31 milliseconds.
PATIENCE = datetime.timedelta(days=14)

_control = None  # the group in which the processes agree with each other; None: this process works alone


@contextlib.contextmanager
def group():
    """Join the processes that torchrun started for the while: NCCL between GPUs, gloo on CPU.

    Raises InputError where there are more processes than GPUs, or where WORLD_SIZE is not torchrun's.
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
        if here > torch.cuda.device_count():
            gpus = torch.cuda.device_count()
            raise InputError(f"{here} processes share {gpus} GPUs here; torchrun --nproc-per-node {gpus} at most")
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield  # after an error nothing is taken down in order: the process ends, and with it the job
    _control = None
    dist.destroy_process_group()


@contextlib.contextmanager
def alone():
    """A while in which this process takes itself for the only one: the others wait for it."""
    global _control
    held, _control = _control, None
    try:
        yield
    finally:
        _control = held


def size() -> int:
    """Number of processes that train together."""
    return 1 if _control is None else dist.get_world_size()


def rank() -> int:
    """The number of this process among them, from 0."""
    return 0 if _control is None else dist.get_rank()


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def told(make: Callable):
    """What `make` gives in the first process, in all of them; the others do not call it."""
    if _control is None:
        return make()
    value = [None]
    if first():
        with alone():
            value = [make()]
    dist.broadcast_object_list(value, src=0, group=_control)
    return value[0]


@contextlib.contextmanager
def in_turn():
    """The first process does the body before the others do, and they find what it left."""
    if not first():
        dist.barrier(_control)
    yield
    if first() and _control is not None:
        dist.barrier(_control)


def agree(make: Callable[[], object]) -> bool:
    """Whether `make` gives the same in all processes; not called where there is one."""
    return _control is None or len({repr(value) for value in _gathered(make())}) == 1


def spread(items: list, work: Callable[[list], list]) -> list:
    """`work` on a list, each process on its share: the results in the order of `items`, in every process.

    A FloatingPointError of one is raised in all.
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


def _gathered(value) -> list:
    values = [None] * size()
    dist.all_gather_object(values, value, group=_control)
    return values


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, in all of them."""
    if _control is None:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / size()


def parallel(module: nn.Module) -> nn.Module:
    """`module` whose backward leaves the mean of the processes' gradients in its parameters; it must hold all of them.

    The parameters become those of the first process.
    """
    if _control is None:
        return module
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a name that older versions lack
        # buffers are tables of constants, and may have grown in one process alone
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


def apart(module: nn.Module):
    """A while in which gradients only add up here: the next backward outside of it takes the mean of the sums."""
    return contextlib.nullcontext() if _control is None else module.no_sync()
