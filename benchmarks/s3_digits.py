"""Searches over solver schedules on the digit network: `python -m benchmarks.s3_digits run|objective`.

    run       every method, number of calls and seed; what is worth most comes first
    objective which estimate of the distance from few images ranks samplers as 5,000 do

`python -m benchmarks.s3 report` writes what there is of both to docs/s3-results.md.

A schedule's score is the Fréchet distance of 256 images of fixed selection seeds, with the teacher's images of the
same noise as control variates (fewstep.metrics.controlled): plain distances of so few images rank good samplers hardly
better than chance. All runs share their evaluations, which are known by the digest of the table; each is on disk
(benchmarks/results/s3/digits-scores.jsonl) before the next one begins. A run that was stopped is proposed again from
the start, at no cost, and goes on where it was. The winner of each run and the best schedule of the initial population
are scored again by the plain distance of 5,000 images of report seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality_cells import Deadline, from_times, key_of, make_cell, quick
from benchmarks.s3 import RESULTS, read, search, stage_of, steps
from fewstep import models, solvers, times
from fewstep.compare import Results
from fewstep.evaluating import Evaluator, Tabulator
from fewstep.metrics import Statistics, frechet, frechet_with_error
from fewstep.metrics.controlled import controlled_frechet
from fewstep.models import default_condition
from fewstep.noise import as_float64
from fewstep.proposals import Proposal, Trial
from fewstep.randomness import ReportSeeds, Seeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search.s3 import proposer
from fewstep.search.s3.surrogate import kendall
from fewstep.tableau import Tableau

CACHE = Path("runs/s3-cache")
MODEL = "mnist"
NFES, SEEDS, METHODS = (5, 8), (1, 2, 3), ("s3", "evolution", "random", "tpe")
BUDGET, LIMIT, IMAGES = 204, 36, 256
SELECTION, FRESH = SelectionSeeds(IMAGES, 20_000_000), ReportSeeds(5000, 20_000_000)
BATCH = 128
SCORES, RUNS = RESULTS / "digits-scores.jsonl", RESULTS / "digits.jsonl"
POPULATION = RESULTS.parent / "ays" / "ode-teacher.safetensors"
"""Moments of 10,000 samples of the 50-call ODE teacher (benchmarks.ays): DPM-Solver++(2M) on Karras' times."""


class Digits:
    """The network with its judge, and every score that was ever made of it."""

    def __init__(self) -> None:
        self.model = quick(models.load(MODEL))
        judge = models.judge(MODEL)
        assert judge is not None
        self.judge = judge
        self.fingerprint = models.load(MODEL).fingerprint
        self.tabulate = Tabulator(self.model.noise, MODEL)
        self.results = Results(SCORES)
        self.population = Statistics.load(POPULATION)

    def features(self, table: Tableau, seeds: Seeds) -> Tensor:
        """Of the samples with balanced labels."""
        found: list[Tensor] = []
        for low in range(0, len(seeds), BATCH):
            part = seeds[low : low + BATCH]
            images = sample(self.model, table, seeds=part, condition=default_condition(self.model, part))
            found.append(self.judge.features(images).double())
        return torch.cat(found)

    @cached_property
    def paired(self) -> Tensor:
        """The teacher's features on the selection seeds."""
        path = CACHE / f"s3-digits-teacher-{IMAGES}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            teacher = solvers.get("dpmpp_2m")(times.karras(self.model.noise, 50)).tabulate(self.model.noise)
            torch.save(self.features(teacher, SELECTION), path)
        return torch.load(path)

    def selected(self, schedule: SolverSchedule) -> dict[str, Any]:
        """The score that selects, and the plain distance of the same images."""

        def score(features: Tensor) -> dict[str, float]:
            value = controlled_frechet(features, self.paired, self.population, self.judge.reference)
            return {"controlled": value, "plain": frechet(Statistics.of(features), self.judge.reference)}

        return self._kept(schedule, SELECTION, "controlled", score)

    def again(self, schedule: SolverSchedule) -> dict[str, Any]:
        """The plain distance on fresh seeds with its error."""

        def score(features: Tensor) -> dict[str, float]:
            value, error = frechet_with_error(features, self.judge.reference)
            return {"fd": value, "fd_error": error}

        return self._kept(schedule, FRESH, "fresh", score)

    def _kept(self, schedule: SolverSchedule, seeds: Seeds, what: str, score: Any) -> dict[str, Any]:
        table = self.tabulate(schedule)
        key = key_of("s3", self.fingerprint, self.judge.name, table.digest, repr(seeds), what)
        known = self.results.get(key)
        if known is None:
            begin = time.process_time()
            with torch.no_grad():
                try:
                    known = {k: float(f"{v:.5g}") for k, v in score(self.features(table, seeds)).items()}
                except (ValueError, torch.linalg.LinAlgError):  # samples that are not finite
                    known = {"controlled": math.inf, "plain": math.inf}
            seconds = round(time.process_time() - begin, 2)
            self.results.add(key, known, nfe=table.nfe, what=what, digest=table.digest, seconds=seconds)
        return known

    def judged(self, proposals: list[Proposal], first: int) -> list[Trial]:
        """The proposals as finished trials."""
        return [
            Trial(first + k, p, self.tabulate(p.schedule).nfe, "", {IMAGES: self.selected(p.schedule)["controlled"]})
            for k, p in enumerate(proposals)
        ]


Chosen = tuple[Sequence[str], Sequence[int], Sequence[int]]
"""Methods, numbers of calls, seeds."""


