"""The proposer's learning, beside the handing out of work: a copy in another process learns, the original is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from fewstep.errors import FewstepError, StudyError
from fewstep.proposals import Proposer, Trial, learn_every
from fewstep.study.reading import Learned
from fewstep.study.tutor import Tutor


class Learner:
    """Holds the proposer.

    Args:
        proposer: to be taught after every `learn_every` new scores (see `fewstep.proposals`).
        background: learn in another process; else where `start` is called, so that all moments are reproducible.
    """

    def __init__(self, proposer: Proposer, *, background: bool) -> None:
        self.proposer = proposer
        self.every = learn_every(proposer)
        self._tutor = Tutor(proposer) if background and self.every else None
        self._thread: threading.Thread | None = None
        self._result: tuple[Any, dict[str, Any], float] | BaseException | None = None
        self._about = (0, 0, 0)

    @property
    def busy(self) -> bool:
        """Whether it learns now, or has learned and `done` was not asked yet."""
        return self._thread is not None or self._result is not None

    def restore(self, trials: Sequence[Trial]) -> None:
        """Learn again what it had learned when the study was left."""
        self.proposer.learn(trials)

    def start(self, trials: Sequence[Trial], through: int, number: int) -> None:
        """Begin to learn from all finished trials, told up to place `through`."""
        self._about = (number, through, len(trials))
        if self._tutor is not None:  # the thread only waits
            self._tutor.open()
            self._thread = threading.Thread(target=self._learn, args=(list(trials),), daemon=True)
            self._thread.start()
        else:
            self._learn(trials)

    def _learn(self, trials: Sequence[Trial]) -> None:
        started = time.perf_counter()
        try:
            if self._tutor is not None:
                lesson, report = self._tutor.learn(trials)
            else:
                report = self.proposer.learn(trials)
                lesson = self.proposer.lesson
            self._result = lesson, report, time.perf_counter() - started
        except BaseException as error:
            self._result = error

    def done(self) -> Learned | None:
        """What was learned, once: from then on `proposer` knows it.

        Raises:
            StudyError: learning failed.
        """
        result = self._result
        if result is None or (self._thread is not None and self._thread.is_alive()):
            return None
        self._thread = self._result = None
        if isinstance(result, BaseException):
            if isinstance(result, FewstepError) or not isinstance(result, Exception):
                raise result
            raise StudyError(f"{self.proposer.name} could not learn: {type(result).__name__}: {result}") from result
        self.proposer.lesson, report, seconds = result
        return Learned(self._about[0], self._about[1], self._about[2], seconds, report)

    def close(self) -> None:
        """Stop learning, whatever comes of it."""
        if self._tutor is not None:
            self._tutor.close()
        if self._thread is not None:
            self._thread.join()
