"""Coordinate descent on the KLUB: closed forms for Gaussian data, the U-shape of quality, planted optima, choice."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fewstep import problems, solvers, times
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Flow, VPLinear
from fewstep.search.ays import ays, descend, descents, refine, split, sweep, to_ratios, to_times
from fewstep.search.klub import Gram, ratio_grid
from tests.test_klub import C, analytic, exact

NOISE = EDM()
START = times.karras(NOISE, 10, end="min")
GAUSSIAN = problems.Gaussian(0.0, C**2, shape=(1,), noise=NOISE)


def kl_ode(grid: Tensor) -> float:
    return GAUSSIAN.kl(solvers.ddim(grid).tabulate(NOISE), start="exact").item()


def kl_sde(grid: Tensor) -> float:
    return GAUSSIAN.kl(solvers.sde_dpmpp_1(grid).tabulate(NOISE), start="exact").item()


def test_best_middle_point() -> None:
    """Three points (0.1, t, 0.5), c = 0.5: the KLUB is least at 0.2006252793."""
    grid = torch.tensor([0.5, 0.3, 0.1], dtype=torch.float64)
    for _ in range(
        60
    ):  # candidates shrink with the gaps only, so polish with ever smaller neighbourhoods around the optimum
        grid = sweep(exact, grid)
    assert grid[1].item() == pytest.approx(0.2006252793, rel=0.05)
    fine = torch.linspace(0.15, 0.3, 30001, dtype=torch.float64)
    best = fine[(exact(grid[2], fine) + exact(fine, grid[0])).argmin()].item()
    assert best == pytest.approx(0.2006252793, abs=1e-5)
    table = analytic(1024)
    assert fine[(table.klub(grid[2], fine) + table.klub(fine, grid[0])).argmin()].item() == pytest.approx(
        0.2006252793, rel=0.01
    )


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def klub_optimal(n: int) -> Tensor:
    """Eq. 31's fixed point: 1 + c^2/t^2 is the geometric mean of its neighbours, so log(1 + c^2/t^2) is even."""
    law = torch.log1p((C / START[[0, -1]]) ** 2)
    grid = C / torch.expm1(torch.lerp(law[0], law[1], torch.linspace(0, 1, n + 1, dtype=torch.float64))).sqrt()
    grid[0], grid[-1] = START[0], START[-1]
    return grid


def gaussian_grids(n: int) -> dict[str, Tensor]:
    return {
        "EDM": times.karras(NOISE, n, end="min"),
        "LogSNR": times.logsnr(NOISE, n, end="min"),
        "tan(c=.5)": times.tangent(NOISE, n, c=0.5, end="min"),
        "tan(c=1)": times.tangent(NOISE, n, c=1.0, end="min"),
        "KLUB-opt": klub_optimal(n),
    }


def test_published_grids() -> None:
    grids = gaussian_grids(10)
    printed = {
        "tan(c=.5)": float64(
            80, 3.05353, 1.51713, 0.973651, 0.685089, 0.498876, 0.363195, 0.255346, 0.163538, 0.0807178, 0.002
        ),
        "tan(c=1)": float64(
            80, 5.89166, 2.98004, 1.92369, 1.35717, 0.989555, 0.720753, 0.506569, 0.323925, 0.158948, 0.002
        ),
        "EDM": float64(
            80, 45.3137, 24.4083, 12.3816, 5.83895, 2.51522, 0.965417, 0.318283, 0.0850872, 0.0167208, 0.002
        ),
        "KLUB-opt": float64(80, 0.35204, 0.17565, 0.09719, 0.05526, 0.03169, 0.01822, 0.01048, 0.00603, 0.00347, 0.002),
    }
    for name, values in printed.items():
        assert (grids[name] / values - 1).abs().max() < (2e-3 if name == "KLUB-opt" else 4e-6), name


TEN = {  # KLUB / d, KL of Euler on the ODE, KL of stochastic DDIM
    "EDM": (46.605, 9.84e-2, 3.14e-1),
    "LogSNR": (11.734, 8.43e-2, 2.64e-1),
    "tan(c=.5)": (790.6, 1.62e-2, 4.23e-2),
    "tan(c=1)": (2864.1, 2.60e-2, 7.46e-2),
    "KLUB-opt": (4.564, 5.54e-1, 4.56e-1),
}


