"""Where candidates come from: hand-crafted grids, DMN, the loss curve, and AYS's ways down, for one or more solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep import solvers, times
from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.rules import SolverSchedule
from fewstep.search.ays import DIRECT, Descent, Snapshot, descents, to_ratios, to_times
from fewstep.search.dmn import dmn_times
from fewstep.search.klub import Gram
from fewstep.search.parts import AYS, DMN, GIVEN, GUESS, HAND, LOSS, PARTS
from fewstep.search.planner import Planner
from fewstep.search.relatives import rescaled_entropic
from fewstep.search.select import Candidate
from fewstep.search.surrogate import Array, propose
from fewstep.search.window import Window
from fewstep.tableau import Tableau

RECOMMENDED = ("dpmpp_2m", "unipc", "ipndm", "dpmpp_3m")
"""What `solver="auto"` tries: multistep solvers, one network call a step, each the best of its family somewhere."""
DMN_OPTIONS: tuple[dict[str, Any], ...] = ({"p": 1.0}, {"p": 2.0}, {"p": 1.0, "order": 2}, {"p": 1.0, "truncation": 0})
"""The authors' two exponents come first; `grids` and `auto` take only those."""
POWERS = (1.0, 0.95, 1.05)
"""Of the rescaled entropic times that enter: the paper's, and around it."""

MANY, COARSE = 14, 10
"""From so many steps on AYS also takes the paper's way: grids of ten steps go down, and are refined to the number
wanted. With so many, a way of its own is long, and most of it is past the optimum."""
FROM = 6
"""Starts of the ways down with many steps, where each takes seconds: the best of the standing."""

LEAST_STEP = 0.05
"""The surrogate's steps in log ratio are at least this part of an even step."""

Solver = Callable[[Tensor], SolverSchedule]


def default_solver(method: str) -> str:
    """The solver when none is asked for."""
    return "auto" if PARTS[method].auto else "dpmpp_2m"


