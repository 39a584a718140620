"""Planned times against hand-crafted ones, without any selection by images: `python -m benchmarks.planning MODEL...`.

For each model, solver and number of calls: every hand-crafted grid, and the first proposal of each plan, made on
calibration seeds alone. All are judged on the same report seeds: root mean square distance to the teacher's end points,
and a distance between distributions (Fréchet where the model has features, sliced Wasserstein to exact samples
otherwise). "best by hand" is the grid that is best on these very seeds, so it is flattered; the plans are not.
Scores lie in `--results`, one JSON line each; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality_cells import RESULTS
from fewstep import inputs, models, solvers, times
from fewstep.compare import Results
from fewstep.errors import ArgumentError
from fewstep.randomness import CalibrationSeeds, ReportSeeds
from fewstep.search.cache import Cache, digest
from fewstep.search.objective import FrechetJudge, Judge, PairedJudge, Scorer, SlicedJudge
from fewstep.search.planner import Planner
from fewstep.search.teacher import Teacher, reference_schedule

PLANS = ("GITS", "OSS, median of the images", "OSS, all images together", "local error", "predicted end error")


class Bench:
    """One model: its teacher, its planner, its judges."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.model = name, models.load(name)
        noise, condition = self.model.noise, inputs.condition_of(self.model, None)
        table = reference_schedule(noise, arguments.teacher).tabulate(noise)
        cache = Cache(arguments.cache)
        self.teacher = Teacher(self.model, table, condition=condition, cache=cache, batch_size=arguments.batch)
        before = self.model.evaluations
        made = self.teacher.trajectory(CalibrationSeeds(arguments.trajectories))
        self.planner = Planner(
            self.teacher, made, max(arguments.nfe), arguments.followed, cache, arguments.batch, lambda _: None
        )
        if arguments.oss:
            _ = self.planner.oss
        print(f"{name}: {self.model.evaluations - before} calls for trajectories and OSS", flush=True)
        seeds = ReportSeeds(arguments.samples)
        self.judges: list[Judge] = [PairedJudge(self.teacher, list(seeds))]
        self.judges += [_whole(name)] if arguments.distribution else []
        self.scorer = Scorer(
            self.model, self.judges, seeds, condition=condition, cache=Cache(None), batch_size=arguments.batch
        )
        self.arguments = arguments

    def grids(self, solver: str, nfe: int) -> Iterator[tuple[str, Tensor]]:
        """Times by name: hand-crafted, then the first of each plan."""
        noise, steps = self.model.noise, solvers.calls(solver, nfe)
        if steps is None:
            return
        for name, make in times.NAMES.items():
            try:
                yield f"hand: {name}", make(noise, steps)
            except ArgumentError:
                continue
        yield "GITS", next(self.planner.propose("gits", solver, solvers.get(solver), steps)).times
        if self.arguments.oss:
            for plan in self.planner.propose("oss", solver, solvers.get(solver), steps):
                yield plan.origin, plan.times
        seen: set[str] = set()
        for plan in self.planner.propose("local_error", solver, solvers.get(solver), steps):
            kind = "predicted end error" if plan.origin.startswith("predicted") else "local error"
            if kind not in seen:
                yield kind, plan.times
            seen.add(kind)

    def score(self, solver: str, nfe: int, kept: Results) -> Iterator[dict[str, Any]]:
        """A row for each grid; what is not scored yet is scored."""
        a = self.arguments
        for origin, grid in self.grids(solver, nfe):
            row = {"model": self.name, "solver": solver, "nfe": nfe, "origin": origin, "samples": a.samples}
            row |= {"trajectories": a.trajectories, "followed": a.followed, "teacher": a.teacher}
            key = digest(row, grid, [judge.name for judge in self.judges])
            scores = kept.get(key)
            if scores is None:
                scores = self.scorer.figures(solvers.get(solver)(grid).tabulate(self.model.noise), a.samples)
                kept.add(key, scores, **row, times=grid.tolist())
            yield {**row, "scores": scores}


def _whole(name: str) -> Judge:
    known = models.judge(name)
    if known is None:
        raise ArgumentError(f"{name} has no judge: give mnist or problem:NAME")
    if known.nll is not None:
        return SlicedJudge(known.reference_features[:2000], "sliced Wasserstein distance")
    return FrechetJudge(known.features, known.reference, "Fréchet distance")


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one table for each model, solver and judge; values with standard errors."""
    for model, solver in dict.fromkeys((row["model"], row["solver"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["solver"]) == (model, solver)]
        nfes = sorted({row["nfe"] for row in mine})
        for judge in mine[0]["scores"]:
            yield f"\n{model}, {solver}: {judge}, {mine[0]['samples']} samples\n"
            yield "| times | " + " | ".join(f"NFE {n}" for n in nfes) + " |"
            yield "|---|" + "---:|" * len(nfes)
            hands = [[row for row in mine if row["nfe"] == n and row["origin"].startswith("hand: ")] for n in nfes]
            best = [min(group, key=lambda row: row["scores"][judge]["value"]) for group in hands]
            names = [row["origin"].removeprefix("hand: ") for row in best]
            yield _line("best by hand", [_cell(r["scores"][judge]) + f" {n}" for r, n in zip(best, names, strict=True)])
            for plan in PLANS:
                cells = [next((r for r in mine if (r["nfe"], r["origin"]) == (n, plan)), None) for n in nfes]
                if any(cells):
                    yield _line(plan, [_cell(r["scores"][judge]) if r else "" for r in cells])


def _cell(score: dict[str, float]) -> str:
    return f"{score['value']:.4f} ±{score['standard_error']:.4f}"


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="mnist, problem:NAME")
    parser.add_argument("--solvers", nargs="+", default=["dpmpp_2m", "ipndm"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--samples", type=int, default=1024, help="report seeds")
    parser.add_argument("--trajectories", type=int, default=64, help="calibration seeds that plans are made on")
    parser.add_argument("--followed", type=int, default=16, help="of them, those that OSS follows")
    parser.add_argument("--oss", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--distribution", action=argparse.BooleanOptionalAction, default=True,
        help="also the distance between distributions, which takes most of the time on problems",
    )  # fmt: skip
    parser.add_argument("--teacher", type=int, default=60, help="calls of the teacher: the grid of the plans")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=RESULTS / ".cache")
    parser.add_argument("--results", type=Path, default=RESULTS / "planning.jsonl")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    kept = Results(arguments.results)
    for name in arguments.models:
        bench = Bench(name, arguments)
        for solver in arguments.solvers:
            rows = [row for nfe in arguments.nfe for row in bench.score(solver, nfe, kept)]
            print("\n".join(tables(rows)), flush=True)


if __name__ == "__main__":
    main()
