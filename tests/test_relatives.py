"""What is read off one table: errors of a KLUB, the solver family, the shortest path, and times from the loss curve."""

import itertools

import pytest
import torch
from torch import Tensor

from fewstep import problems, times
from fewstep.errors import ArgumentError, TimesError
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.rules import SolverSchedule, Step
from fewstep.search import ays
from fewstep.search.diagnostics import diagnose, family_factor, interpolation_error
from fewstep.search.klub import Gram, ratio_grid
from fewstep.search.relatives import (
    RELATIVES,
    entropic,
    fitted_c,
    fitted_tangent,
    loss_density,
    rescaled_entropic,
)
from fewstep.search.shortest import shortest, shortest_paths
from tests.test_ays import flow_gram
from tests.test_klub import GRIDS, NOISE, C, analytic, exact

CONVERGED = torch.tensor(
    [80, 0.35204, 0.17565, 0.09719, 0.05526, 0.03169, 0.01822, 0.01048, 0.00603, 0.00347, 0.002], dtype=torch.float64
)


def law(ratios: Tensor) -> Tensor:
    """log(1 + c^2 / r^2), in which the KLUB-optimal times for Gaussian data are even."""
    return torch.log1p((C / ratios) ** 2)


# ------------------------------------------------------------------------------------------------------- diagnostics
@pytest.mark.parametrize("levels", [64, 128, 129])
@pytest.mark.parametrize("name", GRIDS)
def test_interpolation_error_is_the_true_one(levels: int, name: str) -> None:
    """Against the closed form, wherever in their cells the grid's points lie."""
    grid, gram = GRIDS[name][0], analytic(levels)
    true = gram.total(grid) - exact(grid[1:], grid[:-1]).sum().item()
    assert interpolation_error(gram, grid) == pytest.approx(true, rel=0.15)
    assert interpolation_error(gram, grid.flip(0)) == interpolation_error(gram, grid)


def test_diagnostics_of_a_real_pass() -> None:
    problem = problems.Gaussian(0.3, C**2, shape=(16,), noise=EDM())
    gram = Gram.compute(problem.denoiser(), problem.sample(128, seed=1), ratios=ratio_grid(EDM(0.01, 10.0), 32))
    grid = times.karras(EDM(0.01, 10.0), 6, end="min")
    found = diagnose(gram, grid)
    truth = exact(grid[1:], grid[:-1]).sum().item()
    assert abs(found.klub - found.interpolation_error - truth) < 4 * found.standard_error < 0.3 * truth
    assert (found.klub, found.standard_error) == gram.total_with_error(grid)
    assert found.martingale_defect == gram.martingale_defect() < 0.1
    assert (found.samples, found.levels) == (128, 32)
    assert f"KLUB {found.klub:.4g} +- {found.standard_error:.2g}" in found.text
    assert "128 samples; 32 noise levels" in found.text and "martingale" in found.text


def test_one_part_has_no_standard_error() -> None:
    assert "+-" not in diagnose(analytic(32), GRIDS["karras"][0]).text
    with pytest.raises(ArgumentError, match="at least 4"):
        interpolation_error(analytic(3), GRIDS["karras"][0])


# -------------------------------------------------------------------------------------------------------- the family
@pytest.mark.parametrize("noise", [EDM(), VPLinear(), Flow(shift=3.0)], ids=lambda n: n.family)
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 2.0])
def test_our_steps_are_the_papers_family(noise: object, lam: float) -> None:
    """Eq. 32, element by element, in EDM's coordinates: weights of the state, of the output and of the noise."""
    grid = times.logsnr(noise, 5, start=noise.time_of_ratio(9.0).item(), end="min")
    table = SolverSchedule(grid, (Step(basis="data", order=1, tau=lam),) * 5).tabulate(noise)
    b, a = noise.ratio(grid[:-1]), noise.ratio(grid[1:])
    keep, spread = (a / b) ** (lam**2 + 1), a * torch.sqrt(1 - (a / b) ** (2 * lam**2))
    for k in range(5):
        here, there = noise.alpha(grid[k]), noise.alpha(grid[k + 1])
        assert table.A[k + 1, k].item() == pytest.approx((keep[k] * there / here).item(), rel=1e-10)
        assert table.B[k + 1, k].item() == pytest.approx(((1 - keep[k]) * there).item(), rel=1e-10)
        fresh = table.C[k + 1].square().sum().sqrt().item()
        assert fresh == pytest.approx((spread[k] * there).item(), rel=1e-10, abs=1e-15)
        assert table.A[k + 1].count_nonzero() == 1 and table.B[k + 1].count_nonzero() == 1


