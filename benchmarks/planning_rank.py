"""Which cost of a path tells its end error: `python -m benchmarks.planning_rank MODEL...`.

Random paths over the teacher's grid, around the hand-crafted ones, are sampled with; each cost is compared with the
root mean square distance to the teacher's end points on other seeds, by Spearman's rank correlation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr

from fewstep import models, solvers, times
from fewstep.errors import ArgumentError
from fewstep.randomness import CalibrationSeeds, ReportSeeds
from fewstep.sampling import sample
from fewstep.search.dynamic import Array
from fewstep.search.dynamic_end import EndError
from fewstep.search.dynamic_errors import LocalErrors, Products
from fewstep.search.teacher import Teacher, reference_schedule


def paths(levels: Array, hand: Sequence[Array], count: int, rng: np.random.Generator) -> list[list[int]]:
    """Different paths of the grid with log ratios `levels`: between two hand-crafted ones, and shaken."""
    found: dict[tuple[int, ...], None] = {}
    steps = len(hand[0]) + 1
    while len(found) < count:
        one, two = rng.integers(len(hand), size=2)
        share, shake = rng.uniform(-0.2, 1.2), rng.choice([0.0, 0.15, 0.4])
        wanted = share * hand[one] + (1 - share) * hand[two] + shake * rng.normal(size=steps - 1)
        inner = sorted({int(np.abs(levels - at).argmin()) for at in wanted} - {0, len(levels)})
        if len(inner) == steps - 1:
            found[0, *inner, len(levels)] = None
    return [list(path) for path in found]


def correlations(name: str, solver: str, nfe: int, a: argparse.Namespace) -> dict[str, float]:
    """Rank correlation of each cost with the end error."""
    model, make = models.load(name), solvers.get(solver)
    noise, rng = model.noise, np.random.default_rng(0)
    teacher = Teacher(model, reference_schedule(noise, 60).tabulate(noise), batch_size=256)
    made, seeds = teacher.trajectory(CalibrationSeeds(a.trajectories)), ReportSeeds(a.samples)
    products, ends = Products.of(made, noise), teacher.endpoints(seeds)
    errors, ratio = LocalErrors.of(products, make, solver), (made.sigma / made.alpha).numpy()
    predictors = {f"predicted end error, {n} bands": EndError.of(made, noise, n) for n in (1, 8)}
    hand: list[Array] = []
    for grid in times.NAMES.values():
        try:
            hand.append(noise.ratio(grid(noise, nfe))[1:-1].clamp_min(1e-9).log().numpy())
        except ArgumentError:
            continue
    truth: list[float] = []
    costs: dict[str, list[float]] = {}
    for path in paths(np.log(ratio[:-1]), hand, a.paths, rng):
        schedule = make(made.times[path])
        gap = sample(model, schedule.tabulate(noise), seeds=seeds) - teacher.endpoints(seeds)
        truth.append((gap.double().square().mean() / ends.double().square().mean()).item())
        squares = [errors.first[path[1]], *(errors.middle[path[k - 2], path[k - 1], path[k]] for k in range(2, nfe))]
        squares.append(errors.last[path[-3], path[-2]])
        for exponent in (0.0, 0.25, 0.5, 1.0):
            weight = (products.variance / (products.variance + ratio[path[1:]] ** 2)) ** exponent
            size = weight * np.array(squares)
            costs.setdefault(f"sum of roots, weight {exponent:g}", []).append(float(np.sqrt(size).sum()))
            costs.setdefault(f"sum of squares, weight {exponent:g}", []).append(float(size.sum()))
        for label, predictor in predictors.items():
            costs.setdefault(label, []).append(predictor.predict(schedule))
    return {label: float(spearmanr(values, truth).statistic) for label, values in costs.items()}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning_rank", description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--solvers", nargs="+", default=["dpmpp_2m"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[4, 6, 8])
    parser.add_argument("--paths", type=int, default=80)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--trajectories", type=int, default=64)
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    for solver in a.solvers:
        columns = {(name, n): correlations(name, solver, n, a) for name in a.models for n in a.nfe}
        print(f"\n{solver}, {a.paths} paths each\n")
        print("| cost | " + " | ".join(f"{name} {n}" for name, n in columns) + " | mean |")
        print("|---|" + "---:|" * (len(columns) + 1))
        for label in next(iter(columns.values())):
            row = [column[label] for column in columns.values()]
            print(f"| {label} | " + " | ".join(f"{v:.2f}" for v in [*row, float(np.mean(row))]) + " |", flush=True)


if __name__ == "__main__":
    main()
