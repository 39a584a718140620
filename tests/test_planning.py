"""Planned times: equal to brute force and to the formulas written out; better than hand-crafted ones."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import problems, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.many import optimize_many
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.optimizing import optimize
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search import dynamic_oss
from fewstep.search.dynamic import cheapest, cheapest_pairs
from fewstep.search.dynamic_end import EndError
from fewstep.search.dynamic_errors import LocalErrors, Products
from fewstep.search.dynamic_gits import jump_costs
from fewstep.search.dynamic_oss import optimal_steps
from fewstep.search.teacher import Teacher, reference_schedule
from fewstep.search.trajectories import Trajectories

NOISE = EDM()
Solver = Callable[[Tensor], SolverSchedule]


def walked(
    name: str = "images_8x8", calls: int = 12, count: int = 6, noise: object = None
) -> tuple[Denoiser, Trajectories]:
    net = problems.get(name, noise).denoiser()  # type: ignore[arg-type]
    net.dtype = torch.float64
    table = reference_schedule(net.noise, calls).tabulate(net.noise)
    return net, Teacher(net, table).trajectory(CalibrationSeeds(count))


def paths(knots: int, n: int) -> Iterator[list[int]]:
    for inner in itertools.combinations(range(1, knots - 1), n - 1):
        yield [0, *inner, knots - 1]


@pytest.mark.parametrize("discount", [0.8, 1.0, 1.15])
def test_cheapest_paths_are_those_of_brute_force(discount: float) -> None:
    rng = np.random.default_rng(1)
    edges = rng.normal(size=(9, 9))  # of both signs
    found = cheapest(edges, 8, discount=discount)
    for n in range(1, 9):
        best = min(
            paths(9, n), key=lambda p: sum(edges[a, b] * discount**k for k, (a, b) in enumerate(itertools.pairwise(p)))
        )
        assert found.path(n) == best
        assert found.costs[n, 0] == pytest.approx(
            sum(edges[a, b] * discount**k for k, (a, b) in enumerate(itertools.pairwise(best)))
        )
    assert found.path(2, start=4)[0] == 4 and found.path(1, start=4) == [4, 8]
    for bad in (0, 9):
        with pytest.raises(ArgumentError, match="paths of 1 to 8 steps"):
            found.path(bad)
    with pytest.raises(ArgumentError, match="paths of 1 to 2 steps"):
        found.path(3, start=6)


def test_cheapest_pairs_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(2)
    first, middle, last = rng.random(9), rng.random((9, 9, 9)), rng.random((9, 9))
    found = cheapest_pairs(first, middle, last, 8, single=0.25)

    def cost(path: list[int]) -> float:
        if len(path) == 2:
            return 0.25
        inner = sum(middle[p, i, j] for p, i, j in zip(path, path[1:], path[2:], strict=False) if j != 8)
        return first[path[1]] + inner + last[path[-3], path[-2]]

    for n in range(1, 9):
        best = min(paths(9, n), key=cost)
        assert found.path(n) == best and found.costs[n] == pytest.approx(cost(best), rel=1e-12)
    with pytest.raises(ArgumentError, match="paths of 1 to 8 steps"):
        found.path(9)


def test_ties_go_to_the_shortest_first_step() -> None:
    assert cheapest(np.ones((7, 7)), 4).path(4) == [0, 1, 2, 3, 6]
    assert cheapest_pairs(np.ones(7), np.ones((7, 7, 7)), np.ones((7, 7)), 4).path(4) == [0, 1, 2, 3, 6]


def test_gits_costs_are_the_formula() -> None:
    """Chen et al. 2024 written out, sample by sample: Euler jumps in sigma, and distances from the chord."""
    _, made = walked(calls=7, count=3)
    x, d, t = made.states.double().flatten(2), made.outputs.double().flatten(2), made.times
    for metric in ("dev", "l1", "l2"):
        costs = jump_costs(made, metric)
        for i, j in itertools.combinations(range(8), 2):
            each: list[float] = []
            for b in range(3):
                jump = x[b, i] + (t[j] - t[i]) * (x[b, i] - d[b, i]) / t[i]
                chord = x[b, -1] - x[b, 0]

                def away(point: Tensor, b: int = b, chord: Tensor = chord) -> Tensor:
                    rest = point - x[b, 0]
                    return (rest - rest @ chord / (chord @ chord) * chord).norm()

                gap = jump - x[b, j]
                each.append({"dev": away(jump) - away(x[b, j]), "l1": gap.abs().sum(), "l2": gap.norm()}[metric].item())
            assert costs[i, j] == pytest.approx(np.mean(each), rel=1e-9, abs=1e-9), (metric, i, j)
    with pytest.raises(ArgumentError, match="choose one of dev, l1, l2"):
        jump_costs(made, "l3")  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [VPLinear(), Flow()])
def test_gits_jumps_are_ddim_steps_under_any_schedule(noise: object) -> None:
    net, made = walked("gaussian_8x8", calls=6, count=2, noise=noise)
    costs, scale = jump_costs(made, "l2"), made.alpha if made.alpha[0] > 0 else made.alpha + made.sigma
    for i, j in itertools.combinations(range(7), 2):
        jump = sample(net, solvers.ddim(made.times[[i, j]]).tabulate(net.noise), start=made.state(i))
        gap = ((jump - made.state(j)) / scale[j]).flatten(1).norm(dim=1).mean().item()
        assert costs[i, j] == pytest.approx(gap, rel=1e-6, abs=1e-9)


def test_oss_is_the_definition() -> None:
    """Pei et al. 2025 written out: the best state of k Euler steps at every time, from those of k - 1."""
    net, made = walked("mixture_1d", calls=8, count=4)
    before = net.evaluations
    found = optimal_steps(net, made, 5, each=True, batch_size=3)
    assert net.evaluations - before == 4 * dynamic_oss.calls(9, 5)
    t = made.times
    for b in range(4):
        states: dict[int, Tensor] = {0: made.state(0)[b]}
        parents: list[dict[int, int]] = []
        for _ in range(5):
            tried: dict[int, tuple[float, int, Tensor]] = {}
            for i, z in states.items():
                slope = (z - net(z[None], t[i].item())[0]) / t[i] if i < 8 else z
                for j in range(i + 1, 9):
                    there = z + (t[j] - t[i]) * slope
                    gap = (there - made.state(j)[b]).square().mean().item()
                    if j not in tried or gap < tried[j][0]:
                        tried[j] = (gap, i, there)
            states = {j: there for j, (_, _, there) in tried.items()}
            parents.append({j: i for j, (_, i, _) in tried.items()})
        for n in range(1, 6):
            path = [8]
            for k in range(n, 0, -1):
                path.append(parents[k - 1][path[-1]])
            alone = dynamic_oss.OptimalSteps(found.costs[:, b : b + 1], found.before[:, b : b + 1])
            assert alone.path(n) == path[::-1]
    for n in range(1, 6):
        median = found.path(n)
        assert median[0] == 0 and median[-1] == 8 and all(a < b for a, b in itertools.pairwise(median))
    with pytest.raises(ArgumentError, match="paths of 1 to 5 steps"):
        found.path(6)
    with pytest.raises(ArgumentError, match="allow 1 to 8 steps"):
        optimal_steps(net, made, 9)


def test_oss_of_two_steps_is_the_best_of_all() -> None:
    net, made = walked("mixture_1d", calls=8, count=5)
    found = optimal_steps(net, made, 2)

    def gap(middle: int) -> float:
        table = solvers.euler(made.times[[0, middle, 8]]).tabulate(NOISE)
        return (sample(net, table, start=made.state(0)) - made.state(8)).square().mean().item()

    assert found.path(2)[1] == min(range(1, 8), key=gap)
    assert found.costs[2, 0, 8].item() == pytest.approx(gap(found.path(2)[1]), rel=1e-9)


SOLVERS: dict[str, Solver] = {
    name: solvers.get(name) for name in ("ddim", "dpmpp_2m", "ipndm_2", "unip_2_bh2_data", "deis_tab_2", "lms")
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("noise", [EDM(), VPLinear(), Flow()])
def test_local_errors_are_those_of_the_solver(name: str, noise: object) -> None:
    """One step of the solver's own table, fed with the teacher's states and outputs, against the teacher's state."""
    net, made = walked("gaussian_8x8", calls=7, count=3, noise=noise)
    solver = SOLVERS[name]
    errors = LocalErrors.of(Products.of(made, net.noise), solver, name)
    assert errors.rule == name

    def error(path: list[int], row: int) -> float:
        table = solver(made.times[path]).tabulate(net.noise)
        there = sum(table.A[row, k] * made.state(path[k]) for k in range(row)) + sum(
            table.B[row, k] * made.output(path[k]) for k in range(row)
        )
        knot = path[row]
        return ((there - made.state(knot)) / made.alpha[knot]).square().mean().item()

    limit = {"rel": 1e-6, "abs": 1e-10}  # a difference of products, over alpha squared
    assert errors.single == pytest.approx(error([0, 7], 1), **limit)
    for j in range(1, 7):
        assert errors.first[j] == pytest.approx(error([0, j, 7], 1), **limit)
    for p, i, j in [(0, 1, 2), (0, 2, 5), (1, 3, 4), (2, 3, 6), (1, 5, 6), (0, 5, 6)]:
        # As the second step of a path that starts at p; order 3 and more is planned as second order.
        begin = made.times[[p, i, j, 7]]
        table = solver(begin).tabulate(net.noise)
        there = table.A[2, 0] * made.state(p) + table.A[2, 1] * made.state(i)
        there = there + table.B[2, 0] * made.output(p) + table.B[2, 1] * made.output(i)
        wanted = ((there - made.state(j)) / made.alpha[j]).square().mean().item()
        assert errors.middle[p, i, j] == pytest.approx(wanted, **limit), (p, i, j)
    if name != "lms":
        for p, i in [(0, 1), (0, 4), (2, 6)]:
            path = [p, i, 7] if p == 0 else [0, p, i, 7]
            assert errors.last[p, i] == pytest.approx(error(path, len(path) - 1), **limit)


