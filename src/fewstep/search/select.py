"""Choosing among candidates with few images: a race in rounds.

Every candidate is scored on a few images; the better part is scored on more of the same seeds, and so on. Scores of
different counts are never compared (a Fréchet distance falls with the count): the standing is by round, then by score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.search.parts import EVOLVED

if TYPE_CHECKING:
    from fewstep.rules import SolverSchedule
    from fewstep.tableau import Tableau

FEWEST = 4
"""Entries that a race has however late it is: there must be a start, and something beside it."""
SAME = 1e-3
"""Two grids whose log ratios differ by less than this anywhere are one candidate."""


@dataclass(eq=False)
class Candidate:
    """A sampler that takes part.

    Attributes:
        schedule: its decisions, None for learned weights and for tables from elsewhere; tableau: its numbers.
        solver: the solver's name; method: `hand`, `dmn`, `ays`, ...; origin: where the times come from, in words.
        log_ratios: `[n+1]` log(sigma / alpha) of its times, to recognise equal grids.
        scores: score by number of images.
        about: plain data for the record.
    """

    schedule: SolverSchedule | None
    tableau: Tableau
    solver: str
    method: str
    origin: str
    log_ratios: Tensor
    scores: dict[int, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def same(self, other: Candidate) -> bool:
        """Whether both are one sampler, for practical purposes."""
        if self.solver != other.solver:
            return False
        if self.schedule is None or other.schedule is None or EVOLVED in (self.method, other.method):
            return self.tableau.isclose(other.tableau)
        if self.log_ratios.shape != other.log_ratios.shape:
            return False
        return bool((self.log_ratios - other.log_ratios).abs().max() < SAME)

    @property
    def times(self) -> Tensor:
        """Of its grid; of its states where the decisions are not known."""
        return self.tableau.times if self.schedule is None else self.schedule.times

    def record(self) -> dict[str, Any]:
        """Plain data; a score that overflowed is None, for JSON knows no infinity."""
        return {
            "origin": self.origin,
            "method": self.method,
            "solver": self.solver,
            "times": self.times.tolist(),
            "scores": {str(count): finite(value) for count, value in sorted(self.scores.items())},
            **self.about,
        }


def finite(score: float) -> float | None:
    """The score, or None if it is none."""
    return score if math.isfinite(score) else None


class Race:
    """Candidates and their standing.

    Args:
        score: `(candidate, count) -> score` on the first `count` seeds.
        counts: images in each round, rising.
        told: called after every score, with the candidate and the number of its new images.
        late: asked before every score but the first few whether there is no time for more.
    """

    def __init__(
        self,
        score: Callable[[Candidate, int], float],
        counts: tuple[int, ...],
        told: Callable[[Candidate, int], None],
        late: Callable[[], bool] = lambda: False,
    ) -> None:
        self._score, self.counts, self._told, self._late = score, counts, told, late
        self.entries: list[Candidate] = []

    def enter(self, candidates: Iterable[Candidate], room: int, stage: int = 0) -> None:
        """Score up to `room` new candidates in a round, by default the first; grids already there are passed over."""
        if room < 1:
            return
        for candidate in candidates:
            if len(self.entries) >= FEWEST and self._late():
                return
            if not any(candidate.same(other) for other in self.entries):
                self.entries.append(candidate)
                self._run(candidate, stage)
                room -= 1
                if not room:
                    return

    def standing(self) -> list[Candidate]:
        """Best first: those of the latest round before those of the one before it, by score within a round."""
        return sorted(
            self.entries, key=lambda c: (-max(c.scores, default=0), c.scores[max(c.scores)] if c.scores else 0.0)
        )

    def best(self, method: str) -> Candidate:
        """The first of the standing that has this method."""
        return next(c for c in self.standing() if c.method == method)

    def promote(self, stage: int, room: int, special: int, is_special: Callable[[Candidate], bool]) -> None:
        """Bring candidates of the last round to round `stage`, until `room` are there in all.

        The best go on; of the special ones at least the best `special` do, in the place of the worst of the others.
        """
        before, after = self.counts[stage - 1], self.counts[stage]
        here = sorted((c for c in self.entries if before in c.scores), key=lambda c: c.scores[before])
        there = [c for c in here if after in c.scores]
        waiting = [c for c in here if after not in c.scores]
        need = max(0, special - sum(map(is_special, there)))
        room = max(0, room - len(there))
        reserved = [c for c in waiting if is_special(c)][: min(need, room)]
        rest = [c for c in waiting if c not in reserved][: room - len(reserved)]
        for candidate in sorted([*reserved, *rest], key=lambda c: c.scores[before]):
            if self._late():
                return
            self._run(candidate, stage)

    def _run(self, candidate: Candidate, stage: int) -> None:
        count = self.counts[stage]
        candidate.scores[count] = self._score(candidate, count)
        self._told(candidate, count - max((c for c in candidate.scores if c < count), default=0))