@pytest.mark.parametrize("name", TEN)
def test_table_of_ten_steps(name: str) -> None:
    grid, (klub, ode, sde) = gaussian_grids(10)[name], TEN[name]
    assert exact(grid[1:], grid[:-1]).sum().item() == pytest.approx(klub, rel=1e-4)
    assert kl_ode(grid) == pytest.approx(ode, rel=4e-3)
    assert kl_sde(grid) == pytest.approx(sde, rel=4e-3)


ODE = {  # n: EDM, LogSNR, tan(c=.5), KLUB-opt
    5: (0.564, 0.472, 0.0728, 3.04),
    20: (0.0222, 0.0192, 0.00387, 0.137),
    40: (0.00530, 0.00459, 0.000946, 0.0382),
}


@pytest.mark.parametrize("n", ODE)
def test_ode_divergence_at_other_step_counts(n: int) -> None:
    grids = gaussian_grids(n)
    for name, value in zip(("EDM", "LogSNR", "tan(c=.5)", "KLUB-opt"), ODE[n], strict=True):
        assert kl_ode(grids[name]) == pytest.approx(value, rel=4e-3), name


def test_three_points() -> None:
    """(0.1, t, 0.5), c = 0.5: least KLUB and least KL of Euler are at different t, so one is not the other."""
    low, high = float64(0.1, 0.5)
    by_klub = C * torch.sqrt(low * high / (torch.sqrt((low**2 + C**2) * (high**2 + C**2)) - low * high))
    assert by_klub.item() == pytest.approx(0.2006252793, abs=1e-10)
    by_kl = (low * high - C**2 + torch.sqrt((low**2 + C**2) * (high**2 + C**2))) / (low + high)
    assert by_kl.item() == pytest.approx(0.2675918792, abs=1e-10)
    for at, cost in (
        (by_klub, lambda t: exact(low, t) + exact(t, high)),
        (by_kl, lambda t: kl_ode(float64(0.5, t, 0.1))),
    ):
        here, below, above = (float(cost(at * factor)) for factor in (1.0, 0.99, 1.01))
        assert here < below and here < above


