"""What analytic problems share: data whose noised law is known exactly, under any noise schedule."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.fingerprint import fingerprint_of, parameters_digest
from fewstep.noise import EDM, NoiseSchedule, Time, as_float64


class Problem(ABC):
    """Data with a known law: its exact denoiser, score and log-density at any noise level, and exact samples.

    States are `[B, *shape]` of any floating dtype and results come back in it; the sums run in float64 (in float32
    where a device has none). Everything is differentiable in x and in the time, a float or a 0-d tensor.

    Attributes:
        noise: the schedule of the states.
        shape: shape of one sample; `size` is its number of entries d.
        name, description: what the catalogue says of it.
    """

    description: str = ""
    null_condition: Any = None

    def __init__(self, shape: Sequence[int], noise: NoiseSchedule | None, name: str) -> None:
        self.noise = EDM(0.002, 80.0) if noise is None else noise
        self.shape = tuple(int(n) for n in shape)
        self.size = 1
        for n in self.shape:
            self.size *= n
        self.name = name

    @abstractmethod
    def denoise(self, x: Tensor, t: Time, condition: Any = None) -> Tensor:
        """The exact `E[x_0 | x_t = x]` `[B, *shape]` of states x `[B, *shape]`."""

    @abstractmethod
    def score(self, x: Tensor, t: Time | None = None, condition: Any = None) -> Tensor:
        """The exact gradient of `log p_t` at x `[B, *shape]`; of the clean law without t."""

    @abstractmethod
    def log_density(self, x: Tensor, t: Time | None = None, condition: Any = None) -> Tensor:
        """The exact `log p_t(x)` `[B]` in nats; of the clean law without t."""

    @abstractmethod
    def sample(self, n: int, seed: int = 0, *, condition: Any = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Exact clean samples `[n, *shape]` on the CPU; the same for the same n and seed."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by attribute name."""

    def nll(self, samples: Tensor) -> float:
        """Mean of `-log p(x)` over samples `[n, *shape]`, in nats; over exact samples it is the entropy, its floor."""
        if samples.shape[1:] != self.shape or not len(samples):
            raise ArgumentError(f"samples have shape {tuple(samples.shape)}: give one or more of shape {self.shape}")
        with torch.no_grad():
            wide = samples.to(_work_dtype(samples.device.type))
            total = sum(float(self.log_density(block).sum()) for block in wide.split(16384))
        return -total / len(samples)

    def denoiser(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        check_finite: bool | None = None,
    ) -> Denoiser:
        """The exact denoiser, as samplers call it."""
        digest = parameters_digest(self.tensors(), samples=self.size * 4096)
        return Denoiser(
            self.to(device).denoise,
            noise=self.noise,
            shape=self.shape,
            device=device,
            dtype=dtype,
            null_condition=self.null_condition,
            fingerprint=fingerprint_of(type(self).__name__, digest, self.shape, self.noise.to_dict()),
            check_finite=check_finite,
        )

    def to(self, device: torch.device | str) -> Self:
        """The same problem with its parameters on a device."""
        moved = copy.copy(self)
        kind = torch.device(device).type
        for name, value in self.tensors().items():
            wide = value.to(device="cpu", dtype=_work_dtype(kind)) if value.is_floating_point() else value
            setattr(moved, name, wide.to(device))
        return moved

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or 'problem'} {self.shape} on {self.noise!r}>"

    def _levels(self, t: Time | None) -> tuple[Tensor, Tensor]:
        if t is None:
            return as_float64(1.0), as_float64(0.0)
        return self.noise.alpha(t), self.noise.sigma(t)

    def _flat(self, x: Tensor) -> Tensor:
        """States as `[B, d]` in the dtype of the sums."""
        if x.ndim < 1 or x.shape[1:] != self.shape:
            raise ArgumentError(f"x has shape {tuple(x.shape)}: give states [B, *{self.shape}]")
        return x.reshape(len(x), self.size).to(_work_dtype(x.device.type))

    def _like(self, flat: Tensor, x: Tensor) -> Tensor:
        return flat.reshape(x.shape).to(x.dtype)


def _work_dtype(device_type: str) -> torch.dtype:
    return torch.float32 if device_type == "mps" else torch.float64


def check_covariance(matrix: Tensor, argument: str) -> tuple[Tensor, Tensor]:
    """`(eigenvalues [..., d], eigenvectors [..., d, d])` of symmetric positive definite matrices.

    Raises:
        ArgumentError: not symmetric, or not positive definite.
    """
    if float((matrix - matrix.mT).abs().max()) > 1e-10 * float(matrix.abs().max()):
        raise ArgumentError(f"{argument} is not symmetric: give (c + c.T) / 2")
    values, vectors = torch.linalg.eigh(matrix)
    check_variances(values, argument)
    return values, vectors


def check_variances(values: Tensor, argument: str) -> None:
    """Refuse variances that are not finite and positive."""
    if not bool(torch.isfinite(values).all()) or float(values.min()) <= 0:
        raise ArgumentError(
            f"{argument} has a variance of {float(values.min()):g}: give positive ones, with a floor such as 1e-6"
        )
