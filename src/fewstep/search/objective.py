"""What is measured of a candidate: judges, which turn images into rows and rows into a score, and the scorer, which
pays.

A judge sees each image once and keeps a short row for it; a score of the first n seeds is a function of their rows.
So a candidate that is scored on 64 images and later on 256 costs 256 images, not 320, and rows are small enough to
keep. Lower scores are better, everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.metrics.frechet import frechet, frechet_with_error
from fewstep.metrics.statistics import Estimate, Features, Statistics, mean_with_error
from fewstep.metrics.transport import sliced_wasserstein
from fewstep.sampling import sample
from fewstep.search.cache import Cache, Probe, SeedRows, digest
from fewstep.search.teacher import ConditionOf, InitOf, Teacher

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.tableau import Tableau

PROJECTIONS = 256
BATCH = 64
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
        with torch.no_grad():
            return self.features(images).detach().double().cpu()

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
    """

    def __init__(self, teacher: Teacher, known: Sequence[int], features: Features | None = None) -> None:
        self.teacher, self.known, self.features = teacher, known, features
        kind = "sliced Wasserstein" if features is None else "Fréchet"
        self.name = f"{kind} distance to the teacher's end points of the same seeds"
        self._project = _projection(math.prod(teacher.denoiser.shape)) if features is None else None

    @property
    def digest(self) -> str | None:
        """Of the teacher's table and the seeds, and of what the features make of a fixed image."""
        shape = self.teacher.denoiser.shape
        probe = self._seen(torch.linspace(-1, 1, math.prod(shape), device="cpu").reshape(1, *shape))
        return digest("matched", self.teacher.tableau.digest, list(self.known), probe)

    def _seen(self, images: Tensor) -> Tensor:
        if self.features is not None:
            with torch.no_grad():
                return self.features(images).detach().double().cpu()
        flat = images.flatten(1).double().cpu()
        return flat if self._project is None else flat @ self._project

    def observe(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """What is seen of each image and of the teacher's, side by side; NaN for a seed that the teacher does not
        know.
        """
        own = self._seen(images)
        rows = torch.full((len(own), 2 * own.shape[1]), math.nan, dtype=torch.float64, device="cpu")
        mine = [k for k, seed in enumerate(seeds) if seed in self.known]
        if mine:
            taught = self.teacher([seeds[k] for k in mine]).to(images.device, images.dtype)
            rows[mine] = torch.cat([own[mine], self._seen(taught)], dim=1)
        return rows

    def score(self, rows: Tensor) -> float:
        """The distance."""
        own, taught = rows[~rows.isnan().any(1)].chunk(2, dim=1)
        if self.features is not None:
            return frechet(Statistics.of(own), Statistics.of(taught))
        return sliced_wasserstein(own, taught, projections=MATCHED_PROJECTIONS)

    def figure(self, rows: Tensor) -> Estimate:
        """The distance, its error by leaving out one of sixteen groups at a time."""
        return _without_groups(self.score, rows)


class SlicedJudge:
    """Sliced Wasserstein distance to reference samples; wide samples are projected to 256 fixed directions first."""

    def __init__(self, reference: Tensor, name: str) -> None:
        self.name = name
        self._project = _projection(reference[0].numel())
        self.reference = self.observe(reference, ())

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
        return sliced_wasserstein(rows, self.reference)

    def figure(self, rows: Tensor) -> Estimate:
        """The distance, its error by leaving out one of sixteen groups at a time."""
        return _without_groups(self.score, rows)


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


def _without_groups(score: Callable[[Tensor], float], rows: Tensor) -> Estimate:
    """A score with its jackknife error over groups of rows."""
    group = torch.arange(len(rows), device="cpu") % GROUPS
    parts = torch.tensor([score(rows[group != k]) for k in range(GROUPS)], dtype=torch.float64, device="cpu")
    return Estimate(score(rows), math.sqrt((GROUPS - 1) * parts.var(correction=0).item()))


def _projection(width: int) -> Tensor | None:
    if width <= PROJECTIONS:
        return None
    directions = torch.randn(
        width, PROJECTIONS, dtype=torch.float64, device="cpu", generator=torch.Generator("cpu").manual_seed(0)
    )
    return directions / directions.norm(dim=0)


class Scorer:
    """Runs candidates on fixed seeds and lets judges look at the samples, each sample once.

    Args:
        denoiser: the network.
        judges: the first gives the score, the others are told beside it.
        seeds: of the samples; a count takes the first of them.
        condition: condition of given seeds.
        cache: rows are kept there by network, table, judges and seeds.
        probe: guards the cache; shared by those who use one network.
        batch_size: samples at a time.
        init: clean images that the samples start from, where tables begin below the noisiest time.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        judges: Sequence[Judge],
        seeds: Sequence[int],
        *,
        condition: ConditionOf,
        cache: Cache,
        probe: Probe | None = None,
        batch_size: int = BATCH,
        init: InitOf | None = None,
    ) -> None:
        self.denoiser, self.judges, self.seeds, self.condition = denoiser, tuple(judges), seeds, condition
        self.batch_size, self._init = batch_size, init
        named = all(judge.digest is not None for judge in judges)
        self._cache = cache if named else Cache(None)
        self._probe = probe or Probe(denoiser, condition(range(1)))
        self._stores: dict[str, SeedRows] = {}

    def rows(self, tableau: Tableau, count: int) -> list[Tensor]:
        """For each judge the rows of the first `count` seeds."""
        if count > len(self.seeds):
            raise ArgumentError(f"{count} samples asked for, but there are {len(self.seeds)} seeds: give more seeds")
        joined = self._store(tableau)(self.seeds[:count])
        widths = joined[0, -len(self.judges) :].long().tolist()
        return list(joined[:, : -len(self.judges)].split(widths, dim=1))

    def score(self, tableau: Tableau, count: int) -> float:
        """The first judge's score on the first `count` seeds."""
        return self.judges[0].score(self.rows(tableau, count)[0])

    def figures(self, tableau: Tableau, count: int) -> dict[str, Any]:
        """Every judge's figure on the first `count` seeds: `{name: {value, standard_error, samples}}`."""
        out: dict[str, Any] = {}
        for judge, rows in zip(self.judges, self.rows(tableau, count), strict=True):
            value, error = judge.figure(rows)
            used = int((~rows.isnan().any(1)).sum())
            out[judge.name] = {"value": value, "standard_error": error, "samples": used}
        return out

    def gains(self, before: Tableau, after: Tableau, count: int) -> dict[str, Any]:
        """Every judge's score of `before` less that of `after`, on the same seeds, with its standard error.

        Both samplers see the same noise, so the difference is surer than its two terms; its error is the jackknife's,
        over groups of seeds left out of both.
        """
        out: dict[str, Any] = {}
        for judge, one, two in zip(self.judges, self.rows(before, count), self.rows(after, count), strict=True):
            known = ~one.isnan().any(1)
            one, two = one[known], two[known]
            groups = min(GROUPS, len(one))
            # Dealt at random: neighbouring seeds have neighbouring labels, and a group must not be a set of classes.
            shuffled = torch.randperm(len(one), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
            group = shuffled % groups
            parts = [judge.score(one[group != k]) - judge.score(two[group != k]) for k in range(groups)]
            spread = torch.tensor(parts, dtype=torch.float64, device="cpu").var(correction=0).item()
            out[judge.name] = {
                "value": judge.score(one) - judge.score(two),
                "standard_error": math.sqrt((groups - 1) * spread),
                "samples": len(one),
            }
        return out

    def _store(self, tableau: Tableau) -> SeedRows:
        key = tableau.digest
        if key not in self._stores:
            judged = [judge.digest for judge in self.judges]

            def name(seeds: range) -> str:
                init = () if self._init is None else (self._init(seeds),)
                return "rows-" + digest(
                    self.denoiser.fingerprint, key, judged, list(seeds), self.condition(seeds), *init
                )

            self._stores[key] = SeedRows(
                self._cache,
                name,
                lambda seeds: self._run(tableau, seeds),
                self._probe,
                chunk=4 * BATCH,
                batch=self.batch_size,
            )
        return self._stores[key]

    def _run(self, tableau: Tableau, seeds: list[int]) -> Tensor:
        images = sample(
            self.denoiser, tableau, seeds=seeds, init=None if self._init is None else self._init(seeds),
            condition=self.condition(seeds), batch_size=self.batch_size,
        )  # fmt: skip
        parts = [judge.observe(images, seeds) for judge in self.judges]
        # The widths travel with the rows, so that a row read from a file can be cut up again.
        widths = torch.tensor([[part.shape[1] for part in parts]], dtype=torch.float64, device="cpu").expand(
            len(seeds), -1
        )
        return torch.cat([*parts, widths], dim=1)
