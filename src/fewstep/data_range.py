"""Are clean data in the range that a network was trained on? The network itself is asked.

At the same signal-to-noise ratio no estimator beats the one that knows the law of the data. So if a network denoises
`2 x - 1` better than it denoises x itself, both with the same noise relative to the signal and both errors in units of
x, then x is not what it was trained on. Data in the right range can only lose this comparison by chance or by a bad
network, hence the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import first_rows, placed
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.randomness import CalibrationSeeds, unit_noise

SAMPLES = 24
LEVELS = (0.3, 1.0)
"""Noise levels, in standard deviations of the data."""
MARGIN = 1.2
"""How many times larger the error as given must be."""
SEEDS = CalibrationSeeds(SAMPLES, offset=999_000_000)


@dataclass(frozen=True)
class Range:
    """A usual range of pixels, and how to come from it to another: `scale x + shift`."""

    low: float
    high: float

    @property
    def words(self) -> str:
        """As people write it."""
        return f"[{self.low:g}, {self.high:g}]"

    def holds(self, data: Tensor) -> bool:
        """Whether the data lie in it and span a good part of it."""
        low, high = data.min().item(), data.max().item()
        slack = 1e-3 * (self.high - self.low)
        return self.low - slack <= low and high <= self.high + slack and high - low > 0.4 * (self.high - self.low)


RANGES = (Range(-1, 1), Range(-0.5, 0.5), Range(0, 1), Range(0, 255))


def plausible(data: Tensor) -> list[tuple[Range, Range]]:
    """The usual range that the data seem to be in, beside each other one; nothing where they are in none (latents)."""
    mine = next((r for r in reversed(RANGES) if r.holds(data)), None)
    return [] if mine is None else [(mine, other) for other in RANGES if other != mine]


def calls(data: Tensor) -> int:
    """Single samples that `require_range` sends through the network for these data, before guidance doubles them."""
    others = len(plausible(data))
    return (1 + others) * len(LEVELS) * min(SAMPLES, len(data)) if others else 0


def require_range(denoiser: Denoiser, data: Tensor, condition: Any = None, cure: str = "give {formula}") -> None:
    """Refuse data that the network denoises much better once they are brought to another usual range.

    Args:
        denoiser: the network.
        data: clean samples `[N, *shape]`; the first few are used.
        condition: of the data.
        cure: what to do, with a `{formula}` of the data.

    Errors: `ArgumentError` that names the likely range and the cure.
    """
    pairs = plausible(data)
    if not pairs:
        return
    few = data[:SAMPLES].to(device="cpu", dtype=torch.float32)
    given = _error(denoiser, few, few, 1.0, condition)
    best: tuple[float, Range, str] | None = None
    for mine, other in pairs:
        scale = (other.high - other.low) / (mine.high - mine.low)
        error = _error(denoiser, few, other.low + (few - mine.low) * scale, scale, condition)
        if best is None or error < best[0]:
            best = (error, other, _formula(mine, other))
    assert best is not None
    if math.isfinite(best[0]) and given > MARGIN * best[0]:
        raise ArgumentError(
            f"data span [{data.min().item():.4g}, {data.max().item():.4g}], and the network denoises them "
            f"{given / best[0]:.3g} times better once they are brought to {best[1].words}: it was likely trained on "
            f"{best[1].words}; {cure.format(formula=best[2])}"
        )


def _formula(mine: Range, other: Range) -> str:
    scale = (other.high - other.low) / (mine.high - mine.low)
    shift = other.low - scale * mine.low
    times = "" if scale == 1 else f" * {scale:g}" if scale > 1 else f" / {1 / scale:g}"
    return f"data{times}" + (f" {'+' if shift > 0 else '-'} {abs(shift):g}" if shift else "")


def _error(denoiser: Denoiser, given: Tensor, moved: Tensor, scale: float, condition: Any) -> float:
    """Geometric mean over the levels of the squared error of `moved = scale given + shift`, in units of `given`."""
    noise, spread = denoiser.noise, given.std().item()
    low, high = noise.ratio(noise.t_min).item(), noise.ratio(noise.t_max).item()
    eps = unit_noise(SEEDS[: len(given)], tuple(given.shape[1:]))
    total = 0.0
    for level in LEVELS:
        ratio = min(max(scale * level * spread, low), high)
        time = noise.time_of_ratio(ratio)
        state = noise.alpha(time).item() * (moved + ratio * eps)
        state = state.to(device=denoiser.device, dtype=denoiser.dtype)
        try:
            with torch.no_grad():
                out = denoiser(state, time.item(), placed(first_rows(condition, len(given)), denoiser.device))
        except DenoiserError:  # numbers far outside its range may overflow in it
            return math.inf
        total += ((out.float().cpu() - moved).double() / scale).square().mean().clamp_min(1e-30).log().item()
    return math.exp(total / len(LEVELS)) if math.isfinite(total) else math.inf
