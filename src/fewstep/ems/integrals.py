"""The integrals of DPM-Solver-v3 over the log signal-to-noise ratio, for coefficients l, s, b given on a grid.

With `y = x / alpha` and `f = (1 - l) y - x0` the probability-flow ODE is `y' = -l y - f`, and `f' ~ s f + b`. From s
to t, with everything relative to s (so that nothing overflows),

    L = int l,   S = int s,   drift = int e^{-S} b,
    E_k = int e^{L + S} (lam - lam_s)^k / k!,   shift = int e^{L + S} drift,
    y_t = e^{-L_t} (y_s - sum_k E_k g^(k) - shift),       g(u) = e^{-S_u} f_u - drift_u

(Zheng et al. 2023, DPM-Solver-v3, Proposition 3.1 and eq. 11.) Two rules: `exact` integrates piecewise linear l, s, b;
`Trapezoid` is the authors' own, from and to the nearest grid points.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.phi import Scalar, gauss_legendre, value

PANEL = 0.25
"""Widest panel of a quadrature; with 12 nodes the integrands are exact to rounding."""
NARROW = 0.03
"""Up to this width 6 nodes do."""
BUDGET = 1 << 21
"""Numbers in one intermediate tensor."""


class Span(NamedTuple):
    """The integrals from one log-SNR to a higher one; each has one sample's shape (or broadcasts to it)."""

    linear: Tensor
    growth: Tensor
    drift: Tensor
    moments: list[Tensor]
    shift: Tensor


class Coefficients(NamedTuple):
    """`lams` `[G]` rising, and l, s, b `[G, *shape]` at them; float64."""

    lams: Tensor
    l: Tensor  # noqa: E741 - the paper's letter
    s: Tensor
    b: Tensor


def interpolate(c: Coefficients, values: Tensor, lam: Scalar) -> Tensor:
    """The piecewise linear function through `values` `[G, *shape]` at one point."""
    j = _cells(c.lams, torch.tensor([value(lam)], dtype=torch.float64, device="cpu"))[0]
    share = (lam - c.lams[j]) / (c.lams[j + 1] - c.lams[j])
    return torch.lerp(values[j], values[j + 1], share.reshape((1,) * (values.ndim - 1)))


