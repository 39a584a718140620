"""One writer per study: a lock beside the file, which the system drops when its holder dies, however it dies."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewstep.errors import StudyError

if sys.platform == "win32":
    import msvcrt

    def _try(handle: int) -> None:
        # Beyond the text, which others may want to read meanwhile.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """Held from construction to `release`.

    Raises:
        StudyError: another process holds it (the message names it), or no file can be made there.
    """

    def __init__(self, study: Path) -> None:
        self.path = lock_path(study)
        self._handle: int | None = None
        while self._handle is None:
            self._handle = self._taken(study)
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.write(self._handle, json.dumps(me).encode())

    def _taken(self, study: Path) -> int | None:
        """The locked handle; None when its file was removed by an earlier holder in between."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StudyError(
                f"cannot write beside {study}: {error.strerror}; a running study needs a folder it may write to"
            ) from error
        if not _patiently(handle):
            os.close(handle)
            who = holder(study)
            told = f"process {who['pid']} on {who['host']}, since {who['since']}" if who else "another process"
            raise StudyError(
                f"{study} is being written by {told}: wait for it, stop it, or look with `fewstep search status`"
            ) from None
        try:
            if os.fstat(handle).st_ino == os.stat(self.path).st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)
        return None

    def release(self) -> None:
        """Let others write."""
        if self._handle is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def _patiently(handle: int) -> bool:
    """Whether the lock was got; a reader that only asks `held` has it for a moment."""
    for pause in (0.0, 0.05, 0.1):
        time.sleep(pause)
        with suppress(OSError):
            _try(handle)
            return True
    return False


def lock_path(study: Path) -> Path:
    """Where the lock of a study lies."""
    return study.with_name(study.name + ".lock")


def holder(study: Path) -> dict[str, Any] | None:
    """Who said last that it writes (`pid`, `host`, `since`), or None; whether it still lives is not asked."""
    try:
        return dict(json.loads(lock_path(study).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def held(study: Path) -> bool:
    """Whether somebody writes now."""
    try:
        handle = os.open(lock_path(study), os.O_RDWR)
    except OSError:
        return False
    try:
        _try(handle)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
