"""What a search proposes and what it is told: the contract between proposers and the study that runs them.

A proposer never evaluates and keeps no files. It is asked for schedules and told all finished trials, so that the same
study with the same seed gives the same candidates again, whatever stopped it in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fewstep.rules import SolverSchedule


@dataclass(frozen=True)
class Proposal:
    """A solver schedule to be tried.

    Attributes:
        schedule: canonical decisions and times.
        origin: where it comes from, in words (`dpmpp_2m on logsnr`, `mutation of 17`, ...).
        stage: of the search; 0 is the initial population.
        parents: numbers of the trials that it was made of.
        predicted: the surrogate's score, where there was one.
    """

    schedule: SolverSchedule
    origin: str
    stage: int = 0
    parents: tuple[int, ...] = ()
    predicted: float | None = None


@dataclass(frozen=True)
class Trial:
    """A proposal with its number in the study and its scores.

    Attributes:
        number: rises by one with every proposal of a study.
        proposal: what was tried.
        nfe: network calls per sample, counted on its table.
        digest: of its table: equal samplers have equal digests and are evaluated once.
        scores: score by number of images, lower is better; empty where it failed for good, infinite where the samples
            were not finite.
    """

    number: int
    proposal: Proposal
    nfe: int
    digest: str
    scores: Mapping[int, float] = field(default_factory=dict[int, float])


EVERY = 32


class Proposer(Protocol):
    """A search strategy.

    Its attribute `learn_every`, where it has one, says after how many new scores it wants to learn again (32 by
    default; 0: never). Where several workers evaluate, a copy of it learns in another process, so it must survive
    pickling.
    """

    name: str
    lesson: Any
    """What `learn` changed; set on an equal proposer, that one has learned it too. None where it changes nothing."""

    def propose(self, trials: Sequence[Trial], count: int, seed: int) -> list[Proposal]:
        """Up to `count` new proposals (fewer, or none, when it has no more), quickly.

        Args:
            trials: all finished ones by number, then those that are still running (without scores).
            count: how many are wanted.
            seed: of the drawing; the study gives another one each time.

        A function of its arguments and of what `learn` was told last, and of nothing else.
        """
        ...

    def learn(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Learn from all finished trials; may take long, and is called beside the handing out of work.

        Returns what a reader wants to know (rank correlation on held-out trials, for one); `{}` where there is nothing
        to learn.
        """
        ...


def learn_every(proposer: Proposer) -> int:
    """After how many new scores a proposer wants to learn again; 0: never."""
    return int(getattr(proposer, "learn_every", EVERY))
