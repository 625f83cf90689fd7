"""The store of runs: where they are, how their files are read, checked and written.

A run is a folder of safetensors and JSON files under `$SLT_RUNS` (default `runs/`), named by its train_id. `run.json`
is written last and contains the SHA-256 of every other file and of itself: a folder without it is an unfinished
training. A run may come from an untrusted source: opening it executes nothing, follows no link out of its folder, and
needs no more memory than the size of its files.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from slt_lib.base.errors import InputError
from slt_lib.base.files import remedy, sweep, write_bytes
from slt_lib.base.settings import home

RECORD, RESUME, TICKET = "run.json", "resume.safetensors", "ticket.json"
ID = re.compile(r"[0-9a-f]{16,64}")
NOBODY = "another process"  # if a lock file names no holder
PATIENCE = 3.0  # seconds of waiting for a lock until its holder is printed
FIELDS = {"files": dict, "curve": list, "best": dict | None} | dict.fromkeys(("status", "reason"), str)
FIELDS |= dict.fromkeys(("steps", "kept", "prunable", "target_tokens"), int)


class Damaged(InputError):
    """A file of a run is missing or was altered."""


def canonical(value) -> str:
    """Canonical JSON: keys sorted, numbers as Python writes them, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_json(path: Path, value) -> str:
    """Write indented JSON atomically; returns the file's SHA-256."""
    return write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def sealed(value: dict) -> dict:
    """`value` with its checksum, which `unseal` checks."""
    return value | {"sha256": digest(value)}


def unseal(path: Path) -> dict:
    """Read what `write_json(path, sealed(value))` wrote. Raises Damaged if it is missing or altered."""
    return _unsealed(path, read_json(path))


def _unsealed(path: Path, value) -> dict:
    """`value` without its checksum. Raises Damaged, which names `path`, if the checksum does not match."""
    seal = value.pop("sha256", None) if isinstance(value, dict) else None
    if seal != digest(value):
        raise Damaged(f"{path} was altered: its checksum does not match")
    return value


def read_json(path: Path):
    """The JSON value in a file. Raises Damaged if it is missing, not readable, or has no canonical form."""
    try:
        with open_plain(path) as file:
            value = json.loads(file.read())
        canonical(value).encode()
    except (OSError, ValueError, RecursionError):
        raise Damaged(f"{path} is missing or not readable") from None
    return value


