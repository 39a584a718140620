"""The step formulas of other projects, written down from their published code, for any network and in float64.

Nothing here knows tables. `net(x, s)` is the network's x0 in the units of the formula; states are `[B, d]`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import expm1, factorial, log
from typing import Any

import torch
from torch import Tensor

from fewstep.noise import NoiseSchedule

Net = Callable[[Tensor, float], Tensor]
ADAMS = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def in_sigma(denoiser: Callable[[Tensor, float], Tensor], noise: NoiseSchedule) -> Net:
    """The wrapper that makes any network one of variance exploding states: it is given `alpha x` at sigma's time."""

    def net(x: Tensor, sigma: float) -> Tensor:
        t = noise.scalar_time_of_ratio(sigma)
        return denoiser(noise.alpha(t) * x, t)

    return net


def noise_of(denoiser: Callable[[Tensor, float], Tensor], noise: NoiseSchedule) -> Net:
    """The network's noise in its own states."""
    return lambda x, t: (x - noise.alpha(t) * denoiser(x, t)) / noise.sigma(t)


def dyweight(net: Net, x: Tensor, grid: list[float], W: Tensor, scale: Tensor, afs: bool) -> Tensor:
    """`dyweight_sampler`: x is the first state, W `[n, n]`, `scale` as long as the network's calls."""
    slopes: list[Tensor] = []
    t = grid[0]
    for i in range(len(grid) - 1):
        if afs and i == 0:
            slopes.append(x / (1 + t**2) ** 0.5)
        else:
            told = abs(scale[i - afs].item() * t)
            slopes.append((x - net(x, told)) / (t + 1e-8))
        x = x + (grid[i + 1] - t) * sum(W[i, j] * slopes[j] for j in range(i + 1))
        t = t + W[i, : i + 1].sum().item() * (grid[i + 1] - t)
    return x


def dyweight_flux(velocity: Net, x: Tensor, sigmas: list[float], W: Tensor, scale: Tensor) -> Tensor:
    """The loop of DyWeight's pipeline for FLUX."""
    outputs: list[Tensor] = []
    t = sigmas[0]
    for i in range(len(sigmas) - 1):
        outputs.append(velocity(x, scale[i].item() * t))
        x = x + (sigmas[i + 1] - t) * sum(W[i, j] * outputs[j] for j in range(i + 1))
        t = t + (sigmas[i + 1] - t) * W[i, : i + 1].sum().item()
    return x


def epd(
    net: Net, x: Tensor, grid: list[float], p: dict[str, Tensor], said: dict[str, Any], draws: Any = None
) -> Tensor:
    """`epd_parallel_sampler`, `ipndm_sampler` with a predictor, and `adasde_sampler` (draws are its noise)."""
    sde = "gamma_params" in p
    w = p["weight_s"].softmax(1)
    r = p["r_params"].sigmoid()

    def near_one(name: str) -> Tensor:
        raw, width = p[f"{name}_params"], said[name]
        if sde:
            return 1.0 + min(width, 0.99) * torch.tanh(raw / 2.0)
        return 2 * torch.sigmoid(0.5 * raw) * width + (1 - width)

    c, a = near_one("scale_dir"), near_one("scale_time")
    if said.get("fcn"):
        c[-1] = 1.0
    history: list[Tensor] = []
    for i in range(len(grid) - 1):
        t, after = grid[i], grid[i + 1]
        if sde and said["gamma"] and i > 0:
            share = torch.sigmoid((p["gamma_params"][i] + 2.0 * log(0.6 / 0.4)) / 2.0)
            gamma = ((said["gamma_min"] + (said["gamma"] - said["gamma_min"]) * share) * w[i]).sum().item()
            raised = (1 + gamma) * t
            x, t = x + (raised**2 - t**2) ** 0.5 * next(draws), raised
        d = x / (1 + t**2) ** 0.5 if said["afs"] and i == 0 else (x - net(x, t)) / t
        weights = ADAMS[min(said["max_order"], len(history) + 1)] if said["sampler_stu"] == "ipndm" else [1.0]
        ahead = sum(v * s for v, s in zip(weights, [d, *reversed(history)], strict=False))
        new = x
        for k in range(w.shape[1]):
            mid = after ** r[i, k].item() * t ** (1 - r[i, k].item())
            there = x + (mid - t) * ahead
            slope = (there - net(there, a[i, k].item() * mid)) / mid
            new = new + w[i, k] * c[i, k] * (after - t) * slope
        history.append(d)
        x = new
    return x