def test_solvers_that_are_no_multistep_are_planned_as_ddim() -> None:
    net, made = walked("gaussian_8x8", calls=7, count=3)
    products = Products.of(made, net.noise)
    plain = LocalErrors.of(products, solvers.ddim, "ddim")
    for name in ("heun", "sde_dpmpp_2m", "dpm_solver_3"):
        errors = LocalErrors.of(products, solvers.get(name), name)
        assert errors.rule == f"ddim, not {name}"
        assert np.array_equal(errors.middle, plain.middle) and np.array_equal(errors.first, plain.first)


def test_least_local_error_is_that_of_brute_force() -> None:
    net, made = walked(calls=9, count=4)
    products = Products.of(made, net.noise)
    errors = LocalErrors.of(products, solvers.dpmpp_2m)
    weights = np.linspace(0.2, 1.0, 10)
    for power in (1.0, 2.0):
        plans = errors.plan(weights, 9, power)

        def cost(path: list[int], power: float = power) -> float:
            squares = [errors.single] if len(path) == 2 else [errors.first[path[1]]]
            squares += [errors.middle[p, i, j] for p, i, j in zip(path, path[1:], path[2:-1], strict=False)]
            squares += [errors.last[path[-3], path[-2]]] if len(path) > 2 else []
            return sum((weights[k] * e**0.5) ** power for k, e in zip(path[1:], squares, strict=True))

        for n in range(1, 10):
            assert cost(plans.path(n)) == pytest.approx(min(map(cost, paths(10, n))), rel=1e-12)
            assert plans.path(n) == errors.plan(weights, 9, power).path(n)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_3m", "ipndm", "heun", "unipc"])
