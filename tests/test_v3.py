"""DPM-Solver-v3: its basis, statistics and solver; identities, closed forms, brute force, the authors' own loop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep import noise as ns
from fewstep import solvers
from fewstep.denoiser import Denoiser
from fewstep.ems import EMS, log_snr_grid
from fewstep.ems.integrals import Coefficients, exact
from fewstep.errors import ArgumentError, DenoiserError, FileFormatError, SeedsError
from fewstep.problems import Gaussian, GaussianMixture
from fewstep.randomness import CalibrationSeeds, ReportSeeds, unit_noise
from fewstep.rules import SolverSchedule, Step
from fewstep.sampling import sample
from fewstep.tableau import Tableau
from tests import usf_reference as reference

VP = ns.VPLinear()


def logsnr(noise: ns.NoiseSchedule, n: int) -> Tensor:
    lams = log_snr_grid(noise, n + 1)
    times = noise.time_of_lam(lams)
    times[0], times[-1] = noise.t_max, noise.t_min
    return times


def wavy(noise: ns.NoiseSchedule, points: int = 30, rule: Any = "exact") -> EMS:
    """Statistics `[points, 2, 2]` of no network."""
    lams = log_snr_grid(noise, points)
    at = torch.linspace(0, 1, points, dtype=torch.float64)[:, None, None]
    place = torch.arange(4, dtype=torch.float64).reshape(1, 2, 2)
    linear, growth = 0.9 - 0.6 * at + 0.1 * place, -0.5 + torch.sin(3 * at + place) / 2
    return EMS(lams, linear, growth, 0.2 * torch.cos(2 * at - place), rule, noise)


# ----------------------------------------------------------------------------------------------------------- the basis


@pytest.mark.parametrize("points", [2, 17, 300])
@pytest.mark.parametrize(("linear", "growth", "basis"), [(1.0, 0.0, "data"), (0.0, -1.0, "noise")])
def test_constants_are_data_and_noise(points: int, linear: float, growth: float, basis: Any) -> None:
    ems, times = EMS.constant(log_snr_grid(VP, points), linear, growth), logsnr(VP, 6)
    for order, corrector in ((1, "pseudo"), (2, None), (3, "implicit"), (4, "pseudo")):
        kept: Any = {"corrector": corrector, "scaling": 0.1 if order == 2 else "none"}
        plain, third = (SolverSchedule(times, (Step(b, order, **kept),) * 6) for b in (basis, "v3"))
        assert third.tabulate(VP, statistics=ems).difference(plain.tabulate(VP)) < 1e-12
    blocks = [Step("noise"), Step("noise", 2, ((-1,),), start=-2), Step("noise", 3, ((-1, -2),) * 2, start=-3)] * 2
    single = [Step("v3" if k > 2 else basis, s.order, s.active, start=s.start) for k, s in enumerate(blocks)]
    wanted = SolverSchedule(times, tuple(Step(basis, s.order, s.active, start=s.start) for s in blocks)).tabulate(VP)
    assert SolverSchedule(times, tuple(single)).tabulate(VP, statistics=ems).difference(wanted) < 1e-12


def test_integrals_against_a_fine_sum() -> None:
    """All five integrals between points inside cells, by a midpoint sum of 200,000 terms."""
    ems = wavy(VP, 9)
    c = Coefficients(ems.lams, ems.l, ems.s, ems.b)
    low, high = -3.3, 2.2
    span = exact(c, low, high, 3)
    n = 200_000
    h = (high - low) / n
    at = low + h * (torch.arange(n, dtype=torch.float64) + 0.5)
    place = torch.searchsorted(ems.lams, at, right=True) - 1
    share = ((at - ems.lams[place]) / (ems.lams[place + 1] - ems.lams[place]))[:, None]
    linear, growth, drift = (torch.lerp(v.flatten(1)[place], v.flatten(1)[place + 1], share) for v in (c.l, c.s, c.b))
    run = lambda v: v.cumsum(0) * h - 0.5 * h * v  # noqa: E731 - up to the middle of each piece
    inner = run(torch.exp(-run(growth)) * drift)
    weight = torch.exp(run(linear) + run(growth)) * h
    sums = [linear.sum(0) * h, growth.sum(0) * h, (torch.exp(-run(growth)) * drift).sum(0) * h]
    sums += [(weight * ((at - low) ** k)[:, None]).sum(0) / math.factorial(k) for k in range(3)]
    sums += [(weight * inner).sum(0)]
    for mine, wanted in zip([*span[:3], *span.moments, span.shift], sums, strict=True):
        assert ((mine.flatten() - wanted).abs() / wanted.abs().clamp_min(1)).max() < 1e-8


def test_authors_rule_converges_to_ours() -> None:
    times = logsnr(VP, 5)
    gaps = []
    for points in (61, 241):  # the times are grid points of both
        table = [
            solvers.dpm_solver_v3(times).tabulate(VP, statistics=wavy(VP, points, r)) for r in ("exact", "nearest")
        ]
        gaps.append(table[0].difference(table[1]))
    assert 1e-7 < gaps[1] < gaps[0] < 1e-2 and 12 < gaps[0] / gaps[1] < 20


def test_gradient_in_the_times() -> None:
    times = logsnr(VP, 3)
    ems = wavy(VP, 12)

    def total(t: Tensor) -> Tensor:
        table = solvers.dpm_solver_v3(t, order=2).tabulate(VP, statistics=ems)
        return (table.A[-1] ** 2).sum() + (table.B[2] ** 2).sum() + (table.K**2).sum()

    leaf = times.clone().requires_grad_()
    (grad,) = torch.autograd.grad(total(leaf), leaf)
    for k in (1, 2):
        step = torch.zeros(4, dtype=torch.float64)
        step[k] = 1e-6
        fine = (total(times + step) - total(times - step)) / 2e-6
        assert abs(grad[k] - fine) < 1e-6 * max(1.0, abs(fine.item()))


def test_table_in_the_loop_and_in_a_file(tmp_path: Path) -> None:
    """Mixed bases with the mean image; rows without v3 keep plain numbers; the file keeps weights per element."""
    ems, times = wavy(VP), logsnr(VP, 4)
    moves = (Step("noise"), Step("v3", 2, corrector="pseudo"), Step("data", 2), Step("noise"))
    schedule = SolverSchedule(times, moves, afs="mean")
    mean = torch.full((2, 2), 0.3)
    table = schedule.tabulate(VP, mean=mean, statistics=ems)
    assert table.A.shape[2:] == (2, 2) and table.K.shape[1] == 2 and table.nfe == 3
    assert all(isinstance(term.weight, float) for term in table.program[1].terms)
    assert any(isinstance(term.weight, Tensor) for term in table.program[2].terms)
    network = lambda x, t, _: torch.tanh(x) * (1 - t) + 0.1 * t  # noqa: E731
    start = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (sample(network, t, start=start) for t in (table, table.unrolled()))
    assert (one - other).abs().max() < 1e-12
    for k in range(4):  # every element is a sampler of its own
        i, j = divmod(k, 2)
        alone = EMS(ems.lams, ems.l[:, i, j], ems.s[:, i, j], ems.b[:, i, j])
        single = schedule.tabulate(VP, mean=mean[:1, 0], statistics=alone)
        assert (sample(network, single, start=start[:, i, j, None])[:, 0] - one[:, i, j]).abs().max() < 1e-12
    table.save(tmp_path / "table.json")
    again = Tableau.load(tmp_path / "table.json")
    assert again == table and again.digest == table.digest and "per element" in str(table)
    other_ems = EMS(ems.lams, ems.l + 0.01, ems.s, ems.b)
    assert schedule.tabulate(VP, mean=mean, statistics=other_ems).digest != table.digest
    assert schedule.tabulate(VP, mean=mean + 0.1, statistics=ems).digest != table.digest


def test_ends_without_statistics_become_ddim() -> None:
    flow = ns.Flow()
    times = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    table = SolverSchedule(times, (Step("v3", 2),) * 3).tabulate(flow, statistics=wavy(flow))
    assert "alpha = 0" in table.notes[1] and "sigma = 0" in table.notes[3] and "v3" not in table.notes[2]
    ddim = solvers.ddim(times).tabulate(flow)
    assert (table.A[1] - ddim.A[1][:, None, None]).abs().max() < 1e-12


def test_what_tabulate_refuses() -> None:
    schedule = solvers.dpm_solver_v3(logsnr(VP, 3))
    with pytest.raises(ArgumentError, match=r"EMS\.compute"):
        schedule.tabulate(VP)
    with pytest.raises(ArgumentError, match="network on EDM"):
        schedule.tabulate(VP, statistics=wavy(ns.EDM()))
    short = EMS.constant(torch.tensor([-2.0, 2.0]), 1.0, 0.0)
    with pytest.raises(ArgumentError, match=r"reach from .* -2 to 2, and a step needs -5"):
        schedule.tabulate(VP, statistics=short)
    assert solvers.ddim(logsnr(VP, 3)).tabulate(VP, statistics=short).meta == {}
    for wrong in ({"tau": 1.0}, {"variable": "rho"}, {"weights": ((-1, 1.0),)}):
        with pytest.raises(ArgumentError, match="deterministic Taylor step"):
            Step("v3", **wrong)
    with pytest.raises(ArgumentError, match="corrector_active needs a corrector"):
        Step("v3", corrector_active=((-1,),))
    with pytest.raises(ArgumentError, match="derivative 2 needs at least 2"):
        Step("v3", corrector="pseudo", corrector_active=((-1,), (-1,)))


def test_canonical_form() -> None:
    times = logsnr(VP, 3)
    first = SolverSchedule(times, (Step("v3"), Step("v3", 2), Step("v3", 3, ((-3, -2), (-2, -3)))))
    other = SolverSchedule(times, (Step("v3", 3), Step("v3", 3), Step("v3", 3)))
    assert first.canonical() == other.canonical() and first.canonical().steps[0].basis == "v3"  # type: ignore[union-attr]
    usual = SolverSchedule(times, (Step(corrector="pseudo"),) * 3)
    said = SolverSchedule(times, (Step(corrector="pseudo", corrector_active=((-1,),)),) * 3)
    assert usual.canonical() == said.canonical() != SolverSchedule(times, (Step(),) * 3).canonical()
    assert SolverSchedule.from_dict(json.loads(json.dumps(said.to_dict()))) == said


# ---------------------------------------------------------------------------------------------------------- the solver


@pytest.mark.parametrize("known", reference.recorded()["dpm_solver_v3"], ids=lambda k: f"{k['noise']} {k['options']}")
def test_solver_is_that_of_its_authors(known: dict[str, Any]) -> None:
    """Their loop (thu-ml/DPM-Solver-v3 ba16871) in float64, on a network that is not linear."""
    noise, options = reference.NOISES[known["noise"]], known["options"]
    schedule = solvers.dpm_solver_v3(
        torch.tensor(known["times"], dtype=torch.float64), order=options["order"], predictor_pseudo=options["p_pseudo"],
        corrector=options["use_corrector"], corrector_pseudo=options["c_pseudo"],
    )  # fmt: skip
    table = schedule.tabulate(noise, statistics=reference.made_up(noise))
    network = lambda x, t, _: reference.denoise(x, noise.lam(t).item())  # noqa: E731
    made = sample(network, table, start=reference.starts(noise))
    assert (made.flatten() - torch.tensor(known["output"], dtype=torch.float64)).abs().max() < 1e-9
    assert table.nfe == len(schedule.steps)


def test_names() -> None:
    assert not set(solvers.WITH_STATISTICS) & set(solvers.NAMES)
    for name, make in solvers.WITH_STATISTICS.items():
        schedule = solvers.get(name)(logsnr(VP, 5))
        assert schedule == make(logsnr(VP, 5)) and schedule.citation and solvers.calls(name, 5) == 5
        assert schedule.tabulate(VP, statistics=wavy(VP)).nfe == 5
    with pytest.raises(ArgumentError, match="orders 1 to 3"):
        solvers.dpm_solver_v3(logsnr(VP, 5), order=4)


def mixture() -> tuple[GaussianMixture, Denoiser]:
    means = torch.tensor([[-1.0, 0.3], [0.6, -0.5]], dtype=torch.float64)
    law = GaussianMixture(means, torch.tensor([0.0625, 0.16], dtype=torch.float64), torch.tensor([0.3, 0.7]), noise=VP)
    return law, Denoiser(law.denoise, noise=VP, shape=(2,), dtype=torch.float64, fingerprint="mixture")


@pytest.mark.slow
def test_orders_of_convergence_with_its_own_statistics() -> None:
    """Uniform log-SNR, 16 to 64 steps, against 400 of them."""
    law, net = mixture()
    ems = EMS.compute(net, law.sample(96, dtype=torch.float64), lams=log_snr_grid(VP, 33), derivative="difference")
    ems = ems.refined(16)
    start = torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def solve(n: int, **options: Any) -> Tensor:
        schedule = solvers.dpm_solver_v3(logsnr(VP, n), lower_order_final=False, **options)
        return sample(net, schedule.tabulate(VP, statistics=ems), start=start)

    exact_end = sample(net, solvers.adams_bashforth(logsnr(VP, 400), order=4).tabulate(VP), start=start)
    error = lambda x: (x - exact_end).pow(2).mean().sqrt().item()  # noqa: E731
    for options, rate in (
        ({"order": 1, "corrector": False}, 1), ({"order": 2, "corrector": False}, 2),
        ({"order": 3, "corrector": False}, 3),
        ({"order": 3, "predictor_pseudo": True, "corrector_pseudo": True}, 2),
    ):  # fmt: skip
        measured = math.log(error(solve(16, **options)) / error(solve(64, **options))) / math.log(4)
        assert rate - 0.4 < measured < rate + 1.2, (options, measured)


# ------------------------------------------------------------------------------------------------------ the statistics


def diagonal() -> tuple[Gaussian, Denoiser, Tensor, Tensor]:
    mean = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    variance = torch.tensor([0.5, 0.01, 2.0], dtype=torch.float64)
    law = Gaussian(mean, variance, noise=VP)
    return law, Denoiser(law.denoise, noise=VP, shape=(3,), dtype=torch.float64, fingerprint="gauss"), mean, variance


@pytest.mark.parametrize(("derivative", "tolerance"), [("forward", 1e-12), ("difference", 1e-4)])
def test_statistics_of_independent_gaussians(derivative: Any, tolerance: float) -> None:
    """l = 1 / (1 + c e^{2 lam}) whatever the samples; f = -l mean has no spread: s = 0, b = -l' mean."""
    law, net, mean, variance = diagonal()
    lams = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    ems = EMS.compute(net, law.sample(3, dtype=torch.float64), lams=lams, derivative=derivative)
    linear = 1 / (1 + variance * torch.exp(2 * lams)[:, None])
    slope = -2 * linear * (1 - linear)
    assert (ems.l - linear).abs().max() < tolerance
    if derivative == "forward":  # l' is a difference over the grid
        assert ems.s.abs().max() == 0 and (ems.b + slope * mean)[1:-1].abs().max() < 1e-2
    assert ems.record["samples"] == 3 and ems.record["derivative"] == derivative and ems.noise == VP


