"""One true evaluation: a solver schedule, a number of images, a score. Built in every worker from plain data."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep import inputs, models
from fewstep.denoiser import Denoiser
from fewstep.ems import EMS
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.features import judge_from, on_pictures
from fewstep.judging import CONTROLLED, Objective, searched_objective, selection_judge, taught
from fewstep.metrics.statistics import Estimate
from fewstep.noise import NoiseSchedule
from fewstep.progress import Report, silent
from fewstep.randomness import ReportSeeds, Seeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.search.cache import Cache
from fewstep.search.control import CONTROL_CALLS, POPULATION, Control
from fewstep.search.judges import Judge
from fewstep.search.objective import BATCH, Scorer
from fewstep.search.teacher import CALLS, Teacher, reference_schedule
from fewstep.study.records import InvalidSchedule
from fewstep.tableau import Tableau

REMEMBERED = 32
"""Tables whose rows a worker keeps, so that more images of the same trial cost only the new ones."""


class NotFinite(Exception):
    """Samples that no judge should see."""


class _Strict:
    """A judge that refuses samples which are not finite."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name, self.digest = judge, judge.name, judge.digest

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        if not bool(torch.isfinite(images).all()):
            raise NotFinite
        rows = self.judge.observe(images, seeds)
        if not bool(torch.isfinite(rows).all()):  # features of absurd images
            raise NotFinite
        return rows

    def score(self, rows: Tensor) -> float:
        return self.judge.score(rows)

    def figure(self, rows: Tensor) -> Estimate:
        return self.judge.figure(rows)


@dataclass(frozen=True)
class Tabulator:
    """Tables of solver schedules for one network; the mean image is taken from its data when a schedule asks for it.

    Attributes:
        noise: of the states.
        model, guidance: name of the network.
        statistics: of DPM-Solver-v3, for schedules with its basis.
    """

    noise: NoiseSchedule
    model: str
    guidance: float | None = None
    statistics: EMS | None = None

    @staticmethod
    def of(noise: NoiseSchedule, arguments: Mapping[str, Any]) -> Tabulator:
        """That of an evaluator with these arguments, without its network."""
        path = arguments.get("statistics")
        statistics = None if path is None else EMS.load(path)
        return Tabulator(noise, arguments["model"], arguments.get("guidance"), statistics)

    def __call__(self, schedule: SolverSchedule) -> Tableau:
        """The table.

        Raises:
            ArgumentError: the schedule gives none.
        """
        mean = self._mean if schedule.afs == "mean" else None
        return schedule.tabulate(self.noise, mean=mean, statistics=self.statistics)

    def measure(self, schedule: SolverSchedule) -> tuple[int, str]:
        """Network calls and digest."""
        table = self(schedule)
        return table.nfe, table.digest

    @cached_property
    def _mean(self) -> Tensor:
        data = inputs.known_data(models.load(self.model, guidance=self.guidance), 1024)
        if data is None:
            raise ArgumentError("afs='mean' needs the mean image, and this network comes without data")
        return data.samples.double().mean(0)


