"""Where to look next, from what was scored so far: a Gaussian process over grids, and expected improvement.

A grid is a point, the logarithms of its inner noise levels. On fixed seeds a score is a smooth, deterministic
function of the point, so a few dozen scores say a good deal about the places between and a little beyond (Jones,
Schonlau & Welch, "Efficient Global Optimization of Expensive Black-Box Functions", 1998). OYS (Zhang, 2026) models the
scores of times so, from random ones; here the hand-crafted grids, DMN's and AYS's are the first points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

SCALES = (0.5, 0.8, 1.2, 2.0, 3.0)
"""Length scales that are tried, in spreads of the points."""
NOISES = (1e-3, 1e-2, 1e-1)
"""Parts of the variance that are tried as noise."""
DRAWN = 3000
STEPS = (0.08, 0.2, 0.45)
"""Spreads of the proposals around the best points, in spreads of the points."""
PARENTS = 5


class Process:
    """A Gaussian process with a Matérn 5/2 kernel; length scale and noise of the greatest likelihood.

    Args:
        points: `[m, d]`.
        values: `[m]`.
        noise: `[m]` relative variances of the noise of each value.
        spread: `[d]` unit of length in each coordinate.
    """

    def __init__(self, points: Array, values: Array, noise: Array, spread: Array) -> None:
        self.mean, self.scale = float(values.mean()), max(float(values.std()), 1e-12)
        target = (values - self.mean) / self.scale
        best = -np.inf
        for length in SCALES:
            scaled = points / (spread * length)
            base = _matern(scaled, scaled)
            for level in NOISES:
                root = np.linalg.cholesky(base + np.diag(level * noise + 1e-8))
                half = np.linalg.solve(root, target)
                likelihood = -0.5 * half @ half - np.log(np.diag(root)).sum()
                if likelihood > best:
                    best = likelihood
                    self.root, self.half, self.points, self.length = root, half, scaled, spread * length

    def predict(self, places: Array) -> tuple[Array, Array]:
        """Mean and standard deviation `[k]` at places `[k, d]`."""
        cross = np.linalg.solve(self.root, _matern(self.points, places / self.length))
        deviation = np.sqrt(np.maximum(1 - (cross**2).sum(0), 1e-12))
        return self.mean + self.scale * (self.half @ cross), self.scale * deviation


def propose(
    points: Array,
    values: Array,
    noise: Array,
    legal: Callable[[Array], npt.NDArray[np.bool_]],
    rng: np.random.Generator,
) -> Array | None:
    """The place with the greatest expected improvement over the best value, among many drawn around the best points.

    Args:
        points: `[m, d]` scored points.
        values: `[m]` scores, lower is better; scores worse than the median count as the median, whose neighbourhood is
            of no interest and would only bend the surface.
        noise: `[m]` relative noise variances of the scores.
        legal: which of `[k, d]` places may be proposed.
        rng: of the drawing.

    Returns:
        `[d]`, or None when no legal place was drawn.
    """
    order = np.argsort(values)
    spread = points[order[: max(4, len(order) // 2)]].std(0) + 1e-3
    process = Process(points, np.minimum(values, np.median(values)), noise, spread)
    places = _drawn(points[order[:PARENTS]], spread, rng)
    low, high = points.min(0) - spread, points.max(0) + spread
    places = places[legal(places) & (places >= low).all(1) & (places <= high).all(1)]
    if not len(places):
        return None
    mean, deviation = process.predict(places)
    least = process.predict(points)[0].min()
    return places[_improvement(least - mean, deviation).argmax()]


def _drawn(parents: Array, spread: Array, rng: np.random.Generator) -> Array:
    """Places around the parents, and on the lines through two of them."""
    one, two = rng.integers(len(parents), size=(2, DRAWN))
    share = rng.uniform(-0.5, 1.5, (DRAWN, 1)) * (rng.random((DRAWN, 1)) < 0.5)
    step = rng.choice(STEPS, (DRAWN, 1)) * (rng.random((DRAWN, parents.shape[1])) < 0.7)
    return (1 - share) * parents[one] + share * parents[two] + step * spread * rng.standard_normal((DRAWN, len(spread)))


def _improvement(gain: Array, deviation: Array) -> Array:
    from scipy.special import ndtr

    z = gain / deviation
    return gain * ndtr(z) + deviation * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def _matern(one: Array, two: Array) -> Array:
    square: Any = (one**2).sum(1)[:, None] + (two**2).sum(1) - 2 * one @ two.T
    r = np.sqrt(5 * np.maximum(square, 0))
    return (1 + r + r**2 / 3) * np.exp(-r)
