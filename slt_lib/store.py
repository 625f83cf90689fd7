"""Runs on disk: where they are, whether they are whole, how they are read and written.

A run is a folder of safetensors and JSON under `$SLT_RUNS` (default `runs/`), named by its train_id. `run.json` is
written last, lists the sha256 of every other file and its own: a folder without it is a training under way. Every file
appears whole or not at all (temporary file, fsync, rename). Opening a run executes nothing.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from slt_lib.errors import InputError
from slt_lib.params import home

RECORD, RESUME = "run.json", "resume.safetensors"


class Damaged(Exception):
    """A file of a run is missing, or is not what was written."""


def root() -> Path:
    return Path(os.environ.get("SLT_RUNS") or home() / "runs").absolute()


def canonical(value) -> str:
    """One spelling of a JSON value: keys sorted, numbers as Python writes them, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file that appears whole or not at all; returns its sha256. InputError where the disk is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = len(content) / 2**20
            raise InputError(
                f"{path}: no space left on the disk ({need:.1f} MiB needed); free some, then run it again"
            ) from None
        if isinstance(error, PermissionError | NotADirectoryError) or error.errno == errno.EROFS:
            raise InputError(
                f"{path}: {error.strerror}; set SLT_RUNS or SLT_FIGURES to a folder that can be written"
            ) from None
        raise
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, value) -> str:
    return write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def sealed(value: dict) -> dict:
    """`value` with a checksum of the rest, for `unseal` to check."""
    return value | {"sha256": digest(value)}


def unseal(path: Path) -> dict:
    """Read what `write_json(path, sealed(value))` wrote. Raises Damaged where it is missing or altered."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        seal = value.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise Damaged(f"{path} is missing or not readable") from None
    if seal != digest(value):
        raise Damaged(f"{path} was altered: its checksum does not match")
    return value


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
        """Write tensors (moved to the CPU) and JSON `metadata`; returns the file's sha256."""
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        return write_bytes(self / name, save(plain, {"json": canonical(metadata or {})}))

    def load(self, name: str, sha256: str | None = None) -> tuple[dict[str, Tensor], dict]:
        """Tensors and metadata of a file. Raises Damaged where it is missing, cut, or not of this checksum."""
        path = self / name
        if sha256 is not None:
            self.verify({name: sha256})
        try:
            with safe_open(path, framework="pt") as file:
                # clones, so that memory is the process's own and aligned as torch aligns it
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
                return tensors, json.loads((file.metadata() or {}).get("json", "{}"))
        except (OSError, SafetensorError, ValueError) as error:
            raise Damaged(f"{path} can't be read: {error}") from None

    def verify(self, sums: Mapping[str, str]) -> None:
        for name, expected in sums.items():
            path = self / name
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                raise Damaged(f"{path} is missing or not readable") from None
            if found != expected:
                raise Damaged(f"{path} is not what was written: its sha256 does not match")

    def drop(self, keep: set[str]) -> None:
        """Remove checkpoints and leftovers that are not in `keep`."""
        for path in self.path.glob("*"):
            stray = path.name.startswith((".theta_", ".resume", ".mask", ".run")) and path.name.endswith(".part")
            if stray or (path.name.startswith("theta_") and path.name not in keep):
                path.unlink(missing_ok=True)

    def record(self) -> dict | None:
        """The whole run's record, every file checked; None for a training that is not finished. Raises Damaged."""
        if not (self / RECORD).exists():
            return None
        record = unseal(self / RECORD)
        self.verify(record["files"])
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
        """Hold the lock `name`: one trains, another waits; the system frees it when its holder dies."""
        path = self.path / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; set SLT_RUNS to a folder that can be written") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def remove(self, train_id: str) -> None:
        shutil.rmtree(self.folder(train_id).path, ignore_errors=True)
