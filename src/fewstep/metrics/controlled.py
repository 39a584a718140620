"""Fréchet distance of few samples, with a teacher's samples of the same noise as control variates.

A sampler of a few steps takes the same noise to nearly the same image as a long one. Where the moments of the long
one's features are known from many samples, the luck of the few is known too, and most of it can be taken off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.frechet import frechet
from fewstep.metrics.statistics import Statistics, as_features

RIDGE, GROUPS = 0.1, 8


def controlled_frechet(
    features: Tensor, paired: Tensor, population: Statistics, reference: Statistics, *, ridge: float = RIDGE,
    groups: int = GROUPS, seed: int = 0,
) -> float:  # fmt: skip
    """The distance that many samples would have, estimated from few; it can come out below zero.

    The features are regressed on the teacher's of the same noise, `f = t A + e`. Their mean and covariance are moved by
    what A makes of the difference between the teacher's few samples and its population: `m - (m_t - M_t) A` and
    `C - A' (C_t - K_t) A`, eigenvalues below zero set to zero. What is left of the bias, which falls like 1/n, is
    removed by a grouped jackknife: G times the value less G - 1 times the mean of the values without a group.

    Args:
        features: `[n, d]` of the samples; n may be less than d.
        paired: `[n, d]` of the teacher's samples from the same noise and conditions.
        population: of many samples of the teacher.
        reference: of the data.
        ridge: of the regression, in units of the mean variance of the teacher's features.
        groups: of the jackknife; `seed` deals the samples into them.

    Raises:
        ArgumentError: shapes that do not fit, or fewer than two samples for each group.
    """
    ours, theirs = as_features(features, "features", least=2 * groups), as_features(paired, "paired")
    if ours.shape != theirs.shape or not ours.shape[1] == population.d == reference.d:
        raise ArgumentError(
            f"features {tuple(ours.shape)}, paired {tuple(theirs.shape)}, population of {population.d} and reference "
            f"of {reference.d} features do not fit: give one row for each sample, and one feature network for all"
        )
    whole = _moved(ours, theirs, population, reference, ridge)
    group = torch.randperm(len(ours), generator=torch.Generator("cpu").manual_seed(seed), device="cpu") % groups
    parts = [_moved(ours[group != k], theirs[group != k], population, reference, ridge) for k in range(groups)]
    return groups * whole - (groups - 1) * sum(parts) / groups


def _moved(ours: Tensor, theirs: Tensor, population: Statistics, reference: Statistics, ridge: float) -> float:
    centre, mean = theirs.mean(0), ours.mean(0)
    away = theirs - centre
    scatter = away.T @ away
    eye = torch.eye(len(scatter), dtype=scatter.dtype, device="cpu")
    ways = torch.linalg.solve(scatter + ridge * scatter.trace() / len(scatter) * eye, away.T @ (ours - mean))
    moved = mean - (centre - population.mean) @ ways
    cov = ours.T.cov() - ways.T @ (scatter / (len(ours) - 1) - population.cov) @ ways
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    return frechet(Statistics.from_moments(moved, (vectors * values.clamp(min=0)) @ vectors.T), reference)
