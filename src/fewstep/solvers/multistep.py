"""Multistep solvers: one network call a step, and the outputs of earlier steps."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.rules import Basis, Inner, Move, SolverSchedule, Step, Variable
from fewstep.solvers.common import check_order, intervals, orders, schedule
from fewstep.solvers.single_step import DPMPP

UNIPC = "Zhao et al. 2023, UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models"
DEIS = "Zhang & Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator"
PNDM = "Liu, Ren, Lin, Zhao 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds"
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights on the newest outputs first, for equal steps."""


def dpmpp_2m(
    times: Tensor, *, lower_order_final: bool = True, scaling: Literal["bh2", "none"] = "bh2"
) -> SolverSchedule:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2); scaling "none" is diffusers' "heun" variant."""
    steps = [Step(order=o, scaling=scaling) for o in orders(intervals(times), 2, lower_order_final=lower_order_final)]
    return schedule("dpmpp_2m", DPMPP, times, steps)


def dpmpp_3m(times: Tensor, *, lower_order_final: bool = True) -> SolverSchedule:
    """DPM-Solver++(3M) as its authors' code has it: half the second derivative, midpoint steps at order 2."""
    steps = [_third_order(o) for o in orders(intervals(times), 3, lower_order_final=lower_order_final)]
    return schedule("dpmpp_3m", DPMPP, times, steps)


def _third_order(order: int) -> Step:
    return Step(order=order, second=0.5) if order == 3 else Step(order=order, scaling="bh2" if order == 2 else "none")


def unip(
    times: Tensor,
    *,
    order: int = 3,
    variant: Literal["bh1", "bh2"] = "bh2",
    basis: Basis = "data",
    lower_order_final: bool = True,
) -> SolverSchedule:
    """UniP (Zhao et al. 2023, Algorithm 2): UniPC's predictor alone; B(h) acts at order 2 only (it cancels above)."""
    check_order(order, 4)
    chosen = orders(intervals(times), order, lower_order_final=lower_order_final)
    steps = [Step(basis, order=o, scaling=variant if o == 2 else "none") for o in chosen]
    return schedule("unip", UNIPC, times, steps)


def unipc(
    times: Tensor,
    *,
    order: int = 3,
    variant: Literal["bh1", "bh2"] = "bh2",
    basis: Basis = "data",
    lower_order_final: bool = True,
) -> SolverSchedule:
    """UniPC (Zhao et al. 2023, Algorithms 1 and 2): UniP with the free corrector UniC at every step but the last."""
    check_order(order, 4)
    steps = [
        Step(
            basis,
            order=o,
            scaling=variant if o == 2 else "none",
            corrector="pseudo",
            corrector_scaling=variant if o == 1 else "none",
        )
        for o in orders(intervals(times), order, lower_order_final=lower_order_final)
    ]
    return schedule("unipc", UNIPC, times, steps)


def deis(times: Tensor, *, order: int = 3, variant: Literal["tab", "rhoab", "lamab"] = "tab") -> SolverSchedule:
    """DEIS (Zhang & Chen 2023): noise as a polynomial in time ("tab"), sigma / alpha ("rhoab") or its log ("lamab").

    "lamab" is the variant that diffusers calls logrho.
    """
    check_order(order, 4)
    variables: dict[str, Variable] = {"tab": "time", "rhoab": "rho", "lamab": "lam"}
    if variant not in variables:
        raise ArgumentError(f"variant={variant!r}: choose one of {', '.join(variables)}")
    chosen = orders(intervals(times), order, lower_order_final=False)
    steps = [Step("noise", order=o, variable=variables[variant]) for o in chosen]
    return schedule(f"deis_{variant}", DEIS, times, steps)


def adams_bashforth(times: Tensor, *, order: int = 4) -> SolverSchedule:
    """Exact variable-step Adams-Bashforth in sigma / alpha: what iPNDM_v means, and DEIS rhoAB of order up to 4."""
    check_order(order, 4)
    steps = [Step("noise", order=o, variable="rho") for o in orders(intervals(times), order, lower_order_final=False)]
    return schedule("adams_bashforth", "Adams & Bashforth 1883; Zhang & Chen 2023 (rhoAB)", times, steps)


def lms(times: Tensor, *, order: int = 4) -> SolverSchedule:
    """k-diffusion's linear multistep: Adams-Bashforth in sigma, its integrals exact instead of by quadrature."""
    check_order(order, 4)
    steps = [Step("noise", order=o, variable="rho") for o in orders(intervals(times), order, lower_order_final=False)]
    return schedule("lms", "Katherine Crowson 2022, k-diffusion, sample_lms", times, steps)


def _adams(positions: list[int], now: int, order: int) -> Step:
    """Fixed Adams-Bashforth weights on the outputs at the history positions (0-based), seen from `now` points."""
    newest = positions[::-1][:order]
    weights = zip(newest, ADAMS_BASHFORTH[len(newest) - 1], strict=True)
    return Step("noise", weights=tuple((p - now, w) for p, w in weights))


def ipndm(times: Tensor, *, order: int = 4) -> SolverSchedule:
    """PNDM without its start, iPNDM (Zhang & Chen 2023): Adams-Bashforth weights of equal steps, whatever the times."""
    check_order(order, 4)
    steps = [_adams(list(range(i + 1)), i + 1, order) for i in range(intervals(times))]
    return schedule("ipndm", DEIS, times, steps)


def pndm(times: Tensor) -> SolverSchedule:
    """PNDM (Liu et al. 2022, F-PNDM): three pseudo Runge-Kutta steps of four calls, then Adams-Bashforth of order 4.

    With n times steps it makes n + 9 calls; it needs at least four steps.
    """
    moves: list[Move] = []
    starts, points = [0], 1
    for k in range(intervals(times)):
        if k < 3:
            middle = Inner(0.5, "time")
            moves += [
                Step("noise", node=middle), Step("noise", start=-2, weights=((-1, 1.0),), node=middle),
                Step("noise", start=-3, weights=((-1, 1.0),), node=Inner(1.0, "time")),
                Step("noise", start=-4, weights=((-4, 1 / 6), (-3, 2 / 6), (-2, 2 / 6), (-1, 1 / 6))),
            ]  # fmt: skip
            points += 4
        else:
            moves.append(_adams(starts, points, 4))
            points += 1
        starts.append(points - 1)
    return schedule("pndm", PNDM, times, moves)
