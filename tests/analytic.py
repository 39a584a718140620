"""Networks in any convention whose right answer is known, made of analytic problems."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.conventions import TIME_SCALES, Prediction, data_coefficients
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPCosine, VPLinear
from fewstep.problems import Problem

NOISES: dict[str, NoiseSchedule] = {
    "vp": VPLinear(),
    "cosine": VPCosine(),
    "sd": Discrete.scaled_linear(),
    "zero_snr": Discrete.scaled_linear().rescaled_to_zero_terminal_snr(),
    "edm": EDM(),
    "flow": Flow(),
    "flow3": Flow(shift=3.0),
}


def scales(noise: NoiseSchedule) -> list[str]:
    """The time scales that a schedule has."""
    return [s for s in TIME_SCALES if not isinstance(noise, EDM) or s in ("sigma", "log_sigma/4")]


def times(noise: NoiseSchedule) -> list[float]:
    """Times from nearly clean to the noisiest at which alpha is positive."""
    levels = [0.05, 0.3, 1.0, 4.0, min(float(noise.ratio(noise.t_max)), 50.0)]
    return [float(noise.time_of_ratio(level)) for level in levels]


def schedule_time(noise: NoiseSchedule, told: Tensor, scale: str) -> Tensor:
    """The schedule's time at which a network of that time scale is told `told`: the inverse of `network_time`."""
    if scale == "log_sigma/4":
        told, scale = (4 * told).exp(), "sigma"
    if isinstance(noise, Flow) and scale in ("index", "unit"):
        told, scale = told / (1000 if scale == "index" else 1), "sigma"
    if scale == "sigma":
        if isinstance(noise, EDM):
            return told
        alpha = 1 - told if isinstance(noise, Flow) else (1 - told**2).clamp_min(0).sqrt()
        return noise.time_of_ratio(told / alpha)
    if isinstance(noise, Discrete):
        return told if scale == "index" else told * len(noise.alphas_cumprod) - 1
    return (told + 1) / 1000 if scale == "index" else told


def network(problem: Problem, prediction: Prediction, scale: str) -> Callable[..., Tensor]:
    """What a perfect training of that prediction and time scale would give; told a time too far, it takes the last."""
    noise = problem.noise
    low, high = sorted((noise.t_min, noise.t_max))

    def fn(x: Tensor, told: Tensor, condition: Any = None) -> Tensor:
        t = schedule_time(noise, told[0].double(), scale)
        t = torch.nan_to_num(t, nan=low).clamp(low, high)
        c_skip, c_out = data_coefficients(prediction, noise.alpha(t), noise.sigma(t))
        wide = x.double()
        return ((problem.denoise(wide, t, condition) - c_skip * wide) / c_out).to(x.dtype)

    return fn
