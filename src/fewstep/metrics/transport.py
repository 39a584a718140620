"""Sliced Wasserstein distance: one-dimensional optimal transport along fixed random directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import as_features


def directions(d: int, n: int, seed: int) -> Tensor:
    """`n` unit vectors `[n, d]`, uniform on the sphere, the same for the same seed."""
    normal = torch.randn(n, d, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")
    return normal / normal.norm(dim=1, keepdim=True)


class Sliced:
    """Sliced p-Wasserstein distances to one set `b [m, ...]`, whose projections are sorted once.

    `Sliced(b)(a)` is `sliced_wasserstein(a, b)`; arguments and errors are the same.
    """

    def __init__(self, b: Tensor, *, projections: int = 128, seed: int = 0, p: float = 2.0) -> None:
        if projections < 1:
            raise ArgumentError(f"projections = {projections}: at least 1 is needed")
        if not 1 <= p < math.inf:
            raise ArgumentError(f"p = {p}: give a finite p of at least 1")
        b = as_features(b.reshape(len(b), -1), "b")
        self.p, self._m, self._d = p, *b.shape
        self._turn = directions(self._d, projections, seed).T
        self._sorted = (b @ self._turn).sort(dim=0).values

    def __call__(self, a: Tensor) -> float:
        """The distance of `a [n, ...]`."""
        a = as_features(a.reshape(len(a), -1), "a")
        if a.shape[1] != self._d:
            raise ArgumentError(f"a has {a.shape[1]} numbers a sample and b {self._d}; give samples of one shape")
        n, m = len(a), self._m
        ours = (a @ self._turn).sort(dim=0).values
        # Both quantile functions are constant between these edges (in units of 1 / nm, so exact).
        steps = [torch.arange(1, n + 1, device="cpu") * m, torch.arange(1, m + 1, device="cpu") * n]
        edges = torch.cat(steps).unique()
        weight = torch.diff(edges, prepend=edges.new_zeros(1)).double() / (n * m)
        gap = ours[(edges - 1) // m] - self._sorted[(edges - 1) // n]
        return float((gap.abs().pow(self.p) * weight[:, None]).sum() / self._turn.shape[1]) ** (1 / self.p)


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 128, seed: int = 0, p: float = 2.0) -> float:
    """Sliced p-Wasserstein distance of `a [n, ...]` and `b [m, ...]` (Bonneel et al. 2015).

    Trailing dimensions are flattened. `(mean over directions of W_p^p)^(1/p)` with exact one-dimensional distances,
    also for n different from m. The directions depend on the seed alone, so values are comparable between calls.
    """
    return Sliced(b, projections=projections, seed=seed, p=p)(a)
