"""DMN: times from a network-free error bound (Xue et al., "Accelerating Diffusion Sampling with Optimized Time Steps",
CVPR 2024, arXiv 2402.17376).

A multistep exponential integrator of order k writes the sample as a weighted sum of the network's outputs; if each
output errs by at most `sigma^p / alpha` (Section 3), the sample errs by at most the sum of those errors times the
absolute weights. `bound` is that sum, `dmn_times` its minimiser. Both depend on the noise schedule through
`lam = log(alpha / sigma)` alone: alpha and sigma in the bound are those of the variance-preserving process with the
same signal-to-noise ratio, so any schedule can be used.

The published code hands the bound, which is not smooth, to a trust-region method that assumes it is, and stops early
for 8 and more steps. Here the absolute values are rounded off and sharpened in five rounds, with exact gradients; the
result is the same from every start that was tried, and never above the published one.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.times.ends import End, grid

LAM_FLOOR = -5.0
"""Stands for a start with alpha = 0, where the bound is infinite: the start of the VP process that DMN was made for."""
ROUNDING = (10.0, 1.0, 0.1, 0.01, 0.001)
"""Radius of the rounded corner of |.| in the successive rounds of the minimisation."""
MIN_GAP = 0.02
"""The least step in lam, as a part of the even step."""


def bound(lams: Tensor, *, p: float = 1.0, order: int = 3, truncation: int = 3, rounding: float = 0.0) -> Tensor:
    """The error bound of a multistep sampler on the given grid (the paper's Eq. 19, as in the authors' code).

    Args:
        lams: `[n+1]` float64, `log(alpha / sigma)` of the states, rising (noisy to clean).
        p: the network's x0 error is taken as `sigma^p / alpha`; 1 for pixels, 2 for latents.
        order: highest order of the integrator, 1 to 3; it is lower at the first and last steps.
        truncation: the weights of steps before this one are bounded step by step, without cancelling against later
            ones (the authors' `truncNum`, 3 in their code).
        rounding: replaces |c| by `sqrt(c^2 + rounding^2) - rounding`.

    Returns:
        The bound, a scalar, differentiable in `lams`.
    """
    n = len(lams) - 1
    step, above = lams.diff(), lams.exp()
    error = torch.sigmoid(-2 * lams) ** (p / 2) / torch.sigmoid(2 * lams).sqrt()
    h0 = torch.expm1(step)  # h_k = integral over the step of u^k e^u du
    h1 = step.exp() * step - h0
    h2 = step.exp() * step**2 - 2 * h1
    total = lams.new_zeros(())
    summed = lams.new_zeros(n)
    for s in range(n):
        k = min(s + 1, n - s, order)
        if k == 1:
            total = total + above[s] * h0[s] * error[s]
            continue
        if k == 2:
            a = step[s - 1]
            weights = torch.stack([-h1[s] / a, (h1[s] + a * h0[s]) / a])
        else:
            a, b = step[s - 1], step[s - 2]
            old = (h2[s] + a * h1[s]) / (b * (a + b))
            middle = -(h2[s] + (a + b) * h1[s]) / (a * b)
            new = (h2[s] + (2 * a + b) * h1[s] + a * (a + b) * h0[s]) / (a * (a + b))
            weights = torch.stack([old, middle, new])
        terms = above[s] * weights * error[s - k + 1 : s + 1]
        if s < truncation:
            total = total + terms.square().sum().sqrt()
        else:
            summed = summed + torch.nn.functional.pad(terms, (s - k + 1, n - 1 - s))
    return total + ((summed.square() + rounding**2).sqrt() - rounding).sum()


def minimise(first: float, last: float, n: int, *, p: float = 1.0, order: int = 3, truncation: int = 3) -> Tensor:
    """The grid of `n` steps from lam `first` to `last` with the least bound: `[n+1]` float64, rising, deterministic.

    It is kept: solvers that compete, and searches one after the other, ask for the same grid again.
    """
    return _minimised(first, last, n, p, order, truncation).clone()


@functools.lru_cache(maxsize=256)
def _minimised(first: float, last: float, n: int, p: float, order: int, truncation: int) -> Tensor:
    # scipy takes a tenth of a second to import, which a program that only samples should not pay.
    from scipy.optimize import minimize

    span = last - first

    def grid(free: Tensor) -> Tensor:
        steps = span * (MIN_GAP / n + (1 - MIN_GAP) * torch.softmax(free, 0))
        inner = first + torch.cumsum(steps, 0)[:-1]
        return torch.cat([inner.new_tensor([first]), inner, inner.new_tensor([last])])

    def value_and_slope(free: object, rounding: float) -> tuple[float, object]:
        with torch.enable_grad():  # the caller may be inside no_grad, as samplers are
            point = torch.tensor(free, dtype=torch.float64, device="cpu", requires_grad=True)
            value = bound(grid(point), p=p, order=order, truncation=truncation, rounding=rounding).log()
            (slope,) = torch.autograd.grad(value, point)
        return value.item(), slope.numpy()

    free: object = torch.zeros(n, dtype=torch.float64, device="cpu").numpy()
    for rounding in ROUNDING:
        free = minimize(
            value_and_slope, free, args=(rounding,), jac=True, method="L-BFGS-B", options={"maxiter": 300}
        ).x
    return grid(torch.tensor(free, dtype=torch.float64, device="cpu"))


def dmn_times(
    noise: NoiseSchedule,
    n: int,
    *,
    p: float = 1.0,
    order: int = 3,
    truncation: int = 3,
    start: float | None = None,
    end: End = "zero",
) -> Tensor:
    """Times that minimise DMN's error bound for the given noise schedule; no network is needed, a few seconds.

    Args:
        noise: any noise schedule. Where alpha is 0 at the start (flow models) the bound is infinite, so the first
            state is placed at lam = -5 for the minimisation.
        n: number of steps.
        p: 1 is the authors' choice for pixels, 2 for latents.
        order, truncation: see `bound`.
        start, end: as in `fewstep.times`.

    Returns:
        `[n+1]` float64 times from noisy to clean.

    Errors: `ArgumentError` when an argument is out of range.
    """
    if not (math.isfinite(p) and p > 0):
        raise ArgumentError(f"p is {p}: give a positive exponent, 1 for pixels, 2 for latents")
    if order not in (1, 2, 3):
        raise ArgumentError(f"order is {order}: the bound is written for orders 1, 2 and 3")

    def curve(first: float, last: float, steps: int) -> Tensor:
        lams = (max(noise.lam(first).item(), LAM_FLOOR), noise.lam(last).item())
        return noise.time_of_lam(minimise(*lams, steps, p=p, order=order, truncation=truncation))

    return grid(noise, n, curve, start, end)
