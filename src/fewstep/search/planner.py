"""Planned times: what GITS, OSS and the local errors of the target solver propose, from one set of trajectories.

The trajectories, the matrices of costs and the paths are made once for all solvers and all numbers of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.conditions import first_rows
from fewstep.errors import ArgumentError
from fewstep.progress import Report
from fewstep.rules import SolverSchedule
from fewstep.search.cache import Cache, digest
from fewstep.search.dynamic import Array, PairPaths, Paths, cheapest
from fewstep.search.dynamic_end import EndError
from fewstep.search.dynamic_errors import LocalErrors, Products
from fewstep.search.dynamic_gits import Metric, jump_costs
from fewstep.search.dynamic_oss import OptimalSteps, optimal_steps
from fewstep.search.teacher import Teacher
from fewstep.search.trajectories import Trajectories

GITS_VARIANTS: tuple[tuple[Metric, float], ...] = (
    ("dev", 1.15), ("dev", 1.2), ("dev", 1.1), ("dev", 1.0), ("l2", 1.15), ("l2", 1.0), ("l1", 1.15), ("dev", 0.9),
)  # fmt: skip
"""Metric and coefficient, the authors' first; the others are of their own sweep."""
WEIGHTS: tuple[tuple[float, float], ...] = ((2.0, 0.25), (2.0, 0.5), (2.0, 0.0), (2.0, 1.0), (1.0, 0.5))
"""Power of the errors that are added, and exponent of their weights, best first (see the theory page)."""


class Proposed(NamedTuple):
    """Times that a plan proposes: `[n+1]`, where they come from in words, and plain data for the record."""

    times: Tensor
    origin: str
    about: dict[str, Any]