def test_predicted_end_error_is_exact_for_gaussian_data(name: str) -> None:
    """Isotropic Gaussian data have one Jacobian everywhere: the student's run is the linear one, growth and all."""
    net, made = walked("gaussian", calls=10, count=400)
    predictor = EndError.of(made, net.noise, bands=1)
    # The end points' variance is an estimate; with the true one the prediction is exact.
    variance, ratio = 0.25, made.sigma / made.alpha
    gains = (variance / (variance + ratio**2)).numpy()[None]
    exact = EndError(net.noise, made.times, predictor.products.sum(0)[None], gains)
    for path in ([0, 3, 6, 10], [0, 2, 4, 6, 8, 10]):
        schedule = solvers.get(name)(made.times[path])
        ends = sample(net, schedule.tabulate(net.noise), start=made.state(0))
        truth = (ends - made.state(-1)).square().mean().sqrt().item()
        assert exact.predict(schedule) == pytest.approx(truth, rel=1e-9)
        assert predictor.predict(schedule) == pytest.approx(truth, rel=0.1, abs=0.01)


def test_moving_knots_never_worsens_the_prediction() -> None:
    net, made = walked(calls=20, count=8)
    predictor = EndError.of(made, net.noise)
    known: dict[tuple[int, ...], float] = {}
    for start in ([0, 5, 10, 15, 20], [0, 1, 2, 3, 20], [0, 17, 18, 19, 20]):
        moved = predictor.improved(solvers.dpmpp_2m, start, known)
        assert known[tuple(moved)] <= known[tuple(start)] and moved == sorted(set(moved))
        assert moved[0] == 0 and moved[-1] == 20
        assert moved == predictor.improved(solvers.dpmpp_2m, start, {})
    for schedule in (solvers.dpmpp_2m(times.karras(net.noise, 4)), solvers.sde_dpmpp_1(made.times[[0, 9, 20]])):
        with pytest.raises(ArgumentError, match="none of the teacher's|draws noise"):
            predictor.predict(schedule)


