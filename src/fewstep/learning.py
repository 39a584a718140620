"""Learning by gradient as a stage of an optimisation, from its best hand-crafted samplers, in a share of its budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fewstep import solvers, times
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.lowered import batched, lowered_by
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.search.ays import to_ratios
from fewstep.search.cache import digest
from fewstep.search.clock import FIRST, LEARNING, Clock
from fewstep.search.gradient.fit import CHECKS
from fewstep.search.gradient.learn import LEAST_PAIRS, Learned, Learner, require_pairs
from fewstep.search.gradient.midpoints import steps_of
from fewstep.search.gradient.objectives import Objective as LearningObjective
from fewstep.search.gradient.recipes import RECIPES, Recipe
from fewstep.search.gradient.space import SPACES, Start
from fewstep.search.judges import Judge, MatchedJudge, PairedJudge
from fewstep.search.ledger import Ledger, Stage
from fewstep.search.methods import Source
from fewstep.search.objective import Scorer
from fewstep.search.parts import HAND, STARTS
from fewstep.search.select import Candidate
from fewstep.tableau import Tableau

if TYPE_CHECKING:
    from fewstep.search.plan import Plan
    from fewstep.setting import Setting

TEACHING = 0.3
"""Part of the learning's calls that may go to the teacher."""
MOST_PAIRS = 512
WORTH = 40
"""Updates of a first lesson, at least; fewer would be taken from the last one in vain."""
ENOUGH = 300
"""Descents from several starts, where each can make so many updates; else from the best alone."""
PARALLEL = {"epd": 2, "epd-1": 1}


@dataclass(frozen=True)
class Turn:
    """One lesson.

    Attributes:
        recipe: its name; part: of the optimisation.
        share, time: of all the learning's calls, and of the time of the part.
        most: starts, at most; worth: updates, at least.
    """

    recipe: str
    part: str
    share: float = 1.0
    time: float = 1.0
    most: int = STARTS
    worth: int = CHECKS


