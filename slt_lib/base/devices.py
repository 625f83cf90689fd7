"""Where training and decoding compute: a CUDA device where there is one, else the CPU on a count of threads."""

import contextlib
import os
from collections.abc import Iterator

import torch

from slt_lib.base.errors import InputError


def device() -> torch.device:
    """The device of this process: CUDA where torch sees it (of several, that of LOCAL_RANK), else the CPU.

    SLT_DEVICE ("cpu", "cuda", "cuda:1") overrides this. No run id depends on the device. Raises InputError for a device
    that is not there.
    """
    asked = os.environ.get("SLT_DEVICE", "")
    count = torch.cuda.device_count()
    name = asked or ("cuda" if count else "cpu")
    if name == "cuda":
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % max(count, 1)}"
    if name == "cpu" or (name.startswith("cuda:") and name[5:].isdigit() and int(name[5:]) < count):
        return torch.device(name)
    there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
    raise InputError(f"SLT_DEVICE={asked}: no such device here; there are {there}")


def free_memory(where: torch.device) -> int:
    """Bytes of a CUDA device that are free, or held unused by torch."""
    free, _ = torch.cuda.mem_get_info(where)
    return free + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """`torch.set_num_threads` for a while: the same count gives the same bytes, wherever the call comes from."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
