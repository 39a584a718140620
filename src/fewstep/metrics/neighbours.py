"""Precision, recall, density and coverage: how two sets of features overlap, by nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import as_features


class PrecisionRecall(NamedTuple):
    """Shares in 0..1 (density may exceed 1)."""

    precision: float
    """of generated samples that lie within the reference manifold (quality)"""
    recall: float
    """of reference samples that lie within the generated manifold (variety)"""
    density: float
    """mean number of reference balls around a generated sample, over k (precision that outliers cannot inflate)"""
    coverage: float
    """of reference samples whose ball holds a generated sample (recall that generated outliers cannot inflate)"""


def _radii(points: Tensor, k: int, block: int) -> Tensor:
    """Distance of each point to its k-th nearest other point."""
    found = []
    for start in range(0, len(points), block):
        distance = torch.cdist(points[start : start + block], points)
        rows = torch.arange(len(distance), device="cpu")
        distance[rows, start + rows] = -1.0  # itself comes first, whatever rounding says
        found.append(distance.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)


def precision_recall(generated: Tensor, reference: Tensor, *, k: int = 3, block: int = 1024) -> PrecisionRecall:
    """Precision and recall of `generated [n, d]` against `reference [m, d]` (Kynkäänniemi et al. 2019, equation 1).

    A set's manifold is the union of balls around its points that reach to the k-th nearest other point. Density and
    coverage (Naeem et al. 2020, equations 4 and 6) come from the same distances, at the same k.
    """
    fake, real = as_features(generated, "generated"), as_features(reference, "reference")
    if fake.shape[1] != real.shape[1]:
        raise ArgumentError(
            f"generated has {fake.shape[1]} features and reference {real.shape[1]}; use one feature network for both"
        )
    fewest = min(len(fake), len(real))
    if not 1 <= k < fewest:
        raise ArgumentError(
            f"k = {k} with {fewest} samples in the smaller set; k must be at least 1 and less than that"
        )
    centre = real.mean(dim=0)  # a common shift changes no distance, and leaves more digits to the differences
    fake, real = fake - centre, real - centre
    fake_radii, real_radii = _radii(fake, k, block), _radii(real, k, block)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device="cpu")
    precise = around = 0
    for rows, radii in zip(fake.split(block), fake_radii.split(block), strict=True):
        distance = torch.cdist(rows, real)
        in_real = distance <= real_radii
        precise += int(in_real.any(dim=1).sum())
        around += int(in_real.sum())
        covered |= in_real.any(dim=0)
        recalled |= (distance <= radii[:, None]).any(dim=0)
    n, m = len(fake), len(real)
    return PrecisionRecall(precise / n, int(recalled.sum()) / m, around / (k * n), int(covered.sum()) / m)
