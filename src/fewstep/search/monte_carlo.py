"""Align Your Steps' own estimator of the KLUB: Monte Carlo with importance sampling (ICML 2024, Algorithm 2).

For every data sample a noise level r is drawn, the sample is noised to r and on to the upper end of r's step, and the
network is called at both. `Gram` gives the same numbers for a hundredth of the calls; this is the yardstick that it is
measured with, and the published algorithm for those who want it.

Three things are done otherwise than in print.

- The estimate is multiplied by the proposal's normaliser Z (`fewstep.search.proposal`), which the paper's Algorithm 2
  leaves out. Z depends on the candidate: without it (`normalised=False`) the arg-min is a wrong one.
- All candidates see the same samples, noise and uniforms, so that the error of a *difference* is far below that of a
  value.
- A network is told one time per call. So `share` samples share their uniform, and the uniforms are stratified: one in
  each of N / share equal parts of (0, 1), which parts go to which samples being random. `share=1` is the paper's
  letter, but for the strata.

Everything is in the ratio `r = sigma / alpha` and per dimension, as in `Gram.klub`: noise schedules do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.conditions import rows
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import as_float64
from fewstep.progress import Event, Report, silent
from fewstep.randomness import CalibrationSeeds, unit_noise
from fewstep.search.ays import MAX_SWEEPS, candidates, walk
from fewstep.search.proposal import C, normaliser, quantiles

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

SHARE = 32
"""Samples that share a noise level, and so a network call."""
STREAMS = (1_000_001, 1_000_002, 1_000_003)
"""Of the noise up to r, of that from there to the step's end, and of the uniforms; no table has so many columns."""


@dataclass(frozen=True)
class Estimates:
    """KLUBs of m grids that saw the same random numbers.

    Attributes:
        parts: `[g, m]` float64, one estimate from each stratum of the uniforms, in their order.
        calls: network calls that this cost (samples through the network, doubled batches counted twice).
    """

    parts: Tensor
    calls: int

    @property
    def values(self) -> Tensor:
        """`[m]` the KLUBs, per dimension."""
        return self.parts.mean(0)

    @property
    def errors(self) -> Tensor:
        """`[m]` standard errors of the values."""
        return _error(self.parts)

    @property
    def best(self) -> int:
        """Index of the least; the first of equals."""
        return int(self.values.argmin())

    def differences(self, to: int | None = None) -> tuple[Tensor, Tensor]:
        """`[m]` differences to one of the grids (by default the best), and their standard errors."""
        k = self.best if to is None else to
        parts = self.parts - self.parts[:, k : k + 1]
        return parts.mean(0), _error(parts)


def _error(parts: Tensor) -> Tensor:
    """Standard error of a stratified mean from the steps between neighbouring strata, which hold little else."""
    g = len(parts)
    return (parts.diff(dim=0).square().sum(0) / (2 * (g - 1) * g)).sqrt()


