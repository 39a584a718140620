"""Times whose order can never cross, as functions of free parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.search.gradient.numbers import Axis, constant

MARGIN = 1e-5
"""GS keeps the sigmoids of its sticks this far from 0 and 1."""
BEYOND = math.log(10.0)
"""How far below the given last time a free one may go, in lam."""


class Grid(nn.Module):
    """Times `[n+1]` that stay where they are; the parent of those that move."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.given = constant(times)

    def forward(self) -> Tensor:
        """The times, noisy to clean, strictly falling."""
        return self.given


class Moving(Grid):
    """Interior times that move; the first and the last stay, and a time at the network's least noise level too.

    Args:
        times: where they begin.
        axis: the coordinate in which they move.
        free_end: whether the last time moves too (the first cannot: the teacher begins there).

    Errors: `ArgumentError` when a free end is asked of times that end at the clean image, or no time is free.
    """

    def __init__(self, times: Tensor, axis: Axis, *, free_end: bool = False) -> None:
        super().__init__(times)
        self.axis = axis
        clean = self.given[-1].item() == axis.noise.t_clean
        if free_end and clean:
            raise ArgumentError("the times end at the clean image, which has no other place: give end='min' or a time")
        self.top, self.bottom = axis.ends
        inner = axis.place(self.given[1:-1])
        count = int((inner < self.bottom - 1e-9 * (self.bottom - self.top)).sum())  # the rest is pinned to the end
        if count < len(inner):
            self.bottom = axis.place(self.given)[count + 1].item()
        elif not clean:
            last = axis.place(self.given)[-1].item()
            lowest = axis.place(constant([axis.noise.t_clean]))[0].item() if axis.variable == "time" else math.inf
            self.bottom = min(lowest, last + BEYOND) if free_end else last
        moved = axis.place(self.given)[1 : count + 1 + free_end]
        if not len(moved):
            raise ArgumentError("these times have no free one between their ends: give more steps, or learn weights")
        self.fixed = len(self.given) - 1 - len(moved)
        self._begin((moved - self.top) / (self.bottom - self.top))

    def _begin(self, parts: Tensor) -> None:
        """Set the parameters so that `parts` comes out."""
        raise NotImplementedError

    def parts(self) -> Tensor:
        """The free times as parts of the way from the top to the bottom, strictly rising inside (0, 1)."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The times."""
        free = self.axis.time(self.top + self.parts() * (self.bottom - self.top))
        return torch.cat([self.given[:1], free, self.given[len(self.given) - self.fixed :]])


class Softmax(Moving):
    """Steps in proportion to `softmax(theta)`, one parameter a step (LD3; NeuralSolver's time steps; Bespoke solvers).

    LD3's own n + 1 parameters give the same times: the first cancels in its normalisation.
    """

    def _begin(self, parts: Tensor) -> None:
        edges = torch.cat([constant([0.0]), parts, constant([1.0])])
        self.theta = nn.Parameter(edges.diff().log())

    def parts(self) -> Tensor:
        """See `Moving`."""
        return torch.softmax(self.theta, 0).cumsum(0)[:-1]


class Sticks(Moving):
    """GS's times: what is left of a stick, `1 - cumprod(mu)`, counted from the clean end; `mu` a squeezed sigmoid."""

    def _begin(self, parts: Tensor) -> None:
        left = torch.cat([constant([1.0]), parts.flip(0)])
        mu = (left[1:] / left[:-1] - MARGIN) / (1 - 2 * MARGIN)
        if not bool(((mu > 0) & (mu < 1)).all()):
            raise ArgumentError("two of these times are too close for GS's parameters: start from other times")
        self.theta = nn.Parameter(torch.logit(mu))

    def parts(self) -> Tensor:
        """See `Moving`."""
        mu = torch.sigmoid(self.theta) * (1 - 2 * MARGIN) + MARGIN
        return mu.cumprod(0).flip(0)
