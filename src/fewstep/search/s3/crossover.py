"""Crossover of schedules with equally many steps, and schedules drawn at random."""

from __future__ import annotations

import numpy as np

from fewstep.search.s3.genes import Genes, Ints, empty
from fewstep.search.s3.mutation import Random, draw_decisions, draw_ends, mend_calls, write
from fewstep.search.s3.rates import Rates
from fewstep.search.s3.space import Space

COMPONENTS = (("times",), ("order", "low", "scaling", "r"), ("basis",), ("corrector",), ("start",), ("tau",), ("afs",))
"""What is inherited together: estimates and scaling follow the order that they were made for."""
DEEP = ("order", "low", "scaling", "r", "basis")


def crossover(space: Space, rates: Rates, one: Genes, two: Genes, rng: Random) -> Genes:
    """A child of each pair: uniform per component, then with chance `deep` uniform per step as well.

    A pair with unequal numbers of steps gives a copy of its first parent.
    """
    fit = one.steps == two.steps
    child = one.copy()
    second = rng.random((len(one), len(COMPONENTS))) < 0.5
    # Times and orders are what every schedule has: at least one of the components comes from each parent.
    uniform = second.all(1) | ~second.any(1)
    second[uniform, 0] ^= True
    second &= fit[:, None]
    for k, names in enumerate(COMPONENTS):
        for name in names:
            getattr(child, name)[second[:, k]] = getattr(two, name)[second[:, k]]
    deep = (rng.random(len(one)) < rates.deep) & fit
    swap = (rng.random(one.order.shape) < 0.5) & deep[:, None]
    for name in DEEP:
        here = getattr(child, name)
        here[:] = np.where(swap, getattr(two, name), here)
    child = space.canonical(child)
    ok = space.valid(mend_calls(space, rates, child, rng))
    write(child, np.flatnonzero(~ok), one.take(~ok))
    return child


def draw(space: Space, rates: Rates, nfe: Ints, rng: Random) -> Genes:
    """Random schedules with the wanted numbers of calls: the released initialiser of times, and uniform decisions.

    Inner times lie at uniform places, or at their roots on either side, between the ends (USF section 3.1).
    """
    out = empty(len(nfe), space.room)
    waiting = np.arange(len(nfe))
    while len(waiting):
        g = _drawn(space, rates, nfe[waiting], rng)
        ok = space.valid(g) & (g.nfe == nfe[waiting])
        write(out, waiting[ok], g.take(ok))
        waiting = waiting[~ok]
    return out


def _drawn(space: Space, rates: Rates, nfe: Ints, rng: Random) -> Genes:
    g = empty(len(nfe), space.room)
    count, shape = len(nfe), g.order.shape
    g.afs[:] = rng.choice(4, count, p=_afs_weights(space))
    g.steps[:] = nfe + (g.afs > 0)
    ends = draw_ends(space, count, rng)
    u = rng.random(shape)
    kind = rng.integers(0, 3, shape)
    place = np.choose(kind, [u, np.sqrt(u), 1 - np.sqrt(u)])
    if rates.relative:  # uniform in the seventh root of the noise level, as EDM's times
        root = (space.last_times[0] / space.noise.t_max) ** (1 / 7)
        place = (root + u * (1 - root)) ** 7
    inner = ends[:, None] + place * (space.noise.t_max - ends[:, None])
    inner = np.where(np.arange(g.room) < g.steps[:, None] - 1, inner, np.nan)
    g.times[:, 0] = space.noise.t_max
    g.times[:, 1:] = -np.sort(-inner, axis=1)
    g.times[np.arange(count), g.steps] = ends
    fresh = draw_decisions(space, rates, count * g.room, rng)
    for name, values in fresh.items():
        getattr(g, name)[:] = values.reshape(shape)
    return space.canonical(g)


def _afs_weights(space: Space) -> list[float]:
    names = (None, "zero", "mean", "unit")
    return [(name in space.afs) / len(set(space.afs)) for name in names]
