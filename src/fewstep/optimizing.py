"""From a network to a better few-step sampler: joins the search, the metrics and the files.

The order of the work: hand-crafted grids and DMN's are raced; one pass over noised data gives AYS its ways down from
all of them; grids on those ways join the race, then the neighbours of the best, then the guesses of a surrogate. The
finals are on fresh seeds, and the final figures on seeds that have chosen nothing. The budget of network calls is
divided before the first one is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import inputs, models
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.judging import Objective, checked_objective
from fewstep.progress import Report, silent
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.search.cache import Cache, Probe
from fewstep.search.ledger import Ledger
from fewstep.search.methods import METHODS, Solver, sources
from fewstep.search.objective import BATCH
from fewstep.search.teacher import Teacher, reference_schedule
from fewstep.stages import SeedsAsked, Work

__all__ = ["Found", "optimize"]


def optimize(
    model: Denoiser | str,
    nfe: int,
    method: str = "auto",
    *,
    solver: str | Solver = "dpmpp_2m",
    minutes: float | None = None,
    max_calls: int | None = None,
    objective: Objective = "auto",
    judge: models.Judge | None = None,
    data: Tensor | None = None,
    data_condition: Any = None,
    condition: Any = None,
    calibration: CalibrationSeeds | None = None,
    selection: SelectionSeeds | None = None,
    report: ReportSeeds | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    batch_size: int = BATCH,
    progress: Report = silent,
) -> Found:
    """Find a better sampler with `nfe` network calls for this network.

    Args:
        model: the network, or a name that `fewstep.load` knows.
        nfe: network calls per sample.
        method: `dmn` (no network in the search), `ays` (its ways down from every hand-crafted grid) or `auto` (both,
            AYS from DMN's grids too, and then the guesses of a surrogate of all scores).
        solver: a name of `fewstep.solvers.NAMES`, `auto` (several multistep solvers), or a function
            `times -> SolverSchedule`.
        minutes: time to spend; the network's speed is measured first, so results vary with the machine.
        max_calls: network calls to spend at most, everything included (one image through the network once is one call);
            13,000 for each of `nfe`, between 80,000 and 150,000, when neither is given.
        objective: what selects, lower is better: `frechet` (needs a judge), `teacher` (RMS distance to a 60-call run
            from the same noise), a function `images [B, *shape] -> [B]`; `auto` is frechet where features are known,
            else teacher.
        judge: features and reference statistics, for networks that the package does not know.
        data: clean samples `[N, *shape]` in the network's units for the KLUB table, with `data_condition`; by default
            what ships with the network, else samples that the teacher makes.
        condition: function `seeds -> condition`, or a pytree whose rows are taken in turn; by default balanced labels
            where the network has classes.
        calibration, selection, report: seeds of the noising paths, of the comparisons and of the final figures; their
            lengths bound the numbers of samples, which the budget sets otherwise.
        out: folder for `schedule.json` and `search.json`; written also when the work is interrupted.
        cache: folder for what cost network calls, by default `.cache` in `out`; a second run does not pay again.
        batch_size: images given to the network at a time.
        progress: told what is going on.

    Returns:
        The sampler, never worse than the best hand-crafted one on the finals' score, with its record.

    Errors: `ArgumentError` and `SeedsError` before any work; `KeyboardInterrupt` says what was saved.
    """
    _check(nfe, method, minutes, max_calls, batch_size)
    seeds = SeedsAsked.checked(calibration, selection, report)
    net, name = inputs.resolve(model)
    known = judge or inputs.judge_of(net)
    chosen = checked_objective(objective, known)
    folder = None if out is None else Path(out)
    kept = Cache(cache if cache is not None else None if folder is None else folder / ".cache")
    of = inputs.condition_of(net, condition)
    probe = Probe(net, of(range(1)))
    reference = reference_schedule(net.noise).tabulate(net.noise)
    work = Work(
        net,
        name,
        nfe,
        method,
        chosen,
        known,
        of,
        kept,
        probe,
        batch_size,
        progress,
        folder,
        seeds,
        Teacher(net, reference, condition=of, cache=kept, probe=probe, batch_size=batch_size),
        sources(net.noise, solver, nfe),
        None if data is None else inputs.given_data(net, data, data_condition),
        Ledger(net),
    )
    with torch.no_grad():
        try:
            return work.run(minutes, max_calls)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(work.stopped()) from None


def _check(nfe: int, method: str, minutes: float | None, max_calls: int | None, batch_size: int) -> None:
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ArgumentError(f"nfe is {nfe!r}: give the number of network calls per sample, e.g. nfe=6")
    if method not in METHODS:
        raise ArgumentError(f"method is {method!r}: choose one of {', '.join(METHODS)}")
    if minutes is not None and not minutes > 0:
        raise ArgumentError(f"minutes is {minutes}: give a positive time, or leave it out")
    if max_calls is not None and max_calls < 1:
        raise ArgumentError(f"max_calls is {max_calls}: give a positive number of network calls, or leave it out")
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}: give a positive number of images")
