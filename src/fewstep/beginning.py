"""What a search over whole schedules begins with: somebody else's sampler, or the network's statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fewstep import solvers
from fewstep.errors import ArgumentError
from fewstep.export_text import grid_of
from fewstep.proposals import Proposal, Proposer, Trial, learn_every
from fewstep.rules import SolverSchedule

if TYPE_CHECKING:
    from fewstep.ems import EMS
    from fewstep.noise import NoiseSchedule
    from fewstep.tableau import Tableau

SOLVERS = ("dpmpp_2m", "unipc_2_bh2_data", "ddim", "dpmpp_3m")
"""What is put on the times of a table that has no decisions of its own."""
BEFORE = -1
"""Stage of these proposals: the initial population is stage 0, and is counted."""


def first_of(table: Tableau, noise: NoiseSchedule, nfes: Sequence[int]) -> list[dict[str, Any]]:
    """Proposals of a table as plain data: its own decisions, or some solvers on its times.

    Raises:
        ArgumentError: a table for another noise schedule, or of a number of calls that is not searched.
    """
    import torch

    if table.noise != noise:
        raise ArgumentError(f"the table to start from is for {table.noise!r}, and the network has {noise!r}")
    if table.nfe not in nfes:
        raise ArgumentError(
            f"the table to start from makes {table.nfe} network calls, and {', '.join(map(str, nfes))} are searched"
        )
    name = table.name or "the given table"
    if table.schedule is not None:
        return [{"origin": f"given: {name}", "schedule": table.schedule.canonical().to_dict()}]
    grid = torch.tensor(grid_of(table), dtype=torch.float64, device="cpu")
    found: list[dict[str, Any]] = []
    for solver in SOLVERS:
        schedule = solvers.get(solver)(grid)
        if schedule.tabulate(noise).nfe == table.nfe:
            found.append({"origin": f"{solver} on the times of {name}", "schedule": schedule.canonical().to_dict()})
    if not found:
        raise ArgumentError(
            f"{name} has no decisions, and no solver makes {table.nfe} network calls on its times: leave it out"
        )
    return found


class Beginning:
    """A proposer with proposals before its own."""

    def __init__(self, proposer: Proposer, first: Sequence[Mapping[str, Any]]) -> None:
        self._proposer, self.name = proposer, proposer.name
        self.learn_every = learn_every(proposer)
        self._first = [
            Proposal(SolverSchedule.from_dict(record["schedule"]), record["origin"], BEFORE) for record in first
        ]

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        """What was given and is not tried yet, then the proposer's own."""
        tried = {_key(t.proposal.schedule) for t in trials}
        waiting = [p for p in self._first if _key(p.schedule) not in tried][:count]
        rest = count - len(waiting)
        return [*waiting, *(self._proposer.propose(trials, rest, seed) if rest else [])]

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """As the proposer does; stages are counted from 0 there."""
        return self._proposer.learn(
            [replace(t, proposal=replace(t.proposal, stage=max(t.proposal.stage, 0))) for t in trials]
        )

    @property
    def lesson(self) -> Any:
        """The proposer's."""
        return self._proposer.lesson

    @lesson.setter
    def lesson(self, lesson: Any) -> None:
        self._proposer.lesson = lesson


def _key(schedule: SolverSchedule) -> str:
    return json.dumps(schedule.canonical().to_dict(), sort_keys=True)


def with_third_basis(options: dict[str, Any], proposer: str, statistics: EMS | None) -> dict[str, Any]:
    """The options of our own proposers with the basis "v3" where there are statistics, and where these reach.

    Raises:
        ArgumentError: "v3" without statistics.
    """
    if statistics is None:
        if "v3" in options.get("bases", ()):
            raise ArgumentError(
                "bases has 'v3', which needs the network's statistics: give statistics=, or leave it out"
            )
        return options
    if proposer.startswith("python:"):
        return options
    return {"bases": ["data", "noise", "v3"], "reach": list(statistics.reach)} | options
