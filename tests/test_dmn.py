"""DMN's bound against values computed with the authors' code; its minimum against theirs."""

import pytest
import torch

from fewstep.errors import ArgumentError, TimesError
from fewstep.noise import EDM, Discrete, Flow, VPLinear
from fewstep.search.dmn import bound, dmn_times, minimise

VP = VPLinear()
FIRST, LAST = VP.lam(1.0).item(), VP.lam(1e-3).item()

# Authors' code (github.com/scxue/DM-NonUniform, step_optim.py) on VP-linear 0.1..20, eps 1e-3, truncNum 3: bound of the
# uniform grid, bound of the grid that its trust-constr run returned, that grid's inner lambdas.
REFERENCE = {
    (2, 5): (231.478465, 49.9048192, [-2.1818264262, -1.2158225626, -0.2577932107, 1.0646307529]),
    (2, 6): (171.030531, 38.347715, [-2.5449745887, -1.4233381466, -0.8111628132, 0.0996657476, 1.2571414692]),
    (2, 7): (
        84.8513348,
        25.799163,
        [-2.9148196134, -1.9036879731, -1.3303699149, -0.3869193596, 0.4960879004, 1.5259543238],
    ),
    (2, 8): (
        52.5730009,
        18.8465127,
        [-2.9750153666, -2.0015609533, -1.3993163844, -0.5104339239, 0.3526545824, 1.1461184621, 2.085414481],
    ),
    (2, 10): (
        28.6122248,
        13.414097,
        [
            -3.3730265131,
            -2.6485193973,
            -2.2669885751,
            -1.2324084785,
            -0.2996616232,
            0.6354373942,
            1.4701443959,
            2.1566613468,
            2.9887384421,
        ],
    ),
    (1, 5): (243.444911, 71.3757037, [-2.0651257788, -1.0894781984, -0.0810244127, 1.3248107381]),
    (1, 6): (180.851966, 56.8224349, [-2.4039227185, -1.2336414725, -0.5980129196, 0.3927661183, 1.6170894339]),
    (1, 7): (
        92.9497649,
        40.3752759,
        [-2.7329706456, -1.6751458919, -1.0335253365, 0.0010228322, 0.9545448362, 2.0308716993],
    ),
    (1, 8): (
        60.0803639,
        30.6053196,
        [-2.8243718505, -1.7375353163, -1.0637349643, -0.0317045629, 0.9254251945, 1.7936951027, 2.7832688412],
    ),
    (1, 10): (
        35.6920624,
        20.1190651,
        [
            -3.6195321145,
            -2.8071831614,
            -2.3613347022,
            -1.3382531773,
            -0.3144035995,
            0.7701425117,
            1.7387833227,
            2.5015529476,
            3.3859116005,
        ],
    ),
}


def uniform(n: int) -> torch.Tensor:
    return torch.linspace(FIRST, LAST, n + 1, dtype=torch.float64)


@pytest.mark.parametrize("p, n", REFERENCE)
def test_bound_is_the_authors(p: int, n: int) -> None:
    at_uniform, at_optimum, inner = REFERENCE[p, n]
    lams = torch.tensor([FIRST, *inner, LAST], dtype=torch.float64)
    assert bound(uniform(n), p=p).item() == pytest.approx(at_uniform, rel=1e-8)
    assert bound(lams, p=p).item() == pytest.approx(at_optimum, rel=1e-6)


def test_bound_of_two_and_three_steps_by_quadrature() -> None:
    """Weights of the interpolating polynomials, integrated numerically, for an order-3 grid written out by hand."""
    lams = torch.tensor([-1.0, -0.2, 0.5, 0.9, 1.7], dtype=torch.float64)
    error = torch.sigmoid(-2 * lams).sqrt() / torch.sigmoid(2 * lams).sqrt()
    nodes = {0: [0], 1: [0, 1], 2: [1, 2], 3: [3]}  # order 1, 2, 2 (four steps, the last of order 1), 1

    def weight(step: int, j: int) -> float:
        u = torch.linspace(lams[step].item(), lams[step + 1].item(), 20001, dtype=torch.float64)
        basis = torch.ones_like(u)
        for k in nodes[step]:
            if k != j:
                basis = basis * (u - lams[k]) / (lams[j] - lams[k])
        return torch.trapezoid(u.exp() * basis, u).item()

    early = sum(sum((weight(s, j) * error[j].item()) ** 2 for j in nodes[s]) ** 0.5 for s in (0, 1, 2, 3))
    assert bound(lams, order=2, truncation=3).item() == pytest.approx(early, rel=1e-7)
    late = {j: 0.0 for j in range(4)}
    for s in (1, 2):
        for j in nodes[s]:
            late[j] += weight(s, j) * error[j].item()
    ends = sum(abs(weight(s, s) * error[s].item()) for s in (0, 3))
    assert bound(lams, order=2, truncation=0).item() == pytest.approx(ends + sum(map(abs, late.values())), rel=1e-7)


