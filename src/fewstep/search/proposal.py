"""The importance sampling of Align Your Steps' Algorithm 2: where Gaussian data put the KLUB, in closed form.

For data N(0, c^2) the integrand of a step from ratio `high` down to `low` is proportional to

    pi(r) = r^-3 (1 / (r^2 + c^2) - 1 / (high^2 + c^2)),        low < r < high.

With v = c^2 / r^2, V = v(high) and w(r) = (v - V) / (1 + V) its integral from r up to `high` is

    Z1(r, high) = (w - log(1 + w)) / (2 c^4),

which is elementary and, by Newton's method on a convex function, exactly invertible: no grid, no truncation. The paper
takes these times for all data with c = 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

C = 0.5
"""The paper's c, for every data set."""
SERIES = 1e-2
"""Below this, `w - log(1 + w)` is summed as a series; the closed form cancels."""


def normaliser(low: Tensor, high: Tensor, c: float = C) -> Tensor:
    """Z1: the integral of the proposal's density over steps from `high` to `low` (broadcasting, float64)."""
    return _mass(_reach(low, high, c)) / (2 * c**4)


def quantiles(edges: Tensor, u: Tensor, c: float = C) -> tuple[Tensor, Tensor, Tensor]:
    """Ratios at the quantiles `u` of the proposal over the steps of grids, and what an estimate needs of them.

    Args:
        edges: `[m, k+1]` rising ratios, k steps each; the paper's Algorithm 2 has k = 2.
        u: `[g]` in (0, 1), the same for every grid.
        c: the deviation of the Gaussian data that the proposal is exact for.

    Returns:
        `[g, m]` each: the ratio r, the ratio `high` of the step that r lies in, and the proposal's integrand without
        r^-3, `1 / (r^2 + c^2) - 1 / (high^2 + c^2)`.
    """
    low, high = edges[:, :-1], edges[:, 1:]
    masses = normaliser(low, high, c)
    upto = masses.cumsum(1)
    wanted = u[:, None] * upto[:, -1]
    step = torch.searchsorted(upto, wanted.T.contiguous()).clamp(max=masses.shape[1] - 1)  # [m, g]
    # What is left of the step's mass above the quantile, as a part of the distance w that it belongs to.
    left = (upto.gather(1, step) - wanted.T).clamp_min(0)
    top = high.gather(1, step)
    w = torch.minimum(_inverse_mass(2 * c**4 * left), _reach(low, high, c).gather(1, step))
    v_top = (c / top) ** 2
    v = v_top + w * (1 + v_top)
    return (c / v.sqrt()).T, top.T, (w / (c**2 * (1 + v))).T


def _reach(low: Tensor, high: Tensor, c: float) -> Tensor:
    """The lower end's w, `(v(low) - V) / (1 + V)`, written without cancellation."""
    return c**2 * (high - low) * (high + low) / (low**2 * (high**2 + c**2))


def _mass(w: Tensor) -> Tensor:
    """`w - log(1 + w)`."""
    series = w**2 * (1 / 2 - w * (1 / 3 - w * (1 / 4 - w * (1 / 5 - w * (1 / 6 - w * (1 / 7 - w / 8))))))
    return torch.where(w < SERIES, series, w - torch.log1p(w))


def _inverse_mass(y: Tensor) -> Tensor:
    """The w >= 0 with `w - log(1 + w) = y`: Newton from the right, where a rising convex function is approached."""
    w = y + (2 * y).sqrt()
    for _ in range(60):
        step = (_mass(w) - y) * (1 + w) / w.clamp_min(1e-300)
        w = (w - step).clamp_min(0)
        if not bool((step.abs() > 1e-14 * w).any()):
            break
    return w
