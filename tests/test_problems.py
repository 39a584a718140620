"""Analytic problems against closed forms, quadrature, finite differences, and published values."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from fewstep import problems, solvers, times
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Flow, NoiseSchedule, VPLinear
from fewstep.problems import Gaussian, GaussianMixture, Problem
from fewstep.sampling import sample
from fewstep.tableau import Tableau
from tests.analytic import NOISES
from tests.analytic import times as noise_times


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def covariances(k: int, d: int, seed: int = 5) -> Tensor:
    root = normals(k, d, d, seed=seed) / math.sqrt(d)
    return 0.3 * root @ root.mT + 0.02 * torch.eye(d, dtype=torch.float64)


def full_mixture(noise: NoiseSchedule | None = None) -> GaussianMixture:
    return GaussianMixture(normals(4, 3), covariances(4, 3), [0.1, 0.2, 0.3, 0.4], noise=noise)


def correlated(noise: NoiseSchedule | None = None) -> Gaussian:
    return Gaussian(normals(3, seed=1), covariances(1, 3)[0], noise=noise)


EVERY: dict[str, Any] = {**problems.NAMES, "full mixture": full_mixture, "correlated": correlated}


def states(problem: Problem, t: float, n: int = 4) -> Tensor:
    x0 = problem.sample(n, seed=3, dtype=torch.float64)
    return problem.noise.alpha(t) * x0 + problem.noise.sigma(t) * normals(*x0.shape, seed=4)


# ------------------------------------------------------------------------------------------------- exact identities


@pytest.mark.parametrize("name", EVERY)
def test_score_is_the_gradient_of_the_density(name: str) -> None:
    problem: Problem = EVERY[name](VPLinear())
    for t in (None, 0.05, 0.4, 1.0):
        x = states(problem, 0.02 if t is None else t).requires_grad_()
        (gradient,) = torch.autograd.grad(problem.log_density(x, t).sum(), x)
        score = problem.score(x, t)
        assert gap(score, gradient) < 1e-9 * max(1.0, gradient.abs().max().item())
        # and by central differences, without autograd
        step = normals(*x.shape, seed=6)
        h = 1e-6
        slope = (problem.log_density(x + h * step, t) - problem.log_density(x - h * step, t)) / (2 * h)
        along = (score * step).flatten(1).sum(1)
        assert gap(along, slope) < 1e-5 * max(1.0, along.abs().max().item())


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", EVERY)
def test_denoiser_is_tweedies_formula(name: str, noise: str) -> None:
    problem: Problem = EVERY[name](NOISES[noise])
    for t in noise_times(NOISES[noise]):
        alpha, sigma = problem.noise.alpha(t), problem.noise.sigma(t)
        x = states(problem, t)
        tweedie = (x + sigma**2 * problem.score(x, t)) / alpha
        assert gap(problem.denoise(x, t), tweedie) < 1e-9 * max(1.0, x.abs().max().item()), t


@pytest.mark.parametrize("noise", ["vp", "edm", "flow3"])
def test_gaussian_density_is_torchs(noise: str) -> None:
    problem = correlated(NOISES[noise])
    x = normals(50, 3, seed=2)
    eye = torch.eye(3, dtype=torch.float64)
    for t in noise_times(NOISES[noise]):
        alpha, sigma = problem.noise.alpha(t), problem.noise.sigma(t)
        law = MultivariateNormal(alpha * problem.mean, alpha**2 * problem.covariance + sigma**2 * eye)
        assert gap(problem.log_density(x, t), law.log_prob(x)) < 1e-9
    assert gap(problem.log_density(x), MultivariateNormal(problem.mean, problem.covariance).log_prob(x)) < 1e-9


def test_mixture_density_is_the_sum() -> None:
    problem, x = full_mixture(), normals(50, 3, seed=2)
    t, eye = 0.7, torch.eye(3, dtype=torch.float64)
    parts = [
        MultivariateNormal(m, c + t**2 * eye).log_prob(x).exp() * w
        for m, c, w in zip(normals(4, 3), covariances(4, 3), (0.1, 0.2, 0.3, 0.4), strict=True)
    ]
    assert gap(problem.log_density(x, t), torch.stack(parts).sum(0).log()) < 1e-12


@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_denoiser_by_quadrature(t: float) -> None:
    """E[x_0 | x_t = x] as a ratio of integrals over x_0."""
    problem = problems.get("mixture_1d", VPLinear())
    alpha, sigma = problem.noise.alpha(t), problem.noise.sigma(t)
    x0 = torch.linspace(-2.5, 2.5, 400_001, dtype=torch.float64)
    x = torch.tensor([-1.2, -0.4, 0.0, 0.5, 1.1], dtype=torch.float64)
    prior = problem.log_density(x0[:, None]).exp()
    weight = prior * torch.exp(-((x[:, None] - alpha * x0) ** 2) / (2 * sigma**2))
    mean = (weight * x0).sum(1) / weight.sum(1)
    assert gap(problem.denoise(x[:, None], t)[:, 0], mean) < 1e-10


@pytest.mark.parametrize("t", [None, 0.02, 0.5, 20.0])
def test_densities_integrate_to_one(t: float | None) -> None:
    problem = problems.get("mixture_1d")
    wide = 3 + 9 * (t or 0.0)
    x = torch.linspace(-wide, wide, 200_001, dtype=torch.float64)
    assert abs(torch.trapezoid(problem.log_density(x[:, None], t).exp(), x).item() - 1) < 1e-10


# ------------------------------------------------------------------------------------------- one problem, many forms


def agree(one: Problem, two: Problem) -> None:
    for t in (None, *noise_times(one.noise)):
        x = normals(20, *one.shape, seed=8) * (1 if t is None else float(one.noise.ratio(t)) + 1)
        if t is not None:
            assert gap(one.denoise(x, t), two.denoise(x, t)) < 1e-9 * max(1.0, x.abs().max().item())
        score = one.score(x, t)
        assert gap(score, two.score(x, t)) < 1e-9 * max(1.0, score.abs().max().item())
        density = one.log_density(x, t)
        assert gap(density, two.log_density(x, t)) < 1e-10 * max(1.0, density.abs().max().item())


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
@pytest.mark.parametrize("noise", ["vp", "edm", "flow3"])
def test_a_mixture_of_one_is_a_gaussian(noise: str, kind: str) -> None:
    mean = normals(1, 3)
    c: Any = {
        "isotropic": 0.3,
        "diagonal": torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64),
        "full": covariances(1, 3)[0],
    }[kind]
    many = c if kind == "isotropic" else c[None]
    agree(Gaussian(mean[0], c, noise=NOISES[noise]), GaussianMixture(mean, many, noise=NOISES[noise]))


def test_forms_of_the_covariances_agree() -> None:
    means, each = normals(4, 3), torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    isotropic = GaussianMixture(means, each)
    agree(isotropic, GaussianMixture(means, each[:, None].expand(4, 3)))
    agree(isotropic, GaussianMixture(means, each[:, None, None] * eye))
    basis = torch.linalg.qr(normals(3, 3, seed=9)).Q
    variances = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    full = torch.einsum("de,ke,fe->kdf", basis, variances, basis)
    agree(GaussianMixture(means, variances, basis=basis), GaussianMixture(means, (full + full.mT) / 2))


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("noise", ["flow", "flow3", "zero_snr"])
@pytest.mark.parametrize("name", EVERY)
def test_pure_noise_says_nothing(name: str, noise: str) -> None:
    """At alpha = 0 the denoiser is the mean of the data, whatever the state."""
    problem: Problem = EVERY[name](NOISES[noise])
    out = problem.denoise(normals(5, *problem.shape), problem.noise.t_max)
    mean = problem.mean if isinstance(problem, Gaussian) else problem.log_weights.exp() @ problem.means  # type: ignore[attr-defined]
    assert gap(out.flatten(1), mean.expand(5, -1)) < 1e-12


@pytest.mark.parametrize("noise", ["edm", "vp", "flow3"])
@pytest.mark.parametrize("name", EVERY)
def test_a_clean_state_is_its_own_denoised(name: str, noise: str) -> None:
    problem: Problem = EVERY[name](NOISES[noise])
    x = states(problem, problem.noise.t_clean)
    assert gap(problem.denoise(x, problem.noise.t_clean), x) < 1e-9
    near = float(problem.noise.time_of_ratio(1e-6))
    assert gap(problem.denoise(x, near), x / problem.noise.alpha(near)) < 1e-6


# ------------------------------------------------------------------------------------------------------- the ODE's flow


def integrated(problem: Problem, x: Tensor, ratios: Tensor) -> Tensor:
    """The ODE of the scaled state y = x / alpha, dy / d log ratio = y - D, by Runge-Kutta 4."""
    noise = problem.noise

    def slope(y: Tensor, log_ratio: Tensor) -> Tensor:
        t = noise.time_of_ratio(log_ratio.exp())
        return y - problem.denoise(noise.alpha(t) * y, t)

    u = ratios.log()
    y = x / noise.alpha(noise.time_of_ratio(ratios[0]))
    for a, b in itertools.pairwise(u):
        h = b - a
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, a + h / 2)
        k3 = slope(y + h / 2 * k2, a + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, b))
    return y * noise.alpha(noise.time_of_ratio(ratios[-1]))


@pytest.mark.parametrize("noise", ["vp", "edm", "flow3"])
@pytest.mark.parametrize("make", [correlated, problems.NAMES["mixture_1d"], problems.NAMES["gaussian_8x8"]])
def test_ode_solution_by_fine_integration(noise: str, make: Any) -> None:
    problem = make(NOISES[noise])
    ratios = torch.logspace(1, -1.5, 241, dtype=torch.float64)
    first, last = (problem.noise.time_of_ratio(r) for r in (ratios[0], ratios[-1]))
    x = states(problem, float(first), n=5)
    assert gap(problem.ode_solution(x, first, last), integrated(problem, x, ratios)) < 1e-7


@pytest.mark.parametrize("name", ["gaussian", "gaussian_8x8", "mixture_1d"])
def test_ode_solutions_compose_and_invert(name: str) -> None:
    problem: Any = problems.get(name, Flow(3.0))
    x = states(problem, 0.9)
    there = problem.ode_solution(x, 0.9, 0.0)
    assert gap(problem.ode_solution(problem.ode_solution(x, 0.9, 0.4), 0.4, 0.0), there) < 1e-9
    assert gap(problem.ode_solution(there, 0.0, 0.9), x) < 1e-8


def test_the_flow_of_a_mixture_on_a_line_keeps_far_tails() -> None:
    problem: Any = problems.get("mixture_1d")
    x = torch.tensor([[-700.0], [-80.0], [0.0], [80.0], [700.0]], dtype=torch.float64)
    clean = problem.ode_solution(x, 80.0, 0.0)
    assert clean.isfinite().all() and (clean.diff(dim=0) > 0.1).all()
    assert gap(problem.ode_solution(clean, 0.0, 80.0), x) < 1e-5


def test_the_flow_of_a_plane_mixture_is_not_closed() -> None:
    with pytest.raises(ArgumentError, match="one dimension only"):
        problems.get("grid_8x8").ode_solution(torch.zeros(1, 2), 1.0, 0.1)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------ tables on Gaussian problems

AYS = Gaussian(0.0, 0.25, shape=(1,))
AYS_GRIDS = {
    "karras": times.karras(AYS.noise, 10, end="min"),
    "logsnr": times.logsnr(AYS.noise, 10, end="min"),
    "tangent c=0.5": times.tangent(AYS.noise, 10, c=0.5, end="min"),
    "tangent c=1": times.tangent(AYS.noise, 10, c=1.0, end="min"),
}
AYS_VALUES = {
    "karras": (9.84e-2, 3.14e-1),
    "logsnr": (8.43e-2, 2.64e-1),
    "tangent c=0.5": (1.62e-2, 4.23e-2),
    "tangent c=1": (2.60e-2, 7.46e-2),
}


@pytest.mark.parametrize("name", AYS_GRIDS)
def test_kl_of_samplers_is_the_published_one(name: str) -> None:
    """AYS, Theorem 3.1: the product formula, and the values for ten steps of the ODE and of stochastic DDIM."""
    grid, c2 = AYS_GRIDS[name], 0.25
    before, after = grid[:-1], grid[1:]
    f = ((before**2 + c2) * (after**2 + c2) / (before * after + c2) ** 2).prod()
    ode = AYS.kl(solvers.ddim(grid).tabulate(AYS.noise), start="exact").item()
    assert abs(ode - 0.5 * (f - 1 - f.log()).item()) < 1e-12
    assert ode == pytest.approx(AYS_VALUES[name][0], rel=5e-3)
    stochastic = AYS.kl(solvers.ddim(grid, eta=1.0).tabulate(AYS.noise), start="exact").item()
    assert stochastic == pytest.approx(AYS_VALUES[name][1], rel=5e-3)


def table_for(name: str, noise: NoiseSchedule) -> Tableau:
    return solvers.get(name)(times.logsnr(noise, 6, start=float(noise.time_of_ratio(20.0)))).tabulate(noise)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc", "ddpm", "sde_dpmpp_2m", "heun"])
@pytest.mark.parametrize("noise", ["vp", "edm", "flow3"])
def test_output_law_by_pushing_unit_vectors_through_the_loop(noise: str, solver: str) -> None:
    """The sampler is affine in its noise: its matrix, column by column, gives mean and covariance."""
    problem = correlated(NOISES[noise])
    table, denoiser = table_for(solver, NOISES[noise]), problem.denoiser(dtype=torch.float64)
    draws = 1 + table.C.shape[1]
    unit = torch.cat([torch.zeros(1, draws * 3), torch.eye(draws * 3)]).double().reshape(-1, draws, 3)
    out = sample(denoiser, table, start=unit[:, 0] * table.sigma[0], noise=lambda m: unit[:, m + 1])
    columns = out[1:] - out[0]
    mean, covariance = problem.output_law(table)
    assert gap(mean, out[0]) < 1e-12 and gap(covariance, columns.T @ columns) < 1e-12
    exact = MultivariateNormal(problem.mean, problem.covariance)
    ours = MultivariateNormal(mean, covariance)
    assert abs(problem.kl(table).item() - torch.distributions.kl_divergence(exact, ours).item()) < 1e-9


def test_kl_vanishes_for_many_steps_and_is_differentiable() -> None:
    problem = correlated(EDM())
    kl = [
        problem.kl(solvers.ddim(times.karras(problem.noise, n)).tabulate(problem.noise)).item() for n in (10, 100, 500)
    ]
    assert kl[0] > 20 * kl[1] > 200 * kl[2] > 0
    grid = times.karras(problem.noise, 6).requires_grad_()
    value = problem.kl(solvers.dpmpp_2m(grid).tabulate(problem.noise))
    (gradient,) = torch.autograd.grad(value, grid)
    step = torch.zeros(7, dtype=torch.float64)
    step[3] = 1e-5 * float(grid[3].detach())
    ends = [problem.kl(solvers.dpmpp_2m(grid.detach() + s * step).tabulate(problem.noise)) for s in (-1, 1)]
    slope = (ends[1] - ends[0]) / (2 * step[3])
    assert abs((gradient[3] - slope) / slope) < 1e-6


def test_output_law_reads_constants() -> None:
    problem = correlated(EDM())
    one = torch.ones(2, 2, dtype=torch.float64).tril(-1)
    table = Tableau(
        A=0.0 * one, B=0.5 * one, K=torch.tensor([[0.0], [0.5]]), constants=(torch.tensor([1.0, 2.0, 3.0]),),
        times=torch.tensor([80.0, 0.0]), alpha=torch.ones(2), sigma=torch.tensor([80.0, 0.0]),
    )  # fmt: skip
    mean = problem.output_law(table)[0]
    alone = 0.5 * problem.denoise(torch.zeros(1, 3, dtype=torch.float64), 80.0)[0]
    assert gap(mean, alone + 0.5 * torch.tensor([1.0, 2.0, 3.0])) < 1e-12


def test_tables_without_a_gaussian_law_are_refused() -> None:
    problem = Gaussian(0.0, 1.0, shape=(3,))
    table = table_for("ddim", problem.noise)
    weights = table.B[..., None] * torch.ones(3)
    for other in (
        Tableau(table.A, weights, table.times, table.alpha, table.sigma),
        Tableau(table.A, table.B.repeat_interleave(2, 1) / 2, table.times, table.alpha, table.sigma, channels=2),
    ):
        with pytest.raises(ArgumentError, match="kl_of_samples"):
            problem.kl(other)
    with pytest.raises(ArgumentError, match="start='pure'"):
        problem.kl(table, start="pure")  # type: ignore[arg-type]


def test_kl_of_samples() -> None:
    problem = correlated()
    assert problem.kl_of_samples(problem.sample(20_000, dtype=torch.float64)) < 2 * 3 * 6 / 80_000 * 3
    shifted = problem.sample(20_000, dtype=torch.float64) + problem.variances.sqrt().mean()
    assert problem.kl_of_samples(shifted) > 0.1
    with pytest.raises(ArgumentError, match="give more than 3"):
        problem.kl_of_samples(problem.sample(3))


# ----------------------------------------------------------------------------------------------- samples, NLL, labels


@pytest.mark.parametrize("name", EVERY)
def test_samples_follow_the_law(name: str) -> None:
    """Mean and covariance within five standard errors; the same for a seed, other for another."""
    problem: Problem = EVERY[name](EDM())
    x = problem.sample(4000, seed=1, dtype=torch.float64)
    assert torch.equal(x, problem.sample(4000, seed=1, dtype=torch.float64))
    assert not torch.equal(x, problem.sample(4000, seed=2, dtype=torch.float64))
    assert gap(problem.sample(4000, seed=1).double(), x) < 1e-6 and problem.sample(3).dtype == torch.float32
    flat = x.flatten(1)
    if isinstance(problem, Gaussian):
        mean, covariance = problem.mean, problem.covariance
    else:
        assert isinstance(problem, GaussianMixture)
        mean, covariance = moments(problem)
    spread = covariance.diagonal().sqrt()
    assert ((flat.mean(0) - mean).abs() < 5 * spread / math.sqrt(4000)).all()
    assert (
        (torch.cov(flat.T).reshape(covariance.shape) - covariance).abs()
        < 8 * spread[:, None] * spread / math.sqrt(4000)
    ).all()


def moments(problem: GaussianMixture) -> tuple[Tensor, Tensor]:
    w, m = problem.log_weights.exp(), problem.means
    mean = w @ m
    basis = torch.eye(problem.size, dtype=torch.float64) if problem.basis is None else problem.basis
    basis = basis.expand(len(m), -1, -1)
    inside = torch.einsum("k,kde,ke,kfe->df", w, basis, problem.variances, basis)
    return mean, inside + torch.einsum("k,kd,kf->df", w, m - mean, m - mean)


def test_nll_of_exact_samples_is_the_entropy() -> None:
    problem = correlated()
    exact = MultivariateNormal(problem.mean, problem.covariance).entropy().item()
    assert problem.nll(problem.sample(20_000)) == pytest.approx(exact, abs=5 * math.sqrt(1.5 / 20_000))
    x = problem.sample(40_000)
    assert problem.nll(x) == pytest.approx(-problem.log_density(x.double()).mean().item(), abs=1e-12)
    with pytest.raises(ArgumentError, match=r"samples have shape \(4, 2\)"):
        problem.nll(torch.zeros(4, 2))


@pytest.mark.parametrize(
    "name,best,others", [("grid_8x8", -0.574, 1.522), ("grid_8x4", -2.260, -1.091), ("grid_6x6", -1.554, -0.996)]
)
def test_grids_leave_room_just_below_the_papers_values(name: str, best: float, others: float) -> None:
    """AYS, Table 4: its best NLL is above our entropy, by less than what separates it from the other schedules."""
    problem = problems.get(name)
    floor = problem.nll(problem.sample(20_000))
    assert best - 0.5 < floor < best < others


def test_labels_choose_components() -> None:
    problem: Any = problems.get("images_8x8", VPLinear())
    x = normals(4, 1, 8, 8)
    labels = torch.tensor([0, 3, 9, -1])
    for k, label in enumerate(labels.tolist()):
        kept = torch.arange(20) // 2 == label if label >= 0 else torch.ones(20, dtype=torch.bool)
        part = GaussianMixture(
            problem.means[kept], problem.variances[kept], basis=problem.basis, shape=problem.shape, noise=problem.noise
        )
        row = x[k : k + 1]
        for t in (0.1, 0.7):
            assert gap(problem.denoise(x, t, labels)[k : k + 1], part.denoise(row, t)) < 1e-12
            assert gap(problem.log_density(x, t, labels)[k : k + 1], part.log_density(row, t)) < 1e-9
    assert gap(problem.denoise(x, 0.3, torch.full((4,), -1)), problem.denoise(x, 0.3)) < 1e-13
    drawn = problem.sample(200, condition=torch.full((200,), 3), dtype=torch.float64)
    ours, other = (problem.log_density(drawn, None, torch.full((200,), c)) for c in (3, 4))
    assert (ours > other).all()


# ----------------------------------------------------------------------------------------------------- use as a network


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", problems.NAMES)
def test_every_named_problem_samples_under_every_schedule(name: str, noise: str) -> None:
    problem = problems.get(name, NOISES[noise])
    assert problem.name == name and problem.description and name in repr(problem)
    denoiser = problem.denoiser()
    table = solvers.dpmpp_2m(times.logsnr(problem.noise, 8, start=float(problem.noise.time_of_ratio(10.0))))
    x = sample(denoiser, table.tabulate(problem.noise), seeds=range(3))
    assert x.shape == (3, *problem.shape) and x.dtype == torch.float32 and x.isfinite().all()
    assert denoiser.evaluations == 24


@pytest.mark.parametrize("name", EVERY)
def test_float32_states_lose_nothing_but_their_own_rounding(name: str) -> None:
    problem: Problem = EVERY[name](EDM())
    for t in (0.002, 0.1, 1.0, 80.0):
        x = states(problem, t, n=50).float()
        wide = problem.denoise(x.double(), t)
        assert gap(problem.denoise(x, t).double(), wide) < 1e-6 * max(1.0, wide.abs().max().item())
        assert problem.score(x, t).dtype == problem.log_density(x, t).dtype == torch.float32


@pytest.mark.parametrize("name", EVERY)
def test_differentiable_in_state_and_time(name: str) -> None:
    problem: Problem = EVERY[name](Flow(3.0))
    t = torch.tensor(0.45, dtype=torch.float64, requires_grad=True)
    x = states(problem, 0.45, n=2).requires_grad_()
    w = normals(*x.shape, seed=7)
    for f in (problem.denoise, problem.score, problem.log_density):
        dx, dt = torch.autograd.grad((f(x, t) * (w if f != problem.log_density else 1)).sum(), (x, t))
        h, step = 1e-5, normals(*x.shape, seed=8)
        total = lambda a, b, f=f: (f(a, b) * (w if f != problem.log_density else 1)).sum().item()  # noqa: E731
        with torch.no_grad():
            along = (total(x + h * step, t) - total(x - h * step, t)) / (2 * h)
            later = (total(x, t + h) - total(x, t - h)) / (2 * h)
        assert abs((dx * step).sum().item() - along) < 1e-4 * max(1.0, abs(along))
        assert abs(dt.item() - later) < 1e-4 * max(1.0, abs(later))


def test_compiles_without_a_graph_break() -> None:
    for name in ("images_8x8", "gaussian_8x8"):
        problem = problems.get(name, Flow(3.0))
        denoiser, x = problem.denoiser(), normals(3, 1, 8, 8).float()
        torch._dynamo.reset()
        compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
        assert gap(compiled(x, 0.6), denoiser(x, 0.6)) < 1e-6


def test_nothing_depends_on_torchs_defaults() -> None:
    before = [problems.get(name).denoiser().fingerprint for name in problems.NAMES]
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        after = [problems.get(name).denoiser().fingerprint for name in problems.NAMES]
        x = [problems.get(name).sample(2, seed=1) for name in problems.NAMES]
        mixture = GaussianMixture(torch.zeros(2, 3, device="cpu"), 0.5, [1.0, 2.0], labels=[0, 1])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("cpu")
    assert before == after and len(set(before)) == len(before)
    assert all(v.device.type == "cpu" and v.dtype == torch.float32 for v in x)
    assert (
        mixture.sample(2).device.type == "cpu"
        and mixture.denoise(x[0].expand(2, 2)[:, :1].expand(2, 3), 1.0).isfinite().all()
    )


def test_fingerprints_follow_parameters_and_noise() -> None:
    def digest(p: Problem) -> str:
        return p.denoiser().fingerprint

    means = normals(4, 3)
    one = digest(GaussianMixture(means, 0.1))
    assert one == digest(GaussianMixture(means, 0.1, name="other"))
    others = [
        GaussianMixture(means + 1e-9, 0.1),
        GaussianMixture(means, 0.2),
        GaussianMixture(means, 0.1, noise=VPLinear()),
    ]
    assert len({one, *map(digest, others)}) == 4


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: problems.get("grid_9x9"), "no problem is named 'grid_9x9': give one of gaussian, "),
        (lambda: Gaussian(0.0, 1.0), "give shape="),
        (lambda: Gaussian(0.0, torch.ones(2), shape=(3,)), r"covariance shape \(2,\).*\(3, 3\)"),
        (lambda: Gaussian(0.0, -1.0, shape=(3,)), "covariance has a variance of -1"),
        (lambda: Gaussian(0.0, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), shape=(2,)), "not symmetric"),
        (lambda: Gaussian(0.0, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), shape=(2,)), "covariance has a variance of -1"),
        (lambda: GaussianMixture(torch.zeros(3), 1.0), r"means have shape \(3,\)"),
        (lambda: GaussianMixture(torch.zeros(3, 2), 1.0, shape=(5,)), "means have 2 entries"),
        (lambda: GaussianMixture(torch.zeros(3, 2), torch.ones(4)), r"covariances have shape \(4,\)"),
        (lambda: GaussianMixture(torch.zeros(3, 2), 0.0), "covariances has a variance of 0"),
        (lambda: GaussianMixture(torch.zeros(3, 2), 1.0, [1.0, 0.0, 1.0]), "weights must be 3 positive"),
        (lambda: GaussianMixture(torch.zeros(3, 2), 1.0, labels=[0, 1]), "labels must be 3 integers"),
        (lambda: GaussianMixture(torch.zeros(3, 2), 1.0, basis=torch.ones(2, 2)), "orthogonal"),
        (lambda: GaussianMixture(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2), basis=torch.eye(2)), "drop basis="),
        (lambda: problems.get("grid_8x8").denoise(torch.zeros(4, 3), 1.0), r"x has shape \(4, 3\)"),
        (lambda: problems.get("grid_8x8").denoise(torch.zeros(4, 2), 1.0, torch.zeros(4).long()), "no labels"),
        (lambda: problems.get("images_8x8").denoise(torch.zeros(4, 1, 8, 8), 1.0, 3), r"integer tensor \[4\]"),
    ],
)
def test_bad_problems_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
