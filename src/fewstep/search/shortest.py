"""The grid of least KLUB, exactly: a shortest path over noise levels. An ablation, not a way to choose times.

The KLUB of a grid is a sum over its steps, so the best grid of n steps on given levels is a shortest path of n edges,
and dynamic programming finds it in one pass for every n and every start (Watson et al., Learning to Efficiently Sample
from Diffusion Probabilistic Models, 2021, who did this with the n-step variational bound; for an ideal denoiser the
two objectives are one).

Do not sample with it. On Gaussian data of deviation 0.5 its ten steps cover sigma = 80 to 0.35 in the first one, and
the KL divergence of their output is five times that of the EDM grid whose KLUB is ten times as large. It shows that
coordinate descent converges to something, and that this is what early stopping avoids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule, as_float64
from fewstep.search.dynamic import Paths, cheapest
from fewstep.search.klub import Gram
from fewstep.times.ends import End, grid, whole
from fewstep.times.grids import finite_ratio


@dataclass(frozen=True)
class ShortestPaths:
    """The grids of least cost from every level down to the lowest, for every number of steps.

    Attributes:
        levels: `[L]` rising ratios.
        paths: over the levels from the highest to the lowest.
    """

    levels: Tensor
    paths: Paths

    def path(self, n: int, start: int = -1) -> Tensor:
        """`[n+1]` ratios, falling, of the best grid of n steps from a level (by default the highest) to the lowest.

        Errors: `ArgumentError` when n exceeds what was computed, or the levels between.
        """
        return self.levels.flip(0)[self.paths.path(n, self._knot(start))]

    def cost(self, n: int, start: int = -1) -> float:
        """The least cost of n steps from a level to the lowest; infinite where there is no such path."""
        return float(self.paths.costs[n, self._knot(start)])

    def _knot(self, level: int) -> int:
        return len(self.levels) - 1 - range(len(self.levels))[level]


def shortest_paths(klub: Callable[[Tensor, Tensor], Tensor], levels: Tensor, n_max: int) -> ShortestPaths:
    """All least-cost grids on given levels, in one pass of `n_max L^2` additions.

    Args:
        klub: `(low, high) -> cost` of steps; `Gram.klub`, or a closed form.
        levels: `[L]` rising ratios, which the grids are made of.
        n_max: largest number of steps.

    Errors: `ArgumentError` for levels that do not rise, or a count that is none.
    """
    levels, n_max = as_float64(levels), whole(n_max, "n_max")
    if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() > 0).all()):
        raise ArgumentError("levels must be at least two rising noise levels")
    count, falling = len(levels), levels.flip(0)
    above, below = torch.triu_indices(count, count, 1, device="cpu")
    edges = torch.full((count, count), torch.inf, dtype=torch.float64, device="cpu")
    edges[above, below] = as_float64(klub(falling[below], falling[above]))
    return ShortestPaths(levels, cheapest(edges.numpy(), n_max))


def shortest(
    gram: Gram, noise: NoiseSchedule, n: int, *, start: float | None = None, end: End = "zero", clip: bool = False
) -> Tensor:
    """Times of least KLUB among all on the table's noise levels and the two ends: a bad sampler, see above.

    Arguments, ends, result `[n+1]` and errors as in `fewstep.times.grid`.
    """

    def curve(first: float, last: float, steps: int) -> Tensor:
        high, low = finite_ratio(noise, first, last)
        between = gram.ratios[(gram.ratios > low * (1 + 1e-9)) & (gram.ratios < high * (1 - 1e-9))]
        levels = torch.cat([low[None], between, high[None]])
        return noise.time_of_ratio(shortest_paths(gram.klub, levels, steps).path(steps))

    return grid(noise, n, curve, start, end, clip)
