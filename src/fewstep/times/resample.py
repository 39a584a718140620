"""Another number of steps from given times: straight lines in the logarithm of the noise level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.noise import NoiseSchedule, as_float64
from fewstep.times.ends import check, falling, whole
from fewstep.times.grids import finite_ratio


def log_linear(values: Tensor, count: int) -> Tensor:
    """`count` values between positive ones: straight lines in the logarithm, uniform abscissa, exact at the ends.

    The recipe of AYS's quick start, which ComfyUI, WebUI and Forge copied (there float64 too, from clean to noisy).
    """
    if count == 1:
        return values[:1].clone()
    at = torch.linspace(0, len(values) - 1, count, dtype=torch.float64, device="cpu")
    k = at.floor().long().clamp(max=len(values) - 2)
    logs = values.log()
    between = torch.exp(torch.lerp(logs[k], logs[k + 1], at - k))
    between[0], between[-1] = values[0], values[-1]
    return between


def resample(times: Sequence[float] | Tensor, n: int, noise: NoiseSchedule) -> Tensor:
    """The same times for another number of steps, log-linear in `sigma / alpha` (AYS's quick start).

    Args:
        times: `[m+1]`, noisy to clean, checked as in `check`.
        n: number of steps wanted.
        noise: the noise schedule of the times.

    Returns:
        `[n+1]` float64 times with the same two ends. While the lines are drawn a clean end counts as `noise.t_min` (as
        half the last call's noise level if that call is at `t_min` already), and a first state without an image as in
        `fewstep.times.grids`.

    Errors: `TimesError`, `ArgumentError`.
    """
    n = whole(n)
    t = check(times, noise)
    ratios = noise.ratio(t)
    ratios[-1] = noise.ratio(max(t[-1].item(), noise.t_min))
    if not bool(ratios[-1] < ratios[-2]):
        ratios[-1] = ratios[-2] / 2
    ratios[0] = finite_ratio(noise, t[0].item(), max(t[1].item(), noise.t_min))[0]
    new = noise.time_of_ratio(log_linear(ratios, n + 1))
    new[0], new[-1] = t[0], as_float64(t[-1])
    return falling(new)
