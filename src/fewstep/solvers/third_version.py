"""DPM-Solver-v3: as the multistep solvers, in the basis that its statistics choose."""

from __future__ import annotations

from torch import Tensor

from fewstep.rules import Active, SolverSchedule, Step
from fewstep.solvers.common import check_order, intervals, orders, schedule

CITATION = "Zheng, Lu, Chen, Zhu 2023, DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics"


def dpm_solver_v3(
    times: Tensor,
    *,
    order: int = 3,
    predictor_pseudo: bool = False,
    corrector: bool = True,
    corrector_pseudo: bool = False,
    lower_order_final: bool = True,
) -> SolverSchedule:
    """DPM-Solver-v3 (Zheng et al. 2023, Algorithms 1 to 3); `tabulate` needs `statistics=`, an `fewstep.ems.EMS`.

    Its authors take order 3 (2 with strong guidance), the pseudo predictor up to 5 calls, the corrector up to 6 calls,
    and no pseudo corrector.

    Args:
        times: the grid; the authors move it to grid points of the statistics.
        order: 1 to 3.
        predictor_pseudo: each derivative by the fewest points (the pseudo-order of section 3.2.3), not all of them.
        corrector: correct each state but the last, for free, as UniC does.
        corrector_pseudo: the same for the corrector, which then has one order more than the step before it; a full
            corrector has its order, and leaves first-order steps alone.
        lower_order_final: end with the orders 2 and 1.
    """
    check_order(order, 3)
    steps = [
        _step(o, predictor_pseudo, _corrector(o, corrector_pseudo) if corrector else None)
        for o in orders(intervals(times), order, lower_order_final=lower_order_final)
    ]
    return schedule("dpm_solver_v3", CITATION, times, steps)


def _step(order: int, pseudo: bool, sets: Active | None) -> Step:
    active = _sets(order, (-2, -3), pseudo)
    if not sets:
        return Step("v3", order, active or None)
    return Step("v3", order, active or None, corrector="pseudo", corrector_active=sets)


def _corrector(order: int, pseudo: bool) -> Active:
    return _sets(order + pseudo, (-1, -3, -4), pseudo)


def _sets(order: int, points: tuple[int, ...], pseudo: bool) -> Active:
    """The points of each derivative: all of them, or for the k-th the first k (its divided difference)."""
    return tuple(points[: k if pseudo else order - 1] for k in range(1, order))
