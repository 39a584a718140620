"""Multistep solvers of the reverse-time SDE. Their `tau` scales the noise; 0 is the ODE, 1 the usual SDE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.rules import Basis, SolverSchedule, Step
from fewstep.solvers.common import check_order, intervals, orders, schedule
from fewstep.solvers.single_step import DPMPP

SA = "Xue et al. 2023, SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models"
ER_SDE = "Cui et al. 2023, Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models"


def sde_dpmpp_1(times: Tensor, *, tau: float = 1.0) -> SolverSchedule:
    """SDE-DPM-Solver++(1) (Lu et al. 2022, eq. 17): stochastic DDIM, the solver of Align Your Steps' bound."""
    return schedule("sde_dpmpp_1", DPMPP, times, (Step(tau=tau),) * intervals(times))


def sde_dpmpp_2m(
    times: Tensor,
    *,
    tau: float = 1.0,
    scaling: Literal["bh2", "none"] = "bh2",
    lower_order_final: bool = True,
    noise_scale: float = 1.0,
) -> SolverSchedule:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, eq. 18); "bh2" is the midpoint rule, "none" k-diffusion's "heun" rule."""
    chosen = orders(intervals(times), 2, lower_order_final=lower_order_final)
    steps = [Step(order=o, scaling=scaling, tau=tau, noise_scale=noise_scale) for o in chosen]
    return schedule("sde_dpmpp_2m", DPMPP, times, steps)


def sde_dpmpp_3m(times: Tensor, *, tau: float = 1.0, noise_scale: float = 1.0) -> SolverSchedule:
    """SDE-DPM-Solver++(3M) as in k-diffusion: half the second derivative at order 3, plain differences at order 2."""
    chosen = orders(intervals(times), 3, lower_order_final=False)
    steps = [Step(order=o, tau=tau, second=0.5, noise_scale=noise_scale) for o in chosen]
    return schedule("sde_dpmpp_3m", "Katherine Crowson 2023, k-diffusion, sample_dpmpp_3m_sde", times, steps)


def sa_solver(
    times: Tensor, *, order: int = 3, corrector_order: int = 3, tau: float | Sequence[float] = 1.0,
    basis: Basis = "data", lower_order_final: bool = True,
) -> SolverSchedule:  # fmt: skip
    """SA-Solver (Xue et al. 2023, Algorithm 1): stochastic Adams predictor and corrector, one call a step.

    Args:
        times: the grid.
        order: outputs used by the predictor, 1 to 4.
        corrector_order: outputs used by the corrector, the new one included, 2 to 4; 0 for none.
        tau: one value, or one for each step.
        basis: "data", as the paper recommends, or "noise".
        lower_order_final: lower the orders towards the end.
    """
    check_order(order, 4)
    if corrector_order not in (0, 2, 3, 4):
        raise ArgumentError(f"corrector_order={corrector_order!r}: choose 0 (none), 2, 3 or 4")
    n = intervals(times)
    taus = [float(tau)] * n if isinstance(tau, int | float) else [float(v) for v in tau]
    if len(taus) != n:
        raise ArgumentError(f"tau has {len(taus)} values for {n} steps: give one for each, or a single number")
    chosen = orders(n, order, lower_order_final=lower_order_final)
    steps = [_adams_step(i, o, min(corrector_order, i + 2, n - i + 1), taus[i], basis) for i, o in enumerate(chosen)]
    return schedule("sa_solver", SA, times, steps)


def _adams_step(i: int, order: int, corrector_order: int, tau: float, basis: Basis) -> Step:
    """In the data basis two outputs use the authors' few-step rule `h^2 / 2`, which is UniPC's bh1."""
    few = "bh1" if basis == "data" else "none"
    return Step(
        basis, order=order, tau=tau, scaling=few if order == 2 else "none",
        corrector="pseudo" if corrector_order >= 2 else None,
        corrector_order=corrector_order if corrector_order >= 2 else None,
        corrector_scaling=few if corrector_order == 2 else "none",
    )  # fmt: skip


def er_sde(times: Tensor, *, order: int = 3, noise_scale: float = 1.0) -> SolverSchedule:
    """ER-SDE-Solver (Cui et al. 2023, Algorithms 1 to 3) with its default noise function and exact integrals."""
    check_order(order, 3)
    active = (None, ((-2,),), ((-2,), (-2, -3)))
    steps = [
        Step(order=o, variable="rho", kernel="er_sde", active=active[o - 1], noise_scale=noise_scale)
        for o in orders(intervals(times), order, lower_order_final=False)
    ]
    return schedule("er_sde", ER_SDE, times, steps)
