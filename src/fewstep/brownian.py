"""One Brownian motion for each seed, whatever the times: stochastic samplers that can be compared.

With independent normals for each noise column, a sampler at 5 steps and one at 60 draw different noise from the same
seed, and their samples have little more in common than those of two seeds. Here both see the same motion: each column
gets what the motion does between the two noise levels of its move. Then the samples of a stochastic solver converge as
its times get finer, seed by seed, and what a few seeds say by chance cancels in a comparison, as it does for
deterministic solvers.

The clock is that of the exact solution. In EDM's coordinates the reverse SDE with a frozen `x0` is

    d(x / sigma^2) = x0 d(1 / sigma^2) + dB(1 / sigma^2),

a Brownian motion in the signal-to-noise ratio `exp(2 lam)`. It is drawn in cells of `lam`, and a column is the sum of
the cells in its interval over its standard deviation. No cell is given away twice: the columns of every table are
independent unit normals, exactly, and the sampler's law is what it was. What is approximate is the coupling: at
the ends of an interval, by a part of a cell, and for SDEs with another amount of noise (`tau`, `eta`, ER-SDE), whose
motions weigh the inside of an interval differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.randomness import unit_noise

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

LOWEST, HIGHEST, CELLS = -6.0, 8.0, 84
"""Cells of `lam`: from noise 400 times to 1/3000 of the signal, six to a unit (60 equal steps have about one each)."""
STREAM = 1 << 20
"""Of the motion; noise columns count from 1."""


def brownian_noise(tableau: Tableau, seeds: Sequence[int], shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    """`noise(m)` for `trajectory`: the unit normals `[len(seeds), *shape]` of column m, float32 on the CPU.

    A column whose interval holds no cell of its own (a move back to more noise, a step far finer than a cell) gets the
    independent normals that it has without a motion.
    """
    if not tableau.C.shape[1]:
        return _none
    weights = cell_weights(tableau).float()
    columns = torch.empty(len(weights), len(seeds), *shape, dtype=torch.float32, device="cpu")
    for k, seed in enumerate(seeds):
        cells = unit_noise([seed], (CELLS, *shape), STREAM)[0]
        columns[:, k] = (weights @ cells.flatten(1)).view(-1, *shape)
    for m in (weights == 0).all(1).nonzero()[:, 0].tolist():
        columns[m] = unit_noise(seeds, shape, m + 1)
    return columns.__getitem__


def cell_weights(tableau: Tableau) -> Tensor:
    """`[M, CELLS]` float64: what each noise column takes of each cell; rows have norm 1, or 0 for columns without."""
    lam = (tableau.alpha / tableau.sigma).log()
    edges = torch.linspace(LOWEST, HIGHEST, CELLS + 1, dtype=torch.float64, device="cpu")
    middle = (edges[1:] + edges[:-1]) / 2
    free = torch.ones(CELLS, dtype=torch.bool, device="cpu")
    weights = torch.zeros(tableau.C.shape[1], CELLS, dtype=torch.float64, device="cpu")
    for m, column in enumerate(tableau.C.T):
        row = int(column.nonzero()[0, 0]) if column.any() else 0
        own = free & (middle > lam[row - 1]) & (middle <= lam[row]) if row else torch.zeros_like(free)
        free &= ~own
        if own.any():
            weights[m, own] = (middle[own] - middle[own].max()).exp()
            weights[m] /= weights[m].norm()
    return weights


def _none(m: int) -> Tensor:
    raise IndexError(f"the table has no noise column {m}")
