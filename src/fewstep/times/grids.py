"""Hand-crafted grids of times, each a straight line (or a known bend) in some variable.

All of them are functions `name(noise, n, *, start=None, end="zero", clip=False, ...)` that return `[n+1]` float64 times
in the unit of `noise`, from noisy to clean, strictly falling, exact at the ends; see `fewstep.times.grid` for `start`,
`end`, `clip` and the errors.

Noise levels are compared as the ratio `sigma / alpha` (EDM's sigma), in which a network's noise schedule is irrelevant.
Where the first state has alpha = 0 (flow models, zero terminal SNR) the ratio is infinite. Variables that stay finite
(time, flow, angle) need no care, the others count the first state as one over the ratio at `t_min`, the mirror image of
the clean end. The first time itself is always exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import EDM, NoiseSchedule, as_float64
from fewstep.times.ends import End, grid

Variable = Literal["ratio", "flow", "time"]
"""ratio: `sigma / alpha`. flow: `sigma / (alpha + sigma)`, sigma itself for flow models. time: the schedule's own."""
Map = Callable[[Tensor], Tensor]


NO_IMAGE = 1e6
"""Above this ratio nothing of the image is left in float32, and a line in the ratio would waste its times there."""


class Ends(TypedDict, total=False):
    """The arguments that all grids share."""

    start: float | None
    end: End
    clip: bool


