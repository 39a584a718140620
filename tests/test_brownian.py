"""Stochastic samplers on one Brownian motion: independent unit normals in every table, and samples that converge."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fewstep import models, solvers, times
from fewstep.brownian import brownian_noise, process, split
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.optimizing import optimize
from fewstep.randomness import SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search import methods
from fewstep.search.cache import Cache
from fewstep.search.judges import ImageJudge
from fewstep.search.objective import Scorer
from fewstep.search.teacher import Teacher, no_condition, reference_schedule, sde_of, stochastic_reference
from fewstep.steps import Step
from fewstep.tableau import Tableau

NOISES = (EDM(), VPLinear(), Flow())


def table(solver: str, steps: int, noise: object = NOISES[0], grid: str = "logsnr") -> Tableau:
    return solvers.get(solver)(times.named(grid)(noise, steps)).tabulate(noise)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.family)
@pytest.mark.parametrize("solver", sorted(solvers.STOCHASTIC))
def test_the_columns_of_every_table_are_independent_unit_normals(solver: str, noise: object) -> None:
    given, own = split(table(solver, 6, noise))
    assert (given @ given.T + own @ own.T - torch.eye(len(given))).abs().max() < 1e-12
    share = given.square().sum(1)
    # Most of a column is the motion's. Inner nodes have nothing of it, and restart comes back to where it is used up.
    few = {"restart": 1, "dpmpp_sde": len(share) // 2}
    assert (share > 0.7).sum() >= few.get(solver, len(share) - 2)


def test_the_law_of_a_table_finer_than_the_cells() -> None:
    noise = brownian_noise(table("sde_dpmpp_2m", 120), range(100), (15,))  # over 64 cells
    rows = torch.stack([noise(m) for m in (0, 40, 41, 42, 100, 101)]).flatten(1)
    assert rows.std(1).sub(1).abs().max() < 0.08
    assert torch.corrcoef(rows).sub(torch.eye(6)).abs().max() < 0.12


@pytest.mark.parametrize("solver", ["dpmpp_sde", "dpmpp_2s_ancestral", "euler_ancestral", "heun_churn", "sa_solver"])
def test_equal_tables_see_equal_noise(solver: str) -> None:
    """The rows of the canonical form are others, its digest and its samples are the same."""
    model = models.load("problem:grid_6x6", dtype=torch.float64)
    tableau = table(solver, 4, model.noise)
    other = tableau.unrolled()
    assert other.digest == tableau.digest and other.rows <= tableau.rows
    one, two = (sample(model, t, seeds=range(20), brownian=True) for t in (tableau, other))
    assert (one - two).abs().max() < 1e-4


def test_weights_for_each_element_of_a_sample() -> None:
    tableau = table("sde_dpmpp_2m", 5)
    spread = replace(tableau, A=tableau.A[..., None].expand(-1, -1, 7), C=tableau.C[..., None].expand(-1, -1, 7))
    assert all(torch.equal(a, b) for a, b in zip(split(tableau), split(spread), strict=True))


@pytest.mark.parametrize(
    ("solver", "clock"),
    [
        (partial(solvers.sde_dpmpp_1, tau=1.0), lambda level: level**-2),
        (partial(solvers.sde_dpmpp_1, tau=0.6), lambda level: level**-0.72),
        (partial(solvers.er_sde, order=1), lambda level: (math.exp(level**0.3) + 10) ** -2),
    ],
    ids=["tau 1", "tau 0.6", "er_sde"],
)
def test_a_column_is_the_exact_solutions_noise(
    solver: Callable[[torch.Tensor], SolverSchedule], clock: Callable[[float], float]
) -> None:
    """Two steps' noise, carried on by the exact solution, is the one step's: the motion in the process's clock."""
    lam = torch.linspace(-2, 2, 25, dtype=torch.float64)  # on the edges of cells
    levels = [*(-lam[[0, 12, 24]]).exp().tolist(), 0.0]
    two, one = (
        solver(torch.tensor(grid, dtype=torch.float64)).tabulate(EDM()) for grid in (levels, [levels[0], *levels[2:]])
    )
    z, w = (brownian_noise(t, range(5), (4,)) for t in (two, one))
    u = [clock(level) for level in levels[:3]]
    motion = z(0) * math.sqrt(u[1] - u[0]) + z(1) * math.sqrt(u[2] - u[1])
    assert (motion - w(0) * math.sqrt(u[2] - u[0])).abs().max() < 1e-5 * math.sqrt(u[2])
    # The table's own numbers: what one step adds to a state is what two add.
    carried = two.A[2, 1] * two.C[1, 0] * z(0) + two.C[2, 1] * z(1)
    assert (carried - one.C[1, 0] * w(0)).abs().max() < 1e-5


