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


def entropy(samples: Tensor, *, k: int = 3, block: int = 1024) -> Estimate:
    """Differential entropy of the law behind `samples [n, ...]` in nats (Kozachenko and Leonenko 1987), few
    dimensions only.
    """
    points = as_features(samples.reshape(len(samples), -1), "samples", least=k + 2)
    n, d = points.shape
    distances = (torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist") for rows in points.split(block))
    nearest = torch.cat([d.kthvalue(k + 1, dim=1).values for d in distances])  # the first is the point itself
    if float(nearest.min()) == 0:
        raise ArgumentError(f"more than {k} samples coincide, so their density is infinite; remove copies or raise k")
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
