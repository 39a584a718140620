"""Scores by key in a file of JSON lines, which survive crashes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.errors import ArgumentError


class Results:
    """Scores by key in a file of JSON lines, to which each score is added, on disk, before the next one begins.

    A line that a crash cut short is passed over, and the next one begins on a clean line. With `path=None` nothing is
    kept.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._held: dict[str, dict[str, Any]] = {}
        self._torn = False
        if self.path is not None and self.path.exists():
            data = self.path.read_bytes()
            self._torn = bool(data) and not data.endswith(b"\n")
            for line in data.decode("utf-8", "replace").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            record = json.loads(line)
            self._held[record["key"]] = dict(record["scores"])
        except (ValueError, KeyError, TypeError):  # damaged: that score is made again
            return

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All scores, in the order of their making."""
        return iter(self._held.values())

    def get(self, key: str) -> dict[str, Any] | None:
        """The scores under this key, or None."""
        return self._held.get(key)

    def add(self, key: str, scores: dict[str, Any], **about: Any) -> None:
        """Keep the scores; `about` stands beside them for human readers."""
        self._held[key] = scores
        if self.path is None:
            return
        line = json.dumps({"key": key, "scores": scores, **about}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(("\n" if self._torn else "").encode() + line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ArgumentError(
                f"cannot write {self.path}: {error.strerror}; free some space, then start again: what is done is kept"
            ) from error
        self._torn = False
