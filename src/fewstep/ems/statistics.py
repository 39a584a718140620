"""`EMS`: DPM-Solver-v3's statistics l, s, b of a network on a grid of log signal-to-noise ratios."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.ems.integrals import Coefficients, Span, Trapezoid, exact, interpolate
from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule, as_float64
from fewstep.phi import Scalar, value

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.progress import Report
    from fewstep.randomness import CalibrationSeeds
    from fewstep.search.cache import Cache, Probe

GRID = 128
Rule = Literal["exact", "nearest"]


class Move(NamedTuple):
    """`y_t = gain (y_s - sum_k moments[k] g^(k) - shift)` with y = x / alpha."""

    gain: Tensor
    moments: list[Tensor]
    shift: Tensor


def log_snr_grid(
    noise: NoiseSchedule, points: int = GRID, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """`[points]` even values of `log(alpha / sigma)`, rising, over the network's range or between two times.

    A start without an image (flow models) is the mirror image of the clean end, as for grids of times.
    """
    from fewstep.times.grids import finite_ratio

    if points < 2:
        raise ArgumentError(f"points={points}: a grid has at least two")
    first, last = noise.t_max if start is None else start, noise.t_min if end is None else end
    low, high = (-finite_ratio(noise, first, last).log()).tolist()
    if not low < high:
        raise ArgumentError(f"start={first:g} and end={last:g}: give a noisier start, and an end with noise")
    return torch.linspace(low, high, points, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class EMS:
    """Statistics of a network, with which DPM-Solver-v3 chooses what to expand (Zheng et al. 2023, section 3).

    With y = x / alpha: `l` is the diagonal of the network's Jacobian that makes `f = (1 - l) y - x0` least dependent on
    the state, and `f' ~ s f + b` along trajectories, by least squares for every element. l = 1, s = b = 0 is data
    prediction; l = b = 0, s = -1 is noise prediction. Any values give a convergent solver; good ones a small constant.

    Attributes:
        lams: `[G]` rising values of log(alpha / sigma).
        l, s, b: `[G, *shape]`, or anything whose trailing dimensions broadcast to one sample.
        rule: how integrals are formed. "exact": piecewise linear between the grid points, to rounding. "nearest": the
            authors', trapezoid sums between nearest grid points, which repeats their outputs.
        noise: of the states, if known; tables for another schedule are then refused.
        record: JSON values: the network's fingerprint, how many samples, which seeds.

    Raises:
        ArgumentError: shapes that do not fit, a grid that does not rise, or numbers that are not finite.
    """

    lams: Tensor
    l: Tensor  # noqa: E741 - the paper's letter
    s: Tensor
    b: Tensor
    rule: Rule = "exact"
    noise: NoiseSchedule | None = None
    record: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("lams", "l", "s", "b"):
            object.__setattr__(self, name, as_float64(getattr(self, name)).detach())
        grid = self.lams
        if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()):
            raise ArgumentError("lams must be at least two rising values of log(alpha / sigma)")
        if self.rule not in ("exact", "nearest"):
            raise ArgumentError(f"rule={self.rule!r}: choose 'exact' or 'nearest'")
        for name in ("l", "s", "b"):
            values: Tensor = getattr(self, name)
            if values.shape != self.l.shape or values.shape[:1] != grid.shape:
                raise ArgumentError(
                    f"{name} has shape {tuple(values.shape)}: l, s and b need one shape [{len(grid)}, ...], one entry "
                    "for each of lams"
                )
            if not bool(values.isfinite().all()):
                k = (~values.isfinite()).nonzero()[0, 0].item()
                raise ArgumentError(f"{name} is not finite at grid point {k} (lam = {grid[int(k)].item():.4g})")

    @staticmethod
    def constant(lams: Tensor, l: float, s: float, b: float = 0.0) -> EMS:  # noqa: E741 - the paper's letter
        """The same numbers everywhere: (1, 0) is data prediction, (0, -1) noise prediction."""
        one = torch.ones(len(lams), dtype=torch.float64, device="cpu")
        return EMS(lams, l * one, s * one, b * one)

    @staticmethod
    def from_npz(
        folder: str | Path, noise: NoiseSchedule, *, start: float | None = None, end: float | None = None,
        rule: Rule = "nearest",
    ) -> EMS:  # fmt: skip
        """The authors' own statistics: `l.npz` and `sb.npz` of a folder, on an even grid of log-SNR between two times.

        Args:
            folder: holds the two files, with arrays l, and s and b, `[G, *shape]`, from noisy to clean.
            noise: of the network.
            start, end: the times of the first and the last grid point, in `noise`'s unit; by default its range.
            rule: the authors' by default.

        Raises:
            FileFormatError: files that are missing or hold something else.
        """
        from fewstep.ems import files

        return files.from_npz(Path(folder), noise, start, end, rule)

    @staticmethod
    def compute(
        denoiser: Denoiser,
        data: Tensor,
        *,
        seeds: CalibrationSeeds | None = None,
        condition: Any = None,
        lams: Tensor | None = None,
        probes: int = 1,
        derivative: Literal["auto", "forward", "difference"] = "auto",
        batch_size: int | None = None,
        cache: Cache | str | Path | None = None,
        probe: Probe | None = None,
        progress: Report | None = None,
    ) -> EMS:
        """The statistics of a network over noised data; see `fewstep.ems.estimate.estimate`."""
        from fewstep.ems.estimate import estimate
        from fewstep.progress import silent

        return estimate(
            denoiser, data, seeds=seeds, condition=condition, lams=lams, probes=probes, derivative=derivative,
            batch_size=batch_size, cache=cache, probe=probe, progress=progress or silent,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the statistics of one grid point."""
        return tuple(self.l.shape[1:])

    @cached_property
    def reach(self) -> tuple[float, float]:
        """Lowest and highest log-SNR that is known: half a cell beyond the ends is the end, as the authors round."""
        low, high = self.lams[0].item(), self.lams[-1].item()
        room = 0.5 * (high - low) / (len(self.lams) - 1)
        return low - room, high + room

    @cached_property
    def shifts(self) -> bool:
        """Whether b is anything but zero, so that rows have a constant term."""
        return bool(self.b.ne(0).any())

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the numbers and the rule."""
        total = hashlib.sha256(self.rule.encode())
        for values in self._coefficients:
            total.update(str(tuple(values.shape)).encode() + values.contiguous().numpy().tobytes())
        return total.hexdigest()[:16]

    def with_rule(self, rule: Rule) -> EMS:
        """The same statistics, integrated by another rule."""
        return replace(self, rule=rule)

    def refined(self, factor: int) -> EMS:
        """The same statistics on a grid `factor` times as fine, between the points by cubics with continuous slopes.

        Integrals are of straight lines between grid points; where steps become as short as cells, their kinks cost
        the higher orders of accuracy.
        """
        n = len(self.lams) - 1
        at = torch.arange(n * factor + 1, dtype=torch.float64, device="cpu") / factor
        j = at.long().clamp(max=n - 1)
        u = at - j
        grid = torch.lerp(self.lams[j], self.lams[j + 1], u)
        width = self.lams[j + 1] - self.lams[j]

        def cubic(values: Tensor) -> Tensor:
            lift = lambda v: v.reshape(-1, *(1,) * (values.ndim - 1))  # noqa: E731
            slopes = torch.gradient(values, spacing=(self.lams,), dim=0, edge_order=min(2, n))[0]
            ends = lift((1 + 2 * u) * (1 - u) ** 2) * values[j] + lift(u**2 * (3 - 2 * u)) * values[j + 1]
            bend = lift(u * (1 - u) ** 2 * width) * slopes[j] - lift(u**2 * (1 - u) * width) * slopes[j + 1]
            return ends + bend

        return replace(self, lams=grid, l=cubic(self.l), s=cubic(self.s), b=cubic(self.b))

    @cached_property
    def _coefficients(self) -> Coefficients:
        return Coefficients(self.lams, self.l, self.s, self.b)

    @cached_property
    def _trapezoid(self) -> Trapezoid:
        return Trapezoid(self._coefficients)

    def linear_part(self, lam: Scalar) -> Tensor:
        """The statistic l at one log-SNR."""
        self._require(lam)
        if self.rule == "nearest":
            return self.l[self._trapezoid.nearest(lam)]
        return interpolate(self._coefficients, self.l, lam)

    def move(self, s: Scalar, t: Scalar, order: int) -> Move:
        """The numbers of a step from log-SNR s to a higher t with `order` terms."""
        span = self._span(s, t, order)
        return Move(torch.exp(-span.linear), span.moments, span.shift)

    def relative(self, s: Scalar, u: Scalar) -> tuple[Tensor, Tensor]:
        """`(growth, drift)`: the quantity expanded around s is `g = growth f - drift` at u."""
        if value(u) >= value(s):
            span = self._span(s, u, 0)
            return torch.exp(-span.growth), span.drift
        span = self._span(u, s, 0)
        growth = torch.exp(span.growth)
        return growth, -growth * span.drift

    def _span(self, low: Scalar, high: Scalar, order: int) -> Span:
        self._require(low)
        self._require(high)
        if self.rule == "nearest":
            return self._trapezoid.span(low, high, order)
        return exact(self._coefficients, low, high, order)

    def _require(self, lam: Scalar) -> None:
        """A log-SNR that is known."""
        first, last = self.reach
        if not first <= value(lam) <= last:
            low, high = self.lams[0].item(), self.lams[-1].item()
            raise ArgumentError(
                f"the statistics reach from log(alpha / sigma) = {low:.4g} to {high:.4g}, and a step needs "
                f"{value(lam):.4g}: compute them with lams=log_snr_grid(noise, start=, end=) over the times"
            )

    def require_noise(self, noise: NoiseSchedule) -> None:
        """Raise `ArgumentError` if the statistics are of another noise schedule."""
        if self.noise is not None and self.noise != noise:
            raise ArgumentError(f"the statistics are of a network on {self.noise!r}, the times of {noise!r}")

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, float64, with a JSON record in its metadata; all or nothing."""
        from fewstep.ems import files

        return files.save(self, Path(path))

    @staticmethod
    def load(path: str | Path, denoiser: Denoiser | None = None) -> EMS:
        """Read what `save` wrote.

        Args:
            path: the file.
            denoiser: the network that they shall be of; its fingerprint, noise schedule and sample shape are checked.

        Raises:
            FileFormatError: a damaged, foreign or newer file.
            ArgumentError: statistics of another network, noise schedule or sample shape.
        """
        from fewstep.ems import files

        found = files.load(Path(path))
        if denoiser is not None:
            found.require_denoiser(denoiser)
        return found

    def require_denoiser(self, denoiser: Denoiser) -> None:
        """Raise `ArgumentError` unless the statistics are of this network."""
        self.require_noise(denoiser.noise)
        mine: Sequence[int] = self.shape
        if any(a not in (1, b) for a, b in zip(reversed(mine), reversed(denoiser.shape), strict=False)) or len(
            mine
        ) > len(denoiser.shape):
            raise ArgumentError(f"the statistics are of samples {tuple(mine)}, the network takes {denoiser.shape}")
        known = self.record.get("fingerprint")
        if known is not None and known != denoiser.fingerprint:
            raise ArgumentError(
                f"the statistics are of the network {known!r}, this is {denoiser.fingerprint!r}: compute them anew"
            )