def test_best_grid_for_stochastic_ddim() -> None:
    """The least KL of ten steps is 2.96e-2, found by descent on the times; the tangent law's is 4.23e-2."""

    def divergence(grid: Tensor) -> Tensor:
        variance = grid[0] ** 2 + C**2
        for b, a in itertools.pairwise(grid.unbind()):
            part = (a / b) ** 2
            variance = (part + (1 - part) * C**2 / (b**2 + C**2)) ** 2 * variance + a**2 * (1 - part)
        ratio = variance / (grid[-1] ** 2 + C**2)
        return (1 / ratio - 1 + ratio.log()) / 2

    start = times.tangent(NOISE, 10, c=0.5, end="min")
    assert divergence(start).item() == pytest.approx(kl_sde(start), rel=1e-9)
    inner = start[1:-1].log().requires_grad_()
    optimizer = torch.optim.LBFGS([inner], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = divergence(torch.cat([start[:1], inner.exp(), start[-1:]]))
        loss.backward()
        return loss

    optimizer.step(closure)
    best = torch.cat([start[:1], inner.detach().exp(), start[-1:]])
    assert kl_sde(best) == pytest.approx(2.96e-2, rel=2e-3)


def test_the_u_shape() -> None:
    """Sweep: KLUB, KL of Euler on the ODE, KL of stochastic DDIM. Best after 12 sweeps, five times worse at the end."""
    way = descend(exact, START)
    expected = {
        0: (46.6, 0.0984, 0.314), 2: (24.5, 0.0862, 0.277), 5: (14.9, 0.0629, 0.205), 8: (10.7, 0.0493, 0.158),
        12: (7.77, 0.0420, 0.115), 20: (5.40, 0.222, 0.175), 30: (4.67, 0.436, 0.353),
    }  # fmt: skip
    for k, (klub, ode, sde) in expected.items():
        grid = way[k]
        assert exact(grid[1:], grid[:-1]).sum().item() == pytest.approx(klub, rel=3e-3)
        assert kl_ode(grid) == pytest.approx(ode, rel=2e-3)
        assert kl_sde(grid) == pytest.approx(sde, rel=6e-3)
    assert 36 <= len(way) - 1 <= 40
    last = (exact(way[-1][1:], way[-1][:-1]).sum().item(), kl_ode(way[-1]), kl_sde(way[-1]))
    assert last == pytest.approx((4.57, 0.523, 0.430), rel=4e-3)
    best = min(range(len(way)), key=lambda k: kl_ode(way[k]))
    assert 10 <= best <= 14 and kl_ode(way[best]) < 0.043
    inner = torch.tensor([2.21, 0.991, 0.463, 0.245, 0.136, 0.069, 0.032, 0.014, 0.005], dtype=torch.float64)
    assert ((way[12][1:-1] - inner).abs() / inner).max() < 0.08  # published with two digits
    assert ((way[12][1:6] - inner[:5]).abs() / inner[:5]).max() < 5e-3


def test_the_u_shape_from_the_table() -> None:
    way = descend(analytic(128).klub, START)
    scores = [kl_ode(grid) for grid in way]
    best = min(range(len(way)), key=scores.__getitem__)
    assert scores[0] == pytest.approx(0.0984, rel=1e-3)
    assert scores[best] == pytest.approx(0.042, rel=0.03) and 10 <= best <= 14
    assert scores[-1] > 0.4


def test_the_klub_never_rises() -> None:
    table = analytic(128)
    values = [table.total(grid) for grid in descend(table.klub, START)]
    assert all(after < before for before, after in itertools.pairwise(values))


def test_converged_grid_is_the_closed_forms_fixed_point() -> None:
    """Eq. 31: c^2 / t_i^2 = (sqrt((l^2+c^2)(u^2+c^2)) - l u) / (l u); candidates leave some 5 % of a step."""
    way = descend(exact, START)
    u, t, low = way[-1][:-2], way[-1][1:-1], way[-1][2:]
    ideal = C * torch.sqrt(low * u / (torch.sqrt((low**2 + C**2) * (u**2 + C**2)) - low * u))
    share = (t / ideal).log().abs() / torch.minimum((u / t).log(), (t / low).log())
    assert share.max() < 0.06
    published = torch.tensor(
        [0.35204, 0.17565, 0.09719, 0.05526, 0.03169, 0.01822, 0.01048, 0.00603, 0.00347], dtype=torch.float64
    )
    assert ((t - published).abs() / published).max() < 0.2
    assert exact(way[-1][1:], way[-1][:-1]).sum().item() == pytest.approx(4.564, rel=0.005)


def test_a_sweep_against_brute_force() -> None:
    """One sweep written out with floats and loops."""
    grid = START.clone()
    t = grid.tolist()
    for i in range(9, 0, -1):
        places = [t[i]]
        for other in (t[i + 1], t[i - 1]):
            places += [math.exp(math.log(t[i]) + 0.05 * k * (math.log(other) - math.log(t[i]))) for k in range(1, 6)]
        cost = lambda a, b: exact(torch.tensor(a).double(), torch.tensor(b).double()).item()  # noqa: E731
        t[i] = min(places, key=lambda x, i=i: cost(t[i + 1], x) + cost(x, t[i - 1]))
    assert torch.allclose(sweep(exact, grid), torch.tensor(t, dtype=torch.float64), rtol=1e-12)


def test_planted_optimum() -> None:
    """A cost whose minimum is even steps in log ratio: (log b - log a)^2."""
    way = descend(lambda a, b: (b.log() - a.log()) ** 2, START)
    steps = -way[-1].log().diff()
    assert (steps / steps.mean() - 1).abs().max() < 0.1
    assert torch.equal(way[-1][[0, -1]], START[[0, -1]])


def test_only_free_points_move() -> None:
    moved = sweep(exact, START, free=[1, 5])
    assert (moved != START).nonzero().flatten().tolist() == [1, 5]


def test_hierarchy_keeps_the_coarse_points() -> None:
    table = analytic(128)
    ten = descend(table.klub, START)[12]
    fine = refine(table.klub, ten)
    assert len(fine) == 41 and torch.equal(fine[::4], ten) and bool((fine.diff() < 0).all())
    halves = split(ten)
    assert torch.allclose(halves[1::2].log(), (ten[1:].log() + ten[:-1].log()) / 2)
    twenty = refine(table.klub, ten, levels=1)
    assert table.total(twenty) <= table.total(halves)
    assert kl_ode(fine) < 0.2 * kl_ode(ten)


@pytest.mark.parametrize("noise", [EDM(), VPLinear(), Flow(shift=3.0)], ids=lambda n: n.family)
def test_ratios_and_back(noise: object) -> None:
    for end in ("zero", "min"):
        grid = times.logsnr(noise, 6, end=end)
        ratios = to_ratios(noise, grid)
        assert bool(torch.isfinite(ratios).all()) and bool((ratios > 0).all()) and bool((ratios.diff() < 0).all())
        back = to_times(noise, ratios, grid)
        assert torch.allclose(back, grid, rtol=1e-9, atol=1e-12) and torch.equal(back[[0, -1]], grid[[0, -1]])


def flow_gram(noise: Flow) -> Gram:
    """The analytic table on a flow model's levels."""
    grid = ratio_grid(noise, 64)
    whole = torch.cat([torch.zeros(1, dtype=torch.float64), grid])
    gamma = C**2 / (C**2 + whole**2)
    return Gram(
        grid,
        (gamma[:, None] * gamma * (C**2 + torch.minimum(whole[:, None], whole) ** 2))[None],
        torch.ones(1).double(),
    )


def test_descents_in_a_flow_model() -> None:
    noise = Flow(shift=3.0)
    starts = {"uniform": times.uniform(noise, 6), "logsnr": times.logsnr(noise, 6)}
    found = descents(flow_gram(noise), noise, starts)
    for way in found:
        assert torch.equal(way.snapshots[0].times, starts[way.start]) and len(way.snapshots) > 5
        for snapshot in way.snapshots:
            assert snapshot.times[0] == 1.0 and snapshot.times[-1] == 0.0 and bool((snapshot.times.diff() < 0).all())


def test_thinned_way() -> None:
    (way,) = descents(analytic(64), NOISE, {"karras": START})
    sweeps = [s.sweep for s in way.thinned(6)]
    assert (
        len(sweeps) == 6 and sweeps[0] == 1 and sweeps[-1] == len(way.snapshots) - 1 and sweeps == sorted(set(sweeps))
    )
    assert len(way.thinned(1000)) == len(way.snapshots) - 1


def test_other_numbers_of_steps_go_through_the_hierarchy() -> None:
    (way,) = descents(analytic(64), NOISE, {"karras": START}, n=6)
    assert way.snapshots[0].via == "10 steps refined to 6"
    for snapshot in way.snapshots:
        assert len(snapshot.times) == 7 and torch.equal(snapshot.times[[0, -1]], START[[0, -1]])
    (same,) = descents(analytic(64), NOISE, {"karras": START}, n=10)
    assert same.snapshots[0].via == "direct"


STARTS = {name: times.named(name)(NOISE, 10, end="min") for name in ("karras", "logsnr", "cosine_logsnr")}


@pytest.mark.parametrize("quality", [kl_ode, kl_sde], ids=["ODE", "SDE"])
def test_ays_is_better_than_its_best_start(quality: object) -> None:
    found = ays(analytic(128), NOISE, {"karras": START, "logsnr": STARTS["logsnr"]}, quality)
    assert found.start_score == min(quality(START), quality(STARTS["logsnr"]))
    assert found.score < 0.6 * found.start_score and found.score == quality(found.best.times)
    assert found.best.sweep > 0 and f"{found.best.sweep} sweep" in found.best.origin


def test_ays_is_never_worse_than_its_best_start() -> None:
    """A quality that every move makes worse; and one whose verdict on fresh seeds is the opposite of the first."""
    rising = lambda grid: abs(grid[1] - START[1]).item() + abs(grid[5] - START[5]).item()  # noqa: E731
    found = ays(analytic(64), NOISE, {"karras": START}, rising)
    assert found.best.sweep == 0 and found.score == 0.0
    found = ays(analytic(64), NOISE, {"karras": START}, lambda grid: -rising(grid), fresh=rising)
    assert found.best.sweep == 0 and found.score <= found.start_score


def test_ays_finds_the_planted_sweep() -> None:
    """The best snapshot is one that thinning leaves out; walking along the way finds it, at few evaluations."""
    (way,) = descents(analytic(64), NOISE, {"karras": START})
    target = way.snapshots[11].times
    asked = []

    def quality(grid: Tensor) -> float:
        asked.append(grid)
        return (grid.log() - target.log()).abs().max().item()

    found = ays(analytic(64), NOISE, {"karras": START}, quality)
    assert found.best.sweep == 11 and found.score == 0.0 and len(asked) < 20


def test_no_start_is_refused() -> None:
    with pytest.raises(ArgumentError, match="starts is empty"):
        ays(analytic(16), NOISE, {}, kl_ode)
