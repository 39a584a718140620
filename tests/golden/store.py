"""The golden files: JSON, one table a line, floats as repr (shortest that reads back the same)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def files() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "rosters")


@cache
def read(file: str) -> dict[str, dict[str, Any]]:
    return json.loads((FOLDER / f"{file}.json").read_text())


def roster(host: str) -> list[str]:
    """Every sampler that a host has, by the name it is listed under."""
    return json.loads((FOLDER / "rosters.json").read_text())[host]


def write_roster(host: str, names: list[str]) -> None:
    path = FOLDER / "rosters.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, host: sorted(names)}, indent=1, sort_keys=True) + "\n")


def write(file: str, tables: dict[str, dict[str, Any]]) -> None:
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(table, separators=(',', ':'))}" for name, table in sorted(tables.items())
    )
    (FOLDER / f"{file}.json").write_text("{\n" + lines + "\n}\n")
    read.cache_clear()


def record(
    weights: Any, *, host: str, sampler: str, options: dict[str, Any], steps: Tensor, last: tuple[float, float]
) -> dict[str, Any]:
    """A table as plain numbers; rows are cut after their last non-zero entry.

    Args:
        weights: what `fewstep.probe.probe` read.
        host: its name and version.
        sampler: the function or class.
        options: what it was called with.
        steps: the host's grid.
        last: the alpha and sigma of the sample.
    """
    rounding = max(weights.defect, 1e-15)
    digits = 9 if rounding > 1e-9 else 17  # float32 hosts have nothing beyond

    def number(value: float) -> float:
        return float(f"{value:.{digits}g}")

    def rows(table: Tensor) -> list[list[float]]:
        cut = [row[: int((row != 0).nonzero().max()) + 1] if bool((row != 0).any()) else row[:0] for row in table]
        return [[number(v) for v in row.tolist()] for row in cut]

    return {
        "host": host,
        "sampler": sampler,
        "options": options,
        "rounding": float(f"{rounding:.1e}"),
        "told": [row.told for row in weights.calls],
        "alpha": [*(row.alpha for row in weights.calls), last[0]],
        "sigma": [*(row.sigma for row in weights.calls), last[1]],
        "start": [number(v) for v in weights.start.tolist()],
        "outputs": rows(weights.outputs),
        "noise": rows(weights.noise) if weights.noise.shape[1] else [[] for _ in weights.start],
        "steps": torch.as_tensor(steps, dtype=torch.float64).tolist(),
    }
