"""Schedules run side by side on a denoiser of numbers: the sampler of USF (section 4) over whole populations.

It is a second way from decisions to samples, without tables, for problems whose denoiser costs nothing: there the
tables would be most of the work. Tests hold it against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from fewstep.noise import NoiseSchedule
from fewstep.search.s3.genes import AFS, SCALINGS, Bools, Floats, Genes, Ints

Denoise = Callable[[Floats, Floats, Floats], Floats]
"""`denoise(x [P, K], alpha [P, 1], sigma [P, 1]) -> x0 [P, K]`"""

_SERIES_BELOW = 2.0
_TERMS = 24


def phi(k: int, z: Floats) -> Floats:
    """The exponential functions of `fewstep.phi` on arrays."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        recursion = np.expm1(z) / z if k else np.exp(z)
        for j in range(1, k):
            recursion = (recursion - 1 / math.factorial(j)) / z
    near = np.where(np.abs(z) < _SERIES_BELOW, z, 0.0)
    series = np.zeros_like(z)
    for j in range(_TERMS, -1, -1):
        series = series * near + 1 / math.factorial(j + k)
    return np.where(np.abs(z) < _SERIES_BELOW, series, recursion)


def simulate(noise: NoiseSchedule, g: Genes, denoise: Denoise, start: Floats, mean: float = 0.0) -> Floats:
    """The samples `[P, K]` of all schedules from the unit normals `start [K]`.

    Basis "v3" is taken as "data" and tau as 0: there is nothing that they could be measured on here.
    """
    out = np.empty((len(g), len(start)))
    for n in np.unique(g.steps):
        rows = np.flatnonzero(g.steps == n)
        out[rows] = _Run(noise, g.take(rows), int(n), denoise, start, mean).sample()
    return out