def vp_fit(low: float, high: float, eps: float) -> tuple[float, float]:
    """beta_d and beta_min of a variance preserving schedule whose sigma / alpha is low at eps and high at 1."""
    d = 2 * (log(low**2 + 1) / eps - log(high**2 + 1)) / (eps - 1)
    return d, log(high**2 + 1) - 0.5 * d


def gs(noise: Net, x: Tensor, t: list[float], xi: Tensor, c: list[Tensor], a: list[Tensor], levels: Any) -> Tensor:
    """`GeneralizedSolver.sample`; `noise(x, t)` is the network's, `levels(t)` alpha and sigma of it."""

    def data(x: Tensor, t: float, shift: float) -> Tensor:
        alpha, sigma = levels(t)
        return (x - sigma * noise(x, t + shift)) / alpha

    n = len(t) - 1
    lam = [log(levels(s)[0] / levels(s)[1]) for s in t]
    states, m = [x], [data(x, t[0], xi[0].item())]
    for i in range(1, n + 1):
        (alpha, sigma), sigma0, h = levels(t[i]), levels(t[i - 1])[1], lam[i] - lam[i - 1]
        phi1 = expm1(-h)
        new = (sigma / sigma0 + a[0][i - 1]) * x - (alpha * phi1 + c[0][i - 1]) * m[-1]
        if i >= 2:
            r0 = (lam[i - 1] - lam[i - 2]) / h
            d0 = (m[-1] - m[-2]) / r0
        if i == 2:
            new = new - (0.5 * alpha * phi1 + c[1][i - 1]) * d0
        if i >= 3:
            r1 = (lam[i - 2] - lam[i - 3]) / h
            d1 = (m[-2] - m[-3]) / r1
            first, second = d0 + r0 / (r0 + r1) * (d0 - d1), (d0 - d1) / (r0 + r1)
            phi2 = phi1 / h + 1.0
            new = new + (alpha * phi2 + c[1][i - 1]) * first - (alpha * (phi2 / h - 0.5) + c[2][i - 1]) * second
        for k in range(4, min(len(m), len(c)) + 1):
            new = new + c[k - 1][i - 1] * m[-k]
        for k in range(2, min(len(m), len(a)) + 1):
            new = new + a[k - 1][i - 1] * states[-k]
        x = new
        if i < n:
            states.append(x)
            m.append(data(x, t[i], xi[i].item()))
    return x


def neural_flow(velocity: Net, x: Tensor, steps: list[float], c: list[list[float]]) -> Tensor:
    """Flow matching's `_impl_sampling`: `velocity(x, t)` points to the data, t runs from 0."""
    t, outputs = 0.0, []
    for i, dt in enumerate(steps):
        outputs.append(velocity(x, t))
        x = x + dt * (sum(c[i][j] * outputs[j] for j in range(i)) + (1 - sum(c[i][:i])) * outputs[-1])
        t += dt
    return x


def neural_ddpm(noise: Net, x: Tensor, steps: list[float], c: list[list[float]], levels: Any, twice: bool) -> Tensor:
    """DDPM's `_impl_sampling` (twice), or `NeuralSolver.step` of their scheduler for diffusers."""
    t, outputs = 0.999, []
    for i, dt in enumerate(steps):
        (alpha, sigma), (alpha1, sigma1) = levels(max(t, 1e-3)), levels(max(t - dt, 1e-3))
        x0 = (x - sigma * noise(x, t)) / alpha
        outputs.append(x0)
        gap = alpha1 / sigma1 - alpha / sigma
        mixed = sum(c[i][j] * outputs[j] for j in range(i)) + (1 - sum(c[i][:i])) * outputs[-1]
        x = sigma1 / sigma * x + sigma1 * gap * mixed
        if twice:
            outputs.append(x0)
            x = sigma1 / sigma * x + sigma1 * gap * x0
        t -= dt
    return x


