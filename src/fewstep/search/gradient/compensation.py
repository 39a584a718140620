"""DC-Solver: from the third step on, the newest output is replaced by a Lagrange interpolant at a shifted time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.search.gradient.corrections import Theory
from fewstep.search.gradient.numbers import Axis, Numbers

POINTS = 3
"""Outputs in the interpolant (the authors' dc_order = 2)."""


class Compensated(nn.Module):
    """A multistep solver (UniPC in the paper) with one ratio rho a step, from the third on; rho = 1 changes nothing.

    The interpolant is taken at `rho t + (1 - rho) t_previous`, in the coordinate of the axis, and takes the place of
    the output for good: later steps read it. A corrector compares with the output as it came.

    Errors: `ArgumentError` for fewer than three calls, or several calls a step.
    """

    def __init__(self, theory: Theory, axis: Axis) -> None:
        super().__init__()
        self.theory, self.axis = theory, axis
        n = theory(theory.schedule.times)
        calls = n.calls
        if len(calls) < POINTS or len({n.times[j].item() for j in calls}) < len(calls) or calls[0] != 0:
            raise ArgumentError(
                "DC-Solver compensates from the third step on: give a multistep solver, 3 calls or more"
            )
        if len(calls) != len(theory.schedule.times) - 1:
            raise ArgumentError(f"{theory.schedule.name} makes several calls a step: give a multistep solver (unipc)")
        if int((n.A != 0).sum(1).max()) > 1:
            raise ArgumentError("DC-Solver interpolates what a data-basis solver reads: start from unipc or dpmpp")
        self.first = next(k for k in range(POINTS - 1, len(calls) + 1) if self._finite(n, k))
        if self.first >= len(calls):
            raise ArgumentError("DC-Solver needs three calls at finite places of its axis: give more steps")
        self.rho = nn.Parameter(torch.ones(len(calls) - self.first, dtype=torch.float64, device="cpu"))

    def _finite(self, n: Numbers, k: int) -> bool:
        """Whether the POINTS calls up to call k lie at finite places of the axis."""
        rows = n.calls[k - POINTS + 1 : k + 1]
        return k >= len(n.calls) or bool(torch.isfinite(self.axis.place(n.times[rows])).all())

    def forward(self, times: Tensor) -> Numbers:
        """The numbers at these times."""
        n = self.theory(times)
        place = self.axis.place(n.times)
        stored: dict[int, Tensor] = {}
        eye = torch.eye(len(n.times), dtype=torch.float64, device="cpu")
        for k, row in enumerate(n.calls):
            stored[row] = eye[row]
            if k >= self.first:
                points = [n.calls[k - back] for back in range(POINTS)]
                rho = self.rho[k - self.first]
                at = rho * place[points[0]] + (1 - rho) * place[points[1]]
                shares = lagrange(place[torch.tensor(points, device="cpu")], at)
                stored[row] = torch.stack([w * stored[p] for w, p in zip(shares, points, strict=True)]).sum(0)
        rows: list[Tensor] = []
        for i in range(len(n.times)):
            newest = max((j for j in n.calls if j < i), default=-1)
            corrector = not n.evaluated[i] and i < len(n.times) - 1
            parts = [n.B[i, j] * (eye[j] if corrector and j == newest else stored[j]) for j in n.calls if j < i]
            rows.append(torch.stack(parts).sum(0) if parts else torch.zeros_like(n.B[i]))
        return n._replace(B=torch.stack(rows))


def lagrange(points: Tensor, at: Tensor) -> list[Tensor]:
    """The weights of the values at `points` in their interpolant at `at`."""
    out: list[Tensor] = []
    for k in range(len(points)):
        others = [j for j in range(len(points)) if j != k]
        out.append(torch.stack([(at - points[j]) / (points[k] - points[j]) for j in others]).prod())
    return out
