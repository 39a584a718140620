"""A pool on a Ray cluster: the driver holds the study, actors hold the networks. The one file that imports ray.

Ray's own retries are off. An actor that dies is replaced and its task comes back with the cause: `node lost` when its
machine went, which is not the trial's doing, else `worker died`. A replacement that finds no room on the cluster waits
until there is, and takes no task before it is ready.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import sys
import time
from typing import Any

from fewstep.errors import ArgumentError, StudyError
from fewstep.study.records import DEVICE, NODE_LOST, TIMEOUT, WORKER_DIED, Outcome, Task
from fewstep.study.worker import Session, Spec

STARTS = 10
"""So many actors in a row may die before they are ready; on a cluster that shrinks, some do."""


class _Actor:
    """One actor: its handle, the reference that is pending, and what it is doing."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name, self.handle, self.ready = name, handle, False
        self.task: Task | None = None
        self.since = time.monotonic()
        self.pending: Any = handle.ready.remote()


class RayPool:
    """`workers` actors on a cluster.

    Args:
        spec: how each builds its evaluator.
        workers: how many.
        address: of the cluster (`auto`: the one that this machine belongs to); None: the one that this process is
            connected to, else a new one on this machine.
        cpus, gpus: of each worker; fractions share one.
        timeout: seconds that one task may take; None: as long as it likes.

    Raises:
        ArgumentError: ray is not installed, or no cluster answers.
    """

    serial = False

    def __init__(
        self,
        spec: Spec,
        workers: int,
        *,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout: float | None = None,
    ) -> None:
        try:
            ray: Any = importlib.import_module("ray")  # optional: type checkers need not have it
        except ImportError as error:
            raise ArgumentError("the pool 'ray' needs Ray: pip install 'fewstep[ray]'") from error
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ArgumentError(f"no Ray cluster at {address!r} ({error}): give the address of its head") from error
        self.workers, self._timeout = workers, timeout
        self._spec = {**spec, "paths": [*spec.get("paths", ()), *sys.path]}
        # A worker that wants a fraction of a GPU needs Ray to count it; max_restarts=0: this pool replaces them.
        self._class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Remote)
        self._names = (f"actor {k}" for k in itertools.count(1))
        self._failed_starts = 0
        self._living: list[_Actor] = []
        for _ in range(workers):
            self._new()

    def _new(self) -> None:
        name = next(self._names)
        self._living.append(_Actor(name, self._class.remote(self._spec, name)))

    def idle(self) -> int:
        """Those that have built their evaluator and do nothing."""
        return sum(actor.ready and actor.task is None for actor in self._living)

    def submit(self, task: Task) -> str:
        """To the first idle actor."""
        actor = next(actor for actor in self._living if actor.ready and actor.task is None)
        actor.task, actor.since = task, time.monotonic()
        actor.pending = actor.handle.run.remote(task.to_dict())
        return actor.name

    def wait(self, timeout: float) -> list[Outcome]:
        """What came in; dead and hung actors are replaced."""
        until = time.monotonic() + timeout
        outcomes: list[Outcome] = []
        while True:
            pending = {actor.pending: actor for actor in self._living if actor.pending is not None}
            left = max(0.0, min(until, *(self._deadline(actor) for actor in self._living)) - time.monotonic())
            if not pending:
                time.sleep(left)
                return outcomes
            references = list(pending)
            ready, _ = self._ray.wait(references, num_returns=1, timeout=left, fetch_local=False)
            if ready and len(references) > 1:  # all that are there, not only the first
                ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
            for reference in ready:
                outcomes += self._heard(pending[reference])
            outcomes += self._overdue()
            if ready or outcomes or time.monotonic() >= until:
                return outcomes

    def now(self) -> float:
        """The system's clock."""
        return time.monotonic()

    def close(self) -> None:
        """Kill all actors; a cluster that this pool started is stopped."""
        for actor in self._living:
            self._kill(actor)
        self._living = []
        if self._own:
            self._ray.shutdown()

    def _kill(self, actor: _Actor) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(actor.handle, no_restart=True)

    def _deadline(self, actor: _Actor) -> float:
        if self._timeout is None or actor.task is None:
            return float("inf")
        return actor.since + self._timeout

    def _heard(self, actor: _Actor) -> list[Outcome]:
        reference, actor.pending = actor.pending, None
        try:
            answer: dict[str, Any] = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            return self._replace(actor, NODE_LOST if self._node_lost(error) else WORKER_DIED, str(error))
        except self._ray.exceptions.RayError as error:
            return self._replace(actor, WORKER_DIED, str(error))
        if "failed" in answer:
            raise StudyError(
                f"a worker cannot build its evaluator; nothing was lost, mend it and resume:\n{answer['failed']}"
            )
        if not actor.ready:
            actor.ready, self._failed_starts = True, 0
            return []
        task, actor.task = actor.task, None
        assert task is not None
        outcome = Outcome.of(task, actor.name, answer)
        if outcome.cause == DEVICE:  # after such an error nothing works any more in that process
            self._replace(actor, DEVICE, "")
        return [outcome]

    def _node_lost(self, error: Any) -> bool:
        """Whether the machine or the way to it went, and not the process alone."""
        away = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        return away or bool(getattr(error, "preempted", False)) or "node has died" in str(error)

    def _overdue(self) -> list[Outcome]:
        now = time.monotonic()
        late = [actor for actor in self._living if self._deadline(actor) <= now]
        return [
            outcome
            for actor in late
            for outcome in self._replace(actor, TIMEOUT, f"no answer within {now - actor.since:.0f} s")
        ]

    def _replace(self, actor: _Actor, cause: str, message: str) -> list[Outcome]:
        self._living.remove(actor)
        self._kill(actor)
        if not actor.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise StudyError(
                    f"{STARTS} workers in a row ended before they were ready; the last one said: {message}"
                )
        self._new()
        if actor.task is None:
            return []
        return [Outcome(actor.task, actor.name, time.monotonic() - actor.since, cause=cause, message=message)]


class _Remote:
    """What runs on the cluster."""

    def __init__(self, spec: Spec, name: str) -> None:
        self._session: Session | None = None
        self._failed = ""
        try:
            self._session = Session(spec, name)
        except Exception as error:
            from fewstep.study.worker import told

            self._failed = told(error)

    def ready(self) -> dict[str, Any]:
        """Whether the evaluator is there."""
        return {"ready": True} if self._session is not None else {"failed": self._failed}

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """One evaluation."""
        assert self._session is not None
        return self._session.run(task)
