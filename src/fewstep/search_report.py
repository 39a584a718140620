"""The page of a search over whole schedules: read from its study, and what is measured anew for it.

    search_report.write("study.sqlite", "report")

New are a comparison of each number of calls' best mixed schedule with its best constant strategy on fresh seeds, the
same with one component at a time set back, and pictures. What was measured once is kept in the folder.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep import networks
from fewstep.errors import ArgumentError
from fewstep.evaluating import Evaluator, NotFinite
from fewstep.progress import Event, Report, silent
from fewstep.proposals import Trial
from fewstep.randomness import ReportSeeds
from fewstep.report import search_page
from fewstep.report.images import is_image
from fewstep.report.search_page import Point, SearchPage
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search.cache import Cache
from fewstep.search.s3 import Space, proposer
from fewstep.search.s3.ablation import resets
from fewstep.search.s3.archive import Reader, score_of
from fewstep.search.s3.importance import importances
from fewstep.search.s3.proposers import SPACE
from fewstep.searching import evaluator_of
from fewstep.study.reading import Contents, read
from fewstep.study.summary import front

PICTURED, POINTS = 32, 400
"""Samples of each schedule: pictures, or points where samples are none."""
Figure = tuple[float, float | None]


def write(
    path: str | Path,
    folder: str | Path,
    *,
    images: int | None = None,
    ablations: bool = True,
    progress: Report = silent,
) -> Path:
    """Write `report.html` into a folder; returns its path.

    Args:
        path: the study.
        folder: of the page; `.cache` in it keeps what was measured.
        images: of the comparisons on fresh seeds; by default as many as the study scored its winners on.
        ablations: whether to set back one component at a time, which takes up to seven evaluations for each number of
            calls.
        progress: told what is done.

    Raises:
        ArgumentError: nothing is evaluated yet, more images than the study has fresh seeds, or another network.
    """
    told = _Told(read(path), Path(path), Path(folder), images, ablations, progress)
    return search_page.write(told.page(), Path(folder) / "report.html")


@dataclass
class _Told:
    contents: Contents
    path: Path
    folder: Path
    asked: int | None
    ablations: bool
    progress: Report

    def __post_init__(self) -> None:
        self.record = self.contents.record
        self.rows = front(self.contents)
        if not self.rows:
            raise ArgumentError(f"{self.path}: no trial is finished yet; there is nothing to report")
        most = len(self.evaluator.report)
        self.images = self.asked or self.record["fresh"] or self.record["counts"][-1]
        if not 2 <= self.images <= most:
            raise ArgumentError(f"images={self.images}: give 2 to {most}, as many as the study has fresh seeds")

    @cached_property
    def evaluator(self) -> Evaluator:
        return evaluator_of(self.record, self.path)

    @cached_property
    def space(self) -> Space:
        """The space of the search; that of our own proposers where another one searched."""
        known = {k: v for k, v in self.record["options"].items() if k in (*SPACE, "rates")}
        noise = self.evaluator.model.noise
        found: Any = proposer("evolution", noise=noise, nfes=tuple(self.record["nfes"]), seed=0, **known)
        return found.space

    def page(self) -> SearchPage:
        scorer = self.evaluator.scorer(fresh=True, cache=Cache(self.folder / ".cache"))
        judge = scorer.judges[0].name

        def compared(before: SolverSchedule, after: SolverSchedule) -> dict[str, Figure]:
            one, two = (self.evaluator.tabulate(s) for s in (before, after))
            return {
                "before": _finite(lambda: scorer.figures(one, self.images)[judge]),
                "after": _finite(lambda: scorer.figures(two, self.images)[judge]),
                "gain": _finite(lambda: scorer.gains(one, two, self.images)[judge]),
            }

        points: list[Point] = []
        for done, row in enumerate(self.rows):
            self.progress(Event("report", done, len(self.rows), f"{row['nfe']} calls"))
            points.append(self._point(row, compared))
        self.progress(Event("report", len(self.rows), len(self.rows)))
        archive = Reader(self.space).read(self._trials)
        tau, found = importances(self.space, archive.genes, archive.scores)
        return SearchPage(
            self.record["model"], self.record["proposer"], judge, self.evaluator.model.noise, points,
            len(self._trials), tau if found else None, [(f.component, f.drop, f.spread) for f in found],
            self._stages(), networks.classes_of(self.evaluator.model), self._facts(),
            f"fewstep search front {shlex.quote(str(self.path))} --save schedules",
        )  # fmt: skip

    @cached_property
    def _trials(self) -> list[Trial]:
        return [entry.trial for entry in self.contents.entries.values() if entry.trial.scores]

    def _point(self, row: Mapping[str, Any], compared: Any) -> Point:
        nfe, trial = row["nfe"], self.contents.entries[row["trial"]].trial
        found, constant = trial.proposal.schedule, self._constant(nfe)
        gained: dict[str, Figure] = {}
        if constant is not None:
            gained = compared(constant.proposal.schedule, found)
        worth: dict[str, Figure | None] = {}
        if self.ablations and trial.proposal.stage > 0:
            worth = {name: s and compared(s, found)["gain"] for name, s in self._resets(nfe, found)}
        known = {} if constant is None else {"before": constant.proposal.schedule}
        return Point(
            nfe, found, trial.proposal.origin, row["score"], row["images"],
            None if constant is None else constant.proposal.schedule,
            "" if constant is None else constant.proposal.origin,
            None if constant is None else constant.scores.get(row["images"]),
            gained.get("after"), gained.get("before"), self.images, gained.get("gain"), worth, self._curve(nfe),
            sum(t.nfe == nfe and t.proposal.stage == 0 for t in self._trials),
            {role: self._samples(s) for role, s in (known | {"after": found}).items()},
        )  # fmt: skip

    def _constant(self, nfe: int, *, inside: bool = False) -> Trial | None:
        """The best published schedule by the score that all trials have; `inside`: of those in the space."""
        first = [t for t in self._trials if t.nfe == nfe and t.proposal.stage == 0 and math.isfinite(score_of(t))]
        if inside:
            first = [t for t in first if self.space.encode(t.proposal.schedule) is not None]
        return min(first, key=score_of, default=None)

    def _resets(self, nfe: int, found: SolverSchedule) -> Iterator[tuple[str, SolverSchedule | None]]:
        constant = self._constant(nfe, inside=True)
        ours = self.space.encode(found)
        theirs = None if constant is None else self.space.encode(constant.proposal.schedule)
        if ours is not None and theirs is not None:
            for name, genes in resets(self.space, ours, theirs).items():
                yield name, None if genes is None else self.space.decode(genes)

    def _curve(self, nfe: int) -> list[tuple[int, float]]:
        """The best score at the fewest images after so many evaluations."""
        least = self.record["counts"][0]
        places = [
            (e.place, e.score)
            for entry in self.contents.entries.values()
            if entry.trial.nfe == nfe
            for key, e in entry.evaluations.items()
            if key.images == least and not key.fresh and e.place is not None and e.score is not None
        ]
        curve: list[tuple[int, float]] = []
        best = math.inf
        for count, (_, score) in enumerate(sorted(places), 1):
            if score < best or (count == len(places) and curve):
                best = min(best, score)
                curve.append((count, best))
        return curve

    def _samples(self, schedule: SolverSchedule) -> Any:
        model = self.evaluator.model
        seeds = ReportSeeds(PICTURED if is_image(model.shape) else POINTS)
        return sample(
            model, self.evaluator.tabulate(schedule), seeds=seeds, condition=self.evaluator.condition(seeds),
            brownian=True,
        )  # fmt: skip

    def _stages(self) -> list[list[str]]:
        """What was learned, as a table."""
        names = list(dict.fromkeys(name for one in self.contents.learned for name in one.report))
        if not names:
            return []
        word = lambda v: f"{v:.3g}" if isinstance(v, float) else "-" if v is None else str(v)  # noqa: E731
        rows = [[str(one.trials), *(word(one.report.get(name)) for name in names)] for one in self.contents.learned]
        return [["after trials", *(name.replace("_", " ") for name in names)], *rows]

    def _facts(self) -> dict[str, str]:
        identity = self.record["identity"]
        told = {"study": str(self.path), "budget": f"{self.contents.values.get('budget', self.record['budget']):,}",
                "seed of the proposals": str(self.record["seed"]),
                "images that selected": ", ".join(f"{n:,}" for n in self.record["counts"])}  # fmt: skip
        kept = ("fingerprint", "judge", "selection seeds", "report seeds", "statistics")
        told |= {name: str(identity[name]) for name in kept if name in identity}
        return told | {"fewstep": str(self.record["fewstep"])}


def _finite(figure: Any) -> Figure:
    """A figure as value and error; infinite where samples are not finite."""
    try:
        told = figure()
    except NotFinite:
        return math.inf, None
    return float(told["value"]), told["standard_error"]
