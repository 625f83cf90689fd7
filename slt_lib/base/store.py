"""Runs on disk: where they are, whether they are whole, how they are read and written.

A run is a folder of safetensors and JSON under `$SLT_RUNS` (default `runs/`), named by its train_id. `run.json` is
written last, lists the sha256 of every other file and its own: a folder without it is a training under way. Every file
appears whole or not at all (temporary file, fsync, rename). A run may come from someone else: opening it executes
nothing, follows no link out of its folder, and takes no more memory than its files have bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from slt_lib.base.errors import InputError
from slt_lib.base.files import remedy, sweep, write_bytes
from slt_lib.base.settings import home

RECORD, RESUME, TICKET = "run.json", "resume.safetensors", "ticket.json"
NOBODY = "another process"  # what is said where a lock file holds no name
PATIENCE = 3.0  # seconds at a lock before its holder is named
FIELDS = {
    "steps": int,
    "status": str,
    "reason": str,
    "curve": list,
    "best": dict | None,
    "kept": int,
    "prunable": int,
    "target_tokens": int,
}


class Damaged(InputError):
    """A file of a run is missing, or is not what was written."""


def root() -> Path:
    return Path(os.environ.get("SLT_RUNS") or home() / "runs").absolute()


def canonical(value) -> str:
    """One spelling of a JSON value: keys sorted, numbers as Python writes them, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_json(path: Path, value) -> str:
    return write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def sealed(value: dict) -> dict:
    """`value` with a checksum of the rest, for `unseal` to check."""
    return value | {"sha256": digest(value)}


def unseal(path: Path) -> dict:
    """Read what `write_json(path, sealed(value))` wrote. Raises Damaged where it is missing or altered."""
    try:
        with open_plain(path) as file:
            value = json.loads(file.read())
        seal = value.pop("sha256")
        found = digest(value)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise Damaged(f"{path} is missing or not readable") from None
    if seal != found:
        raise Damaged(f"{path} was altered: its checksum does not match")
    return value


