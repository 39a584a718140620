"""Align Your Steps: times by coordinate descent on the KLUB (Sabour, Fidler & Kreis, ICML 2024, Algorithm 1).

Three facts decide how it is done here.

- The minimiser of the KLUB is the ELBO-optimal grid and samples badly: nearly all its steps are at low noise. What
  makes the method work is the *way* there from a sensible start, stopped early. So every sweep is kept, and the
  choice is made by whatever the caller measures, with the solver that will be used.
- The way depends on the start; every hand-crafted grid is one.
- The KLUB is the bound of a first-order stochastic solver. It is used for every solver, as in the paper: for a second
  order one the bound is larger on every grid and says nothing about its advantage.

Grids here are ratios `sigma / alpha`, noisy to clean; `to_ratios` and `to_times` translate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.search.klub import Gram
from fewstep.times.grids import finite_ratio
from fewstep.times.resample import log_linear

Klub = Callable[[Tensor, Tensor], Tensor]
"""`(low, high) -> cost` of steps between ratios; `Gram.klub`, or a closed form."""

SIDE = 5
"""Candidates on each side of a point; with the point itself, the paper's eleven."""
REACH = 0.25
"""How far they go, as a part of the log-distance to each neighbour (the paper does not say)."""
MAX_SWEEPS = 300
DIRECT = "direct"
"""How a grid got its number of steps: it had them from the start. Else the words of `Snapshot.via`."""
LEVELS = 2
"""Splits of the hierarchy: 10 to 20 to 40 steps."""


def to_ratios(noise: NoiseSchedule, times: Tensor) -> Tensor:
    """Times as ratios: a clean end becomes the ratio at `t_min`, an infinite start a finite one (`finite_ratio`)."""
    ratios = noise.ratio(times).clone()
    if times[-1].item() == noise.t_clean:
        ratios[-1] = noise.ratio(noise.t_min)
    ratios[0] = finite_ratio(noise, times[0].item(), noise.t_min)[0]
    return ratios


def to_times(noise: NoiseSchedule, ratios: Tensor, like: Tensor) -> Tensor:
    """Ratios as times, with the two ends of `like` (whose clean end no ratio can stand for) kept exactly."""
    times = noise.time_of_ratio(ratios).clone()
    times[0], times[-1] = like[0], like[-1]
    return times


def sweep(klub: Klub, ratios: Tensor, free: Sequence[int] | None = None) -> Tensor:
    """One pass of coordinate descent, from the clean end up: each free point moves to the best of eleven places.

    Args:
        klub: cost of a step.
        ratios: `[n+1]` falling.
        free: indices of the points that may move; by default all but the ends.
    """
    order = sorted(range(1, len(ratios) - 1) if free is None else free, reverse=True)
    apart = all(above - below > 1 for above, below in itertools.pairwise(order))
    ratios = ratios.clone()
    for group in [order] if apart and order else [[i] for i in order]:  # points with fixed neighbours move all at once
        i = torch.tensor(group, device="cpu")
        places = candidates(ratios[i - 1], ratios[i], ratios[i + 1])
        below, above = ratios[i + 1, None].expand_as(places), ratios[i - 1, None].expand_as(places)
        both = klub(torch.stack([below, places]), torch.stack([places, above]))
        ratios[i] = places.gather(1, both.sum(0).argmin(1, keepdim=True))[:, 0]
    return ratios


def candidates(above: Tensor, here: Tensor, below: Tensor) -> Tensor:
    """The eleven places `[m, 11]` of points `[m]`; the current one comes first, so that a tie changes nothing."""
    steps = torch.arange(1, SIDE + 1, dtype=torch.float64, device="cpu") * (REACH / SIDE)
    logs = here.log()[:, None]
    moved = [(logs + steps * (other.log()[:, None] - logs)).exp() for other in (below, above)]
    return torch.cat([here[:, None], *moved], dim=1)


def descend(
    klub: Klub, ratios: Tensor, free: Sequence[int] | None = None, *, max_sweeps: int = MAX_SWEEPS
) -> list[Tensor]:
    """The whole way: the grid after every sweep, the start first, until a sweep moves nothing."""
    return walk(lambda grid: sweep(klub, grid, free), ratios, max_sweeps)


def walk(once: Callable[[Tensor], Tensor], ratios: Tensor, most: int = MAX_SWEEPS) -> list[Tensor]:
    """A grid and what repeated passes make of it, until one moves nothing or there were `most`."""
    way = [ratios]
    while len(way) <= most:
        after = once(way[-1])
        if torch.equal(after, way[-1]):
            break
        way.append(after)
    return way


def split(ratios: Tensor) -> Tensor:
    """`[n+1] -> [2n+1]`: a point in the middle of every step, on the log axis."""
    fine = torch.empty(2 * len(ratios) - 1, dtype=ratios.dtype, device="cpu")
    fine[::2] = ratios
    fine[1::2] = (ratios[:-1] * ratios[1:]).sqrt()
    return fine


def refine(klub: Klub, ratios: Tensor, levels: int = LEVELS) -> Tensor:
    """The paper's hierarchy: split every step, the new points alone descend, and again. `[n+1]` to `[2^k n + 1]`."""
    for _ in range(levels):
        ratios = split(ratios)
        ratios = descend(klub, ratios, range(1, len(ratios), 2))[-1]
    return ratios


