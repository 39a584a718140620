"""Which solver on which times: `python -m benchmarks.quality analytic|screen|optimise|final|report`.

    analytic   every deterministic solver x every hand-crafted grid on two analytic problems (a few minutes)
    screen     12 solvers x 6 grids on the digit network, 512 images of selection seeds
    optimise   the times of DMN, AYS and `grids` for the recommended solvers (calibration and selection seeds)
    final      the best of the screen and the optimised times on fresh report seeds, several disjoint sets
    report     writes docs/quality.md and docs/quality-analytic.md from the scores

At 5, 6, 8 and 10 network calls. Every score is on disk (benchmarks/results) before the next one begins and is never
made twice; the same command goes on where it was stopped. `final` begins with what is worth most: the recommended
solvers with hand-crafted times and those of DMN, AYS and `grids`, then the ten best of the screen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import quality_cells as cells
from benchmarks import quality_tables as tables
from benchmarks.quality_cells import Analytic, Deadline, Job, work
from fewstep import models, solvers, times
from fewstep.compare import Cell, Results
from fewstep.denoiser import Denoiser
from fewstep.files import atomic_write_text
from fewstep.models import Judge
from fewstep.noise import as_float64
from fewstep.optimizing import optimize
from fewstep.problems import get
from fewstep.randomness import ReportSeeds, SelectionSeeds
from fewstep.search.dmn import dmn_times

PROBLEMS = {"gaussian_8x8": 256, "grid_8x8": 2000}
"""Analytic problems, and how many starts."""
SCREEN_OFFSET = 10_000_000
"""The screen's selection seeds; the optimisers have theirs, which lie below."""
MODEL = "mnist"
METHODS = ("dmn", "ays", "grids")
CACHE = Path("runs/quality-cache")


def store(arguments: argparse.Namespace, phase: str) -> Results:
    """The scores of a phase."""
    return Results(arguments.results / f"{phase}.jsonl")


# -------------------------------------------------------------------------------------------------------- the phases
def analytic_jobs() -> Iterator[tuple[Analytic, list[Job]]]:
    """Both problems and their jobs; they share a noise schedule, so their tables are made once."""
    noise = get(next(iter(PROBLEMS))).noise
    every = [cells.make_cell(noise, s, g, n) for n in cells.NFES for s in solvers.DETERMINISTIC for g in cells.GRIDS]
    for name, starts in PROBLEMS.items():
        problem = Analytic(get(name, noise), ReportSeeds(starts))
        yield problem, list(problem.jobs(every))


def analytic(arguments: argparse.Namespace) -> int:
    """Run the first phase."""
    deadline, left = Deadline(arguments.minutes), 0
    for problem, jobs in analytic_jobs():
        print(f"{problem.problem.name}: {len({job.key for job in jobs})} different tables")
        left += work([problem.floor(), *jobs], store(arguments, "analytic"), deadline, quiet=True)
    return left


def network() -> tuple[Denoiser, Judge]:
    """The digit network, as fast as the machine computes it, and what judges it."""
    judge = models.judge(MODEL)
    assert judge is not None
    return cells.quick(models.load(MODEL)), judge


def screen_cells(model: Denoiser) -> list[Cell]:
    """All cells of the screen."""
    return [
        cells.make_cell(model.noise, solver, grid, nfe)
        for nfe in cells.NFES
        for grid in cells.SCREEN_GRIDS
        for solver in cells.SCREEN_SOLVERS
    ]


def screen_jobs(model: Denoiser, judge: Judge, images: int) -> list[Job]:
    """The screen's jobs."""
    return list(cells.network_jobs(model, judge, screen_cells(model), SelectionSeeds(images, SCREEN_OFFSET)))


def screen(arguments: argparse.Namespace) -> int:
    """Run the screen."""
    model, judge = network()
    return work(
        screen_jobs(model, judge, arguments.screen_images), store(arguments, "screen"), Deadline(arguments.minutes)
    )


def best_of_screen(model: Denoiser, judge: Judge, arguments: argparse.Namespace) -> dict[int, list[Cell]]:
    """For each number of calls the cells that were scored, best first; different names of one table count once."""
    scores, order = store(arguments, "screen"), dict[int, list[tuple[float, Cell]]]()
    seen: set[str] = set()
    for job in screen_jobs(model, judge, arguments.screen_images):
        found = scores.get(job.key)
        if found is not None and job.key not in seen:
            seen.add(job.key)
            order.setdefault(job.cell.nfe, []).append((found["fd"], job.cell))
    return {nfe: [cell for _, cell in sorted(pairs, key=lambda pair: pair[0])] for nfe, pairs in order.items()}


def optimised_key(model: Denoiser, method: str, solver: str, nfe: int) -> str:
    """The name of one search's result; the searches are all made on the float32 network."""
    return cells.key_of("optimised", model.fingerprint.removesuffix(cells.BFLOAT16), method, solver, nfe)


def search(model: Denoiser, method: str, solver: str, nfe: int, max_calls: int | None) -> dict[str, Any]:
    """Times, where they come from, and what it took: DMN's as its authors have it for pixels, others within the budget
    that `fewstep optimize` has by default. Network passes over the same data are cached between searches.
    """
    began = time.monotonic()
    if method == "dmn":
        where, origin, calls = dmn_times(model.noise, nfe, p=1), "DMN, p = 1", 0
    else:
        found = optimize(model, nfe, method, solver=solver, objective="frechet", max_calls=max_calls, cache=CACHE)
        where, origin, calls = found.schedule.times, found.origin, found.calls
    return {"times": where.tolist(), "origin": origin, "calls": calls, "seconds": round(time.monotonic() - began, 1)}