def dpmpp(data: Net, x: Tensor, t: list[float], told: list[float], order: int, levels: Any) -> Tensor:
    """LD3's `DPM_SolverPP.sample_simple`."""
    n = len(t) - 1
    lam = [log(levels(s)[0] / levels(s)[1]) for s in t]
    m = [data(x, told[0])]
    for i in range(1, n + 1):
        (alpha, sigma), sigma0, h = levels(t[i]), levels(t[i - 1])[1], lam[i] - lam[i - 1]
        now = min(order, i, n + 1 - i)
        phi1 = expm1(-h)
        new = sigma / sigma0 * x - alpha * phi1 * m[-1]
        if now >= 2:
            r0 = (lam[i - 1] - lam[i - 2]) / h
            d0 = (m[-1] - m[-2]) / r0
            if now == 2:
                new = new - 0.5 * alpha * phi1 * d0
            else:
                r1 = (lam[i - 2] - lam[i - 3]) / h
                d1 = (m[-2] - m[-3]) / r1
                phi2 = phi1 / h + 1.0
                new = new + alpha * phi2 * (d0 + r0 / (r0 + r1) * (d0 - d1))
                new = new - alpha * (phi2 / h - 0.5) * (d0 - d1) / (r0 + r1)
        x = new
        if i < n:
            m.append(data(x, told[i]))
    return x


def unipc(data: Net, x: Tensor, t: list[float], told: list[float], order: int, variant: str, levels: Any) -> Tensor:
    """LD3's `UniPC.sample_simple`: the corrector's call is the next step's."""
    n = len(t) - 1
    lam = [log(levels(s)[0] / levels(s)[1]) for s in t]
    m = [data(x, told[0])]
    for i in range(1, n + 1):
        (alpha, sigma), sigma0, h = levels(t[i]), levels(t[i - 1])[1], lam[i] - lam[i - 1]
        now = min(order, i, n + 1 - i)
        ratios = [(lam[i - 1 - k] - lam[i - 1]) / h for k in range(1, now)] + [1.0]
        gaps = [(m[-1 - k] - m[-1]) / ratios[k - 1] for k in range(1, now)]
        rk, hh = torch.tensor(ratios, dtype=torch.float64), -h
        B = hh if variant == "bh1" else expm1(hh)
        phi, rows, b = expm1(hh) / hh - 1, [], []
        for k in range(1, now + 1):
            rows.append(rk ** (k - 1))
            b.append(phi * factorial(k) / B)
            phi = phi / hh - 1 / factorial(k + 1)
        R, right = torch.stack(rows), torch.tensor(b, dtype=torch.float64)
        base = sigma / sigma0 * x - alpha * expm1(hh) * m[-1]
        predictor = [0.5] if now == 2 else torch.linalg.solve(R[:-1, :-1], right[:-1]).tolist() if now > 2 else []
        x = base - alpha * B * sum((w * g for w, g in zip(predictor, gaps, strict=True)), torch.zeros_like(x))
        if i == n:
            return x
        new = data(x, told[i])
        corrector = [0.5] if now == 1 else torch.linalg.solve(R, right).tolist()
        pull = sum((w * g for w, g in zip(corrector[:-1], gaps, strict=True)), torch.zeros_like(x))
        x = base - alpha * B * (pull + corrector[-1] * (new - m[-1]))
        m.append(new)
    return x


def ipndm(noise: Net, x: Tensor, t: list[float], told: list[float], order: int, levels: Any) -> Tensor:
    """LD3's `iPNDM.sample_simple`; with order 1 its `Euler` for EDM's networks."""
    outputs: list[Tensor] = []
    for i in range(len(t) - 1):
        (alpha, sigma), (alpha1, sigma1) = levels(t[i]), levels(t[i + 1])
        outputs.insert(0, noise(x, told[i]))
        weights = ADAMS[min(order, i + 1)]
        mixed = sum(w * e for w, e in zip(weights, outputs, strict=False))
        x = alpha1 / alpha * x - sigma1 * expm1(log(alpha1 / sigma1) - log(alpha / sigma)) * mixed
    return x
