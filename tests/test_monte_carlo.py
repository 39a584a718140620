"""The Monte-Carlo KLUB (Algorithm 2 with its normaliser) against closed forms, quadrature, and the Gram table."""

import pytest
import torch
from torch import Tensor

from fewstep import problems, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError, SeedsError
from fewstep.guidance import guided
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPLinear
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.search import ays
from fewstep.search.klub import Gram, ratio_grid
from fewstep.search.monte_carlo import MonteCarlo, descend_monte_carlo, sweep_monte_carlo
from fewstep.search.proposal import normaliser, quantiles
from tests.test_klub import C, exact

MIDDLES = torch.tensor([0.15, 0.2, 0.3, 0.4], dtype=torch.float64)
GAUSSIAN = problems.Gaussian(0.0, C**2, shape=(4,), noise=EDM())
MIXTURE = problems.get("mixture_1d")


def three_points(middles: Tensor = MIDDLES) -> Tensor:
    """The exact KLUB of (0.1, middle, 0.5) for N(0, 0.25)."""
    low, high = torch.full_like(middles, 0.1), torch.full_like(middles, 0.5)
    return exact(low, middles) + exact(middles, high)


# ------------------------------------------------------------------------------------------------------ the proposal
def test_normaliser_of_the_specification() -> None:
    ends = torch.tensor([[0.1, 0.2], [0.2, 0.5]], dtype=torch.float64)
    expected = torch.tensor([10.472895, 10.697166], dtype=torch.float64)
    assert torch.allclose(normaliser(*ends.T), expected, rtol=1e-7)
    low, high = torch.tensor([[1e-3, 0.5], [0.02, 3.0], [0.3, 80.0]], dtype=torch.float64).T
    assert torch.allclose(normaliser(low, high) * C**4, exact(low, high), rtol=1e-9)


def test_normaliser_of_narrow_steps() -> None:
    """Where the printed closed form cancels: the integrand is a triangle, r^-3 times its slope."""
    low = torch.tensor([0.003, 0.2, 7.0], dtype=torch.float64)
    for c in (0.1, 0.5, 2.0):
        width = 1e-6 * low
        triangle = width**2 / 2 * 2 * low / (low**2 + c**2) ** 2 / low**3
        assert torch.allclose(normaliser(low, low + width, c), triangle, rtol=1e-5)


@pytest.mark.parametrize("c", [0.05, 0.5, 3.0])
def test_quantiles_invert_the_mass(c: float) -> None:
    edges = torch.tensor([[0.1, 0.2, 0.5], [0.002, 0.3, 80.0], [0.19, 0.2, 0.200001]], dtype=torch.float64)
    u = torch.linspace(1e-9, 1 - 1e-9, 1001, dtype=torch.float64)
    ratio, top, weight = quantiles(edges, u, c)
    assert bool((ratio.diff(dim=0) >= 0).all()) and bool((ratio <= top).all())
    assert bool((ratio >= edges[:, 0]).all()) and bool((ratio <= edges[:, -1]).all())
    masses = normaliser(edges[:, :-1], edges[:, 1:], c)
    beyond = torch.where(top == edges[:, 1], masses[:, 1], 0.0) + normaliser(ratio, top, c)
    assert (1 - beyond / masses.sum(1) - u[:, None]).abs().max() < 1e-12
    plain = 1 / (ratio**2 + c**2) - 1 / (top**2 + c**2)
    assert ((weight - plain).abs() <= 1e-14 / c**2 + 1e-9 * plain).all()


# ------------------------------------------------------------------------------------------------- agreement with truth
@pytest.mark.parametrize("noise", [EDM(), VPLinear(), Flow(shift=3.0)], ids=lambda n: n.family)
@pytest.mark.parametrize("c", [0.5, 0.15])
def test_gaussian_closed_form(noise: NoiseSchedule, c: float) -> None:
    """In every noise schedule, and whatever the proposal's c; differences are much surer than values."""
    problem = problems.Gaussian(0.3, C**2, shape=(4,), noise=noise)
    found = MonteCarlo(problem.denoiser(), problem.sample(1024, seed=1), c=c).compare(0.1, MIDDLES, 0.5)
    truth = three_points()
    assert ((found.values - truth).abs() < 4 * found.errors).all()
    assert (found.errors < 0.06 * truth).all()
    gaps, errors = found.differences()
    assert found.best == 1 and ((gaps - (truth - truth[1])).abs() <= 4 * errors).all()
    assert c != C or bool((errors < 0.7 * (found.errors.square() + found.errors[1].square()).sqrt()).all())


