"""Choosing among candidates with few images: a race in rounds.

Every candidate is scored on a few images; the better part is scored on more of the same seeds, and so on. Scores of
different counts are never compared (a Fréchet distance falls with the count): the standing is by round, then by score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from fewstep.rules import SolverSchedule
    from fewstep.tableau import Tableau

SAME = 1e-3
"""Two grids whose log ratios differ by less than this anywhere are one candidate."""


@dataclass(eq=False)
class Candidate:
    """A sampler that takes part.

    Attributes:
        schedule: its decisions; tableau: its numbers.
        solver: the solver's name; method: `hand`, `dmn`, `ays`; origin: where the times come from, in words.
        log_ratios: `[n+1]` log(sigma / alpha) of its times, to recognise equal grids.
        scores: score by number of images.
        about: plain data for the record.
    """

    schedule: SolverSchedule
    tableau: Tableau
    solver: str
    method: str
    origin: str
    log_ratios: Tensor
    scores: dict[int, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def same(self, other: Candidate) -> bool:
        """Whether both are one sampler, for practical purposes."""
        if self.solver != other.solver or self.log_ratios.shape != other.log_ratios.shape:
            return False
        return bool((self.log_ratios - other.log_ratios).abs().max() < SAME)

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "origin": self.origin,
            "method": self.method,
            "solver": self.solver,
            "times": self.schedule.times.tolist(),
            "scores": {str(count): value for count, value in sorted(self.scores.items())},
            **self.about,
        }


class Race:
    """Candidates and their standing.

    Args:
        score: `(candidate, count) -> score` on the first `count` seeds.
        counts: images in each round, rising.
        told: called after every score.
    """

    def __init__(self, score: Callable[[Candidate, int], float], counts: tuple[int, ...], told: Callable[[Candidate], None]) -> None:
        self._score, self.counts, self._told = score, counts, told
        self.entries: list[Candidate] = []

    def enter(self, candidates: Iterable[Candidate], room: int) -> list[Candidate]:
        """Score up to `room` new candidates in the first round; grids that are there already are passed over."""
        new: list[Candidate] = []
        for candidate in candidates:
            if len(new) == room:
                break
            if not any(candidate.same(other) for other in self.entries):
                self.entries.append(candidate)
                new.append(candidate)
                self._run(candidate, self.counts[0])
        return new

    def standing(self) -> list[Candidate]:
        """Best first: those of the latest round before those of the one before it, by score within a round."""
        return sorted(self.entries, key=lambda c: (-max(c.scores), c.scores[max(c.scores)]))

    def best(self, method: str | None = None) -> Candidate:
        """The first of the standing, of one method if given."""
        return next(c for c in self.standing() if method is None or c.method == method)

    def promote(self, stage: int, room: int, guard: Callable[[Candidate], bool] | None = None) -> None:
        """Bring the best `room` of the last round to round `stage`, and with them the best one that `guard` holds for."""
        here = sorted(
            (c for c in self.entries if self.counts[stage - 1] in c.scores), key=lambda c: c.scores[self.counts[stage - 1]]
        )
        chosen = here[:room]
        if guard is not None and chosen and not any(guard(c) for c in chosen):
            kept = next((c for c in here if guard(c)), None)
            chosen = [*chosen[: max(0, room - 1)], *([kept] if kept else [])]
        for candidate in chosen:
            self._run(candidate, self.counts[stage])

    def _run(self, candidate: Candidate, count: int) -> None:
        if count not in candidate.scores:
            candidate.scores[count] = self._score(candidate, count)
            self._told(candidate)
