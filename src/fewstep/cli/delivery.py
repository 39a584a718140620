"""What `optimize` leaves behind beside the schedule: the picture, the chart's scores and the report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.progress import Event, Report

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.found import Found
    from fewstep.models import Judge
    from fewstep.report.figures import Series
    from fewstep.report.page import Cost
    from fewstep.tableau import Tableau

PICTURED, COLUMNS, POINTS = 64, 8, 400  # images in the picture, in a row of it; samples that are no images
DECODED = 24  # images of a pipeline: its decoder takes as long as a few network calls for each
AROUND = (-2, 0, 2, 4)  # calls fewer and more, in the report's chart
CHARTED = 256  # samples behind each of its points


def own_calls(nfe: int, around: bool) -> int:
    """Network calls of the picture and the chart of an image model, so that a budget can hold them too."""
    charted = nfe + sum(nfe + d for d in AROUND if nfe + d >= 1) if around else 0
    return 2 * PICTURED * nfe + CHARTED * charted


class Delivery:
    """Draws samples with what was found and writes everything into the folder of the search.

    Args:
        found: the search's record.
        model: the model's name, with its options.
        folder: of the results.
        batch_size: samples at a time.
        report: told what is going on.
        cache: of the search.
        judge: that the user brought.
        data: that the search was given; teacher: its `teacher_calls`, if they were.
    """

    def __init__(
        self, found: Found, model: str, folder: Path, batch_size: int, report: Report, cache: Path | None = None,
        judge: Judge | None = None, data: Path | None = None, **teacher: Any,
    ) -> None:  # fmt: skip
        from fewstep.optimizing import prepared

        self.judge = judge
        self.found, self.folder, self.batch_size, self.report = found, folder, batch_size, report
        begun = found.window["start"] if found.window["image_to_image"] else None
        self.ground = prepared(
            model, "dmn", cache=cache or folder / ".cache", start=begun, end=found.window["end"], batch_size=batch_size,
            data=None if begun is None else data, judge=judge, **teacher,
        )  # fmt: skip
        self.ground.read()
        self.network = self.ground.model
        self.teacher = self.ground.teachers.of(str(found.plan.get("teacher", "")))
        self.costs: list[Cost] = []

    def write(self, *, around: bool) -> list[Path]:
        """Write `samples.png` and `report.html`; returns all files of the folder that a user should know."""
        from fewstep.files import atomic_write_bytes
        from fewstep.found import SCHEDULE_FILE, SEARCH_FILE
        from fewstep.networks import classes_of
        from fewstep.report import page
        from fewstep.report.found import page_of
        from fewstep.report.samples import side_by_side
        from fewstep.report.style import png_of

        samples = self._samples()
        series, judge, note = self._series(around)
        whole = page_of(
            self.found, samples=samples, teacher=self.teacher and self.teacher.tableau, series=series,
            series_judge=judge, series_note=note, extra_costs=self.costs,
            command=shlex.join(["fewstep", *sys.argv[1:]]), schedule_file=str(self.folder / SCHEDULE_FILE),
            classes=classes_of(self.network),
        )  # fmt: skip
        entries = [(e.label, e.samples) for e in whole.entries if e.samples is not None]
        picture = png_of(side_by_side(entries, roles=[e.role for e in whole.entries if e.samples is not None]))
        return [
            self.folder / SCHEDULE_FILE,
            atomic_write_bytes(self.folder / "samples.png", picture),
            page.write(whole, self.folder / "report.html"),
            self.folder / SEARCH_FILE,
        ]

    def _samples(self) -> dict[str, Tensor]:
        """The same seeds with each sampler; the teacher's are mostly there already."""
        from fewstep.models import about, pictures
        from fewstep.randomness import ReportSeeds
        from fewstep.report.images import is_image, thumbnails
        from fewstep.sampling import sample
        from fewstep.search.ledger import Ledger

        # Of images as many as the teacher made for the report anyway; points cost next to nothing.
        most = DECODED if about(self.network) else PICTURED
        images = max(2, min(most, int(self.found.plan.get("paired", PICTURED))) // COLUMNS) * COLUMNS
        seeds = ReportSeeds(images if is_image(self.network.shape) else POINTS)
        with self._counted("picture"):
            init = None
            if self.found.window["image_to_image"]:
                if self.ground.unmade:  # the search made them, and keeps them in its cache
                    self.ground.make_data(self.found.plan["made"] or PICTURED, 0, Ledger(self.network))
                init = self.ground.init(seeds)
            condition = self.ground.condition(seeds)
            draw = partial(
                sample, self.network, seeds=seeds, init=init, condition=condition, batch_size=self.batch_size,
                brownian=True,
            )  # fmt: skip
            made = {"before": draw(self.found.start), "after": draw(self.found.tableau)}
            made |= {"teacher": self.teacher(seeds)} if self.teacher else {}
            shown = {role: pictures(self.network, samples) for role, samples in made.items()}
        self.report(Event("picture", 1, 1))
        return {role: thumbnails(samples) for role, samples in shown.items()} if about(self.network) else shown

    def _series(self, around: bool) -> tuple[list[Series], str, str]:
        """Lines of quality against calls, their judge and a remark: from searches beside this one, else measured."""
        from fewstep.report.found import judge_in_words, lines, neighbours

        others = neighbours(self.folder, self.found)
        if others:
            searches = sorted([self.found, *others], key=lambda f: f.nfe)
            return lines(searches), judge_in_words(self.found), "Each point is a search of its own."
        metric = "fd" if self.found.selected_by.startswith("Fréchet") else "rms"
        known = self.found.selected_by in self.found.report.get("after", {})
        ordinary = not self.found.window["image_to_image"] and self.found.window["end"] == "zero"
        if not around or not ordinary or (metric == "rms" and not known):
            return [], "", ""
        with self._counted("chart"):
            series, samples = self._around(metric)
        note = (
            "All points are of the same seeds, so their differences are surer than the bars. "
            f"Searched with {self.found.nfe} calls; a search with another number, in a folder beside, adds its point."
        )
        return series, f"{self.found.selected_by}, {samples} fresh samples", note

    def _around(self, metric: str) -> tuple[list[Series], int]:
        from fewstep import compare, inputs
        from fewstep.randomness import ReportSeeds
        from fewstep.report.figures import Series

        judge = (self.judge or inputs.judge_of(self.network)) if metric == "fd" else None
        seeds = ReportSeeds(CHARTED if metric == "fd" else min(CHARTED, int(self.found.plan.get("paired", 0))))
        teacher = self.teacher if metric == "rms" else None
        series: list[Series] = []
        hand = [t for d in AROUND if (t := self._hand_crafted(self.found.nfe + d)) is not None]
        for role, label, tables in (("before", "hand-crafted", hand), ("after", "found", [self.found.tableau])):
            points: list[tuple[float, float, float]] = []
            for table in tables:
                told = compare.score(
                    self.network, table, seeds, judge=judge, teacher=teacher, batch_size=self.batch_size
                )
                points.append((float(table.nfe), told[metric], told[f"{metric}_error"]))
                self.report(Event(f"chart, {label}", len(points), len(tables)))
            x, value, error = zip(*points, strict=True)
            series.append(Series(label, x, value, error, role))
        return series, len(seeds)

    def _hand_crafted(self, nfe: int) -> Tableau | None:
        """The start's grid with another number of calls; None where the solver cannot make that many."""
        from fewstep import compare, times

        found = self.found
        if nfe == found.start.nfe:
            return found.start
        if nfe < 1 or found.start_origin not in times.NAMES:
            return None
        return compare.cell(self.network.noise, found.start_solver, found.start_origin, nfe).tableau

    @contextmanager
    def _counted(self, stage: str) -> Generator[None]:
        from fewstep.report.page import Cost

        before, started = self.network.evaluations, time.monotonic()
        yield
        self.costs.append(Cost(stage, self.network.evaluations - before, time.monotonic() - started))
