"""Dynamic programming over a grid of times: the cheapest path of n steps, for every n in one pass.

Knots are numbered from the noisiest, 0, to the last, K - 1. A path of n steps is a list of n + 1 rising numbers from 0
to K - 1. Of paths that cost the same, the one whose first step is the shortest is taken, always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import ArgumentError
from fewstep.times.ends import whole

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Paths:
    """Cheapest paths from every knot to the last.

    Attributes:
        costs: `[n_max + 1, K]` least cost of n steps from a knot to the last; infinite where there is no such path.
        following: `[n_max + 1, K]` the knot after the first of these steps.
    """

    costs: Array
    following: Array

    def path(self, n: int, start: int = 0) -> list[int]:
        """The knots of the cheapest path of n steps.

        Errors: `ArgumentError` when there is none.
        """
        _require(n, self.costs.shape, start, 0 < n < len(self.costs) and bool(np.isfinite(self.costs[n, start])))
        at = [start]
        for steps in range(n, 0, -1):
            at.append(int(self.following[steps, at[-1]]))
        return at


def cheapest(edges: Array, n_max: int, *, discount: float = 1.0) -> Paths:
    """All cheapest paths, in `n_max K^2` additions.

    Args:
        edges: `[K, K]` cost of a step from one knot to another; only the part above the diagonal is read. Costs may be
            negative; infinity forbids a step.
        n_max: largest number of steps.
        discount: the cost of what follows counts so much: `V_n(i) = min_j edges[i, j] + discount V_{n-1}(j)`. Above 1
            later steps weigh more.
    """
    n_max = whole(n_max, "n_max")
    count = len(edges)
    allowed = np.where(np.triu(np.ones((count, count), dtype=bool), 1), edges, np.inf)
    costs = np.full((n_max + 1, count), np.inf)
    costs[0, -1] = 0.0
    following = np.zeros((n_max + 1, count), dtype=int)
    for n in range(1, n_max + 1):
        total = allowed + discount * costs[n - 1]
        following[n] = total.argmin(1)
        costs[n] = total.min(1)
    return Paths(costs, following)


@dataclass(frozen=True)
class PairPaths:
    """Cheapest paths where the cost of a step depends on the step before it.

    Attributes:
        costs: `[n_max + 1]` least cost of n steps from the first knot to the last.
        second: `[n_max + 1]` the knot after the first step.
        following: `[n_max + 1, K, K]` the knot after i, having come from p, with n steps to go from i.
    """

    costs: Array
    second: Array
    following: Array

    def path(self, n: int) -> list[int]:
        """The knots of the cheapest path of n steps.

        Errors: `ArgumentError` when there is none.
        """
        _require(n, self.following.shape, 0, 0 < n < len(self.costs) and bool(np.isfinite(self.costs[n])))
        if n == 1:
            return [0, self.following.shape[1] - 1]
        at = [0, int(self.second[n])]
        for steps in range(n - 1, 0, -1):
            at.append(int(self.following[steps, at[-2], at[-1]]))
        return at


def cheapest_pairs(first: Array, middle: Array, last: Array, n_max: int, *, single: float | None = None) -> PairPaths:
    """All cheapest paths from the first knot to the last, in `n_max K^3` additions: the state is a pair of knots.

    Args:
        first: `[K]` cost of a first step onto each knot.
        middle: `[K, K, K]` cost of a step p -> i -> j, at `[p, i, j]`; only p < i < j < K - 1 is read.
        last: `[K, K]` cost of the last step, i -> K - 1, having come from p, at `[p, i]`.
        n_max: largest number of steps.
        single: cost of one step all the way; `first[K - 1]` by default.
    """
    n_max = whole(n_max, "n_max")
    count = len(first)
    index = np.arange(count)
    rising = index[:, None] < index[None, :]
    inner = rising[:, :, None] & rising[None] & (index < count - 1)
    allowed = np.where(inner, middle, np.inf)
    value = np.where(rising & (index < count - 1), last, np.inf)
    costs = np.full(n_max + 1, np.inf)
    second = np.zeros(n_max + 1, dtype=int)
    following = np.zeros((n_max + 1, count, count), dtype=int)
    following[1] = count - 1
    costs[1] = first[-1] if single is None else single
    onto = np.where((index > 0) & (index < count - 1), first, np.inf)
    for n in range(2, n_max + 1):
        total = onto + value[0]
        second[n], costs[n] = total.argmin(), total.min()
        if n < n_max:
            total = allowed + value[None]
            following[n], value = total.argmin(2), total.min(2)
    return PairPaths(costs, second, following)


def _require(n: int, shape: tuple[int, ...], start: int, known: bool) -> None:
    if not known:
        most = min(shape[0] - 1, shape[1] - 1 - start)
        raise ArgumentError(f"n is {n}: from knot {start} there are paths of 1 to {most} steps")
