"""Standard errors of scores of a set: the delete-one-group jackknife (Efron and Tibshirani 1993, chapter 11)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import Estimate


class Jackknife(NamedTuple):
    """A score of a set of samples, and the same without each of some groups of them."""

    value: float
    without: Tensor
    """`[groups]`, float64"""

    @property
    def estimate(self) -> Estimate:
        """The score with its standard error."""
        return Estimate(self.value, _spread(self.without))

    def less(self, other: Jackknife) -> Estimate:
        """The difference of two scores on the same samples (or on samples of the same noise), dealt into the same
        groups: what both owe to those samples cancels, so it is surer than its terms.
        """
        if len(self.without) != len(other.without):
            raise ArgumentError(f"{len(self.without)} groups less {len(other.without)}: deal both samples alike")
        return Estimate(self.value - other.value, _spread(self.without - other.without))


def deal(n: int, groups: int, seed: int = 0) -> tuple[Tensor, ...]:
    """`n` samples dealt at random into groups: neighbours may be of neighbouring classes."""
    if groups < 2:
        raise ArgumentError(f"groups = {groups}: a jackknife needs at least 2")
    order = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return order.tensor_split(groups)


def jackknife(score: Callable[[Tensor], float], n: int, *, groups: int = 16, seed: int = 0) -> Jackknife:
    """The jackknife of a score, which takes the rows `[k]` (indices below `n`) that it should look at."""
    every = torch.arange(n, device="cpu")
    kept = torch.ones(n, dtype=torch.bool, device="cpu")
    without: list[float] = []
    for rows in deal(n, groups, seed):
        kept[rows] = False
        without.append(score(every[kept]))
        kept[rows] = True
    return Jackknife(score(every), torch.tensor(without, dtype=torch.float64, device="cpu"))


def _spread(without: Tensor) -> float:
    return math.sqrt((len(without) - 1) * float(without.var(correction=0)))
