"""Mutation of whole populations: the released operators (USF++, section 8.2 of our notes) with their bugs mended.

Mended: nothing is shared between parent and child, correctors follow the decisions of their step, times keep a least
gap in the interior too, and a child's number of calls is always one that is searched.
"""

from __future__ import annotations

import numpy as np

from fewstep.search.s3.genes import AFS, BASES, SLOPES, STEP_FIELDS, Bools, Floats, Genes, Ints
from fewstep.search.s3.rates import Rates
from fewstep.search.s3.space import Space

Random = np.random.Generator
ATTEMPTS = 12
DIGITS = 9
"""Drawn times and relaxations are rounded to so many decimals of `t_max` and 1: records stay readable."""


def mutate(space: Space, rates: Rates, parents: Genes, rng: Random) -> Genes:
    """One child of each parent; valid and canonical whenever its parent's number of calls can be mended."""
    child = parents.copy()
    waiting = np.arange(len(parents))
    for _ in range(ATTEMPTS):
        drawn = _once(space, rates, parents.take(waiting), rng)
        ok = space.valid(drawn)
        write(child, waiting[ok], drawn.take(ok))
        waiting = waiting[~ok]
        if not len(waiting):
            break
    return child


def _once(space: Space, rates: Rates, g: Genes, rng: Random) -> Genes:
    g = g.copy()
    dice = rng.random(len(g))
    insert_step(space, rates, g, (dice < rates.insert) & (g.steps < space.room), rng)
    delete_step(g, (dice > 1 - rates.delete) & (g.steps > 1), rng)
    _times(space, rates, g, rng)
    _decisions(space, rates, g, rng)
    redrawn = rng.random(len(g)) < rates.afs
    g.afs[redrawn] = _afs(space, rates, int(redrawn.sum()), rng)
    g = space.canonical(g)
    return mend_calls(space, rates, g, rng)


def mend_calls(space: Space, rates: Rates, g: Genes, rng: Random) -> Genes:
    """Steps inserted or deleted until the calls are a number that is searched (the nearest one)."""
    wanted = np.array(space.nfes)
    for _ in range(space.room):
        calls = g.nfe
        target = wanted[np.abs(wanted - calls[:, None]).argmin(1)]
        more, less = (target > calls) & (g.steps < space.room), (target < calls) & (g.steps > 1)
        if not (more | less).any():
            break
        g = g.copy()
        insert_step(space, rates, g, more, rng)
        delete_step(g, less, rng)
        g = space.canonical(g)
    return g


def write(into: Genes, rows: Ints, these: Genes) -> None:
    """Put schedules at the given rows."""
    for name in ("steps", "afs", "times", *STEP_FIELDS):
        getattr(into, name)[rows] = getattr(these, name)


def insert_step(space: Space, rates: Rates, g: Genes, which: Bools, rng: Random) -> None:
    """A new time among the others of some schedules, and fresh decisions for the step that ends there; in place."""
    rows = np.flatnonzero(which)
    if not len(rows):
        return
    low = g.times[rows, g.steps[rows]]
    new = _rounded(space, low + (space.noise.t_max - low) * _draw_place(space, rates, len(rows), rng))
    spot = (g.times[rows] > new[:, None]).sum(1)  # NaN compares false
    index = np.arange(g.room)
    source = np.where(index > (spot - 1)[:, None], index - 1, index).clip(0)
    for name in STEP_FIELDS:
        array = getattr(g, name)
        array[rows] = np.take_along_axis(array[rows], source, 1)
    index = np.arange(g.room + 1)
    g.times[rows] = np.take_along_axis(g.times[rows], np.where(index > spot[:, None], index - 1, index), 1)
    g.times[rows, spot] = new
    g.steps[rows] += 1
    fresh = draw_decisions(space, rates, len(rows), rng)
    for name in STEP_FIELDS:
        getattr(g, name)[rows, spot - 1] = fresh[name]


def _draw_place(space: Space, rates: Rates, count: int, rng: Random) -> Floats:
    """Where between the last and the first time: uniform in time, for relative rates in its seventh root (as EDM)."""
    u = rng.random(count)
    if not rates.relative:
        return u
    root = (space.last_times[0] / space.noise.t_max) ** (1 / 7)
    return (root + u * (1 - root)) ** 7


def draw_decisions(space: Space, rates: Rates, count: int, rng: Random) -> dict[str, Ints | Floats]:
    """Fresh decisions of `count` steps, as the released insertion draws them."""
    order = 1 + rng.choice(4, count, p=_weights(rates.order_weights))
    return {
        "order": order,
        "basis": _basis(space, rates, count, rng),
        "start": np.ones(count, np.int64),
        "low": np.where(rng.random(count) < rates.estimate, rng.integers(1, 3, count), 0),
        "scaling": np.zeros(count, np.int64),
        "r": np.zeros(count),
        "corrector": rng.integers(0, 2, count),
        "tau": rng.choice(space.taus, count) if rates.tau else np.full(count, min(space.taus)),
    }


