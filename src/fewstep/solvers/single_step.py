"""Single-step (Runge-Kutta-like) solvers: several network calls inside each interval."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.rules import At, Basis, Down, Inner, Move, Renoise, SolverSchedule, Step, Variable
from fewstep.solvers.common import churned, intervals, schedule

KARRAS = "Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models"
DPM = "Lu et al. 2022, DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps"
DPMPP = "Lu et al. 2022, DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
CROWSON = "Katherine Crowson 2022, k-diffusion"


def heun(
    times: Tensor, *, churn: float = 0.0, churn_between: tuple[float, float] = (0.0, float("inf")),
    noise_scale: float = 1.0, basis: Basis = "noise",
) -> SolverSchedule:  # fmt: skip
    """EDM's Heun with optional churn (Karras et al. 2022, Algorithms 1 and 2); Euler onto sigma = 0.

    `basis="velocity"` averages velocities instead, which is Heun for flow models and legal from alpha = 0.
    """
    variable: Variable = "flow" if basis == "velocity" else "lam"
    moves: list[Move] = []
    for up in churned(times, churn, churn_between, noise_scale):
        moves += [*up, Step(basis, node=Inner(1.0, variable)), Step(basis, start=-2, weights=((-2, 0.5), (-1, 0.5)))]
    return schedule("heun", KARRAS, times, moves)


def dpm_2(
    times: Tensor,
    *,
    r: float = 0.5,
    churn: float = 0.0,
    churn_between: tuple[float, float] = (0.0, float("inf")),
    noise_scale: float = 1.0,
) -> SolverSchedule:
    """k-diffusion's DPM-2 (Karras et al. 2022, app. C): Euler to the log midpoint, then a step with the noise there."""
    moves: list[Move] = []
    for up in churned(times, churn, churn_between, noise_scale):
        moves += [
            *up,
            Step("noise", node=Inner(r)),
            Step("noise", start=-2, weights=((-2, 1 - 0.5 / r), (-1, 0.5 / r))),
        ]
    return schedule("dpm_2", KARRAS, times, moves)


def dpm_2_ancestral(times: Tensor, *, eta: float = 1.0, noise_scale: float = 1.0) -> SolverSchedule:
    """k-diffusion's DPM-2 ancestral: DPM-2 down to sigma_down, then fresh noise."""
    down = Down(eta)
    once = (
        Step("noise", node=Inner(0.5, of=down)),
        Step("noise", start=-2, weights=((-1, 1.0),), node=down),
        Renoise(noise_scale=noise_scale),
    )
    return schedule("dpm_2_ancestral", f"{CROWSON}, sample_dpm_2_ancestral", times, once * intervals(times))


def dpm_solver_1(times: Tensor) -> SolverSchedule:
    """DPM-Solver-1 (Lu et al. 2022, eq. 3.7), which is DDIM."""
    return schedule("dpm_solver_1", DPM, times, (Step("noise"),) * intervals(times))


def _second(basis: Basis, r: float) -> tuple[Move, ...]:
    return Step(basis, node=Inner(r)), Step(basis, order=2, active=((-1,),), scaling="bh2", start=-2)


def _third(r1: float, r2: float) -> tuple[Move, ...]:
    inner = Step("noise", order=2, active=((-1,),), start=-2, node=Inner(r2))
    return Step("noise", node=Inner(r1)), inner, Step("noise", order=2, active=((-1,),), start=-3)


def dpm_solver_2(times: Tensor, *, r: float = 0.5) -> SolverSchedule:
    """Single-step DPM-Solver-2 (Lu et al. 2022, Algorithm 4): two calls an interval."""
    return schedule("dpm_solver_2", DPM, times, _second("noise", r) * intervals(times))


def dpm_solver_3(times: Tensor, *, r1: float = 1 / 3, r2: float = 2 / 3) -> SolverSchedule:
    """Single-step DPM-Solver-3 (Lu et al. 2022, Algorithm 5): three calls an interval."""
    return schedule("dpm_solver_3", DPM, times, _third(r1, r2) * intervals(times))