def test_the_process_that_a_table_solves() -> None:
    grid = times.logsnr(EDM(), 6)
    schedules = {
        "sde_dpmpp_2m": 1.0, "er_sde_2": "er_sde", "heun_churn": 1.0, "dpmpp_2m": 1.0,
    }  # fmt: skip
    for name, expected in schedules.items():
        assert process(solvers.get(name)(grid).tabulate(EDM())) == expected
    step = Step(tau=0.5)
    cases: list[tuple[SolverSchedule, object]] = [
        (solvers.sde_dpmpp_2m(grid, tau=0.3), 0.3),
        (solvers.ddim(grid, eta=0.4), 0.4),
        (solvers.dpmpp_2s_ancestral(grid, eta=0.6), 0.6),
        (solvers.sa_solver(grid, tau=[0.5] * 5 + [1.0]), 0.5),  # the last step draws nothing
        (SolverSchedule(grid, (step, step, Step(tau=0.7), *[step] * 3)), 1.0),  # a mixture
        (SolverSchedule(grid, (step, Step(kernel="er_sde", noise_scale=0.0), *[step] * 4)), 0.5),
    ]
    for schedule, expected in cases:
        assert process(schedule.tabulate(EDM())) == expected
    assert process(replace(solvers.er_sde(grid).tabulate(EDM()), schedule=None)) == 1.0  # nothing tells


@pytest.mark.parametrize("tau", [1e-8, 0.2, 7.0, 50.0])
def test_any_amount_of_noise_has_its_law(tau: float) -> None:
    given, own = split(solvers.sde_dpmpp_2m(times.logsnr(EDM(), 6), tau=tau).tabulate(EDM()))
    assert (given @ given.T + own @ own.T - torch.eye(len(given))).abs().max() < 1e-12


@pytest.mark.parametrize("solver", ["ddpm", "sde_dpmpp_2m", "er_sde_3", "dpmpp_sde", "sa_solver"])
def test_samples_of_one_seed_converge_and_their_distribution_is_the_same(solver: str) -> None:
    model = models.load("problem:grid_6x6")
    seeds = SelectionSeeds(60)

    def run(steps: int, brownian: bool) -> torch.Tensor:
        return sample(model, table(solver, steps, model.noise), seeds=seeds, brownian=brownian)

    def rms(one: torch.Tensor, two: torch.Tensor) -> float:
        return (one - two).square().mean().sqrt().item()

    ends = [run(steps, True) for steps in (8, 16, 32, 64)]
    apart = [rms(one, two) for one, two in itertools.pairwise(ends)]
    own = run(16, False)
    independent = rms(own, run(32, False))
    assert apart == sorted(apart, reverse=True) and apart[-1] < independent / 2
    assert (ends[1].mean(0) - own.mean(0)).abs().max() < 0.3 and (ends[1].std(0) - own.std(0)).abs().max() < 0.2


@functools.cache
def reference(kind: str) -> torch.Tensor:
    """End points of the ODE (no kind), or of an SDE; they are the same for every solver that is compared with them."""
    model = models.load("problem:grid_6x6")
    schedule = stochastic_reference(kind, model.noise) if kind else reference_schedule(model.noise)
    return sample(model, schedule.tabulate(model.noise), seeds=SelectionSeeds(100), brownian=True)


@pytest.mark.parametrize("solver", sorted(solvers.STOCHASTIC))
def test_each_solver_is_nearer_to_the_reference_that_it_is_compared_with(solver: str) -> None:
    model = models.load("problem:grid_6x6")
    steps = 12 if solvers.calls(solver, 12) == 12 else 6
    ends = sample(model, table(solver, steps, model.noise), seeds=SelectionSeeds(100), brownian=True)
    ode = (ends - reference("")).square().mean().item()
    sde = (ends - reference(sde_of(solver) or "sde_dpmpp_2m")).square().mean().item()
    assert (sde < ode) == bool(sde_of(solver))