class _Run:
    """Schedules of equally many steps."""

    def __init__(self, noise: NoiseSchedule, g: Genes, n: int, denoise: Denoise, start: Floats, mean: float) -> None:
        self.g, self.n, self._denoise, self.mean = g, n, denoise, mean
        levels = noise.levels(torch.from_numpy(g.times[:, : n + 1].copy()).flatten())
        self.alpha, self.sigma, self.lam = (v.numpy().reshape(len(g), n + 1) for v in levels)
        self.data = np.zeros((len(g), n, len(start)))
        self.eps = np.zeros((len(g), n, len(start)))
        self.states = np.zeros((len(g), n + 1, len(start)))
        self.states[:, 0] = self.sigma[:, :1] * start
        self.rows = np.arange(len(g))

    def sample(self) -> Floats:
        """Run all steps."""
        self._call(0, np.ones(len(self.g), bool))
        for i in range(self.n):
            points = self._points(i)
            self.states[:, i + 1] = self._move(
                i, i + 1 - self.g.start[:, i], points, self.g.order[:, i] - 1, self.g.low[:, i]
            )
            if i + 1 < self.n:
                self._call(i + 1, np.ones(len(self.g), bool))
                self._correct(i, points)
        return self.states[:, self.n]

    def _call(self, i: int, which: Bools) -> None:
        """The outputs at point i of some of the schedules; an analytical first step takes the place of the first."""
        x, alpha, sigma = self.states[:, i], self.alpha[:, i, None], self.sigma[:, i, None]
        out = self._denoise(x, alpha, sigma)
        if i == 0:
            size = np.sqrt(alpha**2 + sigma**2)
            free = {"zero": 0.0, "mean": self.mean, "unit": alpha * x / (size * (size + sigma))}
            for name, value in free.items():
                out = np.where(self.g.afs[:, None] == AFS.index(name), value, out)
        self.data[:, i] = np.where(which[:, None], out, self.data[:, i])
        self.eps[:, i] = np.where(which[:, None], (x - alpha * out) / sigma, self.eps[:, i])

    def _correct(self, i: int, points: Ints) -> None:
        kind = self.g.corrector[:, i]
        if not kind.any():
            return
        low = np.where(self.g.low[:, i] > 0, self.g.low[:, i] + 1, 0)
        points = np.concatenate([np.full((len(self.g), 1), i + 1), points], 1)
        new = self._move(i, i + 1 - self.g.start[:, i], points, self.g.order[:, i], low, corrector=True)
        self.states[:, i + 1] = np.where(kind[:, None] > 0, new, self.states[:, i + 1])
        if (kind == 2).any():
            self._call(i + 1, kind == 2)

    def _points(self, i: int) -> Ints:
        """`[P, i]` the points that support differences of step i, nearest first, newer ones before older ones."""
        back = self.g.start[:, i, None]
        place = np.arange(i)[None]
        # Counted from the newest, 1 is the newest: back - 1, .., 1, then back + 1, ...
        count = np.where(place < back - 1, back - 1 - place, place + 2)
        return i + 1 - count

    def _move(self, i: int, begin: Ints, points: Ints, many: Ints, low: Ints, *, corrector: bool = False) -> Floats:
        """From the points `begin` to point i + 1 with `many [P]` derivatives estimated at the first `points`."""
        at = (self.rows, begin)
        alpha, sigma, t_alpha, t_sigma = self.alpha[at], self.sigma[at], self.alpha[:, i + 1], self.sigma[:, i + 1]
        most = int(many.max(initial=0))
        noisy = (self.g.basis[:, i] == 1) & (alpha > 0)
        x = self._first(at, t_alpha, t_sigma, noisy)
        if most == 0:
            return x
        with np.errstate(invalid="ignore"):
            h = self.lam[:, i + 1] - self.lam[at]
            offsets = np.take_along_axis(self.lam, points[:, :most], 1) - self.lam[at][:, None]
        moments = self._moments(h, noisy, most, alpha, sigma, t_alpha)
        if not corrector:
            moments[:, 0] *= self._factor(i, h, noisy)
        weights = _weights(offsets, many, low, moments)
        values = np.where(noisy[:, None, None], self.eps, self.data)
        gaps = np.take_along_axis(values, points[:, :most, None], 1) - values[at][:, None]
        return x + np.einsum("pm,pmk->pk", weights, np.where(weights[:, :, None] != 0, gaps, 0.0))

    def _first(self, at: tuple[Ints, Ints], t_alpha: Floats, t_sigma: Floats, noisy: Bools) -> Floats:
        """The first-order step: data basis and noise basis differ from a corrected state."""
        alpha, sigma = self.alpha[at], self.sigma[at]
        with np.errstate(divide="ignore"):
            base = np.where(noisy, t_alpha / np.where(noisy, alpha, 1.0), t_sigma / sigma)
        gain = np.where(noisy, t_sigma - base * sigma, t_alpha - base * alpha)
        values = np.where(noisy[:, None], self.eps[at], self.data[at])
        return base[:, None] * self.states[at] + gain[:, None] * values

    def _moments(self, h: Floats, noisy: Bools, most: int, alpha: Floats, sigma: Floats, t_alpha: Floats) -> Floats:
        """`[P, most]` what multiplies the derivatives, from the first on."""
        end = np.isinf(h)
        finite = np.where(np.isfinite(h), h, 1.0)
        z = np.where(noisy, finite, -finite)
        with np.errstate(divide="ignore", invalid="ignore"):
            front = np.where(noisy, -t_alpha * sigma / alpha * np.where(end, 1.0, np.exp(-finite)), t_alpha)
        power = [np.where(end, 1.0, finite ** (k + 1) * phi(k + 1, z)) for k in range(1, most + 1)]
        return front[:, None] * np.stack(power, 1)

    def _factor(self, i: int, h: Floats, noisy: Bools) -> Floats:
        """The scaling of the first derivative."""
        h = np.where(np.isfinite(h), h, 0.0)
        kind, out = self.g.scaling[:, i], 1 + self.g.r[:, i] * h
        if kind.any():
            z = np.where(noisy, h, -h)
            named = {"bh1": 0.5 / phi(2, z), "bh2": 0.5 * phi(1, z) / phi(2, z),
                     "+0.5exp": 1 + 0.5 * np.expm1(z), "-0.5exp": 1 - 0.5 * np.expm1(z)}  # fmt: skip
            for name, value in named.items():
                out = np.where(kind == SCALINGS.index(name), value, out)
        return out


def _weights(offsets: Floats, many: Ints, low: Ints, moments: Floats) -> Floats:
    """`[P, m]` weights of the differences: Taylor differences of USF (eq. 2), summed over the derivatives."""
    inverse = _inverse(offsets, many)
    used = np.arange(offsets.shape[1]) < many[:, None]
    moments = np.where(used, moments, 0.0)
    first = np.where(low > 0, 0.0, moments[:, 0])
    out = np.einsum("pjk,pk->pj", inverse, np.concatenate([first[:, None], moments[:, 1:]], 1))
    if (low > 0).any():
        cut = _inverse(offsets, np.where(low > 0, low, 1))[:, :, 0]
        out += np.where(low > 0, moments[:, 0], 0.0)[:, None] * cut
    return out


def _inverse(offsets: Floats, many: Ints) -> Floats:
    """`[P, m, m]` column k - 1 holds the weights of derivative k on the first `many` points, 0 beyond them."""
    size = offsets.shape[1]
    used = np.arange(size) < many[:, None]
    safe = np.where(used, offsets, 0.0)
    powers = np.stack([safe**k / math.factorial(k) for k in range(1, size + 1)], 1)
    both = used[:, :, None] & used[:, None, :]
    system = np.where(both, powers, np.eye(size))
    return np.where(both, np.linalg.inv(system), 0.0)
