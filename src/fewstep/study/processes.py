"""A pool of processes on this machine: one network each, with its own number of threads.

Workers are started afresh (not forked), talk in JSON lines, are killed when they exceed the time of a task, and are
replaced when they die; their task comes back with the cause. When the driver dies, they end too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from fewstep.errors import StudyError
from fewstep.study.records import DEVICE, TIMEOUT, WORKER_DIED, Outcome, Task
from fewstep.study.worker import Spec

STARTS = 3
"""So many workers in a row may die before they are ready."""

Message = tuple["_Worker", dict[str, Any] | None]


class _Worker:
    """One process, and what it is doing."""

    def __init__(self, name: str, spec: Spec, inbox: queue.SimpleQueue[Message]) -> None:
        self.name, self.ready, self.task = name, False, None
        self.since = time.monotonic()
        self.task: Task | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fewstep.study.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()
        self.send({"name": name, "spec": dict(spec)})

    def send(self, record: Mapping[str, Any]) -> None:
        """One line; that a dead worker cannot hear it is noticed by who listens."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(record) + "\n")
            self.process.stdin.flush()

    def _listen(self, inbox: queue.SimpleQueue[Message]) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stdout:
                inbox.put((self, json.loads(line)))
        inbox.put((self, None))

    def end(self) -> str:
        """Kill it, wait for it, and say how it ended."""
        self.process.kill()
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"


class ProcessPool:
    """`workers` processes.

    Args:
        spec: how each builds its evaluator; `threads` in it are those of one worker.
        workers: how many.
        timeout: seconds that one task may take; None: as long as it likes.
        start: seconds that a worker may take to be ready.
    """

    serial = False

    def __init__(self, spec: Spec, workers: int, *, timeout: float | None = None, start: float = 600.0) -> None:
        self.workers, self._timeout, self._start = workers, timeout, start
        self._spec = {**spec, "paths": [*spec.get("paths", ()), *sys.path]}
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._living: list[_Worker] = []
        self._made = self._failed_starts = 0
        for _ in range(workers):
            self._new()

    def _new(self) -> None:
        self._made += 1
        self._living.append(_Worker(f"process {self._made}", self._spec, self._inbox))

    def idle(self) -> int:
        """Those that have built their evaluator and do nothing."""
        return sum(worker.ready and worker.task is None for worker in self._living)

    def pids(self) -> list[int]:
        """Process numbers of the living workers."""
        return [worker.process.pid for worker in self._living]

    def submit(self, task: Task) -> str:
        """To the first idle worker."""
        worker = next(worker for worker in self._living if worker.ready and worker.task is None)
        worker.task, worker.since = task, time.monotonic()
        worker.send(task.to_dict())
        return worker.name

    def wait(self, timeout: float) -> list[Outcome]:
        """What came in; dead and hung workers are replaced."""
        until = time.monotonic() + timeout
        outcomes = self._overdue()
        while not outcomes:
            left = min(until, *(self._deadline(worker) for worker in self._living)) - time.monotonic()
            try:
                worker, record = self._inbox.get(timeout=max(left, 0.0))
            except queue.Empty:
                outcomes = self._overdue()
                if time.monotonic() >= until:
                    break
                continue
            outcomes += self._heard(worker, record)
            if worker.ready and not outcomes:
                break  # another one is idle now
        with contextlib.suppress(queue.Empty):
            while True:
                outcomes += self._heard(*self._inbox.get_nowait())
        return outcomes

    def now(self) -> float:
        """The system's clock."""
        return time.monotonic()

    def close(self) -> None:
        """Kill all."""
        for worker in self._living:
            worker.end()
        self._living = []

    def _deadline(self, worker: _Worker) -> float:
        if not worker.ready:
            return worker.since + self._start
        if worker.task is None or self._timeout is None:
            return float("inf")
        return worker.since + self._timeout

    def _heard(self, worker: _Worker, record: dict[str, Any] | None) -> list[Outcome]:
        if worker not in self._living:  # the last words of one that was killed
            return []
        if record is None:
            return self._replace(worker, WORKER_DIED, "the worker died")
        if "failed" in record:
            raise StudyError(
                f"a worker cannot build its evaluator; nothing was lost, mend it and resume:\n{record['failed']}"
            )
        if not worker.ready:
            worker.ready, self._failed_starts = True, 0
            return []
        task, worker.task = worker.task, None
        assert task is not None
        outcome = Outcome.of(task, worker.name, record)
        if outcome.cause == DEVICE:  # after such an error nothing works any more in that process
            self._replace(worker, DEVICE, "")
        return [outcome]

    def _overdue(self) -> list[Outcome]:
        now = time.monotonic()
        outcomes: list[Outcome] = []
        for worker in [w for w in self._living if self._deadline(w) <= now]:
            outcomes += self._replace(worker, TIMEOUT, f"no answer within {now - worker.since:.0f} s")
        return outcomes

    def _replace(self, worker: _Worker, cause: str, message: str) -> list[Outcome]:
        self._living.remove(worker)
        how = worker.end()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise StudyError(
                    f"{STARTS} workers in a row ended before they were ready ({message}, {how}): see above"
                )
        self._new()
        if worker.task is None:
            return []
        seconds = time.monotonic() - worker.since
        return [Outcome(worker.task, worker.name, seconds, cause=cause, message=f"{message} ({how})")]
