"""From a network to a better few-step sampler: joins the search, the metrics and the files.

The order of the work: hand-crafted grids and DMN's are raced; one pass over noised data gives AYS its ways down from
all of them; grids on those ways join the race, then the neighbours of the best, then the guesses of a surrogate. The
finals are on fresh seeds, and the final figures on seeds that have chosen nothing. The budget of network calls is
divided before the first one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewstep import inputs, models
from fewstep.clean import Data
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.features import on_pictures
from fewstep.found import Found
from fewstep.judging import Objective, checked_objective
from fewstep.lowered import Loss
from fewstep.progress import Report, silent
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.search.cache import Cache, Probe
from fewstep.search.klub import Gram
from fewstep.search.ledger import Ledger
from fewstep.search.methods import Solver, default_solver, entered, sources
from fewstep.search.objective import BATCH
from fewstep.search.parts import PARTS
from fewstep.search.teacher import CALLS
from fewstep.search.window import Window
from fewstep.setting import MOST_KNOWN, Setting
from fewstep.stages import Work
from fewstep.tableau import Tableau
from fewstep.times.ends import End

__all__ = ["Found", "optimize"]


def optimize(
    model: Denoiser | str,
    nfe: int,
    method: str = "auto",
    *,
    solver: str | Solver | Sequence[str | Solver] | None = None,
    minutes: float | None = None,
    max_calls: int | None = None,
    objective: Objective = "auto",
    judge: models.Judge | None = None,
    data: Tensor | Data | str | Path | None = None,
    data_condition: Any = None,
    condition: Any = None,
    calibration: CalibrationSeeds | None = None,
    selection: SelectionSeeds | None = None,
    report: ReportSeeds | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    batch_size: int = BATCH,
    progress: Report = silent,
    start: float | None = None,
    end: End = "zero",
    teacher_calls: int = CALLS,
    gram: Gram | None = None,
    given: Tableau | None = None,
    loss: Loss = "auto",
) -> Found:
    """Find a better sampler with `nfe` network calls for this network.

    Args:
        model: the network, or a name that `fewstep.load` knows.
        nfe: network calls per sample.
        method: `auto` has all parts that pay off: hand-crafted times of several solvers, `grids`, plans, S³'s children
            of all of them, and then times, model times and weights learned by gradient from the best. Or one part:
            times alone by `dmn` (no network in the search), `ays` (its ways down from every hand-crafted grid) or
            `grids` (both, times from the network's loss curve, AYS from all of them, and then the guesses of a
            surrogate); times planned on teacher trajectories, `gits`, `oss`, or `local_error` (of the solver's own
            steps); or a method that learns by gradient from the best hand-crafted times
            (`fewstep.search.gradient.recipes.RECIPES`).
        solver: a name of `fewstep.solvers.NAMES`, `auto` (several multistep solvers), a function
            `times -> SolverSchedule`, or a list of them, which compete; `optimize_many` gives a result for each. By
            default `dpmpp_2m`, and `auto` with method `auto`.
        minutes: time to spend; the network's speed is measured first, so results vary with the machine.
        max_calls: network calls to spend at most, everything included (one image through the network once is one call);
            130,000 to 150,000 when neither is given (13,000 for each of `nfe`), and 240,000 to 450,000 to learn.
        objective: what selects, lower is better: `matched` (distance of the samples, as a set, to a 60-call run's of
            the same noise), `faithful` (the geometric mean of that in features and in the samples themselves),
            `frechet` (to the data), `teacher` (RMS distance to the 60-call run, sample by sample), or a function
            `images [B, *shape] -> [B]`, which sees the decoded pictures of a pipeline. `faithful` and `frechet` need a
            judge. `auto` is faithful where features are known, else matched; without a teacher frechet.
        judge: features and reference statistics, for networks that the package does not know.
        data: clean samples `[N, *shape]` in the network's units for the KLUB table, with `data_condition`, or a file or
            folder of them (`fewstep.clean.clean_samples`); by default what ships with the network, else samples that
            the teacher makes.
        condition: function `seeds -> condition`, or a pytree whose rows are taken in turn; by default balanced labels
            where the network has classes.
        calibration, selection, report: seeds of the noising paths, of the comparisons and of the final figures; their
            lengths bound the numbers of samples, which the budget sets otherwise.
        out: folder for `schedule.json` and `search.json`; written also when the work is interrupted.
        cache: folder for what cost network calls, by default `.cache` in `out`; a second run does not pay again.
        batch_size: images given to the network at a time.
        progress: told what is going on.
        start: time of the first state (default: the noisiest). Below that the search is for image-to-image: grids,
            teacher and scores begin at `alpha(start) image + sigma(start) noise` with images of the data, by seed.
        end: `zero` (sigma 0), `min` (the network's `t_min`, as papers do), or the time of the last state.
        teacher_calls: network calls of the reference sampler; 0 does without: no paired figure, no made data and no
            plans, whose grid is the reference's.
        gram: a KLUB table of this network that is there already; by default it is computed.
        given: a table to start from, of as many calls (say, a traced scheduler): it enters the race, its times are
            tried with every solver and are a start of AYS, and in the finals the result is not worse than it.
        loss: what a method that learns by gradient lowers: a name of `fewstep.search.gradient.losses.NAMES`, an
            objective of your own, or `auto` for the method's.

    Returns:
        The sampler, never worse than the best hand-crafted one on the finals' score, with its record.

    Errors: `ArgumentError` and `SeedsError` before any work (also, after a few calls, for data in another range than
        the network's); `DenoiserError` when the network fails and `KeyboardInterrupt` say what was saved.
    """
    check_amounts(nfe, minutes, max_calls)
    folder = None if out is None else Path(out)
    ground = prepared(
        model, method, objective=objective, judge=judge, data=data, data_condition=data_condition,
        condition=condition, calibration=calibration, selection=selection, report=report,
        cache=cache if cache is not None else None if folder is None else folder / ".cache",
        batch_size=batch_size, progress=progress, start=start, end=end, teacher_calls=teacher_calls, gram=gram,
        loss=loss,
    )  # fmt: skip
    if given is not None:
        entered(ground.window, given, nfe)
    made = sources(ground.window, default_solver(method) if solver is None else solver, nfe)
    ground.require_grid(max(source.steps for source in made))
    ground.read()
    work = Work(ground, nfe, made, folder, Ledger(ground.model), given=given)
    return finished(work, minutes, max_calls)


class Options(TypedDict, total=False):
    """Arguments of `optimize` that belong to the network and the way of judging, not to one result."""

    objective: Objective
    judge: models.Judge | None
    data: Tensor | Data | str | Path | None
    data_condition: Any
    condition: Any
    calibration: CalibrationSeeds | None
    selection: SelectionSeeds | None
    report: ReportSeeds | None
    batch_size: int
    progress: Report
    start: float | None
    end: End
    teacher_calls: int
    gram: Gram | None
    loss: Loss


def prepared(
    model: Denoiser | str,
    method: str,
    *,
    cache: str | Path | None = None,
    objective: Objective = "auto",
    judge: models.Judge | None = None,
    data: Tensor | Data | str | Path | None = None,
    data_condition: Any = None,
    condition: Any = None,
    calibration: CalibrationSeeds | None = None,
    selection: SelectionSeeds | None = None,
    report: ReportSeeds | None = None,
    batch_size: int = BATCH,
    progress: Report = silent,
    start: float | None = None,
    end: End = "zero",
    teacher_calls: int = CALLS,
    gram: Gram | None = None,
    loss: Loss = "auto",
) -> Setting:
    """The ground of a search, or of several; arguments as in `optimize`.

    Errors: as in `optimize`, before any work.
    """
    if method not in PARTS:
        raise ArgumentError(f"method is {method!r}: choose one of {', '.join(PARTS)}")
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}: give a positive number of images")
    seeds = inputs.SeedsAsked.checked(calibration, selection, report)
    net, name = inputs.resolve(model)
    window = Window.checked(net.noise, start, end)
    known = judge or inputs.judge_of(net)
    chosen = checked_objective(objective, known, teacher_calls)
    chosen = on_pictures(net, chosen) if callable(chosen) else chosen
    of = inputs.condition_of(net, condition)
    on_disk = isinstance(data, str | Path)
    if on_disk and not Path(data).exists():
        raise ArgumentError(f"data: nothing at {data}; give pictures, an .npy, or a .safetensors")
    asked = None if condition is None else of
    read = None if data is None else partial(
        inputs.given_data, net, data, data_condition, seeds.paths or MOST_KNOWN, asked, progress
    )  # fmt: skip
    ground = Setting(
        net, name, method, window, chosen, known, of, condition is not None, Cache(cache),
        Probe(net, of(range(1))), batch_size, progress, seeds, teacher_calls, None if read is None or on_disk else
        read(), gram, loss=loss, unread=read if on_disk else None,
    )  # fmt: skip
    ground.require_sources()
    return ground


def finished(work: Work, minutes: float | None, max_calls: int | None) -> Found:
    """Run one search; when it is stopped, or the network fails, the error says what was saved."""
    with torch.no_grad():
        try:
            return work.run(minutes, max_calls)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(work.stopped()) from None
        except DenoiserError as error:
            raise DenoiserError(
                f"{error}; {work.stopped()}", time=error.time, rows=error.rows, sane=error.sane
            ) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise DenoiserError(f"out of memory: give a smaller batch_size; {work.stopped()}") from error


def check_amounts(nfe: int, minutes: float | None, max_calls: int | None) -> None:
    """Refuse numbers that are none, before any work."""
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 1:
        raise ArgumentError(f"nfe is {nfe!r}: give the number of network calls per sample, e.g. nfe=6")
    if minutes is not None and not minutes > 0:
        raise ArgumentError(f"minutes is {minutes}: give a positive time, or leave it out")
    if max_calls is not None and max_calls < 1:
        raise ArgumentError(f"max_calls is {max_calls}: give a positive number of network calls, or leave it out")
