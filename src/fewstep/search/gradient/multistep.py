"""Multistep weights: S4S's coefficients, and NeuralSolver's, which sum to one.

Both move by `x_{n+1} = a_n x_n + b_n sum_j c[n,j] m_j`, with a and b those of the first-order step in the basis of m:
the network's x0 (`data`), its noise (`noise`), or its straight-path velocity (`velocity`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.search.gradient.numbers import Numbers, constant, filled, require_reproduced
from fewstep.tableau import Tableau

Basis = Literal["data", "noise", "velocity"]


class Move(NamedTuple):
    """First-order steps `x' = a x + b m`, `[n]` each, and `m_j = keep_j x_j + gain_j D_j`, `[n]` each."""

    a: Tensor
    b: Tensor
    keep: Tensor
    gain: Tensor


def moves(basis: Basis, alpha: Tensor, sigma: Tensor) -> Move:
    """The steps between states `[n+1]`."""
    a0, a1, s0, s1 = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    if basis == "data":
        return Move(s1 / s0, a1 - a0 * s1 / s0, torch.zeros_like(a0), torch.ones_like(a0))
    if basis == "noise":
        return Move(a1 / a0, s1 - s0 * a1 / a0, 1 / s0, -a0 / s0)
    gain = (a1 + s1) / (a0 + s0)
    return Move(gain, (a1 + s1) * (s1 / (a1 + s1) - s0 / (a0 + s0)), 1 / s0, -(a0 + s0) / s0)


class Multistep(nn.Module):
    """Free coefficients `c[n,j]` on the outputs of the last `window` calls.

    Args:
        start: a table with one call a step, which these weights can express in some basis.
        noise: the noise schedule.
        window: how many outputs a step reads, at most; all by default.
        consistent: whether each row sums to one; the newest coefficient then follows from the others (NeuralSolver).
        bases: the bases to try.

    Errors: `ArgumentError` for another table.
    """

    def __init__(
        self,
        start: Tableau,
        noise: NoiseSchedule,
        *,
        window: int | None = None,
        consistent: bool = False,
        bases: tuple[Basis, ...] = ("data", "noise", "velocity"),
    ) -> None:
        super().__init__()
        self.noise, self.consistent = noise, consistent
        n = Numbers.of(start)
        if n.calls != list(range(start.rows - 1)):
            raise ArgumentError(
                f"{start.name or 'this table'} makes other than one network call a step: these weights start from "
                "multistep solvers, e.g. dpmpp_2m"
            )
        wide = window or start.rows - 1
        places = [(i, j) for i in range(start.rows - 1) for j in range(max(0, i - wide + 1), i + 1)]
        self.places = [(i, j) for i, j in places if j < i] if consistent else places
        refused: ArgumentError | None = None
        for basis in bases:
            self.basis: Basis = basis
            move = moves(basis, n.alpha, n.sigma)
            c = n.B[1:, :-1] / (move.b[:, None] * move.gain)
            if not bool(torch.isfinite(c).all()):
                continue
            self.c = nn.Parameter(constant([c[i, j].item() for i, j in self.places]))
            try:
                return require_reproduced(self(n.times), start, "a sum over earlier outputs")
            except ArgumentError as error:
                refused = error
        raise refused or ArgumentError(
            f"{start.name or 'this table'} is no multistep solver at falling times: start from one, e.g. dpmpp_2m"
        )

    def forward(self, times: Tensor) -> Numbers:
        """The numbers at these times."""
        alpha, sigma, _ = self.noise.levels(times)
        move, rows = moves(self.basis, alpha, sigma), len(times)
        c = filled((rows - 1, rows - 1), self.places, self.c)
        if self.consistent:
            c = c + torch.diag(1 - c.sum(1))
        weights = move.b[:, None] * c
        wide = torch.nn.functional.pad
        A = wide(torch.diag(move.a) + weights * move.keep, (0, 1, 1, 0))
        B = wide(weights * move.gain, (0, 1, 1, 0))
        return Numbers(A, B, times, times, alpha, sigma, (True,) * (rows - 1) + (False,))
