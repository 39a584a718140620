"""The initial population: published solvers on several grids, with and without an analytical first step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fewstep import solvers
from fewstep import times as grids
from fewstep.errors import FewstepError
from fewstep.noise import EDM
from fewstep.proposals import Proposal
from fewstep.rules import SolverSchedule
from fewstep.search.s3.space import Space

FIRST = (
    "dpmpp_2m", "unipc_2_bh2_data", "unipc_3_bh2_data", "ddim", "dpmpp_3m", "unipc_2_bh1_noise", "unipc_2_bh1_data",
    "unipc_2_bh2_noise", "deis_tab_3", "ipndm_4", "unip_3_bh2_noise", "dpm_solver_2", "deis_tab_2", "ipndm_2",
)  # fmt: skip
"""These come first; then all other deterministic solvers by name."""
THIRD = ("dpm_solver_v3", "dpm_solver_v3_pseudo")
"""Before all others where the network's statistics are known."""
GRIDS = ("logsnr", "uniform", "quadratic")
UNBOUNDED_GRIDS = ("karras", "flow_shift", "logsnr")
"""Where time is the noise level itself, as in EDM: uniform levels spend every step on states that are all noise."""
LIMIT = 72


def initial(space: Space, limit: int = LIMIT) -> list[Proposal]:
    """Up to `limit` proposals for each number of calls, stage 0; those with equal decisions once."""
    out: list[Proposal] = []
    for nfe in space.nfes:
        seen: set[str] = set()
        for origin, schedule in _candidates(space, nfe):
            name = name_of(schedule)
            if name not in seen and len(seen) < limit:
                seen.add(name)
                out.append(Proposal(schedule, origin))
            if len(seen) >= limit:
                break
    return out


def _reaches(space: Space, schedule: SolverSchedule) -> bool:
    """Whether the statistics know all finite times of a schedule."""
    lam = space.lam(schedule.times.numpy())
    low, high = space.reach or (-np.inf, np.inf)
    return bool(((lam >= low) & (lam <= high) | np.isinf(lam)).all())


def name_of(schedule: SolverSchedule) -> str:
    """Equal for equal decisions."""
    return json.dumps(schedule.canonical().to_dict(), sort_keys=True)


def _candidates(space: Space, nfe: int) -> Iterator[tuple[str, SolverSchedule]]:
    where = UNBOUNDED_GRIDS if isinstance(space.noise, EDM) else GRIDS
    names = [*FIRST, *(n for n in sorted(solvers.DETERMINISTIC) if n not in FIRST)]
    if "v3" in space.bases:
        names = [*THIRD, *names]
    for name in names:
        for afs in space.afs[:2]:
            for grid in where:
                schedule = _schedule(space, name, grid, nfe, afs)
                if schedule is not None:
                    yield f"{name} on {grid}" + (f", first step {afs}" if afs else ""), schedule


def _schedule(space: Space, name: str, grid: str, nfe: int, afs: Any) -> SolverSchedule | None:
    """A named solver with exactly nfe calls, or None if it has none in this space."""
    count = solvers.calls(name, nfe + (afs is not None), to_zero=space.clean)
    if not count:
        return None
    end: Any = "zero" if space.clean else space.last_times[0]
    try:
        times = grids.named(grid)(space.noise, count, end=end)
        schedule = replace(solvers.get(name)(times), afs=afs)
        if name in THIRD:
            return schedule if _reaches(space, schedule) else None
        if schedule.tabulate(space.noise).nfe != nfe:
            return None
    except FewstepError:
        return None
    found = space.encode(schedule)
    return schedule if found is None else replace(space.decode(found), name=schedule.name, citation=schedule.citation)
