"""A text-to-image network: schedules found here beside the published lists and the hand-crafted times.

For each number of calls a search (`fewstep.many.optimize_many`); then every sampler is scored on the same fresh seeds
by its distance to a many-step teacher of the same noise and prompt: the found ones, the published lists (Align Your
Steps, GITS, OSS) that were made for networks of this family, whichever network that was, and the hand-crafted times.
Searches and scores are on disk as soon as they are made; the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep import compare, times
from fewstep.compare import Cell, Results, Row
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, FewstepError, TimesError
from fewstep.found import Found
from fewstep.many import folder_of, optimize_many
from fewstep.progress import Report, silent
from fewstep.randomness import ReportSeeds
from fewstep.solvers import get
from fewstep.tableau import Tableau
from fewstep.words import with_error

GRIDS = ("uniform", "karras", "logsnr", "beta", "flow_shift")
"""Hand-crafted times in the table; the search itself tries all of them."""
OFFSET = 1_000_000
"""The table's report seeds begin here, away from those of the searches' own figures."""


@dataclass
class TextToImage:
    """The experiment: `run()` makes what is missing, `markdown()` shows what there is.

    Args:
        model: the network; `name` stands in the files.
        folder: a search in each SOLVER-NFE of it, and `scores.jsonl`.
        nfes, solvers, method, minutes, max_calls: of the searches.
        samples: behind each score.
        batch: samples at a time.
        progress: told what is going on.
    """

    model: Denoiser
    folder: Path
    nfes: Sequence[int] = (6, 8, 10)
    solvers: Sequence[str] = ("dpmpp_2m",)
    method: str = "grids"
    samples: int = 256
    minutes: float | None = None
    max_calls: int | None = None
    batch: int = 64
    progress: Report = silent
    rows: list[Row] = field(default_factory=list[Row])

    def run(self) -> list[Row]:
        """Search what has not been found, score what has not been scored."""
        for solver in self.solvers:
            get(solver)
            missing = [nfe for nfe in self.nfes if self._known(solver, nfe) is None]
            if missing:
                optimize_many(
                    self.model, missing, solver, self.method, minutes=self.minutes, max_calls=self.max_calls,
                    out=self.folder, batch_size=self.batch, progress=self.progress,
                )  # fmt: skip
        teacher = compare.teacher(self.model, cache=self.folder / ".cache" / "teacher", batch_size=self.batch)
        results, seeds = Results(self.folder / "scores.jsonl"), ReportSeeds(self.samples, OFFSET)
        self.rows = []
        for row in compare.compare(
            self.model, self.cells(), seeds, teacher=teacher, results=results, by="rms", batch_size=self.batch,
            progress=self.progress,
        ):  # fmt: skip
            self.rows.append(row)
        return self.rows

    def cells(self) -> list[Cell]:
        """All samplers: for each solver and number of calls what was found, published lists, hand-crafted times."""
        cells: list[Cell] = []
        for solver in self.solvers:
            for nfe in self.nfes:
                found = self._known(solver, nfe)
                if found is not None:
                    cells.append(Cell(solver, "found", nfe, found))
                cells += [self._published(solver, name, nfe) for name in self.lists()]
                cells += [compare.cell(self.model.noise, solver, grid, nfe) for grid in GRIDS]
        return cells

    def lists(self) -> list[str]:
        """Published lists for networks of this family."""
        return [name for name, entry in times.PUBLISHED.items() if entry.noise.family == self.model.noise.family]

    def _published(self, solver: str, name: str, nfe: int) -> Cell:
        """A list as ComfyUI runs it: resampled to the number of calls, the last one onto sigma 0."""
        try:
            grid = times.published(name, nfe, self.model.noise, "comfyui")
            table = get(solver)(grid).tabulate(self.model.noise)
        except (ArgumentError, TimesError) as error:
            return Cell(solver, name, nfe, reason=str(error))
        if table.nfe != nfe:
            return Cell(solver, name, nfe, reason=f"{solver} makes {table.nfe} calls here")
        return Cell(solver, name, nfe, table)

    def _known(self, solver: str, nfe: int) -> Tableau | None:
        """What a finished search found for this very network."""
        try:
            found = Found.load(self.folder / folder_of(solver, nfe))
        except (FewstepError, json.JSONDecodeError):
            return None
        same = found.tableau.meta.get("fingerprint") == self.model.fingerprint and found.method == self.method
        return found.tableau if found.complete and same else None

    def markdown(self) -> str:
        """A table: a row for each solver and its times, a column for each number of calls, the best in bold."""
        lines = ["| solver | times | " + " | ".join(f"{nfe} calls" for nfe in self.nfes) + " |"]
        lines.append("|---|---|" + "---|" * len(self.nfes))
        best = {n: min((r.scores["rms"] for r in self.rows if r.nfe == n and r.scores), default=0.0) for n in self.nfes}
        for solver, name in dict.fromkeys((row.solver, row.times) for row in self.rows):
            here = {row.nfe: row for row in self.rows if (row.solver, row.times) == (solver, name)}
            shown = [self._shown(here.get(nfe), best[nfe]) for nfe in self.nfes]
            lines.append(f"| {solver} | {name} | " + " | ".join(shown) + " |")
        return "\n".join(lines) + "\n"

    def _shown(self, row: Row | None, best: float) -> str:
        if row is None or not row.scores:
            return "n/a"
        text = with_error(row.scores["rms"], row.scores["rms_error"])
        return f"**{text}**" if row.scores["rms"] == best else text
