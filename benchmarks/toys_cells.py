"""The cells of `benchmarks.toys`: which times are searched for, how, and what is scored."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.quality_cells import SET_STRIDE, Deadline, Job, from_times, key_of
from benchmarks.toys_sets import CALIBRATION_SEED, MIXTURES, TRAINED, MixtureToy, Toy, TrainedToy
from fewstep import solvers, times
from fewstep.compare import Cell, Results
from fewstep.noise import as_float64
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.search.ays import Snapshot, ays, descents
from fewstep.search.klub import Gram

SOLVERS = {"sde_dpmpp_2m": "SDE-DPM-Solver++(2M)", "ddim": "DDIM", "sde_dpmpp_1": "stochastic DDIM"}
NFES = (6, 8, 10)
BASELINES = {"edm": "karras", "logsnr": "logsnr"}
METHODS = ("best", "ays_edm", "ays", "converged")
TIMES = (*BASELINES, *METHODS)
NETWORK_SHARE = 4
"""With a network, one sample of so many."""
FIGURES = (
    ("grid_8x8", "sde_dpmpp_2m", 8), ("grid_8x4", "ddim", 7), ("grid_6x6", "sde_dpmpp_1", 6),
    ("spirals", "sde_dpmpp_2m", 8), ("checkerboard", "sde_dpmpp_2m", 8),
)  # fmt: skip
"""The pictures: set, solver, calls. The first three are the paper's (its figures 16, 13 and 14)."""


class Place(NamedTuple):
    """Where times are searched for and scored: a set, a solver and a number of calls."""

    name: str
    solver: str
    nfe: int


class Sizes(NamedTuple):
    """How many samples everything takes; where a network has to be run, selection and report take fewer."""

    calibration: int = 4096
    selection: int = 4000
    fresh: int = 20_000
    report: int = 100_000
    sets: int = 3

    def of(self, a: Toy, whole: int) -> int:
        """The number for this set: a fourth of it with a network."""
        return whole if isinstance(a, MixtureToy) else max(1, whole // NETWORK_SHARE)


def places(names: tuple[str, ...] = (*MIXTURES, *TRAINED)) -> list[Place]:
    """Every cell of the tables, then those that only a picture needs."""
    tables = [Place(name, solver, nfe) for name in names for nfe in NFES for solver in SOLVERS]
    return tables + [p for p in (Place(*f) for f in FIGURES) if p.name in names and p not in tables]


# -------------------------------------------------------------------------------------------------------- the search
def starts_of(a: Toy, nfe: int) -> dict[str, torch.Tensor]:
    """Every hand-crafted grid, ending at t_min as the paper's do."""
    return {name: make(a.model.noise, nfe, end="min") for name, make in times.NAMES.items()}


def gram_of(a: Toy, sizes: Sizes) -> Gram:
    """The inner products behind every KLUB."""
    points = a.data(sizes.calibration, CALIBRATION_SEED)
    return Gram.compute(a.model, points, seeds=CalibrationSeeds(sizes.calibration))


def search(a: Toy, gram: Gram, place: Place, sizes: Sizes) -> dict[str, Any]:
    """Times by method, and where they come from.

    A candidate's score is its divergence from the data with the place's own solver; finalists are scored again on
    other, more selection samples.
    """
    began, noise = time.monotonic(), a.model.noise

    def evaluate(where: torch.Tensor, seeds: SelectionSeeds) -> float:
        return a.divergence(a.draw(solvers.get(place.solver)(where).tabulate(noise), seeds))

    first = partial(evaluate, seeds=SelectionSeeds(sizes.of(a, sizes.selection)))
    again = partial(evaluate, seeds=SelectionSeeds(sizes.of(a, sizes.fresh), SET_STRIDE))
    starts = starts_of(a, place.nfe)
    outcome = ays(gram, noise, starts, first, fresh=again)
    from_edm = [(s, score) for s, score in outcome.tried if s.start == BASELINES["edm"]]
    # The paper's recipe: one start, and its own early stop.
    own = min(from_edm, key=lambda pair: pair[1])[0]
    ends = [way.snapshots[-1] for way in descents(gram, noise, starts)]
    # Of the converged ways the one with the lowest bound: that is what early stopping avoids.
    found: dict[str, Snapshot] = {
        "best": outcome.start,
        "ays_edm": own,
        "ays": outcome.best,
        "converged": min(ends, key=lambda s: s.klub),
    }
    return {
        "times": {name: s.times.tolist() for name, s in found.items()},
        "origin": {name: s.origin for name, s in found.items()},
        "klub": {name: float(f"{s.klub:.5g}") for name, s in found.items()},
        "candidates": len(outcome.tried),
        "seconds": round(time.monotonic() - began, 1),
    }


def search_key(a: Toy, place: Place, sizes: Sizes) -> str:
    """The name of a search's result."""
    return key_of("toys-search", a.model.fingerprint, place, sizes.calibration, sizes.selection, sizes.fresh)


def search_all(a: Toy, kept: Results, deadline: Deadline, sizes: Sizes, chosen: list[Place]) -> int:
    """Make the searches of one set that are missing; returns how many are left."""
    waiting = [p for p in chosen if p.name == a.name and kept.get(search_key(a, p, sizes)) is None]
    if not waiting:
        return 0
    gram = gram_of(a, sizes)
    for done, place in enumerate(waiting):
        if deadline.over:
            return len(waiting) - done
        record = search(a, gram, place, sizes)
        kept.add(search_key(a, place, sizes), record, phase="search", **place._asdict())
        print(f"{place}: {json.dumps(record['origin'])}, {record['seconds']} s", flush=True)
    return 0


# -------------------------------------------------------------------------------------------------------- the scores
def cells_of(a: Toy, kept: Results, place: Place, sizes: Sizes) -> list[Cell]:
    """The solver on every kind of times that is known for a place."""
    noise = a.model.noise
    grids = {name: times.named(grid)(noise, place.nfe, end="min") for name, grid in BASELINES.items()}
    found = kept.get(search_key(a, place, sizes))
    if found is not None:
        grids |= {name: times.check(as_float64(found["times"][name]), noise) for name in METHODS}
    return [from_times(noise, place.solver, name, place.nfe, grid) for name, grid in grids.items()]


def jobs_of(a: MixtureToy | TrainedToy, kept: Results, sizes: Sizes, chosen: list[Place]) -> Iterator[Job]:
    """The scores of one set: what exact samples score, then every cell, one set of seeds after another."""
    for k in range(sizes.sets):
        seeds = ReportSeeds(sizes.of(a, sizes.report), k * SET_STRIDE)

        def exact(seeds: ReportSeeds = seeds) -> dict[str, float]:
            return a.scores(a.exact(seeds))

        def made(cell: Cell, seeds: ReportSeeds = seeds) -> dict[str, float]:
            assert cell.tableau is not None
            return a.scores(a.draw(cell.tableau, seeds))

        about = {"phase": "score", "name": a.name, "seeds": repr(seeds)}
        key = partial(key_of, "toys-score", a.model.fingerprint, repr(seeds))
        yield Job(Cell("exact", "", 0), about | {"solver": "exact"}, key("exact"), exact)
        for place in chosen:
            if place.name != a.name or place.nfe not in NFES:
                continue
            for cell in cells_of(a, kept, place, sizes):
                if cell.tableau is not None:
                    more = {"solver": cell.solver, "times": cell.times, "nfe": cell.nfe}
                    yield Job(cell, about | more, key(cell.tableau.digest), partial(made, cell))
