"""What a sampler is worth: its samples beside the data, and beside the teacher's of the same noise.

Where a feature network is known, sets are compared by the Fréchet distance of its features. An analytic problem's
samples are compared themselves, by the sliced Wasserstein distance: two moments say little about a mixture. A network
of which nothing is known is compared with its teacher alone, unless clean data are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.compare import FEWEST, look
from fewstep.errors import ArgumentError
from fewstep.metrics import (
    Estimate,
    Features,
    Jackknife,
    Statistics,
    frechet,
    frechet_jackknife,
    jackknife,
    precision_recall,
    sliced_wasserstein,
)
from fewstep.metrics.transport import Sliced
from fewstep.progress import Report, silent
from fewstep.search.cache import digest
from fewstep.search.judges import projection

if TYPE_CHECKING:
    from fewstep.clean import Data
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge
    from fewstep.randomness import ReportSeeds
    from fewstep.search.teacher import Teacher
    from fewstep.tableau import Tableau

EXACT = 2000
"""Exact samples of an analytic problem that samples are compared with; more of them change the distance by less than
its error, and take most of the time."""
SCORES = ("distance", "excess", "to_teacher", "rms")
"""Lower is better; each stands beside its standard error, `NAME_error`."""


@dataclass(frozen=True)
class Ruler:
    """How sets of samples are compared.

    Attributes:
        features: samples to rows.
        name: of the distance to the data, in words; empty where there are no data to compare with. between: of the
            distance of two sets.
        alone: the distance of rows to the data; apart: that of two sets of rows of the same noise.
        real: rows of data, for precision and recall; None where the teacher's samples take their place.
        identity: names what a score depends on besides the samples.
    """

    features: Features
    name: str
    between: str
    alone: Callable[[Tensor], Jackknife] | None
    apart: Callable[[Tensor, Tensor], Jackknife]
    real: Tensor | None
    identity: str


def ruler_of(model: Denoiser, judge: Judge | None, data: Data | None = None) -> Ruler:
    """The ruler of a network.

    Args:
        model: the network.
        judge: its features and their reference, where they are known.
        data: clean samples: for precision and recall where the judge has none, and for the distance where there is no
            judge.
    """
    if judge is not None and judge.nll is None:
        reference = judge.reference
        real = judge.reference_features if len(judge.reference_features) else None
        if real is None and data is not None:
            real = _seen(model, judge.features, data.samples)
        return Ruler(
            judge.features, f"Fréchet distance, {judge.name}", "Fréchet distance",
            lambda rows: frechet_jackknife(rows, reference), _frechet_apart, real,
            digest(judge.name, reference.mean, reference.cov, real),
        )  # fmt: skip
    flat = _flattened(model)
    if judge is not None:
        real, name = judge.reference_features[:EXACT], "sliced Wasserstein distance to exact samples"
    elif data is not None:
        real, name = flat(data.samples).double().cpu(), f"sliced Wasserstein distance to {data.note}"
    else:
        return Ruler(flat, "", "sliced Wasserstein distance", None, _sliced_apart, None, "teacher alone")
    sliced = Sliced(real)

    def alone(rows: Tensor) -> Jackknife:
        return jackknife(lambda kept: sliced(rows[kept]), len(rows))

    return Ruler(flat, name, "sliced Wasserstein distance", alone, _sliced_apart, real, digest(name, real))


@torch.no_grad()
def _seen(model: Denoiser, features: Features, samples: Tensor, batch: int = 250) -> Tensor:
    """Rows of samples, some at a time."""
    parts = [features(part.to(model.device, model.dtype)).double().cpu() for part in samples.split(batch)]
    return torch.cat(parts)


def _flattened(model: Denoiser) -> Features:
    """The samples themselves; wide ones are turned into some fixed directions."""
    turn = projection(torch.Size(model.shape).numel())

    def flat(samples: Tensor) -> Tensor:
        rows = samples.flatten(1).double().cpu()
        return rows if turn is None else rows @ turn

    return flat


def _frechet_apart(ours: Tensor, theirs: Tensor) -> Jackknife:
    return jackknife(lambda kept: frechet(Statistics.of(ours[kept]), Statistics.of(theirs[kept])), len(ours))


def _sliced_apart(ours: Tensor, theirs: Tensor) -> Jackknife:
    return jackknife(lambda kept: sliced_wasserstein(ours[kept], theirs[kept], projections=64), len(ours))


class Examiner:
    """Scores tables on one set of report seeds, beside the teacher of the same noise.

    Args:
        model, ruler: what is sampled, and how it is compared.
        seeds: of the samples.
        teacher: the reference.
        neighbours: samples for precision and recall, at most.
        batch: samples at a time.
        progress: told while the teacher works.

    Errors: `ArgumentError` for fewer samples than an error takes; `SeedsError` for seeds of another kind.
    """

    def __init__(
        self, model: Denoiser, ruler: Ruler, seeds: ReportSeeds, teacher: Teacher, *, neighbours: int = 5000,
        batch: int = 250, progress: Report = silent,
    ) -> None:  # fmt: skip
        if len(seeds) < FEWEST:
            raise ArgumentError(f"{len(seeds)} samples are too few for scores with errors: give at least {FEWEST}")
        self.model, self.ruler, self.seeds, self.teacher = model, ruler, seeds, teacher
        self._neighbours, self._batch, self._progress = neighbours, batch, progress

    @cached_property
    def taught(self) -> Tensor:
        """Rows of the teacher's samples."""
        ends = self.teacher(self.seeds, self._progress)
        return _seen(self.model, self.ruler.features, ends, self._batch)

    @cached_property
    def standard(self) -> Jackknife | None:
        """The teacher's own distance to the data."""
        return None if self.ruler.alone is None else self.ruler.alone(self.taught)

    def teachers(self) -> dict[str, Any]:
        """The scores of the teacher itself."""
        found: dict[str, Any] = {"samples": len(self.seeds)}
        if self.standard is not None:
            found |= _pair("distance", self.standard.estimate)
        return found if self.ruler.real is None else found | self._overlap(self.taught)

    def __call__(self, tableau: Tableau) -> dict[str, Any]:
        """The scores of a table: those of `SCORES` with their errors, precision, recall, density and coverage.

        Raises:
            ArgumentError: samples that are not finite.
            DenoiserError: the network fails.
        """
        taught = self.taught
        seen = look(
            self.model, tableau, self.seeds, features=self.ruler.features, teacher=self.teacher, batch_size=self._batch
        )  # fmt: skip
        assert seen.features is not None
        found: dict[str, Any] = {"samples": len(self.seeds), "sampling_seconds": round(seen.seconds, 3)}
        if self.ruler.alone is not None and self.standard is not None:
            alone = self.ruler.alone(seen.features)
            found |= _pair("distance", alone.estimate) | _pair("excess", alone.less(self.standard))
        found |= _pair("to_teacher", self.ruler.apart(seen.features, taught).estimate) | _pair("rms", seen.rms)
        return found | self._overlap(seen.features)

    def _overlap(self, rows: Tensor) -> dict[str, float]:
        real = self.taught if self.ruler.real is None else self.ruler.real
        found = precision_recall(rows[: self._neighbours], real[: self._neighbours])._asdict()
        return {name: round(value, 5) for name, value in found.items()}


def _pair(name: str, found: Estimate | Sequence[float]) -> dict[str, float]:
    value, error = found
    return {name: float(f"{value:.6g}"), f"{name}_error": float(f"{error:.3g}")}
