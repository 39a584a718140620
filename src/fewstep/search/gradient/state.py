"""Where a descent is, in forms that a file can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Progress:
    """Where a descent is; everything that must survive a kill, besides tensors."""

    iteration: int = 0
    total: int = 0
    best: float = math.inf
    at: int = 0
    waiting: int = 0
    slower: float = 1.0
    failed: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    notes: list[str] = field(default_factory=list[str])


def optimiser_state(
    tensors: dict[str, Tensor], part: str, group: str, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """What an optimiser takes, from the tensors of a file."""
    whole = {**optimiser.state_dict(), "state": dict[int, dict[str, Tensor]]()}
    for key, value in tensors.items():
        if key.startswith(f"{part}.{group}."):
            _, _, place, name = key.split(".", 3)
            whole["state"].setdefault(int(place), {})[name] = value
    return whole


def finite(value: float) -> float | None:
    """The value, or None if it is none: JSON knows no infinity."""
    return value if math.isfinite(value) else None