def open_plain(path: Path) -> BinaryIO:
    """Open a file of a run for reading. Raises OSError, and Damaged for a link, a pipe or a device in its place."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        if path.is_symlink():
            raise Damaged(f"{path} is a link: what it points at is no part of the run") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Damaged(f"{path} is no plain file")
    return os.fdopen(handle, "rb")


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values, in the order of the names."""
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
            raise Damaged(f"{self.path}: {name!r} is no name of a file in a run")
        return self.path / name

    @staticmethod
    def theta(step: int) -> str:
        """Name of the checkpoint after `step` steps."""
        return f"theta_{step:07d}.safetensors"

    def save(self, name: str, tensors: Mapping[str, Tensor], metadata: dict | None = None) -> str:
        """Write tensors (moved to the CPU) and JSON `metadata`; returns the file's sha256.

        With metadata the file also holds a checksum of all of it, for `load` to check: nothing else knows its sum.
        """
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        if metadata:
            metadata = sealed(metadata | {"tensors": checksum(plain)})
        return write_bytes(self / name, save(plain, {"json": canonical(metadata or {})}))

    def load(self, name: str, sha256: str | None = None) -> tuple[dict[str, Tensor], dict]:
        """Tensors and metadata of a file. Raises Damaged where it is missing, cut, or not what was written."""
        path = self / name
        if sha256 is not None:
            self.verify({name: sha256})
        try:
            open_plain(path).close()
            with safe_open(path, framework="pt") as file:  # it checks that sizes in the header add up to the file's
                # clones, so that memory is the process's own and aligned as torch aligns it
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
                metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            if metadata:
                seal, found = metadata.pop("sha256"), digest(metadata)
                if seal != found or metadata.pop("tensors") != checksum(tensors):
                    raise Damaged(f"{path} was altered: its checksum does not match")
        except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise Damaged(f"{path} can't be read: {error}") from None
        return tensors, metadata

    def verify(self, sums: Mapping[str, str]) -> None:
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
        """Remove checkpoints and leftovers that are not in `keep`."""
        sweep(self.path)
        for path in self.path.glob("theta_*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def score(self, score_id: str) -> Path:
        """Where a score is kept. Raises Damaged where its folder is a link."""
        folder = self / "scores"
        if folder.is_symlink():
            raise Damaged(f"{folder} is a link: what it points at is no part of the run")
        return folder / f"{score_id}.json"

    def ticket(self) -> dict:
        """What the run is a run of. Its digest is the folder's name: raises Damaged where it is another's."""
        path = self / TICKET
        try:
            with open_plain(path) as file:
                ticket = json.loads(file.read())
            found = digest(ticket)
        except (OSError, ValueError, TypeError, RecursionError):
            raise Damaged(f"{path} is missing or not readable") from None
        if not found.startswith(self.path.name):
            raise Damaged(f"{path} is not what was written: it belongs to another run, or was altered")
        return ticket

    def record(self) -> dict | None:
        """The whole run's record, every file checked; None for a training that is not finished. Raises Damaged."""
        path = self / RECORD
        if not os.path.lexists(path):
            return None
        record = unseal(path)
        files = record.get("files")
        if not isinstance(files, dict):
            raise Damaged(f"{path} is no record of a run")
        self.verify(files)
        if not all(isinstance(record.get(key), kind) for key, kind in FIELDS.items()):
            raise Damaged(f"{path} is no record of a run")
        return record


class Store:
    """All runs under one root."""

    def __init__(self, path: Path | None = None):
        self.path = path or root()

    def folder(self, train_id: str) -> RunFolder:
        if not re.fullmatch(r"[0-9a-f]{16,64}", train_id):
            raise InputError(f"{train_id!r} is no id of a run; `python -m slt_lib runs list` shows them")
        return RunFolder(self.path / train_id)

    def ids(self) -> list[str]:
        return sorted(path.parent.name for path in self.path.glob(f"*/{RECORD}"))

    @contextlib.contextmanager
    def lock(self, name: str):
        """Hold the lock `name`: one trains, another waits; the system frees it when its holder dies.

        On a disk of several machines it is only as good as that disk's `flock`: NFS 4, CephFS and Lustre mounted with
        `flock` carry it from one to the other; Lustre's `localflock` and NFS's `local_lock` do not. A name left in the
        file by another machine is told, for it is all that would be seen of that.
        """
        path = self.path / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: {remedy(error, places='SLT_RUNS')}") from None
        with file:
            _take(file, path)
            left, here = _holder(file), socket.gethostname()
            if left != NOBODY and not left.endswith(f" on {here}"):
                print(
                    f"{path}: {left} did not give it back: it was killed, or locks do not reach from that machine to "
                    "this one; make sure that it has ended",
                    file=sys.stderr,
                    flush=True,
                )
            with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
                file.truncate(0)
                file.seek(0)
                file.write(f"{os.getpid()} on {here}\n".encode())
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(0)

    def abandoned(self, name: str) -> bool:
        """Whether the last holder of the lock `name` left its name there: it was killed, or holds it now."""
        try:
            with open_plain(self.path / "locks" / f"{name}.lock") as file:
                return _holder(file) != NOBODY
        except OSError:
            return False

    def held(self) -> list[str]:
        """One line a lock that a process holds now, as a training does that an earlier command left under way."""
        lines = []
        for path in sorted((self.path / "locks").glob("*.lock")):
            with contextlib.suppress(OSError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    lines.append(f"{path}: held by {_holder(file)}")
        return lines

    def remove(self, train_id: str) -> None:
        """Remove a run; a link in its place goes, not what it points at. Raises InputError where it can't be."""
        path = self.folder(train_id).path
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise InputError(f"{path}: can't be removed; check who may write there")


def recall(path: Path, *keys: str) -> dict | None:
    """What `remember` wrote, or None where it is to be computed: it was not yet, or it is damaged, which is told."""
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
    """Write what was computed, sealed; what a kill left there half-written goes."""
    sweep(path.parent, age=3600)  # others may be writing there now, but not for an hour
    write_json(path, sealed(value))


def _take(file, path: Path) -> None:
    """Wait for the lock, and say whom for where that takes long."""
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
        print(f"{path}: held by {_holder(file)}; waiting until that ends", file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(f"{path}: can't be locked ({error.strerror}); set SLT_RUNS to a local disk") from None


def _holder(file) -> str:
    """Who wrote its name into a lock file."""
    file.seek(0)
    name = file.readline(200).strip()
    return f"process {name.decode()}" if re.fullmatch(rb"\d+ on [\w.-]+", name) else NOBODY
