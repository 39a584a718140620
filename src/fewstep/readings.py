"""Readings of a network: what it may predict and what time it may be told; calling it in one; a crude run of it.

The self-check (`fewstep.selfcheck`) compares them. Everything here is in the network's own coordinates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fewstep.conventions import PREDICTIONS, TIME_SCALES, Prediction, data_coefficients, network_time
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.outputs import check_kind

if TYPE_CHECKING:
    from fewstep.denoiser import Network

OWN = "the given function"
"""Name of a time scale that the user gave as a function."""
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise levels sigma / alpha that are tested, in standard deviations of the data."""
STEPS = 24
"""Calls of the crude run that makes samples where none are given."""
NOISIEST, CLEANEST = 100.0, 0.01
"""Noise levels between which the crude run goes, where the schedule reaches them."""


class Reading(NamedTuple):
    """One way to read a network: what it predicts, and the time that it is told."""

    prediction: Prediction
    time: str

    def __str__(self) -> str:
        return f"prediction={self.prediction!r} with time={self.time!r}"


def crude_samples(network: Network, reading: Reading, condition: Any) -> tuple[Tensor, float]:
    """First-order steps at equal ratios of the noise level; the samples and the level of the first."""
    rows = sample_rows(network)
    noisiest, cleanest = _range(network)
    levels = [noisiest * (cleanest / noisiest) ** (k / (STEPS - 1)) for k in range(STEPS)]
    t, alpha, sigma = at_level(network, levels[0])
    x = sigma.to(working_dtype(network)) * unit_normals(network, rows, seed=0)
    x0 = x
    for level in [*levels[1:], None]:
        x0 = data_of(output_of(network, x, t, reading.time, condition), x, reading.prediction, alpha, sigma)
        if level is not None:
            t, next_alpha, next_sigma = at_level(network, level)
            x = next_alpha.to(x.dtype) * x0 + (next_sigma / sigma).to(x.dtype) * (x - alpha.to(x.dtype) * x0)
            alpha, sigma = next_alpha, next_sigma
    return x0, noisiest


def declared_reading(network: Network) -> Reading:
    """The reading that the user declared."""
    return Reading(network.prediction, network.time if isinstance(network.time, str) else OWN)


def all_readings(network: Network) -> list[Reading]:
    """All readings; time scales that tell the network the same numbers count once."""
    declared = declared_reading(network)
    probe = [at_level(network, level)[0] for level in tested_levels(network, 1.0)]
    seen: list[tuple[float, ...]] = []
    times: list[str] = []
    for time in dict.fromkeys([declared.time, *TIME_SCALES]):
        try:
            told = tuple(float(_told(network, t, time)) for t in probe)
        except ArgumentError:  # this schedule has no such scale
            continue
        if not any(
            max(abs(a - b) for a, b in zip(told, other, strict=True)) < 2e-3 * max(map(abs, other)) for other in seen
        ):
            seen.append(told)
            times.append(time)
    return [Reading(prediction, time) for time in times for prediction in PREDICTIONS]


def _told(network: Network, t: Tensor, time: str) -> Tensor:
    if time == OWN:
        return network_time(network.network_noise, t, network.time)
    return network_time(network.network_noise, t, next(known for known in TIME_SCALES if known == time))


def output_of(network: Network, x: Tensor, t: Tensor, time: str, condition: Any) -> Tensor:
    """The network's first output, NaN where it cannot be called with a time that was not declared."""
    declared = time == declared_reading(network).time
    try:
        raw = network.call(x.to(network.network_dtype or network.dtype), _told(network, t, time), condition)
    except Exception as error:
        if declared:
            raise DenoiserError(
                f"the self-check could not call the network ({type(error).__name__}: {error}): give data_condition= or "
                "null_condition= if it needs a condition, or check=False"
            ) from error
        return torch.full_like(x, math.nan)
    output = raw[0] if isinstance(raw, tuple | list) else raw
    check_kind(output, x, t)
    return output.to(x.dtype)


def data_of(output: Tensor, x: Tensor, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_0 from an output that is taken for a prediction of that kind."""
    c_skip, c_out = (c.to(x.dtype) for c in data_coefficients(prediction, alpha, sigma))
    return c_skip * x + c_out * output


def at_level(network: Network, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """Time, alpha and sigma of the network's own schedule at a noise level sigma / alpha."""
    noise = network.network_noise
    t = noise.time_of_ratio(level)
    return t, noise.alpha(t), noise.sigma(t)


def _range(network: Network) -> tuple[float, float]:
    noise = network.network_noise
    return min(float(noise.ratio(noise.t_max)), NOISIEST), max(float(noise.ratio(noise.t_min)), CLEANEST)


def tested_levels(network: Network, spread: float) -> tuple[float, ...]:
    """Noise levels for data of a standard deviation, within the schedule's range."""
    noisiest, cleanest = _range(network)
    return tuple(dict.fromkeys(min(max(level * spread, cleanest), noisiest) for level in LEVELS))


def sample_rows(network: Network) -> int:
    """Few samples of many entries, or many of few."""
    return min(256, max(8, 4096 // max(1, math.prod(network.shape))))


def unit_normals(network: Network, rows: int, seed: int) -> Tensor:
    """Unit normals for that many samples."""
    generator = torch.Generator("cpu").manual_seed(seed)
    z = torch.randn(rows, *network.shape, generator=generator, dtype=torch.float32, device="cpu")
    return z.to(device=network.device, dtype=working_dtype(network))


def working_dtype(network: Network) -> torch.dtype:
    """The states' dtype, or float32 where that is narrower: errors are small differences."""
    return torch.promote_types(network.dtype, torch.float32)
