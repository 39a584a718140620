"""A table while it grows: rows as sparse linear forms, the history that decisions read, the places of inner nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.noise import NoiseSchedule
from fewstep.phi import Scalar, root, value
from fewstep.rules import At, Churn, Down, Node
from fewstep.transfer import Place, place

if TYPE_CHECKING:
    from fewstep.ems import EMS

STATE, OUTPUT, NOISE, CONSTANT = range(4)
Form = dict[tuple[int, int], Scalar]
"""A linear form: (kind, index) -> weight."""


def add(form: Form, other: Form, weight: Scalar) -> None:
    """`form += weight * other`, in place."""
    for key, w in other.items():
        form[key] = form[key] + weight * w if key in form else weight * w


@dataclass
class Point:
    """A point of the history: its place, the row of its state, the row at which the network saw it."""

    place: Place
    state: int
    seen: int


@dataclass
class Builder:
    """The table while it grows."""

    noise: NoiseSchedule
    afs: str | None
    statistics: EMS | None = None
    shifted: bool = False
    """Whether a row reads the constant of ones, as DPM-Solver-v3's do."""
    rows: list[Form] = field(default_factory=list[Form])
    places: list[Place] = field(default_factory=list[Place])
    told: list[Scalar] = field(default_factory=list[Scalar])
    notes: list[str] = field(default_factory=list[str])
    history: list[Point] = field(default_factory=list[Point])
    draws: int = 0
    expected: list[str] = field(default_factory=list[str])
    resolved: dict[tuple[Node, Place, Place], Place] = field(default_factory=dict[tuple[Node, Place, Place], Place])

    def push_row(self, form: Form, where: Place, note: str = "", told: Scalar | None = None) -> int:
        """Append a row; its index."""
        self.rows.append(form)
        self.places.append(where)
        self.told.append(where.time if told is None else told)
        self.notes.append(note)
        return len(self.rows) - 1

    @property
    def ones(self) -> int:
        """Index of the constant of ones: behind the mean image, where there is one."""
        return int(self.afs == "mean")

    def output(self, point: Point) -> Form:
        """The network's x0 at a point; an analytical first step replaces the call at row 0."""
        if point.seen > 0 or self.afs is None:
            return {(OUTPUT, point.seen): 1.0}
        if self.afs == "zero":
            return {}
        if self.afs == "mean":
            return {(CONSTANT, 0): 1.0}
        p = point.place
        size = root(p.alpha**2 + p.sigma**2)
        return {(STATE, 0): p.alpha / (size * (size + p.sigma))}

    def value(self, point: Point, basis: str) -> Form:
        """The expanded quantity at a point: x0, noise, velocity or v3's f, as seen by the network there."""
        out = self.output(point)
        if basis == "data":
            return out
        p = self.places[point.seen]
        if basis == "v3":
            assert self.statistics is not None
            form: Form = {(STATE, point.seen): (1.0 - self.statistics.linear_part(p.lam)) / p.alpha}
            add(form, out, -1.0)
            return form
        form = {(STATE, point.seen): 1.0 / p.sigma}
        add(form, out, -(p.alpha if basis == "noise" else p.alpha + p.sigma) / p.sigma)
        return form


def resolve(b: Builder, node: Node | None, begin: Place, end: Place) -> Place:
    """The place of a node relative to its interval."""
    if node is None:
        return end
    key = (node, begin, end)
    if key not in b.resolved:
        b.resolved[key] = _locate(b, node, begin, end)
    return b.resolved[key]


def _locate(b: Builder, node: Node, begin: Place, end: Place) -> Place:
    noise = b.noise
    if isinstance(node, At):
        return place(noise, node.time)
    if isinstance(node, Churn):
        return _at_ratio(noise, begin.rho * (1.0 + node.gamma))
    if isinstance(node, Down):
        top = resolve(b, node.of, begin, end)
        up = node.eta * root(top.rho**2 * (1.0 - (top.rho / begin.rho) ** 2))
        up = top.rho if value(up) > value(top.rho) else up
        return _at_ratio(noise, root(top.rho**2 - up**2))
    target = end if node.of is None else resolve(b, node.of, begin, end)
    if node.r == 1.0:
        return target
    lo, hi = begin.coordinate(node.variable), target.coordinate(node.variable)
    at = lo + node.r * (hi - lo)
    if node.variable == "time":
        return place(noise, at)
    if node.variable == "rho":
        return _at_ratio(noise, at)
    return place(noise, noise.time_of_lam(at) if isinstance(at, Tensor) else noise.scalar_time_of_lam(at))


def _at_ratio(noise: NoiseSchedule, ratio: Scalar) -> Place:
    time = noise.time_of_ratio(ratio) if isinstance(ratio, Tensor) else noise.scalar_time_of_ratio(ratio)
    return place(noise, time)


def stack_rows(rows: Sequence[dict[int, Any]], width: int) -> Tensor:
    """A `[len(rows), width, *tail]` float64 matrix from sparse rows of floats or tensors (kept in the graph).

    `tail` is what the tensors broadcast to: nothing for 0-d ones, one sample's shape for weights per element.
    """
    tracked = [(i, j, w) for i, row in enumerate(rows) for j, w in row.items() if isinstance(w, Tensor)]
    tail = torch.broadcast_shapes(*(w.shape for _, _, w in tracked))
    numbers = [[0.0] * width for _ in rows]
    for full, row in zip(numbers, rows, strict=True):
        for j, w in row.items():
            if not isinstance(w, Tensor):
                full[j] = w
    # `reshape` for no columns at all, whose rows are lists of nothing.
    matrix = torch.tensor(numbers, dtype=torch.float64, device="cpu").reshape(len(rows), width)
    if tracked:
        matrix = matrix.reshape(len(rows), width, *(1,) * len(tail)).expand(len(rows), width, *tail)
        places = torch.tensor([i * width + j for i, j, _ in tracked], device="cpu")
        values = torch.stack([w.expand(tail) for _, _, w in tracked])
        matrix = matrix.flatten(0, 1).index_put((places,), values).reshape(matrix.shape)
    return matrix