def test_third_order_weights_by_quadrature() -> None:
    lams = torch.tensor([-2.0, -1.1, -0.2, 0.5, 0.9, 1.7], dtype=torch.float64)
    error = torch.sigmoid(-2 * lams) / torch.sigmoid(2 * lams).sqrt()
    nodes = {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [2, 3], 4: [4]}
    total = 0.0
    for s, points in nodes.items():
        u = torch.linspace(lams[s].item(), lams[s + 1].item(), 20001, dtype=torch.float64)
        square = 0.0
        for j in points:
            basis = torch.ones_like(u)
            for k in points:
                if k != j:
                    basis = basis * (u - lams[k]) / (lams[j] - lams[k])
            square += (torch.trapezoid(u.exp() * basis, u).item() * error[j].item()) ** 2
        total += square**0.5
    assert bound(lams, p=2, truncation=5).item() == pytest.approx(total, rel=1e-7)


@pytest.mark.parametrize("p, n", REFERENCE)
def test_optimum_is_not_above_the_published_one(p: int, n: int) -> None:
    """Equal up to 7 steps; from 8 on, where the published search stops early, at least 4 % lower."""
    lams = minimise(FIRST, LAST, n, p=p)
    assert lams[0] == FIRST and lams[-1] == LAST and bool((lams.diff() > 0).all())
    _, published, inner = REFERENCE[p, n]
    assert bound(lams, p=p).item() <= published * (1.0005 if n < 8 else 0.96)
    if n < 7:
        assert (lams[1:-1] - torch.tensor(inner, dtype=torch.float64)).abs().max() < 2e-3


def test_minimum_is_a_minimum() -> None:
    """No random step in any direction leads lower, beyond the rounding of the corners."""
    lams = minimise(FIRST, LAST, 6)
    least = bound(lams).item()
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(50):
            moved = lams.clone()
            moved[1:-1] += size * torch.randn(5, generator=generator, dtype=torch.float64)
            assert bound(moved.sort().values).item() > least * (1 - 1e-4)


def test_rounding_vanishes() -> None:
    lams = uniform(6)
    assert bound(lams, truncation=0, rounding=1e-6).item() == pytest.approx(bound(lams, truncation=0).item(), abs=1e-4)


def test_same_times_every_time_and_in_every_schedule() -> None:
    """Only lam counts: schedules that cover the same range of lam get the same lams."""
    vp = dmn_times(VP, 5, end="min")
    edm = EDM(sigma_min=VP.ratio(1e-3).item(), sigma_max=VP.ratio(1.0).item())
    other = dmn_times(edm, 5, end="min")
    assert torch.equal(vp, dmn_times(VP, 5, end="min"))
    assert (VP.lam(vp) - edm.lam(other)).abs().max() < 1e-7
    assert vp[0] == 1.0 and vp[-1] == 1e-3


@pytest.mark.parametrize(
    "noise",
    [EDM(), Flow(shift=3.0), Discrete.scaled_linear(), Discrete.linear().rescaled_to_zero_terminal_snr()],
    ids=lambda n: n.family,
)
def test_ends(noise: object) -> None:
    zero = dmn_times(noise, 4)
    assert len(zero) == 5 and zero[0] == noise.t_max and zero[-1] == noise.t_clean
    appended = dmn_times(noise, 4, end="append")
    assert len(appended) == 5 and appended[-2] == noise.t_min and appended[-1] == noise.t_clean
    part = dmn_times(noise, 3, start=noise.time_of_ratio(2.0).item(), end=noise.time_of_ratio(0.1).item())
    assert noise.ratio(part[0]).item() == pytest.approx(2.0) and noise.ratio(part[-1]).item() == pytest.approx(0.1)
    assert dmn_times(noise, 1).tolist() == [noise.t_max, noise.t_clean]


@pytest.mark.parametrize("options", [{"n": 0}, {"p": 0.0}, {"p": float("nan")}, {"order": 4}])
def test_bad_arguments_are_named(options: dict) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        dmn_times(**{"noise": VP, "n": 5, **options})
    with pytest.raises(TimesError, match="start"):
        dmn_times(VP, 5, start=1e-3)
