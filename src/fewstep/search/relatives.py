"""Times from the denoising loss alone: what others read off the curve m(r) = E|x0 - D(x_r)|^2 that a `Gram` holds.

All are functions `name(gram, noise, n, *, start=None, end="zero", clip=False, ...)` that return `[n+1]` float64 times
from noisy to clean; ends and errors are those of `fewstep.times.grid`, and the table must reach down to the lowest
ratio asked for (`ArgumentError`). They cost no network calls beyond the table's, and are cheap rivals of AYS.

Two of them are quantiles of a density over the noise levels, known at the table's levels and taken as a power of r
between them, which a loss is at both ends of the range; integrals and quantiles of that are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.search.klub import Gram
from fewstep.times.ends import grid
from fewstep.times.grids import Ends, finite_ratio, tangent

Fit = Literal["loss", "variance"]
LEAST_RISE = 1e-6
"""Least slope d log m / d log r: a trained network's loss may fall where noise rises."""


def fitted_c(gram: Gram, fit: Fit = "loss") -> float:
    """The deviation c of the Gaussian data that the table looks like.

    "loss" is the least-squares fit of log m(r) by log(c^2 r^2 / (r^2 + c^2)), the loss of N(0, c^2), over the table's
    levels. Data are no Gaussian of one variance: an image's details have a thousandth of the variance of its coarse
    shapes, and the fit, in logarithms, weighs every octave of noise alike, as the sampler meets them. "variance" is
    the data's own, `E|x0|^2 - |E x0|^2` per dimension, from row 0 of the table and the output at the highest level,
    which is E x0 there. Both recover c for Gaussian data.
    """
    if fit == "variance":
        return (gram.products[0, 0] - gram.products[-1, -1]).clamp_min(1e-300).sqrt().item()
    if fit != "loss":
        raise ArgumentError(f'fit is {fit!r}: give "loss" or "variance"')
    log_m, square = gram.loss.clamp_min(1e-300).log(), gram.ratios**2
    low, high = (gram.ratios[0].log() - 2).item(), (gram.ratios[-1].log() + 2).item()
    while high - low > 1e-12:  # ever finer grids around the least: the misfit has one valley
        logs = torch.linspace(low, high, 65, dtype=torch.float64, device="cpu")
        c = logs[:, None].exp()
        misfit = ((c**2 * square / (square + c**2)).log() - log_m).square().sum(1)
        k = min(max(int(misfit.argmin()), 1), 63)
        low, high = logs[k - 1].item(), logs[k + 1].item()
    return math.exp((low + high) / 2)


def fitted_tangent(gram: Gram, noise: NoiseSchedule, n: int, *, fit: Fit = "loss", **ends: Unpack[Ends]) -> Tensor:
    """The tangent law (`fewstep.times.tangent`; AYS, Theorem 3.1) with the data's own c (`fitted_c`)."""
    return tangent(noise, n, c=fitted_c(gram, fit), **ends)


