"""Learning by gradient as a stage of an optimisation, from its best hand-crafted samplers, in a share of its budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fewstep import solvers, times
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.search.ays import to_ratios
from fewstep.search.gradient.fit import CHECKS
from fewstep.search.gradient.learn import LEAST_PAIRS, Learned, Learner
from fewstep.search.gradient.losses import objective
from fewstep.search.gradient.midpoints import steps_of
from fewstep.search.gradient.objectives import Objective
from fewstep.search.gradient.recipes import RECIPES, Recipe
from fewstep.search.gradient.space import SPACES, Start
from fewstep.search.ledger import Ledger, Stage
from fewstep.search.objective import Judge, PairedJudge, Scorer
from fewstep.search.select import Candidate
from fewstep.tableau import Tableau

if TYPE_CHECKING:
    from fewstep.search.plan import Plan
    from fewstep.setting import Setting

TEACHING = 0.3
"""Part of the learning's calls that may go to the teacher."""
MOST_PAIRS = 512
STARTS, ENOUGH = 2, 300
"""Descents from so many starts, where each can make so many updates; else from the best alone."""
WHOLE_BATCH = 256
"""Pairs in an update by a distance of distributions."""
PARALLEL = {"epd": 2, "epd-1": 1}


@dataclass
class Lessons:
    """The learning stage of one optimisation.

    Attributes:
        ground, plan, ledger, nfe: of the optimisation.
        judge, scorer: of the selection.
        offset: of the first selection seed that nobody else takes.
        seconds: time for it, if that is bounded.
    """

    ground: Setting
    plan: Plan
    ledger: Ledger
    nfe: int
    judge: Judge
    scorer: Scorer
    offset: int
    seconds: float | None = None

    def __call__(self, standing: list[Candidate]) -> list[Candidate]:
        """Samplers learned from the best of the standing.

        Errors: `ArgumentError` where the method can start from none of them.
        """
        recipe = self._recipe()
        starts, refused = self._starts(recipe, standing)
        if not starts:
            raise refused or ArgumentError(f"method {recipe.name} found no start among the hand-crafted samplers")
        with self.ledger.stage("learning", self.plan.stages["learning"]) as stage:
            learner, calls = self._learner()
            many = learner.updates(recipe, self.nfe, calls // STARTS) >= min(ENOUGH, recipe.iterations)
            starts = starts[: STARTS if many else 1]
            updates = learner.updates(recipe, self.nfe, calls // len(starts))
            if updates < CHECKS:
                raise ArgumentError(
                    f"max_calls={self.plan.max_calls} leaves {recipe.name} {updates} updates at {self.nfe} calls per "
                    "sample, too few to learn: give more calls (or minutes), or fewer calibration seeds"
                )
            seconds = None if self.seconds is None else self.seconds / len(starts)
            lowered = self._objective(recipe)
            return [
                self._candidate(
                    origin, solver, learner(start, recipe, lowered, iterations=updates, seconds=seconds), stage
                )
                for origin, solver, start in starts
            ]

    def _recipe(self) -> Recipe:
        recipe = RECIPES[self.ground.method]
        if self.ground.loss in ("frechet", "kernel") or getattr(self.ground.loss, "whole", False):
            return replace(recipe, batch=WHOLE_BATCH)
        return recipe

    def _objective(self, recipe: Recipe) -> Objective:
        loss, known = self.ground.loss, self.ground.known
        if not isinstance(loss, str):
            return loss
        name = recipe.loss if loss == "auto" else loss
        if known is None:
            return objective(name)
        return objective(
            name, features=known.features, reference=known.reference, reference_features=known.reference_features,
            feature_name=known.name,
        )  # fmt: skip

    def _learner(self) -> tuple[Learner, int]:
        """The pairs and the judge, and the calls that are left to descents."""
        ground, calls = self.ground, self.plan.stages["learning"]
        teacher, asked = ground.teacher, ground.seeds.calibration
        assert teacher is not None  # see `Setting.require_sources`
        count = int(TEACHING * calls / teacher.cost * 8 / 9)
        pairs = asked or CalibrationSeeds(max(LEAST_PAIRS, min(MOST_PAIRS, count)))
        held = SelectionSeeds(max(8, min(64, len(pairs) // 8)), self.offset)
        one = self.nfe * ground.model.batch_cost
        judged = next(
            (n for n in reversed(self.plan.counts) if (CHECKS + 1) * n * one < 0.35 * calls), self.plan.counts[0]
        )

        def score(table: Tableau) -> float:
            """A table that overflows is the worst, unless the network itself fails."""
            try:
                value = self.scorer.score(table, judged)
            except DenoiserError as error:
                if error.sane:
                    raise
                return math.inf
            return value if math.isfinite(value) else math.inf

        blind = isinstance(self.judge, PairedJudge)  # to whom the teacher is perfect
        learner = Learner(
            teacher, pairs, held, score, judged, ground.batch, cache=ground.cache,
            progress=ground.progress,
            look_at=None if blind else lambda images, seeds: self.judge.score(self.judge.observe(images, seeds)),
        )  # fmt: skip
        return learner, calls - (len(pairs) + len(held)) * teacher.cost

    def _starts(
        self, recipe: Recipe, standing: list[Candidate]
    ) -> tuple[list[tuple[str, str, Start]], ArgumentError | None]:
        """Origin, solver and start of the first of the standing that the space can hold."""
        found: list[tuple[str, str, Start]] = []
        refused: ArgumentError | None = None
        for candidate in standing:
            for solver, make in self._schedules(recipe, candidate):
                try:
                    start = Start.of(make(), self.ground.model.noise, low=self.ground.window.low)
                    nfe = SPACES[recipe.space](start).tableau().nfe
                except ArgumentError as error:
                    refused = error
                    continue
                if nfe == self.nfe:
                    found.append((candidate.origin, solver, start))
                    break
            if len(found) == STARTS:
                break
        return found, refused

    def _schedules(self, recipe: Recipe, candidate: Candidate) -> list[tuple[str, Callable[[], SolverSchedule]]]:
        """The candidate's own decisions, and then the solver that the paper starts from on the same times."""
        if recipe.name in PARALLEL:
            return [(recipe.name, lambda: self._coarser(recipe, candidate))]
        asked: list[tuple[str, Callable[[], SolverSchedule]]] = []
        if candidate.schedule is not None:
            schedule = candidate.schedule
            asked.append((candidate.solver, lambda: schedule))
        if recipe.solver:
            asked.append((recipe.solver, lambda: solvers.get(recipe.solver)(candidate.times)))
        return asked

    def _coarser(self, recipe: Recipe, candidate: Candidate) -> SolverSchedule:
        """EPD makes several calls a step: the candidate's kind of grid with fewer steps."""
        window = self.ground.window
        count = steps_of(self.nfe, PARALLEL[recipe.name], to_zero=window.to_zero)
        if candidate.origin not in times.NAMES:
            raise ArgumentError(f"{candidate.origin} has no grid of {count} steps")
        return solvers.get("ddim")(times.NAMES[candidate.origin](window.noise, count, **window.ends))

    def _candidate(self, origin: str, solver: str, learned: Learned, stage: Stage) -> Candidate:
        stage.backward += learned.backward
        self.ground.notes.extend(f"{learned.method} from {origin}: {note}" for note in learned.notes)
        self.ground.notes.append(
            f"{learned.method} from {origin}: {learned.size} numbers, {learned.iterations} updates of "
            f"{learned.objective}; the table's identities are off by {learned.defects['mean']:.2g} (mean) and "
            f"{learned.defects['variance']:.2g} (variance)."
        )
        table = replace(learned.tableau, name=f"{solver}, {learned.method}")
        level = to_ratios(self.ground.model.noise, table.times).log()
        text = f"{learned.method} from {origin}"
        return Candidate(None, table, solver, learned.method, text, level, about={"learned": learned.record()})