def test_one_step_solves_independent_gaussians() -> None:
    """With l and b of the closed form the expanded quantity is constant, and one step is the whole ODE."""
    law, net, mean, variance = diagonal()
    lams = log_snr_grid(VP, 600)
    linear = 1 / (1 + variance * torch.exp(2 * lams)[:, None])
    ems = EMS(lams, linear, torch.zeros_like(linear), 2 * linear * (1 - linear) * mean, noise=VP)
    table = solvers.dpm_solver_v3(logsnr(VP, 1)).tabulate(VP, statistics=ems)
    start = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (sample(net, table, start=start) - law.ode_solution(start, 1.0, 1e-3)).abs().max() < 1e-4


def test_statistics_of_correlated_gaussians() -> None:
    """Closed form: f and f' are linear in y ~ N(mean, C + rho^2); within the sampling error of 4,000 samples."""
    cov = torch.tensor([[0.6, 0.3], [0.3, 0.4]], dtype=torch.float64)
    law = Gaussian(torch.tensor([0.3, -0.2], dtype=torch.float64), cov, noise=VP)
    net = Denoiser(law.denoise, noise=VP, shape=(2,), dtype=torch.float64, fingerprint="full")
    lams = torch.tensor([-0.2, 0.0, 0.2], dtype=torch.float64)
    ems = EMS.compute(net, law.sample(4000, dtype=torch.float64), lams=lams, derivative="forward", batch_size=4000)
    eye = torch.eye(2, dtype=torch.float64)

    def parts(lam: float) -> tuple[Tensor, Tensor, Tensor]:
        spread = cov + math.exp(-2 * lam) * eye
        gain = cov @ torch.linalg.inv(spread)
        linear = 1 - gain.diagonal()
        return linear, torch.diag(1 - linear) - gain, spread

    h = 1e-5
    linear, matrix, spread = parts(0.0)
    ahead, behind = parts(h), parts(-h)
    flow = -math.exp(0.0) * torch.linalg.inv(spread)  # (y - mean)' = -rho^2 (C + rho^2)^{-1} (y - mean)
    rate = (ahead[1] - behind[1]) / (2 * h) + matrix @ flow
    growth = (matrix @ spread @ rate.T).diagonal() / (matrix @ spread @ matrix.T).diagonal()
    assert (ems.l[1] - linear).abs().max() < 0.02
    assert (ems.s[1] - growth).abs().max() < 0.02 and (growth.abs() > 0.05).all()