def delete_step(g: Genes, which: Bools, rng: Random) -> None:
    """An inner time of some schedules goes, with the step that ends there; in place."""
    rows = np.flatnonzero(which)
    if not len(rows):
        return
    spot = 1 + (rng.random(len(rows)) * (g.steps[rows] - 1)).astype(np.int64)
    index = np.arange(g.room)
    source = np.where(index >= (spot - 1)[:, None], index + 1, index).clip(max=g.room - 1)
    for name in STEP_FIELDS:
        array = getattr(g, name)
        array[rows] = np.take_along_axis(array[rows], source, 1)
    index = np.arange(g.room + 1)
    source = np.where(index >= spot[:, None], index + 1, index)
    padded = np.concatenate([g.times[rows], np.full((len(rows), 1), np.nan)], 1)
    g.times[rows] = np.take_along_axis(padded, source, 1)
    g.steps[rows] -= 1


def _times(space: Space, rates: Rates, g: Genes, rng: Random) -> None:
    """Inner times move by a normal step, the last one is redrawn; then all are sorted."""
    shape = g.order.shape
    step = rates.time_spread * rng.standard_normal(shape)
    moved = g.times[:, 1:] * (1 + step) if rates.relative else g.times[:, 1:] + space.noise.t_max * step
    margin = 1e-3 * (g.times[:, :1] if not rates.relative else g.times[:, 1:])
    end = np.take_along_axis(g.times, g.steps[:, None], 1)
    inside = (moved > end + margin) & (moved < g.times[:, :1] - margin)
    drawn = rng.random(shape) < rates.time
    use = drawn & inside & g.live & ~g.last
    g.times[:, 1:] = np.where(use, _rounded(space, moved), g.times[:, 1:])
    ends = draw_ends(space, len(g), rng)
    g.times[:, 1:] = np.where(drawn & g.last, ends[:, None], g.times[:, 1:])
    g.times[:] = -np.sort(-g.times, axis=1)  # NaN stay at the end


def draw_ends(space: Space, count: int, rng: Random) -> Floats:
    """Last times: uniform in their range, or half of them clean where the space allows it."""
    low, high = space.last_times
    out = _rounded(space, rng.uniform(low, high, count)).clip(low, high)
    return np.where(rng.random(count) < 0.5 * space.clean, space.noise.t_clean, out)


def _decisions(space: Space, rates: Rates, g: Genes, rng: Random) -> None:
    """Every step redraws each of its decisions with that decision's chance; in place."""
    shape = g.order.shape
    chance = lambda rate: rng.random(shape) < rate  # noqa: E731
    size = int(np.prod(shape))
    order = (1 + rng.choice(4, size, p=_weights(rates.order_weights))).reshape(shape)
    order = np.minimum(np.minimum(order, np.arange(g.room) + 1), space.orders)
    changed = chance(rates.order) & (order != g.order)
    g.order[changed] = order[changed]
    for name in ("low", "scaling", "r"):  # a new order begins with full-order estimates
        getattr(g, name)[changed] = 0
    g.basis[:] = np.where(chance(rates.basis), _basis(space, rates, size, rng).reshape(shape), g.basis)
    relaxed = chance(rates.scaling)
    g.r[:] = np.where(relaxed & (g.scaling > 0), _slope(g), g.r)
    g.scaling[relaxed] = 0
    moved = relaxed & chance(rates.scaling)
    g.r[moved] = (g.r + rates.scaling_spread * rng.standard_normal(shape)).round(DIGITS)[moved]
    g.low[:] = np.where(chance(rates.estimate), rng.integers(1, 3, shape), g.low)
    kinds = rng.integers(0, 2, shape) if not space.implicit else rng.choice(3, shape, p=(0.5, 0.4, 0.1))
    g.corrector[:] = np.where(chance(rates.corrector), kinds, g.corrector)
    if rates.start:
        g.start[:] = np.where(chance(rates.start), rng.integers(1, space.starts + 1, shape), g.start)
    if rates.tau:
        g.tau[:] = np.where(chance(rates.tau), rng.choice(space.taus, shape), g.tau)


def _slope(g: Genes) -> Floats:
    """The relaxation nearest to a step's named scaling: its slope in z, which is -h in the data basis."""
    slopes = np.array(SLOPES)[g.scaling]
    return np.where(g.basis == 1, slopes, -slopes).round(DIGITS)


def _basis(space: Space, rates: Rates, count: int, rng: Random) -> Ints:
    allowed = [BASES.index(b) for b in space.bases]
    weights = _weights([rates.basis_weights[b] for b in allowed])
    return rng.choice(np.array(allowed), count, p=weights)


def _afs(space: Space, rates: Rates, count: int, rng: Random) -> Ints:
    allowed = [AFS.index(a) for a in space.afs]
    return rng.choice(np.array(allowed), count, p=_weights([rates.afs_weights[a] or 0.3 for a in allowed]))


def _weights(values: list[float] | tuple[float, ...]) -> Floats:
    array = np.array(values, float)
    return array / array.sum()


def _rounded(space: Space, times: Floats) -> Floats:
    """Times to nine digits of t_max, or to nine of their own where they are small beside it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 10.0 ** (np.floor(np.log10(np.abs(times))) - DIGITS + 1)
        out: Floats = np.where((times == 0) | ~np.isfinite(times), times, np.round(times / unit) * unit)
    return out
