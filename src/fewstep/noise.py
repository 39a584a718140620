"""Noise schedules: `x_t = alpha(t) x_0 + sigma(t) eps`.

A schedule is a small frozen value that knows its own time unit (seconds of a VP process, the integer index of a discrete
one, sigma itself for EDM). Every function takes a float or a float64 tensor and returns float64 tensors on the CPU,
whatever the user's default device or dtype, and is differentiable in the time. `lam` is half the log signal-to-noise
ratio, `log(alpha / sigma)`: plus infinity at the clean end, minus infinity where alpha is 0 (flow models).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, FileFormatError

Time = float | Tensor


def as_float64(value: Time | Sequence[float]) -> Tensor:
    """The value as a float64 CPU tensor; keeps the graph of a tensor that needs gradients."""
    if isinstance(value, Tensor):
        return value.to(device="cpu", dtype=torch.float64)
    return torch.tensor(value, dtype=torch.float64, device="cpu")


class NoiseSchedule(ABC):
    """What all schedules share. Subclasses give `alpha`, `sigma` and `time_of_lam`."""

    family: ClassVar[str]
    t_max: float
    """The noisiest time that the network knows; sampling starts there."""
    t_min: float
    """The least noisy time that the network knows."""
    t_clean: float
    """The time of a clean image, sigma = 0. A state may be there; the network is never called there."""

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Weight of the clean image at time t."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Weight of the unit noise at time t."""

    @abstractmethod
    def time_of_lam(self, lam: Time) -> Tensor:
        """The time at which `log(alpha / sigma)` is lam; the inverse of `lam`."""

    def lam(self, t: Time) -> Tensor:
        """Half the log signal-to-noise ratio, `log(alpha / sigma)`."""
        return self.alpha(t).log() - self.sigma(t).log()

    def ratio(self, t: Time) -> Tensor:
        """`sigma / alpha`, the noise level in EDM's coordinates; infinite where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def time_of_ratio(self, ratio: Time) -> Tensor:
        """The time at which `sigma / alpha` is `ratio` (0 and infinity are allowed)."""
        return self.time_of_lam(-as_float64(ratio).log())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` reads it back."""
        return {"family": self.family, **asdict(self)}  # type: ignore[call-overload]


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ArgumentError(message)


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
        _require(0 < self.beta_min < self.beta_max, "beta_min and beta_max must satisfy 0 < beta_min < beta_max: give e.g. 0.1 and 20")
        _require(0 < self.t_min < self.t_max, "t_min and t_max must satisfy 0 < t_min < t_max")

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
        _require(len(a) >= 2, "alphas_cumprod needs at least two entries")
        _require(all(math.isfinite(v) and 0 <= v < 1 for v in a), "alphas_cumprod must lie in [0, 1): the clean image (1) is added here")
        bad = next((k for k in range(1, len(a)) if a[k] >= a[k - 1]), None)
        _require(bad is None, f"alphas_cumprod must fall strictly; entry {bad} does not. Give it from clean to noisy")

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

    def _between(self, t: Time, values: Tensor) -> Tensor:
        t = as_float64(t)
        angle = self._knots[2]
        k = torch.floor(t.detach() + 1).long().clamp(0, len(angle) - 2)
        f = t + 1 - k
        gap = angle[k + 1] - angle[k]
        whole = torch.sin(gap)
        return torch.sin((1 - f) * gap) / whole * values[k] + torch.sin(f * gap) / whole * values[k + 1]

    def alpha(self, t: Time) -> Tensor:
        return self._between(t, self._knots[0])

    def sigma(self, t: Time) -> Tensor:
        return self._between(t, self._knots[1])

    def time_of_lam(self, lam: Time) -> Tensor:
        wanted = torch.atan(torch.exp(-as_float64(lam)))
        angle = self._knots[2]
        k = torch.searchsorted(angle, wanted.detach().contiguous(), right=True).sub(1).clamp(0, len(angle) - 2)
        return (wanted - angle[k]) / (angle[k + 1] - angle[k]) + k - 1

    def to_dict(self) -> dict[str, Any]:
        if self.recipe is not None:
            return {"family": self.family, "recipe": [self.recipe[0], list(self.recipe[1])]}
        return {"family": self.family, "alphas_cumprod": list(self.alphas_cumprod)}


@dataclass(frozen=True)
class EDM(NoiseSchedule):
    """Variance exploding in EDM's coordinates (Karras et al. 2022): alpha = 1, sigma = t."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_clean: ClassVar[float] = 0.0
    family: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        _require(0 < self.sigma_min < self.sigma_max, "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max: give e.g. 0.002 and 80")

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
        _require(self.shift > 0, "shift must be positive: 1 means no shift, 3 is SD3's")
        _require(0 < self.t_min < self.t_max <= 1, "t_min and t_max must satisfy 0 < t_min < t_max <= 1")

    def alpha(self, t: Time) -> Tensor:
        t = as_float64(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Time) -> Tensor:
        t = as_float64(t)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time_of_lam(self, lam: Time) -> Tensor:
        return torch.sigmoid(-(as_float64(lam) + math.log(self.shift)))


FAMILIES: dict[str, type[NoiseSchedule]] = {c.family: c for c in (VPLinear, VPCosine, Discrete, EDM, Flow)}


def from_dict(record: dict[str, Any]) -> NoiseSchedule:
    """The schedule that `to_dict` wrote.

    Raises:
        FileFormatError: unknown family or missing fields.
    """
    values = dict(record)
    family = FAMILIES.get(values.pop("family", None))  # type: ignore[arg-type]
    if family is None:
        raise FileFormatError(f"unknown noise family {record.get('family')!r}; this version knows {', '.join(FAMILIES)}")
    try:
        if family is Discrete:
            if "recipe" in values:
                name, args = values["recipe"]
                if name not in ("linear", "scaled_linear", "cosine"):
                    raise FileFormatError(f"unknown recipe {name!r} for a discrete noise schedule")
                n = -1 if name != "cosine" else 0
                args = [int(v) if k == n % len(args) else v for k, v in enumerate(args)]
                return getattr(Discrete, name)(*args)
            return Discrete(tuple(values["alphas_cumprod"]))
        return family(**{f.name: values[f.name] for f in fields(family) if f.name in values})  # type: ignore[arg-type]
    except (TypeError, KeyError, ValueError) as error:
        raise FileFormatError(f"damaged record of noise family {family.family!r}: {error}") from error