@dataclass(frozen=True)
class Snapshot:
    """A grid on the way down: where it started, the number of sweeps since, its KLUB, and how it got its length."""

    times: Tensor
    start: str
    sweep: int
    klub: float
    via: str = DIRECT

    @property
    def origin(self) -> str:
        """In words, for tables and reports."""
        way = "" if self.via == DIRECT else f", {self.via}"
        sweeps = f"{self.sweep} sweep{'s' if self.sweep > 1 else ''}"
        return f"AYS from {self.start}, {sweeps}{way}" if self.sweep else f"{self.start}{way}"


@dataclass(frozen=True)
class Descent:
    """The way down from one start: `snapshots[k]` is the grid after k sweeps, the last one is converged."""

    start: str
    snapshots: tuple[Snapshot, ...]

    def thinned(self, count: int) -> list[Snapshot]:
        """At most `count` snapshots after the start: sweeps grow geometrically, the converged one comes last."""
        last = len(self.snapshots) - 1
        if last <= count:
            return list(self.snapshots[1:])
        picks = [round(last ** (k / max(1, count - 1))) for k in range(count)]
        for k in range(1, count):  # rounding may repeat a small number
            picks[k] = max(picks[k], picks[k - 1] + 1)
        return [self.snapshots[min(k, last)] for k in picks]


def descents(gram: Gram, noise: NoiseSchedule, starts: Mapping[str, Tensor], *, n: int | None = None) -> list[Descent]:
    """Coordinate descent from every start; no network calls.

    Args:
        gram: the table of inner products.
        noise: the network's noise schedule.
        starts: named times `[m+1]`, noisy to clean.
        n: the wanted number of steps. Starts of another length descend at their own and are brought to n steps through
            the hierarchy and resampling, the paper's way.
    """
    found: list[Descent] = []
    for name, times in starts.items():
        wanted = len(times) - 1 if n is None else n
        via = DIRECT if wanted == len(times) - 1 else f"{len(times) - 1} steps refined to {wanted}"
        way: list[Snapshot] = []
        for k, ratios in enumerate(descend(gram.klub, to_ratios(noise, times))):
            if via != DIRECT:
                ratios = log_linear(refine(gram.klub, ratios), wanted + 1)
            ends = torch.cat([times[:1], ratios[1:-1], times[-1:]])
            grid = times if k == 0 and via == DIRECT else to_times(noise, ratios, ends)
            way.append(Snapshot(grid, name, k, gram.total(ratios), via))
        found.append(Descent(name, tuple(way)))
    return found


@dataclass(frozen=True)
class Outcome:
    """What `ays` chose: the snapshot, its score, and every snapshot that was scored with its score."""

    best: Snapshot
    score: float
    start: Snapshot
    start_score: float
    tried: tuple[tuple[Snapshot, float], ...]


def ays(
    gram: Gram,
    noise: NoiseSchedule,
    starts: Mapping[str, Tensor],
    evaluate: Callable[[Tensor], float],
    *,
    fresh: Callable[[Tensor], float] | None = None,
    per_start: int = 6,
    n: int | None = None,
    finalists: int = 3,
) -> Outcome:
    """AYS with the early stop chosen by measurement, from every start.

    Of each way down, `per_start` snapshots are scored; then the neighbours of the best, until none is better. The best
    `finalists` and the best start are scored once more by `fresh`, and its verdict stands: the result is never worse
    than the best start on that score.

    Args:
        gram: the table of inner products.
        noise: the network's noise schedule.
        starts: named times, noisy to clean.
        evaluate: score of times with the target solver, lower is better (on selection seeds).
        fresh: the same on other seeds; by default `evaluate` itself.
        per_start: snapshots scored on each way.
        n: number of steps, if other than the starts'.
        finalists: how many are scored again.

    Errors: `ArgumentError` when there is no start.
    """
    if not starts:
        raise ArgumentError(
            "starts is empty: give at least one grid of times, e.g. {'karras': fewstep.times.karras(noise, n)}"
        )
    ways = descents(gram, noise, starts, n=n)
    scores: dict[tuple[str, int], float] = {}

    def score(snapshot: Snapshot) -> float:
        key = (snapshot.start, snapshot.sweep)
        if key not in scores:
            scores[key] = evaluate(snapshot.times)
        return scores[key]

    for way in ways:
        for snapshot in [way.snapshots[0], *way.thinned(per_start)]:
            score(snapshot)
    by_name = {way.start: way.snapshots for way in ways}
    best = min(scores, key=lambda key: scores[key])
    while True:  # downhill along the way of the best, one sweep at a time
        name, k = best
        around = [s for s in by_name[name][max(0, k - 1) : k + 2] if score(s) < scores[best]]
        if not around:
            break
        best = (name, min(around, key=score).sweep)
    ranked = sorted(scores, key=lambda key: scores[key])
    start = min((key for key in scores if key[1] == 0), key=lambda key: scores[key])
    again = fresh or evaluate
    final = {key: again(by_name[key[0]][key[1]].times) for key in dict.fromkeys([start, *ranked[:finalists]])}
    winner = min(final, key=lambda key: final[key])
    tried = tuple((by_name[name][k], value) for (name, k), value in sorted(scores.items()))
    return Outcome(by_name[winner[0]][winner[1]], final[winner], by_name[start[0]][start[1]], final[start], tried)
