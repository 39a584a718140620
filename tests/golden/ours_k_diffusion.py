"""Which sentence of ours each golden table of k-diffusion is: case (without its grid) -> our table."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fewstep import noise, solvers
from fewstep.rules import Down, Inner, Move, Renoise, SolverSchedule, Step
from fewstep.tableau import Tableau

from . import Golden

VE = noise.EDM(1e-3, 100.0)
CHURN = {"churn": 2.5, "churn_between": (0.05, 50.0), "noise_scale": 1.003}
HALF = math.sqrt(0.5)
"""k-diffusion's eta is our tau squared."""

Sentence = Callable[[Tensor], SolverSchedule]

EQUAL: dict[str, Sentence] = {
    "euler": solvers.euler,
    "euler churn": partial(solvers.euler, **CHURN),
    "heun": solvers.heun,
    "heun churn": partial(solvers.heun, **CHURN),
    "dpm_2": solvers.dpm_2,
    "dpm_2 churn": partial(solvers.dpm_2, **CHURN),
    "euler_ancestral": solvers.euler_ancestral,
    "euler_ancestral eta.5": partial(solvers.euler_ancestral, eta=0.5),
    "dpm_2_ancestral": solvers.dpm_2_ancestral,
    "dpm_2_ancestral eta.5": partial(solvers.dpm_2_ancestral, eta=0.5),
    "lms": solvers.lms,
    "lms order2": partial(solvers.lms, order=2),
    "lms order3": partial(solvers.lms, order=3),
    "dpmpp_2s_ancestral": solvers.dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral eta0": partial(solvers.dpmpp_2s_ancestral, eta=0.0),
    "dpmpp_sde": solvers.dpmpp_sde,
    "dpmpp_sde independent": solvers.dpmpp_sde,
    "dpmpp_sde eta.5": partial(solvers.dpmpp_sde, eta=0.5),
    "dpmpp_sde eta0 r.3": partial(solvers.dpmpp_sde, eta=0.0, r=0.3),
    "dpmpp_2m": partial(solvers.dpmpp_2m, lower_order_final=False),
    "dpmpp_2m_sde": partial(solvers.sde_dpmpp_2m, lower_order_final=False),
    "dpmpp_2m_sde heun eta.5": partial(solvers.sde_dpmpp_2m, tau=HALF, scaling="none", lower_order_final=False),
    "dpmpp_2m_sde heun eta0": partial(solvers.sde_dpmpp_2m, tau=0.0, scaling="none", lower_order_final=False),
    "dpmpp_3m_sde": solvers.sde_dpmpp_3m,
    "dpmpp_3m_sde eta.5": partial(solvers.sde_dpmpp_3m, tau=HALF),
    "dpmpp_3m_sde eta0": partial(solvers.sde_dpmpp_3m, tau=0.0),
}

BROWNIAN = ("dpmpp_sde", "dpmpp_sde eta.5")
"""Cases whose two draws a step are increments of one Brownian path over overlapping intervals; ours are independent."""


def ours(case: str, golden: Golden) -> Tableau:
    """Our table of a case."""
    if case.startswith("dpm_fast"):
        return _fast(golden)
    return EQUAL[case.rsplit(" ", 1)[0]](golden.steps).tabulate(VE)


def _fast(golden: Golden) -> Tableau:
    """sample_dpm_fast: single-step orders 3, 3, .., on equal steps in log sigma; eta steps down and adds noise."""
    n, eta = golden.options["n"], golden.options["eta"]
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    low, high = (math.log(golden.options[k]) for k in ("sigma_min", "sigma_max"))
    times = torch.linspace(high, low, m + 1, dtype=torch.float64).exp()
    moves: list[Move] = []
    for i, order in enumerate(orders):
        # Never below sigma_min, where the last interval would step to: there it is deterministic.
        down = Down(eta) if eta and i + 1 < m else None
        moves += [Step("noise", node=Inner(k / order, of=down), **_stage(k)) for k in range(1, order)]
        moves.append(Step("noise", node=down, **_stage(order, scaling="bh2" if order == 2 else "none")))
        moves += [Renoise()] if down is not None else []
    return SolverSchedule(times, tuple(moves)).tabulate(VE)


def _stage(k: int, scaling: str = "none") -> dict[str, object]:
    """Stage k of a single-step solver: Euler first, then the newest difference from the first point."""
    return {} if k == 1 else {"order": 2, "active": ((-1,),), "start": -k, "scaling": scaling}
