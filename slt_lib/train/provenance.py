"""Where and with which code a run was trained. No run id depends on it."""

import contextlib
import datetime
import functools
import os
import platform
import subprocess
from pathlib import Path

import torch

from slt_lib.base import distributed
from slt_lib.base.devices import device


def provenance() -> dict:
    """What differs between machines: device, number of processes and threads, versions, and the current time."""
    return {
        "device": processor(),
        "processes": distributed.size(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """The name of the GPU or CPU that computes; of several processes with their number, as in "2 x NVIDIA H100"."""
    where, count = device(), distributed.size()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _cpu()
    return f"{count} x {name}" if count > 1 else name


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def commit() -> str:
    """The commit of the checkout, with + if tracked files differ from it; without .git the value of SLT_COMMIT."""
    project = Path(__file__).resolve().parents[2]
    named = os.environ.get("SLT_COMMIT", "")
    if not (project / ".git").exists():
        return named
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=12"]  # no tag hides the hash
    try:
        return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return named
