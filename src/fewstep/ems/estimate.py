"""Computing DPM-Solver-v3's statistics: one pass over noised data, grid point by grid point.

With `y = x / alpha` and the network's x0 = D, at one log-SNR and over the data (Zheng et al. 2023, section 3):

* `l = E[1 - alpha diag(dD/dx)]` minimises `E |d/dx (sigma eps - l x)|^2`; the diagonal is estimated as `v (J v)` with
  random signs v (Hutchinson);
* `f = (1 - l) y - D` and its derivative along the probability-flow ODE, `f' = -l' y - (1 - l) (y - D) - D'`;
* s and b by least squares of f' on f, for each element: `s = cov(f, f') / var(f)`, `b = E f' - s E f`.

Since f is linear in y and D, the means and covariances of y, D and D' are all that is kept of a grid point; l' comes
from the neighbouring points. An |s| above one over the cell is cut there, and b fits the cut one: the grid cannot
resolve such a growth, which is an error of l' in an f that hardly varies. Sums are formed sample by sample in float64,
so that they do not depend on the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fewstep.conditions import first_rows, rows
from fewstep.ems.derivatives import Derivatives, derivatives
from fewstep.ems.statistics import EMS, log_snr_grid
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import as_float64
from fewstep.outputs import check_finite
from fewstep.progress import Event, Report
from fewstep.randomness import CalibrationSeeds, unit_noise
from fewstep.search.cache import Cache, Probe, digest

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

SIGNS = 1 << 20
"""Streams from here on are the random signs of Hutchinson's estimate; those below are the noise."""
FLAT = 1e-10
"""An element whose f varies less than this, relative to its square, has s = 0: there is nothing to regress on."""
ROUNDING = 1e-12
"""... or less than this, relative to the terms that f is the difference of."""
BATCH = 64
STAGE = "statistics of DPM-Solver-v3"


def estimate(
    denoiser: Denoiser,
    data: Tensor,
    *,
    seeds: CalibrationSeeds | None,
    condition: Any,
    lams: Tensor | None,
    probes: int,
    derivative: Literal["auto", "forward", "difference"],
    batch_size: int | None,
    cache: Cache | str | Path | None,
    probe: Probe | None,
    progress: Report,
) -> EMS:
    """The statistics of a network, by noising data (the paper uses 1,024 samples, and grids of 120 to 1,200 points).

    Args:
        denoiser: the network (guided, if it is to be used guided), one output channel.
        data: `[N, *shape]` clean samples, from a data set or a teacher's (`fewstep.search.teacher.Teacher`).
        seeds: N calibration seeds, by default the first.
        condition: of the N samples.
        lams: `[G]` rising grid of log(alpha / sigma), by default 128 points over the network's range.
        probes: sign vectors for each sample.
        derivative: "forward" differentiates the network exactly in forward mode, "difference" by central differences
            along the path, for networks without forward mode; "auto" takes the first where it works.
        batch_size: samples in a network call, by default 64.
        cache: a folder; an interrupted computation goes on from its last whole grid point, to the same bits.
        probe: guards the cache; shared by those who use one network.
        progress: told after every batch.

    Raises:
        ArgumentError, SeedsError: arguments that do not fit.
        DenoiserError: an output or a derivative that is not finite; names the level, the samples and their seeds.
    """
    seeds = CalibrationSeeds.require(seeds or CalibrationSeeds(len(data)), "seeds")
    if tuple(data.shape[1:]) != tuple(denoiser.shape) or len(data) != len(seeds) or len(data) < 2:
        raise ArgumentError(
            f"data has shape {tuple(data.shape)} and there are {len(seeds)} seeds; the network takes samples of shape "
            f"{tuple(denoiser.shape)}, at least two are needed, and each needs one seed"
        )
    if denoiser.channels != 1 or probes < 1:
        raise ArgumentError(f"channels={denoiser.channels}, probes={probes}: give a network of one x0, and a probe")
    grid = log_snr_grid(denoiser.noise) if lams is None else as_float64(lams)
    kind = derivatives(denoiser, first_rows(condition, 1), derivative)
    work = _Pass(denoiser, data, seeds, condition, grid, probes, kind, batch_size or BATCH)
    kept = cache if isinstance(cache, Cache) else Cache(cache)
    levels = work.run(kept, probe or Probe(denoiser, first_rows(condition, 1)), progress)
    return _solve(grid, levels, denoiser, len(data), probes, kind)


@dataclass
class Moments:
    """Streamed means and centred products of y, D and D' at one grid point, and the sum of l; `[*shape]`, float64."""

    mean: Tensor
    products: Tensor
    linear: Tensor
    n: int = 0

    @staticmethod
    def empty(shape: tuple[int, ...]) -> Moments:
        """Nothing yet."""
        zeros = lambda *lead: torch.zeros(*lead, *shape, dtype=torch.float64, device="cpu")  # noqa: E731
        return Moments(zeros(3), zeros(3, 3), zeros())

    def add(self, values: Tensor, linear: Tensor) -> None:
        """One sample: values `[3, *shape]` of y, D and D', and its estimate of l (Welford's update)."""
        self.n += 1
        before = values - self.mean
        self.mean = self.mean + before / self.n
        self.products = self.products + before[:, None] * (values - self.mean)[None]
        self.linear = self.linear + (linear - self.linear) / self.n

    def tensors(self) -> dict[str, Tensor]:
        """For the cache."""
        return {"mean": self.mean, "products": self.products, "linear": self.linear}


