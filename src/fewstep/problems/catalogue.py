"""The named problems, `problem:NAME` on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.problems.base import Problem
from fewstep.problems.gaussian import Gaussian
from fewstep.problems.mixture import GaussianMixture

MakeProblem = Callable[[NoiseSchedule | None], Problem]


def gaussian(noise: NoiseSchedule | None = None) -> Problem:
    """Isotropic Gaussian N(0, 0.25) in two dimensions: AYS's example with c = 0.5 (Sabour et al. 2024, Theorem 3.1)."""
    return Gaussian(0.0, 0.25, shape=(2,), noise=noise)


def gaussian_8x8(noise: NoiseSchedule | None = None) -> Problem:
    """Correlated Gaussian on 1 x 8 x 8 pixels with an image's power spectrum (1/f^2) and a mean that is not zero."""
    spectrum = _spectrum()
    mean = _cosine_basis() @ (_normals(1, 64)[0] * spectrum.sqrt()) * 0.5
    covariance = _cosine_basis() * spectrum @ _cosine_basis().T
    return Gaussian(mean.reshape(1, 8, 8), (covariance + covariance.T) / 2, noise=noise)


def mixture_1d(noise: NoiseSchedule | None = None) -> Problem:
    """Three unequal modes on a line; the exact solution of its ODE is known too."""
    means = torch.tensor([[-0.9], [0.1], [0.8]], dtype=torch.float64, device="cpu")
    return GaussianMixture(
        means, torch.tensor([0.01, 0.04, 0.0025], dtype=torch.float64, device="cpu"), [0.3, 0.5, 0.2], noise=noise
    )


def _grid(columns: int, rows: int, spread: float, noise: NoiseSchedule | None) -> Problem:
    """Equal isotropic components on a grid whose longer side is [-1, 1], equally spaced in both directions.

    The paper prints neither means nor variances. Ours are chosen so that the entropy, the floor of the negative
    log-likelihood, lies just below the best value that the paper reports for that grid (its Table 4), which fixes the
    spread given the number of components.
    """
    gap = 2 / (max(columns, rows) - 1)
    axes = [gap * (torch.arange(n, dtype=torch.float64, device="cpu") - (n - 1) / 2) for n in (columns, rows)]
    return GaussianMixture(torch.cartesian_prod(*axes), spread**2, noise=noise)


def grid_8x8(noise: NoiseSchedule | None = None) -> Problem:
    """64 Gaussians on an 8 x 8 grid in the plane, after AYS (spread 0.02; the paper's parameters are unpublished)."""
    return _grid(8, 8, 0.02, noise)


def grid_8x4(noise: NoiseSchedule | None = None) -> Problem:
    """32 Gaussians on an 8 x 4 grid in the plane, after AYS (spread 0.0125; the paper's parameters are unpublished)."""
    return _grid(8, 4, 0.0125, noise)


def grid_6x6(noise: NoiseSchedule | None = None) -> Problem:
    """36 Gaussians on a 6 x 6 grid in the plane, after AYS (spread 0.0175; the paper's parameters are unpublished)."""
    return _grid(6, 6, 0.0175, noise)


def images_8x8(noise: NoiseSchedule | None = None) -> Problem:
    """Like images, 1 x 8 x 8: ten labelled classes of two modes each, power falling as 1/f^2, fine detail far below
    coarse.

    Pixels have a standard deviation of 0.5, three fifths of the variance between modes. Each mode has its own spectrum
    in the cosine basis, so the optimal denoiser is not linear at any noise level.
    """
    modes, spectrum = 20, _spectrum()
    draws = _normals(2 * modes, 64)
    means = (draws[:modes] * (0.6 * spectrum).sqrt()) @ _cosine_basis().T
    variances = 0.4 * spectrum * torch.exp(0.7 * draws[modes:] - 0.7**2 / 2) + 1e-4
    labels = torch.arange(modes, device="cpu") // 2
    return GaussianMixture(means, variances, labels=labels, basis=_cosine_basis(), shape=(1, 8, 8), noise=noise)


def _normals(rows: int, columns: int) -> Tensor:
    # numpy promises this stream for ever; torch's may change between versions.
    return torch.from_numpy(np.random.RandomState(8).standard_normal((rows, columns)))


def _cosine_basis(n: int = 8) -> Tensor:
    """Orthonormal two-dimensional cosine transform `[n^2 pixels, n^2 frequencies]`."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    line = torch.cos(math.pi / n * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / n)
    line[0] /= math.sqrt(2)
    return torch.kron(line, line).T.contiguous()


def _spectrum(n: int = 8) -> Tensor:
    """Variances `[n^2]` of the frequencies, falling as 1/f^2; pixels then have a variance of 0.25 on average."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    power = 1 / (0.5 + (k[:, None] ** 2 + k[None] ** 2)).flatten()
    return power * (0.25 * n * n / power.sum())


_MAKERS = (gaussian, gaussian_8x8, mixture_1d, grid_8x8, grid_8x4, grid_6x6, images_8x8)

NAMES: dict[str, MakeProblem] = {make.__name__: make for make in _MAKERS}
"""Name to `make(noise=None) -> Problem`; the docstring of `make` describes the problem."""


def get(name: str, noise: NoiseSchedule | None = None) -> Problem:
    """The problem of that name, under a noise schedule (EDM with sigma from 0.002 to 80 by default).

    Raises:
        ArgumentError: no such problem; lists the names.
    """
    make = NAMES.get(name)
    if make is None:
        raise ArgumentError(f"no problem is named {name!r}: give one of {', '.join(NAMES)}")
    problem = make(noise)
    problem.name = name
    problem.description = " ".join((make.__doc__ or "").split("\n\n")[0].split())
    return problem