def test_whole_grids() -> None:
    grid = times.logsnr(EDM(), 10, end="min")
    mc = MonteCarlo(GAUSSIAN.denoiser(), GAUSSIAN.sample(1024, seed=1))
    value, error = mc.total(grid)
    truth = exact(grid[1:], grid[:-1]).sum().item()
    assert abs(value - truth) < 4 * error < 0.2 * truth
    assert mc.total(grid.flip(0)) == (value, error)
    assert mc.calls == 2 * 2 * 1024


def mixture_truth(middles: Tensor) -> Tensor:
    """KLUB of (0.1, middle, 0.5) on the mixture by quadrature: its ideal denoiser's increments are m(b) - m(r)."""
    x = torch.linspace(-4.5, 4.5, 901, dtype=torch.float64)[:, None]
    second = 0.3 * (0.81 + 0.01) + 0.5 * (0.01 + 0.04) + 0.2 * (0.64 + 0.0025)

    def loss(r: float) -> float:
        density = MIXTURE.log_density(x, r).exp()
        return second - torch.trapezoid(MIXTURE.denoise(x, r)[:, 0] ** 2 * density, x[:, 0]).item()

    def step(low: float, high: float) -> float:
        fine = torch.linspace(low, high, 41, dtype=torch.float64)
        m = torch.tensor([loss(r) for r in fine.tolist()], dtype=torch.float64)
        return torch.trapezoid((m[-1] - m) / fine**3, fine).item()

    return torch.tensor([step(0.1, b) + step(b, 0.5) for b in middles.tolist()], dtype=torch.float64)


def test_mixture_with_the_normaliser_and_as_printed() -> None:
    """Three modes on a line: with Z the values and the arg-min are right, as printed the arg-min is wrong."""
    truth = mixture_truth(MIDDLES)
    data = MIXTURE.sample(4096, seed=1)
    right = MonteCarlo(MIXTURE.denoiser(), data, share=64).compare(0.1, MIDDLES, 0.5)
    assert ((right.values - truth).abs() < 4 * right.errors + 1e-3).all()
    assert right.best == int(truth.argmin()) == 1
    gaps, errors = right.differences()
    assert (gaps[[0, 2, 3]] > 5 * errors[[0, 2, 3]]).all()
    printed = MonteCarlo(MIXTURE.denoiser(), data, normalised=False, share=64).compare(0.1, MIDDLES, 0.5)
    gaps, errors = printed.differences()
    assert printed.best == 2 and gaps[1] > 2 * errors[1]  # the true best is significantly worse, it says
    assert not torch.allclose(right.values / printed.values, (right.values / printed.values)[:1].expand(4), rtol=0.1)


def wrong(problem: problems.Problem) -> Denoiser:
    """A network that errs: too sure at low noise, off-centre, and not linear."""

    def fn(x: Tensor, t: object, condition: object) -> Tensor:
        out = problem.denoise(x, t)  # type: ignore[arg-type]
        return 1.1 * out + 0.2 * torch.sin(3 * out) * float(problem.noise.sigma(t))  # type: ignore[arg-type]

    return Denoiser(fn, noise=problem.noise, shape=problem.shape, fingerprint="wrong")


def classes(noise: NoiseSchedule) -> problems.Problem:
    """Four Gaussians in the plane, two classes."""
    means = torch.tensor([[-1.0, 0.3], [-0.4, -0.5], [0.5, 0.6], [1.0, -0.2]], dtype=torch.float64)
    return problems.GaussianMixture(means, 0.05, labels=[0, 0, 1, 1], noise=noise)


@pytest.mark.parametrize("kind", ["ideal", "wrong", "guided"])
@pytest.mark.parametrize("noise", [Discrete.scaled_linear(), Flow(shift=3.0)], ids=lambda n: n.family)
def test_both_estimators_agree(noise: NoiseSchedule, kind: str) -> None:
    """Discrete time and flow; ideal, imperfect and guided networks: different samples and paths, one KLUB."""
    problem = classes(noise)
    labels = torch.arange(512) % 2
    net = {"ideal": problem.denoiser(), "wrong": wrong(problem), "guided": guided(problem.denoiser(), 3.0)}[kind]
    condition = labels if kind == "guided" else None
    one, two = (problem.sample(512, seed=s, condition=condition) for s in (1, 2))
    gram = Gram.compute(net, one, condition=condition, ratios=ratio_grid(EDM(0.05, 10.0), 32))
    seeds = CalibrationSeeds(512, offset=5000)
    mc = MonteCarlo(net, two, condition=condition, seeds=seeds)
    grid = torch.tensor([0.06, 0.15, 0.3, 0.7, 1.5, 9.0], dtype=torch.float64)
    tables = [gram.total_with_error(grid), gram.total_with_error(grid[[0, 2, 5]])]
    for (expected, spread), ratios in zip(tables, (grid, grid[[0, 2, 5]]), strict=True):
        value, error = mc.total(ratios)
        assert abs(value - expected) < 4 * (error**2 + spread**2) ** 0.5 + 0.01 * expected
        assert error < 0.25 * value
    middles = torch.tensor([0.12, 0.2, 0.35, 0.6], dtype=torch.float64)
    both = gram.klub(torch.full_like(middles, 0.06), middles) + gram.klub(middles, torch.full_like(middles, 1.5))
    found = mc.compare(0.06, middles, 1.5)
    assert ((found.values - both).abs() < 4 * found.errors + 0.1 * both).all()
    assert found.best == int(both.argmin())
    assert net.noise is noise and gram.martingale_defect() > (0.03 if kind != "ideal" else 0.0)


