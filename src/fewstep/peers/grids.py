"""The times of DyWeight, EPD and AdaSDE, which all use the schedules of their common ancestor, in sigma / alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from fewstep.errors import ArgumentError
from fewstep.noise import Discrete, NoiseSchedule

VP_END = 1e-3
"""The last time of `time_uniform`, in a continuous variance preserving schedule."""


def ladder(kind: str, n: int, noise: NoiseSchedule, ends: tuple[float, float], rho: float) -> list[float]:
    """`n` noise levels of one of their schedules, from `ends[1]` to `ends[0]`.

    Args:
        kind: `polynomial` (EDM's), `logsnr`, `time_uniform`, or `discrete` (of the network's own indices).
        n: how many, the last included.
        noise: the network's; for `discrete`.
        ends: sigma_min, sigma_max.
        rho: the exponent.

    Raises:
        ArgumentError: another kind, or `discrete` times of a network without them.
    """
    low, high = ends
    part = [i / (n - 1) for i in range(n)]
    if kind == "polynomial":
        return [(high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho for u in part]
    if kind == "logsnr":
        return [math.exp(math.log(high) + u * (math.log(low) - math.log(high))) for u in part]
    if kind == "time_uniform":
        at_low, at_high = math.log1p(low**2), math.log1p(high**2)
        slope = 2 * (at_low / VP_END - at_high) / (VP_END - 1)
        first = at_high - slope / 2
        times = [(1 + u * (VP_END ** (1 / rho) - 1)) ** rho for u in part]
        return [math.sqrt(math.expm1(slope * t**2 / 2 + first * t)) for t in times]
    if kind == "discrete":
        if not isinstance(noise, Discrete):
            raise ArgumentError(f"its times are indices, and {noise!r} has none: give the network's own noise schedule")
        count = len(noise.alphas_cumprod)
        # Their first time lacks the root that the last one has; it is 1, so that it does not matter.
        times = [(1 + u * (VP_END ** (1 / rho) - 1)) ** rho for u in part]
        return [noise.ratio(t * count - 1).item() for t in times]
    raise ArgumentError(f"its times are {kind!r}, which are not in the file: give them as sigmas=[...]")


def shifted(levels: Sequence[float], shift: float) -> list[float]:
    """Flow times, moved towards the noisy end: `shift s / (1 + (shift - 1) s)`."""
    return [shift * s / (1 + (shift - 1) * s) for s in levels]


def checked(levels: Sequence[float], n: int) -> list[float]:
    """Levels that a user gave.

    Raises:
        ArgumentError: not `n`, or not falling.
    """
    try:
        found = [float(v) for v in levels]
    except (TypeError, ValueError):
        raise ArgumentError(f"sigmas={levels!r}: give a list of {n} numbers") from None
    if len(found) != n or any(not b < a for a, b in pairwise(found)) or found[-1] < 0:
        raise ArgumentError(f"sigmas={found}: give {n} falling levels sigma / alpha, the first and the last included")
    return found