def test_statistics_against_brute_force() -> None:
    """On the same noised samples: l by the whole Jacobian, f' by integrating the ODE, s and b by least squares."""
    law, net = mixture()
    lams = torch.linspace(-0.1, 0.1, 5, dtype=torch.float64)
    data = law.sample(6, dtype=torch.float64)
    ems = EMS.compute(net, data, lams=lams, probes=16, derivative="forward")
    k = 2
    lam = lams[k].item()
    time = VP.time_of_lam(lam).item()
    alpha, sigma = VP.alpha(time).item(), VP.sigma(time).item()
    x = alpha * data + sigma * unit_noise(CalibrationSeeds(6), (2,), k, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: law.denoise(v, time).sum(0), x)
    linear = 1 - alpha * jacobian.diagonal(dim1=0, dim2=2).mean(0)
    off = (alpha * jacobian[0, :, 1]).abs().mean() / 96**0.5  # the error that 16 signs for each sample leave
    assert (ems.l[k] - linear).abs().max() < 4 * off

    def f(at: float) -> Tensor:  # along the ODE from x, by classical Runge-Kutta in y = x / alpha
        y, n = x / alpha, 8
        h = (at - lam) / n

        def rate(v: Tensor, u: float) -> Tensor:
            t = VP.time_of_lam(u).item()
            return law.denoise(v * VP.alpha(t), t) - v

        for i in range(n):
            u = lam + i * h
            a = rate(y, u)
            b = rate(y + h / 2 * a, u + h / 2)
            c = rate(y + h / 2 * b, u + h / 2)
            y = y + h / 6 * (a + 2 * b + 2 * c + rate(y + h * c, u + h))
        t = VP.time_of_lam(at).item()
        slope = (ems.l[k + 1] - ems.l[k - 1]) / (lams[k + 1] - lams[k - 1])
        return (1 - ems.l[k] - slope * (at - lam)) * y - law.denoise(y * VP.alpha(t), t)

    values, rates = f(lam), (f(lam + 1e-3) - f(lam - 1e-3)) / 2e-3
    for j in range(2):
        design = torch.stack([values[:, j], torch.ones(6, dtype=torch.float64)], 1)
        growth, drift = torch.linalg.lstsq(design, rates[:, j]).solution
        assert abs(ems.s[k, j] - growth) < 1e-4 and abs(ems.b[k, j] - drift) < 1e-4


