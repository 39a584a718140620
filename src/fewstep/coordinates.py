"""From the states of a sampler to the input of a network, and from its output to x_0: what one time means."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.conventions import (
    Prediction,
    TimeScale,
    data_coefficients,
    network_time,
    own_time_scale,
    require_alpha,
)
from fewstep.noise import NoiseSchedule, Time, as_float64

MOST_KEPT = 4096


class Meaning(NamedTuple):
    """What one time means to a network: its input is `scale x`, and `x_0 = skip * input + gain * output`."""

    told: Tensor
    """what the network is told, 0-d"""
    scale: float | Tensor | None
    skip: float | Tensor
    gain: float | Tensor


class Coordinates:
    """The states' noise schedule beside the network's own schedule, prediction and time scale.

    Args:
        noise: schedule of the states.
        network_noise: schedule that the network was trained on, if it is another.
        prediction: what the network predicts.
        time: what it is told; by default what its family of schedules uses.

    Raises:
        ArgumentError: the network's schedule has no such time scale.
    """

    def __init__(
        self,
        noise: NoiseSchedule,
        network_noise: NoiseSchedule | None,
        prediction: Prediction,
        time: TimeScale | Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.noise = noise
        self.network_noise = noise if network_noise is None else network_noise
        self.foreign = self.network_noise != noise
        self.prediction: Prediction = prediction
        self.time: TimeScale | Callable[[Tensor], Tensor] = own_time_scale(self.network_noise) if time is None else time
        self._kept: dict[float, Meaning] = {}
        network_time(self.network_noise, as_float64(self.network_noise.t_max), self.time)  # an unknown scale fails here

    def at(self, t: Time) -> Meaning:
        """What a time of the states means to the network.

        It is kept for plain numbers, since the few float64 operations behind it take as long as a whole step of a
        sampler.

        Raises:
            DenoiserError: alpha is 0, and the prediction says nothing about x_0 there.
        """
        if isinstance(t, Tensor) or torch.compiler.is_compiling():
            return self._at(t)
        kept = self._kept.get(t)
        if kept is None:
            told, scale, skip, gain = self._at(t)
            kept = Meaning(told, None if scale is None else float(scale), float(skip), float(gain))
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[t] = kept
        return kept

    def _at(self, t: Time) -> Meaning:
        own_t, scale, alpha, sigma = self._translated(t)
        require_alpha(self.prediction, alpha, t)
        skip, gain = data_coefficients(self.prediction, alpha, sigma)
        return Meaning(network_time(self.network_noise, own_t, self.time), scale, skip, gain)

    def _translated(self, t: Time) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """`(time, scale, alpha, sigma)` of the network's own schedule at this noise level."""
        if not self.foreign:
            return as_float64(t), None, self.noise.alpha(t), self.noise.sigma(t)
        own_t = self.network_noise.time_of_ratio(self.noise.ratio(t))
        alpha, sigma = self.network_noise.alpha(own_t), self.network_noise.sigma(own_t)
        # Not alpha / alpha: a flow model's alpha is 0 at the start.
        scale = torch.sqrt((alpha**2 + sigma**2) / (self.noise.alpha(t) ** 2 + self.noise.sigma(t) ** 2))
        return own_t, scale, alpha, sigma
