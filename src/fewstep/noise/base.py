"""What all noise schedules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.errors import ArgumentError

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
    t_clean: ClassVar[float]
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

    def levels(self, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """`alpha`, `sigma` and `lam` together, where that is cheaper."""
        return self.alpha(t), self.sigma(t), self.lam(t)

    def scalar_levels(self, t: float) -> tuple[float, float, float]:
        """`levels` of one time as floats; tables are made of hundreds of them."""
        alpha, sigma, lam = self.levels(t)
        return alpha.item(), sigma.item(), lam.item()

    def scalar_time_of_lam(self, lam: float) -> float:
        """`time_of_lam` of one float as a float."""
        return self.time_of_lam(lam).item()

    def scalar_time_of_ratio(self, ratio: float) -> float:
        """`time_of_ratio` of one float as a float."""
        return self.time_of_ratio(ratio).item()

    def ratio(self, t: Time) -> Tensor:
        """`sigma / alpha`, the noise level in EDM's coordinates; infinite where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def time_of_ratio(self, ratio: Time) -> Tensor:
        """The time at which `sigma / alpha` is `ratio` (0 and infinity are allowed)."""
        return self.time_of_lam(-as_float64(ratio).log())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` reads it back."""
        return {"family": self.family, **asdict(self)}  # type: ignore[call-overload]


def require(ok: bool, message: str) -> None:
    """Raise ArgumentError unless ok."""
    if not ok:
        raise ArgumentError(message)
