"""What a study's file holds, read whole: by its writer when it starts, and by anyone who wants to know its state."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import FileFormatError
from fewstep.proposals import Proposal, Trial
from fewstep.rules import SolverSchedule
from fewstep.study import schema
from fewstep.study.records import Entry, Evaluation, Key


@dataclass(frozen=True)
class Learned:
    """One learning of the proposer: from the trials told up to place `through`, and what it reported."""

    number: int
    through: int
    trials: int
    seconds: float
    report: dict[str, Any]


@dataclass
class Contents:
    """All of a study.

    Attributes:
        values: JSON values by name; `record` says what the study is.
        entries: trials by number, rising.
        learned: in their order.
        places: the place of the evaluation that was told last.
    """

    values: dict[str, Any]
    entries: dict[int, Entry]
    learned: list[Learned]
    places: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """What the study is."""
        return dict(self.values["record"])

    def evaluations(self) -> Iterator[Evaluation]:
        """All of them, by trial."""
        for entry in self.entries.values():
            yield from entry.evaluations.values()


def read(path: str | Path) -> Contents:
    """The study as of its last commit; nothing is changed, and another process may write it.

    Raises:
        ArgumentError: no such file.
        FileFormatError: damaged, no study, or newer than this version.
    """
    place = Path(path)
    with closing(schema.open_to_read(place)) as db:
        return load(db, place)


def load(db: sqlite3.Connection, path: Path) -> Contents:
    """Everything in one read transaction."""
    try:
        db.execute("BEGIN")
        values = {str(key): json.loads(value) for key, value in db.execute("SELECT key, value FROM study")}
        entries = {entry.trial.number: entry for row in db.execute(TRIALS) if (entry := _entry(row))}
        places = 0
        for row in db.execute(EVALUATIONS):
            evaluation = Evaluation(Key(row[0], row[1], bool(row[2])), *row[3:])
            entry = entries[evaluation.key.trial]
            entry.evaluations[evaluation.key] = evaluation
            if evaluation.place is not None:
                places = max(places, evaluation.place)
        rows = db.execute("SELECT number, through, trials, seconds, report FROM learned ORDER BY number")
        learned = [Learned(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows]
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise schema.explained(error, path) from error
    except (ValueError, KeyError, TypeError) as error:  # JSON, a schedule that is none, a trial that is not there
        raise FileFormatError(f"{path} is damaged ({type(error).__name__}: {error}): {schema.CURE}") from error
    if "record" not in values:
        raise FileFormatError(f"{path} holds no study: its start was cut short; remove it and start again")
    for entry in entries.values():
        scores = {k.images: e.score for k, e in entry.evaluations.items() if not k.fresh and e.score is not None}
        trial = entry.trial
        entry.trial = Trial(trial.number, trial.proposal, trial.nfe, trial.digest, scores)
    return Contents(values, entries, learned, places)


TRIALS = "SELECT number, schedule, digest, nfe, origin, stage, parents, predicted FROM trials ORDER BY number"
EVALUATIONS = """
SELECT trial, images, fresh, status, score, error, seconds, worker, attempts, cause, message, place
FROM evaluations ORDER BY trial, images, fresh
"""


def _entry(row: tuple[Any, ...]) -> Entry:
    number, schedule, digest, nfe, origin, stage, parents, predicted = row
    record = json.loads(schedule)
    proposal = Proposal(SolverSchedule.from_dict(record), origin, stage, tuple(json.loads(parents)), predicted)
    return Entry(Trial(number, proposal, nfe, digest), record)