def test_batches_and_interruption_do_not_matter(tmp_path: Path) -> None:
    law, net = mixture()
    data, lams = law.sample(7), log_snr_grid(VP, 5)
    told: list[float] = []
    whole = EMS.compute(net, data, lams=lams, derivative="difference", progress=lambda e: told.append(e.done))
    assert told[-1] == 35 and told == sorted(told)

    class Stop(Exception):
        pass

    class Breaking(Denoiser):
        left = 11

        def __call__(self, x: Tensor, t: Any, condition: Any = None) -> Any:
            Breaking.left -= 1
            if Breaking.left == 0:
                raise Stop
            return super().__call__(x, t, condition)

    breaking = Breaking(law.denoise, noise=VP, shape=(2,), dtype=torch.float64, fingerprint="mixture")
    with pytest.raises(Stop):
        EMS.compute(breaking, data, lams=lams, derivative="difference", cache=tmp_path)
    kept = len(list(tmp_path.iterdir()))
    before = net.calls
    again = EMS.compute(net, data, lams=lams, derivative="difference", cache=tmp_path)
    assert 0 < kept < 5 and net.calls - before == 5 * (5 - kept) + 1  # one question guards the cache
    assert again.digest == whole.digest
    batches = EMS.compute(net, data, lams=lams, derivative="difference", batch_size=2)
    assert max((getattr(batches, n) - getattr(whole, n)).abs().max().item() for n in "lsb") < 1e-12
    impostor = Denoiser(lambda x, t, c: 0.5 * x, noise=VP, shape=(2,), dtype=torch.float64, fingerprint="mixture")
    with pytest.raises(DenoiserError, match="another network"):
        EMS.compute(impostor, data, lams=lams, derivative="difference", cache=tmp_path)


