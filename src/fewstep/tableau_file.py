"""The file of a table: versioned JSON, every float64 as `repr` writes it; tensors in a safetensors file beside it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import noise as noise_schedules
from fewstep.errors import FileFormatError, TableauError
from fewstep.files import atomic_write_bytes, atomic_write_text
from fewstep.rules import SolverSchedule
from fewstep.tableau import Tableau

FORMAT = "fewstep.tableau"
VERSION = 1
_KEYS = {"time", "alpha", "sigma", "evaluated", "model_time", "note", "states", "outputs", "noise", "constants"}
_MATRICES = {"states": "A", "outputs": "B", "noise": "C", "constants": "K"}


def to_dict(t: Tableau) -> dict[str, Any]:
    """The JSON record; weights with trailing dimensions and constants are left to the safetensors file."""
    rows = []
    for i in range(t.rows):
        row: dict[str, Any] = {
            "time": t.times[i].item(),
            "alpha": t.alpha[i].item(),
            "sigma": t.sigma[i].item(),
            "evaluated": t.evaluated[i],
        }
        if t.model_times[i].item() != row["time"]:
            row["model_time"] = t.model_times[i].item()
        for key, name in _MATRICES.items():
            matrix = getattr(t, name).detach()
            if matrix.ndim == 2:
                row[key] = {str(j): matrix[i, j].item() for j in matrix[i].nonzero()[:, 0].tolist()}
        if t.notes[i]:
            row["note"] = t.notes[i]
        rows.append({k: v for k, v in row.items() if v != {}})
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": t.name,
        "nfe": t.nfe,
        "noise": None if t.noise is None else t.noise.to_dict(),
        "channels": t.channels,
        "widths": {"noise": t.C.shape[1], "constants": t.K.shape[1]},
        "rows": rows,
        "expected": list(t.expected),
        "schedule": None if t.schedule is None else t.schedule.to_dict(),
        "meta": t.meta,
    }


def _tensors(t: Tableau) -> dict[str, Tensor]:
    found = {f"constant.{q}": c.detach().cpu().contiguous() for q, c in enumerate(t.constants)}
    return found | {name: m.detach().contiguous() for name in _MATRICES.values() if (m := getattr(t, name)).ndim > 2}


def save(t: Tableau, path: Path) -> None:
    """Write the record to `path`, any tensors beside it with suffix .safetensors; each file whole or not at all."""
    from safetensors.torch import save as pack

    record, tensors = to_dict(t), _tensors(t)
    if tensors:
        blob = pack(tensors)
        beside = path.with_suffix(".safetensors")
        record["tensors"] = {"file": beside.name, "sha256": hashlib.sha256(blob).hexdigest()}
        atomic_write_bytes(beside, blob)
    try:
        text = json.dumps(record, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TableauError(
            f"this table cannot be written as JSON ({error}): meta must hold plain JSON values, and finite numbers"
        ) from error
    atomic_write_text(path, text + "\n")


def load(path: Path) -> Tableau:
    """Read and check a file that `save` wrote."""
    from safetensors.torch import load as unpack

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"{path} is not JSON ({error}): it may have been cut short; save the table again"
        ) from error
    if not isinstance(record, dict):
        raise FileFormatError(f"{path} holds no table: expected a JSON object written by Tableau.save")
    tensors: dict[str, Tensor] = {}
    if record.get("tensors"):
        beside = path.parent / Path(record["tensors"]["file"]).name
        blob = beside.read_bytes() if beside.exists() else None
        if blob is None or hashlib.sha256(blob).hexdigest() != record["tensors"]["sha256"]:
            raise FileFormatError(
                f"{beside} is missing or belongs to another table: copy both files that Tableau.save wrote"
            )
        tensors = unpack(blob)
    return from_dict(record, tensors)


def from_dict(record: dict[str, Any], tensors: dict[str, Tensor]) -> Tableau:
    """The table of a record; everything is checked before it exists."""
    if record.get("format") != FORMAT:
        raise FileFormatError(f"not a table: format is {record.get('format')!r}, expected {FORMAT!r}")
    version = record.get("version")
    if not isinstance(version, int) or version < 1 or version > VERSION:
        raise FileFormatError(f"table of version {version!r}; this fewstep reads up to {VERSION}: update fewstep")
    try:
        rows, channels = list(record["rows"]), int(record["channels"])
        n, widths = len(rows), record["widths"]
        for i, row in enumerate(rows):
            if unknown := set(row) - _KEYS:
                raise FileFormatError(
                    f"row {i} has an unknown part {min(unknown)!r}: the file is damaged, save it again"
                )
        columns = {
            "states": n,
            "outputs": n * channels,
            "noise": int(widths["noise"]),
            "constants": int(widths["constants"]),
        }
        matrices = {
            name: tensors[name] if name in tensors else _matrix(rows, key, columns[key])
            for key, name in _MATRICES.items()
        }
        constants = tuple(tensors[f"constant.{q}"] for q in range(columns["constants"]))
        vectors = {k: _vector(rows, k) for k in ("time", "alpha", "sigma")}
        told = _vector([{"time": r.get("model_time", r["time"])} for r in rows], "time")
        noise = None if record["noise"] is None else noise_schedules.from_dict(record["noise"])
        schedule = None if record.get("schedule") is None else SolverSchedule.from_dict(record["schedule"])
        return Tableau(
            A=matrices["A"], B=matrices["B"], C=matrices["C"], K=matrices["K"], times=vectors["time"],
            alpha=vectors["alpha"], sigma=vectors["sigma"], model_times=told, constants=constants,
            evaluated=tuple(bool(r["evaluated"]) for r in rows), channels=channels, noise=noise, schedule=schedule,
            expected=tuple(record.get("expected", ())), notes=tuple(str(r.get("note", "")) for r in rows),
            name=str(record.get("name", "")), meta=dict(record.get("meta") or {}),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"damaged table: {type(error).__name__} {error}; save it again") from error


def _vector(rows: list[dict[str, Any]], key: str) -> Tensor:
    for i, row in enumerate(rows):
        if key not in row or not _number(row[key]):
            raise TableauError(
                f"row {i} has no finite number {key!r} (found {row.get(key)!r}): the file is damaged, save it again"
            )
    return torch.tensor([row[key] for row in rows], dtype=torch.float64, device="cpu")


def _matrix(rows: list[dict[str, Any]], key: str, width: int) -> Tensor:
    matrix = torch.zeros(len(rows), width, dtype=torch.float64, device="cpu")
    for i, row in enumerate(rows):
        for j, weight in row.get(key, {}).items():
            if not str(j).isdigit() or int(j) >= width:
                raise TableauError(
                    f"row {i}, column {j} of {key!r} lies outside the table ({width} columns): the file is damaged, "
                    "save it again"
                )
            if not _number(weight):
                raise TableauError(
                    f"row {i}, column {j} of {key!r} is {weight!r}, not a finite number: the file is damaged, save it "
                    "again"
                )
            matrix[i, int(j)] = weight
    return matrix


def _number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
