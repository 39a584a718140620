"""The competition: who enters when, who goes on, and the finals on fresh seeds.

Hand-crafted grids and DMN's enter first, then those of the loss curve; then grids on AYS's ways down from all of them,
those from the best starts before the others; then plans on a teacher's trajectories, and S³'s children of all of them.
The better ones go on to more images; the neighbours of the best on their ways enter, and then, one after the other,
the grids that a surrogate of all scores so far expects most of. Samplers learned by gradient from the best come last.
The finals compare the best three, the best hand-crafted grid and the best of every other part on seeds that have chosen
nothing yet. Which parts there are is the method's (`fewstep.search.parts`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fewstep.errors import DenoiserError
from fewstep.progress import Event, Report
from fewstep.search.clock import EVOLUTION, FINALS, HAND_CRAFTED, LEARNING, PLANS, RACE, WAYS, Clock
from fewstep.search.evolving import STAGE, Breeder
from fewstep.search.klub import Gram
from fewstep.search.ledger import Ledger
from fewstep.search.methods import Source, entered
from fewstep.search.objective import Scorer
from fewstep.search.parts import AYS, DMN, EVOLVED, GUESS, HAND, LESSON, LOSS
from fewstep.search.plan import AROUND, Plan
from fewstep.search.planner import Planner
from fewstep.search.select import Candidate, Race, finite
from fewstep.tableau import Tableau

THINNED = 5
"""Grids of each way down that may enter before its best are known."""
BEST = 3
"""Of the standing that reach the finals."""
HANDS = (3, 2)
"""Hand-crafted grids that go on to each later round whatever their standing: the start must be well judged too."""


class Competition:
    """One search.

    Args:
        sources: candidates by solver; the first solver's hand-crafted grids all enter, of the others the best few.
        scorer: judges samples on selection seeds, `plan.counts[-1]` of the race and then `plan.fresh` of the finals.
        finals: the same judge on fresh selection seeds.
        plan: rooms and counts.
        ledger: where the cost is written.
        progress: told after every score.
        given: somebody else's table, which enters too, and whose times all solvers try; the winner of the finals is
            never worse.
        clock: by which parts end early.
    """

    def __init__(
        self,
        sources: list[Source],
        scorer: Scorer,
        finals: Scorer,
        plan: Plan,
        ledger: Ledger,
        progress: Report,
        given: Tableau | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.given = given
        self.sources, self.plan, self.parts, self.ledger = sources, plan, plan.parts, ledger
        self.by_solver = {source.name: source for source in sources}
        self._scorer, self._finals, self._progress = scorer, finals, progress
        self._failure: DenoiserError | None = None
        self._images = 0
        self.clock, self._part = clock or Clock(), HAND_CRAFTED
        self.race = Race(self._score, plan.counts, self._told, self._late)

    def begin(self) -> None:
        """Hand-crafted grids, and DMN's where the method wants them."""
        with self._stage():
            room = self.plan.rooms[0] - self._kept
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
            if self.parts.dmn:
                for source in self._by_standing()[:2]:
                    self._enter(source.dmn(self.parts.dmn), room)
            if self._failure is not None and all(math.isinf(c.scores[self.plan.counts[0]]) for c in self.race.entries):
                raise self._failure

    def descend(self, gram: Gram) -> None:
        """Grids on the ways down from everything that has entered, in the order of the standing."""
        with self._stage(WAYS):
            keep = int(AROUND * self.plan.rooms[0]) + self._kept
            sources = self._by_standing()[:2]
            for source in sources:
                if self.parts.curve:
                    self._enter(source.relatives(gram), self.plan.rooms[0] - keep)
                mine = [c for c in self._decided() if c.solver == source.name and c.method != AYS]
                source.descend(gram, mine)
                left = self.plan.rooms[0] - keep - len(self.race.entries)
                room = left if source is sources[-1] else math.ceil(0.7 * left)
                self._enter(source.thinned([c.origin for c in mine], THINNED), len(self.race.entries) + room)

    def propose(self, planner: Planner) -> None:
        """Times planned on teacher trajectories; the plans of the best solvers enter first."""
        with self._stage(PLANS):
            for kind, count in self.parts.plans.items():
                upto = len(self.race.entries) + (self._scaled(count) if self.parts.auto else self.plan.rooms[0])
                for source in [] if self._late() else self._by_standing()[: 2 if self.parts.auto else None]:
                    self._enter(source.planned(planner, kind), min(upto, self.plan.rooms[0]))

    def evolve(self, breeder: Breeder) -> None:
        """S³'s children of all schedules so far; the surrogate learns after every few."""
        with self._stage(EVOLUTION):
            wanted = min(self.plan.rooms[0], len(self.race.entries) + self._scaled(self.parts.evolved))
            while (before := len(self.race.entries)) < wanted and not self._late():
                count = min(STAGE, wanted - before)
                children = list(breeder.children(self.race.entries, self.plan.counts[0], count))
                self._enter(children, wanted)
                if len(self.race.entries) == before:
                    return

    def learn(self, teach: Callable[[list[Candidate]], list[Candidate]]) -> None:
        """Samplers learned from the best of the standing enter the race, however late it is: they are paid for.

        The times of a first recipe's also enter as times, for others to go on from.
        """
        early = self._part == HAND_CRAFTED
        learned = teach(self._decided())
        with self._stage(LEARNING):
            self.race.enter(learned, len(learned), stage=2)
            for c in learned:
                if c.method == self.parts.first and c.solver in self.by_solver:
                    self.race.enter(self.by_solver[c.solver].given(c.tableau, LESSON), 1, stage=0 if early else 2)

    def conclude(self) -> None:
        """Later rounds; before the last one the neighbours of the best enter, and the surrogate's guesses."""
        with self._stage(RACE):
            second, third = self.plan.rooms[1:]
            self._promote(1, second - second // 3 if self.parts.ays else second)
            if self.parts.ays:
                self._enter(self._neighbours(), self.plan.rooms[0])
                self._promote(1, second)
            for k in range(self.plan.guesses):
                guess = None if self._late() else self._guess(k)
                if guess is not None:
                    self.race.enter([guess], 1, stage=1)
            self._promote(2, third)

    def finals(self) -> tuple[Candidate, Candidate, dict[str, Any]]:
        """The winner, the best hand-crafted one, and the scores of the finals; where none is better, the start wins."""
        start = self.race.best(HAND)
        best = [c for c in self.race.standing()[:BEST] if c is not start]
        given = [c for c in self.race.entries if c.tableau is self.given and c not in best]
        entries = [start, *best[: BEST - len(given)], *given]
        entries += self._others(entries)[: self.parts.finalists - len(entries)] if self.parts.auto else []
        count = self.plan.fresh
        scores: dict[int, float] = {}
        with self.ledger.stage("finals", self.plan.stages["finals"]):
            for k, candidate in enumerate(entries):
                if k > 1 and self.clock.over(FINALS):
                    break
                scores[k] = self._safely(self._finals, candidate, count)
                candidate.about["fresh"] = {"samples": count, "score": finite(scores[k])}
                best = min(scores, key=lambda j: scores[j])
                self._progress(Event("finals", k + 1, len(entries), f"{scores[best]:.4g} {entries[best].origin}"))
        winner = entries[min(scores, key=lambda j: scores[j])]
        return winner, start, {"samples": count, "before": scores[0], "after": min(scores.values())}

    def _others(self, there: list[Candidate]) -> list[Candidate]:
        """The best of every part of which none is there."""
        methods = {c.method for c in there}
        found: dict[str, Candidate] = {}
        for c in self.race.standing():
            if c.method not in methods:
                found.setdefault(c.method, c)
        order = (*self.parts.lessons[::-1], EVOLVED, AYS, *self.parts.plans, GUESS, LOSS, LESSON, DMN)
        return [found[method] for method in order if method in found]

    @property
    def _kept(self) -> int:
        """Entries that are kept for plans and for S³."""
        return min(
            self.plan.rooms[0] // 2, self._scaled(sum(self.parts.plans.values())) + self._scaled(self.parts.evolved)
        )

    def _scaled(self, count: int) -> int:
        """A number of entries, where the budget has room for more or fewer than the method is laid out for."""
        return max(1, round(count * self.plan.scale)) if self.parts.auto and count else count

    def _decided(self) -> list[Candidate]:
        """Those of the standing whose decisions are known: not the learned ones."""
        return [c for c in self.race.standing() if c.method not in self.parts.lessons]

    def _late(self) -> bool:
        return self._part != LEARNING and self.clock.over(self._part)

    def _stage(self, part: str = HAND_CRAFTED) -> Any:
        self._part = part
        return self.ledger.stage("race", self.plan.stages["race"])

    def _by_standing(self) -> list[Source]:
        """The solvers, that of the best entry first."""
        names = dict.fromkeys(c.solver for c in self.race.standing())
        return [self.by_solver[name] for name in names if name in self.by_solver]  # a given table has none

    def _neighbours(self) -> Iterator[Candidate]:
        for candidate in self._decided()[:3]:
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
        decided = [c for c in self.race.entries if c.solver == source.name and c.method not in self.parts.lessons]
        mine = [c for c in decided if math.isfinite(min(c.scores.values()))]
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
