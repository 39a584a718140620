"""Pools: where evaluations run. One protocol, and the pool that has no workers but the calling process itself."""

from __future__ import annotations

import time
from typing import Protocol

from fewstep.study.records import Outcome, Task
from fewstep.study.worker import Evaluate, Session, Spec


class Pool(Protocol):
    """Workers that evaluate; a worker has one network and does one task at a time."""

    workers: int
    """How many there are when all are well."""
    serial: bool
    """Whether `wait` does the work itself: nothing runs beside the caller."""

    def idle(self) -> int:
        """Workers that are ready for a task now."""
        ...

    def submit(self, task: Task) -> str:
        """Hand a task to an idle worker; returns the worker's name."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes that came in, after at most `timeout` seconds (a serial pool takes what the work takes).

        Every task that was submitted comes back once: with a score, or with the cause of its failure, also when its
        worker died, hung or lost its machine.

        Raises:
            StudyError: the workers cannot be started.
        """
        ...

    def now(self) -> float:
        """Seconds on the clock that `wait` waits by."""
        ...

    def close(self) -> None:
        """End all workers; what they were doing is lost."""
        ...


class SerialPool:
    """The calling process, one evaluation at a time.

    Args:
        spec: how the evaluator is built; see `Session`.
        evaluate: the evaluator, where it is there already.
    """

    serial = True

    def __init__(self, spec: Spec, evaluate: Evaluate | None = None) -> None:
        self.workers = 1
        self._session = Session(spec, "this process", evaluate)
        self._task: Task | None = None

    def idle(self) -> int:
        """One, unless a task waits."""
        return 1 if self._task is None else 0

    def submit(self, task: Task) -> str:
        """Keep the task until `wait`."""
        self._task = task
        return self._session.name

    def wait(self, timeout: float) -> list[Outcome]:
        """Do the task."""
        task, self._task = self._task, None
        if task is None:
            return []
        return [Outcome.of(task, self._session.name, self._session.run(task.to_dict()))]

    def now(self) -> float:
        """The system's clock."""
        return time.monotonic()

    def close(self) -> None:
        """Nothing to end."""
