"""LD3 (vinhsuhi/LD3): learned times, `best_v2.pt` of its training, for a solver that the file does not name.

The file holds the times of the states and those that the network is told. What is read of the network's answer there
counts as x0, or as noise, of the time told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, NoiseSchedule
from fewstep.peers.held import Contents
from fewstep.rules import SolverSchedule
from fewstep.tableau import Tableau
from fewstep.told import at_model_times

NAME = "LD3"
Solver = Literal["uni_pc", "dpm_solver++", "ipndm", "euler"]
MOST = {"uni_pc": 3, "dpm_solver++": 3, "ipndm": 4, "euler": 1}
"""Their solvers that make one call a step, and the highest order of each."""
TOLD = "the network is told learned times, which are not those of the states"


def read(
    contents: Contents,
    noise: NoiseSchedule | None,
    *,
    solver: Solver | None = None,
    order: int | None = None,
    variant: Literal["bh1", "bh2"] | None = None,
) -> Tableau:
    """A `best_v1.pt`, `best_v2.pt` or `best_t_steps_*.pt` of `main.py`, or its `t_steps.pt`.

    Args:
        contents: of the file.
        noise: the network's; times above 1 are EDM's by themselves.
        solver: `uni_pc`, `dpm_solver++`, `ipndm` or `euler`, as `--solver_name` was.
        order: as `--order` was: 1 to 3, for `ipndm` to 4.
        variant: of `uni_pc`, as `--unipc_variant` was.
    """
    first, told = _times(contents, noise)
    noise = noise or EDM()
    schedule = _solver(contents, solver, order, variant, noise, len(first) - 1)(first)
    table = schedule.tabulate(noise)
    calls = [i for i, called in enumerate(table.evaluated) if called]
    if len(calls) != len(told) - 1:
        raise ArgumentError(f"{contents.path} has {len(told) - 1} steps, and {solver} makes {len(calls)} calls of them")
    asked = table.times.clone()
    asked[torch.tensor(calls)] = told[:-1]
    kind = "x0" if solver in ("uni_pc", "dpm_solver++") else "epsilon"
    A, B = at_model_times(noise, kind, table.A, table.B, table.times, asked, table.alpha, table.sigma)
    moved = bool((asked != table.times).any())
    meta: dict[str, Any] = {"file": contents.path.name, "class": "LD3Trainer", "solver": solver, "order": order}
    return replace(
        table, A=A, B=B, model_times=asked, name=NAME, schedule=None if moved else table.schedule,
        expected=(*table.expected, TOLD) if moved else table.expected, meta={"peer": meta},
    )  # fmt: skip


def _times(contents: Contents, noise: NoiseSchedule | None) -> tuple[Tensor, Tensor]:
    """`[N+1]` times of the states and times told, in this library's unit."""
    both = contents.get("best_t_steps") if isinstance(contents.held, dict) else contents.numbers(contents.held)
    listed = cast(list[float], both) if isinstance(both, list) else []
    if len(listed) < 4 or len(listed) % 2 or not all(isinstance(v, float) for v in listed):
        raise contents.broken("has no best_t_steps of 2 (N + 1) times")
    half = len(listed) // 2
    times = torch.tensor(listed, dtype=torch.float64, device="cpu").reshape(2, half)
    if noise is None and times[0, 0] <= 1:
        raise ArgumentError(
            f"{contents.path} has times up to {times[0, 0]:g}, not those of an EDM network: give noise= (--noise sd "
            "for Stable Diffusion)"
        )
    if (times[0, 0] > 1) != isinstance(noise or EDM(), EDM):
        raise ArgumentError(f"{contents.path} has times from {times[0, 0]:g}, which are not of {noise!r}")
    if isinstance(noise, Discrete):
        times = times * len(noise.alphas_cumprod) - 1
    return times[0], times[1]


def _solver(
    contents: Contents, solver: str | None, order: int | None, variant: str | None, noise: NoiseSchedule, steps: int
) -> Callable[[Tensor], SolverSchedule]:
    if solver is None or (order is None and solver != "euler"):
        raise ArgumentError(
            f"{contents.path} holds times, and not the solver that they were learned for: give solver= (uni_pc, "
            "dpm_solver++, ipndm or euler), its order= and for uni_pc its variant=, as the training's config has them"
        )
    if solver not in MOST:
        raise ArgumentError(f"solver={solver!r}: choose one of {', '.join(MOST)}")
    if order is not None and not 1 <= order <= min(MOST[solver], steps):
        raise ArgumentError(f"order={order}: {solver} has orders 1 to {min(MOST[solver], steps)} with {steps} steps")
    if (variant is None) == (solver == "uni_pc"):
        raise ArgumentError("variant= is bh1 or bh2 for uni_pc, and for no other solver")
    return _made(solver, order or 1, variant, noise)


def _made(solver: str, order: int, variant: str | None, noise: NoiseSchedule) -> Callable[[Tensor], SolverSchedule]:
    if solver == "uni_pc":
        if variant not in ("bh1", "bh2"):
            raise ArgumentError(f"variant={variant!r}: choose bh1 or bh2")
        return lambda times: solvers.unipc(times, order=order, variant=variant)
    if solver == "dpm_solver++":
        return (solvers.ddim, solvers.dpmpp_2m, solvers.dpmpp_3m)[order - 1]
    if solver == "ipndm":
        return lambda times: solvers.ipndm(times, order=order)
    if not isinstance(noise, EDM):
        raise ArgumentError("solver='euler' steps in the time of the schedule, a table here for EDM's networks only")
    return solvers.euler
