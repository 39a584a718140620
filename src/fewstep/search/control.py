"""What a teacher's features say, as control variates: those of given seeds, and the moments of many of its samples.

Both are made once and kept in the cache, which processes may share; no image of the teacher is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from fewstep.metrics.controlled import controlled_frechet
from fewstep.metrics.statistics import Estimate, Features, Statistics
from fewstep.progress import Report, silent
from fewstep.randomness import CalibrationSeeds
from fewstep.search.cache import Cache, SeedRows, digest
from fewstep.search.judges import fixed_image, seen_by, without_groups
from fewstep.search.teacher import Teacher

POPULATION, CONTROL_CALLS, OFFSET = 10_000, 10, 600_000_000
"""Samples that give the moments, calls of each (more correlate no better), and where their calibration seeds begin."""
LEAST = 32
"""Images that a controlled distance with its error needs."""
AMPLE = 4
"""Images for each feature from which a search can trust it: with two the regression can be fooled, and a search finds
the samplers that fool it (docs/s3-results.md)."""
CHUNK = 512


class Control:
    """A teacher's features by seed.

    Args:
        teacher: a deterministic sampler, near enough to those that are judged; it need not be exact, for it is compared
            with its own population.
        features: of its samples.
        population: so many calibration seeds give its moments.
        cache: where features are kept.
    """

    def __init__(self, teacher: Teacher, features: Features, population: int, cache: Cache, batch_size: int) -> None:
        self.teacher, self.features = teacher, features
        self.seeds = CalibrationSeeds(population, OFFSET)
        self._rows = SeedRows(cache, self._name, self._run, teacher.probe, chunk=CHUNK, batch=batch_size)

    @cached_property
    def digest(self) -> str:
        """Of the teacher's table and its population, and of what the features make of a fixed image."""
        probe = seen_by(self.features, fixed_image(self.teacher.denoiser.shape))
        return digest("control", self.teacher.tableau.digest, repr(self.seeds), probe)

    @cached_property
    def population(self) -> Statistics:
        """Moments of the features of many samples."""
        return Statistics.of(self(self.seeds))

    def __call__(self, seeds: Sequence[int], progress: Report = silent) -> Tensor:
        """Features `[len(seeds), d]` of the teacher's samples, float64 on the CPU."""
        return self._rows(seeds, progress)

    def _name(self, seeds: range) -> str:
        net = self.teacher.denoiser
        return "control-" + digest(
            net.fingerprint, str(net.dtype), self.digest, list(seeds), self.teacher.condition(seeds)
        )

    def _run(self, seeds: list[int]) -> Tensor:
        return seen_by(self.features, self.teacher.run(seeds).to(self.teacher.denoiser.device))


class ControlledJudge:
    """Fréchet distance to the data that many samples would have, estimated from few (`metrics.controlled`).

    Args:
        control: of the teacher, whose features are also those of the samples.
        reference: of the data.
        name: of the features, in words.
    """

    def __init__(self, control: Control, reference: Statistics, name: str) -> None:
        self.control, self.reference = control, reference
        self.name = f"Fréchet distance, {name}, controlled by a teacher's samples"

    @property
    def digest(self) -> str | None:
        """Of the control and the reference."""
        return digest("controlled", self.control.digest, self.reference.mean, self.reference.cov)

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Features of each image and of the teacher's, side by side."""
        return torch.cat([seen_by(self.control.features, images), self.control(seeds)], dim=1)

    def score(self, rows: Tensor) -> float:
        """The distance; it can come out below zero."""
        ours, theirs = rows.chunk(2, dim=1)
        return controlled_frechet(ours, theirs, self.control.population, self.reference)

    def figure(self, rows: Tensor) -> Estimate:
        """The distance, its error by leaving out one of sixteen groups; that of the population is not in it."""
        return without_groups(self.score, rows)
