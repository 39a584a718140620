"""A table in a host's coordinates: states and times as k-diffusion, ComfyUI and EDM count them.

These hosts keep `x0 + sigma eps` (alpha = 1) for every network but flow models, whose states `(1 - s) x0 + s eps` they
leave as they are; the time told to the network is the noise level sigma, or s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.tableau import Tableau

CLOSE = 1e-4
"""Noise levels that a host hands over may be off by this part: they went through float32, or through text."""


@dataclass(frozen=True)
class Framed:
    """A table as a host runs it.

    Attributes:
        table: the same sampler on the host's states; `times` and `model_times` are noise levels, `noise` is gone.
        inputs: factor `[S]` on the state that the network is shown: 1, but where it is told another time than the
            state's, for there the host's state would have another scale.
        levels: the host's `sigmas`, falling, the last one included.
    """

    table: Tableau
    inputs: tuple[float, ...]
    levels: tuple[float, ...]

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """For each noise column the levels between which it is drawn, disjoint, as noise samplers want them."""
        return _intervals(self.table)

    def step(self, row: int) -> int:
        """The step of the host's list in which the network call of this row falls."""
        level = self.table.times[row].item()
        reached = [k for k, other in enumerate(self.levels) if other >= level * (1 - CLOSE)]
        return min(reached[-1] if reached else 0, len(self.levels) - 2)

    def require(self, sigmas: Tensor, how: str) -> None:
        """Refuse noise levels that are not the table's.

        Raises:
            ArgumentError: the table's levels and the ones given; `how` says where to get the right ones.
        """
        given = sigmas.detach().to(device="cpu", dtype=torch.float64).flatten()
        own = torch.tensor(self.levels, dtype=torch.float64, device="cpu")
        if given.shape == own.shape and bool(((given - own).abs() <= CLOSE * own).all()):
            return
        told, want = ([float(f"{v:.5g}") for v in levels.tolist()] for levels in (given, own))
        raise ArgumentError(
            f"the table was made for the noise levels {want}, and was given {told}: its weights hold for its own "
            f"levels only. {how}"
        )


def framed(tableau: Tableau) -> Framed:
    """The table in the host's coordinates.

    Raises:
        ArgumentError: the table does not know its noise schedule, or starts where alpha is 0 (an infinite level).
    """
    noise = tableau.noise
    if noise is None:
        raise ArgumentError("this table has no noise schedule, so a host cannot place its states; set Tableau.noise")
    if tableau.alpha.requires_grad or tableau.A.requires_grad or tableau.B.requires_grad:
        raise ArgumentError("this table still has gradients: save it and load it, or tabulate detached times")
    flow = noise.family == "flow"
    if not flow and not bool((tableau.alpha > 0).all()):
        raise ArgumentError(
            "the first state has alpha = 0, so its noise level is infinite and no host in noise levels can hold it: "
            "start at a time where alpha > 0"
        )
    gain = torch.ones_like(tableau.alpha) if flow else 1 / tableau.alpha
    level = noise.sigma if flow else noise.ratio
    told = tableau.model_times
    called = torch.tensor(tableau.evaluated)
    moved = called & (told != tableau.times)
    inputs = torch.where(moved & (not flow), tableau.alpha / noise.alpha(told), torch.ones_like(gain))
    times = tableau.sigma * gain
    table = replace(
        tableau, A=_scaled(_scaled(tableau.A, gain, 0), 1 / gain, 1), B=_scaled(tableau.B, gain, 0),
        C=_scaled(tableau.C, gain, 0), K=_scaled(tableau.K, gain, 0), times=times, sigma=times,
        model_times=torch.where(moved, level(told), times), alpha=tableau.alpha * gain, noise=None, schedule=None,
    )  # fmt: skip
    return Framed(table, tuple(inputs.tolist()), _falling(tableau, times))


def _scaled(matrix: Tensor, factors: Tensor, axis: int) -> Tensor:
    shape = [1] * matrix.ndim
    shape[axis] = -1
    return matrix * factors.reshape(shape)


def _falling(tableau: Tableau, levels: Tensor) -> tuple[float, ...]:
    """The levels of the grid: the schedule's own where there is one, else those of the states that fall further."""
    own = levels.tolist()
    if tableau.schedule is not None:
        times = tableau.times.tolist()
        grid = tableau.schedule.times.tolist()
        places = [min(range(len(times)), key=lambda k: abs(times[k] - t)) for t in grid]
        return tuple(own[k] for k in places)
    grid: list[float] = []
    for level in own:
        if not grid or level < grid[-1] * (1 - 1e-12):
            grid.append(level)
    return tuple(grid)


def _intervals(table: Tableau) -> tuple[tuple[float, float], ...]:
    levels = table.times.tolist()
    found: list[tuple[float, float]] = []
    for column in range(table.C.shape[1]):
        row = int((table.C[:, column].reshape(table.rows, -1) != 0).any(1).nonzero()[0])
        before = next((k for k in range(row - 1, -1, -1) if table.evaluated[k]), 0)
        here, there = levels[before], levels[row]
        found.append((here, there if there != here else next((v for v in levels[row:] if v < here), here * 0.5)))
    return tuple(_shared(found, k) for k in range(len(found)))


def _shared(pairs: list[tuple[float, float]], k: int) -> tuple[float, float]:
    """The k-th pair; draws that would share an interval divide it, or a Brownian sampler would repeat itself."""
    first, last = pairs[k]
    same = [j for j, pair in enumerate(pairs) if pair == pairs[k]]
    place, width = same.index(k), (last - first) / len(same)
    return first + place * width, first + (place + 1) * width if place + 1 < len(same) else last