def test_no_result_depends_on_the_batch_and_tables_without_noise_ask_for_none() -> None:
    model = models.load("problem:grid_6x6")
    tableau = table("er_sde", 5, model.noise)
    whole = sample(model, tableau, seeds=range(7), brownian=True)
    assert torch.equal(whole, sample(model, tableau, seeds=range(7), brownian=True, batch_size=3))
    assert not torch.equal(whole, sample(model, tableau, seeds=range(7)))
    plain = table("dpmpp_2m", 5, model.noise)
    assert torch.equal(sample(model, plain, seeds=range(3), brownian=True), sample(model, plain, seeds=range(3)))
    with pytest.raises(IndexError, match="no noise column 0"):
        brownian_noise(plain, range(3), (2,))(0)
    with pytest.raises(ArgumentError, match="brownian=True"):
        sample(model, tableau, seeds=range(3), brownian=True, noise=lambda m: torch.zeros(3, 2))
    with pytest.raises(ArgumentError, match="brownian=True"):
        sample(model, tableau, start=torch.zeros(3, 2), brownian=True)


def test_a_stochastic_teacher() -> None:
    model = models.load("problem:grid_6x6")
    tableau = stochastic_reference("er_sde_3", model.noise, 24).tabulate(model.noise)
    with pytest.raises(ArgumentError, match="brownian=True"):
        Teacher(model, tableau)
    teacher = Teacher(model, tableau, brownian=True)
    seeds = SelectionSeeds(9)
    ends = teacher.endpoints(seeds)
    assert torch.equal(ends, sample(model, tableau, seeds=seeds, brownian=True))
    assert (teacher.trajectory(seeds, outputs=False).state(24) - ends).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("solver", "kind"),
    [
        ("er_sde_2", "er_sde_3"), ("dpmpp_sde", "sde_dpmpp_2m"), (["sa_solver", "ddpm"], "sde_dpmpp_2m"),
        ("dpmpp_2m", ""), ("heun_churn", ""), (["ddim", "ddpm"], ""), (["er_sde", "ddpm"], ""),
    ],
)  # fmt: skip
def test_optimize_compares_like_with_like(solver: str | list[str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solvers of one SDE with a teacher of it; any mixture, and those of the ODE, with the deterministic one."""
    asked: set[str] = set()
    whole = Teacher.endpoints

    def endpoints(self: Teacher, *args: object) -> torch.Tensor:
        asked.add(self.tableau.digest)
        return whole(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Teacher, "endpoints", endpoints)
    monkeypatch.setattr(Teacher, "__call__", endpoints)
    monkeypatch.setattr(methods, "DMN_OPTIONS", methods.DMN_OPTIONS[:1])
    model = models.load("problem:gaussian")
    found = optimize(model, 3, "dmn", solver=solver, max_calls=6_000, objective="matched", teacher_calls=20)
    schedule = stochastic_reference(kind, model.noise, 20) if kind else reference_schedule(model.noise, 20)
    assert asked == {schedule.tabulate(model.noise).digest}
    assert found.plan["teacher"] == kind


def test_rows_of_stochastic_tables_are_kept_under_the_motion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load("problem:grid_6x6")
    judge = ImageJudge(lambda images: images[:, 0], "first")
    judge.digest = "first"

    def rows(solver: str) -> tuple[torch.Tensor, int]:
        before = model.evaluations
        scorer = Scorer(model, [judge], SelectionSeeds(20), condition=no_condition, cache=Cache(tmp_path))
        return scorer.rows(table(solver, 4, model.noise), 20)[0], model.evaluations - before

    for solver, again in (("ddpm", True), ("ddim", False)):
        first, _ = rows(solver)
        same, calls = rows(solver)
        assert torch.equal(first, same) and calls < 20
        monkeypatch.setattr("fewstep.brownian.MOTION", f"another than for {solver}")
        assert (rows(solver)[1] > 20) == again  # made anew where the noise is another
    expected = sample(model, table("ddpm", 4, model.noise), seeds=SelectionSeeds(20), brownian=True)
    assert torch.equal(rows("ddpm")[0][:, 0], expected[:, 0].double())
