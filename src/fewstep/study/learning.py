"""The proposer's learning, beside the handing out of work: a copy learns, and takes the place of the original."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from typing import Any

from fewstep.errors import FewstepError, StudyError
from fewstep.proposals import Proposer, Trial
from fewstep.study.reading import Learned

EVERY = 32


class Learner:
    """Holds the proposer.

    Args:
        proposer: to be taught; its attribute `learn_every`, where it has one, says after how many new scores it wants
            to learn again (0: never).
        background: learn in a thread; else where `start` is called, so that all moments are reproducible.
    """

    def __init__(self, proposer: Proposer, *, background: bool) -> None:
        self.proposer, self._background = proposer, background
        self.every = int(getattr(proposer, "learn_every", EVERY))
        self._thread: threading.Thread | None = None
        self._result: tuple[Proposer, dict[str, Any], float] | BaseException | None = None
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
        if self._background:
            # The copy is made here, where nobody else touches the proposer.
            self._thread = threading.Thread(
                target=self._learn, args=(copy.deepcopy(self.proposer), list(trials)), daemon=True
            )
            self._thread.start()
        else:
            self._learn(self.proposer, trials)

    def _learn(self, proposer: Proposer, trials: Sequence[Trial]) -> None:
        started = time.perf_counter()
        try:
            report = proposer.learn(trials)
            self._result = proposer, report, time.perf_counter() - started
        except BaseException as error:
            self._result = error

    def done(self) -> Learned | None:
        """What was learned, once: from then on `proposer` is the one that knows it.

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
        self.proposer, report, seconds = result
        return Learned(self._about[0], self._about[1], self._about[2], seconds, report)
