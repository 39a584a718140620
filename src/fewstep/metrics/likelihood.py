"""Likelihoods and divergences for problems whose density is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import Estimate, as_features, mean_with_error

LogDensity = Callable[[Tensor], Tensor]
"""Samples `[B, ...]` to log densities `[B]`."""


def gaussian_kl(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """`KL(N(mean_a, cov_a) || N(mean_b, cov_b))` in nats; infinite where a is degenerate, refused where b is.

    A linear sampler on a Gaussian problem ends in an exact Gaussian, so this is a quality without sampling error.
    """
    mean_a, cov_a, mean_b, cov_b = (x.detach().to("cpu", torch.float64) for x in (mean_a, cov_a, mean_b, cov_b))
    if mean_a.ndim != 1 or mean_a.shape != mean_b.shape or not cov_a.shape == cov_b.shape == (len(mean_a),) * 2:
        shapes = [tuple(x.shape) for x in (mean_a, cov_a, mean_b, cov_b)]
        raise ArgumentError(f"means and covariances have shapes {shapes}; give [d], [d, d], [d], [d, d]")
    factor, failed = torch.linalg.cholesky_ex(cov_b)
    if int(failed):
        raise ArgumentError(
            "cov_b is not positive definite, so every other Gaussian is infinitely far; give a full-rank covariance"
        )
    half = torch.linalg.solve_triangular(factor, (mean_a - mean_b)[:, None], upper=False)
    relative = torch.linalg.solve_triangular(
        factor, torch.linalg.solve_triangular(factor, cov_a, upper=False).T, upper=False
    )
    eigenvalues = torch.linalg.eigvalsh((relative + relative.T) / 2)
    if float(eigenvalues[0]) <= 0:
        return math.inf
    # log1p keeps the digits of eigenvalues near one: KL of nearly equal Gaussians is second order.
    return 0.5 * float((eigenvalues - 1 - torch.log1p(eigenvalues - 1)).sum() + half.square().sum())


def negative_log_likelihood(samples: Tensor, log_density: LogDensity) -> Estimate:
    """Mean of `-log_density` over `samples [n, ...]` in nats, with its standard error (`problem.log_density` fits
    here).
    """
    values = log_density(samples)
    if values.shape != (len(samples),):
        raise ArgumentError(
            f"log_density returned shape {tuple(values.shape)} for {len(samples)} samples; it must return [B]"
        )
    return mean_with_error(-values)


def entropy(samples: Tensor, *, k: int = 3) -> Estimate:
    """Differential entropy of the law behind `samples [n, ...]` in nats (Kozachenko and Leonenko 1987), few
    dimensions only.
    """
    points = as_features(samples.reshape(len(samples), -1), "samples", least=k + 2)
    n, d = points.shape
    nearest = _to_others(points, k)
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)
    digamma = torch.special.digamma(torch.tensor([n, k], dtype=torch.float64, device="cpu"))
    constant = float(digamma[0] - digamma[1]) + ball
    mean = mean_with_error(d * nearest.log())
    return Estimate(mean.value + constant, mean.standard_error)


def kl_to_density(samples: Tensor, log_density: LogDensity, *, k: int = 3) -> Estimate:
    """`KL(law of samples || density)` in nats: negative log-likelihood less entropy. For low dimension (bias grows
    with d).
    """
    nll, spread = negative_log_likelihood(samples, log_density), entropy(samples, k=k)
    return Estimate(nll.value - spread.value, math.hypot(nll.standard_error, spread.standard_error))


def kl_of_samples(samples: Tensor, reference: Tensor, *, k: int = 3) -> Estimate:
    """`KL(law of samples || law of reference)` in nats from samples `[n, ...]` and `[m, ...]` alone, few dimensions
    only.

    By distances to the k-th neighbour on either side (Perez-Cruz 2008). Samples of one law score about 0, and may
    score less. The standard error is that of a mean over the samples, as if they were independent given the reference.
    """
    a = as_features(samples.reshape(len(samples), -1), "samples", least=k + 2)
    b = as_features(reference.reshape(len(reference), -1), "reference", least=k + 1)
    if a.shape[1] != b.shape[1]:
        raise ArgumentError(
            f"samples have {a.shape[1]} numbers each and reference {b.shape[1]}: give samples of one shape"
        )
    across = _kth_distance(a, b, k)
    if float(across.min()) == 0:
        raise ArgumentError(f"{k} points of reference are samples too: give a reference that was drawn apart")
    mean = mean_with_error(a.shape[1] * (across / _to_others(a, k)).log())
    return Estimate(mean.value + math.log(len(b) / (len(a) - 1)), mean.standard_error)


def _to_others(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour, itself not counted."""
    nearest = _kth_distance(points, points, k + 1)
    if float(nearest.min()) == 0:
        raise ArgumentError(f"more than {k} samples coincide, so their density is infinite; remove copies or raise k")
    return nearest


def _kth_distance(rows: Tensor, points: Tensor, k: int) -> Tensor:
    """Distance `[n]` of each row to the k-th nearest of the points (a tree: in few dimensions n log n)."""
    from scipy.spatial import KDTree

    found = KDTree(points.numpy()).query(rows.numpy(), k=k)[0]
    return torch.as_tensor(found).reshape(len(rows), -1)[:, -1]
