"""ERA-Solver with its choices made beforehand, on calibration samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import as_float64
from fewstep.randomness import START, CalibrationSeeds, unit_noise
from fewstep.rules import SolverSchedule, Step
from fewstep.solvers.common import check_order, intervals, schedule

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

CITATION = (
    "Li, Liu, Li, Tan 2023, ERA-Solver: Error-Robust Adams Solver for Fast Sampling of Diffusion Probabilistic Models"
)
IMPLICIT_ADAMS = (9 / 24, 19 / 24, -5 / 24, 1 / 24)
"""Weights on the predicted noise, and on the three newest observed ones."""


def era_calibrated(
    times: Tensor, denoiser: Denoiser, *, seeds: CalibrationSeeds, order: int = 4, scale: float | None = None,
    condition: Any = None,
) -> SolverSchedule:  # fmt: skip
    """ERA-Solver (Li et al. 2023) as a table: its bases are chosen once, by the error measured on calibration seeds.

    At step i the noise at the next time is predicted by Lagrange interpolation in time through `order` of the observed
    noises, and used in the implicit Adams formula. Which ones: positions `floor((m / order)^(error / scale) i)`, m = 1
    to order, where `error` is the distance between the noise predicted for this step and the one then observed: a
    large error spreads the bases over the past, a small one keeps to the newest. The original measures the error on the
    batch that it is sampling; here it is measured once, so that the result is a table. The rule is reconstructed from
    secondary sources (the authors released no code), and the mean over samples is ours.

    Args:
        times: the grid.
        denoiser: the network; `len(times) - 1` calls for each calibration seed are made here.
        seeds: calibration seeds.
        order: number of bases, 3 or more; the first `order - 1` steps are DDIM.
        scale: the paper's lambda, in units of the norm of one sample; by default 0.09 sqrt(dimension), which is its 5
            for CIFAR-10.
        condition: passed on to the network.
    """
    check_order(order, 6)
    if order < 3:
        raise ArgumentError(f"order={order}: the implicit Adams formula needs at least 3 observed noises")
    seeds = CalibrationSeeds.require(seeds, "seeds")
    scale = 0.09 * math.sqrt(math.prod(denoiser.shape)) if scale is None else scale
    if not scale > 0:
        raise ArgumentError(f"scale={scale}: give a positive number, or None for the default")
    with torch.no_grad():
        chosen = _choose(as_float64(times), denoiser, seeds, order, scale, condition)
    n = intervals(times)
    steps = [Step("noise", weights=w) if w else Step("noise") for w in chosen[:n]]
    return schedule("era_calibrated", CITATION, times, steps)


def _choose(
    times: Tensor, denoiser: Denoiser, seeds: CalibrationSeeds, order: int, scale: float, condition: Any
) -> list[tuple[tuple[int, float], ...]]:
    """The weights of every step on the observed noises (empty for the DDIM steps), found along the run itself."""
    alpha, sigma = denoiser.noise.alpha(times).tolist(), denoiser.noise.sigma(times).tolist()
    t = times.tolist()
    x = (unit_noise(seeds, tuple(denoiser.shape), START) * sigma[0]).to(device=denoiser.device, dtype=denoiser.dtype)
    seen: list[Tensor] = []
    predicted: Tensor | None = None
    error = scale
    weights: list[tuple[tuple[int, float], ...]] = []
    for i in range(len(t) - 1):
        seen.append((x - alpha[i] * denoiser(x, t[i], condition)) / sigma[i])
        if predicted is not None:
            error = (seen[-1] - predicted).flatten(1).norm(dim=1).mean().item()
        if i < order - 1:
            used, mixture = {i: 1.0}, ()
        else:
            guess = lagrange(t[i + 1], {j: t[j] for j in bases(i, order, error / scale)})
            predicted = _mix(guess, seen)
            used = {j: IMPLICIT_ADAMS[0] * w for j, w in guess.items()}
            for back, w in enumerate(IMPLICIT_ADAMS[1:]):
                used[i - back] = used.get(i - back, 0.0) + w
            mixture = tuple((j - i - 1, w) for j, w in sorted(used.items()))
        weights.append(mixture)
        eps = _mix(used, seen)
        x = alpha[i + 1] * (x - sigma[i] * eps) / alpha[i] + sigma[i + 1] * eps
    return weights


def bases(i: int, order: int, exponent: float) -> list[int]:
    """Positions among the observed noises 0..i: a power of equal spacing, the newest always, no position twice."""
    chosen = [math.floor((m / order) ** exponent * i) for m in range(1, order)] + [i]
    for m in range(order - 2, -1, -1):
        chosen[m] = max(min(chosen[m], chosen[m + 1] - 1), m)
    return chosen


def lagrange(at: float, points: dict[int, float]) -> dict[int, float]:
    """Weights of Lagrange interpolation at a time through points `{position: time}`."""
    return {j: math.prod((at - v) / (u - v) for k, v in points.items() if k != j) for j, u in points.items()}


def _mix(weights: dict[int, float], values: list[Tensor]) -> Tensor:
    return torch.stack([values[j] * w for j, w in weights.items()]).sum(0)
