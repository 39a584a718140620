"""One Brownian motion for each seed, whatever the times: stochastic samplers that can be compared.

With independent normals for each noise column, a sampler at 5 steps and one at 60 draw different noise from the same
seed, and their samples have little more in common than those of two seeds. Here both see the same motion: each column
gets what the motion does between two noise levels. Then the samples of a stochastic solver come to those of its SDE as
the times get finer, seed by seed, and what a few seeds say by chance cancels in a comparison, as it does for
deterministic solvers.

The clock is that of the exact solution. In EDM's coordinates the reverse SDE with a frozen `x0` is

    d(x / sigma^2) = x0 d(1 / sigma^2) + dB(1 / sigma^2),

a Brownian motion in the signal-to-noise ratio `exp(2 lam)`; with another amount of noise, in `exp(2 tau^2 lam)`, and
for ER-SDE in `1 / (exp(r^0.3) + 10)^2`, r the noise level. What is shared are its increments over fixed cells of
`lam`. A column's interval begins where the last one's ended and ends at the level of the row that the column enters
(inner nodes, whose noise is not kept, have none). The column is the motion's increment over it, over its standard
deviation: its mean given the cells, plus what is left of its variance, from the column's own random stream. Intervals
do not overlap, so the columns of every table are independent unit normals, exactly, and the sampler's law is what it
was. Only the coupling of two tables is approximate: inside a cell, for tables whose steps differ in the process that
they solve or have no decisions that would tell, and for what has another clock (churn; a frozen `eps`, `exp(-2 lam)`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.noise import as_float64
from fewstep.program import occupied
from fewstep.randomness import unit_noise
from fewstep.steps import Down, Step
from fewstep.transfer import er_sde_function

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

LOWEST, HIGHEST, CELLS = -6.0, 8.0, 84
"""Cells of `lam`: from noise 400 times to 1/3000 of the signal, six to a unit (60 equal steps have about one each)."""
STREAM = 1 << 20
"""Of the motion; noise columns count from 1."""
MOTION = "brownian-3"
"""Names this motion in caches: what is here decides which samples a seed gives."""
LEAST_TAU, MOST_TAU = 1e-3, 4.0
"""Beyond these the clock over the cells leaves what float64 holds; the law of a column stays what it is."""


def brownian_noise(tableau: Tableau, seeds: Sequence[int], shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    """`noise(m)` for `trajectory`: the unit normals `[len(seeds), *shape]` of column m, float32 on the CPU.

    All columns are made at once and held: a batch takes as much memory of the host as its states at all times.
    """
    if not tableau.C.shape[1]:
        return _none
    given, left = (part.float() for part in split(tableau))
    columns = torch.empty(len(given), len(seeds), *shape, dtype=torch.float32, device="cpu")
    for k, seed in enumerate(seeds):
        cells = unit_noise([seed], (CELLS, *shape), STREAM)[0].flatten(1)
        own = torch.cat([unit_noise([seed], shape, m + 1) for m in range(len(given))]).flatten(1)
        columns[:, k] = (given @ cells + left @ own).view(-1, *shape)
    return columns.__getitem__


def split(tableau: Tableau) -> tuple[Tensor, Tensor]:
    """`[M, CELLS]` and `[M, M]`, float64: what each noise column takes of the unit normals of the cells and of the
    columns' own.

    The rows of the two side by side are orthonormal.
    """
    given = _correlations(tableau)
    values, vectors = torch.linalg.eigh(torch.eye(len(given), dtype=torch.float64, device="cpu") - given @ given.T)
    return given, (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def motion(tableau: Tableau) -> tuple[str | float, ...]:
    """Names a table's noise in caches; empty where it draws none."""
    return (MOTION, process(tableau)) if tableau.C.shape[1] else ()


def process(tableau: Tableau) -> str | float:
    """What a table's noisy steps solve: their `tau` (in the limit an `eta`, DDIM's or the ancestral one, is the same),
    or "er_sde".

    1 where they differ, and where a table has no decisions (those of traced foreign code).
    """
    moves = () if tableau.schedule is None else tableau.schedule.steps
    if tableau.sigma[-1] == 0:  # the move onto it draws nothing
        moves = moves[:-1]
    found = {s.kernel or s.tau or s.eta for s in moves if isinstance(s, Step) and s.stochastic and s.noise_scale}
    found |= {s.node.eta for s in moves if isinstance(s.node, Down) and s.node.eta}
    return found.pop() if len(found) == 1 else 1.0


def clock(lam: Tensor, process: str | float) -> Tensor:
    """The time of the Brownian motion that a process is one in; it rises with lam."""
    if isinstance(process, str):
        return torch.stack([as_float64(er_sde_function(ratio)) for ratio in (-lam).exp()]) ** -2
    tau = min(max(process, LEAST_TAU), MOST_TAU)
    return (2 * tau**2 * lam).exp()


def _correlations(tableau: Tableau) -> Tensor:
    """`[M, CELLS]` of the columns' increments with those of the cells."""
    lam = (tableau.alpha / tableau.sigma).log().detach()
    held = occupied(tableau.expanded[2])
    enters = held.int().argmax(0)  # the row that first holds a column
    ends = torch.where(held.any(0), lam[enters], lam[0])
    # What the row of a later draw does not hold is an inner node's: it must not use up what the step itself will need.
    inner = [bool((~held[enters[enters > row], m]).any()) for m, row in enumerate(enters)]
    cells = torch.linspace(LOWEST, HIGHEST, CELLS + 1, dtype=torch.float64, device="cpu")
    edges = torch.cat([cells, ends.clamp(LOWEST, HIGHEST)]).unique()
    cell = torch.searchsorted(cells, (edges[1:] + edges[:-1]) / 2) - 1
    variance = clock(edges, process(tableau)).diff()  # of each piece between two edges
    whole = torch.zeros(CELLS, dtype=torch.float64, device="cpu").index_add(0, cell, variance)
    found = torch.zeros(len(ends), CELLS, dtype=torch.float64, device="cpu")
    free = edges[1:] > lam[0]
    for m in sorted(range(len(ends)), key=lambda m: (inner[m], int(enters[m]))):
        own = free & (edges[1:] <= ends[m])
        free &= ~own
        if own.any():
            found[m].index_add_(0, cell[own], variance[own])
            found[m] /= (variance[own].sum() * whole).sqrt()
    return found


def _none(m: int) -> Tensor:
    raise IndexError(f"the table has no noise column {m}")