def cells(chosen: Chosen) -> Iterator[tuple[str, int, int, int]]:
    """Methods, calls, seeds and budgets: every method and number of calls once, then with the next seed."""
    methods, nfes, seeds = chosen
    for seed in seeds:
        for nfe in nfes:
            yield from ((method, nfe, seed, BUDGET) for method in methods)


def cell(digits: Digits, method: str, nfe: int, seed: int, budget: int) -> dict[str, Any]:
    """One search: its curve, its winner, and the best of the initial population."""
    strategy = proposer(method, noise=digits.model.noise, nfes=(nfe,), seed=seed, limit=LIMIT)
    trials, stages = search(strategy, digits.judged, budget, seed, batch=stage_of(method), first=LIMIT)
    score = lambda t: t.scores[IMAGES]  # noqa: E731
    best = min(trials, key=score)
    published = min((t for t in trials if t.proposal.stage == 0), key=score)

    def told(trial: Trial) -> dict[str, Any]:
        schedule = trial.proposal.schedule
        return {
            "score": score(trial), "plain": digits.selected(schedule)["plain"], "trial": trial.number,
            "origin": trial.proposal.origin, "digest": digits.tabulate(schedule).digest, "schedule": schedule.to_dict(),
        }  # fmt: skip

    curve = np.minimum.accumulate([score(t) for t in trials]).tolist()
    return {
        "method": method, "nfe": nfe, "seed": seed, "budget": budget, "stages": stages, "curve": steps(curve),
        "best": told(best), "published": told(published),
    }  # fmt: skip


def run(chosen: Chosen, minutes: float | None) -> None:
    """All cells that are not there yet, each with its winner on fresh seeds; a deadline stops between them."""
    torch.set_num_threads(1)
    digits, deadline = Digits(), Deadline(minutes)
    for method, nfe, seed, budget in cells(chosen):
        if deadline.over:
            return
        key = (method, nfe, seed, budget)
        if not any(key == key_of_run(r) for r in read(RUNS)):
            begin = time.monotonic()
            record = cell(digits, *key)
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            shown = {k: round(record[k]["score"], 4) for k in ("best", "published")}
            print(*key, shown, f"{time.monotonic() - begin:.0f} s", flush=True)
        record = next(r for r in read(RUNS) if key == key_of_run(r))
        for which in ("published", "best"):
            again = digits.again(SolverSchedule.from_dict(record[which]["schedule"]))
            print(*key, which, round(record[which]["score"], 4), again, flush=True)


def key_of_run(record: dict[str, Any]) -> tuple[str, int, int, int]:
    return record["method"], record["nfe"], record["seed"], record["budget"]


def objective() -> None:
    """Which estimate from few images ranks samplers as 5,000 do: 5-call samplers of benchmarks.quality."""
    torch.set_num_threads(1)
    digits = Digits()
    final = read(RESULTS.parent / "final.jsonl")
    chosen = {(r["solver"], r["method"]): r["scores"]["times"] for r in read(RESULTS.parent / "optimised.jsonl")
              if r["nfe"] == 5}  # fmt: skip
    truth: dict[tuple[str, str], list[float]] = {}
    for r in final:
        if r["nfe"] == 5:
            truth.setdefault((r["solver"], r["times"]), []).append(r["scores"]["fd"])
    path = CACHE / "s3-digits-objective.pt"
    known: dict[tuple[str, str], Tensor] = torch.load(path) if path.exists() else {}
    tables: dict[tuple[str, str], Tableau] = {}
    for solver, grid in truth:
        made = (from_times(digits.model.noise, solver, grid, 5, as_float64(chosen[solver, grid]))
                if (solver, grid) in chosen else make_cell(digits.model.noise, solver, grid, 5))  # fmt: skip
        assert made.tableau is not None
        tables[solver, grid] = made.tableau
        if (solver, grid) not in known:
            known[solver, grid] = digits.features(made.tableau, SELECTION)
            torch.save(known, path)
    reference, everyone = digits.judge.reference, digits.population
    product = Evaluator(
        MODEL, "controlled", images=IMAGES, fewest=64, batch_size=BATCH, offset=SELECTION.offset,
        cache=str(CACHE / "product"), network=digits.model,
    )  # fmt: skip
    product.prepare()
    ways: dict[str, Callable[[tuple[str, str], int], Any]] = {
        "plain": lambda key, n: frechet(Statistics.of(known[key][:n]), reference),
        "controlled": lambda key, n: controlled_frechet(known[key][:n], digits.paired[:n], everyone, reference),
        "`--objective controlled`": lambda key, n: product.score_table(tables[key], n),
    }
    mean = np.array([np.mean(truth[key]) for key in truth])
    with (RESULTS / "digits-objective.jsonl").open("w", encoding="utf-8") as file:
        for images in (64, 96, 128, 192, 256):
            for name, way in ways.items():
                values = np.array([way(key, images) for key in truth])
                line = {
                    "images": images, "estimate": name, "samplers": len(mean), "tau": kendall(values, mean),
                    "r": float(np.corrcoef(values, mean)[0, 1]), "bias": float((values - mean).mean()),
                    "deviation": float((values - mean).std()),
                }  # fmt: skip
                file.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
                print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "objective"))
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    parser.add_argument("--nfes", default=",".join(map(str, NFES)), help="which numbers of calls")
    parser.add_argument("--methods", default=",".join(METHODS), help="which")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="which")
    asked = parser.parse_args()
    if asked.what == "run":
        nfes, seeds = ([int(n) for n in text.split(",")] for text in (asked.nfes, asked.seeds))
        run((asked.methods.split(","), nfes, seeds), asked.minutes)
    else:
        objective()


if __name__ == "__main__":
    main()