def test_factor_of_the_family_is_its_path_divergence() -> None:
    """The KL between many small exact and frozen steps of dx = (1+l^2)(x-D)/t dt + l sqrt(2t) dw, Gaussian data."""
    low, high = 0.2, 0.5
    edges = torch.linspace(low, high, 4001, dtype=torch.float64)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges.diff()
    gap = C**4 * (1 / (middle**2 + C**2) - 1 / (high**2 + C**2))  # E|D_t - D_high|^2
    for lam in (0.4, 1.0, 1.7):
        drift, variance = (1 + lam**2) / middle * width, 2 * lam**2 * middle * width
        path = (drift**2 * gap / (2 * variance)).sum()  # KL of two normals with a common variance
        klub = exact(torch.tensor(low).double(), torch.tensor(high).double())
        assert path.item() == pytest.approx(family_factor(lam) * klub.item(), rel=1e-5)
    assert family_factor(1.0) == 1.0 and family_factor(0.5) == family_factor(2.0) == pytest.approx(25 / 16)
    with pytest.raises(ArgumentError, match="give a positive number"):
        family_factor(0.0)


def test_best_times_do_not_depend_on_the_member() -> None:
    start = times.karras(NOISE, 6, end="min")
    plain = ays.descend(exact, start, max_sweeps=20)[-1]
    for lam in (0.25, 1.0, 3.0):
        factor = family_factor(lam)
        assert torch.equal(ays.descend(lambda a, b, f=factor: f * exact(a, b), start, max_sweeps=20)[-1], plain)


# ------------------------------------------------------------------------------------------------------ shortest path
def test_shortest_path_against_brute_force() -> None:
    gram = analytic(11)
    paths = shortest_paths(gram.klub, gram.ratios, 10)
    for start in (4, 7, 10):
        for n in range(1, start + 1):
            choices = itertools.combinations(range(1, start), n - 1)
            grids = [gram.ratios[[start, *reversed(between), 0]] for between in choices]
            best = min(grids, key=gram.total)
            assert torch.equal(paths.path(n, start), best)
            assert paths.cost(n, start) == pytest.approx(gram.total(best), rel=1e-12)
    with pytest.raises(ArgumentError, match="there are paths of 1 to 4 steps"):
        paths.path(5, 4)
    with pytest.raises(ArgumentError, match="rising"):
        shortest_paths(gram.klub, gram.ratios.flip(0), 3)


def test_shortest_path_is_the_converged_optimum() -> None:
    """The published converged grid and its KLUB 4.564, with one table of 512 levels, for every count of one pass."""
    gram = analytic(512)
    paths = shortest_paths(gram.klub, gram.ratios, 40)
    spacing = gram.ratios.log().diff()[0].item()
    assert (paths.path(10).log() - CONVERGED.log()).abs().max() < 1.2 * spacing
    assert paths.cost(10) == pytest.approx(4.564, rel=1e-3)
    for n in (5, 20, 40):
        even = torch.lerp(law(gram.ratios[-1]), law(gram.ratios[0]), torch.linspace(0, 1, n + 1).double())
        ideal = C / torch.expm1(even).sqrt()
        best = exact(ideal[1:], ideal[:-1]).sum().item()
        path = paths.path(n)
        assert best <= exact(path[1:], path[:-1]).sum().item() <= 1.004 * best
    descended = ays.descend(gram.klub, times.karras(NOISE, 10, end="min"))[-1]
    assert paths.cost(10) < gram.total(descended) < 1.02 * paths.cost(10)


def test_shortest_times_keep_the_ends() -> None:
    gram = analytic(128)
    grid = shortest(gram, NOISE, 10, end="min")
    assert grid[[0, -1]].tolist() == [80.0, 0.002] and gram.total(grid) < 4.6
    zero = shortest(gram, NOISE, 10)
    assert zero[-1] == 0 and torch.equal(zero[:-1], grid[:-1])
    part = shortest(gram, NOISE, 5, start=3.3, end=0.01)
    assert part[[0, -1]].tolist() == [3.3, 0.01] and len(part) == 6
    flow = Flow(shift=3.0)
    assert shortest(flow_gram(flow), flow, 6)[[0, -1]].tolist() == [1.0, 0.0]
    with pytest.raises(ArgumentError, match="paths of 1 to"):
        shortest(analytic(8), NOISE, 10)


# ---------------------------------------------------------------------------------------------------------- relatives
@pytest.mark.parametrize("c", [0.1, 0.5, 3.0])
def test_fitted_c_recovers_gaussian_data(c: float) -> None:
    gram = analytic(64, c)
    assert fitted_c(gram) == pytest.approx(c, rel=1e-6)
    assert fitted_c(gram, "variance") == pytest.approx(c, rel=1e-2)
    for fit in ("loss", "variance"):
        grid = fitted_tangent(gram, NOISE, 8, fit=fit, end="min")
        assert torch.allclose(grid, times.tangent(NOISE, 8, c=fitted_c(gram, fit), end="min"), rtol=1e-12)
    assert torch.allclose(fitted_tangent(gram, NOISE, 8), times.tangent(NOISE, 8, c=c), rtol=1e-4)
    with pytest.raises(ArgumentError, match='give "loss" or "variance"'):
        fitted_c(gram, "mean")  # type: ignore[arg-type]


