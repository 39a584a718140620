"""Stochastic samplers on one Brownian motion: independent unit normals in every table, and samples that converge."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep import models, solvers, times
from fewstep.brownian import CELLS, brownian_noise, cell_weights
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.optimizing import optimize
from fewstep.randomness import SelectionSeeds
from fewstep.sampling import sample
from fewstep.search.teacher import Teacher, reference_schedule, stochastic_reference
from fewstep.tableau import Tableau

NOISES = (EDM(), VPLinear(), Flow())


def table(solver: str, steps: int, noise: object = NOISES[0], grid: str = "logsnr") -> Tableau:
    return solvers.get(solver)(times.named(grid)(noise, steps)).tabulate(noise)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.family)
@pytest.mark.parametrize("solver", sorted(solvers.STOCHASTIC))
def test_the_columns_of_every_table_are_independent_unit_normals(solver: str, noise: object) -> None:
    weights = cell_weights(table(solver, 6, noise))
    covariance = weights @ weights.T
    norms = covariance.diagonal()
    assert ((norms - 1).abs() < 1e-12).logical_or(norms == 0).all()
    assert torch.equal(covariance - norms.diag(), torch.zeros_like(covariance))  # no cell is given away twice


def test_columns_without_a_cell_have_their_own_noise() -> None:
    fine = table("sde_dpmpp_2m", 300)
    without = (cell_weights(fine) == 0).all(1).nonzero()[:, 0].tolist()
    assert without  # finer than the cells
    noise = brownian_noise(fine, range(400), (3,))
    rows = torch.stack([noise(m) for m in [*without[:3], 40]])
    assert rows.flatten(1).std(1).sub(1).abs().max() < 0.1
    assert torch.corrcoef(rows.flatten(1)).sub(torch.eye(4)).abs().max() < 0.15


def test_a_column_is_the_exact_solutions_noise() -> None:
    """Two steps' noise, carried on by the exact solution, is the one step's: the motion in 1 / sigma^2."""
    noise = EDM()
    lam = torch.linspace(-2, 2, 25, dtype=torch.float64)  # on the edges of cells
    levels = [*(-lam[[0, 12, 24]]).exp().tolist(), 0.0]
    two = solvers.get("sde_dpmpp_1")(torch.tensor(levels, dtype=torch.float64)).tabulate(noise)
    one = solvers.get("sde_dpmpp_1")(torch.tensor([levels[0], levels[2], 0.0], dtype=torch.float64)).tabulate(noise)
    seeds = range(5)
    z, w = brownian_noise(two, seeds, (4,)), brownian_noise(one, seeds, (4,))
    u = [1 / level**2 for level in levels[:3]]
    motion = z(0) * math.sqrt(u[1] - u[0]) + z(1) * math.sqrt(u[2] - u[1])
    assert (motion - w(0) * math.sqrt(u[2] - u[0])).abs().max() < 1e-2 * math.sqrt(u[2])


def test_samples_of_one_seed_converge_and_their_distribution_is_the_same() -> None:
    model = models.load("problem:grid_6x6")
    seeds = SelectionSeeds(400)

    def run(steps: int, brownian: bool) -> torch.Tensor:
        return sample(model, table("sde_dpmpp_2m", steps, model.noise), seeds=seeds, brownian=brownian)

    ends = {steps: run(steps, True) for steps in (8, 16, 64)}
    apart = [(ends[64] - ends[steps]).square().mean().sqrt().item() for steps in (8, 16)]
    independent = (run(64, False) - run(16, False)).square().mean().sqrt().item()
    assert apart[1] < apart[0] < 0.5 * independent
    own = run(16, False)
    assert (ends[16].mean(0) - own.mean(0)).abs().max() < 0.3 and (ends[16].std(0) - own.std(0)).abs().max() < 0.2


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
    assert cell_weights(tableau).shape[1] == CELLS


def test_a_stochastic_teacher() -> None:
    model = models.load("problem:grid_6x6")
    tableau = stochastic_reference("er_sde_1", model.noise, 24).tabulate(model.noise)
    with pytest.raises(ArgumentError, match="brownian=True"):
        Teacher(model, tableau)
    teacher = Teacher(model, tableau, brownian=True)
    seeds = SelectionSeeds(9)
    ends = teacher.endpoints(seeds)
    assert torch.equal(ends, sample(model, tableau, seeds=seeds, brownian=True))
    paths = teacher.trajectory(seeds, outputs=False)
    assert (paths.state(24) - ends).abs().max() < 1e-6
    assert (
        stochastic_reference("sa_solver", model.noise).to_dict() == stochastic_reference("ddpm", model.noise).to_dict()
    )
    assert (
        stochastic_reference("er_sde_1", model.noise).to_dict() != stochastic_reference("ddpm", model.noise).to_dict()
    )


@pytest.mark.parametrize(("solver", "draws"), [("er_sde_2", True), ("dpmpp_2m", False), (["ddim", "ddpm"], False)])
def test_optimize_compares_like_with_like(
    solver: str | list[str], draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stochastic solver with a stochastic teacher of its own SDE; where a deterministic one takes part, with the
    deterministic one.
    """
    asked: set[str] = set()
    whole = Teacher.endpoints

    def endpoints(self: Teacher, *args: object) -> torch.Tensor:
        asked.add(self.tableau.digest)
        return whole(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Teacher, "endpoints", endpoints)
    monkeypatch.setattr(Teacher, "__call__", endpoints)
    model = models.load("problem:grid_6x6")
    optimize(model, 4, "dmn", solver=solver, max_calls=20_000, objective="matched")
    schedule = stochastic_reference("er_sde", model.noise) if draws else reference_schedule(model.noise)
    assert asked == {schedule.tabulate(model.noise).digest}