@dataclass
class Source:
    """Candidates of one solver at one number of network calls.

    Attributes:
        noise: of the network; window: from where to where its grids go.
        name, solver: the solver, `times -> SolverSchedule`.
        steps: number of steps along the times; nfe: network calls.
        ways: the ways down that were computed so far, by the name of their start and how they got their length.
    """

    name: str
    solver: Solver
    steps: int
    nfe: int
    window: Window
    ways: dict[tuple[str, str], Descent] = field(default_factory=dict)

    @property
    def noise(self) -> NoiseSchedule:
        """Of the network."""
        return self.window.noise

    def candidate(self, grid: Tensor, method: str, origin: str, **about: Any) -> Candidate | None:
        """The sampler on these times; None where the solver cannot use them, or makes another number of calls."""
        try:
            schedule = self.solver(grid)
            tableau = schedule.tabulate(self.noise)
        except ArgumentError:
            return None
        if tableau.nfe != self.nfe:
            return None
        return Candidate(schedule, tableau, self.name, method, origin, to_ratios(self.noise, grid).log(), about=about)

    def hand(self) -> Iterator[Candidate]:
        """The hand-crafted grids."""
        for name, make in times.NAMES.items():
            try:
                grid = make(self.noise, self.steps, **self.window.ends)
            except ArgumentError:  # a grid that cannot be laid with so many steps
                continue
            yield from _some(self.candidate(grid, HAND, name))

    def given(self, table: Tableau, method: str = GIVEN) -> Iterator[Candidate]:
        """This solver on the times of another table, somebody else's as a rule, spread over as many steps."""
        with suppress(ArgumentError):  # times that reach out of the window
            grid = respread(self.window, table, self.steps)
            yield from _some(self.candidate(grid, method, f"times of {table.name or 'the given table'}"))

    def dmn(self, variants: int) -> Iterator[Candidate]:
        """DMN's minimisers, for that many variants of the bound."""
        if self.steps < 2:
            return
        for options in DMN_OPTIONS[:variants]:
            said = ", ".join(f"{key}={value:g}" for key, value in options.items())
            ends = {"start": self.window.start, "end": self.window.end}
            grid = dmn_times(self.noise, self.steps, **ends, **options)
            yield from _some(self.candidate(grid, DMN, f"DMN, {said}", **options))

    def planned(self, planner: Planner, method: str) -> Iterator[Candidate]:
        """Times that a plan on teacher trajectories proposes."""
        for grid, origin, about in planner.propose(method, self.name, self.solver, self.steps):
            yield from _some(self.candidate(grid, method, origin, **about))

    def relatives(self, gram: Gram) -> Iterator[Candidate]:
        """Times from the network's own denoising loss, which the KLUB table holds."""
        for power in POWERS:
            grid = rescaled_entropic(gram, self.noise, self.steps, power=power, **self.window.ends)
            yield from _some(self.candidate(grid, LOSS, f"rescaled entropic, power {power:g}", power=power))

    def descend(self, gram: Gram, starts: Sequence[Candidate]) -> None:
        """Compute the ways down from these candidates, the best first; with many steps also those of the hierarchy."""
        many = self.steps >= MANY
        direct = {c.origin: c.times for c in (starts[:FROM] if many else starts)}
        new = {name: grid for name, grid in direct.items() if (name, DIRECT) not in self.ways}
        found = descents(gram, self.noise, new)
        if many:
            found += descents(gram, self.noise, self._coarse(starts), n=self.steps)
        for way in found:
            self.ways[way.start, way.snapshots[0].via] = way

    def _coarse(self, starts: Sequence[Candidate]) -> dict[str, Tensor]:
        """The first hand-crafted ones of the starts with ten steps."""
        found: dict[str, Tensor] = {}
        for c in [c for c in starts if c.origin in times.NAMES][:FROM]:
            with suppress(ArgumentError):  # a grid that cannot be laid with so few steps
                found[c.origin] = times.NAMES[c.origin](self.noise, COARSE, **self.window.ends)
        return found

    def snapshot(self, snapshot: Snapshot) -> Candidate | None:
        """A grid on a way down."""
        about: dict[str, Any] = {"start": snapshot.start, "sweep": snapshot.sweep, "klub": snapshot.klub}
        if snapshot.via != DIRECT:
            about["via"] = snapshot.via
        return self.candidate(snapshot.times, AYS, snapshot.origin, **about)

    def thinned(self, order: Sequence[str], count: int) -> Iterator[Candidate]:
        """Snapshots of the ways down from the starts in `order`, in turns: each way's best guess first.

        The first sweep is still close to the start and the late ones are past the optimum, so the second comes first.
        """
        picks = [way.thinned(count) for name in order for (start, _), way in self.ways.items() if start == name]
        for k in sorted(range(count), key=lambda k: (abs(k - 1.25), k)):
            for way in picks:
                if k < len(way):
                    yield from _some(self.snapshot(way[k]))

    def around(self, candidate: Candidate) -> Iterator[Candidate]:
        """The neighbours on the way of a snapshot, near ones first; the first sweeps from a start."""
        name = candidate.about.get("start", candidate.origin)
        way = self.ways.get((name, candidate.about.get("via", DIRECT)))
        if way is None:
            return
        here = candidate.about.get("sweep", 0)
        for distance in (1, 2, 3):
            for k in (here - distance, here + distance):
                if 0 < k < len(way.snapshots):
                    yield from _some(self.snapshot(way.snapshots[k]))

    def guess(
        self, scored: Sequence[Candidate], scores: Sequence[float], noise: Sequence[float], seed: int
    ) -> Candidate | None:
        """The grid that a surrogate of the scores expects most of; None where it finds no legal one.

        Args:
            scored: candidates of this solver; scores: theirs, on one scale; noise: relative noise variance of each.
            seed: of the drawing.
        """
        first = scored[0]
        points = np.stack([c.log_ratios[1:-1].numpy() for c in scored])
        top, bottom = first.log_ratios[0].item(), first.log_ratios[-1].item()
        gap = LEAST_STEP * (top - bottom) / self.steps

        def legal(places: Array) -> Any:
            ends = np.full((len(places), 1), top), np.full((len(places), 1), bottom)
            return (np.diff(np.concatenate([ends[0], places, ends[1]], axis=1), axis=1) < -gap).all(1)

        place = propose(points, np.array(scores), np.array(noise), legal, np.random.default_rng(seed))
        if place is None:
            return None
        logs = torch.cat([first.log_ratios[:1], torch.from_numpy(place), first.log_ratios[-1:]])
        return self.candidate(to_times(self.noise, logs.exp(), first.times), GUESS, f"surrogate, guess {seed + 1}")


