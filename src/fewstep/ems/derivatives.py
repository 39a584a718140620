"""Directional derivatives of a network: in the state, and along the probability-flow ODE."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule, as_float64

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser

STEP = 1e-2
"""Of central differences, in log-SNR and in units of the noise."""


class Derivatives(ABC):
    """Derivatives of `denoiser(x, t, condition)`, detached."""

    name: str

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def output(self, x: Tensor, time: float, condition: Any) -> Tensor:
        """x0 itself."""
        with torch.no_grad():
            return self.denoiser(x, time, condition)

    @abstractmethod
    def in_direction(self, x: Tensor, v: Tensor, time: float, condition: Any) -> Tensor:
        """`(dD/dx) v`."""

    @abstractmethod
    def along_flow(self, x: Tensor, out: Tensor, lam: float, condition: Any) -> Tensor:
        """`dD/dlam` along the trajectory through x, where D is `out`."""


def _velocity(noise: NoiseSchedule, x: Tensor, out: Tensor, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    """`dx/dlam` of the ODE, the time (0-d, float64) and `dt/dlam`: `(x / alpha)' = -(x / alpha - D)`."""
    with torch.enable_grad():
        at = as_float64(lam).clone().requires_grad_()
        time = noise.time_of_lam(at)
        alpha = noise.alpha(time)
        (rate,) = torch.autograd.grad(time, at, retain_graph=True)
        (gain,) = torch.autograd.grad(alpha, at, allow_unused=True, materialize_grads=True)
    own = alpha.item()
    return (gain.item() / own - 1.0) * x + own * out, time.detach(), rate


class Forward(Derivatives):
    """Exact, by forward-mode differentiation."""

    name = "forward"

    def in_direction(self, x: Tensor, v: Tensor, time: float, condition: Any) -> Tensor:
        """One dual call in x."""
        return self._dual(x, v, as_float64(time), None, condition)

    def along_flow(self, x: Tensor, out: Tensor, lam: float, condition: Any) -> Tensor:
        """One dual call in x and t."""
        velocity, time, rate = _velocity(self.denoiser.noise, x, out, lam)
        return self._dual(x, velocity, time, rate, condition)

    def _dual(self, x: Tensor, v: Tensor, time: Tensor, rate: Tensor | None, condition: Any) -> Tensor:
        import torch.autograd.forward_ad as forward

        with torch.no_grad(), forward.dual_level():
            at = time if rate is None else forward.make_dual(time, rate)
            out = self.denoiser(forward.make_dual(x, v), at, condition)
            tangent = forward.unpack_dual(out).tangent
        return torch.zeros_like(x) if tangent is None else tangent


class Differences(Derivatives):
    """By central differences, one-sided at the ends of the network's range."""

    name = "difference"

    def in_direction(self, x: Tensor, v: Tensor, time: float, condition: Any) -> Tensor:
        """Two calls."""
        step = STEP * self.denoiser.noise.sigma(time).item()
        ahead, behind = (self.output(x + sign * step * v, time, condition) for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    def along_flow(self, x: Tensor, out: Tensor, lam: float, condition: Any) -> Tensor:
        """Two calls."""
        noise = self.denoiser.noise
        velocity, _, _ = _velocity(noise, x, out, lam)
        ends = sorted((noise.lam(noise.t_max).item(), noise.lam(noise.t_min).item()))
        steps = [min(max(lam + d, ends[0]), ends[1]) - lam for d in (STEP, -STEP)]
        if steps[0] <= steps[1]:  # a level outside the range
            steps = [STEP, -STEP]
        ahead, behind = (self.output(x + d * velocity, noise.time_of_lam(lam + d).item(), condition) for d in steps)
        return (ahead - behind) / (steps[0] - steps[1])


def derivatives(denoiser: Denoiser, condition: Any, kind: Literal["auto", "forward", "difference"]) -> Derivatives:
    """The derivatives of a kind; "auto" tries forward mode on one sample.

    Raises:
        ArgumentError: an unknown kind, or "forward" for a network that has no forward mode.
    """
    if kind not in ("auto", "forward", "difference"):
        raise ArgumentError(f"derivative={kind!r}: choose 'auto', 'forward' or 'difference'")
    if kind == "difference":
        return Differences(denoiser)
    found = Forward(denoiser)
    x = torch.ones(1, *denoiser.shape, dtype=denoiser.dtype, device=denoiser.device)
    noise = denoiser.noise
    lam = noise.lam(noise.t_min).item()
    try:
        with warnings.catch_warnings():  # torch's own, when forward mode is first used
            warnings.simplefilter("ignore", DeprecationWarning)
            found.along_flow(x, torch.zeros_like(x), lam, condition)
    except (NotImplementedError, RuntimeError) as error:
        if kind == "forward":
            raise ArgumentError(f"the network has no forward-mode derivative ({error}): use 'difference'") from error
        return Differences(denoiser)
    return found
