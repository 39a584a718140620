"""Schedules of a continuous time: variance preserving, EDM, flow matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.noise.base import NoiseSchedule, Time, as_float64, require


@dataclass(frozen=True)
class VPLinear(NoiseSchedule):
    """Variance preserving, beta linear in continuous time (Song et al. 2021): t in (0, 1]."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    t_clean: ClassVar[float] = 0.0
    family: ClassVar[str] = "vp_linear"

    def __post_init__(self) -> None:
        require(
            0 < self.beta_min < self.beta_max,
            "beta_min and beta_max must satisfy 0 < beta_min < beta_max: give e.g. 0.1 and 20",
        )
        require(0 < self.t_min < self.t_max, "t_min and t_max must satisfy 0 < t_min < t_max")

    def _log_alpha(self, t: Time) -> Tensor:
        t = as_float64(t)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Time) -> Tensor:
        return self._log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def lam(self, t: Time) -> Tensor:
        log_alpha = self._log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def time_of_lam(self, lam: Time) -> Tensor:
        slope = self.beta_max - self.beta_min
        tau = 2 * slope * torch.nn.functional.softplus(-2 * as_float64(lam), threshold=700)
        return tau / ((torch.sqrt(self.beta_min**2 + tau) + self.beta_min) * slope)


@dataclass(frozen=True)
class VPCosine(NoiseSchedule):
    """Variance preserving, alpha a cosine of continuous time (Nichol & Dhariwal 2021)."""

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    t_clean: ClassVar[float] = 0.0
    family: ClassVar[str] = "vp_cosine"

    def _angle(self, t: Time) -> Tensor:
        return (as_float64(t) + self.offset) / (1 + self.offset) * (math.pi / 2)

    @property
    def _scale(self) -> float:
        return math.cos(self.offset / (1 + self.offset) * math.pi / 2)

    def alpha(self, t: Time) -> Tensor:
        return self._angle(t).cos() / self._scale

    def sigma(self, t: Time) -> Tensor:
        # 1 - alpha^2 as a product of differences of cosines: exact near t = 0, where alpha rounds to 1.
        start, angle = self._angle(0.0), self._angle(t)
        return (torch.sin(angle - start) * torch.sin(angle + start)).clamp_min(0).sqrt() / self._scale

    def time_of_lam(self, lam: Time) -> Tensor:
        lam = as_float64(lam)
        alpha = torch.sigmoid(2 * lam).sqrt()
        return torch.acos(alpha * self._scale) * (1 + self.offset) / (math.pi / 2) - self.offset


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Variance exploding in EDM's coordinates (Karras et al. 2022): alpha = 1, sigma = t."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_clean: ClassVar[float] = 0.0
    family: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max,
            "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max: give e.g. 0.002 and 80",
        )

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.sigma_max

    def alpha(self, t: Time) -> Tensor:
        return 1 + 0 * as_float64(t)

    def sigma(self, t: Time) -> Tensor:
        return as_float64(t)

    def levels(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.alpha(t), self.sigma(t)
        return alpha, sigma, alpha.log() - sigma.log()

    def time_of_lam(self, lam: Time) -> Tensor:
        return torch.exp(-as_float64(lam))

    def time_of_ratio(self, ratio: Time) -> Tensor:
        return as_float64(ratio)


@dataclass(frozen=True)
class Flow(NoiseSchedule):
    """Flow matching on straight paths: `x = (1 - s) x_0 + s eps` with `s = shift t / (1 + (shift - 1) t)`.

    The time t is uniform on [0, 1] before the shift (SD3, Flux, Wan); what the network is told is s times 1000.
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0
    t_clean: ClassVar[float] = 0.0
    family: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        require(self.shift > 0, "shift must be positive: 1 means no shift, 3 is SD3's")
        require(0 < self.t_min < self.t_max <= 1, "t_min and t_max must satisfy 0 < t_min < t_max <= 1")

    def alpha(self, t: Time) -> Tensor:
        t = as_float64(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Time) -> Tensor:
        t = as_float64(t)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time_of_lam(self, lam: Time) -> Tensor:
        return torch.sigmoid(-(as_float64(lam) + math.log(self.shift)))
