"""Solvers and times side by side: every cell a table, scored on the same fresh seeds, and kept through crashes.

    judge = models.judge("mnist")
    found = compare.score(model, tableau, ReportSeeds(5000), judge=judge, teacher=compare.teacher(model))
    found["fd"], found["fd_error"], found["rms"], found["evaluations"]

A cell that a solver cannot reach (Heun with 6 calls onto sigma 0) says why instead of a score.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep import solvers, times
from fewstep.brownian import motion
from fewstep.errors import ArgumentError
from fewstep.metrics import frechet_with_error, paired_rmse
from fewstep.metrics.statistics import mean_with_error
from fewstep.models import default_condition
from fewstep.progress import Event, Report, silent
from fewstep.randomness import ReportSeeds
from fewstep.results import Results
from fewstep.sampling import sample
from fewstep.search.dmn import dmn_times
from fewstep.search.teacher import CALLS, CHUNK, Teacher, reference_schedule
from fewstep.times.ends import End

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.metrics import Features
    from fewstep.models import Judge
    from fewstep.noise import NoiseSchedule
    from fewstep.tableau import Tableau

FEWEST = 48  # samples for a Fréchet distance with its error
FORMAT = 1  # of a cell's record; part of its key


@dataclass(frozen=True)
class Cell:
    """One place of the comparison: a solver on a grid (or a file) at `nfe` calls; `reason` says why it has no table."""

    solver: str
    times: str
    nfe: int
    tableau: Tableau | None = None
    reason: str = ""

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.solver} \N{MIDDLE DOT} {self.times}" if self.times else self.solver


@dataclass(frozen=True)
class Row:
    """A cell with its scores (`score` says which); `scores` is empty where the cell has no table."""

    solver: str
    times: str
    nfe: int
    digest: str = ""
    reason: str = ""
    scores: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def label(self) -> str:
        """In words."""
        return Cell(self.solver, self.times, self.nfe).label

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)


def teacher(
    model: Denoiser, *, calls: int = CALLS, cache: str | Path | None = None, batch_size: int = CHUNK
) -> Teacher:
    """End points of a deterministic reference run of `calls` calls, under the default conditions."""
    tableau = reference_schedule(model.noise, calls).tabulate(model.noise)
    return Teacher(
        model, tableau, condition=lambda seeds: default_condition(model, seeds), cache=cache, batch_size=batch_size
    )


def cell(noise: NoiseSchedule, solver: str, grid: str, nfe: int, **options: Any) -> Cell:
    """The named solver on the named times with exactly `nfe` calls, or the reason why there is none; options are those
    of the times (`end="min"`, `rho=2.0`).
    """
    make, place = solvers.get(solver), times.named(grid)
    n = solvers.calls(solver, nfe, to_zero=options.get("end", "zero") in ("zero", "append"))
    if n is None:
        return Cell(solver, grid, nfe, reason=f"{solver} cannot make {nfe} calls")
    try:
        tableau = make(place(noise, n, **options)).tabulate(noise)
    except ArgumentError as error:
        return Cell(solver, grid, nfe, reason=str(error))
    if tableau.nfe != nfe:
        return Cell(solver, grid, nfe, reason=f"{solver} makes {tableau.nfe} calls here")
    return Cell(solver, grid, nfe, tableau)


def dmn_cell(noise: NoiseSchedule, solver: str, nfe: int, end: End = "zero") -> Cell:
    """A named solver on DMN's times as its authors lay them for pixels (p = 1); no network is called."""
    steps = solvers.calls(solver, nfe, to_zero=end == "zero")
    if steps is None or steps < 2:
        return Cell(solver, "dmn", nfe, reason=f"{solver} cannot make {nfe} calls on DMN's times")
    table = solvers.get(solver)(dmn_times(noise, steps, p=1.0, end=end)).tabulate(noise)
    reason = "" if table.nfe == nfe else f"{solver} makes {table.nfe} calls here"
    return Cell(solver, "dmn", nfe, None if reason else table, reason)


def cells(noise: NoiseSchedule, nfes: Sequence[int], names: Sequence[str], grids: Sequence[str]) -> list[Cell]:
    """All cells, by number of calls, then solver, then times."""
    for nfe in nfes:
        if nfe < 1:
            raise ArgumentError(f"nfe={nfe}: give positive numbers of network calls")
    return [cell(noise, solver, grid, nfe) for nfe in nfes for solver in names for grid in grids]


@dataclass(frozen=True)
class Seen:
    """What one pass over the samples of a table keeps of them.

    Attributes:
        features: `[n, d]` float64 on the CPU; squares: `[n]` mean squared differences to the teacher's samples.
        nll: mean negative log-likelihood.
        calls, seconds: samples through the network, and the time of the sampling, the teacher's not counted.
    """

    features: Tensor | None
    squares: Tensor | None
    nll: float | None
    calls: int
    seconds: float

    @property
    def rms(self) -> tuple[float, float]:
        """Root mean square distance to the teacher's samples, with its error."""
        assert self.squares is not None, "look was given no teacher"
        mean, error = mean_with_error(self.squares)
        return math.sqrt(mean), error / (2 * math.sqrt(mean)) if mean > 0 else 0.0


