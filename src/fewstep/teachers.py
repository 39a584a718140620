"""The reference samplers of a search: of all methods, of judges of stochastic solvers, and of missing data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fewstep.search.methods import Source
from fewstep.search.teacher import Teacher, reference_schedule, sde_of, stochastic_reference

if TYPE_CHECKING:
    from fewstep.rules import SolverSchedule
    from fewstep.setting import Setting
    from fewstep.tableau import Tableau


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

    def kind(self, sources: Sequence[Source], given: Tableau | None = None) -> str:
        """What samples of these solvers are compared with: one SDE's reference (`sde_of`) where all of them solve it,
        else the deterministic one, which is the empty word. So it is where a deterministic table takes part: one that
        was given, or one that is learned.
        """
        kinds = {sde_of(source.name) for source in sources}
        drawn = given is None or given.C.shape[1] > 0
        return kinds.pop() if len(kinds) == 1 and drawn and not self.ground.learned else ""

    def of(self, kind: str) -> Teacher | None:
        """The teacher of that kind, if there are teachers. A stochastic one follows the Brownian motion that stochastic
        samples are drawn on (`fewstep.brownian`).
        """
        ground = self.ground
        if not ground.teacher_calls:
            return None
        if not kind:
            return self.reference
        if kind not in self._stochastic:
            schedule = stochastic_reference(kind, ground.window.noise, ground.teacher_calls, **ground.window.ends)
            self._stochastic[kind] = self._made(schedule, brownian=True)
        return self._stochastic[kind]

    @cached_property
    def maker(self) -> Teacher:
        """The one that makes clean samples, from noise alone, where a search has no data."""
        if self.ground.window.whole:
            return self.reference
        return self._made(reference_schedule(self.ground.window.noise, self.ground.teacher_calls), whole=True)

    def _made(self, schedule: SolverSchedule, *, whole: bool = False, brownian: bool = False) -> Teacher:
        ground = self.ground
        fresh = whole or ground.window.start is None
        condition, init = (ground.asked, None) if fresh else (ground.condition, ground.init)
        return Teacher(
            ground.model, schedule.tabulate(ground.window.noise), condition=condition, cache=ground.cache,
            probe=ground.probe, batch_size=ground.batch, init=init, brownian=brownian,
        )  # fmt: skip
