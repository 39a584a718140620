"""The study in its file: what is known, held in memory, and changes written behind in groups, each whole or not at all.

Every change is applied in memory at once and joins a list; `commit` writes the list in one transaction. Changes reach
the file in their order, so what a crash leaves is the study at an earlier moment, and all decisions follow from that
alone.
"""

from __future__ import annotations

import bisect
import json
import math
import sqlite3
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fewstep.errors import FewstepError, StudyError
from fewstep.proposals import Proposal, Trial
from fewstep.rules import SolverSchedule
from fewstep.study import schema
from fewstep.study.lock import Lock
from fewstep.study.reading import Contents, Learned, load
from fewstep.study.records import BLAMELESS, FAILED, FINISHED, QUEUED, RUNNING, Entry, Evaluation, Key, Outcome

INSERT = """
INSERT INTO evaluations (trial, images, fresh, status, score, error, seconds, worker, attempts, cause, message, place)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (trial, images, fresh) DO UPDATE SET
    status = excluded.status, score = excluded.score, error = excluded.error, seconds = excluded.seconds,
    worker = excluded.worker, attempts = excluded.attempts, cause = excluded.cause, message = excluded.message,
    place = excluded.place
"""


class Store:
    """The one writer of a study; `create` or `open` it, and `close` it.

    Attributes:
        contents: all that the file holds, and what waits to be written.
        finished: trials that were told, by number: those with scores and those that failed for good.
        every: least seconds between two writings; changes in between are written together.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, lock: Lock, contents: Contents) -> None:
        self.path, self._db, self._lock, self.contents = path, db, lock, contents
        self.every, self.tries, self.pause = 0.05, 3, 1.0
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []
        self._written = -math.inf
        self._digests = {entry.trial.digest for entry in contents.entries.values()}
        self.finished: list[Trial] = [e.trial for e in contents.entries.values() if e.scored or e.status == FAILED]

    @classmethod
    def create(cls, path: str | Path, record: Mapping[str, Any]) -> Self:
        """A new study.

        Raises:
            StudyError: the file exists or cannot be written.
        """
        place = Path(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise schema.explained(error, place) from error
        lock = Lock(place)
        try:
            schema.create(place, record)
        finally:
            lock.release()
        return cls.open(place)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing study, to go on with: what was running when it was left is queued again.

        Raises:
            ArgumentError: no such file.
            StudyError: another process writes it, or it cannot be written.
            FileFormatError: damaged, no study, or newer than this version.
        """
        place = Path(path)
        schema.open_to_read(place).close()  # says what is wrong before a lock is left beside it
        lock = Lock(place)
        try:
            db = schema.open_to_write(place)
            try:
                store = cls(place, db, lock, load(db, place))
                for evaluation in store.contents.evaluations():
                    if evaluation.status == RUNNING:
                        evaluation.status, evaluation.worker = QUEUED, None
                        store._write(evaluation)
            except BaseException:
                db.close()
                raise
        except BaseException:
            lock.release()
            raise
        return store

    def close(self) -> None:
        """Write what waits and let go of the file; also when the disk is full."""
        try:
            self.commit()
        finally:
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._db.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ changes
    def set(self, key: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        self.contents.values[key] = value
        text = json.dumps(value, allow_nan=False)
        self._op("INSERT INTO study VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, text))

    def knows(self, digest: str) -> bool:
        """Whether a trial has this table."""
        return digest in self._digests

    def add(self, proposal: Proposal, nfe: int, digest: str) -> Entry:
        """A new trial; the caller queues its evaluation, or says why it failed."""
        number = len(self.contents.entries)
        record = json.loads(json.dumps(proposal.schedule.to_dict()))
        # As it will be read after an interruption, so that the proposer sees the same before and after.
        proposal = replace(proposal, schedule=SolverSchedule.from_dict(record), parents=tuple(proposal.parents))
        entry = Entry(Trial(number, proposal, nfe, digest), record)
        self.contents.entries[number] = entry
        self._digests.add(digest)
        self._op(
            "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number, json.dumps(record), digest, nfe, proposal.origin, proposal.stage,
                json.dumps(list(proposal.parents)), proposal.predicted,
            ),
        )  # fmt: skip
        return entry

    def queue(self, key: Key) -> Evaluation:
        """An evaluation to be done, new or again."""
        evaluations = self.contents.entries[key.trial].evaluations
        evaluation = evaluations.setdefault(key, Evaluation(key))
        evaluation.status = QUEUED
        self._write(evaluation)
        return evaluation

    def forgive(self, evaluation: Evaluation) -> None:
        """Queue a failed evaluation again as if it had never been tried."""
        evaluation.attempts, evaluation.cause, evaluation.message, evaluation.place = 0, None, None, None
        number = evaluation.key.trial
        self.finished = [trial for trial in self.finished if trial.number != number or trial.scores]
        self.queue(evaluation.key)

    def start(self, key: Key, worker: str | None = None) -> None:
        """It was handed out."""
        evaluation = self.contents.entries[key.trial].evaluations[key]
        evaluation.status, evaluation.worker = RUNNING, worker
        self._write(evaluation)

    def finish(self, outcome: Outcome) -> None:
        """It has a score; one that is no number counts as infinite."""
        assert outcome.score is not None
        entry = self.contents.entries[outcome.task.key.trial]
        evaluation = entry.evaluations[outcome.task.key]
        score = math.inf if math.isnan(outcome.score) else float(outcome.score)
        evaluation.status, evaluation.score, evaluation.error = FINISHED, score, outcome.error
        evaluation.cause, evaluation.message = outcome.cause or None, outcome.message or None
        self._told(evaluation, outcome)
        if not evaluation.key.fresh:
            self.tell(entry)

    def fail(self, outcome: Outcome, *, for_good: bool) -> None:
        """It failed; unless for good, it is queued again."""
        entry = self.contents.entries[outcome.task.key.trial]
        evaluation = entry.evaluations[outcome.task.key]
        evaluation.attempts += outcome.cause not in BLAMELESS
        evaluation.cause, evaluation.message = outcome.cause, outcome.message[-4000:]
        evaluation.status = FAILED if for_good else QUEUED
        if for_good:
            self._told(evaluation, outcome)
            self.tell(entry)
        else:
            self._write(evaluation)

    def learned(self, report: Learned) -> None:
        """The proposer learned from all that was told up to a place."""
        self.contents.learned.append(report)
        self._op(
            "INSERT INTO learned VALUES (?, ?, ?, ?, ?)",
            (report.number, report.through, report.trials, report.seconds, json.dumps(report.report, default=repr)),
        )

    def tell(self, entry: Entry) -> None:
        """Make the entry's trial as its evaluations now say, and list it among the finished ones."""
        entry.trial = entry_trial = scored(entry)
        at = bisect.bisect_left(self.finished, entry_trial.number, key=lambda trial: trial.number)
        if at < len(self.finished) and self.finished[at].number == entry_trial.number:
            self.finished[at] = entry_trial
        else:
            self.finished.insert(at, entry_trial)

    def _told(self, evaluation: Evaluation, outcome: Outcome) -> None:
        evaluation.seconds, evaluation.worker = outcome.seconds, outcome.worker
        evaluation.place = self.contents.places = self.contents.places + 1
        self._write(evaluation)

    def _write(self, e: Evaluation) -> None:
        values = (e.status, e.score, e.error, e.seconds, e.worker, e.attempts, e.cause, e.message, e.place)
        self._op(INSERT, (e.key.trial, e.key.images, int(e.key.fresh), *values))

    # ------------------------------------------------------------------------------------------------ the file
    def _op(self, sql: str, values: tuple[Any, ...]) -> None:
        self._waiting.append((sql, values))

    @contextmanager
    def together(self) -> Generator[None]:
        """Changes that belong together: when an error falls between them, none of them is written."""
        before = len(self._waiting)
        try:
            yield
        except BaseException:
            del self._waiting[before:]
            raise

    def due(self) -> float:
        """Seconds until what waits should be written; infinite when nothing waits."""
        return self._written + self.every - time.monotonic() if self._waiting else math.inf

    def tick(self) -> None:
        """Write what waits, if it has waited long enough."""
        if self.due() <= 0:
            self.commit()

    def commit(self) -> None:
        """Write all that waits, in one transaction that is on the disk when this returns.

        Raises:
            StudyError: it cannot be written, also not after some tries; what waits still waits.
        """
        if not self._waiting:
            return
        for attempt in range(self.tries):
            problem = self._attempt()
            if problem is None:
                self._waiting.clear()
                self._written = time.monotonic()
                return
            if attempt + 1 == self.tries or not isinstance(problem, StudyError):
                raise problem
            time.sleep(self.pause)

    def _attempt(self) -> FewstepError | None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in self._waiting:
                    self._db.execute(sql, values)
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself (disk full), and then refuses to do it again.
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            return schema.explained(error, self.path)
        return None


def scored(entry: Entry, through: float = math.inf) -> Trial:
    """The entry's trial with the scores that were told up to a place."""
    scores = {
        key.images: e.score
        for key, e in sorted(entry.evaluations.items())
        if not key.fresh and e.score is not None and e.place is not None and e.place <= through
    }
    trial = entry.trial
    return Trial(trial.number, trial.proposal, trial.nfe, trial.digest, scores)


def told_through(entries: Sequence[Entry], place: int) -> list[Trial]:
    """Trials with the scores that they had when evaluation `place` was told."""
    return [trial for entry in entries if (trial := scored(entry, place)).scores]
