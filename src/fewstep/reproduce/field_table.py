"""The field's table on any network: every method at every number of network calls, with its cost and its quality.

    table = FieldTable(models.load("mnist"), "mnist", Path("runs/field"), judge=models.judge("mnist"))
    table.run()
    field_page.write(table.folder)      # field.md and two figures

A cell is a method, a number of calls and a seed. First the method makes a sampler: what that took is counted as if the
cell stood alone, though the teacher's runs are shared. Then the sampler is scored on report seeds, which are the same
for all methods of one seed. The sampler is kept before it is scored, and a cell is one line of `cells.jsonl`, written
when it is whole; the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep import compare
from fewstep.errors import ArgumentError, DenoiserError, StudyError
from fewstep.files import atomic_write_text
from fewstep.progress import Event, Report, silent
from fewstep.randomness import ReportSeeds
from fewstep.reproduce.field_methods import STRIDE, Effort, Maker, Method, chosen
from fewstep.reproduce.field_scores import Examiner, Ruler, ruler_of
from fewstep.reproduce.spending import counted, lent
from fewstep.results import Results
from fewstep.search.cache import digest
from fewstep.tableau import Tableau

if TYPE_CHECKING:
    from fewstep.clean import Data
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge
    from fewstep.search.teacher import Teacher

NFES = (3, 4, 5, 6, 8, 10)
CELLS, MADE, ABOUT = "cells.jsonl", "made.jsonl", "field.json"
FORMAT = 1


@dataclass(frozen=True)
class FieldSettings:
    """What is in the table.

    Attributes:
        methods: names and groups (see `fewstep.reproduce.field_methods`).
        nfes, seeds: numbers of network calls; repetitions, each with seeds of its own for everything.
        effort: of each search.
        images: behind each score; neighbours: of them, those behind precision and recall, at most.
    """

    methods: Sequence[str] = ("all",)
    nfes: Sequence[int] = NFES
    seeds: Sequence[int] = (0,)
    effort: Effort = field(default_factory=Effort)
    images: int = 5000
    neighbours: int = 5000

    def __post_init__(self) -> None:
        if not self.nfes or min(self.nfes) < 1:
            raise ArgumentError(f"nfes={tuple(self.nfes)}: give positive numbers of network calls")
        if not self.seeds or not all(0 <= seed < 400 for seed in self.seeds):
            raise ArgumentError(f"seeds={tuple(self.seeds)}: give numbers from 0 to 399")
        if not compare.FEWEST <= self.images <= STRIDE:
            raise ArgumentError(f"images={self.images}: give {compare.FEWEST} to {STRIDE:,}")
        if self.neighbours < 4 or self.effort.teacher_calls < 2 or self.effort.batch < 1:
            raise ArgumentError("neighbours, teacher_calls and batch must be at least 4, 2 and 1")


@dataclass
class FieldTable:
    """The experiment: `run()` makes what is missing; `fewstep.reproduce.field_page` shows what there is.

    Args:
        model, name: the network, under its default conditions, and what it is called in files.
        folder: of everything; `cache` in it holds the teacher's runs.
        settings: what is in the table.
        judge: features and reference statistics, where they are known.
        data: clean samples, where they are given: for the methods that look at data, and for precision and recall.
        progress: told what is going on.
        failed: cells at which the network or the search failed in this run, in its words; the next run tries again.
    """

    model: Denoiser
    name: str
    folder: Path
    settings: FieldSettings = field(default_factory=FieldSettings)
    judge: Judge | None = None
    data: Data | None = None
    progress: Report = silent
    failed: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        self.methods = chosen(self.settings.methods)
        self.cells, self.made = Results(self.folder / CELLS), Results(self.folder / MADE)
        self._examiners: dict[int, Examiner] = {}

    @cached_property
    def ruler(self) -> Ruler:
        """How sets of samples are compared."""
        return ruler_of(self.model, self.judge, self.data)

    @cached_property
    def teacher(self) -> Teacher:
        """The reference of the scores; the searches have their own, with the same files."""
        calls, batch = self.settings.effort.teacher_calls, self.settings.effort.batch
        return compare.teacher(self.model, calls=calls, cache=self.folder / "cache", batch_size=batch)

    @cached_property
    def ground(self) -> str:
        """Names what all scores of one table depend on."""
        s = self.settings
        return digest(
            FORMAT, self.model.fingerprint, self.ruler.identity, self.teacher.tableau.digest, s.images, s.neighbours
        )

    def run(self) -> int:
        """Make every cell that is missing; returns how many are left, because the network failed at them."""
        s = self.settings
        work = [(seed, nfe, method) for seed in s.seeds for nfe in s.nfes for method in self.methods]
        self._tell_about()
        least, best, score = math.inf, "", "distance" if self.ruler.name else "to_teacher"
        for done, (seed, nfe, method) in enumerate(work):
            self.progress(Event("cells", done, len(work), best))
            self.teacher_cell(seed)
            words = f"{method.name}, {nfe} calls"
            try:
                value = self.cell(method, nfe, seed)["scores"].get(score, math.inf)
            except (DenoiserError, StudyError) as error:
                self.failed[f"{words}, seed {seed}"] = str(error)
                continue
            if value < least:
                least, best = value, f"{words}: {value:.4g}"
        self.progress(Event("cells", len(work), len(work), best))
        with contextlib.suppress(OSError):
            (self.folder / "work").rmdir()
        return len(self.failed)

    def teacher_cell(self, seed: int) -> dict[str, Any]:
        """The teacher's own scores on the report seeds of one repetition."""
        key = digest("teacher", self.ground, seed)
        found = self.cells.get(key)
        if found is None:
            calls = self.settings.effort.teacher_calls
            found = {
                "method": "teacher", "kind": "teacher", "nfe": calls, "seed": seed, "ground": self.ground,
                "scores": self.examiner(seed).teachers(),
            }  # fmt: skip
            self.cells.add(key, found)
        return found

    def cell(self, method: Method, nfe: int, seed: int) -> dict[str, Any]:
        """One cell, made if it is not there: what it is, its cost, and its scores, or the `reason` why it has none."""
        key = self._key(method, nfe, seed)
        found = self.cells.get(digest(key, self.ground))
        if found is None:
            about = {"method": method.name, "kind": method.kind, "nfe": nfe, "seed": seed, "ground": self.ground}
            about |= {} if method.kind == "hand" else {"effort": self.settings.effort.words}
            made = self._made(key, method, nfe, seed)
            found = about | {k: v for k, v in made.items() if k != "file"} | self._scored(made, seed)
            self.cells.add(digest(key, self.ground), found)
        return found

    def _key(self, method: Method, nfe: int, seed: int) -> str:
        """Names what the sampler of a cell depends on."""
        judged = None if self.judge is None else [self.judge.name, self.judge.reference.mean]
        data = None if self.data is None or method.kind == "s3" else self.data.samples
        searched = () if method.kind == "hand" else (self.settings.effort.spent(method), judged, data)
        return digest(FORMAT, self.model.fingerprint, method.name, nfe, seed, *searched)

    def _made(self, key: str, method: Method, nfe: int, seed: int) -> dict[str, Any]:
        """The sampler's file and what it took, or a reason; on disk before it is scored."""
        known = self.made.get(key)
        if known is not None and ("reason" in known or (self.folder / known["file"]).is_file()):
            return known
        slug = f"{method.name.replace(':', '-')}-{nfe}-{seed}-{key[:6]}"
        place = self.folder / "work" / slug
        maker = Maker(self.model, self.name, self.judge, self.data, self.settings.effort, self.progress)
        with counted(self.model, place) as bill, lent(self.folder / "cache", maker.cache(method, place)):
            try:
                result = maker(method, nfe, seed, place)
            except ArgumentError as error:
                record: dict[str, Any] = {"reason": str(error)}
            else:
                file = f"tables/{slug}.json"
                (self.folder / "tables").mkdir(parents=True, exist_ok=True)
                result.tableau.save(self.folder / file)
                record = {"file": file, "origin": result.origin, "kept": result.kept, "digest": result.tableau.digest}
                bill.calls -= result.figures
                bill.backward = result.backward
        record["cost"] = bill.record()
        self.made.add(key, record, method=method.name, nfe=nfe, seed=seed)
        shutil.rmtree(place, ignore_errors=True)
        return record

    def _scored(self, made: dict[str, Any], seed: int) -> dict[str, Any]:
        if "reason" in made:
            return {"scores": {}}
        table = Tableau.load(self.folder / made["file"])
        try:
            return {"scores": self.examiner(seed)(table)}
        except ArgumentError as error:  # samples that are not finite
            return {"scores": {}, "reason": str(error)}
        except DenoiserError as error:
            if error.rows and not error.sane:  # the sampler drove the network there
                return {"scores": {}, "reason": str(error)}
            raise

    def examiner(self, seed: int) -> Examiner:
        """The scores of one repetition's report seeds."""
        if seed not in self._examiners:
            self._examiners.clear()  # the rows of one set may be large
            s = self.settings
            self._examiners[seed] = Examiner(
                self.model, self.ruler, ReportSeeds(s.images, seed * STRIDE), self.teacher, neighbours=s.neighbours,
                batch=s.effort.batch, progress=self.progress,
            )  # fmt: skip
        return self._examiners[seed]

    def _tell_about(self) -> None:
        """Write what the report says of the whole."""
        s = self.settings
        about = {
            "format": FORMAT, "model": self.name, "fingerprint": self.model.fingerprint, "ground": self.ground,
            "distance": self.ruler.name, "between": self.ruler.between, "real": self.ruler.real is not None,
            "device": str(self.model.device), "images": s.images, "neighbours": s.neighbours,
            "teacher_calls": s.effort.teacher_calls, "effort": s.effort.words,
        }  # fmt: skip
        atomic_write_text(self.folder / ABOUT, json.dumps(about, indent=1) + "\n")
