"""Reading the `.pth` files of USF's solver schedules (see `fewstep.torch_archive`)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, cast

from fewstep.errors import FileFormatError
from fewstep.torch_archive import LARGEST, explained, read_archive

WHAT = "a .pth file of a solver schedule"


def read_pth(path: str | Path) -> dict[str, Any]:
    """The record of a solver schedule, tensors as lists; `score` is in it where the file has one.

    Raises:
        FileFormatError: a file that asks for anything but containers, tensors and numbers (the message names it), that
            is damaged, or that holds something else.
    """
    path = Path(path)
    with explained(path, WHAT):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > LARGEST:
                raise FileFormatError(f"{path} is too large for a solver schedule: give one of USF's .pth files")
        found = read_archive(path, WHAT)
        held = found.plain(found.held)
    return record_of(held, str(path))


def record_of(held: Any, where: str) -> dict[str, Any]:
    """The decisions in what a file holds: alone, or beside their score.

    Raises:
        FileFormatError: no decisions.
    """
    score: Any = None
    if isinstance(held, list | tuple) and len(cast(list[Any], held)) == 2:
        held, score = cast(list[Any], held)
    if isinstance(held, dict) and "timesteps" not in held:
        outer = cast(dict[str, Any], held)
        held, score = outer.get("decisions", outer.get("decision")), outer.get("score", outer.get("fid", score))
    if not isinstance(held, dict) or "timesteps" not in held:
        raise FileFormatError(f"{where} holds no solver schedule: it has no timesteps")
    record = cast(dict[str, Any], held)
    return record if score is None else {**record, "score": score}
