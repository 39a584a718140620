"""Judges: they turn samples into rows and rows into a score.

A judge sees each image once and keeps a short row for it; a score of the first n seeds is a function of their rows.
Lower scores are better, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.frechet import frechet, frechet_with_error
from fewstep.metrics.statistics import Estimate, Features, Statistics, mean_with_error
from fewstep.metrics.transport import Sliced, sliced_wasserstein
from fewstep.search.cache import digest
from fewstep.search.teacher import Teacher

PROJECTIONS = 256
GROUPS = 16
MATCHED_PROJECTIONS = 64


class Judge(Protocol):
    """A measure of samples."""

    @property
    def name(self) -> str:
        """In words, for reports: what is measured, against what."""
        ...

    @property
    def digest(self) -> str | None:
        """Names all that a row depends on besides the image; None if that cannot be named: rows are then not kept."""
        ...

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Rows `[B, k]`, float64 on the CPU, one for each image."""
        ...

    def score(self, rows: Tensor) -> float:
        """The score of a set of rows, lower is better."""
        ...

    def figure(self, rows: Tensor) -> Estimate:
        """The score with its standard error."""
        ...


class FrechetJudge:
    """Fréchet distance of features to reference statistics."""

    def __init__(self, features: Features, reference: Statistics, name: str = "Fréchet distance") -> None:
        self.features, self.reference, self.name = features, reference, name

    @property
    def digest(self) -> str | None:
        """Of the reference: another feature network has other statistics."""
        return digest("frechet", self.reference.mean, self.reference.cov)

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Features."""
        return seen_by(self.features, images)

    def score(self, rows: Tensor) -> float:
        """The distance."""
        return frechet(Statistics.of(rows), self.reference)

    def figure(self, rows: Tensor) -> Estimate:
        """The distance with its jackknife error."""
        return frechet_with_error(rows, self.reference, groups=min(24, len(rows) // 2))


class PairedJudge:
    """Root mean squared difference to the teacher's end points of the same seeds; seeds not in `known` are left out."""

    name = "RMS distance to the teacher"

    def __init__(self, teacher: Teacher, known: Sequence[int]) -> None:
        self.teacher, self.known = teacher, known

    @property
    def digest(self) -> str | None:
        """Of the teacher's table and the seeds."""
        return digest("paired", self.teacher.tableau.digest, list(self.known))

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Mean squared difference of each image, NaN for a seed that the teacher does not know."""
        rows = torch.full((len(images), 1), math.nan, dtype=torch.float64, device="cpu")
        mine = [k for k, seed in enumerate(seeds) if seed in self.known]
        if mine:
            gap = images[mine].double().cpu() - self.teacher([seeds[k] for k in mine]).double()
            rows[mine, 0] = gap.flatten(1).square().mean(1)
        return rows

    def score(self, rows: Tensor) -> float:
        """Root of the mean."""
        return rows.nanmean().sqrt().item()

    def figure(self, rows: Tensor) -> Estimate:
        """Root of the mean, its error by the delta rule."""
        mean, error = mean_with_error(rows[~rows.isnan()])
        return Estimate(mean**0.5, error / (2 * mean**0.5) if mean > 0 else 0.0)


class MatchedJudge:
    """Distance between the samples as a set and the teacher's end points of the same seeds, as a set.

    Both come from the same noise, so most of what a few samples say by chance is in both and cancels: on the digit
    network 64 images choose better by it than 256 by the distance to the data (docs/ays-results.md). Unlike the paired
    distance it does not reward blur. Seeds not in `known` are left out.

    Args:
        teacher, known: the teacher, and the seeds that it may be asked for.
        features: the distance is Fréchet's of these; without, the sliced Wasserstein distance of the samples.
        faithful: the geometric mean of Fréchet's distances of the features and of the samples themselves. Feature
            networks hardly see fine noise, and a sampler that learns from one may leave some.
    """

    def __init__(
        self, teacher: Teacher, known: Sequence[int], features: Features | None = None, *, faithful: bool = False
    ) -> None:
        self.teacher, self.known, self.features = teacher, known, features
        self.faithful = faithful and features is not None
        kind = "sliced Wasserstein" if features is None else "Fréchet"
        kind = "faithful, Fréchet" if self.faithful else kind
        self.name = f"{kind} distance to the teacher's end points of the same seeds"
        alone = features is not None and not self.faithful
        self._project = None if alone else projection(math.prod(teacher.denoiser.shape))
        self._held: dict[int, Tensor] = {}

    @property
    def digest(self) -> str | None:
        """Of the teacher's table and the seeds, and of what the features make of a fixed image."""
        probe = self._seen(fixed_image(self.teacher.denoiser.shape))
        return digest("faithful" if self.faithful else "matched", self.teacher.tableau.digest, list(self.known), probe)

    def _seen(self, images: Tensor) -> Tensor:
        seen = None if self.features is None else seen_by(self.features, images)
        if seen is not None and not self.faithful:
            return seen
        flat = images.flatten(1).double().cpu()
        flat = flat if self._project is None else flat @ self._project
        if seen is None:
            return flat
        return torch.cat([seen, flat], dim=1)

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """What is seen of each image and of the teacher's, side by side; NaN for a seed that the teacher does not
        know.
        """
        own = self._seen(images)
        rows = torch.full((len(own), 2 * own.shape[1]), math.nan, dtype=torch.float64, device="cpu")
        mine = [k for k, seed in enumerate(seeds) if seed in self.known]
        if mine:
            rows[mine] = torch.cat([own[mine], self._taught([seeds[k] for k in mine], images)], dim=1)
        return rows

    def _taught(self, seeds: Sequence[int], like: Tensor) -> Tensor:
        """What is seen of the teacher's, which is looked at once."""
        new = [seed for seed in seeds if seed not in self._held]
        if new:
            seen = self._seen(self.teacher(new).to(like.device, like.dtype))
            self._held.update(zip(new, seen.unbind(0), strict=True))
        return torch.stack([self._held[seed] for seed in seeds])

    def score(self, rows: Tensor) -> float:
        """The distance."""
        own, taught = rows[~rows.isnan().any(1)].chunk(2, dim=1)
        if self.faithful:
            samples = min(math.prod(self.teacher.denoiser.shape), PROJECTIONS)  # the last columns
            parts = [slice(None, -samples), slice(-samples, None)]
            values = [frechet(Statistics.of(own[:, p]), Statistics.of(taught[:, p])) for p in parts]
            return math.sqrt(max(0.0, values[0]) * max(0.0, values[1]))
        if self.features is not None:
            return frechet(Statistics.of(own), Statistics.of(taught))
        return sliced_wasserstein(own, taught, projections=MATCHED_PROJECTIONS)

    def figure(self, rows: Tensor) -> Estimate:
        """The distance, its error by leaving out one of sixteen groups at a time."""
        return without_groups(self.score, rows)


