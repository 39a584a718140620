"""One move in numbers: how much of the start, and how much of each derivative of the expanded quantity.

From a point s to a point t, `x_t = base x_s + sum_k moments[k] F^(k)(s) + std z`, where F is the basis (x0, noise or
velocity) and the derivatives are with respect to the move's variable. One function per basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.noise import NoiseSchedule, as_float64
from fewstep.phi import Scalar, decayed_moment, exp, expm1, gauss_legendre, log, phi, root, value
from fewstep.rules import Step

QUADRATURE_POINTS = 96


@dataclass(frozen=True)
class Place:
    """A time with its noise level; scalars are floats, or 0-d tensors when the times need gradients."""

    time: Scalar
    alpha: Scalar
    sigma: Scalar
    lam: Scalar

    @property
    def clean(self) -> bool:
        """Whether sigma is 0 here."""
        return value(self.sigma) == 0.0

    @property
    def pure(self) -> bool:
        """Whether alpha is 0 here."""
        return value(self.alpha) == 0.0

    @property
    def rho(self) -> Scalar:
        """`sigma / alpha`."""
        return math.inf if self.pure else self.sigma / self.alpha

    def coordinate(self, variable: str) -> Scalar:
        """Where it is in a step's variable."""
        if variable == "lam":
            return self.lam
        if variable == "rho":
            return self.rho
        if variable == "flow":
            return self.sigma / (self.alpha + self.sigma)
        return self.time


def places(noise: NoiseSchedule, times: Tensor) -> list[Place]:
    """The places of several times; plain floats unless the times carry a graph."""
    alpha, sigma, lam = noise.levels(times)
    if times.requires_grad:
        return [Place(*row) for row in zip(times, alpha, sigma, lam, strict=True)]
    return [Place(*row) for row in zip(times.tolist(), alpha.tolist(), sigma.tolist(), lam.tolist(), strict=True)]


def place(noise: NoiseSchedule, time: Scalar) -> Place:
    """The place of one time."""
    if not isinstance(time, Tensor):
        return Place(time, *noise.scalar_levels(time))
    return places(noise, as_float64(time)[None])[0]


class Move(NamedTuple):
    """`x_t = base x_s + sum_k moments[k] F^(k) + std z`."""

    base: Scalar
    moments: list[Scalar]
    std: Scalar


def move(step: Step, s: Place, t: Place, order: int, noise: NoiseSchedule) -> Move:
    """The numbers of one step from s to t with `order` terms."""
    if step.basis == "noise" and order >= 1 and not s.pure:
        return _noise_move(step, s, t, order, noise)
    if step.basis == "velocity":
        return _velocity_move(step, s, t, order, noise)
    return _data_move(step, s, t, order, noise)


def decay(step: Step, s: Place, t: Place) -> Scalar:
    """`e^{-tau^2 h}`: the share of the noise that a stochastic step keeps."""
    if step.kernel == "er_sde":
        return er_sde_base(s, t) * s.sigma / t.sigma if not t.clean else 0.0
    if t.clean or s.pure:
        return 1.0 if not step.stochastic else 0.0
    h = t.lam - s.lam
    if step.eta > 0:
        return root(1.0 + step.eta**2 * expm1(-2.0 * h))
    return exp(-(step.tau**2) * h) if step.tau > 0 else 1.0


def er_sde_function(rho: Scalar) -> Scalar:
    """ER-SDE-Solver's default noise function over rho, `exp(rho^0.3) + 10` (Cui et al. 2023, "ER-SDE 5")."""
    return math.inf if math.isinf(value(rho)) else exp(rho**0.3) + 10.0


def er_sde_base(s: Place, t: Place) -> Scalar:
    """`alpha_t f(rho_t) / (alpha_s f(rho_s))` with f = rho * er_sde_function, written without dividing by alpha_s."""
    return t.sigma * er_sde_function(t.rho) / (s.sigma * er_sde_function(s.rho)) if not t.clean else 0.0 * t.sigma


def _data_move(step: Step, s: Place, t: Place, order: int, noise: NoiseSchedule) -> Move:
    """Data basis (DPM-Solver++ eq. 8; SA-Solver eq. 14 with tau; ER-SDE eq. 28 with its kernel)."""
    share = decay(step, s, t)
    base = er_sde_base(s, t) if step.kernel == "er_sde" else t.sigma / s.sigma * share
    moments = [t.alpha - base * s.alpha]
    std = root(t.sigma**2 - (base * s.sigma) ** 2) if step.stochastic else 0.0
    if order == 1:
        return Move(base, moments, std)
    if step.kernel == "er_sde":
        return Move(base, moments + _er_sde_moments(s, t, order), std)
    h = t.lam - s.lam
    rate = 1.0 - log(share) / h if step.eta > 0 else 1.0 + step.tau**2
    if step.variable == "lam":
        moments += [t.alpha * rate * h ** (k + 1) * phi(k + 1, -rate * h) for k in range(1, order)]
        return Move(base, moments, std)
    # Other variables: int alpha_t rate e^{-rate (lam_t - lam)} (v(lam) - v_s)^k / k! dlam, by quadrature.
    x, w = gauss_legendre(QUADRATURE_POINTS)
    lam = _tensor(s.lam) + x * _tensor(h)
    offset = _coordinate_at(noise, lam, step.variable) - _tensor(s.coordinate(step.variable))
    kernel = w * _tensor(t.alpha) * _tensor(rate) * _tensor(h) * torch.exp(_tensor(rate) * (lam - _tensor(t.lam)))
    moments += [_scalar((kernel * offset**k).sum() / math.factorial(k), h) for k in range(1, order)]
    return Move(base, moments, std)