def optimise(arguments: argparse.Namespace) -> int:
    """Find the times of all methods, with the calls and seconds that it took."""
    model, _ = network()
    kept, deadline, left = store(arguments, "optimised"), Deadline(arguments.minutes), 0
    for solver in cells.RECOMMENDED:
        for nfe in cells.NFES:
            for method in METHODS:
                key = optimised_key(model, method, solver, nfe)
                if kept.get(key) is not None:
                    continue
                if deadline.over:
                    left += 1
                    continue
                record = search(model, method, solver, nfe, arguments.max_calls)
                kept.add(key, record, method=method, solver=solver, nfe=nfe)
                print(f"{solver}, {nfe} calls, {method}: {json.dumps(record)}", flush=True)
    return left


def optimised_cells(model: Denoiser, arguments: argparse.Namespace) -> dict[tuple[str, int], list[Cell]]:
    """By solver and number of calls, the cells with the times that the methods found."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for (solver, nfe, method), record in optimised_records(model, arguments).items():
        where = times.check(as_float64(record["times"]), model.noise)
        found.setdefault((solver, nfe), []).append(cells.from_times(model.noise, solver, method, nfe, where))
    return found


def final_rounds(model: Denoiser, judge: Judge, arguments: argparse.Namespace) -> list[list[Cell]]:
    """Cells in rounds, most valuable first; every round is taken through all seed sets before the next."""
    best, found = best_of_screen(model, judge, arguments), optimised_cells(model, arguments)
    rounds: list[list[Cell]] = []
    for solver in cells.RECOMMENDED:
        chosen: list[Cell] = []
        for nfe in cells.NFES:
            by_hand = next((c for c in best.get(nfe, []) if c.solver == solver), None)
            chosen += [c for c in (by_hand, *found.get((solver, nfe), [])) if c is not None]
        rounds.append(chosen)
    # The best of the screen whatever the solver is what an optimised schedule has to beat.
    rounds.insert(1, [some[0] for some in best.values()])
    return [*rounds, [c for some in best.values() for c in some[: arguments.finalists]]]


def final_jobs(model: Denoiser, judge: Judge, arguments: argparse.Namespace) -> list[Job]:
    """The final's jobs, in the order of their worth."""
    jobs: list[Job] = []
    for chosen in final_rounds(model, judge, arguments):
        for k in range(arguments.seed_sets):
            seeds = ReportSeeds(arguments.images, offset=k * cells.SET_STRIDE)
            jobs += cells.network_jobs(model, judge, chosen, seeds)
    return jobs


def final(arguments: argparse.Namespace) -> int:
    """Run the final."""
    model, judge = network()
    return work(final_jobs(model, judge, arguments), store(arguments, "final"), Deadline(arguments.minutes))


def report(arguments: argparse.Namespace) -> int:
    """Write the documentation's tables from the scores that are there."""
    model, judge = network()
    scores = tables.Scores(
        problems=list(analytic_jobs()),
        analytic=store(arguments, "analytic"),
        screen=tables.Looked(screen_jobs(model, judge, arguments.screen_images), store(arguments, "screen")),
        final=tables.Looked(final_jobs(model, judge, arguments), store(arguments, "final")),
        optimised=optimised_records(model, arguments),
        fingerprint=model.fingerprint,
        floors=judge.floors,
        images=(arguments.screen_images, arguments.images),
    )
    atomic_write_text(arguments.docs / "quality-analytic.md", tables.analytic_page(scores))
    atomic_write_text(arguments.docs / "quality.md", tables.quality_page(scores))
    return 0


def optimised_records(model: Denoiser, arguments: argparse.Namespace) -> dict[tuple[str, int, str], dict[str, Any]]:
    """What the searches found and what it took, by solver, calls and method."""
    kept = store(arguments, "optimised")
    keys = ((s, n, m) for s in cells.RECOMMENDED for n in cells.NFES for m in METHODS)
    pairs = ((key, kept.get(optimised_key(model, key[2], key[0], key[1]))) for key in keys)
    return {key: record for key, record in pairs if record is not None}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    phases = {f.__name__: f for f in (analytic, screen, optimise, final, report)}
    parser.add_argument("phase", choices=list(phases))
    parser.add_argument("--minutes", type=float, help="begin no new cell after that many minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--screen-images", type=int, default=cells.SCREEN_IMAGES)
    parser.add_argument("--images", type=int, default=cells.FINAL_IMAGES, help="per seed set of the final")
    parser.add_argument("--seed-sets", type=int, default=cells.SEED_SETS)
    parser.add_argument("--finalists", type=int, default=cells.FINALISTS, help="per number of calls")
    parser.add_argument("--max-calls", type=int, help="of one AYS search; by default what `optimize` takes")
    parser.add_argument("--results", type=Path, default=cells.RESULTS, help="folder of the scores")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    left = phases[arguments.phase](arguments)
    if left:
        print(f"{left} cells are left: give the same command again")


if __name__ == "__main__":
    main()
