"""What networks predict and what time they are told: the two conventions that a wrapper must get right.

With the state `x = alpha x_0 + sigma eps` every prediction in use is x_0 up to two coefficients,
`x_0 = c_skip x + c_out output` (the names are EDM's):

| prediction | the network's output | c_skip | c_out |
|---|---|---|---|
| `epsilon` | eps | 1 / alpha | -sigma / alpha |
| `v` | (alpha eps - sigma x_0) / r | alpha / r^2 | -sigma / r |
| `x0` | x_0 | 0 | 1 |
| `score` | gradient of log p_t at x | 1 / alpha | sigma^2 / alpha |
| `flow` | eps - x_0 | 1 / (alpha + sigma) | -sigma / (alpha + sigma) |

`r = sqrt(alpha^2 + sigma^2)` is 1 for variance-preserving schedules (Salimans & Ho 2022); with it, v means in EDM's
coordinates what k-diffusion's VDenoiser means. Only `epsilon` and `score` divide by alpha: they say nothing about x_0
where alpha is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, DenoiserError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPCosine, VPLinear

Prediction = Literal["epsilon", "v", "x0", "score", "flow"]
TimeScale = Literal["index", "unit", "sigma", "log_sigma/4"]

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
TIME_SCALES: tuple[TimeScale, ...] = get_args(TimeScale)

DIVIDES_BY_ALPHA: tuple[Prediction, ...] = ("epsilon", "score")


def require_prediction(prediction: str) -> Prediction:
    """The prediction, if there is one of that name.

    Raises:
        ArgumentError: listing the names.
    """
    for known in PREDICTIONS:
        if prediction == known:
            return known
    raise ArgumentError(f"prediction={prediction!r} is not known: give one of {', '.join(PREDICTIONS)}")


def data_coefficients(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """`(c_skip, c_out)` of `x_0 = c_skip x + c_out output`, differentiable in alpha and sigma."""
    if prediction == "x0":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if prediction == "v":
        square = alpha**2 + sigma**2
        return alpha / square, -sigma / square.sqrt()
    return 1 / alpha, (-sigma if prediction == "epsilon" else sigma**2) / alpha


def require_alpha(prediction: Prediction, alpha: Tensor, t: float | Tensor, argument: str = "prediction") -> None:
    """Refuse a prediction that says nothing about x_0 at alpha = 0, at such a time.

    Raises:
        DenoiserError: naming the time and the ways out.
    """
    # Reading a number stops a compiled graph; there the division shows itself as infinities.
    if prediction in DIVIDES_BY_ALPHA and not torch.compiler.is_compiling() and float(alpha.detach()) == 0:
        at = float(t.detach() if isinstance(t, Tensor) else t)
        raise DenoiserError(
            f"{argument}={prediction!r} says nothing about x_0 at time {at:g}, where alpha is 0 (pure noise): start at "
            "an earlier time (start=...), or check whether this network predicts 'v', 'x0' or 'flow'",
            time=at,
        )


def own_time_scale(noise: NoiseSchedule) -> TimeScale:
    """The time that networks of this family are told, unless somebody says otherwise."""
    if isinstance(noise, Discrete):
        return "index"
    return "sigma" if isinstance(noise, EDM) else "unit"


def network_time(noise: NoiseSchedule, t: Tensor, scale: TimeScale | Callable[[Tensor], Tensor]) -> Tensor:
    """The number that the network is told at schedule time t (0-d float64), differentiable in t.

    `index` counts a thousand training steps: a discrete schedule's own index, `1000 t - 1` for the continuous
    variance-preserving ones (DPM-Solver's map; the network of step i has seen time (i + 1) / 1000), `1000 sigma` for
    flows. `unit` is the same on a scale up to 1: `(i + 1) / n`, `t`, `sigma`. `sigma` and `log_sigma/4` are of the
    network's own schedule. Anything else is a function of t.

    Raises:
        ArgumentError: the schedule has no such scale (EDM has no index), or no scale has that name.
    """
    if callable(scale):
        return scale(t)
    if scale == "sigma":
        return noise.sigma(t)
    if scale == "log_sigma/4":
        return noise.sigma(t).log() / 4
    if scale not in TIME_SCALES:
        raise ArgumentError(
            f"time={scale!r} is not known: give one of {', '.join(TIME_SCALES)}, or a function of the schedule's time"
        )
    if isinstance(noise, Discrete):
        return t if scale == "index" else (t + 1) / len(noise.alphas_cumprod)
    if isinstance(noise, VPLinear | VPCosine):
        return 1000 * t - 1 if scale == "index" else t
    if isinstance(noise, Flow):
        return noise.sigma(t) * (1000 if scale == "index" else 1)
    raise ArgumentError(
        f"time={scale!r} means nothing for {noise!r}: give 'sigma', 'log_sigma/4' or a function of the schedule's "
        "time; for a network trained on another schedule, give that schedule as network_noise"
    )


def per_sample(time: Tensor, like: Tensor) -> Tensor:
    """The time (0-d) as `[B]` on the samples' device, in float32 or wider, or in its own integers.

    A 0-d CPU tensor enters a device's kernel as a plain number, so the product with ones neither copies nor waits, and
    it keeps the gradient.
    """
    if not time.is_floating_point():
        return time.expand(len(like)).to(like.device)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_ones(len(like), dtype=dtype) * time.to(dtype)
