"""The KLUB of Align Your Steps (Sabour et al., ICML 2024, Theorem 3.2) from one table of inner products.

A first-order stochastic step from noise level b down to a freezes the network's output D at b. By Girsanov's theorem
the path-space KL divergence that this costs is at most

    KLUB(a, b) = integral from a to b of  E|D(x_r) - D(x_b)|^2  r^-3 dr,        r = sigma / alpha,

with x_r and x_b on one noising path of a data sample. The paper estimates each such integral by Monte Carlo. But all of
them are read off one matrix, the inner products of the outputs along a path on a grid of noise levels: one pass over
the data, and every candidate grid of every method is a look-up.

Everything here is in the ratio r and per dimension of the data; row 0 of the matrix is the clean sample itself
("noise level 0"), so the denoising loss m(r) = E|x0 - D(x_r)|^2 comes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.conditions import first_rows, placed, rows
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import NoiseSchedule, as_float64
from fewstep.outputs import check_finite
from fewstep.progress import Event, Report, silent
from fewstep.randomness import CalibrationSeeds, unit_noise
from fewstep.search.cache import Cache, Probe, digest, precision
from fewstep.search.lookup import Lookup
from fewstep.times.grids import finite_ratio
from fewstep.times.resample import log_linear

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

GRID = 128
BLOCKS = 8
"""The data are split into this many parts, whose spread gives the standard error of a KLUB."""
BATCH_BYTES = 1 << 28


def ratio_grid(noise: NoiseSchedule, n: int = GRID) -> Tensor:
    """`n` noise levels `sigma / alpha`, rising, evenly spaced in the logarithm over the network's range.

    Where alpha is 0 at the start (flow models) the range ends at `fewstep.times.grids.finite_ratio`: beyond it an
    output hardly changes, and weighs r^-2.
    """
    return log_linear(finite_ratio(noise, noise.t_max, noise.t_min).flip(0), n)


@dataclass(frozen=True)
class Gram:
    """Inner products of a network's outputs along noising paths.

    Attributes:
        ratios: `[G]` float64 noise levels `sigma / alpha`, rising.
        blocks: `[K, G+1, G+1]` float64 sums over the samples of each of K parts of the data, per dimension; row and
            column 0 belong to the clean sample, row k to noise level k - 1.
        counts: `[K]` float64 number of samples in each part.
        calls: network calls that this table cost (whenever they were made).
    """

    ratios: Tensor
    blocks: Tensor
    counts: Tensor
    calls: int = 0

    def __post_init__(self) -> None:
        grid = self.ratios
        if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()) or not grid[0] > 0:
            raise ArgumentError("ratios must be at least two rising positive noise levels")
        if self.blocks.shape[1:] != (len(grid) + 1, len(grid) + 1) or len(self.counts) != len(self.blocks):
            raise ArgumentError(f"blocks must be [K, {len(grid) + 1}, {len(grid) + 1}] with K counts")

    @property
    def samples(self) -> int:
        """Number of data samples behind the table."""
        return round(self.counts.sum().item())

    @cached_property
    def products(self) -> Tensor:
        """`[G+1, G+1]` mean inner products per dimension."""
        return self.blocks.sum(0) / self.counts.sum()

    @cached_property
    def gaps(self) -> Tensor:
        """`[G, G]` mean squared distances `E|D_j - D_k|^2` per dimension."""
        return _distances(self.products)[1:, 1:]

    @property
    def loss(self) -> Tensor:
        """`[G]` the denoising loss m(r) = E|x0 - D(x_r)|^2 per dimension."""
        return _distances(self.products)[0, 1:]

    def klub(self, low: Tensor, high: Tensor) -> Tensor:
        """KLUB of steps from ratio `high` down to `low` (any shapes that broadcast), per dimension, float64.

        Between the grid's noise levels the squared distance is linear in log r, in both arguments, and the integral of
        that interpolant is exact: what is interpolated is linear for an ideal denoiser, whose outputs form a
        martingale with E|D_j - D_k|^2 = m(r_k) - m(r_j). Above the grid (infinity included) its last column stands.

        Errors: `ArgumentError` when `low` lies below the grid, where the integral is not known.
        """
        return torch.from_numpy(np.asarray(self._lookup.klub(as_float64(low).numpy(), as_float64(high).numpy())))

    def total(self, ratios: Tensor) -> float:
        """KLUB of a whole grid of ratios (rising or falling), per dimension."""
        r = as_float64(ratios).sort().values
        return self.klub(r[:-1], r[1:]).sum().item()

    def total_with_error(self, ratios: Tensor) -> tuple[float, float]:
        """KLUB of a whole grid and its standard error over the data (jackknife over the parts)."""
        parts = []
        for k in range(len(self.counts)):
            rest = [j for j in range(len(self.counts)) if j != k]
            parts.append(Gram(self.ratios, self.blocks[rest], self.counts[rest]).total(ratios))
        spread = torch.tensor(parts, dtype=torch.float64, device="cpu")
        k = len(parts)
        return self.total(ratios), ((k - 1) / k * (spread - spread.mean()).square().sum()).sqrt().item()

    def martingale_defect(self) -> float:
        """Largest `|E|D_j - D_k|^2 - (m_k - m_j)|` as a part of the largest loss; 0 for an ideal denoiser."""
        m = self.loss
        ideal = (m[None, :] - m[:, None]).abs()
        return ((self.gaps - ideal).abs().max() / m.max()).item()

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.ratios, self.gaps)

    @staticmethod
    def compute(
        denoiser: Denoiser,
        data: Tensor,
        *,
        seeds: CalibrationSeeds | None = None,
        condition: Any = None,
        ratios: Tensor | None = None,
        batch_size: int | None = None,
        cache: Cache | str | Path | None = None,
        probe: Probe | None = None,
        progress: Report = silent,
    ) -> Gram:
        """One pass over `data`: every sample is noised along one path, and the network called at every noise level.

        Args:
            denoiser: the network (guided, if it is to be used guided), one output channel.
            data: `[N, *shape]` clean samples in the network's units.
            seeds: N calibration seeds, one path each.
            condition: of the N samples.
            ratios: `[G]` rising noise levels, by default 128 over the network's range.
            batch_size: samples in a batch, at most: the outputs of all levels stay under 256 MB.
            cache: a folder; an interrupted pass goes on from its last whole batch.
            probe: guards the cache; shared by those who use one network.
            progress: told after every network call.

        Errors: `ArgumentError`, `SeedsError` for arguments that do not fit; `DenoiserError` for outputs that are not
        finite.
        """
        seeds = CalibrationSeeds.require(seeds or CalibrationSeeds(len(data)), "seeds")
        if tuple(data.shape[1:]) != tuple(denoiser.shape) or len(data) != len(seeds):
            raise ArgumentError(
                f"data has shape {tuple(data.shape)} and there are {len(seeds)} seeds; the network takes "
                f"samples of shape {tuple(denoiser.shape)}, and each needs one seed"
            )
        if denoiser.channels != 1:
            raise ArgumentError(
                f"the network gives {denoiser.channels} outputs; wrap it with guidance, so that it gives one x0"
            )
        levels = ratio_grid(denoiser.noise) if ratios is None else as_float64(ratios)
        _require_levels(levels, denoiser.noise)
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size}: give 1 or more")
        if not (finite := data.flatten(1).isfinite().all(1)).all():
            raise ArgumentError(f"data[{int((~finite).nonzero()[0])}] is not finite: leave such samples out")
        fits = max(1, BATCH_BYTES // (4 * (len(levels) + 1) * max(1, data[0].numel())))
        size = min(len(data), fits, batch_size or fits)
        work = _Pass(denoiser, data, seeds, condition, levels, size)
        kept = cache if isinstance(cache, Cache) else Cache(cache)
        return work.run(kept, probe or Probe(denoiser, placed(first_rows(condition, 1), denoiser.device)), progress)


def _require_levels(levels: Tensor, noise: NoiseSchedule) -> None:
    """Refuse noise levels that do not rise or that the network does not know."""
    if levels.ndim != 1 or len(levels) < 2 or not levels.isfinite().all() or not (levels.diff() > 0).all():
        raise ArgumentError(
            "ratios must be two or more finite noise levels sigma / alpha that rise, e.g. ratio_grid(noise)"
        )
    low, high = noise.ratio(noise.t_min).item(), noise.ratio(noise.t_max).item()
    if levels[0] < low * (1 - 1e-6) or levels[-1] > high * (1 + 1e-6):
        raise ArgumentError(
            f"ratios go from {levels[0]:.4g} to {levels[-1]:.4g}, and the network's noise levels from {low:.4g} to "
            f"{high:.4g}: stay within these"
        )


def _distances(products: Tensor) -> Tensor:
    square = products.diagonal()
    return (square[:, None] + square[None, :] - 2 * products).clamp_min(0)


class _Pass:
    """The one pass over the data: batches of paths, their outputs, and the growing sums."""

    def __init__(
        self, denoiser: Denoiser, data: Tensor, seeds: CalibrationSeeds, condition: Any, ratios: Tensor, size: int
    ) -> None:
        self.denoiser, self.data, self.seeds, self.condition = denoiser, data, seeds, condition
        self.ratios, self.size = ratios, size
        noise = denoiser.noise
        self.times = [noise.time_of_ratio(r).item() for r in ratios]
        self.alphas = [noise.alpha(t).item() for t in self.times]
        self.blocks = torch.zeros(BLOCKS, len(ratios) + 1, len(ratios) + 1, dtype=torch.float64, device="cpu")
        self.counts = torch.zeros(BLOCKS, dtype=torch.float64, device="cpu")
        self.done = 0

    def run(self, cache: Cache, probe: Probe, progress: Report) -> Gram:
        whole = self.denoiser.fingerprint, self.data, list(self.seeds), self.condition, self.ratios
        name = "gram-" + digest(*whole, *precision(self.denoiser))
        stored = cache.read(name)
        if stored is not None:
            tensors, record = stored
            probe.check(tensors["probe"], cache.path(name))
            self.blocks, self.counts, self.done = tensors["blocks"], tensors["counts"], record["done"]
        total = len(self.data) * len(self.ratios)
        progress(Event("noising paths", self.done * len(self.ratios), total))
        while self.done < len(self.data):
            stop = min(self.done + self.size, len(self.data))
            try:
                self._add(self.done, stop, progress, total)
            except (torch.OutOfMemoryError, MemoryError) as error:  # nothing is added before a batch is whole
                self.size = (stop - self.done + 1) // 2
                if stop - self.done == 1:
                    raise DenoiserError(f"out of memory with a single noising path of {len(self.ratios)} levels: give "
                                        "fewer levels, or a smaller network or dtype") from error  # fmt: skip
                continue
            self.done = stop
            if cache.folder is not None:
                kept = {"blocks": self.blocks, "counts": self.counts, "probe": probe.answer()}
                cache.write(name, kept, {"done": self.done, "samples": len(self.data)})
        return Gram(self.ratios, self.blocks, self.counts, calls=total * self.denoiser.batch_cost)

    def _add(self, start: int, stop: int, progress: Report, total: int) -> None:
        clean = self.data[start:stop]
        outputs = torch.empty(len(self.ratios) + 1, stop - start, clean[0].numel(), dtype=torch.float32, device="cpu")
        outputs[0] = clean.reshape(stop - start, -1)
        for k, out in enumerate(self._outputs(start, stop)):
            outputs[k + 1] = out.reshape(stop - start, -1)
            progress(Event("noising paths", start * len(self.ratios) + (k + 1) * (stop - start), total))
        blocks, counts = self.blocks.clone(), self.counts.clone()
        for block in range(BLOCKS):
            mine = [n - start for n in range(start, stop) if n % BLOCKS == block]
            if mine:
                flat = outputs[:, mine].reshape(len(outputs), -1).double()
                blocks[block] += flat @ flat.T / clean[0].numel()
                counts[block] += len(mine)
        self.blocks, self.counts = blocks, counts

    def _outputs(self, start: int, stop: int) -> Iterator[Tensor]:
        """The network's x0 at every level for one batch; the noise grows level by level, so each row is one path."""
        net = self.denoiser
        clean = self.data[start:stop].to(device="cpu", dtype=torch.float32)
        seeds, condition = self.seeds[start:stop], placed(rows(self.condition, slice(start, stop)), net.device)
        noise, previous = torch.zeros_like(clean), 0.0
        for k, (ratio, time, alpha) in enumerate(zip(self.ratios.tolist(), self.times, self.alphas, strict=True)):
            noise += (ratio**2 - previous**2) ** 0.5 * unit_noise(seeds, tuple(clean.shape[1:]), k)
            previous = ratio
            state = (alpha * (clean + noise)).to(device=net.device, dtype=net.dtype)
            try:
                with torch.no_grad():
                    out = net(state, time, condition)
                # The network itself looks on the CPU only.
                check_finite(out, time, state, net.noise)
            except DenoiserError as error:
                raise _with_samples(error, start, seeds, ratio) from error
            yield out.float().cpu()


def _with_samples(error: DenoiserError, start: int, seeds: Sequence[int], ratio: float) -> DenoiserError:
    """The error with the data samples at fault, the seeds of their noise, and the noise level."""
    rows = error.rows[:8]
    about = f"noise level {ratio:.4g}"
    if rows:
        about += f", data samples {', '.join(str(start + k) for k in rows)}"
        about += f", seeds {', '.join(str(seeds[k]) for k in rows)}"
    samples = tuple(start + k for k in error.rows)
    return DenoiserError(f"{error} ({about})", time=error.time, rows=samples, sane=error.sane)