def test_standard_errors_are_those_of_repetition() -> None:
    """Thirty independent estimates spread as each of them says."""
    net = MIXTURE.denoiser()
    values, errors = [], []
    for k in range(30):
        mc = MonteCarlo(net, MIXTURE.sample(64, seed=k), seeds=CalibrationSeeds(64, offset=64 * k), share=8)
        found = mc.compare(0.1, MIDDLES[:2], 0.5)
        values.append(torch.stack([found.values, found.differences(0)[0]]))
        errors.append(torch.stack([found.errors, found.differences(0)[1]]))
    spread, said = torch.stack(values).std(0), torch.stack(errors).square().mean(0).sqrt()
    ratio = (said / spread).flatten()[[0, 1, 3]]  # the difference to itself is zero
    assert (ratio > 0.65).all() and (ratio < 1.5).all()


# ---------------------------------------------------------------------------------------------------- the same numbers
def test_deterministic_whatever_the_batch() -> None:
    data = GAUSSIAN.sample(96, seed=2)
    one, two, split = (MonteCarlo(GAUSSIAN.denoiser(), data, batch_size=b) for b in (None, None, 5))
    parts = [mc.compare(0.1, MIDDLES, 0.5).parts for mc in (one, two, split)]
    assert torch.equal(parts[0], parts[1]) and torch.equal(one.compare(0.1, MIDDLES, 0.5).parts, parts[0])
    assert torch.allclose(parts[2], parts[0], rtol=1e-5)
    # Common random numbers: a candidate's estimate does not depend on the others.
    assert torch.equal(one.compare(0.1, MIDDLES[2:], 0.5).parts, parts[0][:, 2:])
    other = MonteCarlo(GAUSSIAN.denoiser(), data, seeds=CalibrationSeeds(96, offset=96)).compare(0.1, MIDDLES, 0.5)
    assert not torch.equal(other.parts, parts[0])


def test_order_and_size_of_the_data() -> None:
    """Sorted data do not meet sorted noise levels, and a remainder is not lost."""
    net, data = MIXTURE.denoiser(), MIXTURE.sample(1001, seed=3)
    truth = mixture_truth(MIDDLES[1:2])
    found = MonteCarlo(net, data.sort(0).values).compare(0.1, MIDDLES[1:2], 0.5)
    assert ((found.values - truth).abs() < 4 * found.errors).all() and found.calls == 2 * 1001
    letter = MonteCarlo(net, data[:300], share=1).compare(0.1, MIDDLES[1:2], 0.5)
    assert ((letter.values - truth).abs() < 4 * letter.errors).all() and len(letter.parts) == 300


def test_calls_count_guidance_twice() -> None:
    problem = classes(EDM())
    net = guided(problem.denoiser(), 2.0)
    mc = MonteCarlo(net, problem.sample(64, seed=0), condition=torch.zeros(64, dtype=torch.long), share=8)
    before = net.evaluations
    found = mc.compare(0.1, MIDDLES, 0.5)
    assert found.calls == mc.calls == net.evaluations - before == 2 * 2 * 4 * 64


# ----------------------------------------------------------------------------------------------------------- descent
def test_published_algorithm_goes_the_way_of_the_closed_form() -> None:
    """Two sweeps of Algorithm 1 with Monte Carlo and with the exact KLUB, from the EDM grid."""
    start = times.karras(EDM(), 5, end="min")
    mc = MonteCarlo(GAUSSIAN.denoiser(), GAUSSIAN.sample(256, seed=1), share=64)
    way, ideal = descend_monte_carlo(mc, start, max_sweeps=2), ays.descend(exact, start, max_sweeps=2)
    klubs = [exact(g[1:], g[:-1]).sum().item() for g in way]
    best = [exact(g[1:], g[:-1]).sum().item() for g in ideal]
    assert len(way) == 3 and klubs == sorted(klubs, reverse=True)
    assert klubs[-1] == pytest.approx(best[-1], rel=0.1) and best[-1] < 0.85 * best[0]
    assert torch.equal(way[0], start) and torch.equal(way[-1][[0, -1]], start[[0, -1]])
    only = sweep_monte_carlo(mc, start, free=[2])
    assert (only != start).nonzero().flatten().tolist() in ([2], [])