def sources(window: Window, solver: str | Solver | Sequence[str | Solver], nfe: int) -> list[Source]:
    """One source for each solver asked for; of several, those that can make `nfe` calls.

    Errors: `ArgumentError` when a solver is unknown, or none can make `nfe` calls.
    """
    asked = RECOMMENDED if solver == "auto" else (solver,) if isinstance(solver, str) or callable(solver) else solver
    found: list[Source] = []
    refused: list[ArgumentError] = []
    for one in dict.fromkeys(asked):
        try:
            found.append(_named(window, one, nfe) if isinstance(one, str) else _own_solver(window, one, nfe))
        except NotSoMany as error:
            refused.append(error)
    if not found:
        raise refused[0] if refused else ArgumentError("solver is empty: give at least one, e.g. 'dpmpp_2m'")
    return found


class NotSoMany(ArgumentError):
    """A solver cannot make this number of network calls."""


def _named(window: Window, name: str, nfe: int) -> Source:
    def steps(calls: int) -> int | None:
        return solvers.calls(name, calls, to_zero=window.to_zero)

    n = steps(nfe)
    if n is None:
        near = [k for k in range(max(1, nfe - 3), nfe + 4) if steps(k) is not None]
        raise NotSoMany(
            f"{name} cannot make exactly {nfe} network calls; near by it can make {', '.join(map(str, near)) or 'none'}"
        )
    return Source(name, solvers.get(name), n, nfe, window)


def _own_solver(window: Window, solver: Solver, nfe: int) -> Source:
    """A user's `times -> SolverSchedule`: the number of steps is found by trying."""
    name = getattr(solver, "__name__", "own solver")
    for steps in range(1, nfe + 2):
        source = Source(name, solver, steps, nfe, window)
        if source.candidate(times.logsnr(window.noise, steps, **window.ends), HAND, "logsnr") is not None:
            return source
    raise NotSoMany(
        f"solver {name} makes {nfe} network calls with no number of steps up to {nfe + 1}: give another nfe"
    )


def _some(candidate: Candidate | None) -> list[Candidate]:
    return [] if candidate is None else [candidate]


def respread(window: Window, table: Tableau, steps: int) -> Tensor:
    """The falling times of a table with as many steps, between the ends of the window."""
    noise = window.noise
    own: list[float] = []
    for t in (table.schedule.times if table.schedule is not None else table.times).tolist():
        if not own or t < own[-1]:
            own.append(t)
    inner = [t for t in own[1:-1] if window.last < t < window.first]
    grid = torch.tensor([window.first, *inner, window.last], dtype=torch.float64, device="cpu")
    return grid if len(grid) == steps + 1 else times.resample(grid, steps, noise)


def entered(window: Window, table: Tableau, nfe: int) -> Candidate:
    """A finished table as a candidate of its own.

    Errors: `ArgumentError` for another number of calls, another noise schedule, or another start than the window's.
    """
    if table.nfe != nfe:
        raise ArgumentError(f"the given table makes {table.nfe} network calls, and nfe is {nfe}: give them alike")
    if table.noise != window.noise:
        raise ArgumentError(
            f"the given table is for {table.noise!r}, and the network has {window.noise!r}: trace it with the network's"
        )
    begun, first = window.noise.ratio(table.times[0]).item(), window.noise.ratio(window.first).item()
    if abs(begun - first) > 0.05 * first:
        raise ArgumentError(
            f"the given table starts at noise level {begun:.4g}, and the search at {first:.4g}: give start= to match"
        )
    name = f"{table.name or 'table'} (given)"
    grid = respread(window, table, max(1, len({*table.times.tolist()}) - 1))
    return Candidate(table.schedule, table, name, GIVEN, "the given table", to_ratios(window.noise, grid).log())