def test_fitted_c_of_samples() -> None:
    """From a pass over data with a mean, which is no part of the deviation."""
    problem = problems.Gaussian(2.0, C**2, shape=(16,), noise=EDM())
    gram = Gram.compute(problem.denoiser(), problem.sample(128, seed=1), ratios=ratio_grid(EDM(0.01, 80.0), 24))
    assert fitted_c(gram) == pytest.approx(C, rel=0.05) and fitted_c(gram, "variance") == pytest.approx(C, rel=0.05)


@pytest.mark.parametrize("n", [1, 5, 10])
def test_rescaled_entropic_is_the_tangent_law_for_gaussian_data(n: int) -> None:
    grid = rescaled_entropic(analytic(128), NOISE, n, end="min")
    ideal = times.tangent(NOISE, n, c=C, end="min")
    assert torch.allclose(grid, ideal, rtol=1e-3) and torch.equal(grid[[0, -1]], ideal[[0, -1]])
    assert torch.allclose(rescaled_entropic(analytic(512), NOISE, n, end="min"), ideal, rtol=1e-4)


def test_entropic_against_the_integral() -> None:
    """The integral of m r^-3 is -log(1 + c^2/r^2) / 2 for Gaussian data: even steps in it, for any ends."""
    for ends in ({"end": "min"}, {"end": 0.05}, {"start": 5.0, "end": "min"}):
        grid = entropic(analytic(128), NOISE, 10, **ends)
        steps = law(grid).diff()
        assert (steps / steps.mean() - 1).abs().max() < 1e-3
    other = rescaled_entropic(analytic(128), NOISE, 10, power=2.0, end="min")  # the integral of m / r: log(r^2 + c^2)
    steps = (other**2 + C**2).log().diff()
    assert (steps / steps.mean() - 1).abs().max() < 1e-3


def test_loss_density_against_its_closed_form() -> None:
    """Even in log(1/r^2 + 1/c^2) for Gaussian data."""
    grid = loss_density(analytic(128), NOISE, 10, end="min")
    steps = (1 / grid**2 + 1 / C**2).log().diff()
    assert (steps / steps.mean() - 1).abs().max() < 2e-3


def test_entropic_times_are_klub_optimal_for_gaussian_data() -> None:
    """Eq. 31 says 1 + c^2/t_i^2 is the geometric mean of its neighbours: even steps in H[x0 | x_t], exactly."""
    for make in (entropic, loss_density):
        grid = make(analytic(256), NOISE, 10, end="min")
        assert (grid / CONVERGED - 1).abs().max() < 1.5e-3
        assert exact(grid[1:], grid[:-1]).sum().item() == pytest.approx(4.564, rel=1e-3)
    u, t, low = CONVERGED[:-2], CONVERGED[1:-1], CONVERGED[2:]
    assert (law(t) - (law(u) + law(low)) / 2).abs().max() < 2e-3  # printed with five digits


@pytest.mark.parametrize("name", RELATIVES)
@pytest.mark.parametrize("noise", [EDM(), Flow(shift=3.0)], ids=lambda n: n.family)
def test_ends_are_those_of_all_grids(name: str, noise: object) -> None:
    gram, make = (analytic(64) if isinstance(noise, EDM) else flow_gram(noise)), RELATIVES[name]
    for end in ("zero", "min", "append"):
        like = times.logsnr(noise, 6, end=end)
        grid = make(gram, noise, 6, end=end)
        assert grid.shape == (7,) and grid.dtype == torch.float64 and bool((grid.diff() < 0).all())
        assert torch.equal(grid[[0, -1]], like[[0, -1]])
        assert (end == "append") == (grid[-2] == noise.t_min)
    half = noise.time_of_ratio(1.0).item()
    assert make(gram, noise, 3, start=half)[0] == half
    with pytest.raises(ArgumentError, match="n is 0"):
        make(gram, noise, 0)
    with pytest.raises(TimesError, match="start is"):
        make(gram, noise, 3, start=2 * noise.t_max)


def test_a_table_that_does_not_reach_down_is_refused() -> None:
    short = EDM(0.01, 80.0)
    whole = ratio_grid(short, 16)
    gram = analytic(16)
    gram = Gram(whole, gram.blocks, gram.counts)
    for make in (entropic, loss_density):
        with pytest.raises(ArgumentError, match=r"sigma/alpha = 0\.002, below the table's 0\.01"):
            make(gram, NOISE, 5)
        assert make(gram, NOISE, 5, end=0.01)[-1] == 0.01


def test_a_loss_that_dips_still_gives_falling_times() -> None:
    """A trained network's loss is not monotone; the densities stay positive."""
    gram = analytic(64)
    blocks = gram.blocks.clone()
    blocks[0, 0, 20:23] += 2e-5
    blocks[0, 20:23, 0] += 2e-5
    for make in RELATIVES.values():
        assert bool((make(Gram(gram.ratios, blocks, gram.counts), NOISE, 12, end="min").diff() < 0).all())
