"""Fréchet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.jackknife import Jackknife, deal
from fewstep.metrics.statistics import Estimate, Statistics, as_features


def _factor(cov: Tensor) -> Tensor:
    """L with `L L' = cov`. Eigenvalues that are rounding noise count as zero: their square roots would be 1e-8, not
    1e-16.
    """
    values, vectors = torch.linalg.eigh(cov)
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(cov.dtype).eps
    return vectors * torch.where(values > floor, values, 0.0).sqrt()


def _distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, factor_b: Tensor) -> float:
    overlap = torch.linalg.svdvals(factor_b.T @ _factor(cov_a)).sum()
    value = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(float(value), 0.0)


def frechet(a: Statistics, b: Statistics) -> float:
    """`|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`: the squared 2-Wasserstein distance of the fitted Gaussians.

    (Dowson and Landau 1982; with Inception features it is FID, Heusel et al. 2017.) The trace of the square root is the
    sum of the singular values of `L_b' L_a` with `C = L L'`: unlike the usual matrix square root it needs no offset for
    rank-deficient covariances (fewer samples than features) and gives zero for equal inputs to rounding.

    The value is biased upwards by a term that falls like 1/n: compare only values of equal n.
    """
    if a.d != b.d:
        raise ArgumentError(f"a has {a.d} features and b {b.d}; use one feature network for both")
    cov_b = b.cov
    return _distance(a.mean, a.cov, b.mean, cov_b, _factor(cov_b))


def frechet_jackknife(features: Tensor, reference: Statistics, *, groups: int = 24, seed: int = 0) -> Jackknife:
    """Fréchet distance of `features [n, d]` to `reference`, and the same without each of `groups` groups of samples.

    That costs `groups` decompositions of d x d matrices whatever n is, where a bootstrap would pass over all samples a
    hundred times. The reference is taken as exact.
    """
    matrix = as_features(features, "features", least=2 * groups)
    if matrix.shape[1] != reference.d:
        raise ArgumentError(
            f"features has {matrix.shape[1]} columns, reference {reference.d}; use one feature network for both"
        )
    n, mean = len(matrix), matrix.mean(dim=0)
    centred = matrix - mean
    scatter = centred.T @ centred
    cov_b = reference.cov
    factor_b = _factor(cov_b)
    without: list[float] = []
    for rows in deal(n, groups, seed):
        left_out, kept = centred[rows], n - len(rows)
        shift = -left_out.sum(dim=0) / kept
        cov = (scatter - left_out.T @ left_out - kept * torch.outer(shift, shift)) / (kept - 1)
        without.append(_distance(mean + shift, cov, reference.mean, cov_b, factor_b))
    value = _distance(mean, scatter / (n - 1), reference.mean, cov_b, factor_b)
    return Jackknife(value, torch.tensor(without, dtype=torch.float64, device="cpu"))


def frechet_with_error(features: Tensor, reference: Statistics, *, groups: int = 24, seed: int = 0) -> Estimate:
    """Fréchet distance of `features [n, d]` to `reference`, with the standard error that sampling `features` gives it.

    The error is that of `frechet_jackknife`, and is itself uncertain by about `1 / sqrt(2 groups)`.
    """
    return frechet_jackknife(features, reference, groups=groups, seed=seed).estimate