class _Pass:
    """The pass: for each grid point, all samples, in batches."""

    def __init__(
        self, denoiser: Denoiser, data: Tensor, seeds: CalibrationSeeds, condition: Any, grid: Tensor, probes: int,
        kind: Derivatives, size: int,
    ) -> None:  # fmt: skip
        self.denoiser, self.data, self.seeds, self.condition = denoiser, data, seeds, condition
        self.grid, self.probes, self.kind, self.size = grid, probes, kind, size
        self.precise = torch.promote_types(denoiser.dtype, torch.float32)

    def run(self, cache: Cache, probe: Probe, progress: Report) -> list[Moments]:
        net = self.denoiser
        name = "ems-" + digest(
            net.fingerprint, self.data, list(self.seeds), self.condition, self.grid, self.probes, self.kind.name
        )
        levels: list[Moments] = []
        total = len(self.grid) * len(self.data)
        for k in range(len(self.grid)):
            stored = cache.read(f"{name}-{k}")
            if stored is not None:
                tensors, record = stored
                probe.check(tensors.pop("probe"), cache.path(f"{name}-{k}"))
                levels.append(Moments(**tensors, n=record["samples"]))
                continue
            levels.append(self._level(k, progress, total))
            if cache.folder is not None:
                kept = levels[-1].tensors() | {"probe": probe.answer()}
                cache.write(f"{name}-{k}", kept, {"samples": len(self.data)})
        progress(Event(STAGE, total, total))
        return levels

    def _level(self, k: int, progress: Report, total: int) -> Moments:
        moments = Moments.empty(tuple(self.denoiser.shape))
        lam = self.grid[k].item()
        for start in range(0, len(self.data), self.size):
            stop = min(start + self.size, len(self.data))
            values, linear = self._batch(k, lam, start, stop)
            for row in range(stop - start):
                moments.add(values[:, row], linear[row])
            progress(Event(STAGE, k * len(self.data) + stop, total))
        return moments

    def _batch(self, k: int, lam: float, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """`[3, B, *shape]` y, D and D', and `[B, *shape]` estimates of l, of some samples at one log-SNR."""
        net, seeds = self.denoiser, self.seeds[start:stop]
        shape = tuple(net.shape)
        time = net.noise.time_of_lam(lam).item()
        alpha, sigma = net.noise.alpha(time).item(), net.noise.sigma(time).item()
        clean = self.data[start:stop].to(device="cpu", dtype=self.precise)
        x = (alpha * clean + sigma * unit_noise(seeds, shape, k, dtype=self.precise)).to(net.device, net.dtype)
        condition = rows(self.condition, slice(start, stop))
        try:
            out = self.kind.output(x, time, condition)
            check_finite(out, time, x, net.noise)
            along = self.kind.along_flow(x, out, lam, condition)
            linear = torch.zeros(len(x), *shape, dtype=torch.float64, device="cpu")
            for j in range(self.probes):
                signs = unit_noise(seeds, shape, SIGNS + k * self.probes + j, dtype=self.precise).sign()
                signs = signs.to(net.device, net.dtype)
                diagonal = (signs * self.kind.in_direction(x, signs, time, condition)).double().cpu()
                linear += (1.0 - alpha * diagonal) / self.probes
            for part in (along, linear):
                check_finite(part, time, x, net.noise)
        except DenoiserError as error:
            raise _located(error, start, seeds, lam) from error
        y = x.double().cpu() / alpha
        return torch.stack([y, out.double().cpu(), along.double().cpu()]), linear


def _located(error: DenoiserError, start: int, seeds: Sequence[int], lam: float) -> DenoiserError:
    """The error with the log-SNR, the data samples at fault and the seeds of their noise."""
    samples = tuple(start + row for row in error.rows)
    about = f"log(alpha / sigma) = {lam:.4g}"
    if error.rows:
        about += f", data samples {', '.join(map(str, samples[:8]))}, seeds "
        about += ", ".join(str(seeds[row]) for row in error.rows[:8])
    return DenoiserError(f"{error} ({about})", time=error.time, rows=samples, sane=error.sane)


def _solve(
    grid: Tensor, levels: list[Moments], denoiser: Denoiser, samples: int, probes: int, kind: Derivatives
) -> EMS:
    """l, its slope over the grid, and the two regressions."""
    linear = torch.stack([level.linear for level in levels])
    slope = torch.gradient(linear, spacing=(grid,), dim=0, edge_order=min(2, len(grid) - 1))[0]
    growth, drift = torch.empty_like(linear), torch.empty_like(linear)
    for k, level in enumerate(levels):
        rest = 1.0 - linear[k]
        (my, md, m1), p = level.mean, level.products
        mean_f = rest * my - md
        mean_f1 = -slope[k] * my - rest * (my - md) - m1
        terms = (rest**2 * p[0, 0] + p[1, 1]) / level.n
        var = terms - 2 * rest * p[0, 1] / level.n
        # cov(f, f') with f' = (-l' - rest) y + rest D - D'.
        ends = (-slope[k] - rest, rest, -1.0)
        cov = sum(c * (rest * p[0, i] - p[1, i]) for i, c in enumerate(ends)) / level.n
        flat = var <= FLAT * (mean_f**2 + var) + ROUNDING * terms
        steep = 1.0 / grid.diff()[max(k - 1, 0) : k + 1].max()
        growth[k] = torch.where(flat, 0.0, cov / torch.where(flat, 1.0, var)).clamp(-steep, steep)
        drift[k] = mean_f1 - growth[k] * mean_f
    record = {"fingerprint": denoiser.fingerprint, "samples": samples, "probes": probes, "derivative": kind.name}
    return EMS(grid, linear, growth, drift, noise=denoiser.noise, record=record)