def test_descent_as_printed_loses_its_way() -> None:
    """The same data, network and start: with Z the true KLUB falls, as printed it ends above it."""
    start = torch.tensor([0.5, 0.2, 0.1], dtype=torch.float64)
    data = MIXTURE.sample(1024, seed=1)
    ends: list[Tensor] = []
    for normalised in (True, False):
        mc = MonteCarlo(MIXTURE.denoiser(), data, normalised=normalised, share=128)
        ends.append(descend_monte_carlo(mc, start, max_sweeps=6)[-1][1])
    right, printed = mixture_truth(torch.stack(ends)).tolist()
    assert right < 1.03 * mixture_truth(start[1:2]).item() and printed > 1.07 * right


def test_single_steps_serve_the_sweep_of_the_table() -> None:
    mc = MonteCarlo(GAUSSIAN.denoiser(), GAUSSIAN.sample(256, seed=1))
    low, high = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.5], dtype=torch.float64)
    assert torch.allclose(mc.klub(low, high), exact(low, high), rtol=0.25)
    assert mc.klub(low[:, None], torch.tensor([0.6, 0.7, 0.8])).shape == (2, 3)
    start = times.karras(EDM(), 4, end="min")
    after = ays.sweep(mc.klub, start)
    assert exact(after[1:], after[:-1]).sum() < exact(start[1:], start[:-1]).sum()


# --------------------------------------------------------------------------------------------------------- bad input
def test_what_is_refused() -> None:
    net, data = GAUSSIAN.denoiser(), GAUSSIAN.sample(64, seed=0)
    with pytest.raises(SeedsError, match="seeds must be CalibrationSeeds"):
        MonteCarlo(net, data, seeds=SelectionSeeds(64))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="with 3 seeds"):
        MonteCarlo(net, data, seeds=CalibrationSeeds(3))
    with pytest.raises(ArgumentError, match="network's shape"):
        MonteCarlo(net, data[:, :2])
    with pytest.raises(ArgumentError, match="share is 40"):
        MonteCarlo(net, data, share=40)
    with pytest.raises(ArgumentError, match="c is 0"):
        MonteCarlo(net, data, c=0.0)
    with pytest.raises(ArgumentError, match="batch_size is 0"):
        MonteCarlo(net, data, batch_size=0)
    two = Denoiser(lambda x, t, c: (x, x), noise=EDM(), shape=(4,), channels=2)
    with pytest.raises(ArgumentError, match="2 outputs"):
        MonteCarlo(two, data)
    mc = MonteCarlo(net, data)
    for bad, message in (
        ([0.1, 0.1, 0.5], "strictly"),
        ([0.1, 0.6, 0.5], "strictly"),
        ([0.0, 0.1, 0.5], "network's range is 0.002 to 80"),
        ([0.001, 0.1, 0.5], "to_ratios"),
        ([0.1, 0.5, 90.0], "network's range"),
        ([0.1, float("nan"), 0.5], "strictly"),
    ):
        with pytest.raises(ArgumentError, match=message):
            mc.estimate(torch.tensor([bad], dtype=torch.float64))
    with pytest.raises(ArgumentError, match="give \\[m, k\\+1\\]"):
        mc.estimate(torch.tensor([0.1, 0.5]))
    flow = MonteCarlo(
        Denoiser(lambda x, t, c: x / (1 + float(t)), noise=Flow(), shape=(4,)), data
    )  # its first ratio is infinite
    with pytest.raises(ArgumentError, match="finite ratios"):
        flow.estimate(torch.tensor([[0.1, 1.0, float("inf")]], dtype=torch.float64))
    assert mc.calls == 0


@pytest.mark.parametrize("checked", [True, False])
def test_nan_names_sample_seed_and_time(checked: bool) -> None:
    """One sample of 64 breaks the network, at low noise; its index, seed and the time are in the message."""

    def fn(x: Tensor, t: object, condition: object) -> Tensor:
        broken = (x.abs().amax(1, keepdim=True) > 50) & (float(t) < 0.4)  # type: ignore[arg-type]
        return torch.where(broken, torch.nan, x / (1 + float(t) ** 2))  # type: ignore[arg-type]

    data = GAUSSIAN.sample(64, seed=0)
    data[37] = 100.0
    net = Denoiser(fn, noise=EDM(), shape=(4,), check_finite=checked)
    seed = CalibrationSeeds(64)[37]
    with pytest.raises(DenoiserError, match=rf"not finite at time 0\.\d+ .* samples 37 \(seed {seed}\)") as caught:
        MonteCarlo(net, data, share=16).compare(0.1, MIDDLES, 0.5)
    assert caught.value.rows == (37,) and caught.value.time is not None and 0.1 <= caught.value.time < 0.4
