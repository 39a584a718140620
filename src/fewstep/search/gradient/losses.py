"""Objectives by name, made of what is known about a network's samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.statistics import Features, Statistics
from fewstep.search.gradient.objectives import (
    DISTANCES,
    Along,
    EndPoints,
    FaithfulLoss,
    FeaturePairs,
    FrechetLoss,
    KernelLoss,
    MatchedLoss,
    Objective,
    huber,
)
from fewstep.search.gradient.perceptual import Lpips

NAMES = (*DISTANCES, "lpips", "features", "along", "faithful", "matched", "frechet", "kernel", "neural-solver", "epd")
MOST = 2000
"""Reference features behind a kernel distance."""


def objective(
    name: str,
    *,
    features: Features | None = None,
    reference: Statistics | None = None,
    reference_features: Tensor | None = None,
    feature_name: str = "features",
    shape: Sequence[int] = (),
) -> Objective:
    """The objective of a name.

    Args:
        name: `l2`, `l1`, `log-l2`, `pseudo-huber` and `lpips` (to the teacher's end points), `features` (the same in
            features; L2 where there are none), `along` (its trajectories), `matched` (to the teacher's samples of the
            same noise, as sets of features), `faithful` (the geometric mean of that and of the same in the samples
            themselves), `frechet`, `kernel` (distributions of features), `neural-solver` and `epd` (these papers'
            mixtures).
        features: a differentiable feature network.
        reference: statistics of reference features, for `frechet`.
        reference_features: `[m, d]`, for `kernel`.
        feature_name: of the features, in words.
        shape: of one sample, for `lpips`.

    Errors: `ArgumentError` for another name, or where the features or the package that it needs are not there.
    """
    if (pairs := _of_pairs(name, features, feature_name, shape)) is not None:
        return pairs
    if name not in NAMES:
        raise ArgumentError(f"loss is {name!r}: choose one of {', '.join(NAMES)}")
    if features is None:
        raise ArgumentError(f"loss={name!r} needs a judge with features: give judge=, or a loss to the teacher (l2)")
    if name == "faithful":
        return FaithfulLoss(features, f"faithful Fréchet distance, {feature_name}")
    if name == "matched":
        return MatchedLoss(features, f"matched Fréchet distance, {feature_name}")
    if name == "frechet" and reference is not None:
        return FrechetLoss(features, reference, f"Fréchet distance, {feature_name}")
    if name == "kernel" and reference_features is not None:
        return KernelLoss(features, reference_features[:MOST], f"kernel distance, {feature_name}")
    raise ArgumentError(f"loss={name!r} needs reference features: give a judge that has them, or another loss")


def _of_pairs(name: str, features: Features | None, feature_name: str, shape: Sequence[int]) -> Objective | None:
    """Those that compare each sample with the teacher's; None for other names."""
    if name in DISTANCES:
        return EndPoints(DISTANCES[name], name)
    if name == "lpips":
        return EndPoints(Lpips(shape), "LPIPS")
    if name == "along":
        return Along()
    if name == "neural-solver":
        return Along(EndPoints(huber, "Huber"), weight=1000.0)
    last = EndPoints(DISTANCES["l2"], "l2") if features is None else FeaturePairs(features, f"L2 in {feature_name}")
    if name == "epd":
        return Along(last, weight=1.0 if features is None else 10.0)
    return last if name == "features" else None
