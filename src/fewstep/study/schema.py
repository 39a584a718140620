"""The file of a study: its tables, how it is opened, and what is said when it cannot be.

WAL with `synchronous=FULL`: what was committed survives a power cut, and readers see the last commit while one writes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from fewstep.errors import ArgumentError, FewstepError, FileFormatError, StudyError
from fewstep.files import atomic_write_bytes

APPLICATION = 0x66657753
"""SQLite's application id: `fewS`."""
VERSION = 1

TABLES = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE trials (
    number INTEGER PRIMARY KEY,
    schedule TEXT NOT NULL,            -- JSON of the decisions
    digest TEXT NOT NULL UNIQUE,       -- of their table: equal samplers are one trial
    nfe INTEGER NOT NULL,
    origin TEXT NOT NULL,
    stage INTEGER NOT NULL,
    parents TEXT NOT NULL,             -- JSON list of trial numbers
    predicted REAL
);

CREATE TABLE evaluations (
    trial INTEGER NOT NULL REFERENCES trials (number),
    images INTEGER NOT NULL,
    fresh INTEGER NOT NULL,            -- 0: on the seeds that select; 1: on seeds that never did
    status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'finished', 'failed')),
    score REAL,
    error REAL,                        -- standard error of the score
    seconds REAL,
    worker TEXT,
    attempts INTEGER NOT NULL,         -- failures that were the trial's own
    cause TEXT,
    message TEXT,
    place INTEGER UNIQUE,              -- order in which they were told
    PRIMARY KEY (trial, images, fresh),
    CHECK (status != 'finished' OR (score IS NOT NULL AND place IS NOT NULL))
) WITHOUT ROWID;

CREATE TABLE learned (
    number INTEGER PRIMARY KEY,
    through INTEGER NOT NULL,          -- the last place that it was told of
    trials INTEGER NOT NULL,
    seconds REAL NOT NULL,
    report TEXT NOT NULL               -- JSON
);
"""


def create(path: Path, record: Mapping[str, Any]) -> None:
    """A new file that holds the record of the study and nothing else; it is there whole or not at all.

    Raises:
        StudyError: a file is there already.
        ArgumentError: none can be made.
    """
    if path.exists():
        raise StudyError(
            f"{path} exists: go on with it (`fewstep search resume {path}`), or give another name with --out"
        )
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; {TABLES}")
        db.execute("INSERT INTO study VALUES ('record', ?)", (json.dumps(dict(record), allow_nan=False),))
        atomic_write_bytes(path, db.serialize())


def open_to_write(path: Path) -> sqlite3.Connection:
    """An existing study, checked as a whole.

    Raises:
        StudyError, FileFormatError: see `explained` and `_check`.
    """
    _require(path)
    if not os.access(path, os.W_OK):
        raise StudyError(f"{path} is read-only: make it writable, or copy it to a place where it is")
    db = None
    try:
        db = _connect(path, "rw")
        _check(db, path)
        (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise FileFormatError(f"{path} is damaged ({sound}): {CURE}")
        _durable(db)
    except (sqlite3.Error, FewstepError) as error:
        if db is not None:
            db.close()
        raise (explained(error, path) if isinstance(error, sqlite3.Error) else error) from error
    return db


def open_to_read(path: Path) -> sqlite3.Connection:
    """An existing study for reading, also while another process writes it."""
    _require(path)
    db = None
    try:
        try:
            db = _connect(path, "ro")
            _check(db, path)
        except sqlite3.OperationalError:
            # In a folder that cannot be written, the index of the log cannot be made; nobody writes there either.
            if db is not None:
                db.close()
            db = _connect(path, "ro&immutable=1")
            _check(db, path)
    except (sqlite3.Error, FewstepError) as error:
        if db is not None:
            db.close()
        raise (explained(error, path) if isinstance(error, sqlite3.Error) else error) from error
    return db


CURE = "restore it from a copy, or save what can be read with `sqlite3 FILE .recover`"


def explained(error: Exception, path: Path) -> FewstepError:
    """SQLite's error in words that say what to do."""
    text = str(error)
    if "full" in text or getattr(error, "errno", None) == 28:
        return StudyError(f"the disk is full; {path} is whole up to its last commit: free some space, then resume")
    if "readonly" in text:
        return StudyError(f"{path} is read-only: make it writable, or copy it to a place where it is")
    if "locked" in text:
        return StudyError(f"{path} is locked by another program: close what has it open, then resume")
    if "malformed" in text or "not a database" in text or "corrupt" in text:
        return FileFormatError(f"{path} is damaged or no study ({text}): {CURE}")
    return StudyError(f"{path} cannot be used ({text}): check the path, its folder's permissions and the disk")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False)


def _durable(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")


def _require(path: Path) -> None:
    if not path.is_file():
        raise ArgumentError(f"{path} does not exist: give the file that `fewstep search start --out` wrote")


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raises `FileFormatError` for a file that is no study, or of a newer version."""
    (application,), (version,) = (
        db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
    )
    if application != APPLICATION:
        raise FileFormatError(f"{path} is no study of fewstep: give the file that `fewstep search start --out` wrote")
    if version > VERSION:
        raise FileFormatError(
            f"{path} has format {version}, this version of fewstep knows {VERSION}: update fewstep to read it"
        )
