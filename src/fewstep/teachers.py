"""The reference samplers of a search: of all methods, of judges of stochastic solvers, and of missing data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fewstep.search.methods import Source
from fewstep.search.teacher import Teacher, reference_schedule, stochastic_reference

if TYPE_CHECKING:
    from fewstep.rules import SolverSchedule
    from fewstep.setting import Setting


@dataclass
class Teachers:
    """Those of one setting, each made when it is first asked for."""

    ground: Setting
    _stochastic: dict[str, Teacher] = field(default_factory=dict[str, Teacher])

    @cached_property
    def reference(self) -> Teacher:
        """The deterministic one over the window: what methods plan on and learn from."""
        ends = self.ground.window.ends
        return self._made(reference_schedule(self.ground.window.noise, self.ground.teacher_calls, **ends))

    def compared(self, sources: Sequence[Source]) -> Teacher | None:
        """The one that samples of these solvers are compared with, if there is any; the stochastic one where all of
        them are.
        """
        return self.of(sources[0].name, stochastic=all(source.stochastic for source in sources))

    def of(self, solver: str, *, stochastic: bool) -> Teacher | None:
        """The one that samples of a solver are compared with, if there is any: of a stochastic one one that follows
        the same Brownian motion from the same seed (`fewstep.brownian`).
        """
        ground = self.ground
        if not ground.teacher_calls:
            return None
        if not stochastic:
            return self.reference
        noise = ground.window.noise
        schedule = stochastic_reference(solver, noise, ground.teacher_calls, **ground.window.ends)
        key = schedule.tabulate(noise).digest
        if key not in self._stochastic:
            self._stochastic[key] = self._made(schedule, brownian=True)
        return self._stochastic[key]

    @cached_property
    def maker(self) -> Teacher:
        """The one that makes clean samples of noise alone, which those of the network's labels may be."""
        if self.ground.window.whole:
            return self.reference
        ground = self.ground
        schedule = reference_schedule(ground.window.noise, ground.teacher_calls)
        return Teacher(
            ground.model, schedule.tabulate(ground.window.noise), condition=ground.asked, cache=ground.cache,
            probe=ground.probe, batch_size=ground.batch,
        )  # fmt: skip

    def _made(self, schedule: SolverSchedule, *, brownian: bool = False) -> Teacher:
        ground = self.ground
        condition, init = (ground.asked, None) if ground.window.start is None else (ground.condition, ground.init)
        return Teacher(
            ground.model, schedule.tabulate(ground.window.noise), condition=condition, cache=ground.cache,
            probe=ground.probe, batch_size=ground.batch, init=init, brownian=brownian,
        )  # fmt: skip