class Evaluator:
    """Evaluates schedules on one network.

    Args:
        model: `mnist`, `problem:NAME`, `diffusers:PATH_OR_ID?prompts=FILE` or `python:MODULE:FACTORY`.
        objective: what selects, lower is better: `controlled` (Fréchet distance to the data, a teacher's samples of the
            same noise as control variates), `frechet` (the plain one), `matched` (distance as a set to the
            teacher's samples of the same noise), `faithful` (that of features and of the samples themselves), `teacher`
            (RMS distance to these, one by one), or `python:MODULE:FUNCTION`, a function `images [B, *shape] -> [B]`.
            `auto` is controlled where features of the data are known and there are four images for each, frechet where
            there are fewer, else matched.
        images, fewest: the most and the fewest that a selection asks for; by default always as many.
        fresh: the most that a scoring on fresh seeds asks for.
        guidance: classifier-free guidance weight; 1 is none.
        batch_size: images at a time.
        teacher_calls: of the reference sampler; by default 60, and 10 for `controlled`, whose teacher may be rough.
        population: samples of the teacher that `controlled` knows it by.
        offset: of the seeds: another offset, another set.
        cache: folder of the teacher's end points or features.
        statistics: file of the network's statistics (`EMS.save`), for steps in DPM-Solver-v3's basis.
        features, reference: `python:MODULE:FACTORY` of a feature network and the file of its statistics on real
            images, instead of those that the package knows.
        network, judge: the network that the name stands for, and its features and their reference, where they are not
            what the name alone gives; such an evaluator serves one process.
    """

    def __init__(
        self,
        model: str,
        objective: str = "auto",
        *,
        images: int,
        fewest: int | None = None,
        fresh: int = 0,
        guidance: float | None = None,
        batch_size: int = BATCH,
        teacher_calls: int | None = None,
        population: int = POPULATION,
        offset: int = 0,
        cache: str | None = None,
        statistics: str | None = None,
        features: str | None = None,
        reference: str | None = None,
        network: Denoiser | None = None,
        judge: models.Judge | None = None,
    ) -> None:
        self.model, self.name = network or models.load(model, guidance=guidance), model
        known = judge or judge_from(self.model, features, reference) or inputs.judge_of(self.model)
        function = function_of(objective) if objective.startswith("python:") else objective
        usual = CALLS if teacher_calls is None else teacher_calls
        chosen = searched_objective(function, known, usual, images if fewest is None else fewest, images)
        self.objective: Objective = on_pictures(self.model, chosen) if callable(chosen) else chosen
        known_statistics = None if statistics is None else EMS.load(statistics, self.model)
        self.tabulate = Tabulator(self.model.noise, model, guidance, known_statistics)
        self.selection, self.report = SelectionSeeds(images, offset), ReportSeeds(max(images, fresh), offset)
        self._batch, self.condition = batch_size, inputs.condition_of(self.model, None)
        self.teacher = self.control = None
        if taught(self.objective):
            controlled = self.objective == CONTROLLED
            calls = CONTROL_CALLS if controlled and teacher_calls is None else usual
            self.teacher = self._teacher(calls, cache)
            if controlled and known is not None:
                if population < images:
                    raise ArgumentError(f"population={population}: give more than select ({images})")
                self.control = Control(self.teacher, known.features, population, Cache(cache), batch_size)
        # Ranges: whether a seed is known is asked for every image.
        self._judges = {
            of: _Strict(
                selection_judge(
                    self.objective, known, self.teacher, range(seeds[0], seeds[0] + len(seeds)), self.control
                )
            )
            for of, seeds in ((False, self.selection), (True, self.report))
        }
        self._asked, self._rescored = objective, fresh > 0
        self._scorers: OrderedDict[tuple[str, bool], Scorer] = OrderedDict()

    def _teacher(self, calls: int, cache: str | None) -> Teacher:
        table = reference_schedule(self.model.noise, calls).tabulate(self.model.noise)
        return Teacher(
            self.model, table, condition=self.condition, cache=Cache(cache), batch_size=self._batch
        )  # fmt: skip

    @property
    def identity(self) -> dict[str, Any]:
        """What scores depend on besides the schedule: two studies may be joined only when these agree."""
        judge, about, statistics = self._judges[False], models.about(self.model), self.tabulate.statistics
        third = {} if statistics is None else {"statistics": statistics.digest}
        return (
            third
            | ({"network": about} if about else {})
            | {
                "model": self.name,
                "fingerprint": self.model.fingerprint,
                "noise": self.model.noise.to_dict(),
                "objective": self._asked if callable(self.objective) else self.objective,
                "judge": judge.name,
                "judge digest": judge.digest,
                "selection seeds": repr(self.selection),
                "report seeds": repr(self.report),
            }
        )

    def prepare(self, progress: Report = silent) -> None:
        """Make what all workers share, in the cache: the teacher's end points, or its features with their moments."""
        if self.control is not None:
            self.control(self.control.seeds, progress)
        known = self.control or self.teacher
        if known is not None:
            known(self.selection, progress)
            if self._rescored:
                known(self.report, progress)

    def __call__(
        self, schedule: SolverSchedule | Mapping[str, Any], images: int, fresh: bool = False
    ) -> float | tuple[float, float]:
        """The score on the first `images` seeds, lower is better, infinite where samples are not finite.

        On fresh seeds, which never select, `(score, standard error)`.

        Raises:
            InvalidSchedule: it gives no table.
            DenoiserError: the network fails on states of a usual size, or there is no memory for one sample.
        """
        try:
            decisions = schedule if isinstance(schedule, SolverSchedule) else SolverSchedule.from_dict(dict(schedule))
            table = self.tabulate(decisions)
        except (ArgumentError, ValueError) as error:
            raise InvalidSchedule(str(error)) from error
        return self.score_table(table, images, fresh)

    def score_table(self, table: Tableau, images: int, fresh: bool = False) -> float | tuple[float, float]:
        """The same for a table."""
        scorer = self._scorer(table.digest, fresh)
        try:
            if fresh:
                value, error = scorer.judges[0].figure(scorer.rows(table, images)[0])
                return value, error
            return scorer.score(table, images)
        except (NotFinite, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
            return math.inf
        except DenoiserError as error:
            if error.rows and not getattr(error, "sane", False):  # the sampler drove it there
                return math.inf
            raise

    def scorer(self, *, fresh: bool, cache: Cache) -> Scorer:
        """What scores tables on the selection seeds, or on fresh ones; rows are kept in the cache."""
        seeds: Seeds = self.report if fresh else self.selection
        return Scorer(
            self.model, [self._judges[fresh]], seeds, condition=self.condition, cache=cache, batch_size=self._batch
        )

    def _scorer(self, digest: str, fresh: bool) -> Scorer:
        key = (digest, fresh)
        if key not in self._scorers:
            self._scorers[key] = self.scorer(fresh=fresh, cache=Cache(None))
        self._scorers.move_to_end(key)
        while len(self._scorers) > REMEMBERED:
            self._scorers.popitem(last=False)
        return self._scorers[key]


def function_of(name: str) -> Callable[..., Any]:
    """The function that `python:MODULE:FUNCTION` names; modules of the working folder are found too.

    Raises:
        ArgumentError: there is none.
    """
    module, _, function = name.removeprefix("python:").rpartition(":")
    here = os.getcwd()
    sys.path.insert(0, here)  # a console script does not look in the working folder by itself
    try:
        found = getattr(importlib.import_module(module), function, None) if module else None
    except ModuleNotFoundError as error:
        raise ArgumentError(f"{name}: {error}; run from its folder, or install it") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ArgumentError(f"{name}: no such function; write python:MODULE:FUNCTION")
    return found