def entropic(gram: Gram, noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """Equal steps of the conditional entropy H[x0 | x_r], whose rate is `m(r) r^-3` (the I-MMSE identity).

    Stancevic, Handke & Ambrogioni, Entropic Time Schedulers for Generative Diffusion Models, NeurIPS 2025, section 5.
    The paper finds it best for discrete data; for images it puts nearly all steps at the low end.
    """
    return rescaled_entropic(gram, noise, n, power=0.0, **ends)


def rescaled_entropic(gram: Gram, noise: NoiseSchedule, n: int, *, power: float = 1.0, **ends: Unpack[Ends]) -> Tensor:
    """Equal steps of the integral of `r^power m(r) r^-3`; with power 1 the paper's rescaled entropic time.

    Stancevic et al. (as `entropic`), section 5.3. For Gaussian data of deviation c power 1 gives c arctan(r / c), the
    tangent law; for other data it is that law with the data's own loss in place of a Gaussian's.
    """
    return _quantiles(gram, noise, n, ends, lambda loss, ratios: loss * ratios ** (power - 2))


def loss_density(gram: Gram, noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """Equal steps of the integral of `sqrt(-dm/dg)` over the signal-to-noise ratio g = 1 / r^2.

    A step over dg costs an ideal denoiser a KLUB of `-dm/dg dg^2 / 4`, so for many steps this is the grid of least
    KLUB, from the loss alone. It shares its objective with the loss-adaptive schedule (LAS) of Aghapour, Bayraktar &
    Zhang (Entropy-Based Dimension-Free Convergence and Loss-Adaptive Schedules, arXiv 2601.21943), which also uses
    nothing but the loss; the rule that they print could not be consulted, so this does not carry its name. Like
    `shortest`, whose limit it is, it favours low noise. For Gaussian data its steps are even in log(g + 1 / c^2).
    """

    def density(loss: Tensor, ratios: Tensor) -> Tensor:
        rising = loss.cummax(0).values
        slope = torch.gradient(rising.log(), spacing=(ratios.log(),), edge_order=2)[0].clamp_min(LEAST_RISE)
        return (2 * rising * slope).sqrt() / ratios

    return _quantiles(gram, noise, n, ends, density)


RELATIVES: dict[str, Callable[..., Tensor]] = {
    "fitted_tangent": fitted_tangent,
    "entropic": entropic,
    "rescaled_entropic": rescaled_entropic,
    "loss_density": loss_density,
}
"""Times from a table, `name(gram, noise, n, *, start, end, clip)`."""


def _quantiles(
    gram: Gram, noise: NoiseSchedule, n: int, ends: Ends, density: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Times at even quantiles of `density(loss, ratios)`, a density of log r at the table's levels."""
    logs = gram.ratios.log()
    curve_of = _PiecewisePower(logs, density(gram.loss.clamp_min(1e-300), gram.ratios))

    def curve(first: float, last: float, steps: int) -> Tensor:
        high, low = finite_ratio(noise, first, last)
        if low < gram.ratios[0] * (1 - 1e-6):
            raise ArgumentError(
                f"the grid ends at sigma/alpha = {low.item():.4g}, below the table's {gram.ratios[0].item():.4g}: "
                "end it higher, or compute the table down to there"
            )
        top, bottom = curve_of.upto(torch.stack([high, low]).log())
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
        return noise.time_of_ratio(curve_of.at(torch.lerp(top, bottom, u)).exp())

    return grid(noise, n, curve, **ends)


class _PiecewisePower:
    """A positive density over x, exponential between knots (a power of r where x is log r) and beyond the last."""

    def __init__(self, x: Tensor, density: Tensor) -> None:
        self.x, self.density = x, density
        self.rate = density.log().diff() / x.diff()
        self.sums = torch.cat([torch.zeros_like(x[:1]), self._piece(self._cells(x[1:] - 1e-12), x[1:]).cumsum(0)])

    def _cells(self, x: Tensor) -> Tensor:
        return (torch.searchsorted(self.x, x, right=True) - 1).clamp(0, len(self.rate) - 1)

    def _piece(self, cell: Tensor, x: Tensor) -> Tensor:
        """The integral from a cell's left knot to x."""
        rate, length = self.rate[cell], x - self.x[cell]
        y = rate * length
        mean = torch.where(y.abs() < 1e-8, 1 + y / 2, torch.expm1(y) / torch.where(y == 0, 1.0, y))
        return self.density[cell] * length * mean

    def upto(self, x: Tensor) -> Tensor:
        """The integral from the first knot to x."""
        cell = self._cells(x)
        return self.sums[cell] + self._piece(cell, x)

    def at(self, total: Tensor) -> Tensor:
        """The x up to which the integral is `total`: the inverse of `upto`."""
        cell = (torch.searchsorted(self.sums, total, right=True) - 1).clamp(0, len(self.rate) - 1)
        rate, part = self.rate[cell], (total - self.sums[cell]) / self.density[cell]
        y = rate * part
        length = part * torch.where(y.abs() < 1e-8, 1 - y / 2, torch.log1p(y) / torch.where(y == 0, 1.0, y))
        return self.x[cell] + length