def _er_sde_moments(s: Place, t: Place, order: int) -> list[Scalar]:
    """`(rho_t - rho_s)^k / k! + f(rho_t) int_{rho_t}^{rho_s} (rho - rho_s)^{k-1} / ((k-1)! f(rho)) drho`."""
    x, w = gauss_legendre(QUADRATURE_POINTS)
    low, high = _tensor(t.rho), _tensor(s.rho)
    width = high.log() - low.log()
    rho = torch.exp(low.log() + x * width)
    inverse = 1.0 / (torch.exp(rho**0.3) + 10.0)
    f_t = low * (torch.exp(low**0.3) + 10.0)
    out: list[Scalar] = []
    for k in range(1, order):
        integral = (w * inverse * (rho - high) ** (k - 1)).sum() * width / math.factorial(k - 1)
        moment = _tensor(t.alpha) * ((low - high) ** k / math.factorial(k) + f_t * integral)
        out.append(_scalar(moment, s.lam))
    return out


def _noise_move(step: Step, s: Place, t: Place, order: int, noise: NoiseSchedule) -> Move:
    """Noise basis (DPM-Solver eq. 3.4); finite onto sigma = 0, since `int e^{-lam} dlam` is."""
    if step.eta > 0 or step.kernel is not None:
        raise AssertionError("eta and kernels belong to the data basis")
    base = t.alpha / s.alpha
    doubled = 1.0 + step.tau**2
    scale = doubled * t.alpha * s.rho
    std = step.tau * root((t.alpha * s.rho) ** 2 - t.sigma**2)
    if step.variable == "lam":
        h = math.inf if t.clean else t.lam - s.lam
        moments = [-scale * (decayed_moment(k, h) if k else _first_moment(s, t)) for k in range(order)]
    elif step.variable == "rho":
        d = t.rho - s.rho
        moments = [doubled * t.alpha * d ** (k + 1) / math.factorial(k + 1) for k in range(order)]
    else:
        moments = [doubled * t.alpha * m for m in _time_moments(s, t, order, noise)]
    return Move(base, moments, std)


def _first_moment(s: Place, t: Place) -> Scalar:
    """`1 - e^{-h} = 1 - rho_t / rho_s`, exact at sigma_t = 0."""
    return 1.0 if t.clean else -expm1(s.lam - t.lam)


def _time_moments(s: Place, t: Place, order: int, noise: NoiseSchedule) -> list[Scalar]:
    """`int (time(rho) - time_s)^k / k! drho` by parts, so that no derivative of rho is needed (DEIS, "t-AB").

    The substitution `time = time_t + span v^2` takes out the square-root start of rho at the clean end.
    """
    x, w = gauss_legendre(QUADRATURE_POINTS)
    span = s.time - t.time
    times = _tensor(t.time) + _tensor(span) * x**2
    rho = noise.ratio(times)
    out: list[Scalar] = [t.rho - s.rho]
    for k in range(1, order):
        inner = (w * 2 * x * rho * (times - _tensor(s.time)) ** (k - 1)).sum() * _tensor(span) / math.factorial(k - 1)
        edge = _tensor(t.rho) * (-_tensor(span)) ** k / math.factorial(k)
        out.append(_scalar(edge + inner, span))
    return out


def _velocity_move(step: Step, s: Place, t: Place, order: int, noise: NoiseSchedule) -> Move:
    """Velocity: the straight path `x / (alpha + sigma)` over `u = sigma / (alpha + sigma)`, finite at its ends."""
    gain = t.alpha + t.sigma
    base = gain / (s.alpha + s.sigma)
    d = t.coordinate("flow") - s.coordinate("flow")
    return Move(base, [gain * d ** (k + 1) / math.factorial(k + 1) for k in range(order)], 0.0)


def _coordinate_at(noise: NoiseSchedule, lam: Tensor, variable: str) -> Tensor:
    if variable == "rho":
        return torch.exp(-lam)
    if variable == "flow":
        return torch.sigmoid(-lam)
    return noise.time_of_lam(lam)


def _tensor(v: Scalar) -> Tensor:
    return v if isinstance(v, Tensor) else as_float64(v)


def _scalar(v: Tensor, like: Scalar) -> Scalar:
    """A tensor inside a graph, a float outside."""
    return v if isinstance(like, Tensor) else v.item()


def scaling_factor(scaling: str | float, z: Scalar, h: Scalar) -> Scalar:
    """Factor c on the first derivative (specification of USF, section 3.5): z = +h for noise, -h for data.

    "bh1" and "bh2" are UniPC's B(h) = h and e^h - 1; "bh2" is also DPM-Solver's midpoint rule; a number r is `1 + r h`.
    """
    if isinstance(scaling, float | int):
        return 1.0 + scaling * h
    if scaling == "none":
        return 1.0
    if scaling == "bh1":
        return 0.5 / phi(2, z)
    if scaling == "bh2":
        return 0.5 * phi(1, z) / phi(2, z)
    half = 0.5 * expm1(z)
    return 1.0 + half if scaling == "+0.5exp" else 1.0 - half
