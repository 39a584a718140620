"""First-order solvers. In x0 coordinates they are one formula; the names differ by field and by noise."""

from __future__ import annotations

from torch import Tensor

from fewstep.rules import Renoise, SolverSchedule, Step
from fewstep.solvers.common import churned, intervals, schedule


def ddim(times: Tensor, *, eta: float = 0.0) -> SolverSchedule:
    """DDIM (Song, Meng & Ermon 2021, eq. 12); eta = 1 is DDPM's ancestral sampling."""
    return schedule(
        "ddim",
        "Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models",
        times,
        (Step(eta=eta),) * intervals(times),
    )


def ddpm(times: Tensor, *, noise_scale: float = 1.0) -> SolverSchedule:
    """DDPM's ancestral sampling with the posterior ("fixed small") variance (Ho, Jain & Abbeel 2020, eq. 7)."""
    steps = (Step(eta=1.0, noise_scale=noise_scale),) * intervals(times)
    return schedule("ddpm", "Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models", times, steps)


def euler(
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_between: tuple[float, float] = (0.0, float("inf")),
    noise_scale: float = 1.0,
) -> SolverSchedule:
    """Euler steps on the probability-flow ODE in sigma (Karras et al. 2022); without churn the same numbers as DDIM."""
    moves: list[Step | Renoise] = []
    for up in churned(times, churn, churn_between, noise_scale):
        moves += [*up, Step()]
    return schedule(
        "euler", "Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models", times, moves
    )


def euler_ancestral(times: Tensor, *, eta: float = 1.0, noise_scale: float = 1.0) -> SolverSchedule:
    """k-diffusion's Euler ancestral: the same split between step and fresh noise as DDIM's eta."""
    steps = (Step(eta=eta, noise_scale=noise_scale),) * intervals(times)
    return schedule("euler_ancestral", "Katherine Crowson 2022, k-diffusion, sample_euler_ancestral", times, steps)