class SlicedJudge:
    """Sliced Wasserstein distance to reference samples; wide samples are projected to 256 fixed directions first."""

    def __init__(self, reference: Tensor, name: str) -> None:
        self.name = name
        self._project = projection(reference[0].numel())
        self.reference = self.observe(reference, ())
        self._distance = Sliced(self.reference)

    @property
    def digest(self) -> str | None:
        """Of the reference samples."""
        return digest("sliced", self.reference)

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """The image, flattened and perhaps projected."""
        flat = images.flatten(1).double().cpu()
        return flat if self._project is None else flat @ self._project

    def score(self, rows: Tensor) -> float:
        """The distance."""
        return self._distance(rows)

    def figure(self, rows: Tensor) -> Estimate:
        """The distance, its error by leaving out one of sixteen groups at a time."""
        return without_groups(self.score, rows)


class ImageJudge:
    """The mean of a user's own function `images [B, *shape] -> [B]` (lower is better; negate a reward)."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        self.function, self.name = function, name or getattr(function, "__name__", "objective")
        self.digest: str | None = getattr(function, "fingerprint", None)

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """The function's values.

        Errors: `ArgumentError` when it does not give one finite number for each image.
        """
        with torch.no_grad():
            values = torch.as_tensor(self.function(images)).detach().double().cpu()
        if values.shape != (len(images),) or not bool(torch.isfinite(values).all()):
            raise ArgumentError(
                f"the objective {self.name} returned shape {tuple(values.shape)} for {len(images)} images: "
                "return one finite number for each"
            )
        return values[:, None]

    def score(self, rows: Tensor) -> float:
        """The mean."""
        return rows.mean().item()

    def figure(self, rows: Tensor) -> Estimate:
        """The mean and its error."""
        return mean_with_error(rows)


def seen_by(features: Features, images: Tensor) -> Tensor:
    """The features of images, float64 on the CPU."""
    with torch.no_grad():
        return features(images).detach().double().cpu()


def fixed_image(shape: Sequence[int]) -> Tensor:
    """`[1, *shape]`: what features make of it tells them apart."""
    return torch.linspace(-1, 1, math.prod(shape), device="cpu").reshape(1, *shape)


def without_groups(score: Callable[[Tensor], float], rows: Tensor) -> Estimate:
    """A score with its jackknife error over groups of rows."""
    group = torch.arange(len(rows), device="cpu") % GROUPS
    parts = torch.tensor([score(rows[group != k]) for k in range(GROUPS)], dtype=torch.float64, device="cpu")
    return Estimate(score(rows), math.sqrt((GROUPS - 1) * parts.var(correction=0).item()))


def projection(width: int) -> Tensor | None:
    """Fixed directions `[width, 256]` that wide samples are projected to; None for samples of at most 256 numbers."""
    if width <= PROJECTIONS:
        return None
    directions = torch.randn(
        width, PROJECTIONS, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(0)
    )
    return directions / directions.norm(dim=0)
