"""What the parts of a study say to each other: tasks, outcomes, causes of failure, and the state of a trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a worker that needs no torch shall not load it
    from fewstep.proposals import Trial

WORKER_DIED = "worker died"
NODE_LOST = "node lost"
DEVICE = "device error"
MEMORY = "out of memory"
TIMEOUT = "timeout"
INVALID = "invalid schedule"
ERROR = "error"

RETRYABLE = frozenset({WORKER_DIED, NODE_LOST, DEVICE, MEMORY, TIMEOUT})
"""Causes that lie with the machine: the same trial may succeed elsewhere."""
BLAMELESS = frozenset({NODE_LOST})
"""Of these, the ones that are no attempt: the trial had no part in it."""
ATTEMPTS = 3
"""After so many failures of its own a trial is given up."""
LOSSES = 20
"""After so many lost machines in one run too: it may be what brings them down."""

QUEUED, RUNNING, FINISHED, FAILED = "queued", "running", "finished", "failed"


class InvalidSchedule(Exception):
    """An evaluator's word for a schedule that gives no table."""


class Key(NamedTuple):
    """One evaluation: a trial, on how many images, and whether on fresh seeds (those that never select)."""

    trial: int
    images: int
    fresh: bool = False


@dataclass(frozen=True)
class Task:
    """An evaluation to be done; `ticket` is new with every handing out, so that a late answer is recognised."""

    key: Key
    schedule: Mapping[str, Any]
    ticket: int = 0

    def to_dict(self) -> dict[str, Any]:
        """What travels to a worker."""
        return {"schedule": dict(self.schedule), "images": self.key.images, "fresh": self.key.fresh}


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a score (infinite where the samples were not finite), or a cause of failure."""

    task: Task
    worker: str
    seconds: float = 0.0
    score: float | None = None
    error: float | None = None
    """standard error of the score, where it was asked for"""
    cause: str = ""
    message: str = ""

    @staticmethod
    def of(task: Task, worker: str, answer: Mapping[str, Any]) -> Outcome:
        """The outcome that a worker's answer tells."""
        return Outcome(task, worker, **answer)


@dataclass
class Evaluation:
    """The state of one evaluation; `place` counts finished ones in the order in which they were told."""

    key: Key
    status: str = QUEUED
    score: float | None = None
    error: float | None = None
    seconds: float | None = None
    worker: str | None = None
    attempts: int = 0
    cause: str | None = None
    message: str | None = None
    place: int | None = None


@dataclass
class Entry:
    """A trial with its evaluations."""

    trial: Trial
    schedule: Mapping[str, Any]
    evaluations: dict[Key, Evaluation] = field(default_factory=dict[Key, Evaluation])

    @property
    def scored(self) -> bool:
        """Whether it has a score of the selection."""
        return bool(self.trial.scores)

    @property
    def status(self) -> str:
        """Of the trial as a whole: of what it waits for first, else finished, else failed."""
        found = {evaluation.status for key, evaluation in self.evaluations.items() if not key.fresh}
        return next((status for status in (RUNNING, QUEUED) if status in found), FINISHED if self.scored else FAILED)

    def finite(self, images: int) -> float | None:
        """The score on so many images of the selection if it is a number."""
        score = self.trial.scores.get(images)
        return score if score is not None and math.isfinite(score) else None
