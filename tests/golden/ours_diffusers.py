"""Which sentence of ours each golden table of diffusers is: case -> our table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import noise, solvers
from fewstep.rules import At, Move, Renoise, SolverSchedule, Step
from fewstep.solvers.common import orders
from fewstep.tableau import Tableau

from . import Golden

VE = noise.EDM(1e-4, 1e6)
FLOW = noise.Flow()
FULL = 1e4
"""tau of a step that replaces all noise: base exp(-tau^2 h) is 0."""

Ours = Callable[[Golden], tuple[Golden, Tableau]]


def ve(solver: Callable[..., SolverSchedule], **options: object) -> Ours:
    """A solver on the host's levels, both sides with states divided by alpha."""

    def table(golden: Golden) -> tuple[Golden, Tableau]:
        g = golden.exploding()
        return g, solver(g.ratio, **options).tabulate(VE)

    return table


def stages(solver: Callable[..., SolverSchedule], **options: object) -> Ours:
    """The same for solvers with two calls a step: every second level is a time."""

    def table(golden: Golden) -> tuple[Golden, Tableau]:
        g = golden.exploding()
        return g, solver(torch.cat([g.ratio[:-1:2], g.ratio[-1:]]), **options).tabulate(VE)

    return table


def flow(solver: Callable[..., SolverSchedule], *, two: bool = False, **options: object) -> Ours:
    """A solver on straight paths, times sigma; from pure noise."""

    def table(golden: Golden) -> tuple[Golden, Tableau]:
        times = golden.levels[:, 1]
        return golden, solver(torch.cat([times[:-1:2], times[-1:]]) if two else times, **options).tabulate(FLOW)

    return table


def sentence(moves: Callable[[int], list[Move]]) -> Callable[..., SolverSchedule]:
    """A solver written out: number of steps -> moves."""
    return lambda times: SolverSchedule(times, tuple(moves(len(times) - 1)))


def _noise_multistep(
    order: int, scaling: str, tau: float = 0.0, *, final: bool = True
) -> Callable[..., SolverSchedule]:
    def moves(n: int) -> list[Move]:
        chosen = orders(n, order, lower_order_final=final)
        return [
            Step("noise", order=o, scaling=scaling if o == 2 else "none", second=0.5 if o == 3 else 1.0, tau=tau)
            for o in chosen
        ]

    return sentence(moves)


def _sde_3m(times: Tensor) -> SolverSchedule:
    chosen = orders(len(times) - 1, 3, lower_order_final=True)
    return SolverSchedule(
        times,
        tuple(
            Step(order=o, scaling="bh2" if o == 2 else "none", second=0.5 if o == 3 else 1.0, tau=1.0) for o in chosen
        ),
    )


def _deis(order: int) -> Callable[..., SolverSchedule]:
    return sentence(lambda n: [Step("noise", order=o) for o in orders(n, order, lower_order_final=True)])