@dataclass
class Planner:
    """Plans on one network's trajectories.

    Attributes:
        teacher, trajectories: what is planned on; the grid is the teacher's.
        n_max: largest number of steps that will be asked for.
        images: trajectories that OSS follows.
        cache: keeps what OSS found, which costs network calls.
        batch_size, progress: as elsewhere.
    """

    teacher: Teacher
    trajectories: Trajectories
    n_max: int
    images: int
    cache: Cache
    batch_size: int
    progress: Report
    _jumps: dict[Metric, Array] = field(default_factory=dict[Metric, Array])
    _gits: dict[tuple[Metric, float], Paths] = field(default_factory=dict[tuple[Metric, float], Paths])
    _plans: dict[tuple[str, float, float], PairPaths] = field(default_factory=dict[tuple[str, float, float], PairPaths])
    _errors: dict[str, LocalErrors] = field(default_factory=dict[str, LocalErrors])

    def propose(self, method: str, name: str, solver: Callable[[Tensor], SolverSchedule], n: int) -> Iterator[Proposed]:
        """Times of n steps for a solver, the most promising first.

        Args:
            method: one of `fewstep.search.parts.PLANNED`.
            name, solver: the target solver; GITS and OSS plan Euler steps for any.
            n: number of steps.
        """
        if method == "gits":
            for metric, coefficient in GITS_VARIANTS:
                path = self.gits(metric, coefficient).path(n)
                yield self._proposed(path, f"GITS, {metric}, coefficient {coefficient:g}", metric=metric)
        elif method == "oss":
            for each, found in self.oss.items():
                how = "median of the images" if each else "all images together"
                yield self._proposed(found.path(n), f"OSS, {how}", each=each)
        else:
            yield from self._least_error(name, solver, n)

    def gits(self, metric: Metric, coefficient: float) -> Paths:
        """GITS's paths."""
        if (metric, coefficient) not in self._gits:
            if metric not in self._jumps:
                self._jumps[metric] = jump_costs(self.trajectories, metric)
            self._gits[metric, coefficient] = cheapest(self._jumps[metric], self.n_max, discount=coefficient)
        return self._gits[metric, coefficient]

    @cached_property
    def oss(self) -> dict[bool, OptimalSteps]:
        """What OSS found, image by image (True) and for all together (False); costs network calls."""
        return {each: self._optimal_steps(each) for each in (True, False)}

    def _optimal_steps(self, each: bool) -> OptimalSteps:
        teacher, seeds = self.teacher, self.trajectories.seeds[: self.images]
        condition = first_rows(teacher.condition(seeds), self.images)
        name = "oss-" + digest(
            teacher.denoiser.fingerprint, teacher.tableau.digest, str(teacher.denoiser.dtype), list(seeds), condition,
            teacher.start_digest(seeds), self.n_max, each,
        )  # fmt: skip
        stored = self.cache.read(name)
        if stored is not None:
            teacher.probe.check(stored[0]["probe"], self.cache.path(name))
            return OptimalSteps(stored[0]["costs"], stored[0]["before"])
        some = next(self.trajectories.batches(self.images))
        found = optimal_steps(
            teacher.denoiser, some, self.n_max, condition=condition, each=each, batch_size=self.batch_size,
            progress=self.progress,
        )  # fmt: skip
        if self.cache.folder is not None:
            tensors = {"costs": found.costs, "before": found.before, "probe": teacher.probe.answer()}
            self.cache.write(name, tensors, {})
        return found

    @cached_property
    def _products(self) -> Products:
        return Products.of(self.trajectories, self.teacher.denoiser.noise)

    @cached_property
    def end_error(self) -> EndError:
        """Predicts end errors."""
        return EndError.of(self.trajectories, self.teacher.denoiser.noise)

    def local_error(self, name: str, solver: Callable[[Tensor], SolverSchedule]) -> LocalErrors:
        """The local errors of a solver."""
        if name not in self._errors:
            self._errors[name] = LocalErrors.of(self._products, solver, name)
        return self._errors[name]

    def least_error(
        self, name: str, solver: Callable[[Tensor], SolverSchedule], power: float, exponent: float
    ) -> PairPaths:
        """The paths of least weighted local errors.

        The weight of an error at noise level r = sigma / alpha is `(v / (v + r^2))^(exponent / 2)`, v the variance of
        the data: with exponent 1 it is how much of an error is left at the end, for Gaussian data.
        """
        key = (name, power, exponent)
        if key not in self._plans:
            ratio = self.trajectories.sigma / self.trajectories.alpha
            v = self._products.variance
            weights = (v / (v + ratio**2)) ** (exponent / 2)
            # Nothing ends where there is no signal (the first time), so that its weight is never asked for.
            plan = self.local_error(name, solver).plan(weights.nan_to_num().numpy(), self.n_max, power)
            self._plans[key] = plan
        return self._plans[key]

    def _least_error(self, name: str, solver: Callable[[Tensor], SolverSchedule], n: int) -> Iterator[Proposed]:
        """The paths of least predicted end error, and those of least local errors that they were improved from."""
        paths = {key: self.least_error(name, solver, *key).path(n) for key in WEIGHTS}
        rule = self.local_error(name, solver).rule
        known: dict[tuple[int, ...], float] = {}
        better: dict[tuple[int, ...], str] = {}
        for (power, exponent), path in paths.items():
            try:
                moved = tuple(self.end_error.improved(solver, path, known))
            except ArgumentError:  # a solver that draws noise, or calls the network between the teacher's times
                break
            better.setdefault(moved, _words(rule, power, exponent))
        for moved in sorted(better, key=lambda at: known[at]):
            yield self._proposed(
                list(moved), f"predicted end error, from {better[moved]}", predicted=known[moved], knots=list(moved)
            )
        for (power, exponent), path in paths.items():
            yield self._proposed(path, _words(rule, power, exponent), predicted=known.get(tuple(path)), knots=path)

    def _proposed(self, path: list[int], origin: str, **about: Any) -> Proposed:
        return Proposed(self.trajectories.times[torch.tensor(path, device="cpu")], origin, about)


def _words(rule: str, power: float, exponent: float) -> str:
    return f"local error of {rule}, power {power:g}, weight {exponent:g}"
