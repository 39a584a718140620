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
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.features import on_pictures
from fewstep.judging import Objective, checked_objective, selection_judge, taught
from fewstep.metrics.statistics import Estimate
from fewstep.noise import NoiseSchedule
from fewstep.progress import Report, silent
from fewstep.randomness import ReportSeeds, Seeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.search.cache import Cache
from fewstep.search.objective import BATCH, Judge, Scorer
from fewstep.search.teacher import CALLS, Teacher, reference_schedule
from fewstep.study.records import InvalidSchedule
from fewstep.tableau import Tableau

REMEMBERED = 32
"""Tables whose rows a worker keeps, so that more images of the same trial cost only the new ones."""


class _NotFinite(Exception):
    """Samples that no judge should see."""


class _Strict:
    """A judge that refuses samples which are not finite."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.name, self.digest = judge, judge.name, judge.digest

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        if not bool(torch.isfinite(images).all()):
            raise _NotFinite
        return self.judge.observe(images, seeds)

    def score(self, rows: Tensor) -> float:
        return self.judge.score(rows)

    def figure(self, rows: Tensor) -> Estimate:
        return self.judge.figure(rows)


@dataclass(frozen=True)
class Tabulator:
    """Tables of solver schedules for one network; the mean image is taken from its data when a schedule asks for it."""

    noise: NoiseSchedule
    model: str
    guidance: float | None = None

    def __call__(self, schedule: SolverSchedule) -> Tableau:
        """The table.

        Raises:
            ArgumentError: the schedule gives none.
        """
        return schedule.tabulate(self.noise, mean=self._mean if schedule.afs == "mean" else None)

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
        objective: `frechet`, `teacher`, `auto` (`frechet` where features are known) or `python:MODULE:FUNCTION`, a
            function `images [B, *shape] -> [B]`, lower is better.
        images: the most that a selection asks for.
        fresh: the most that a scoring on fresh seeds asks for.
        guidance: classifier-free guidance weight; 1 is none.
        batch_size: images at a time.
        teacher_calls: of the reference sampler.
        offset: of the seeds: another offset, another set.
        cache: folder of the teacher's end points.
    """

    def __init__(
        self,
        model: str,
        objective: str = "auto",
        *,
        images: int,
        fresh: int = 0,
        guidance: float | None = None,
        batch_size: int = BATCH,
        teacher_calls: int = CALLS,
        offset: int = 0,
        cache: str | None = None,
    ) -> None:
        self.model, self.name = models.load(model, guidance=guidance), model
        known = inputs.judge_of(self.model)
        function = function_of(objective) if objective.startswith("python:") else objective
        chosen = checked_objective(function, known, teacher_calls, staged=False)
        self.objective: Objective = on_pictures(self.model, chosen) if callable(chosen) else chosen
        self.tabulate = Tabulator(self.model.noise, model, guidance)
        self.selection, self.report = SelectionSeeds(images, offset), ReportSeeds(max(images, fresh), offset)
        self._batch, self._condition = batch_size, inputs.condition_of(self.model, None)
        self.teacher = self._teacher(teacher_calls, cache) if taught(self.objective) else None
        # Ranges: whether a seed is known is asked for every image.
        self._judges = {
            fresh: _Strict(selection_judge(self.objective, known, self.teacher, range(seeds[0], seeds[0] + len(seeds))))
            for fresh, seeds in ((False, self.selection), (True, self.report))
        }
        self._asked = objective
        self._scorers: OrderedDict[tuple[str, bool], Scorer] = OrderedDict()

    def _teacher(self, calls: int, cache: str | None) -> Teacher:
        table = reference_schedule(self.model.noise, calls).tabulate(self.model.noise)
        return Teacher(
            self.model, table, condition=self._condition, cache=Cache(cache), batch_size=self._batch
        )  # fmt: skip

    @property
    def identity(self) -> dict[str, Any]:
        """What scores depend on besides the schedule: two studies may be joined only when these agree."""
        judge, about = self._judges[False], models.about(self.model)
        return ({"network": about} if about else {}) | {
            "model": self.name,
            "fingerprint": self.model.fingerprint,
            "noise": self.model.noise.to_dict(),
            "objective": self._asked if callable(self.objective) else self.objective,
            "judge": judge.name,
            "judge digest": judge.digest,
            "selection seeds": repr(self.selection),
            "report seeds": repr(self.report),
        }

    def prepare(self, progress: Report = silent) -> None:
        """Make what all workers share: the teacher's end points of the selection, in the cache."""
        if self.teacher is not None:
            self.teacher(self.selection, progress)

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
        scorer = self._scorer(table.digest, fresh)
        try:
            if fresh:
                value, error = scorer.judges[0].figure(scorer.rows(table, images)[0])
                return value, error
            return scorer.score(table, images)
        except (_NotFinite, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
            return math.inf
        except DenoiserError as error:
            if error.rows and not getattr(error, "sane", False):  # the sampler drove it there
                return math.inf
            raise

    def _scorer(self, digest: str, fresh: bool) -> Scorer:
        key = (digest, fresh)
        if key not in self._scorers:
            seeds: Seeds = self.report if fresh else self.selection
            self._scorers[key] = Scorer(
                self.model, [self._judges[fresh]], seeds, condition=self._condition, cache=Cache(None),
                batch_size=self._batch,
            )  # fmt: skip
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
