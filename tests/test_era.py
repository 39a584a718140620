"""ERA-Solver's choices, made in calibration."""

import math

import pytest
import torch

from fewstep import noise as ns
from fewstep import solvers
from fewstep.errors import ArgumentError, SeedsError
from fewstep.randomness import CalibrationSeeds, ReportSeeds, unit_noise
from fewstep.sampling import trajectory
from fewstep.solvers.era import bases, lagrange


class Net:
    noise = ns.VPLinear()
    shape = (3, 4)
    device = "cpu"
    dtype = torch.float64

    def __call__(self, x, t, condition=None):
        return torch.tanh(2 * x) * (1 - 0.5 * t)


def test_selection_rule():
    assert bases(9, 4, 0.0) == [6, 7, 8, 9]  # no error: the newest
    assert bases(9, 4, 1.0) == [2, 4, 6, 9]  # equal spacing
    assert bases(9, 4, 3.0) == [0, 1, 3, 9]  # a large error reaches back
    for i in range(3, 30):
        for e in (0.0, 0.3, 1.0, 2.5, 40.0):
            chosen = bases(i, 4, e)
            assert len(set(chosen)) == 4 and chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] == i


def test_lagrange_is_exact_for_cubics():
    points = {2: 0.9, 4: 0.7, 5: 0.4, 6: 0.35}
    w = lagrange(0.1, points)
    for degree in range(4):
        assert abs(sum(v * points[j] ** degree for j, v in w.items()) - 0.1**degree) < 1e-12


def test_the_table_repeats_the_calibration_run():
    """On the calibration samples the frozen table is the adaptive solver, restated directly here."""
    net, n, order, scale = Net(), 9, 4, 0.5
    times = torch.linspace(1.0, 0.001, n + 1, dtype=torch.float64)
    seeds = CalibrationSeeds(16)
    table = solvers.era_calibrated(times, net, seeds=seeds, order=order, scale=scale).tabulate(net.noise)
    start = (unit_noise(seeds, net.shape) * net.noise.sigma(1.0)).double()
    got = list(trajectory(net, table, start))[-1].state
    x, eps, guess, error = start, [], None, scale
    for i in range(n):
        (a, s), (a2, s2) = ((net.noise.alpha(t).item(), net.noise.sigma(t).item()) for t in times[i : i + 2])
        eps.append((x - a * net(x, times[i].item())) / s)
        if guess is not None:
            error = (eps[-1] - guess).flatten(1).norm(dim=1).mean().item()
        e = eps[-1]
        if i >= order - 1:
            chosen = bases(i, order, error / scale)
            guess = sum(
                w * eps[j] for j, w in lagrange(times[i + 1].item(), {j: times[j].item() for j in chosen}).items()
            )
            e = (9 * guess + 19 * eps[-1] - 5 * eps[-2] + eps[-3]) / 24
        x = a2 / a * (x - s * e) + s2 * e
    assert (got - x).abs().max() < 1e-6 and table.nfe == n and math.isfinite(error)


def test_bad_input():
    times = torch.linspace(1.0, 0.001, 6, dtype=torch.float64)
    with pytest.raises(SeedsError, match="CalibrationSeeds"):
        solvers.era_calibrated(times, Net(), seeds=ReportSeeds(4))
    with pytest.raises(ArgumentError, match="at least 3"):
        solvers.era_calibrated(times, Net(), seeds=CalibrationSeeds(4), order=2)
    with pytest.raises(ArgumentError, match="scale=0"):
        solvers.era_calibrated(times, Net(), seeds=CalibrationSeeds(4), scale=0)
