"""Times that make the solver's own local errors small: dynamic programming over a teacher's trajectories.

Both GITS and OSS plan Euler steps, whatever solver will use the times. Here the cost of a step is the error that the
*target* solver makes in it, started from the teacher's states:

    e(p, i, j) = base X_i + (m - w) F_i + w F_p - X_j

with the numbers of that solver's step from t_i to t_j which last stepped from t_p (first order: w = 0; F is x0 or the
noise, whatever the solver expands). For a solver that remembers one output the best times of n steps are a cheapest
path over *pairs* of knots, exactly. An older output is left out: third order and higher are planned as second order.

All the states enter through their inner products alone, so one pass over the trajectories serves every solver, every
weighting and every number of steps, and costs no network calls beyond the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.builder import STATE, Builder, Form, Point
from fewstep.errors import ArgumentError
from fewstep.expansion import mixture
from fewstep.noise import NoiseSchedule
from fewstep.rules import SolverSchedule, Step
from fewstep.search.dynamic import Array, PairPaths, cheapest_pairs
from fewstep.search.trajectories import Trajectories
from fewstep.transfer import Place, places

BATCH = 16
BASES = ("data", "noise", "velocity")
QUANTITY = 4
"""Kind of a form's entries that stand for the expanded quantity itself (see `fewstep.builder`)."""


@dataclass(frozen=True)
class Products:
    """Mean inner products, per dimension, of a teacher's states and outputs: all that local errors depend on.

    Attributes:
        times: `[T+1]`; noise: their schedule.
        products: `[2T+1, 2T+1]` float64, of the T+1 states and then the T outputs.
        variance: of the end points, per dimension, around their mean.
        count: number of trajectories.
    """

    noise: NoiseSchedule
    times: Tensor
    products: Array
    variance: float
    count: int

    @staticmethod
    def of(trajectories: Trajectories, noise: NoiseSchedule) -> Products:
        """From trajectories with outputs, a few in memory at a time."""
        width = 2 * len(trajectories.times) - 1
        total = torch.zeros(width, width, dtype=torch.float64, device="cpu")
        ends = trajectories.state(-1).double().flatten(1)
        for part in trajectories.batches(BATCH):
            rows = torch.cat([part.states.flatten(2), part.outputs.flatten(2)], 1).double().transpose(0, 1).flatten(1)
            total += rows @ rows.T
        count = len(trajectories)
        variance = ends.var(0, correction=0).mean().item() if count > 1 else ends.square().mean().item()
        return Products(noise, trajectories.times, (total / ends.numel()).numpy(), variance, count)

    @cached_property
    def places(self) -> list[Place]:
        """Noise levels of the times."""
        return places(self.noise, self.times)


@dataclass(frozen=True)
class LocalErrors:
    """Mean squared local errors per dimension of one solver on one grid of K knots, in units of x / alpha.

    Attributes:
        first: `[K]` of a first step onto each knot.
        middle: `[K, K, K]` of a step p -> i -> j, at `[p, i, j]`; last: `[K, K]` of the last step, at `[p, i]`.
        single: of one step all the way.
        rule: what the steps are, in words.
    """

    first: Array
    middle: Array
    last: Array
    single: float
    rule: str

    @staticmethod
    def of(products: Products, solver: Callable[[Tensor], SolverSchedule], name: str = "") -> LocalErrors:
        """The errors of a solver's steps.

        A solver that draws noise, or asks the network inside its steps, is taken as DDIM: its error is not a function
        of the teacher's states.
        """
        steps = multistep(solver, products.times)
        rule = name if steps is not None else f"ddim, not {name}"
        one, begin, on, end = steps or (Step(),) * 4
        knots = range(len(products.times))
        last = knots[-1]
        first = np.full(len(knots), np.inf)
        first[1:] = [_alone(products, begin, j) for j in knots[1:]]
        middle = np.full((len(knots),) * 3, np.inf)
        final = np.full((len(knots),) * 2, np.inf)
        for i in knots[1:-1]:
            middle[:i, i, i + 1 : last] = _errors(products, on, i, list(range(i + 1, last)))
            final[:i, i] = _errors(products, end, i, [last])[:, 0]
        return LocalErrors(first, middle, final, _alone(products, one, last), rule)

    def plan(self, weights: Array, n_max: int, power: float = 1.0) -> PairPaths:
        """The times of least `sum (weights[j] |e|)^power`, for every number of steps.

        Args:
            weights: `[K]` how much an error of the state at a knot matters.
            n_max: largest number of steps.
            power: 1 adds root mean squares, 2 mean squares.
        """
        half, scale = power / 2, weights**power
        return cheapest_pairs(
            self.first**half * scale,
            self.middle**half * scale,
            self.last**half * scale[-1],
            n_max,
            single=self.single**half * scale[-1],
        )


