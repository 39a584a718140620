"""The sets in the plane that `benchmarks.toys` measures on: what is called, what it learns from, how samples score."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality_cells import rounded
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.metrics import kl_of_samples, kl_to_density, negative_log_likelihood, sliced_wasserstein
from fewstep.networks.points import points_denoiser
from fewstep.problems import GaussianMixture, datasets, get
from fewstep.randomness import Seeds
from fewstep.sampling import sample
from fewstep.tableau import Tableau

BATCH = 8192
SPREAD, SLICED = 25_000, 10_000
"""Samples of a KL divergence and of a sliced Wasserstein distance, whose cost grows faster than their number."""
REFERENCE = 100_000
"""Fresh points of the data that samples of a trained network are compared with."""
CALIBRATION_SEED, REFERENCE_SEED = 1_000_003, 2_000_003
"""Of the data that the KLUB is measured on and of the data that samples are compared with; training drew others."""


@functools.lru_cache(maxsize=48)
def _normals(seeds: Seeds, stream: int) -> Tensor:
    """The unit normals of a stream, drawn for all seeds at once (one by one would take longer than the sampling)."""
    state = np.random.SeedSequence((seeds[0], len(seeds), stream)).generate_state(1, np.uint64)[0]
    return torch.randn(len(seeds), 2, generator=torch.Generator("cpu").manual_seed(int(state) >> 1), device="cpu")


class Toy(ABC):
    """A set in the plane and the network (or exact denoiser) of its noised law."""

    judge: str

    def __init__(self, name: str, model: Denoiser) -> None:
        self.name, self.model = name, model

    @abstractmethod
    def data(self, n: int, seed: int) -> Tensor:
        """Clean points `[n, 2]`."""

    @abstractmethod
    def divergence(self, samples: Tensor) -> float:
        """KL divergence of the samples from the data in nats: what early stops are chosen by."""

    @abstractmethod
    def scores(self, samples: Tensor) -> dict[str, float]:
        """Everything that is reported of samples."""

    def draw(self, tableau: Tableau, seeds: Seeds) -> Tensor:
        """Samples `[len(seeds), 2]`."""
        start = _normals(seeds, 0) * tableau.sigma[0].item()
        with torch.no_grad():
            return sample(self.model, tableau, start=start, noise=lambda m: _normals(seeds, m + 1), batch_size=BATCH)

    def guarded(self, measure: Callable[[], float]) -> float:
        """A divergence, infinite where samples coincide or are not finite."""
        try:
            return measure()
        except ArgumentError:
            return float("inf")


class MixtureToy(Toy):
    """A grid of Gaussians: the denoiser is exact, and so is the law of the samples' target, `p` at `t_min`."""

    judge = "KL divergence to the exact law"

    def __init__(self, name: str) -> None:
        self.problem = get(name)
        assert isinstance(self.problem, GaussianMixture)
        self.lines = by_axes(self.problem)
        fingerprint = self.problem.denoiser().fingerprint + "-by-axes"
        noise = self.problem.noise
        super().__init__(name, Denoiser(self._denoise, noise=noise, shape=(2,), fingerprint=fingerprint))

    def _denoise(self, x: Tensor, t: Any, _condition: Any = None) -> Tensor:
        return torch.cat([line.denoise(x[:, k : k + 1], t) for k, line in enumerate(self.lines)], dim=1)

    def data(self, n: int, seed: int) -> Tensor:
        """Exact samples."""
        return self.problem.sample(n, seed)

    def exact(self, seeds: Seeds) -> Tensor:
        """Exact samples of the law at `t_min`, where the schedules end."""
        return self.data(len(seeds), seeds[0]) + self.model.noise.t_min * _normals(seeds, 0)

    def divergence(self, samples: Tensor) -> float:
        """Negative log-likelihood less entropy."""
        return self.guarded(lambda: kl_to_density(samples.double(), self.log_density).value)

    def log_density(self, x: Tensor) -> Tensor:
        """`log p(x)` `[B]` at `t_min`: the sum over the two axes."""
        at = self.model.noise.t_min
        return torch.cat([
            sum((line.log_density(part[:, k : k + 1], at) for k, line in enumerate(self.lines)), torch.zeros(()))
            for part in x.split(BATCH)
        ])  # fmt: skip

    def scores(self, samples: Tensor) -> dict[str, float]:
        """Negative log-likelihood, KL divergence, sliced Wasserstein distance."""
        with torch.no_grad():
            nll = negative_log_likelihood(samples.double(), self.log_density).value
        distance = sliced(samples, self.data(SLICED, REFERENCE_SEED))
        return rounded({"nll": nll, "kl": self.divergence(samples[:SPREAD]), "sw": distance})


class TrainedToy(Toy):
    """Points without a closed denoiser, and the small network that ships for them."""

    judge = "KL divergence from nearest neighbours to fresh data"

    def __init__(self, name: str, reference: int = REFERENCE) -> None:
        super().__init__(name, points_denoiser(name))
        self.reference = self.data(reference, REFERENCE_SEED)

    def data(self, n: int, seed: int) -> Tensor:
        """Fresh points."""
        return datasets.draw(self.name, n, seed)

    def exact(self, seeds: Seeds) -> Tensor:
        """Fresh points with the noise that is left at `t_min`."""
        return self.data(len(seeds), seeds[0]) + self.model.noise.t_min * _normals(seeds, 0)

    def divergence(self, samples: Tensor) -> float:
        """From samples alone."""
        return self.guarded(lambda: kl_of_samples(samples, self.reference).value)

    def scores(self, samples: Tensor) -> dict[str, float]:
        """KL divergence, sliced Wasserstein distance."""
        return rounded({"kl": self.divergence(samples[:SPREAD]), "sw": sliced(samples, self.reference)})


MIXTURES = ("grid_8x8", "grid_8x4", "grid_6x6")
TRAINED = tuple(datasets.NAMES)


def toy(name: str) -> MixtureToy | TrainedToy:
    """The set of a name."""
    return MixtureToy(name) if name in MIXTURES else TrainedToy(name)


def by_axes(problem: GaussianMixture) -> list[GaussianMixture]:
    """A grid of Gaussians as what it is, a product of two laws on the line: the same, with a quarter of the work."""
    variance = problem.variances.flatten()[0].item()
    return [GaussianMixture(problem.means[:, axis].unique()[:, None], variance, noise=problem.noise) for axis in (0, 1)]


def sliced(samples: Tensor, reference: Tensor) -> float:
    """Sliced Wasserstein distance of the first 10,000 of both (fewer if there are fewer)."""
    return sliced_wasserstein(samples[:SLICED], reference[: min(SLICED, len(samples))], projections=64)