@torch.no_grad()
def look(
    model: Denoiser,
    tableau: Tableau,
    seeds: Sequence[int],
    *,
    features: Features | None = None,
    nll: Callable[[Tensor], float] | None = None,
    teacher: Teacher | None = None,
    batch_size: int = 250,
) -> Seen:
    """Sample a table once under the default conditions, and keep what is asked for."""
    rows: list[Tensor] = []
    squares: list[Tensor] = []
    together = teacher is not None and teacher.tableau.C.shape[1] > 0  # on its Brownian motion
    calls, seconds, likelihood = 0, 0.0, 0.0
    for start in range(0, len(seeds), batch_size):
        batch = seeds[start : start + batch_size]
        before, started = model.evaluations, time.perf_counter()
        made = sample(model, tableau, seeds=batch, condition=default_condition(model, batch), brownian=together)
        calls, seconds = calls + model.evaluations - before, seconds + time.perf_counter() - started
        if features is not None:
            rows.append(features(made).double().cpu())
        if nll is not None:
            likelihood += nll(made) * len(batch)
        if teacher is not None:
            squares.append(paired_rmse(made.float().cpu(), teacher(batch)) ** 2)
    return Seen(
        torch.cat(rows) if rows else None, torch.cat(squares) if squares else None,
        None if nll is None else likelihood / len(seeds), calls, seconds,
    )  # fmt: skip


def score(
    model: Denoiser,
    tableau: Tableau,
    seeds: ReportSeeds,
    *,
    judge: Judge | None = None,
    teacher: Teacher | None = None,
    batch_size: int = 250,
) -> dict[str, Any]:
    """What a table scores on fresh seeds: plain numbers by name, lower is better.

    `fd` and `fd_error` (Fréchet distance, standard error; with a judge), `nll` (where the judge knows the density),
    `rms` and `rms_error` (to the teacher's samples of the same seeds; with a teacher), and `samples`, `nfe`, `calls`
    (samples through the network, the teacher's not counted) and `seconds`. Labels are balanced over the seeds
    (`models.default_condition`).

    Raises:
        SeedsError: seeds of another kind.
        ArgumentError: too few of them for a Fréchet distance.
    """
    ReportSeeds.require(seeds, "seeds")
    _check_count(seeds, judge)
    seen = look(
        model, tableau, seeds, features=None if judge is None else judge.features,
        nll=None if judge is None else judge.nll, teacher=teacher, batch_size=batch_size,
    )  # fmt: skip
    found: dict[str, Any] = {"samples": len(seeds), "nfe": tableau.nfe, "calls": seen.calls, "seconds": seen.seconds}
    if judge is not None and seen.features is not None:
        found["fd"], found["fd_error"] = frechet_with_error(seen.features, judge.reference)
        if seen.nll is not None:
            found["nll"] = seen.nll
    if teacher is not None:
        found["rms"], found["rms_error"] = seen.rms
    return found


def _check_count(seeds: ReportSeeds, judge: Judge | None) -> None:
    least = FEWEST if judge is not None else 2
    if len(seeds) < least:
        raise ArgumentError(f"{len(seeds)} samples are too few for a score with an error: give at least {least}")


def key_of(model: Denoiser, tableau: Tableau, seeds: ReportSeeds, judge: Judge | None, teacher: Teacher | None) -> str:
    """A name for one score: it changes with the network, the sampler, the seeds and what judges."""
    judged = None if judge is None else [judge.name, judge.reference.mean.tolist()]
    taught = None if teacher is None else teacher.tableau.digest
    record = [FORMAT, model.fingerprint, tableau.digest, repr(seeds), judged, taught]
    if teacher is not None and teacher.tableau.C.shape[1]:  # both follow one Brownian motion
        record += [motion(teacher.tableau), motion(tableau)]
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:20]


def compare(
    model: Denoiser,
    cells: Sequence[Cell],
    seeds: ReportSeeds,
    *,
    judge: Judge | None = None,
    teacher: Teacher | None = None,
    results: Results | None = None,
    by: str = "fd",
    batch_size: int = 250,
    progress: Report = silent,
) -> Iterator[Row]:
    """Score every cell, one after another; scores that `results` holds are not made again.

    `by` names the score by which the progress tells the best. An iterator, so that whoever stops it (Ctrl-C) has the
    rows so far, and `results` has them on disk.
    """
    ReportSeeds.require(seeds, "seeds")
    _check_count(seeds, judge)
    kept = Results(None) if results is None else results
    work = sum(c.tableau.nfe for c in cells if c.tableau is not None)
    done, best = 0, ""
    least = math.inf
    for c in cells:
        if c.tableau is None:
            yield Row(c.solver, c.times, c.nfe, reason=c.reason)
            continue
        key = key_of(model, c.tableau, seeds, judge, teacher)
        scores = kept.get(key)
        if scores is None:
            scores = score(model, c.tableau, seeds, judge=judge, teacher=teacher, batch_size=batch_size)
            kept.add(key, scores, solver=c.solver, times=c.times, nfe=c.nfe, seeds=repr(seeds))
        done += c.tableau.nfe
        value = float(scores.get(by, math.inf))
        if value < least:
            least, best = value, f"{c.label}, {c.nfe} calls: {value:.4g}"
        progress(Event("compare", done, work, best))
        yield Row(c.solver, c.times, c.nfe, c.tableau.digest, scores=scores)