def multistep(solver: Callable[[Tensor], SolverSchedule], times: Tensor) -> tuple[Step, Step, Step, Step] | None:
    """A solver's decisions for one step all the way, a first, a middle and a last one; None where it has others."""
    picked = torch.linspace(0, len(times) - 1, 4, device="cpu").round().long()
    try:
        alone, three = solver(times[[0, -1]]).steps, solver(times[picked]).steps
    except ArgumentError:  # a solver that cannot make so few steps
        return None
    if len(alone) != 1 or len(three) != 3:
        return None
    found: list[Step] = []
    for step in (*alone, *three):
        if not isinstance(step, Step) or step.node is not None or step.stochastic or step.basis == "v3":
            return None
        if step.start != -1 or min((k for k, _ in step.weights or ()), default=-1) < -2:
            step = found[-1]
        found.append(step)
    one, begin, on, end = found
    return one, begin, on, end


class _Symbolic(Builder):
    """A builder that leaves the expanded quantity as it is."""

    def value(self, point: Point, basis: str) -> Form:
        return {(QUANTITY + BASES.index(basis), point.seen): 1.0}


def _form(noise: NoiseSchedule, step: Step, history: list[Place], end: Place) -> Form:
    b = _Symbolic(noise, None)
    b.places = list(history)
    b.history = [Point(place, k, k) for k, place in enumerate(history)]
    return mixture(b, step, b.history[-1], end, "")[0]


def _quantity(place: Place, basis: int) -> tuple[float, float]:
    """The weights on the state and on x0 of an expanded quantity."""
    if basis == 0:
        return 0.0, 1.0
    alpha, sigma = float(place.alpha), float(place.sigma)
    return 1 / sigma, -(alpha if basis == 1 else alpha + sigma) / sigma


def _numbers(form: Form, history: list[Place]) -> list[float]:
    """The weights on (state, x0) of each point of the history."""
    weights = [0.0] * (2 * len(history))
    for (kind, k), weight in form.items():
        if kind == STATE:
            weights[2 * k] += float(weight)
        else:
            on_state, on_x0 = _quantity(history[k], kind - QUANTITY)
            weights[2 * k] += float(weight) * on_state
            weights[2 * k + 1] += float(weight) * on_x0
    return weights


def _alone(products: Products, step: Step, j: int) -> float:
    """The squared error of a step from the first knot to knot j."""
    here = products.places
    weights = _numbers(_form(products.noise, step, [here[0]], here[j]), [here[0]])
    size = len(here)
    return float(_squares(products, np.array([[*weights, -1.0]]), np.array([[0, size, j]]), [j])[0])


def _errors(products: Products, step: Step, i: int, onto: list[int]) -> Array:
    """Squared errors `[i, len(onto)]` of the steps p -> i -> j, for all p < i."""
    here, size = products.places, len(products.times)
    pairs = [here[i - 1], here[i]]
    coordinate = [float(place.coordinate(step.variable)) for place in here[: i + 1]]
    # The weight on an older point falls with its distance, and an infinitely far one has none.
    at, nearest = coordinate[i], coordinate[i - 1]
    reach = [(nearest - at) / (older - at) if math.isfinite(older) else 0.0 for older in coordinate[:i]]
    share = np.ones(i) if step.weights is not None else np.array(reach)
    out = np.empty((i, len(onto)))
    for column, j in enumerate(onto):
        form = _form(products.noise, step, pairs, here[j])
        weights = np.zeros((i, 5))
        for (kind, k), weight in form.items():
            value = float(weight)
            if kind == STATE:
                weights[:, 0] += value
                continue
            basis = kind - QUANTITY
            on_state, on_x0 = _quantity(here[i], basis)
            if k == 1:
                weights[:, 0] += value * on_state
                weights[:, 1] += value * on_x0
                continue
            part = value * share
            weights[:, 2:4] += part[:, None] * np.array([_quantity(place, basis) for place in here[:i]])
            if step.weights is None:  # what the older point has more or less, the newer one has less or more
                weights[:, 0] += (value - part) * on_state
                weights[:, 1] += (value - part) * on_x0
        weights[:, 4] = -1.0
        index = np.stack([np.full(i, i), np.full(i, size + i), np.arange(i), size + np.arange(i), np.full(i, j)], 1)
        out[:, column] = _squares(products, weights, index, [j] * i)
    return out


def _squares(products: Products, weights: Array, index: Array, onto: list[int]) -> Array:
    """`weights G weights` of each row, in units of x / alpha at the knot that it ends at."""
    part = products.products[index[:, :, None], index[:, None, :]]
    alpha = np.array([float(products.places[j].alpha) for j in onto])
    return np.einsum("na,nab,nb->n", weights, part, weights).clip(0.0) / alpha**2
