"""Which sentence of ours each golden table of the authors' own code is: case -> our table, at the host's levels."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.rules import Basis, Inner, Move, SolverSchedule, Step
from fewstep.solvers.common import orders
from fewstep.tableau import Tableau

from . import Golden
from .ours_diffusers import VE

DATA: dict[str, Basis] = {"data": "data", "noise": "noise", "dpmsolver++": "data", "dpmsolver": "noise"}


def ours(case: str, golden: Golden) -> Tableau:
    """Our table of a case, in the exploding frame; `golden` must be in it too."""
    source, *words = case.split(" ")
    schedule = {
        "dpm_solver": _dpm_solver,
        "uni_pc": _uni_pc,
        "sa_solver": _sa_solver,
        "er_sde": lambda words, t: solvers.er_sde(t, order=int(words[1])),
        "diff_sampler": _diff_sampler,
    }[source](words, golden.ratio)
    return schedule.tabulate(VE)


def _multistep(times: Tensor, order: int, basis: Basis, second_order: str) -> SolverSchedule:
    steps = [
        Step(basis, order=o, scaling=second_order if o == 2 else "none", second=0.5 if o == 3 else 1.0)
        for o in orders(len(times) - 1, order, lower_order_final=True)
    ]
    return SolverSchedule(times, tuple(steps))


def _dpm_solver(words: list[str], levels: Tensor) -> SolverSchedule:
    method, algorithm, order, kind = words
    basis, scaling = DATA[algorithm], "bh2" if kind == "dpmsolver" else "none"
    if method == "multistep":
        return _multistep(levels, int(order), basis, scaling)
    counts = [2, 2, 2, 2] if order == "2" else [3, 3, 2]
    edges = [0]
    moves: list[Move] = []
    for count in counts:
        edges.append(edges[-1] + count)
        moves += [Step(basis, node=Inner(1 / count))]
        if count == 3:
            moves.append(Step(basis, order=2, active=((-1,),), start=-2, node=Inner(2 / 3)))
            whole = kind == "taylor"
            moves.append(Step(basis, order=3 if whole else 2, active=((-1, -2),) * 2 if whole else ((-1,),), start=-3))
        else:
            moves.append(Step(basis, order=2, active=((-1,),), start=-2, scaling=scaling))
    return SolverSchedule(levels[edges], tuple(moves))


def _uni_pc(words: list[str], levels: Tensor) -> SolverSchedule:
    variant, kind, order = words
    if variant != "vary_coeff":
        return solvers.unipc(levels, order=int(order), variant=variant, basis=DATA[kind])  # type: ignore[arg-type]
    chosen = orders(len(levels) - 1, int(order), lower_order_final=True)
    return SolverSchedule(levels, tuple(Step(DATA[kind], order=o, corrector="pseudo") for o in chosen))


def _sa_solver(words: list[str], levels: Tensor) -> SolverSchedule:
    kind, predictor, corrector, tau = words
    taus = [float(tau.removeprefix("tau"))] * (len(levels) - 2) + [0.0]
    return solvers.sa_solver(levels, order=int(predictor), corrector_order=int(corrector), tau=taus, basis=DATA[kind])


def _diff_sampler(words: list[str], levels: Tensor) -> SolverSchedule:
    name = words[0]
    if name in ("heun", "dpm_2"):
        return getattr(solvers, name)(torch.cat([levels[:-1:2], levels[-1:]]))
    if name == "euler":
        return solvers.euler(levels)
    order = int(words[-2])
    if name == "ipndm":
        return solvers.ipndm(levels, order=order)
    if name == "dpm_pp":
        return _multistep(levels, order, "noise", "bh2")
    if name == "unipc":
        return solvers.unipc(levels, order=order, variant="bh2", basis="noise")
    return solvers.adams_bashforth(levels, order=order)  # ipndm_v means it, DEIS rhoAB is it