@pytest.mark.parametrize("where", ["output", "derivative"])
def test_numbers_that_are_not_finite_are_named(where: str) -> None:
    def fn(x: Tensor, t: Any, _: Any) -> Tensor:
        bad = x.clone()
        if len(x) > 1:  # the third sample is at fault: itself, or by a root at 0, whose derivative is infinite
            last = x[2:] * torch.nan if where == "output" else x[2:] + (x[2:] - x[2:].detach()).abs().sqrt()
            bad = torch.cat([x[:2], last])
        return 0.3 * bad

    net = Denoiser(fn, noise=VP, shape=(2,), dtype=torch.float64, fingerprint="nan", check_finite=False)
    with pytest.raises(DenoiserError, match=r"log\(alpha / sigma\) = -5.*data samples 2, seeds 1000000002") as caught:
        EMS.compute(net, torch.ones(3, 2), lams=log_snr_grid(VP, 3), derivative="forward")
    assert caught.value.rows == (2,)


def test_networks_without_forward_mode() -> None:
    class Rigid(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.tanh(x)

    net = Denoiser(lambda x, t, c: Rigid.apply(x), noise=VP, shape=(2,), dtype=torch.float64, fingerprint="rigid")
    made = EMS.compute(net, torch.ones(3, 2), lams=log_snr_grid(VP, 3))
    assert made.record["derivative"] == "difference"
    with pytest.raises(ArgumentError, match="use 'difference'"):
        EMS.compute(net, torch.ones(3, 2), lams=log_snr_grid(VP, 3), derivative="forward")


def test_files(tmp_path: Path) -> None:
    law, net = mixture()
    ems = EMS.compute(net, law.sample(4), lams=log_snr_grid(VP, 4), derivative="difference")
    path = ems.save(tmp_path / "ems.safetensors")
    again = EMS.load(path, net)
    assert again.digest == ems.digest and again.noise == VP and again.record == ems.record
    other = Denoiser(law.denoise, noise=VP, shape=(2,), fingerprint="another")
    for wrong, match in (
        (other, "'mixture', this is 'another'"),
        (Denoiser(law.denoise, noise=ns.EDM(), shape=(2,), fingerprint="mixture"), "EDM"),
        (Denoiser(law.denoise, noise=VP, shape=(3,), fingerprint="mixture"), "samples"),
    ):
        with pytest.raises(ArgumentError, match=match):
            EMS.load(path, wrong)
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    for data, match in ((bytes(blob), "damaged"), (blob[:90], "no statistics"), (b"{}", "no statistics")):
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(FileFormatError, match=match):
            EMS.load(tmp_path / "bad.safetensors")


def test_the_authors_files(tmp_path: Path) -> None:
    ems = wavy(VP, 11)
    np.savez(tmp_path / "l.npz", l=ems.l.numpy())
    np.savez(tmp_path / "sb.npz", s=ems.s.numpy(), b=ems.b.numpy())
    found = EMS.from_npz(tmp_path, VP)
    assert found.rule == "nearest" and found.with_rule("exact").digest == ems.digest
    (tmp_path / "sb.npz").unlink()
    with pytest.raises(FileFormatError, match=r"sb\.npz cannot be read"):
        EMS.from_npz(tmp_path, VP)


def test_what_compute_refuses() -> None:
    law, net = mixture()
    data = law.sample(4)
    with pytest.raises(SeedsError, match="CalibrationSeeds"):
        EMS.compute(net, data, seeds=ReportSeeds(4))  # type: ignore[arg-type]
    for wrong, match in (
        ({"data": data[:, :1]}, "data has shape"), ({"data": data[:1]}, "at least two"), ({"probes": 0}, "probe"),
        ({"derivative": "backward"}, "choose 'auto'"), ({"lams": torch.tensor([1.0, 1.0])}, "rising"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            EMS.compute(**({"denoiser": net, "data": data} | wrong))
    for lams, values, match in (
        (torch.tensor([0.0]), torch.zeros(1), "rising"), (torch.tensor([0.0, 1.0]), torch.zeros(3), "shape"),
        (torch.tensor([0.0, 1.0]), torch.tensor([0.0, torch.nan]), "grid point 1"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            EMS(lams, values, values, values)
    with pytest.raises(ArgumentError, match="choose 'exact'"):
        wavy(VP, rule="best")
    with pytest.raises(ArgumentError, match="end with noise"):
        log_snr_grid(VP, end=2.0)