def _fractions(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ArgumentError(f"{name} is {value}: give a positive number")
    return float(value)


def finite_ratio(noise: NoiseSchedule, first: float, last: float) -> Tensor:
    """The ratios of two times, `[2]`; a first one without an image is the mirror image of the clean end."""
    ratios = noise.ratio(as_float64([first, last]))
    if ratios[0] > NO_IMAGE:
        ratios[0] = torch.maximum(1 / noise.ratio(noise.t_min), 10 * ratios[1])
    return ratios


def _ends_in(noise: NoiseSchedule, variable: Variable, first: float, last: float) -> Tensor:
    """The values of a variable at two times, `[2]`, both finite."""
    t = as_float64([first, last])
    if variable == "time":
        return t
    if variable == "flow":
        return noise.sigma(t) / (noise.alpha(t) + noise.sigma(t))
    if variable == "ratio":
        return finite_ratio(noise, first, last)
    raise ArgumentError(f'variable is {variable!r}: give "ratio", "flow" or "time"')


def _time_of(noise: NoiseSchedule, variable: Variable, value: Tensor) -> Tensor:
    """The times at which the variable has these values."""
    if variable == "time":
        return value
    return noise.time_of_ratio(value / (1 - value) if variable == "flow" else value)


def _straight(
    noise: NoiseSchedule, n: int, ends: Ends, variable: Variable, to: Map, back: Map, bend: Map | None = None
) -> Tensor:
    """A straight line in `to(variable)`, or one walked along at the uneven fractions `bend(u)`."""

    def curve(first: float, last: float, steps: int) -> Tensor:
        top, bottom = to(_ends_in(noise, variable, first, last)).unbind()
        u = _fractions(steps)
        return _time_of(noise, variable, back(torch.lerp(top, bottom, bend(u) if bend else u)))

    return grid(noise, n, curve, **ends)


def _same(x: Tensor) -> Tensor:
    return x


def uniform(noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """Uniform in the schedule's own time: DDPM's and DDIM's choice, and flow models' own grid with its shift.

    With the default end this is what LDM-type UIs call "SGM uniform", with `end="append"` their "normal".
    """
    return _straight(noise, n, ends, "time", _same, _same)


def quadratic(noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """Uniform in the root of the schedule's own time (Song, Meng & Ermon, DDIM, ICLR 2021): finer near the image."""
    return _straight(noise, n, ends, "time", torch.sqrt, torch.square)


def logsnr(noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """Uniform in `lam = log(alpha / sigma)` (Lu et al., DPM-Solver, NeurIPS 2022)."""
    return _straight(noise, n, ends, "ratio", torch.log, torch.exp)


def exponential(noise: NoiseSchedule, n: int, *, variable: Variable = "ratio", **ends: Unpack[Ends]) -> Tensor:
    """Uniform in the logarithm of the noise level (k-diffusion's `get_sigmas_exponential`, there with `end="append"`).

    The same as `logsnr` unless `variable="flow"`, which is what diffusers does for flow models.
    """
    return _straight(noise, n, ends, variable, torch.log, torch.exp)


def polyexponential(
    noise: NoiseSchedule, n: int, *, rho: float = 1.0, variable: Variable = "ratio", **ends: Unpack[Ends]
) -> Tensor:
    """A power of the fraction in the logarithm of the noise level (k-diffusion's `get_sigmas_polyexponential`)."""
    power = _positive("rho", rho)
    return _straight(noise, n, ends, variable, torch.log, torch.exp, lambda u: 1 - (1 - u) ** power)


def karras(
    noise: NoiseSchedule, n: int, *, rho: float = 7.0, variable: Variable = "ratio", **ends: Unpack[Ends]
) -> Tensor:
    """Uniform in the rho-th root of the noise level (Karras et al., EDM, NeurIPS 2022, eq. 5).

    rho = 1 is uniform in sigma, rho to infinity is `logsnr`. EDM, k-diffusion and diffusers use `end="append"`, papers
    on few-step solvers `end="min"`. For flow models diffusers and ComfyUI use `variable="flow"`.
    """
    power = _positive("rho", rho)
    return _straight(noise, n, ends, variable, lambda x: x ** (1 / power), lambda y: y**power)


def tangent(noise: NoiseSchedule, n: int, *, c: float = 0.5, **ends: Unpack[Ends]) -> Tensor:
    """`ratio = c tan(angle)` with the angle uniform: the best times for Euler on Gaussian data of deviation c.

    Sabour, Fidler & Kreis (Align Your Steps, ICML 2024), Theorem 3.1.
    """
    scale = _positive("c", c)

    def curve(first: float, last: float, steps: int) -> Tensor:
        t = as_float64([first, last])
        top, bottom = torch.atan2(noise.sigma(t), scale * noise.alpha(t)).unbind()
        return noise.time_of_ratio(scale * torch.tan(torch.lerp(top, bottom, _fractions(steps))))

    return grid(noise, n, curve, **ends)


def cosine_logsnr(noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """`log snr = -2 log tan(angle)` with the angle uniform: the cosine schedule between the given ends.

    Nichol & Dhariwal (ICML 2021) as written by Hoogeboom et al. (simple diffusion, ICML 2023); UIs call it "KL
    optimal". It is `tangent` with c = 1.
    """
    return tangent(noise, n, c=1.0, **ends)


def beta(
    noise: NoiseSchedule,
    n: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    variable: Variable = "time",
    **ends: Unpack[Ends],
) -> Tensor:
    """At the quantiles of a Beta distribution, dense at both ends (Lee et al., Beta Sampling is All You Need, 2024).

    ComfyUI lays the quantiles in the time, as here, then rounds to whole indices; diffusers lays them in sigma
    (`variable="ratio"`, for flow models `"flow"`) with `end="append"`.
    """
    from scipy.special import betaincinv

    a, b = _positive("a", a), _positive("b", b)

    def bend(u: Tensor) -> Tensor:
        return 1 - as_float64(betaincinv(a, b, (1 - u).numpy()).tolist())

    return _straight(noise, n, ends, variable, _same, _same, bend)


def vp_uniform(noise: NoiseSchedule, n: int, *, rho: float = 1.0, eps: float = 1e-3, **ends: Unpack[Ends]) -> Tensor:
    """Uniform in the rho-th root of the time of that VP-linear process which spans the same noise levels.

    The "time uniform" grid of the few-step literature for EDM networks (Chen et al., GITS; DEIS with rho = 2): the
    process runs from time 1 to `eps`.
    """
    power = _positive("rho", rho)
    eps = _positive("eps", eps)

    def curve(first: float, last: float, steps: int) -> Tensor:
        loudest, quietest = torch.log1p(finite_ratio(noise, noise.t_max, noise.t_min) ** 2).unbind()
        # A process with falling beta would not be monotone; where the levels ask for one, beta is held constant.
        slope = (2 * (quietest / eps - loudest) / (eps - 1)).clamp_min(0)
        base = loudest - slope / 2

        def vp_time(ratio: Tensor) -> Tensor:
            level = torch.log1p(ratio**2)
            return 2 * level / (base + torch.sqrt(base**2 + 2 * slope * level))

        top, bottom = (vp_time(finite_ratio(noise, first, last)) ** (1 / power)).unbind()
        s = torch.lerp(top, bottom, _fractions(steps)) ** power
        return noise.time_of_ratio(torch.sqrt(torch.expm1(slope * s**2 / 2 + base * s)))

    return grid(noise, n, curve, **ends)


def flow_shift(noise: NoiseSchedule, n: int, *, shift: float = 3.0, **ends: Unpack[Ends]) -> Tensor:
    """Flow models' shifted grid on any schedule: `sigma / (alpha + sigma) = shift u / (1 + (shift - 1) u)`, u uniform.

    Esser et al. (Stable Diffusion 3, ICML 2024), eq. 23. On `Flow(shift=k)` it is `uniform` for the same shift.
    """
    k = _positive("shift", shift)
    return _straight(noise, n, ends, "flow", lambda s: s / (k - (k - 1) * s), lambda u: k * u / (1 + (k - 1) * u))


def laplace(noise: NoiseSchedule, n: int, *, mu: float = 0.0, b: float = 0.5, **ends: Unpack[Ends]) -> Tensor:
    """At the quantiles of a Laplace distribution of log sigma (Hang et al., Improved Noise Schedule, 2024).

    The distribution is cut at the two ends, so that no two times coincide; UIs clamp instead.
    """
    b = _positive("b", b)

    def cumulative(ratio: Tensor) -> Tensor:
        z = (ratio.log() - mu) / b
        return torch.where(z < 0, 0.5 * torch.exp(z.clamp_max(0)), 1 - 0.5 * torch.exp(-z.clamp_min(0)))

    def quantile(q: Tensor) -> Tensor:
        return torch.exp(mu - b * torch.sign(q - 0.5) * torch.log(2 * torch.minimum(q, 1 - q)))

    return _straight(noise, n, ends, "ratio", cumulative, quantile)


def cosine(noise: NoiseSchedule, n: int, *, variable: Variable = "ratio", **ends: Unpack[Ends]) -> Tensor:
    """A half wave in the root of the fraction, in sigma: the "cosine" of WebUI's extra schedulers."""
    return _straight(noise, n, ends, variable, _same, _same, lambda u: 0.5 * (1 + torch.cos(math.pi * (1 - u.sqrt()))))


def sgm_uniform(noise: NoiseSchedule, n: int, **ends: Unpack[Ends]) -> Tensor:
    """ComfyUI's "sgm_uniform": uniform in what the network is told, the last point replaced by zero noise.

    That is `uniform`, and `logsnr` for EDM networks, which are told log sigma.
    """
    return logsnr(noise, n, **ends) if isinstance(noise, EDM) else uniform(noise, n, **ends)
