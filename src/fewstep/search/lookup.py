"""Integrals of a table of squared distances: the arithmetic behind the KLUB's look-up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fewstep.errors import ArgumentError

Array = npt.NDArray[Any]


class Lookup:
    """KLUB by look-up: the integrals of every column up to every level, and the two partial cells at the ends.

    In numpy: a descent makes thousands of look-ups of a few numbers each, and torch would take most of its time to
        start.
    """

    def __init__(self, ratios: Tensor, gaps: Tensor) -> None:
        self.log, self.gaps = ratios.log().numpy(), gaps.numpy()
        flat, slope = _cell(self.log[:-1], self.log[1:])
        whole = flat[:, None] * self.gaps[:-1] + slope[:, None] * self.gaps[1:]
        self.upto = np.concatenate([np.zeros_like(whole[:1]), whole.cumsum(0)])  # [j, k]: levels 0..j against column k

    def klub(self, low: Array, high: Array) -> Array:
        """KLUB of steps from ratio `high` to `low`, float64 of any shapes that broadcast."""
        a, b = np.broadcast_arrays(np.log(low), np.log(high))
        first, last = self.log[0], self.log[-1]
        if (a < first - 1e-9).any():
            raise ArgumentError(
                f"a step ends at sigma/alpha = {low.min():.4g}, below the table's {np.exp(first):.4g}: "
                "end the grid at t_min"
            )
        b = b.clip(first, last)
        a = np.minimum(a.clip(first), b)
        i, j = self._cell_of(a), self._cell_of(b)
        right = (b - self.log[j]) / (self.log[j + 1] - self.log[j])
        left = 1 - right

        def column(table: Array, row: Array) -> Array:
            return left * table[row, j] + right * table[row, j + 1]

        # Head: from a to the level above it. Middle: whole cells. Tail: from the level below b, where V goes to zero.
        next_level = self.log[i + 1]
        start, stop = column(self.gaps, i), column(self.gaps, i + 1)
        at_a = stop + (next_level - a) / (next_level - self.log[i]) * (start - stop)
        flat, slope = _cell(a, next_level)
        whole = flat * at_a + slope * stop + column(self.upto, j) - column(self.upto, i + 1)
        same = i == j
        edge = np.where(same, a, self.log[j])
        tail = _cell(edge, b)[0] * (b - edge) / (self.log[j + 1] - self.log[j]) * self.gaps[j, j + 1]
        return np.where(same, 0.0, whole) + tail

    def _cell_of(self, x: Array) -> Array:
        return np.clip(np.searchsorted(self.log, x, side="right") - 1, 0, len(self.log) - 2)


def _cell(left: Array, right: Array) -> tuple[Array, Array]:
    """Weights of the values at both ends in the integral of the line between them times exp(-2u) du."""
    x = 2 * (right - left)
    # The integrals of exp(-x) and x exp(-x), by series where the closed forms cancel.
    whole = -np.expm1(-x)
    series = x**2 * (0.5 - x / 3 + x**2 / 8 - x**3 / 30 + x**4 / 144)
    ramp = np.where(x < 1e-2, series, whole - x * np.exp(-x)) / np.maximum(x, 1e-300)
    scale = np.exp(-2 * left) / 2
    return scale * (whole - ramp), scale * ramp