def exact(c: Coefficients, low: Scalar, high: Scalar, order: int) -> Span:
    """The integrals from `low` to `high` with `order` moments, l, s and b piecewise linear; to rounding.

    With `order=0` the shift is left out too (0).
    """
    edges = _edges(c.lams, low, high)
    starts, widths = edges[:-1], edges.diff()
    narrow = bool((widths.detach() <= NARROW).all())
    nodes, weights = gauss_legendre(6 if narrow else 12)
    shape = c.l.shape[1:]
    size = max(1, BUDGET // max(1, len(nodes) * shape.numel()))
    zero = torch.zeros(shape, dtype=torch.float64, device="cpu")
    linear, growth, drift, shift = zero, zero, zero, zero
    moments = [zero] * order
    for first in range(0, len(starts), size):
        panels = _Panels(c, starts[first : first + size], widths[first : first + size], nodes)
        run_l, run_s = panels.primitive(c.l, linear), panels.primitive(c.s, growth)
        rate = torch.exp(-run_s.inside) * panels.values(c.b)
        within = torch.einsum("ij,cj...->ci...", _inner(len(nodes)), rate) * panels.lift(panels.widths)
        total = torch.einsum("j,cj...->c...", weights, rate) * panels.lift(panels.widths)[:, 0]
        before = drift + torch.cat([zero[None], total.cumsum(0)])
        linear, growth, drift = run_l.end, run_s.end, before[-1]
        if not order:
            continue
        factor = torch.exp(run_l.inside + run_s.inside) * panels.lift(panels.widths) * panels.lift(weights[None])
        for k in range(order):
            power = panels.lift((panels.at - low) ** k) / math.factorial(k)
            moments[k] = moments[k] + (factor * power).sum((0, 1))
        shift = shift + (factor * (before[:-1, None] + within)).sum((0, 1))
    return Span(linear, growth, drift, moments, shift)


class _Run(NamedTuple):
    inside: Tensor
    end: Tensor


class _Panels:
    """Some neighbouring panels, each inside one cell of the grid, with quadrature nodes `at` `[C, q]`."""

    def __init__(self, c: Coefficients, starts: Tensor, widths: Tensor, nodes: Tensor) -> None:
        self.lams, self.starts, self.widths = c.lams, starts, widths
        self.cell = _cells(c.lams, starts.detach() + 0.5 * widths.detach())
        self.into = widths[:, None] * nodes
        self.at = starts[:, None] + self.into
        self.tail = c.l.ndim - 1

    def lift(self, v: Tensor) -> Tensor:
        """`[C]` or `[C, q]` as `[C, 1 or q, 1, ...]`, to multiply values by."""
        v = v if v.ndim == 2 else v[:, None]
        return v.reshape(*v.shape, *(1,) * self.tail)

    def line(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Value at the start of each panel, and slope: `[C, 1, *shape]`."""
        low, high = values[self.cell], values[self.cell + 1]
        slope = (high - low)[:, None] / self.lift(self.lams[self.cell + 1] - self.lams[self.cell])
        return low[:, None] + slope * self.lift(self.starts - self.lams[self.cell]), slope

    def values(self, values: Tensor) -> Tensor:
        """At the nodes, `[C, q, *shape]`."""
        start, slope = self.line(values)
        return start + slope * self.lift(self.into)

    def primitive(self, values: Tensor, carried: Tensor) -> _Run:
        """The integral up to the nodes, and up to the end, when it was `carried` before the first panel."""
        start, slope = self.line(values)
        whole = (start + 0.5 * slope * self.lift(self.widths)) * self.lift(self.widths)
        before = carried + torch.cat([torch.zeros_like(whole[:1, 0]), whole[:, 0].cumsum(0)])
        into = self.lift(self.into)
        return _Run(before[:-1, None] + (start + 0.5 * slope * into) * into, before[-1])


def _cells(lams: Tensor, at: Tensor) -> Tensor:
    return torch.searchsorted(lams, at.contiguous(), right=True).sub(1).clamp(0, len(lams) - 2)


def _edges(lams: Tensor, low: Scalar, high: Scalar) -> Tensor:
    """Panels from low to high: the grid's points between, and none wider than `PANEL`."""
    a, b = value(low), value(high)
    inner = lams[(lams > a) & (lams < b)]
    ends = [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device="cpu") for v in (low, high)]
    coarse = torch.cat([ends[0][None], inner, ends[1][None]])
    pieces = (coarse.detach().diff() / PANEL).ceil().clamp_min(1).long()
    index = torch.repeat_interleave(torch.arange(len(pieces), device="cpu"), pieces)
    first = pieces.cumsum(0) - pieces
    share = (torch.arange(len(index), device="cpu") - first[index]).double() / pieces[index]
    return torch.cat([torch.lerp(coarse[:-1][index], coarse[1:][index], share), coarse[-1:]])


@cache
def _inner(n: int) -> Tensor:
    """`[n, n]` weights: the integral from 0 to node i of the polynomial through the values at the nodes of [0, 1]."""
    import numpy as np
    from numpy.polynomial import legendre

    x = 2 * gauss_legendre(n)[0].numpy() - 1
    through = legendre.legvander(x, n - 1)
    primitive = np.stack([legendre.legval(x, legendre.legint(row, lbnd=-1)) for row in np.eye(n)], 1) / 2
    return torch.from_numpy(primitive @ np.linalg.inv(through))


class Trapezoid:
    """The authors' rule: every log-SNR counts as the nearest grid point, and integrals are trapezoid sums."""

    def __init__(self, c: Coefficients) -> None:
        self.c = c
        self.L, self.S = self._sums(c.l), self._sums(c.s)
        self.B = self._sums(torch.exp(-self.S) * c.b)

    def nearest(self, lam: Scalar) -> int:
        """Index of the nearest grid point."""
        return int((self.c.lams - value(lam)).abs().argmin())

    def span(self, low: Scalar, high: Scalar, order: int) -> Span:
        """The integrals from `low` to `high`, as far as the grid tells them."""
        i, j = self.nearest(low), self.nearest(high)
        part = slice(i, j + 1)
        linear, growth = self.L[part] - self.L[i], self.S[part] - self.S[i]
        drift = torch.exp(self.S[i]) * (self.B[part] - self.B[i])
        factor = torch.exp(linear + growth)
        offset = (self.c.lams[part] - self.c.lams[i]).reshape(-1, *(1,) * (factor.ndim - 1))
        moments = [self._sum(factor * offset**k / math.factorial(k), part) for k in range(order)]
        return Span(linear[-1], growth[-1], drift[-1], moments, self._sum(factor * drift, part))

    def _sum(self, values: Tensor, part: slice) -> Tensor:
        widths = self.c.lams[part].diff().reshape(-1, *(1,) * (values.ndim - 1))
        return (0.5 * widths * (values[1:] + values[:-1])).sum(0)

    def _sums(self, values: Tensor) -> Tensor:
        widths = self.c.lams.diff().reshape(-1, *(1,) * (values.ndim - 1))
        steps = 0.5 * widths * (values[1:] + values[:-1])
        return torch.cat([torch.zeros_like(values[:1]), steps.cumsum(0)])