def open_plain(path: Path) -> BinaryIO:
    """Open a file of a run for reading. Raises OSError, and Damaged if it is a link, a pipe or a device."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        if path.is_symlink():
            raise Damaged(f"{path} is a link: what it points at is no part of the run") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Damaged(f"{path} is not a regular file")
    return os.fdopen(handle, "rb")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, sorted by name."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name};{tensor.dtype};{list(tensor.shape)};".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise Damaged(f"{self.path}: {name!r} is not a valid file name of a run")
        return self.path / name

    @staticmethod
    def theta(step: int) -> str:
        """Name of the checkpoint after `step` steps."""
        return f"theta_{step:07d}.safetensors"

    def save(self, name: str, tensors: Mapping[str, Tensor], metadata: dict | None = None) -> str:
        """Write tensors (moved to the CPU) and JSON `metadata`; returns the file's SHA-256.

        With metadata the file also contains a checksum of everything in it, which `load` checks.
        """
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        if metadata:
            metadata = sealed(metadata | {"tensors": checksum(plain)})
        return write_bytes(self / name, save(plain, {"json": canonical(metadata or {})}))

    def load(self, name: str, sha256: str | None = None) -> tuple[dict[str, Tensor], dict]:
        """Tensors and metadata of a file. Raises Damaged if it is missing, truncated or altered."""
        path = self / name
        if sha256 is not None:
            self.verify({name: sha256})
        try:
            open_plain(path).close()
            with safe_open(path, framework="pt") as file:  # checks the sizes in the header against the file
                # clone: memory owned by this process and aligned for torch
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
                metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            if metadata and _unsealed(path, metadata).pop("tensors", None) != checksum(tensors):
                raise Damaged(f"{path} was altered: its checksum does not match")
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise Damaged(f"{path} can't be read: {error}") from None
        return tensors, metadata

    def verify(self, sums: Mapping[str, str]) -> None:
        """Check files against `sums`: name -> SHA-256. Raises Damaged."""
        for name, expected in sums.items():
            path = self / name
            try:
                with open_plain(path) as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                raise Damaged(f"{path} is missing or not readable") from None
            if found != expected:
                raise Damaged(f"{path} is not what was written: its sha256 does not match")

    def drop(self, keep: set[str]) -> None:
        """Remove temporary files, and checkpoints that are not in `keep`."""
        sweep(self.path)
        for path in self.path.glob("theta_*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def score(self, score_id: str) -> Path:
        """Path of a stored score. Raises Damaged if its folder is a link."""
        folder = self / "scores"
        if folder.is_symlink():
            raise Damaged(f"{folder} is a link: what it points at is no part of the run")
        return folder / f"{score_id}.json"

    def ticket(self) -> dict:
        """The identity of the run's ticket. Raises Damaged if its digest is not the folder's name."""
        ticket = read_json(self / TICKET)
        if not digest(ticket).startswith(self.path.name):
            raise Damaged(f"{self / TICKET} is not what was written: it belongs to another run, or was altered")
        return ticket

    def record(self) -> dict | None:
        """The record of the run, with every file checked; None if the training is not finished. Raises Damaged."""
        path = self / RECORD
        if not os.path.lexists(path):
            return None
        record = unseal(path)
        if isinstance(record.get("files"), dict):
            self.verify(record["files"])
        if not all(isinstance(record.get(key), kind) for key, kind in FIELDS.items()):
            raise Damaged(f"{path} is no record of a run")
        return record


class Store:
    """All runs under one folder: `$SLT_RUNS`, by default `runs/`."""

    def __init__(self, path: Path | None = None):
        self.path = path or Path(os.environ.get("SLT_RUNS") or home() / "runs").absolute()

    def folder(self, train_id: str) -> RunFolder:
        """Folder of a run. Raises InputError if `train_id` is not an id."""
        if not ID.fullmatch(train_id):
            raise InputError(f"{train_id!r} is not the id of a run; `python -m slt_lib runs list` shows them")
        return RunFolder(self.path / train_id)

    def ids(self) -> list[str]:
        """Sorted ids of the finished runs; other folders, such as a copy `ID.old`, are left out."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{RECORD}") if ID.fullmatch(path.parent.name))

    @contextlib.contextmanager
    def lock(self, name: str):
        """Context that holds the lock `name`; other processes wait. A killed process releases its locks.

        The file contains the holder's pid and host. On a shared disk the lock is as good as its `flock`: NFS 4, CephFS
        and Lustre mounted with `flock` share locks between machines; Lustre's `localflock` and NFS's `local_lock` do
        not. If a holder on another machine is still named, prints a warning. Raises InputError if the file cannot be
        written or locked.
        """
        path, here = self.path / "locks" / f"{name}.lock", socket.gethostname()
        lock = FileLock(path, fallback_to_soft=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=PATIENCE)
            except Timeout:
                print(f"{path}: held by {_holder(path)}; waiting until that ends", file=sys.stderr, flush=True)
                lock.acquire(poll_interval=0.5)
        except OSError as error:
            raise InputError(f"{path}: {remedy(error, places='SLT_RUNS')}") from None
        try:
            left = _holder(path)
            if left != NOBODY and not left.endswith(f" on {here}"):
                text = "it was killed, or locks do not reach from that machine to this one; make sure that it has ended"
                print(f"{path}: {left} did not give it back: {text}", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):  # the disk may be full
                path.write_text(f"{os.getpid()} on {here}\n")
            yield
        finally:
            with contextlib.suppress(OSError):
                path.write_text("")
            lock.release()

    def abandoned(self, name: str) -> bool:
        """Whether the last holder of the lock `name` left its pid there: it was killed, or still holds the lock."""
        return _holder(self.path / "locks" / f"{name}.lock") != NOBODY

    def held(self) -> list[str]:
        """One line per lock that a process holds now, such as a training left running by an earlier command."""
        lines = []
        for path in sorted((self.path / "locks").glob("*.lock")):
            try:
                FileLock(path, fallback_to_soft=False).acquire(blocking=False).lock.release()
            except OSError as error:
                lines += [f"{path}: held by {_holder(path)}"] if isinstance(error, Timeout) else []
        return lines

    def remove(self, train_id: str) -> None:
        """Remove a run. Of a link only the link is removed. Raises InputError if the run cannot be removed."""
        path = self.folder(train_id).path
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise InputError(f"{path}: can't be removed; check who may write there")


def recall(path: Path, *keys: str) -> dict | None:
    """The value that `remember` wrote; None if there is none or if it is damaged, which prints a message."""
    if not os.path.lexists(path):
        return None
    try:
        value = unseal(path)
        if not value.keys() >= set(keys):
            raise Damaged(f"{path} lacks {', '.join(sorted(set(keys) - value.keys()))}")
        return value
    except Damaged as error:
        print(f"{error}; computing it again", file=sys.stderr)
        return None


def remember(path: Path, value: dict) -> None:
    """Write a computed value with its checksum, and remove old temporary files."""
    sweep(path.parent, age=3600)  # younger ones may belong to a running process
    write_json(path, sealed(value))


def _holder(path: Path) -> str:
    """The process named in a lock file."""
    try:
        name = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return NOBODY
    return f"process {name}" if re.fullmatch(r"\d+ on [\w.-]+", name) else NOBODY
