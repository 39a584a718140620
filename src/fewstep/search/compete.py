"""The competition: who enters when, who goes on, and the finals on fresh seeds.

Hand-crafted grids and DMN's enter first, then those of the loss curve; then grids on AYS's ways down from all of them,
those from the best starts before the others.
The better ones go on to more images; the neighbours of the best on their ways enter, and then, one after the other,
the grids that a surrogate of all scores so far expects most of. The finals compare the best three and the best
hand-crafted grid on seeds that have chosen nothing yet.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fewstep.errors import DenoiserError
from fewstep.progress import Event, Report
from fewstep.search.klub import Gram
from fewstep.search.ledger import Ledger
from fewstep.search.methods import AYS, DESCENDING, HAND, Source, entered
from fewstep.search.objective import Scorer
from fewstep.search.plan import AROUND, FINALISTS, Plan
from fewstep.search.planner import PLANNED, Planner
from fewstep.search.select import Candidate, Race, finite
from fewstep.tableau import Tableau

THINNED = 5
"""Grids of each way down that may enter before its best are known."""
PROPOSALS = {"gits": 8, "oss": 2, "local_error": 10}
"""Entries that are kept for the times that a plan proposes."""
HANDS = (3, 2)
"""Hand-crafted grids that go on to each later round whatever their standing: the start must be well judged too."""


class Competition:
    """One search.

    Args:
        sources: candidates by solver; the first solver's hand-crafted grids all enter, of the others the best few.
        scorer: judges samples on selection seeds, `plan.counts[-1]` of the race and then `plan.fresh` of the finals.
        finals: the same judge on fresh selection seeds.
        plan: rooms and counts.
        method: one of `METHODS`.
        ledger: where the cost is written.
        progress: told after every score.
        given: somebody else's table, which enters too, and whose times all solvers try; the winner of the finals is
            never worse.
    """

    def __init__(
        self,
        sources: list[Source],
        scorer: Scorer,
        finals: Scorer,
        plan: Plan,
        method: str,
        ledger: Ledger,
        progress: Report,
        given: Tableau | None = None,
    ) -> None:
        self.given = given
        self.sources, self.plan, self.method, self.ledger = sources, plan, method, ledger
        self.by_solver = {source.name: source for source in sources}
        self._scorer, self._finals, self._progress = scorer, finals, progress
        self._failure: DenoiserError | None = None
        self._images = 0
        self.race = Race(self._score, plan.counts, self._told)

    def begin(self) -> None:
        """Hand-crafted grids, and DMN's where the method wants them."""
        with self._stage():
            room = self.plan.rooms[0]
            if self.method in PLANNED:
                room -= min(room // 2, PROPOSALS[self.method])
            first, others = self.sources[0], self.sources[1:]
            if self.given is not None:
                self._enter([entered(first.window, self.given, first.nfe)], room)
            # Before the given times: were these equal to a hand-crafted grid, they would take its place in the figures.
            self._enter(first.hand(), room if self.given is None else room - len(self.sources))
            if self.given is not None:
                for source in self.sources:
                    self._enter(source.given(self.given), room)
            best = [c.origin for c in self.race.standing()[:4]]
            for source in others:
                self._enter((c for c in source.hand() if c.origin in best), room)
            if self.method in ("auto", "dmn"):
                for source in self._by_standing()[:2]:
                    self._enter(source.dmn(4 if self.method == "dmn" else 2), room)
            if self._failure is not None and all(math.isinf(c.scores[self.plan.counts[0]]) for c in self.race.entries):
                raise self._failure

    def descend(self, gram: Gram) -> None:
        """Grids on the ways down from everything that has entered, in the order of the standing."""
        with self._stage():
            keep = int(AROUND * self.plan.rooms[0])
            sources = self._by_standing()[:2]
            for source in sources:
                if self.method == "auto":
                    self._enter(source.relatives(gram), self.plan.rooms[0] - keep)
                mine = [c for c in self.race.standing() if c.solver == source.name and c.method != AYS]
                source.descend(gram, mine)
                left = self.plan.rooms[0] - keep - len(self.race.entries)
                room = left if source is sources[-1] else math.ceil(0.7 * left)
                self._enter(source.thinned([c.origin for c in mine], THINNED), len(self.race.entries) + room)

    def propose(self, planner: Planner) -> None:
        """Times planned on teacher trajectories; the plans of the best solvers enter first."""
        with self._stage():
            for source in self._by_standing():
                self._enter(source.planned(planner, self.method), self.plan.rooms[0])

    def learn(self, teach: Callable[[list[Candidate]], list[Candidate]]) -> None:
        """Samplers learned from the best of the standing enter the race."""
        learned = teach(self.race.standing())
        with self._stage():
            self.race.enter(learned, len(learned))

    def conclude(self) -> None:
        """Later rounds; before the last one the neighbours of the best enter, and the surrogate's guesses."""
        with self._stage():
            second, third = self.plan.rooms[1:]
            self._promote(1, second - second // 3 if self.method in DESCENDING else second)
            if self.method in DESCENDING:
                self._enter(self._neighbours(), self.plan.rooms[0])
                self._promote(1, second)
            for k in range(self.plan.guesses):
                guess = self._guess(k)
                if guess is not None:
                    self.race.enter([guess], 1, stage=1)
            self._promote(2, third)

    def finals(self) -> tuple[Candidate, Candidate, dict[str, Any]]:
        """The winner, the best hand-crafted one, and the scores of the finals; where none is better, the start wins."""
        start = self.race.best(HAND)
        best = [c for c in self.race.standing()[: FINALISTS - 1] if c is not start]
        given = [c for c in self.race.entries if c.tableau is self.given and c not in best]
        entries = [start, *best[: FINALISTS - 1 - len(given)], *given]
        count = self.plan.fresh
        scores: dict[int, float] = {}
        with self.ledger.stage("finals", self.plan.stages["finals"]):
            for k, candidate in enumerate(entries):
                scores[k] = self._safely(self._finals, candidate, count)
                candidate.about["fresh"] = {"samples": count, "score": finite(scores[k])}
                best = min(scores, key=lambda j: scores[j])
                self._progress(Event("finals", k + 1, len(entries), f"{scores[best]:.4g} {entries[best].origin}"))
        winner = entries[min(scores, key=lambda j: scores[j])]
        return winner, start, {"samples": count, "before": scores[0], "after": min(scores.values())}

    def _stage(self) -> Any:
        return self.ledger.stage("race", self.plan.stages["race"])

    def _by_standing(self) -> list[Source]:
        """The solvers, that of the best entry first."""
        names = dict.fromkeys(c.solver for c in self.race.standing())
        return [self.by_solver[name] for name in names if name in self.by_solver]  # a given table has none

    def _neighbours(self) -> Iterator[Candidate]:
        for candidate in self.race.standing()[:3]:
            if candidate.solver in self.by_solver:
                yield from self.by_solver[candidate.solver].around(candidate)

    def _guess(self, k: int) -> Candidate | None:
        """The surrogate's next place, for the solver of the best entry (every fourth time for that of the second
        solver).

        Scores of the first round are brought to the second's level by the typical ratio, and count as noisier.
        """
        first, second = self.plan.counts[:2]
        names = [source.name for source in self._by_standing()]
        source = self.by_solver[names[1 if len(names) > 1 and k % 4 == 3 else 0]]
        mine = [c for c in self.race.entries if c.solver == source.name and math.isfinite(min(c.scores.values()))]
        if source.steps < 2 or len(mine) < 4:
            return None
        scale = Scale([c.scores[second if second in c.scores else first] for c in mine])
        both = [
            scale(c.scores[second]) - scale(c.scores[first]) for c in mine if first in c.scores and second in c.scores
        ]
        shift = statistics.median(both) if both else 0.0
        values = [scale(c.scores[second]) if second in c.scores else scale(c.scores[first]) + shift for c in mine]
        return source.guess(mine, values, [1.0 if second in c.scores else 4.0 for c in mine], k)

    def _enter(self, candidates: Iterable[Candidate], upto: int) -> None:
        self.race.enter(candidates, max(0, upto - len(self.race.entries)))

    def _promote(self, stage: int, room: int) -> None:
        self.race.promote(stage, room, min(HANDS[stage - 1], room // 2), lambda c: c.method == HAND)

    def _score(self, candidate: Candidate, count: int) -> float:
        return self._safely(self._scorer, candidate, count)

    def _safely(self, scorer: Scorer, candidate: Candidate, count: int) -> float:
        """A sampler that overflows is the worst; if its states were sane, or all do, it is the network that fails."""
        try:
            score = scorer.score(candidate.tableau, count)
        except DenoiserError as error:
            if error.sane:
                raise
            self._failure = error
            return math.inf
        return score if math.isfinite(score) else math.inf

    def _told(self, candidate: Candidate, images: int) -> None:
        self._images += images
        best = self.race.standing()[0]
        score = best.scores[max(best.scores)]
        total = self.plan.stages["race"] / self.plan.image_cost
        self._progress(Event("race", min(self._images, total), total, f"{score:.4g} {best.origin}"))


class Scale:
    """Scores as the surrogate sees them: logarithms where all are positive, else as they are."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._log = all(score > 0 for score in scores)

    def __call__(self, score: float) -> float:
        """The score on that scale."""
        return math.log(score) if self._log and score > 0 else score
