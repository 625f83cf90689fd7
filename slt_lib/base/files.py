"""Files that appear whole or not at all, and what to tell a person where they can't."""

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from pathlib import Path

from slt_lib.base.errors import InputError


def write_bytes(path: Path, content: bytes) -> str:
    """Write a file that appears whole or not at all; returns its sha256.

    Raises InputError if the file cannot be written.
    """
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
        raise InputError(f"{path}: {remedy(error, len(content))}") from None
    return hashlib.sha256(content).hexdigest()


def remedy(error: OSError, size: int = 0, places: str = "SLT_RUNS or SLT_FIGURES") -> str:
    """What went wrong with a file that is written, and what a person can do about it."""
    need = f"{size / 2**20:.1f} MiB needed"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk ({need}); free some, then run it again"
    if error.errno == errno.EFBIG:
        return f"larger than a file may be here ({need}); raise that limit (ulimit -f), then run it again"
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
        return f"can't be locked ({error.strerror}); set {places} to a local disk"
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
        return f"{error.strerror}; set {places} to a folder that can be written"
    return f"can't be written ({error.strerror}); check the disk, then run it again"


def sweep(folder: Path, age: float = 0.0) -> None:
    """Remove what a kill left of files half-written in `folder`, where that is older than `age` seconds."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # its writer may be done with it just now
            if time.time() - path.lstat().st_mtime >= age:
                path.unlink()