@dataclass
class Lessons:
    """The learning stage of one optimisation.

    Attributes:
        ground, plan, ledger, nfe: of the optimisation.
        judge, scorer: of the race.
        offset: of the first selection seed that nobody else takes.
        clock: of the optimisation; a descent ends when the time of its part is over.
        taken: share of the learning's calls that lessons have had; charged: network calls of the pairs made for them.
    """

    ground: Setting
    plan: Plan
    ledger: Ledger
    nfe: int
    judge: Judge
    scorer: Scorer
    offset: int
    clock: Clock
    taken: float = 0.0
    charged: int = 0

    def first(self, standing: list[Candidate]) -> list[Candidate]:
        """A sampler learned early, from the best of few; none where the calls are too few for it to be worth them."""
        parts = self.plan.parts
        return self._turn(Turn(parts.first, FIRST, parts.early, most=1, worth=WORTH), standing)

    def last(self, k: int, standing: list[Candidate]) -> list[Candidate]:
        """Samplers that the method's k-th recipe learns from the best of the standing, in its portion of what is left.

        Errors: `ArgumentError` where the method can start from none of them.
        """
        parts = self.plan.parts
        before = math.prod(1 - portion for portion in parts.portions[:k])
        share, time = parts.portions[k] * (1 - self.taken), parts.portions[k] * before
        worth = CHECKS if k == len(parts.learned) - 1 else WORTH
        return self._turn(Turn(parts.learned[k], LEARNING, share, time, worth=worth), standing)

    def _turn(self, turn: Turn, standing: list[Candidate]) -> list[Candidate]:
        ground = self.ground
        try:
            return self._learned(turn, self._lowered(turn.recipe), standing)
        except ArgumentError as error:
            if not self.plan.parts.auto:
                raise
            ground.notes.append(f"Nothing was learned by {turn.recipe} ({turn.part}): {error}")
            return []

    def _lowered(self, recipe: str) -> LearningObjective:
        """What a recipe lowers: the method's own loss is that of its last one."""
        ground, parts = self.ground, self.plan.parts
        if recipe == parts.learned[-1]:
            found = ground.lowered
        else:
            alone = replace(parts, learned=(recipe,), loss="")
            found = lowered_by(ground.method, alone, ground.loss, ground.model, ground.known)
        assert found is not None  # see `Setting.lowered`
        return found

    def _learned(self, turn: Turn, lowered: LearningObjective, standing: list[Candidate]) -> list[Candidate]:
        recipe = batched(RECIPES[turn.recipe], lowered)
        starts, refused = starts_of(recipe, standing, self.ground, self.nfe)
        if not starts:
            raise refused or ArgumentError(f"method {recipe.name} found no start among the hand-crafted samplers")
        with self.ledger.stage("learning", self.plan.stages["learning"]) as stage:
            learner, calls, charged = self._learner(turn)
            many = learner.updates(recipe, self.nfe, calls // STARTS) >= min(ENOUGH, recipe.iterations)
            starts = starts[: turn.most if many else 1]
            updates = self._enough(learner, recipe, calls // len(starts), turn.worth)
            spent = max(0, charged - self.charged) + len(starts) * learner.cost(recipe, self.nfe, updates)
            self.taken, self.charged = self.taken + spent / self.plan.stages["learning"], max(self.charged, charged)
            given = self.clock.seconds
            seconds = given and given * self.clock.lessons[turn.part] * turn.time / len(starts)
            return [
                self._candidate(
                    origin, solver, learner(start, recipe, lowered, iterations=updates, seconds=seconds), stage
                )
                for origin, solver, start in starts
            ]

    def require(self) -> None:
        """Refuse, before anything is raced, a budget in which a method that learns could hardly do so.

        Errors: `ArgumentError`.
        """
        lowered, parts = self.ground.lowered, self.plan.parts
        if parts.auto or lowered is None:
            return
        for name in parts.learned:
            learner, calls, _ = self._learner(Turn(name, LEARNING))
            self._enough(learner, batched(RECIPES[name], lowered), calls, CHECKS)

    def _enough(self, learner: Learner, recipe: Recipe, calls: int, least: int) -> int:
        """The updates that the calls pay for.

        Errors: `ArgumentError` for too few.
        """
        updates = learner.updates(recipe, self.nfe, calls)
        if updates < least:
            raise ArgumentError(
                f"max_calls={self.plan.max_calls} leaves {recipe.name} {updates} updates at {self.nfe} calls per "
                "sample, too few to learn: give more calls (or minutes), or fewer calibration seeds"
            )
        return updates

    def _learner(self, turn: Turn) -> tuple[Learner, int, int]:
        """The pairs and the judge, the calls that are left to descents, and what all pairs so far cost."""
        ground, calls = self.ground, int(turn.share * self.plan.stages["learning"])
        teacher, asked = ground.teacher, ground.seeds.calibration
        assert teacher is not None  # see `Setting.require_sources`
        count = int(TEACHING * calls / teacher.cost * 8 / 9)
        few = max(LEAST_PAIRS, min(MOST_PAIRS, count))
        pairs = CalibrationSeeds(few) if asked is None else asked[:few] if turn.worth == WORTH else asked
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

        blind = isinstance(self.judge, PairedJudge | MatchedJudge)  # to whom the teacher is perfect
        named = self.judge.digest
        learner = Learner(
            teacher, pairs, held, score, judged, ground.batch, cache=ground.cache,
            judged_by=named and digest(named, list(self.scorer.seeds[:judged])),
            progress=ground.progress, late=lambda: self.clock.over(turn.part),
            look_at=None if blind else lambda images, seeds: self.judge.score(self.judge.observe(images, seeds)),
        )  # fmt: skip
        charged = (len(pairs) + len(held)) * teacher.cost
        return learner, calls - max(0, charged - self.charged), charged

    def _candidate(self, origin: str, solver: str, learned: Learned, stage: Stage) -> Candidate:
        stage.backward += learned.backward
        self.ground.notes.extend(f"{learned.method} from {origin}: {note}" for note in learned.notes)
        before, after = learned.losses["start"], learned.losses["found"]
        self.ground.notes.append(
            f"{learned.method} from {origin}: {learned.size} numbers, {learned.iterations} updates of "
            f"{learned.objective} ({before['from']:.3g} -> {after['from']:.3g} on pairs it learned from, "
            f"{before['held']:.3g} -> {after['held']:.3g} on others); the table's identities are off by "
            f"{learned.defects['mean']:.2g} (mean) and {learned.defects['variance']:.2g} (variance)."
        )
        table = replace(learned.tableau, name=f"{solver}, {learned.method}")
        level = to_ratios(self.ground.model.noise, table.times).log()
        text = f"{learned.method} from {origin}"
        return Candidate(None, table, solver, learned.method, text, level, about={"learned": learned.record()})


def starts_of(
    recipe: Recipe, standing: Iterable[Candidate], ground: Setting, nfe: int
) -> tuple[list[tuple[str, str, Start]], ArgumentError | None]:
    """Origin, solver and start of the first of the standing that the method's space can hold; why others cannot be."""
    found: list[tuple[str, str, Start]] = []
    refused: ArgumentError | None = None
    for candidate in standing:
        try:
            for solver, schedule in _schedules(recipe, candidate, ground, nfe):
                start = Start.of(schedule, ground.model.noise, low=ground.window.low)
                try:
                    made = SPACES[recipe.space](start).tableau().nfe
                except ArgumentError as error:
                    refused = error
                    continue
                if made == nfe:
                    found.append((candidate.origin, solver, start))
                    break
        except ArgumentError as error:
            refused = error
        if len(found) == STARTS:
            break
    return found, refused


def require_start(ground: Setting, nfe: int, sources: Sequence[Source]) -> None:
    """Refuse, before any work, a method that cannot begin at these solvers with so many network calls.

    Errors: `ArgumentError`.
    """
    window = ground.window
    if ground.seeds.calibration is not None and not ground.parts.auto:
        require_pairs(ground.seeds.calibration)
    tried = [s.candidate(times.logsnr(window.noise, s.steps, **window.ends), HAND, "logsnr") for s in sources]
    for name in ground.parts.learned:
        found, refused = starts_of(RECIPES[name], [c for c in tried if c is not None], ground, nfe)
        if found or ground.parts.auto:
            continue
        raise refused or ArgumentError(f"method {ground.method} cannot make exactly {nfe} network calls: give another")


def _schedules(recipe: Recipe, candidate: Candidate, ground: Setting, nfe: int) -> Iterator[tuple[str, SolverSchedule]]:
    """The candidate's own decisions, and then the solver that the paper starts from on the same times."""
    if recipe.name in PARALLEL:  # several calls a step: the candidate's kind of grid with fewer steps
        count = steps_of(nfe, PARALLEL[recipe.name], to_zero=ground.window.to_zero)
        if candidate.origin in times.NAMES:
            grid = times.NAMES[candidate.origin](ground.window.noise, count, **ground.window.ends)
            yield recipe.name, solvers.get("ddim")(grid)
        return
    if candidate.schedule is not None:
        yield candidate.solver, candidate.schedule
    if recipe.solver:
        yield recipe.solver, solvers.get(recipe.solver)(candidate.times)
