"""What an optimisation found, as plain data: everything a report needs, and two files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fewstep.errors import FileFormatError
from fewstep.files import atomic_write_text
from fewstep.rules import SolverSchedule
from fewstep.tableau import Tableau

FORMAT = "fewstep.search"
VERSION = 1
SCHEDULE_FILE, SEARCH_FILE = "schedule.json", "search.json"


@dataclass(frozen=True)
class Found:
    """The sampler that was chosen, the one it started from, and how.

    Attributes:
        tableau: the sampler found; start: the best hand-crafted one, judged on the same images.
        model: the network's name; method, solver, nfe: as asked for (solver: the one that won).
        origin, start_origin: where the times come from, in words.
        selected_by: the judge that chose.
        selection: the last comparison: judge, seeds, samples, `before` and `after`.
        report: figures on seeds that chose nothing: seeds, and `before`, `after` and `gain` (their difference on the
            same noise), by judge: value, standard_error, samples.
        candidates: every sampler that was scored: origin, method, solver, times, scores by number of images.
        stages: for each stage the calls planned, the calls made in this run, and the seconds.
        plan: how the budget was divided.
        notes: what a reader should know (where the data came from, what was cached).
        complete: False if the search was interrupted; the scores that are missing are empty.
        start_solver: the solver of the start, where several competed.
        course: where the race stood after each part: calls and seconds so far, the best, its score and images.
        window: from where to where both samplers go: `start` and `last` (times), `end`, `image_to_image`, `words`.
    """

    tableau: Tableau
    start: Tableau
    model: str
    nfe: int
    method: str
    solver: str
    origin: str
    start_origin: str
    selected_by: str
    selection: dict[str, Any] = field(default_factory=dict[str, Any])
    report: dict[str, Any] = field(default_factory=dict[str, Any])
    candidates: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    stages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    plan: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])
    complete: bool = True
    start_solver: str = ""
    window: dict[str, Any] = field(default_factory=dict[str, Any])
    course: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def schedule(self) -> SolverSchedule:
        """The decisions of the sampler found; a learned table has none."""
        assert self.tableau.schedule is not None
        return self.tableau.schedule

    @property
    def times(self) -> list[float]:
        """Of the sampler's grid; of its states where the weights are learned."""
        return (self.tableau.times if self.tableau.schedule is None else self.tableau.schedule.times).tolist()

    @property
    def backward(self) -> int:
        """Network calls that were differentiated too."""
        return sum(stage.get("backward", 0) for stage in self.stages)

    @property
    def calls(self) -> int:
        """Network calls made in this run, all stages together."""
        return sum(stage["calls"] for stage in self.stages)

    @property
    def improved(self) -> bool:
        """Whether it is another sampler than the start."""
        return self.tableau != self.start

    def save(self, path: str | Path) -> None:
        """Write the sampler found, `Tableau.load` reads it."""
        self.tableau.save(path)

    def save_all(self, folder: str | Path) -> None:
        """Write `schedule.json` (the sampler) and `search.json` (everything) into a folder, each whole or not at all.

        The sampler comes last: where it lies, the record lies too.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / SEARCH_FILE, json.dumps(self.to_dict(), indent=1) + "\n")
        self.save(folder / SCHEDULE_FILE)

    def to_dict(self) -> dict[str, Any]:
        """The JSON record, tables included."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tableau", "start")}
        return {
            "format": FORMAT,
            "version": VERSION,
            "tableau": self.tableau.to_dict(),
            "start": self.start.to_dict(),
            **record,
        }

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Found:
        """What `to_dict` made.

        Errors: `FileFormatError` for a record of another kind, a newer version, or missing fields.
        """
        if record.get("format") != FORMAT:
            raise FileFormatError(
                f"not a search record (format {record.get('format')!r}): give the {SEARCH_FILE} that `optimize` wrote"
            )
        if not isinstance(record.get("version"), int) or record["version"] > VERSION:
            raise FileFormatError(
                f"the record has version {record.get('version')!r}, this fewstep reads up to {VERSION}: update fewstep"
            )
        try:
            # Early records had one solver, and no name for it; all went from noise to clean; none kept its course.
            record = {"start_solver": record["solver"], "window": {}, "course": [], **record}
            values = {f.name: record[f.name] for f in fields(Found) if f.name not in ("tableau", "start")}
            return Found(
                tableau=Tableau.from_dict(record["tableau"]), start=Tableau.from_dict(record["start"]), **values
            )
        except KeyError as error:
            raise FileFormatError(f"the search record lacks {error}: run the search again") from error

    @staticmethod
    def load(folder: str | Path) -> Found:
        """Read what `save_all` wrote.

        Errors: `FileFormatError` when there is no such file, or it is damaged.
        """
        path = Path(folder)
        path = path / SEARCH_FILE if path.is_dir() else path
        try:
            return Found.from_dict(json.loads(path.read_text("utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise FileFormatError(
                f"{path} cannot be read as a search record ({error}): give the folder of `optimize`"
            ) from error
