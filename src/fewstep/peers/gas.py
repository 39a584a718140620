"""GS and GAS (3145tttt/GAS): checkpoints of their training, the averaged parameters of the solver.

The solver works in a variance preserving schedule in t of (0, 1], for EDM's networks too: there one is fitted to their
range of noise levels. A step is DPM-Solver++(3M)'s with a number added to each of its coefficients, and to those of all
earlier states and outputs. The network is asked at t + xi, its noise is read with alpha and sigma of t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, cast

import torch

from fewstep.builder import Form
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, NoiseSchedule, VPLinear
from fewstep.peers.held import Contents
from fewstep.peers.sheet import Sheet, mix, read_at
from fewstep.search.gradient.corrections import Generalised, Theory
from fewstep.search.gradient.numbers import Numbers
from fewstep.solvers import dpmpp_3m
from fewstep.tableau import Tableau

NAME = "GAS"
OFFSET = 1e-5
"""How far a part of the stick stays from 0 and 1."""
T_EPS = 1e-3


@dataclass(frozen=True)
class Solver:
    """The parameters: `[n-1]`, `[n]`, and for each of the last `order` states `[n]`."""

    logits: list[float]
    xi: list[float]
    c: list[list[float]]
    a: list[list[float]]


def read(contents: Contents, noise: NoiseSchedule | None, *, t_eps: float = T_EPS, ema: bool = True) -> Tableau:
    """A checkpoint `STEP.pt`, which holds neither the network's noise schedule nor t_eps (0.001 in all their files).

    Args:
        contents: of the file.
        noise: the network's: EDM's, or a discrete one.
        t_eps: the last time.
        ema: the averaged parameters, which their sampling uses, and not the last ones.
    """
    if noise is None:
        raise ArgumentError(
            f"{contents.path} does not hold the network's noise schedule: give noise= (--noise edm for EDM's networks, "
            "--noise sd for Stable Diffusion)"
        )
    if not 0 < t_eps < 1:
        raise ArgumentError(f"t_eps={t_eps:g}: give a time between 0 and 1, 0.001 in all configurations of theirs")
    solver = _solver(contents, contents.get("ema", "shadow_params") if ema else contents.get("model"))
    theirs, scale, shift = _schedule(noise, t_eps)
    times = [scale * t + shift for t in _times(solver.logits, t_eps)]
    told = [t + scale * xi for t, xi in zip(times, solver.xi, strict=False)]
    numbers = _numbers(solver, theirs, times)
    sheet = Sheet(theirs, noise)
    states, outputs = list[Form](), list[Form]()
    x = sheet.start(times[0], 1.0)
    for i, (t, tau) in enumerate(zip(times, told, strict=False)):
        x, there = sheet.ask(x, t, tau)
        states.append(x)
        outputs.append(read_at(theirs.scalar_levels(t), theirs.scalar_levels(tau), x, there))
        A, B = numbers.A[i + 1, : i + 1].tolist(), numbers.B[i + 1, : i + 1].tolist()
        x = mix(*zip(A, states, strict=True), *zip(B, outputs, strict=True))
    meta: dict[str, Any] = {"file": contents.path.name, "class": "GSWrapper", "t_eps": t_eps}
    return sheet.finished(x, times[-1], NAME, {"peer": meta})


def _solver(contents: Contents, shadow: Any) -> Solver:
    """The parameters in the order in which the wrapper registers them."""
    held = cast(list[Any], shadow) if isinstance(shadow, list) else []
    if len(held) < 8 or len(held) % 2 or any(not isinstance(p, list) for p in held):
        raise contents.broken("has no parameters of a solver of order 3 or more")
    logits, xi, *rest = held
    n = len(xi)
    if len(logits) != n - 1 or any(len(p) != n for p in rest):
        raise contents.broken(f"has parameters of other lengths than {n} steps")
    return Solver(logits, xi, rest[::2], rest[1::2])


def _times(logits: list[float], t_eps: float) -> list[float]:
    """Their stick-breaking times, from 1 down to t_eps."""
    parts = [(1 - 2 * OFFSET) / (1 + math.exp(-p)) + OFFSET for p in logits]
    inner = [(1 - left) * (1 - t_eps) + t_eps for left in accumulate(parts, mul)]
    return [t_eps, *inner, 1.0][::-1]


def _schedule(noise: NoiseSchedule, t_eps: float) -> tuple[NoiseSchedule, float, float]:
    """Their noise schedule, and how its times follow from theirs in (0, 1]: `scale t + shift`."""
    if isinstance(noise, Discrete):
        count = len(noise.alphas_cumprod)
        return noise, float(count), -1.0
    if isinstance(noise, VPLinear):
        return noise, 1.0, 0.0
    if not isinstance(noise, EDM):
        raise ArgumentError(f"GAS has solvers for EDM's networks and discrete ones, and not for {noise!r}")
    usual = VPLinear()
    low = max(usual.ratio(t_eps).item(), noise.sigma_min)
    high = min(usual.ratio(1.0).item(), noise.sigma_max)
    at_low, at_high = math.log1p(low**2), math.log1p(high**2)
    slope = 2 * (at_low / t_eps - at_high) / (t_eps - 1)
    first = at_high - slope / 2
    return VPLinear(first, first + slope, t_min=t_eps), 1.0, 0.0


def _numbers(solver: Solver, theirs: NoiseSchedule, times: list[float]) -> Numbers:
    """The weights on states and on x0."""
    grid = torch.tensor(times, dtype=torch.float64, device="cpu")
    space = Generalised(Theory(dpmpp_3m(grid, lower_order_final=False), theirs))

    def at(free: list[list[float]], i: int, k: int) -> float:
        return free[i - 1 - k][i - 1] if i - 1 - k < len(free) else 0.0

    with torch.no_grad():
        space.a.copy_(torch.tensor([at(solver.a, i, k) for i, k in space.states], dtype=torch.float64))
        space.c.copy_(torch.tensor([at(solver.c, i, k) for i, k in space.outputs], dtype=torch.float64))
        return space(grid).mapped(lambda part: part.detach())