def end_error(net: Denoiser, teacher: Teacher, grid: Tensor) -> float:
    seeds = SelectionSeeds(128)
    ends = sample(net, solvers.dpmpp_2m(grid).tabulate(net.noise), seeds=seeds)
    return (ends - teacher.endpoints(seeds)).square().mean().sqrt().item()


def test_planned_times_beat_every_grid_made_by_hand() -> None:
    """On 8 x 8 Gaussians at four calls, on seeds that planned nothing; no image was made to choose."""
    net = problems.get("grid_8x8").denoiser()
    teacher = Teacher(net, reference_schedule(net.noise, 60).tabulate(net.noise), batch_size=128)
    made = teacher.trajectory(CalibrationSeeds(32))
    errors = LocalErrors.of(Products.of(made, net.noise), solvers.dpmpp_2m, "dpmpp_2m")
    path = errors.plan(np.ones(61), 4, 2.0).path(4)
    moved = EndError.of(made, net.noise).improved(solvers.dpmpp_2m, path, {})
    hand = min(end_error(net, teacher, make(net.noise, 4)) for make in times.NAMES.values())
    assert end_error(net, teacher, made.times[moved]) < 0.6 * hand


BUDGET = 11_000


def counted() -> Denoiser:
    """A mixture that nobody recognises: exact samples of a known one would be compared with, slowly."""
    known = problems.get("mixture_1d").denoiser()
    net: Any = lambda x, t, condition=None: known(x, t)  # noqa: E731
    return Denoiser(net, noise=known.noise, shape=known.shape, dtype=known.dtype, fingerprint="mixture")


@pytest.mark.parametrize("method", [pytest.param("gits", marks=pytest.mark.slow), "oss", "local_error"])
def test_methods_of_optimize(method: str, tmp_path: Path) -> None:
    net = counted()
    found = optimize(net, 3, method, max_calls=BUDGET, teacher_calls=16, out=tmp_path)
    assert net.evaluations == found.calls <= BUDGET
    assert {c["method"] for c in found.candidates} == {"hand", method}
    assert found.selection["after"] <= found.selection["before"]
    stages = {stage["stage"]: stage for stage in found.stages}
    assert 0 < stages["trajectories"]["calls"] <= stages["trajectories"]["planned"]
    assert ("optimal steps" in stages) == (method == "oss")
    for stage in found.stages:
        assert stage["calls"] <= stage["planned"], stage
    again = counted()
    twice = optimize(again, 3, method, max_calls=BUDGET, teacher_calls=16, out=tmp_path)
    assert again.evaluations <= 1 and twice.tableau == found.tableau  # all of it was kept


def test_several_numbers_of_calls_share_the_trajectories() -> None:
    net = counted()
    many = optimize_many(net, [2, 3], "dpmpp_2m", "gits", max_calls=2 * BUDGET, teacher_calls=16)
    assert len(many) == 2 and net.evaluations == many.calls <= 2 * BUDGET
    shared = [stage["stage"] for stage in many.shared]
    assert shared.count("trajectories") == 1
    assert all("trajectories" not in [s["stage"] for s in found.stages] for found in many)


def test_bad_input_is_refused_before_any_call() -> None:
    net = counted()
    with pytest.raises(ArgumentError, match="teacher_calls=0 switches the teacher off"):
        optimize(net, 4, "gits", teacher_calls=0, objective=lambda x: x.flatten(1).mean(1))
    with pytest.raises(ArgumentError, match="grid of 7 times, too coarse to choose 4 steps from: give at least 8"):
        optimize(net, 4, "oss", teacher_calls=6)
    with pytest.raises(ArgumentError, match="too coarse to choose 9 steps"):
        optimize_many(net, [3, 9], method="local_error", teacher_calls=12)
    assert net.evaluations == 0
