"""Kernel distance: squared maximum mean discrepancy with a polynomial kernel, unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import Estimate, as_features

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial(a: Tensor, b: Tensor) -> Tensor:
    """The kernel of KID, `(a . b / d + 1)^3`, `[n, m]`."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _row_sums(a: Tensor, b: Tensor, kernel: Kernel, *, same: bool = False, block: int = 2048) -> Tensor:
    """Sum over b of the kernel with each row of a; within the `same` set, a point's kernel with itself is left out."""
    sums: list[Tensor] = []
    for start in range(0, len(a), block):
        matrix = kernel(a[start : start + block], b)
        if same:
            rows = torch.arange(len(matrix), device="cpu")
            matrix[rows, start + rows] = 0
        sums.append(matrix.sum(dim=1))
    return torch.cat(sums)


def kernel_distance(a: Tensor, b: Tensor, *, kernel: Kernel = polynomial) -> Estimate:
    """Kernel distance between features `a [n, d]` and `b [m, d]` (KID, Bińkowski et al. 2018), with its standard error.

    The unbiased estimate over all pairs, not over random subsets: it may be slightly negative, and unlike the Fréchet
    distance its mean does not depend on the number of samples. The error is the two-sample delete-one jackknife
    (Arvesen 1969), which needs only the row sums of the kernel matrices; these are formed in blocks.
    """
    a, b = as_features(a, "a", least=3), as_features(b, "b", least=3)
    if a.shape[1] != b.shape[1]:
        raise ArgumentError(f"a has {a.shape[1]} features and b {b.shape[1]}; use one feature network for both")
    n, m = len(a), len(b)
    rows_a, rows_b = _row_sums(a, a, kernel, same=True), _row_sums(b, b, kernel, same=True)
    cross_a, cross_b = _row_sums(a, b, kernel), _row_sums(b, a, kernel)
    sum_a, sum_b, cross = rows_a.sum(), rows_b.sum(), cross_a.sum()
    within_a, within_b = sum_a / (n * (n - 1)), sum_b / (m * (m - 1))
    value = within_a + within_b - 2 * cross / (n * m)
    without_a = (sum_a - 2 * rows_a) / ((n - 1) * (n - 2)) + within_b - 2 * (cross - cross_a) / ((n - 1) * m)
    without_b = (sum_b - 2 * rows_b) / ((m - 1) * (m - 2)) + within_a - 2 * (cross - cross_b) / (n * (m - 1))
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    return Estimate(float(value), math.sqrt(float(variance)))