class MonteCarlo:
    """The estimator for one network and one set of data; every estimate uses the same random numbers.

    Args:
        denoiser: the network (guided, if it is to be used guided), one output channel.
        data: `[N, *shape]` clean samples in the network's units; the paper takes 8192.
        seeds: N calibration seeds.
        condition: of the N samples.
        c: of the proposal; any c gives the same values, a c near the data's deviation the smallest errors.
        normalised: multiply by Z. False is the algorithm as printed, for comparison only.
        share: samples that share a noise level; N must be at least twice as many.
        batch_size: samples in a network call, if fewer are to go at once; changes nothing but rounding.

    Attributes:
        calls: network calls of all estimates so far.

    Errors: `ArgumentError`, `SeedsError` for arguments that do not fit.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: Tensor,
        *,
        seeds: CalibrationSeeds | None = None,
        condition: Any = None,
        c: float = C,
        normalised: bool = True,
        share: int = SHARE,
        batch_size: int | None = None,
    ) -> None:
        self.seeds = CalibrationSeeds.require(seeds or CalibrationSeeds(max(1, len(data))), "seeds")
        if tuple(data.shape[1:]) != tuple(denoiser.shape) or len(data) != len(self.seeds):
            raise ArgumentError(
                f"data is {tuple(data.shape)}, with {len(self.seeds)} seeds: give samples of the network's shape "
                f"{tuple(denoiser.shape)}, and as many seeds"
            )
        if denoiser.channels != 1:
            raise ArgumentError(f"the network has {denoiser.channels} outputs: wrap it with guidance to give one x0")
        if not c > 0:
            raise ArgumentError(f"c is {c}: give the deviation of the proposal's data, a positive number")
        if share < 1 or len(data) < 2 * share:
            raise ArgumentError(
                f"share is {share} and there are {len(data)} samples: give share from 1 to half of them"
            )
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size is {batch_size}: give a positive number")
        self.denoiser, self.data, self.condition = denoiser, data, condition
        self.c, self.normalised, self.batch_size = float(c), normalised, batch_size
        self.calls = 0
        self.groups = self._assign(share)
        leaders = [self.seeds[int(group[0])] for group in self.groups]
        jitter = torch.special.ndtr(unit_noise(leaders, (1,), STREAMS[2], dtype=torch.float64))[:, 0]
        strata = torch.arange(len(self.groups), dtype=torch.float64, device="cpu")
        self.uniforms = (strata + jitter) / len(self.groups)

    def _assign(self, share: int) -> list[Tensor]:
        """Which samples belong to which stratum: at random, so that no order of the data can matter."""
        order = torch.randperm(len(self.data), generator=torch.Generator("cpu").manual_seed(self.seeds[0]))
        count = len(self.data) // share
        return [order[g::count] for g in range(count)]

    def estimate(self, grids: Tensor, progress: Report = silent) -> Estimates:
        """KLUBs of m whole grids of k steps, each sample spent on one noise level of the whole grid.

        Args:
            grids: `[m, k+1]` ratios, strictly rising or falling, inside the network's range.
            progress: told after every stratum.

        Errors: `ArgumentError` for grids that are none; `DenoiserError` for outputs that are not finite, with the
        samples, their seeds and the time.
        """
        edges = self._check(grids)
        ratio, top, weight = quantiles(edges, self.uniforms, self.c)
        before = self.calls
        parts = torch.zeros(len(self.groups), len(edges), dtype=torch.float64, device="cpu")
        for g, group in enumerate(self.groups):
            for batch in group.split(self.batch_size or len(group)):
                parts[g] += self._squares(batch.tolist(), ratio[g], top[g]) / len(group)
            progress(Event("noising pairs", g + 1, len(self.groups)))
        parts /= weight
        if self.normalised:
            parts *= normaliser(edges[:, :-1], edges[:, 1:], self.c).sum(1)
        return Estimates(parts, self.calls - before)

    def compare(self, low: float, middles: Tensor | Sequence[float], high: float) -> Estimates:
        """Algorithm 2 for every candidate `[m]` of the point between two neighbours."""
        between = as_float64(middles)
        return self.estimate(torch.stack([torch.full_like(between, low), between, torch.full_like(between, high)], 1))

    def total(self, ratios: Tensor) -> tuple[float, float]:
        """KLUB of a whole grid and its standard error, as `Gram.total_with_error` gives them."""
        found = self.estimate(as_float64(ratios)[None])
        return found.values.item(), found.errors.item()

    def klub(self, low: Tensor, high: Tensor) -> Tensor:
        """KLUB of single steps, of any shapes that broadcast, as `Gram.klub` gives it: for `ays.sweep` and `descend`.

        All N samples are spent on every step; `compare` needs half the calls for two.
        """
        a, b = torch.broadcast_tensors(as_float64(low), as_float64(high))
        return self.estimate(torch.stack([a.flatten(), b.flatten()], 1)).values.reshape(a.shape)

    def _check(self, grids: Tensor) -> Tensor:
        edges = as_float64(grids)
        if edges.ndim != 2 or edges.shape[1] < 2 or not len(edges):
            raise ArgumentError(f"grids has shape {tuple(edges.shape)}: give [m, k+1] ratios sigma / alpha")
        edges = edges if bool((edges[0, 1:] > edges[0, :-1]).all()) else edges.flip(1)
        if not bool((edges[:, 1:] > edges[:, :-1]).all()):
            raise ArgumentError("the ratios of a grid must rise or fall strictly: remove the repeats, or sort them")
        noise = self.denoiser.noise
        low, high = noise.ratio(noise.t_min).item(), noise.ratio(noise.t_max).item()
        least, most = edges.min().item(), edges.max().item()
        if not (least > 0 and least >= low * (1 - 1e-9) and most <= high * (1 + 1e-9) and most < float("inf")):
            raise ArgumentError(
                f"a grid spans the ratios {least:.4g} to {most:.4g}, and the network's range is {low:.4g} to {high:.4g}"
                ": give finite ratios inside it (fewstep.search.ays.to_ratios makes them of times)"
            )
        return edges

    def _squares(self, index: list[int], ratios: Tensor, tops: Tensor) -> Tensor:
        """`[m]` sums over some samples of `|D(x_r) - D(x_top)|^2` per dimension, for m pairs of levels."""
        clean = self.data[index].to(device="cpu", dtype=torch.float32)
        seeds = [self.seeds[k] for k in index]
        first, second = (unit_noise(seeds, tuple(clean.shape[1:]), stream) for stream in STREAMS[:2])
        sums = torch.empty(len(ratios), dtype=torch.float64, device="cpu")
        for m, (r, top) in enumerate(zip(ratios.tolist(), tops.tolist(), strict=True)):
            here = clean + r * first
            above = here + (max(top - r, 0.0) * (top + r)) ** 0.5 * second
            gap = self._output(here, r, index) - self._output(above, top, index)
            sums[m] = gap.double().square().sum() / clean[0].numel()
        return sums

    def _output(self, state: Tensor, ratio: float, index: list[int]) -> Tensor:
        """The network's x0 `[B, *shape]` of states in EDM's coordinates."""
        net = self.denoiser
        time = min(max(net.noise.scalar_time_of_ratio(ratio), net.noise.t_min), net.noise.t_max)
        x = (net.noise.alpha(time).item() * state).to(device=net.device, dtype=net.dtype)
        self.calls += len(index) * net.batch_cost
        try:
            with torch.no_grad():
                out = net(x, time, rows(self.condition, index)).float().cpu()
            bad = (~torch.isfinite(out).flatten(1).all(1)).nonzero().flatten().tolist()
        except DenoiserError as error:
            bad = sorted({row % len(index) for row in error.rows})
            if not bad:
                raise
            raise self._broken(bad, index, time, ratio) from error
        if bad:
            raise self._broken(bad, index, time, ratio)
        return out

    def _broken(self, bad: list[int], index: list[int], time: float, ratio: float) -> DenoiserError:
        named = ", ".join(f"{index[k]} (seed {self.seeds[index[k]]})" for k in bad[:8]) + (", ..." if bad[8:] else "")
        return DenoiserError(
            f"the network's output is not finite at time {time:.6g} (noise level {ratio:.4g}) for samples {named}: "
            "check its dtype and input scale, or leave these samples out",
            time=time,
            rows=tuple(index[k] for k in bad),
        )


def sweep_monte_carlo(estimator: MonteCarlo, ratios: Tensor, free: Sequence[int] | None = None) -> Tensor:
    """One pass of the published Algorithm 1: each free point moves to the best of eleven places by Algorithm 2.

    Args:
        estimator: the data and the network; `normalised=False` in it for the algorithm as printed.
        ratios: `[n+1]` falling, e.g. from `ays.to_ratios`.
        free: indices of the points that may move; by default all but the ends.
    """
    ratios = as_float64(ratios).clone()
    for i in sorted(range(1, len(ratios) - 1) if free is None else free, reverse=True):
        places = candidates(ratios[i - 1 : i], ratios[i : i + 1], ratios[i + 1 : i + 2])[0]
        ratios[i] = places[estimator.compare(ratios[i + 1].item(), places, ratios[i - 1].item()).best]
    return ratios


def descend_monte_carlo(
    estimator: MonteCarlo, ratios: Tensor, free: Sequence[int] | None = None, *, max_sweeps: int = MAX_SWEEPS
) -> list[Tensor]:
    """The whole way, as `ays.descend` gives it from a table: the grid after every sweep, the start first."""
    return walk(lambda grid: sweep_monte_carlo(estimator, grid, free), as_float64(ratios), max_sweeps)