def _singlestep(basis: str, order: int, *, tau: float = 0.0, scaling: str = "bh2") -> Callable[..., SolverSchedule]:
    """diffusers' order list 1, 2, 3, 1, 2, 3, ..: each move starts at the first point of its group."""

    def moves(n: int) -> list[Move]:
        pattern = {1: [1] * n, 2: [1, 2] * (n // 2) + [1] * (n % 2), 3: [1, 2, 3] * (n // 3) + [1, 2][: n % 3]}[order]
        second = {2: scaling, 3: "none"}
        return [
            Step(
                basis,
                order=1 if o == 1 else 2,
                active=None if o == 1 else ((-1,),),
                start=-o,
                scaling=second.get(o, "none"),
                tau=tau,
            )  # type: ignore[arg-type]
            for o in pattern
        ]

    return sentence(moves)


def _sa(predictor: int, corrector: int, basis: str, *, ode: bool = False) -> Ours:
    """Their default tau is 1 for timesteps from 200 to 800 and 0 elsewhere."""

    def table(golden: Golden) -> tuple[Golden, Tableau]:
        g = golden.exploding()
        tau = [0.0 if ode or not 200 <= t <= 800 else 1.0 for t in golden.told.tolist()]
        return g, solvers.sa_solver(g.ratio, order=predictor, corrector_order=corrector, tau=tau, basis=basis).tabulate(
            VE
        )

    return table


def _ltx(golden: Golden) -> tuple[Golden, Tableau]:
    """ComfyUI's ancestral step for flows: down to `s' (1 + (s'/s - 1) eta)`, then fresh noise up to s'."""
    s = golden.levels[:, 1].tolist()
    eta = golden.options["eta"]
    moves: list[Move] = []
    for a, b in pairwise(s[:-1]):
        moves += [Step("velocity", node=At(b * (1 + (b / a - 1) * eta))), Renoise()]
    return golden, SolverSchedule(golden.levels[:, 1], (*moves, Step("velocity"))).tabulate(FLOW)


def _tcd(golden: Golden) -> tuple[Golden, Tableau]:
    """Trajectory consistency: DDIM to an earlier timestep s = floor((1 - eta) t'), then fresh noise up to t'."""
    g = golden.exploding()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    bar = torch.cumprod(1 - betas, 0).double()
    ratio = ((1 - bar) / bar).sqrt()
    moves: list[Move] = []
    for t in [*golden.told[1:].tolist()]:
        moves += [Step(node=At(ratio[int((1 - golden.options["eta"]) * t)].item())), Renoise()]
    return g, SolverSchedule(g.ratio, (*moves, Step())).tabulate(VE)


def _plms(golden: Golden) -> tuple[Golden, Tableau]:
    """PNDM without Runge-Kutta: Euler, Heun over the same interval, then Adams-Bashforth on outputs 0, 2, 3, .."""
    g = golden.exploding()
    times = torch.cat([g.ratio[:1], g.ratio[2:]])
    moves: list[Move] = [
        Step("noise", node=At(g.ratio[1].item())),
        Step("noise", start=-2, weights=((-1, 0.5), (-2, 0.5))),
    ]
    known = [0, 2]
    for _ in range(len(times) - 2):
        weights = solvers.multistep.ADAMS_BASHFORTH[min(len(known), 4) - 1]
        moves.append(
            Step("noise", weights=tuple((k - known[-1] - 1, w) for k, w in zip(known[::-1], weights, strict=False)))
        )
        known.append(known[-1] + 1)
    return g, SolverSchedule(times, tuple(moves)).tabulate(VE)


def _zero_snr(golden: Golden) -> tuple[Golden, Tableau]:
    """From pure noise, in the frame of the host; a discrete schedule of just its levels, times their numbers."""
    bar = (golden.levels[:-1, 0] ** 2).flip(0)
    own = noise.Discrete(tuple(bar.tolist()))
    return golden, solvers.ddim(torch.arange(len(bar) - 1, -2, -1, dtype=torch.float64)).tabulate(own)


def _karras_ve(golden: Golden) -> tuple[Golden, Tableau]:
    times = torch.cat([golden.ratio[:1], golden.ratio[1::2]])
    return golden, solvers.heun(times, churn=2.5, churn_between=(0.05, 50.0)).tabulate(VE)


def _scm(golden: Golden) -> tuple[Golden, Tableau]:
    """Its first time lies just beyond pi / 2 (alpha < 0); nothing of that state is kept, so any large level will do."""
    levels = torch.cat([golden.levels.new_tensor([[1.0, 1e5]]), golden.exploding().levels[1:]])
    g = Golden(**{**golden.exploding().__dict__, "levels": levels})
    return g, solvers.sde_dpmpp_1(g.ratio, tau=FULL).tabulate(VE)


def _again(solver: Callable[..., SolverSchedule], **options: object) -> Ours:
    return ve(lambda times: solver(times, lower_order_final=False, **options))


def _multistep(algorithm: str, order: int, heun: bool) -> Ours:
    scaling = "none" if heun else "bh2"
    if algorithm == "dpmsolver++":
        return ve({1: solvers.dpmpp_1, 2: lambda t: solvers.dpmpp_2m(t, scaling=scaling), 3: solvers.dpmpp_3m}[order])
    if algorithm == "dpmsolver":
        return ve(_noise_multistep(order, scaling))
    if algorithm == "sde-dpmsolver":
        return ve(_noise_multistep(order, scaling, tau=1.0))
    return ve({1: solvers.sde_dpmpp_1, 2: lambda t: solvers.sde_dpmpp_2m(t, scaling=scaling), 3: _sde_3m}[order])


def _families() -> dict[str, Ours]:
    found: dict[str, Ours] = {}
    for algorithm in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"):
        for order in (1, 2, 3):
            if (algorithm, order) == ("sde-dpmsolver", 3):
                continue
            found[f"dpm_multistep {algorithm} {order}"] = _multistep(algorithm, order, False)
            if order == 2:
                found[f"dpm_multistep {algorithm} 2 heun"] = _multistep(algorithm, 2, True)
    for order in (1, 2, 3):
        found[f"dpm_singlestep dpmsolver++ {order}"] = ve(_singlestep("data", order))
        found[f"dpm_singlestep dpmsolver {order}"] = ve(_singlestep("noise", order))
        if order < 3:
            found[f"dpm_singlestep sde-dpmsolver++ {order}"] = ve(_singlestep("data", order, tau=1.0))
        found[f"deis {order}"] = ve(_deis(order))
    for variant in ("bh1", "bh2"):
        for basis in ("data", "noise"):
            for order in (1, 2, 3, 4):
                found[f"unipc {variant} {basis} {order}"] = ve(solvers.unipc, order=order, variant=variant, basis=basis)
    for basis in ("data", "noise"):
        for p, c in ((2, 2), (3, 2), (3, 3), (3, 4), (4, 4)):
            found[f"sa {basis} {p} {c}"] = _sa(p, c, basis)
    return found


EQUAL: dict[str, Ours] = {
    **{case: ve(solvers.ddim) for case in ("ddim", "ddim v", "ddim x0", "ddim stops", "cogvideox_ddim")},
    "ddim eta1": ve(solvers.ddim, eta=1.0),
    "ddim eta.4": ve(solvers.ddim, eta=0.4),
    "ddim_parallel eta.4": ve(solvers.ddim, eta=0.4),
    "cogvideox_dpm": _again(solvers.sde_dpmpp_2m),
    **{case: ve(solvers.ddpm) for case in ("ddpm", "ddpm v", "ddpm_parallel", "unclip")},
    **_families(),
    "dpm_multistep 20 steps": _again(solvers.dpmpp_2m),
    "dpm_multistep 3 20 steps": _again(solvers.dpmpp_3m),
    **{
        f"dpm_multistep {case}": ve(solvers.dpmpp_2m)
        for case in ("v", "x0", "lu", "euler_at_final", "timesteps", "flow")
    },
    "dpm_multistep to sigma_min": ve(solvers.dpmpp_3m),
    "dpm_singlestep heun": ve(_singlestep("data", 2, scaling="none")),
    **{f"unipc {case}": ve(solvers.unipc, order=2) for case in ("v", "flow")},
    "unipc predictor only": ve(solvers.unip, order=3),
    "unipc to sigma_min": ve(solvers.unipc, order=3),
    "unipc all orders": _again(solvers.unipc, order=3),
    "sa ode 3 3": _sa(3, 3, "data", ode=True),
    "edm_dpm 2": ve(solvers.dpmpp_2m),
    "edm_dpm 3": ve(solvers.dpmpp_3m),
    "edm_dpm sde": ve(solvers.sde_dpmpp_2m, scaling="none"),
    "edm_dpm v": ve(solvers.dpmpp_2m),
    "cosine_dpm": ve(solvers.sde_dpmpp_2m),
    "cosine_dpm 1": ve(solvers.sde_dpmpp_1),
    **{case: ve(solvers.euler) for case in ("edm_euler", "euler", "euler sigmas", "euler v")},
    "euler_ancestral": ve(solvers.euler_ancestral),
    "heun": stages(solvers.heun),
    "heun v": stages(solvers.heun),
    "kdpm2": stages(solvers.dpm_2),
    "kdpm2_ancestral": stages(solvers.dpm_2_ancestral),
    "dpm_sde": stages(solvers.dpmpp_sde),
    "dpm_sde v": stages(solvers.dpmpp_sde),
    "lms": ve(solvers.lms),
    "lms 2": ve(solvers.lms, order=2),
    "ipndm trained": ve(solvers.ipndm),
    "pndm plms": _plms,
    **{
        case: flow(solvers.euler) for case in ("flow_euler", "flow_euler sigmas", "flow_map", "minimax", "helios euler")
    },
    **{case: flow(solvers.sde_dpmpp_1, tau=FULL) for case in ("flow_euler stochastic", "flow_lcm")},
    "flow_heun": flow(solvers.heun, two=True, basis="velocity"),
    "helios unipc": flow(solvers.unipc, order=2),
    "ltx_ancestral": _ltx,
    "tcd": _tcd,
    "lcm": ve(solvers.sde_dpmpp_1, tau=FULL),
    "scm": _scm,
    "karras_ve": _karras_ve,
    "ddim zero_snr": _zero_snr,
}
for _case in ("ddim", "euler", "lms", "heun", "dpm_multistep dpmsolver++ 2", "unipc bh2 data 2", "edm_dpm 2"):
    EQUAL[f"{_case} float32"] = EQUAL[_case]
