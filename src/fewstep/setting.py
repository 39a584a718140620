"""What searches on one network have in common: the network, its ends, its data, its teacher, its KLUB table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep import data_range, inputs, models
from fewstep.conditions import first_rows, placed, rows
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.inputs import Data, SeedsAsked
from fewstep.judging import Objective
from fewstep.lowered import Loss, lowered_by
from fewstep.progress import Report
from fewstep.randomness import CalibrationSeeds, Seeds
from fewstep.search.cache import Cache, Probe
from fewstep.search.gradient.objectives import Objective as LearningObjective
from fewstep.search.judges import Judge
from fewstep.search.klub import Gram
from fewstep.search.ledger import Ledger
from fewstep.search.objective import Scorer
from fewstep.search.parts import PARTS, Parts
from fewstep.search.planner import Planner
from fewstep.search.teacher import ConditionOf, Teacher
from fewstep.search.window import Window
from fewstep.teachers import Teachers

MADE_OFFSET = 500_000_000
"""Calibration seeds of the teacher's own samples start here, away from those that noise them."""
COARSEST = 2
"""A plan's grid has so many times the steps, at least."""
MOST_KNOWN = 1024
"""Clean samples of a known network, when no number is asked for."""


@dataclass
class Setting:
    """The ground that searches share; several on one setting pay for its data, teacher and KLUB table once.

    Attributes:
        model, name: the network; method: of the search; window: from where to where.
        objective, known: what judges.
        asked: the condition by seed, as the user or the network wants it; own_condition: whether the user gave it.
        cache, probe, batch, progress, seeds: as in `optimize`.
        teacher_calls: of the reference sampler; 0 for none.
        loss: what a method that learns by gradient lowers, `auto` for its own.
        data: clean samples, once they are there; unread: how to read the caller's file; gram: the KLUB table, likewise.
        given: whether the caller gave the data, and nobody has looked at them yet.
        ready: whether the caller gave the table.
        notes: what a reader should know.
        planner: plans on teacher trajectories, once they are there; most_steps: that it will be asked for.
    """

    model: Denoiser
    name: str
    method: str
    window: Window
    objective: Objective
    known: models.Judge | None
    asked: ConditionOf
    own_condition: bool
    cache: Cache
    probe: Probe
    batch: int
    progress: Report
    seeds: SeedsAsked
    teacher_calls: int
    data: Data | None = None
    gram: Gram | None = None
    notes: list[str] = field(default_factory=list[str])
    given: bool = False
    planner: Planner | None = None
    most_steps: int = 1
    loss: Loss = "auto"
    unread: Callable[[], Data] | None = None

    def __post_init__(self) -> None:
        self.given, self.ready = self.data is not None or self.unread is not None, self.gram is not None

    @cached_property
    def parts(self) -> Parts:
        """What the method is made of; `auto` leaves out what this network, window or teacher does not allow."""
        parts = PARTS[self.method]
        if parts.auto and not (self.window.whole and self.window.to_zero):
            parts = parts.unevolved()
        return parts.untaught() if parts.auto and (not self.teacher_calls or self.model.channels != 1) else parts

    def parts_for(self, steps: int) -> Parts:
        """Those of a sampler with so many steps: `auto` does not plan more than the teacher's grid can hold."""
        coarse = self.parts.auto and self.teacher_calls < COARSEST * steps
        return self.parts.unplanned() if coarse else self.parts

    @property
    def klub(self) -> bool:
        """Whether the method looks at a KLUB table."""
        return self.parts.ays

    @property
    def plans(self) -> bool:
        """Whether the method plans on teacher trajectories."""
        return bool(self.parts.plans)

    @property
    def learned(self) -> bool:
        """Whether the method learns by gradient."""
        return bool(self.parts.learned)

    @cached_property
    def lowered(self) -> LearningObjective | None:
        """What a method that learns by gradient lowers; None for the others.

        Errors: as in `lowered_by`.
        """
        return lowered_by(self.method, self.parts, self.loss, self.model, self.known)

    def require_grid(self, steps: int) -> None:
        """Refuse, before any work, plans of so many steps that the teacher's grid cannot hold; remembers the most.

        Errors: `ArgumentError`.
        """
        if not self.plans:
            return
        if not self.teacher_calls:
            raise ArgumentError(
                f"method={self.method!r} plans on a teacher's trajectories, and teacher_calls=0 switches the teacher "
                "off: leave teacher_calls out, or use method='dmn'"
            )
        if not self.parts_for(steps).plans:
            return
        if self.teacher_calls < COARSEST * steps:
            raise ArgumentError(
                f"teacher_calls={self.teacher_calls} gives a grid of {self.teacher_calls + 1} times, too coarse to "
                f"choose {steps} steps from: give at least {COARSEST * steps}"
            )
        if self.model.channels != 1:
            raise ArgumentError(
                f"the network gives {self.model.channels} outputs, and plans are made on one: wrap it with guidance"
            )
        self.most_steps = max(self.most_steps, steps)

    @property
    def unmade(self) -> bool:
        """Whether the teacher will have to make clean samples."""
        return self.teacher_calls > 0 and self._missing

    def read(self) -> None:
        """Read the caller's file of clean samples (`given_data`): after all that can be refused without it."""
        if self.unread is not None and self.data is None:
            self.data = self.unread()

    @property
    def _missing(self) -> bool:
        """Whether clean samples are needed and not there; those that are known are taken now."""
        if self.unread is not None:
            return False
        if self.data is None and (self.klub or not self.window.whole):
            self.data = inputs.known_data(self.model, self.seeds.paths or MOST_KNOWN)
        table = self.klub and not self.ready
        return self.data is None and (table or self.known is None or self.window.start is not None)

    def require_sources(self) -> None:
        """Refuse, before any work, a search that needs clean samples and has nobody to make them, or a KLUB table that
        does not reach its last step.

        Errors: `ArgumentError`.
        """
        assert (self.lowered is None) != self.learned
        if self.learned and not self.teacher_calls:
            raise ArgumentError(f"method {self.method} learns from a teacher, and teacher_calls=0 switches it off")
        if self.learned and self.model.channels != 1:
            raise ArgumentError(f"the network gives {self.model.channels} outputs: wrap it with guidance to learn one")
        level = self.model.noise.ratio(self.window.low).item()
        if self.klub and self.gram is not None and self.gram.ratios[0] > level * (1 + 1e-9):
            raise ArgumentError(
                f"gram begins at noise level {self.gram.ratios[0].item():.4g}, and the times go down to {level:.4g}: "
                "compute it from there (fewstep.search.klub.ratio_grid), or leave gram out"
            )
        if self.klub and self.gram is None and self.model.channels != 1:
            raise ArgumentError(
                f"the network gives {self.model.channels} outputs, and a KLUB table is of one: wrap it with guidance"
            )
        needed = (self.klub and not self.ready) or self.window.start is not None
        if needed and not self.teacher_calls and self._missing:
            raise ArgumentError(
                "there are no clean data, and teacher_calls=0 switches off the teacher that would make them: give "
                "data=, or leave teacher_calls out"
            )

    @cached_property
    def teachers(self) -> Teachers:
        """The reference samplers."""
        return Teachers(self)

    @property
    def teacher(self) -> Teacher | None:
        """The reference sampler over the window, or None."""
        return self.teachers.reference if self.teacher_calls else None

    def condition(self, seeds: Sequence[int]) -> Any:
        """The condition of given seeds; in image-to-image that of the image, unless the user gave another."""
        if self.window.start is None or self.own_condition or self.data is None or self.data.condition is None:
            return self.asked(seeds)
        return placed(rows(self.data.condition, self._images(seeds)), self.model.device)

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Clean images `[B, *shape]` that image-to-image starts from, in the states' dtype, each by its seed alone."""
        assert self.data is not None, "the data come first"
        picked = self.data.samples[self._images(seeds)]
        return picked.to(device=self.model.device, dtype=self.model.dtype)

    def _images(self, seeds: Sequence[int]) -> Tensor:
        """Rows of the data: report seeds take the second half, all others the first: no image of a figure selected."""
        assert self.data is not None
        half = len(self.data.samples) // 2
        rest = len(self.data.samples) - half
        report = CalibrationSeeds.first
        return torch.tensor([half + s % rest if s < report else s % half for s in seeds], device="cpu")

    def scorer(self, judges: list[Judge], seeds: Seeds) -> Scorer:
        """A scorer of samples over the window."""
        return Scorer(
            self.model, judges, seeds, condition=self.condition, cache=self.cache, probe=self.probe,
            batch_size=self.batch, init=None if self.window.start is None else self.init,
        )  # fmt: skip

    def check_data(self, ledger: Ledger) -> None:
        """Refuse data of the caller that are in another range than the network's.

        Errors: `ArgumentError`.
        """
        if self.given and self.data is not None:
            with ledger.stage("range of the data", self.check_calls):
                data_range.require_range(self.model, self.data.samples, self.data.condition, self.data.cure)
            self.given = False  # once is enough, whoever shares them

    @property
    def check_calls(self) -> int:
        """Network calls of `check_data`."""
        if not self.given or self.data is None:
            return 0
        return data_range.calls(self.data.samples) * self.model.batch_cost

    def make_data(self, count: int, planned: int, ledger: Ledger) -> Data:
        """The data; where there are none, the teacher makes `count` samples."""
        if self.data is None:
            seeds = CalibrationSeeds(count, MADE_OFFSET)
            with ledger.stage("data", planned):
                samples = self.teachers.maker(seeds, self.progress)
            self.notes.append(f"There were no clean data: the teacher made {count} samples ({seeds!r}).")
            self.data = Data(samples, self.asked(seeds), f"{count} samples of the teacher")
        return self.data

    def table(self, paths: int, levels: int, planned: int, ledger: Ledger) -> Gram:
        """The KLUB table; where there is none, from one pass over the first `paths` samples of the data."""
        if self.gram is None:
            assert self.data is not None
            seeds = CalibrationSeeds(paths, self.seeds.calibration.offset if self.seeds.calibration else 0)
            data, condition = self.data.samples[:paths], first_rows(self.data.condition, paths)
            with ledger.stage("KLUB table", planned):
                self.gram = Gram.compute(
                    self.model, data, seeds=seeds, condition=condition,
                    ratios=self.window.levels(levels), batch_size=self.batch, cache=self.cache, probe=self.probe,
                    progress=self.progress,
                )  # fmt: skip
            self.notes.append(
                f"KLUB table: {paths} noising paths of {self.data.note}, {levels} noise levels; "
                f"distance from a martingale {self.gram.martingale_defect():.1%}."
            )
        return self.gram

    def make_planner(self, count: int, stepped: int, stages: dict[str, int], ledger: Ledger) -> Planner:
        """The plans; where there are none, on `count` new trajectories, of which OSS follows `stepped`.

        Args:
            count, stepped: as in the budget.
            stages: planned calls by stage.
            ledger: where the cost is written.
        """
        if self.planner is None:
            assert self.teacher is not None, "see `require_grid`"
            seeds = CalibrationSeeds(count, self.seeds.calibration.offset if self.seeds.calibration else 0)
            with ledger.stage("trajectories", stages["trajectories"]):
                made = self.teacher.trajectory(seeds, self.progress)
            planner = Planner(self.teacher, made, self.most_steps, stepped, self.cache, self.batch, self.progress)
            if "oss" in self.parts.plans:
                with ledger.stage("optimal steps", stages["optimal steps"]):
                    _ = planner.oss
            self.planner = planner
            self.notes.append(
                f"Plans: {count} teacher trajectories of {self.teacher.cost} calls ({seeds!r})"
                + (f", {stepped} of them followed by the student." if stepped else ".")
            )
        return self.planner
