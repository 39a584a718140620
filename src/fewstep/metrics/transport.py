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


def sliced_wasserstein(a: Tensor, b: Tensor, *, projections: int = 128, seed: int = 0, p: float = 2.0) -> float:
    """Sliced p-Wasserstein distance of `a [n, ...]` and `b [m, ...]` (Bonneel et al. 2015).

    Trailing dimensions are flattened. `(mean over directions of W_p^p)^(1/p)` with exact one-dimensional distances,
    also for n different from m. The directions depend on the seed alone, so values are comparable between calls.
    """
    if projections < 1:
        raise ArgumentError(f"projections = {projections}: at least 1 is needed")
    if not 1 <= p < math.inf:
        raise ArgumentError(f"p = {p}: give a finite p of at least 1")
    a, b = as_features(a.reshape(len(a), -1), "a"), as_features(b.reshape(len(b), -1), "b")
    if a.shape[1] != b.shape[1]:
        raise ArgumentError(f"a has {a.shape[1]} numbers a sample and b {b.shape[1]}; give samples of one shape")
    n, m = len(a), len(b)
    turn = directions(a.shape[1], projections, seed).T
    sorted_a, sorted_b = (a @ turn).sort(dim=0).values, (b @ turn).sort(dim=0).values
    # Both quantile functions are constant between these edges (in units of 1 / nm, so exact).
    steps = [torch.arange(1, n + 1, device="cpu") * m, torch.arange(1, m + 1, device="cpu") * n]
    edges = torch.cat(steps).unique()
    weight = torch.diff(edges, prepend=edges.new_zeros(1)).double() / (n * m)
    gap = sorted_a[(edges - 1) // m] - sorted_b[(edges - 1) // n]
    return float((gap.abs().pow(p) * weight[:, None]).sum() / projections) ** (1 / p)