def dpm_solver_fast(times: Tensor, *, orders: Sequence[int] | None = None) -> SolverSchedule:
    """Single-step DPM-Solver with one order an interval (Lu et al. 2022, section 3.4): default 3, 3, .., 2, 1."""
    n = intervals(times)
    chosen = list(orders) if orders is not None else [3] * max(n - 2, 0) + [2, 1][-min(n, 2) :]
    if len(chosen) != n or any(o not in (1, 2, 3) for o in chosen):
        raise ArgumentError(f"orders={orders!r}: give 1, 2 or 3 for each of the {n} intervals")
    moves = sum(({1: (Step("noise"),), 2: _second("noise", 0.5), 3: _third(1 / 3, 2 / 3)}[o] for o in chosen), ())
    return schedule("dpm_solver_fast", DPM, times, moves)


def dpmpp_1(times: Tensor) -> SolverSchedule:
    """DPM-Solver++(1) (Lu et al. 2022), which is DDIM."""
    return schedule("dpmpp_1", DPMPP, times, (Step(),) * intervals(times))


def dpmpp_2s(times: Tensor, *, r: float = 0.5) -> SolverSchedule:
    """DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1): two calls an interval."""
    return schedule("dpmpp_2s", DPMPP, times, _second("data", r) * intervals(times))


def dpmpp_2s_ancestral(times: Tensor, *, eta: float = 1.0, noise_scale: float = 1.0) -> SolverSchedule:
    """k-diffusion's DPM-Solver++(2S) down to sigma_down, then fresh noise."""
    down = Down(eta)
    once = (
        Step(node=Inner(0.5, of=down)),
        Step(order=2, active=((-1,),), scaling="bh2", start=-2, node=down),
        Renoise(noise_scale=noise_scale),
    )
    return schedule("dpmpp_2s_ancestral", f"{CROWSON}, sample_dpmpp_2s_ancestral", times, once * intervals(times))


def dpmpp_sde(times: Tensor, *, eta: float = 1.0, r: float = 0.5, noise_scale: float = 1.0) -> SolverSchedule:
    """k-diffusion's DPM-Solver++ (stochastic, single-step): fresh noise at the inner node and at the end."""
    middle = Inner(r)
    once = (
        Step(node=Down(eta, of=middle)), Renoise(middle, noise_scale),
        Step(start=-2, weights=((-2, 1 - 0.5 / r), (-1, 0.5 / r)), node=Down(eta)), Renoise(noise_scale=noise_scale),
    )  # fmt: skip
    return schedule("dpmpp_sde", f"{CROWSON}, sample_dpmpp_sde", times, once * intervals(times))


def restart(
    times: Tensor, *, back: Sequence[tuple[float, float, int, int]] = ((0.05, 0.3, 3, 1),), rho: float = 7.0
) -> SolverSchedule:
    """Restart sampling (Xu et al. 2023, Algorithm 1): Heun, with noise added and removed again on some intervals.

    Args:
        times: the main grid.
        back: `(low, high, steps, times over)` of each restart interval; it happens at the first main time at or below
            `low`.
        rho: the restart intervals use EDM's polynomial grid between high and low.
    """
    moves: list[Move] = []
    main = times.detach().tolist()
    waiting = list(back)
    for k in range(len(main) - 1):
        moves += [Step("noise", node=Inner(1.0)), Step("noise", start=-2, weights=((-2, 0.5), (-1, 0.5)))]
        for entry in [e for e in waiting if k + 2 < len(main) and main[k + 1] <= e[0]]:
            waiting.remove(entry)
            moves += _again(main[k + 1], *entry[1:], rho=rho)
    if waiting:
        raise ArgumentError(
            f"restart interval {waiting[0]} lies below the last inner time {main[-2]:.4g}: give a larger low, or finer "
            "times"
        )
    return schedule("restart", "Xu et al. 2023, Restart Sampling for Improving Generative Processes", times, moves)


def _again(low: float, high: float, steps: int, over: int, *, rho: float) -> list[Move]:
    if not (high > low and steps >= 1 and over >= 1):
        raise ArgumentError(
            f"a restart interval needs low < high, steps >= 1 and times over >= 1; got {(low, high, steps, over)}"
        )
    grid = torch.linspace(high ** (1 / rho), low ** (1 / rho), steps + 1, dtype=torch.float64, device="cpu") ** rho
    stops = [*grid[1:-1].tolist(), low]
    once: list[Move] = [Renoise(At(high))]
    for t in stops:
        once += [Step("noise", node=At(t)), Step("noise", start=-2, weights=((-2, 0.5), (-1, 0.5)), node=At(t))]
    return once * over
