"""Write files so that a reader sees the old content or the new one, never a part (temporary file, fsync, rename)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fewstep.errors import ArgumentError


def atomic_write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` atomically and durably; missing folders are made. Returns the path.

    The temporary file lies in the same folder (a rename across file systems is a copy, which a crash can tear).
    Errors: `ArgumentError` when the place cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise ArgumentError(
            f"cannot write {path}: {error.strerror}; give a path in a folder you may write to"
        ) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives 0600; a result is an ordinary file, so it gets what open() would have given it.
        temporary.chmod(_permissions(path))
        temporary.replace(path)
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror}; free some space or give another path") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def atomic_write_text(path: str | Path, text: str) -> Path:
    """`atomic_write_bytes` of UTF-8 text; line ends are kept as they are."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def _permissions(path: Path) -> int:
    """Mode of the file to be replaced, else the default of a new file under the current umask."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the platform can open a folder (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
