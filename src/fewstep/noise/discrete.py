"""Schedules given as a table: the time is the integer index."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.noise.base import NoiseSchedule, Time, as_float64, require


@dataclass(frozen=True)
class Discrete(NoiseSchedule):
    """Any discrete variance-preserving schedule; the time is the integer index, and floats lie between.

    Between two indices the point (alpha, sigma) moves along the unit circle at constant speed, which is exact at the
    integers, monotone, and finite at both ends: index -1 stands for the clean image, and the last index may have
    alpha = 0 (zero terminal SNR).
    """

    alphas_cumprod: tuple[float, ...] = field(repr=False)
    recipe: tuple[str, tuple[float, ...]] | None = None
    t_min: ClassVar[float] = 0.0  # type: ignore[misc]
    t_clean: ClassVar[float] = -1.0
    family: ClassVar[str] = "discrete"

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        require(len(a) >= 2, "alphas_cumprod needs at least two entries")
        require(
            all(math.isfinite(v) and 0 <= v < 1 for v in a),
            "alphas_cumprod must lie in [0, 1): the clean image (1) is added here",
        )
        bad = next((k for k in range(1, len(a)) if a[k] >= a[k - 1]), None)
        require(bad is None, f"alphas_cumprod must fall strictly; entry {bad} does not. Give it from clean to noisy")

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: Sequence[float] | Tensor) -> Discrete:
        """From a table of cumulative products of `1 - beta` (diffusers' `scheduler.alphas_cumprod`)."""
        return Discrete(tuple(as_float64(alphas_cumprod).tolist()))

    @staticmethod
    def from_betas(betas: Sequence[float] | Tensor, *, recipe: tuple[str, tuple[float, ...]] | None = None) -> Discrete:
        """From per-step betas."""
        return Discrete(tuple(torch.cumprod(1 - as_float64(betas), 0).tolist()), recipe)

    @staticmethod
    def linear(beta_start: float = 1e-4, beta_end: float = 0.02, n: int = 1000) -> Discrete:
        """DDPM's linear betas (Ho et al. 2020)."""
        betas = torch.linspace(beta_start, beta_end, n, dtype=torch.float64, device="cpu")
        return Discrete.from_betas(betas, recipe=("linear", (beta_start, beta_end, n)))

    @staticmethod
    def scaled_linear(beta_start: float = 0.00085, beta_end: float = 0.012, n: int = 1000) -> Discrete:
        """Latent diffusion's betas, linear in their root (Rombach et al. 2022): Stable Diffusion 1, 2 and XL."""
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, n, dtype=torch.float64, device="cpu") ** 2
        return Discrete.from_betas(betas, recipe=("scaled_linear", (beta_start, beta_end, n)))

    @staticmethod
    def cosine(n: int = 1000, max_beta: float = 0.999) -> Discrete:
        """Nichol & Dhariwal's squared-cosine betas (2021)."""
        bar = torch.cos((torch.arange(n + 1, dtype=torch.float64, device="cpu") / n + 0.008) / 1.008 * math.pi / 2) ** 2
        return Discrete.from_betas((1 - bar[1:] / bar[:-1]).clamp_max(max_beta), recipe=("cosine", (n, max_beta)))

    def rescaled_to_zero_terminal_snr(self) -> Discrete:
        """The same schedule stretched so that the last index is pure noise (Lin et al. 2023, Algorithm 1)."""
        root = as_float64(self.alphas_cumprod).sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return Discrete(tuple((root**2).tolist()))

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return float(len(self.alphas_cumprod) - 1)

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor, Tensor]:
        bar = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), as_float64(self.alphas_cumprod)])
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        return alpha, sigma, torch.atan2(sigma, alpha)

    def _between(self, t: Time) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        alpha, sigma, angle = self._knots
        # take, not [k]: a compiled graph would read the number behind a 0-d index, and break.
        k = (t.detach() + 1).long().clamp(0, len(angle) - 2)
        f = t + 1 - k
        gap = angle.take(k + 1) - angle.take(k)
        whole = torch.sin(gap)
        here, there = torch.sin((1 - f) * gap) / whole, torch.sin(f * gap) / whole
        return here * alpha.take(k) + there * alpha.take(k + 1), here * sigma.take(k) + there * sigma.take(k + 1)

    def alpha(self, t: Time) -> Tensor:
        return self._between(t)[0]

    def sigma(self, t: Time) -> Tensor:
        return self._between(t)[1]

    def levels(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self._between(t)
        return alpha, sigma, alpha.log() - sigma.log()

    def lam(self, t: Time) -> Tensor:
        return self.levels(t)[2]

    @cached_property
    def _numbers(self) -> tuple[list[float], list[float], list[float]]:
        alpha, sigma, angle = self._knots
        return alpha.tolist(), sigma.tolist(), angle.tolist()

    def scalar_levels(self, t: float) -> tuple[float, float, float]:
        alphas, sigmas, angles = self._numbers
        k = min(max(int(t + 1), 0), len(angles) - 2)
        f, gap = t + 1 - k, angles[k + 1] - angles[k]
        here, there = math.sin((1 - f) * gap) / math.sin(gap), math.sin(f * gap) / math.sin(gap)
        alpha = here * alphas[k] + there * alphas[k + 1]
        sigma = here * sigmas[k] + there * sigmas[k + 1]
        lam = math.inf if sigma == 0 else -math.inf if alpha == 0 else math.log(alpha) - math.log(sigma)
        return alpha, sigma, lam

    def scalar_time_of_lam(self, lam: float) -> float:
        return self._time_of_angle(math.atan(math.exp(-lam)) if lam > -700 else math.pi / 2)

    def scalar_time_of_ratio(self, ratio: float) -> float:
        return self._time_of_angle(math.atan(ratio))

    def _time_of_angle(self, wanted: float) -> float:
        angles = self._numbers[2]
        k = min(max(bisect_right(angles, wanted) - 1, 0), len(angles) - 2)
        return (wanted - angles[k]) / (angles[k + 1] - angles[k]) + k - 1

    def time_of_lam(self, lam: Time) -> Tensor:
        wanted = torch.atan(torch.exp(-as_float64(lam)))
        angle = self._knots[2]
        k = torch.searchsorted(angle, wanted.detach().contiguous(), right=True).sub(1).clamp(0, len(angle) - 2)
        return (wanted - angle.take(k)) / (angle.take(k + 1) - angle.take(k)) + k - 1

    def to_dict(self) -> dict[str, Any]:
        if self.recipe is not None:
            return {"family": self.family, "recipe": [self.recipe[0], list(self.recipe[1])]}
        return {"family": self.family, "alphas_cumprod": list(self.alphas_cumprod)}
