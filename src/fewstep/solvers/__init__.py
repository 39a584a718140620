"""Published samplers, each a short sentence of decisions with its citation.

`NAMES` maps a name to a function `(times, **options) -> SolverSchedule`; variants with their own names are listed too.
`era_calibrated` stands apart: it also needs the network, on which it measures. So do those of `WITH_STATISTICS`, whose
schedules are tabulated with the network's statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fewstep.errors import ArgumentError
from fewstep.rules import SolverSchedule
from fewstep.solvers.era import era_calibrated
from fewstep.solvers.first_order import ddim, ddpm, euler, euler_ancestral
from fewstep.solvers.multistep import adams_bashforth, deis, dpmpp_2m, dpmpp_3m, ipndm, lms, pndm, unip, unipc
from fewstep.solvers.single_step import (
    dpm_2,
    dpm_2_ancestral,
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_fast,
    dpmpp_1,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    heun,
    restart,
)
from fewstep.solvers.stochastic import er_sde, sa_solver, sde_dpmpp_1, sde_dpmpp_2m, sde_dpmpp_3m
from fewstep.solvers.third_version import dpm_solver_v3

Solver = Callable[..., SolverSchedule]

DETERMINISTIC: dict[str, Solver] = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm_2": dpm_2,
    "lms": lms,
    "dpm_solver_1": dpm_solver_1,
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_3": dpm_solver_3,
    "dpm_solver_fast": dpm_solver_fast,
    "dpmpp_1": dpmpp_1,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    **{
        f"unip_{o}_{v}_{b}": partial(unip, order=o, variant=v, basis=b)
        for o in (1, 2, 3, 4)
        for v in ("bh1", "bh2")
        for b in ("data", "noise")
    },
    **{
        f"unipc_{o}_{v}_{b}": partial(unipc, order=o, variant=v, basis=b)
        for o in (1, 2, 3, 4)
        for v in ("bh1", "bh2")
        for b in ("data", "noise")
    },
    "unipc": unipc,
    "unip": unip,
    **{f"deis_{v}_{o}": partial(deis, order=o, variant=v) for v in ("tab", "rhoab", "lamab") for o in (1, 2, 3)},
    "deis": deis,
    **{f"ipndm_{o}": partial(ipndm, order=o) for o in (1, 2, 3, 4)},
    "ipndm": ipndm,
    "adams_bashforth": adams_bashforth,
    "pndm": pndm,
}
"""Solvers of the probability-flow ODE: they draw no noise."""

STOCHASTIC: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim_eta1": partial(ddim, eta=1.0),
    "euler_ancestral": euler_ancestral,
    "heun_churn": partial(heun, churn=10.0),
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "sde_dpmpp_1": sde_dpmpp_1,
    "sde_dpmpp_2m": sde_dpmpp_2m,
    "sde_dpmpp_3m": sde_dpmpp_3m,
    "sa_solver": sa_solver,
    **{f"er_sde_{o}": partial(er_sde, order=o) for o in (1, 2, 3)},
    "er_sde": er_sde,
    "restart": restart,
}
"""Solvers that add fresh noise."""

NAMES: dict[str, Solver] = DETERMINISTIC | STOCHASTIC

WITH_STATISTICS: dict[str, Solver] = {
    **{f"dpm_solver_v3_{o}": partial(dpm_solver_v3, order=o) for o in (1, 2, 3)},
    "dpm_solver_v3_pseudo": partial(dpm_solver_v3, predictor_pseudo=True),
    "dpm_solver_v3_predictor": partial(dpm_solver_v3, corrector=False),
    "dpm_solver_v3": dpm_solver_v3,
}
"""Solvers that need `tabulate(..., statistics=)`; not in `NAMES`, so that sweeps can tabulate all of those."""

_CALLS_PER_STEP = {
    **dict.fromkeys(
        (
            "heun",
            "dpm_2",
            "dpm_solver_2",
            "dpmpp_2s",
            "heun_churn",
            "dpm_2_ancestral",
            "dpmpp_2s_ancestral",
            "dpmpp_sde",
        ),
        2,
    ),
    "dpm_solver_3": 3,
}


def get(name: str) -> Solver:
    """The solver of a name.

    Raises:
        ArgumentError: no such solver; the message lists some that are near.
    """
    known = NAMES | WITH_STATISTICS
    if name in known:
        return known[name]
    from difflib import get_close_matches

    near = get_close_matches(name, known, 4, 0.4) or list(DETERMINISTIC)[:8]
    raise ArgumentError(f"there is no solver {name!r}: did you mean {', '.join(near)}? `fewstep solvers` lists all")


def calls(name: str, nfe: int, *, to_zero: bool = True) -> int | None:
    """How many steps along the times make exactly `nfe` network calls, or None if no number does.

    Args:
        name: the solver.
        nfe: network calls per sample.
        to_zero: whether the times end at sigma = 0, where the last interval of a several-call solver is one Euler step.
    """
    get(name)
    if name == "pndm":
        return nfe - 9 if nfe >= 13 else None
    if name == "dpm_solver_fast":
        return next((n for n in range(1, nfe + 1) if _fast_calls(n) == nfe), None)
    per = _CALLS_PER_STEP.get(name, 1)
    if name == "restart":
        return None
    if per == 1:
        return nfe
    rest = nfe - 1 if to_zero else nfe
    steps = rest // per + (1 if to_zero else 0)
    return steps if rest % per == 0 and steps >= 1 else None


def _fast_calls(n: int) -> int:
    return sum([3] * max(n - 2, 0) + [2, 1][-min(n, 2) :])


__all__ = [
    "DETERMINISTIC", "NAMES", "STOCHASTIC", "WITH_STATISTICS", "Solver", "adams_bashforth", "calls", "ddim", "ddpm",
    "deis", "dpm_2", "dpm_2_ancestral", "dpm_solver_1", "dpm_solver_2", "dpm_solver_3", "dpm_solver_fast",
    "dpm_solver_v3", "dpmpp_1", "dpmpp_2m", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_sde", "er_sde",
    "era_calibrated", "euler", "euler_ancestral", "get", "heun", "ipndm", "lms", "pndm", "restart", "sa_solver",
    "sde_dpmpp_1", "sde_dpmpp_2m", "sde_dpmpp_3m", "unip", "unipc",
]  # fmt: skip
