"""A table inside a graph: `Numbers`, and the axis on which times are moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import EDM, NoiseSchedule, as_float64
from fewstep.tableau import Tableau
from fewstep.times.grids import finite_ratio

Variable = Literal["lam", "time"]
LEARNED = "learned weights: the identities need not hold"
REPRODUCED = 1e-9
"""How far a space may be from the table that it starts from."""


class Numbers(NamedTuple):
    """The numbers of a table, as functions of parameters; shapes as in `Tableau`, single output channel, no noise."""

    A: Tensor
    B: Tensor
    times: Tensor
    told: Tensor
    alpha: Tensor
    sigma: Tensor
    evaluated: tuple[bool, ...]

    @property
    def calls(self) -> list[int]:
        """The rows at which the network is called."""
        return [i for i, called in enumerate(self.evaluated) if called]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Numbers:
        """The numbers with a function of each of their tensors."""
        A, B, times, told, alpha, sigma = map(function, self[:6])
        return Numbers(A, B, times, told, alpha, sigma, self.evaluated)

    def tableau(self, noise: NoiseSchedule, name: str = "", expected: tuple[str, ...] = (LEARNED,)) -> Tableau:
        """The table, out of the graph."""
        n = self.mapped(lambda part: part.detach().clone())
        return Tableau(
            A=n.A, B=n.B, times=n.times, model_times=n.told, alpha=n.alpha, sigma=n.sigma, evaluated=n.evaluated,
            noise=noise, expected=expected, name=name,
        )  # fmt: skip

    @staticmethod
    def of(t: Tableau) -> Numbers:
        """The numbers of a table.

        Errors: `ArgumentError` for a table that draws noise, adds constants, or has weights per element.
        """
        if t.C.shape[1] or t.K.shape[1] or t.channels != 1 or t.A.ndim > 2 or t.B.ndim > 2:
            raise ArgumentError(
                f"{t.name or 'this table'} draws noise, adds constants or has weights per element: gradient methods "
                "start from deterministic tables of plain numbers, e.g. dpmpp_2m"
            )
        return Numbers(t.A, t.B, t.times, t.model_times, t.alpha, t.sigma, t.evaluated)


@dataclass(frozen=True)
class Axis:
    """A coordinate that rises from the noisy to the clean end, on which times are moved.

    Attributes:
        noise: the noise schedule.
        first, low: the noisiest and the least noisy time at which the network may be asked.
        variable: `lam` (half the log signal-to-noise ratio; LD3's mode for EDM networks) or `time` (the part of the
            way from `first` to `low`; LD3's mode for the others).
    """

    noise: NoiseSchedule
    first: float
    low: float
    variable: Variable

    @staticmethod
    def of(noise: NoiseSchedule, first: float, low: float, variable: Variable | None = None) -> Axis:
        """The axis; by default EDM's times are moved in lam, since they span five decades."""
        return Axis(noise, first, low, variable or ("lam" if isinstance(noise, EDM) else "time"))

    @property
    def ends(self) -> tuple[float, float]:
        """The coordinates of `first` and `low`, both finite."""
        if self.variable == "time":
            return 0.0, 1.0
        top, bottom = (-finite_ratio(self.noise, self.first, self.low).log()).tolist()
        return top, bottom

    def place(self, times: Tensor) -> Tensor:
        """The coordinates of times (infinite at an end where alpha or sigma is 0, in lam)."""
        if self.variable == "time":
            return (self.first - times) / (self.first - self.low)
        return self.noise.lam(times)

    def time(self, places: Tensor) -> Tensor:
        """The times of coordinates."""
        if self.variable == "time":
            return self.first - places * (self.first - self.low)
        return self.noise.time_of_lam(places)

    def inside(self, times: Tensor) -> Tensor:
        """The times, moved into the network's range."""
        return times.clamp(self.low, self.first)


def filled(shape: tuple[int, int], places: list[tuple[int, int]], values: Tensor) -> Tensor:
    """A matrix of zeros with the values at the places, in the graph."""
    out = torch.zeros(shape, dtype=torch.float64, device="cpu")
    if not places:
        return out
    rows, columns = zip(*places, strict=True)
    return out.index_put((torch.tensor(rows, device="cpu"), torch.tensor(columns, device="cpu")), values)


def matrix_of(entries: dict[tuple[int, int], Tensor], rows: int) -> Tensor:
    """A square matrix of zeros with these entries, in the graph."""
    return filled((rows, rows), list(entries), torch.stack(list(entries.values())))


def constant(values: Tensor | list[float]) -> Tensor:
    """Numbers that no longer learn."""
    return as_float64(values).detach().clone()


def require_reproduced(made: Numbers, start: Tableau, what: str) -> None:
    """Refuse a start that a space cannot hold.

    Errors: `ArgumentError` saying how far it is.
    """
    gap = made.tableau(start.noise).difference(start) if start.noise is not None else float("inf")
    if not gap <= REPRODUCED:
        raise ArgumentError(
            f"{what} cannot hold {start.name or 'this table'} (it differs by {gap:.2g}): start from another solver"
        )
