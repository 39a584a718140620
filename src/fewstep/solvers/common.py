"""What the sentences share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.rules import Churn, Move, Renoise, SolverSchedule


def intervals(times: Tensor) -> int:
    """Number of steps along the times."""
    return len(times) - 1


def schedule(name: str, citation: str, times: Tensor, moves: Sequence[Move]) -> SolverSchedule:
    """A named schedule."""
    return SolverSchedule(times, tuple(moves), name=name, citation=citation)


def check_order(order: int, highest: int) -> None:
    """Raise unless order is an integer from 1 to `highest`."""
    if not isinstance(order, int) or not 1 <= order <= highest:
        raise ArgumentError(f"order={order!r}: this solver has orders 1 to {highest}")


def orders(n: int, order: int, *, lower_order_final: bool) -> list[int]:
    """1, 2, .. order, .. and, if asked, down again to 1 at the end, as DPM-Solver does for few steps."""
    return [min(order, i + 1, n - i if lower_order_final else order) for i in range(n)]


def churned(times: Tensor, churn: float, between: tuple[float, float], noise_scale: float) -> Iterator[list[Renoise]]:
    """EDM's churn before each step: `gamma = min(churn / n, sqrt(2) - 1)` while the time lies in `between`."""
    if churn < 0:
        raise ArgumentError(f"churn={churn}: give 0 for none, or a positive number")
    gamma = min(churn / intervals(times), math.sqrt(2.0) - 1.0)
    for t in times.detach()[:-1].tolist():
        active = gamma > 0 and between[0] <= t <= between[1]
        yield [Renoise(Churn(gamma), noise_scale)] if active else []
