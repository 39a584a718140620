"""S³ inside a race: children of the race's schedules, in all their decisions, guided by what the race has found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from fewstep.errors import ArgumentError
from fewstep.proposals import Proposal, Proposer, Trial
from fewstep.search.ays import to_ratios
from fewstep.search.parts import EVOLVED
from fewstep.search.s3 import proposer
from fewstep.search.select import Candidate
from fewstep.search.window import Window

STAGE = 8
"""Children between two lessons of the surrogate."""


@dataclass
class Breeder:
    """Proposes children of the schedules in a race.

    Attributes:
        window: of the network; the whole range of its noise.
        nfe: network calls.
        seed: of the drawing.
    """

    window: Window
    nfe: int
    seed: int = 0
    _made: int = 0

    @cached_property
    def _strategy(self) -> Proposer:
        # The race is the initial population: S³'s own would be judged twice.
        return proposer(
            "s3", noise=self.window.noise, nfes=(self.nfe,), seed=self.seed, limit=1, clean=self.window.to_zero
        )

    def children(self, entries: Sequence[Candidate], images: int, count: int) -> Iterator[Candidate]:
        """Up to `count` new candidates.

        Args:
            entries: all of the race.
            images: the number by whose score they are compared.
        """
        trials: list[Trial] = []
        for k, c in enumerate(entries):
            if c.schedule is not None and images in c.scores:
                stage = c.about.get("stage", 0)
                proposal = Proposal(c.schedule, c.origin, stage, predicted=c.about.get("predicted"))
                trials.append(Trial(k, proposal, self.nfe, c.tableau.digest, {images: c.scores[images]}))
        self._strategy.learn(trials)
        for proposal in self._strategy.propose(trials, count, len(trials)):
            try:
                table = proposal.schedule.tabulate(self.window.noise)
            except ArgumentError:
                continue
            if table.nfe == self.nfe:
                self._made += 1
                roots = [r for k in proposal.parents for r in entries[k].about.get("roots", [entries[k].origin])]
                about = {"stage": max(1, proposal.stage), "predicted": proposal.predicted, "roots": roots[:2]}
                # The first word says the surrogate whose child it is (see `fewstep.search.s3.archive`).
                origin = f"{proposal.origin.split()[0]} by S³, {self._made}"
                origin += f", from {' and '.join(dict.fromkeys(roots[:2]))}" if roots else ""
                level = to_ratios(self.window.noise, proposal.schedule.times).log()
                yield Candidate(proposal.schedule, table, EVOLVED, EVOLVED, origin, level, about=about)
