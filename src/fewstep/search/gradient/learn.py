"""One learned sampler: from a start, a recipe and a budget to a table, with what a reader should know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.progress import Report, silent
from fewstep.sampling import sample
from fewstep.search.cache import Cache, digest
from fewstep.search.gradient.fit import CHECKS, Fit
from fewstep.search.gradient.objectives import Along, Objective
from fewstep.search.gradient.pairs import Pairs
from fewstep.search.gradient.recipes import RECIPES, Recipe
from fewstep.search.gradient.slope import Slope
from fewstep.search.gradient.space import SPACES, Start
from fewstep.search.gradient.state import finite
from fewstep.tableau import Tableau

if TYPE_CHECKING:
    from fewstep.search.teacher import Teacher

OVERFITTED = 1.25
"""The loss on held-out pairs, over that on the pairs learned from, may have grown by this since the start."""
LOOKED = 64
"""Pairs that are looked at for that."""
LEAST_PAIRS = 4
LARGE = 3 * 64 * 64


@dataclass(frozen=True)
class Learned:
    """What a descent found.

    Attributes:
        tableau: the best table by the judge; start: what it began with.
        method, objective: names; size: free numbers.
        score, start_score: by the judge, on selection seeds.
        losses: of the objective, `start` and `found`, each on the pairs learned `from` and on `held` out ones.
        iterations, backward: updates made, and network calls x samples that were differentiated.
        history: (update, loss of its batch, score) of each judgement.
        defects: the largest of each of the table's two identities (`mean`, `variance`).
        notes: what a reader should know.
    """

    tableau: Tableau
    start: Tableau
    method: str
    objective: str
    size: int
    score: float
    start_score: float
    losses: dict[str, Any]
    iterations: int
    backward: int
    history: list[Any]
    defects: dict[str, float]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """Plain data."""
        keep = ("method", "objective", "size", "losses", "iterations", "backward", "defects", "notes")
        scores = {"score": finite(self.score), "start_score": finite(self.start_score)}
        return {name: getattr(self, name) for name in keep} | scores | {
            "history": [[i, finite(loss), finite(score)] for i, loss, score in self.history]
        }  # fmt: skip


@dataclass
class Learner:
    """What all descents on one network share.

    Attributes:
        teacher: makes the pairs.
        calibration, held: seeds of the pairs that are learned from, and of those that show overfitting.
        judge: the score of a table, lower is better; judged: its cost in samples.
        batch_size, checkpoint, autocast: see `Slope`; by default activations are recomputed for samples of 12,288
            numbers (3 x 64 x 64) and more.
        cache: of the descents' states; they go on after a kill.
        judged_by: names the judge and its seeds; without, a state could be another judge's, and none is kept.
        progress: told after every judgement.
        late: asked after every update whether there is no time for more.
        look_at: `(images, seeds) -> score` of the judge, by which the teacher itself is compared; None leaves that out.
    """

    teacher: Teacher
    calibration: Sequence[int]
    held: Sequence[int]
    judge: Callable[[Tableau], float]
    judged: int = 0
    batch_size: int = 64
    checkpoint: bool | None = None
    autocast: torch.dtype | None = None
    cache: Cache = field(default_factory=lambda: Cache(None))
    judged_by: str | None = None
    progress: Report = silent
    late: Callable[[], bool] = lambda: False
    look_at: Callable[[Tensor, Sequence[int]], float] | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            self.checkpoint = math.prod(self.teacher.denoiser.shape) >= LARGE
        require_pairs(self.calibration)

    def updates(self, recipe: Recipe, nfe: int, calls: int) -> int:
        """How many updates `calls` network calls pay for, judgements included; the teacher's are apart."""
        each, rest = self._images(recipe)
        return max(0, min(recipe.iterations, (calls // (self.teacher.denoiser.batch_cost * nfe) - rest) // each))

    def cost(self, recipe: Recipe, nfe: int, updates: int) -> int:
        """Network calls that so many updates take at most, judgements included; the teacher's are apart."""
        each, rest = self._images(recipe)
        return (updates * each + rest) * self.teacher.denoiser.batch_cost * nfe

    def _images(self, recipe: Recipe) -> tuple[int, int]:
        """Samples of each update, and those of all judgements and looks."""
        passes = 1 + bool(self.checkpoint) + recipe.soft
        return min(recipe.batch, len(self.calibration)) * passes, (CHECKS + 1) * self.judged + 5 * LOOKED

    def __call__(
        self, start: Start, recipe: Recipe | str, objective: Objective, *, iterations: int,
        seconds: float | None = None, seed: int = 0,
    ) -> Learned:  # fmt: skip
        """Learn from a start.

        Args:
            start: the sampler to begin with.
            recipe: a method, or its name.
            objective: what is lowered (`fewstep.search.gradient.losses.objective` knows names).
            iterations: updates, at most; seconds: time for them.
            seed: of the order of the pairs.

        Errors: `ArgumentError` where the space cannot hold the start.
        """
        known = RECIPES[recipe] if isinstance(recipe, str) else recipe
        space = SPACES[known.space](start)
        phases = known.phases(space)
        path = objective.along or any(phase.objective is not None and phase.objective.along for phase in phases)
        if isinstance(objective, Along):
            objective = objective.on(space.rows)
        first = start.noise.levels(start.schedule.times[0])
        sides: dict[str, Any] = {"sigma": first[1].item(), "alpha": first[0].item(), "progress": self.progress}
        pairs = Pairs(self.teacher, self.calibration, path=path, **sides)
        begun = space.tableau(f"{start.schedule.name}, start")
        slope = Slope(
            self.teacher.denoiser, batch_size=self.batch_size, checkpoint=bool(self.checkpoint), autocast=self.autocast
        )
        init = self.teacher.init and self.teacher.init(self.calibration)
        name = "learned-" + digest(
            self.teacher.identity, self.judged_by, begun.digest, known.identity, objective.name, _tensors(objective),
            list(self.calibration), self.teacher.condition(self.calibration), init, first, iterations, seconds, seed,
            str(self.autocast),
        )  # fmt: skip
        fit = Fit(
            space, objective, pairs, known, slope, self.judge, iterations, seconds,
            self.cache if self.judged_by else Cache(None), name, self.progress, seed, self.late,
        )  # fmt: skip
        look = self._look(slope, fit, path and objective.along, sides)
        before = look()
        table = fit.run()
        losses = {"start": before, "found": look()}
        mean, variance = table.defects()
        defects = {"mean": mean.abs().max().item(), "variance": variance.abs().max().item()}
        start_score = next(score for update, _, score in fit.now.history if update == 0)
        notes = [*fit.now.notes, *self._notes(fit, losses, start_score), *self._of_teacher(table)]
        return Learned(
            table, begun, known.name, objective.name, space.size, fit.now.best, start_score, losses,
            fit.now.iteration, slope.backward, fit.now.history, defects, notes,
        )  # fmt: skip

    def _look(self, slope: Slope, fit: Fit, path: bool, sides: dict[str, Any]) -> Callable[[], dict[str, float]]:
        held = Pairs(self.teacher, self.held, path=path, **sides)
        own = Pairs(self.teacher, self.calibration[: min(LOOKED, len(self.calibration))], path=path, **sides)

        def look() -> dict[str, float]:
            value = lambda some: slope.value(fit.space, fit.objective, some.batch(range(len(some)), path=path))  # noqa: E731
            return {"from": value(own), "held": value(held)}

        return look

    def _notes(self, fit: Fit, losses: dict[str, Any], start_score: float) -> list[str]:
        """What the numbers say about the pairs and the teacher."""
        notes: list[str] = []
        (a, b), (c, d) = ((losses[k]["from"], losses[k]["held"]) for k in ("start", "found"))
        few = f"the {len(self.calibration)} pairs learned from"
        if min(a, b, c, d) > 0 and (d / c) / (b / a) > OVERFITTED:
            notes.append(
                f"Overfitted: the loss on held-out pairs is {d / c:.2f} times that on {few}, and was {b / a:.2f} times "
                "at the start. More calibration seeds would help."
            )
        elif min(a, b, c, d) <= 0 and a > c and b - d < (a - c) / OVERFITTED:  # logarithms, differences of kernels
            notes.append(
                f"Overfitted: the loss fell by {a - c:.3g} on {few}, and by {b - d:.3g} on held-out pairs. More "
                "calibration seeds would help."
            )
        if fit.now.best >= start_score:
            notes.append("No point of the descent was better than its start by the judge: the start is returned.")
        return notes

    def _of_teacher(self, table: Tableau) -> list[str]:
        """Whether the judge likes the teacher less than the sampler found, both on the held-out seeds."""
        if self.look_at is None:
            return []
        seeds, net = list(self.held), self.teacher.denoiser
        init = None if self.teacher.init is None else self.teacher.init(seeds)
        made = sample(
            net, table, seeds=seeds, init=init, condition=self.teacher.condition(seeds), batch_size=self.batch_size
        )
        ours, theirs = self.look_at(made, seeds), self.look_at(self.teacher(seeds), seeds)
        if not ours < theirs:
            return []
        return [
            f"The judge scores the teacher at {theirs:.4g} and the sampler found at {ours:.4g} on the same "
            f"{len(seeds)} seeds: a better teacher (teacher_calls) could be learned from, or these are too few to say."
        ]


def require_pairs(calibration: Sequence[int]) -> None:
    """Refuse fewer seeds than a sampler can be learned from.

    Errors: `ArgumentError`.
    """
    if len(calibration) < LEAST_PAIRS:
        raise ArgumentError(
            f"{len(calibration)} calibration seeds: a sampler is learned from {LEAST_PAIRS} pairs or more; give more"
        )


def _tensors(objective: Objective) -> list[Tensor]:
    """What an objective compares with, besides the pairs: statistics of data."""
    return [value for value in getattr(objective, "__dict__", {}).values() if isinstance(value, Tensor)]
