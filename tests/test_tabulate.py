"""Decisions to numbers: USF's table of known solvers, closed forms, limits, gradients, and what is lowered."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep import noise as ns
from fewstep import solvers
from fewstep.errors import ArgumentError, TimesError
from fewstep.phi import value
from fewstep.rules import At, Churn, Down, Inner, Renoise, SolverSchedule, Step
from fewstep.transfer import scaling_factor

NOISES = {
    "edm": ns.EDM(),
    "vp": ns.VPLinear(),
    "cosine": ns.VPCosine(),
    "flow": ns.Flow(shift=3.0),
    "scaled": ns.Discrete.scaled_linear(),
    "zero_snr": ns.Discrete.scaled_linear().rescaled_to_zero_terminal_snr(),
}
SIMPLE = {n: f for n, f in solvers.NAMES.items() if n != "restart"}


def grid(noise, n, *, clean=True, seed=None):
    """Uniform in log ratio, or random; from pure noise where the schedule has it."""
    top = noise.lam(noise.t_max).item()
    top = top if math.isfinite(top) else -4.0
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    if seed is not None:
        gaps = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
        u = torch.cat([u[:1], (gaps / gaps.sum()).cumsum(0)])
    t = noise.time_of_lam(top + u * (noise.lam(noise.t_min).item() - top))
    t[0] = noise.t_max
    if clean:
        t[-1] = noise.t_clean
    return t


def places(noise, times):
    return [(noise.alpha(t).item(), noise.sigma(t).item(), noise.lam(t).item()) for t in times]


@given(
    solver=st.sampled_from(sorted(SIMPLE)), family=st.sampled_from(sorted(NOISES)), n=st.integers(1, 11),
    clean=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_every_solver_obeys_both_identities_everywhere(solver, family, n, clean, seed):
    noise = NOISES[family]
    times = grid(noise, n, clean=clean, seed=seed)
    table = SIMPLE[solver](times).tabulate(noise)
    table.verify(1e-12)
    if clean:
        assert table.A.isfinite().all() and table.sigma[-1] == 0
    wanted = solvers.calls(solver, table.nfe, to_zero=clean)
    assert wanted in (n, None) or noise.alpha(noise.t_max) == 0


def table_of(solver, noise, times, **options):
    return solver(times, **options).tabulate(noise).unrolled()


def run_scalar(step_fn, noise, times, table, width=4):
    """Check a table against a direct recursion on scalars with a non-linear 'network'."""
    net = lambda x, t: math.tanh(x + 0.3 * t) + 0.1 * x  # noqa: E731
    x0 = 1.7
    states, outputs = [x0], []
    t = table
    for i in range(t.rows):
        if i:
            states.append(
                sum(t.A[i, k].item() * states[k] for k in range(i))
                + sum(t.B[i, j].item() * outputs[j] for j in range(i))
            )
        outputs.append(net(states[i], t.model_times[i].item()) if t.evaluated[i] else 0.0)
    assert abs(states[-1] - step_fn(net, x0, places(noise, times), [v.item() for v in times])) < 1e-10 * max(
        1, abs(states[-1])
    )


def test_ddim_closed_form():
    noise, times = NOISES["vp"], grid(NOISES["vp"], 5)

    def direct(net, x, p, t):
        for i in range(5):
            (a, s, _), (a2, s2, _) = p[i], p[i + 1]
            d = net(x, t[i])
            x = a2 * d + s2 * (x - a * d) / s
        return x

    run_scalar(direct, noise, times, solvers.ddim(times).tabulate(noise))
    assert (
        solvers.ddim(times).tabulate(noise)
        == solvers.euler(times).tabulate(noise)
        == solvers.dpm_solver_1(times).tabulate(noise)
    )


def test_dpm_solver_2_closed_form():
    noise, times = NOISES["vp"], grid(NOISES["vp"], 4, clean=False)

    def direct(net, x, p, t):
        for i in range(4):
            (a, s, lam), (a2, s2, lam2) = p[i], p[i + 1]
            h = lam2 - lam
            tm = noise.time_of_lam(lam + 0.5 * h).item()
            (am, sm, _) = places(noise, [tm])[0]
            e = (x - a * net(x, t[i])) / s
            u = am / a * x - sm * math.expm1(0.5 * h) * e
            em = (u - am * net(u, tm)) / sm
            x = a2 / a * x - s2 * math.expm1(h) * e - s2 * math.expm1(h) * (em - e)
        return x

    run_scalar(direct, noise, times, solvers.dpm_solver_2(times).tabulate(noise))


def test_dpm_solver_3_closed_form():
    noise, times = NOISES["vp"], grid(NOISES["vp"], 3, clean=False)

    def direct(net, x, p, t):
        r1, r2 = 1 / 3, 2 / 3
        for i in range(3):
            (a, s, lam), (a2, s2, lam2) = p[i], p[i + 1]
            h = lam2 - lam
            t1, t2 = noise.time_of_lam(lam + r1 * h).item(), noise.time_of_lam(lam + r2 * h).item()
            (a_1, s_1, _), (a_2, s_2, _) = places(noise, [t1, t2])
            eps = lambda u, aa, ss, tt: (u - aa * net(u, tt)) / ss  # noqa: E731
            e = eps(x, a, s, t[i])
            u1 = a_1 / a * x - s_1 * math.expm1(r1 * h) * e
            d1 = eps(u1, a_1, s_1, t1) - e
            u2 = a_2 / a * x - s_2 * math.expm1(r2 * h) * e - s_2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
            d2 = eps(u2, a_2, s_2, t2) - e
            x = a2 / a * x - s2 * math.expm1(h) * e - s2 / r2 * (math.expm1(h) / h - 1) * d2
        return x

    run_scalar(direct, noise, times, solvers.dpm_solver_3(times).tabulate(noise))


def test_dpmpp_2m_3m_closed_form():
    noise, times = NOISES["edm"], grid(NOISES["edm"], 6, clean=False, seed=3)

    def direct(net, x, p, t, third=False):
        d, lam = [], [q[2] for q in p]
        for i in range(6):
            d.append(net(x, t[i]))
            h, s, s2 = lam[i + 1] - lam[i], p[i][1], p[i + 1][1]
            order = min(3 if third else 2, i + 1, 6 - i)
            e = -math.expm1(-h)
            x = s2 / s * x + e * d[i]
            if order == 2:
                r = (lam[i] - lam[i - 1]) / h
                x += 0.5 * e * (d[i] - d[i - 1]) / r
            if order == 3:
                r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
                d10, d11 = (d[i] - d[i - 1]) / r0, (d[i - 1] - d[i - 2]) / r1
                d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
                phi1 = math.expm1(-h)
                phi2, phi3 = phi1 / h + 1, (phi1 / h + 1) / h - 0.5
                x += phi2 * d1 - phi3 * d2
        return x

    run_scalar(direct, noise, times, solvers.dpmpp_2m(times).tabulate(noise))
    run_scalar(lambda *a: direct(*a, third=True), noise, times, solvers.dpmpp_3m(times).tabulate(noise))


@pytest.mark.parametrize("basis", ["data", "noise"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_closed_form(order, variant, basis):
    """UniPC as its paper writes it (Algorithms 1-2), with R, b and the linear solves."""
    noise, n = NOISES["vp"], 6
    times = grid(noise, n, clean=False, seed=5)

    def coefficients(rks, hh):
        big_b = hh if variant == "bh1" else math.expm1(hh)
        rows, b, factorial, h_phi = [], [], 1, math.expm1(hh) / hh - 1
        for i in range(1, len(rks) + 1):
            rows.append([r ** (i - 1) for r in rks])
            b.append(h_phi * factorial / big_b)
            factorial *= i + 1
            h_phi = h_phi / hh - 1 / factorial
        return torch.tensor(rows, dtype=torch.float64), torch.tensor(b, dtype=torch.float64), big_b

    def direct(net, x, p, t):
        def model(u, k):
            d = net(u, t[k])
            return d if basis == "data" else (u - p[k][0] * d) / p[k][1]

        m = [model(x, 0)]
        for i in range(n):
            (a, s, lam), (a2, s2, lam2) = p[i], p[i + 1]
            o, h = min(order, i + 1, n - i), lam2 - lam
            hh = -h if basis == "data" else h
            rks = [(p[i - k][2] - lam) / h for k in range(1, o)]
            d1s = [(m[i - k] - m[i]) / r for k, r in enumerate(rks, 1)]
            r_mat, b, big_b = coefficients([*rks, 1.0], hh)
            front = a2 if basis == "data" else s2
            base = (
                s2 / s * x - a2 * math.expm1(hh) * m[i] if basis == "data" else a2 / a * x - s2 * math.expm1(hh) * m[i]
            )
            rho_p = [0.5] if o == 2 else torch.linalg.solve(r_mat[:-1, :-1], b[:-1]).tolist() if o > 1 else []
            pred = base - front * big_b * sum(w * d for w, d in zip(rho_p, d1s, strict=True))
            if i == n - 1:
                return pred
            new = model(pred, i + 1)
            rho_c = [0.5] if o == 1 else torch.linalg.solve(r_mat, b).tolist()
            x = base - front * big_b * (sum(w * d for w, d in zip(rho_c, d1s, strict=False)) + rho_c[-1] * (new - m[i]))
            m.append(new)
        raise AssertionError

    run_scalar(direct, noise, times, solvers.unipc(times, order=order, variant=variant, basis=basis).tabulate(noise))


def test_adams_bashforth_weights():
    """specs of exact variable-step Adams-Bashforth on a published grid, and equal steps."""
    noise = ns.EDM()
    t = torch.tensor([80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002], dtype=torch.float64)
    wanted = {(3, 2): [1.18005294, -0.18194055, 0.00188761], (4, 3): [1.30057860, -0.32652996, 0.02598845, -0.00003710]}
    for (order, i), w in wanted.items():
        table = solvers.adams_bashforth(t, order=order).tabulate(noise)
        step = (t[i + 1] - t[i]).item()
        # eps_j = (x_j - D_j) / t_j, so the weight on D_j is -w_j step / t_j.
        got = [-table.B[i + 1, i - k].item() * t[i - k].item() / step for k in range(order)]
        assert max(abs(g - v) for g, v in zip(got, w, strict=True)) < 5e-9
    even = torch.linspace(80, 8, 10, dtype=torch.float64)
    exact, fixed = (f(even, order=4).tabulate(noise) for f in (solvers.adams_bashforth, solvers.ipndm))
    assert exact.difference(fixed) < 1e-11
    assert solvers.lms(t).tabulate(noise) == solvers.deis(t, order=4, variant="rhoab").tabulate(noise)


@pytest.mark.parametrize("family", ["edm", "vp", "flow"])
def test_time_variable_equals_rho_variable_where_time_is_rho(family):
    """DEIS in time by quadrature is DEIS in rho where the time is sigma (EDM); elsewhere they differ."""
    noise = NOISES[family]
    times = grid(noise, 6)
    gap = (
        solvers.deis(times, variant="tab")
        .tabulate(noise)
        .difference(solvers.deis(times, variant="rhoab").tabulate(noise))
    )
    assert gap < 1e-12 if family == "edm" else gap > 1e-3


def test_deis_tab_against_fine_quadrature():
    noise, times = NOISES["vp"], grid(NOISES["vp"], 4, clean=False)
    table = solvers.deis(times, order=3, variant="tab").tabulate(noise)
    t = times.tolist()
    i = 3
    tau = torch.linspace(t[i], t[i + 1], 400_001, dtype=torch.float64)
    rho = noise.ratio(tau)
    for j in range(3):
        nodes = [t[i - k] for k in range(3)]
        basis = torch.ones_like(tau)
        for k in range(3):
            if k != j:
                basis = basis * (tau - nodes[k]) / (nodes[j] - nodes[k])
        integral = ((basis[1:] + basis[:-1]) / 2 * rho.diff()).sum().item()
        a, s, _ = places(noise, [t[i - j]])[0]
        want = noise.alpha(t[i + 1]).item() * integral * (-a / s)
        assert abs(table.B[i + 1, i - j].item() - want) < 1e-8


@pytest.mark.parametrize(
    ("name", "slope"), [("none", 0.0), ("bh1", -1 / 3), ("bh2", 1 / 6), ("+0.5exp", 0.5), ("-0.5exp", -0.5)]
)
def test_scaling_slopes(name, slope):
    z = 1e-5
    assert abs((value(scaling_factor(name, z, z)) - 1) / z - slope) < 1e-4
    assert scaling_factor(0.25, -z, z) == 1 + 0.25 * z


def mixture_error(schedule_of, n, family="vp"):
    """RMS distance to a very fine solution on the exact score of a 1-D mixture."""
    noise = NOISES[family]
    w, mu, sd = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.0, 0.6], [0.25, 0.4]))

    def denoise(x, t):
        a, s = noise.alpha(t), noise.sigma(t)
        var = a**2 * sd**2 + s**2
        logit = w.log() - 0.5 * var.log() - (x[:, None] - a * mu) ** 2 / (2 * var)
        post = mu + a * sd**2 / var * (x[:, None] - a * mu)
        return (torch.softmax(logit, 1) * post).sum(1)

    from fewstep.sampling import sample

    start = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    top, bottom = noise.lam(1.0).item(), noise.lam(1e-3).item()

    def solve(sched, steps):
        t = noise.time_of_lam(torch.linspace(top, bottom, steps + 1, dtype=torch.float64))
        return sample(lambda x, s, _: denoise(x, s), sched(t).tabulate(noise), start=start)

    exact = (
        solve(lambda t: solvers.adams_bashforth(t, order=4), 1500)
        if not hasattr(mixture_error, "exact")
        else mixture_error.exact
    )
    mixture_error.exact = exact
    return (solve(schedule_of, n) - exact).pow(2).mean().sqrt().item()


RATES = {  # specification of USF, section 3.8: decisions -> global order
    "order1": (lambda n: (Step("noise"),) * n, 1.0),
    "order2": (lambda n: (Step("noise", order=2),) * n, 2.0),
    "order2+bh1": (lambda n: (Step("noise", order=2, scaling="bh1"),) * n, 2.0),
    "order3": (lambda n: (Step("noise", order=3),) * n, 3.0),
    "order3 low": (
        lambda n: (
            Step("noise"),
            Step("noise", order=2),
            *(Step("noise", order=3, active=((-2,), (-2, -3))),) * (n - 2),
        ),
        2.0,
    ),
    "order4": (lambda n: (Step("noise", order=4),) * n, 4.0),
    "order1+corr": (lambda n: (Step("noise", corrector="pseudo"),) * n, 2.0),
    "order2+corr": (lambda n: (Step("noise", order=2, corrector="pseudo"),) * n, 3.0),
    "data3": (lambda n: (Step(order=3),) * n, 3.0),
}


@pytest.mark.parametrize("name", RATES)
def test_convergence_rates(name):
    moves, rate = RATES[name]
    sched = lambda t: SolverSchedule(t, moves(len(t) - 1))  # noqa: E731
    coarse, fine = (mixture_error(sched, n) for n in (40, 160))
    measured = math.log(coarse / fine) / math.log(4)
    # The low-order start of a run limits the highest orders; the rate is never below, within a sixth.
    assert rate - 0.35 < measured < rate + 0.9


def test_known_error_sizes():
    """RMS at 20 uniform-lambda steps as measured independently (another set of starts: factor 2)."""
    for name, size in {
        "order1": 8.5e-2,
        "order2": 2.1e-2,
        "order3": 4.8e-3,
        "order3 low": 9.6e-3,
        "order1+corr": 1.9e-2,
    }.items():
        error = mixture_error(lambda t, name=name: SolverSchedule(t, RATES[name][0](len(t) - 1)), 20)
        assert size / 2.5 < error < size * 2.5, (name, error)


@pytest.mark.parametrize("family", ["edm", "vp", "scaled", "flow"])
@pytest.mark.parametrize("moves", [
    lambda n: (Step(order=3, corrector="pseudo"),) * n,
    lambda n: (Step("noise", order=2, scaling="bh1"),) * n,
    lambda n: (Step(order=2, tau=0.7, scaling="bh2"),) * n,
    lambda n: (Step("noise", order=2, variable="time"),) * n,
    lambda n: (Step(order=2, variable="rho", kernel="er_sde"),) * n,
    lambda n: (
        Step(node=Inner(0.4, of=Down(0.8))), Step(start=-2, order=2, active=((-1,),), node=Down(0.8)), Renoise(),
    ) * n,
])  # fmt: skip
def test_gradients_in_the_times(family, moves):
    noise, n = NOISES[family], 4
    base = grid(noise, n, clean=False, seed=1)
    if family == "flow":
        base[0] = 0.97
    weights = torch.randn(3 * n + 3, 3 * n + 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def f(t):
        table = SolverSchedule(t, moves(n)).tabulate(noise)
        k = table.rows
        return (weights[:k, :k] * (table.A + table.B)).sum() + (table.C**2).sum()

    t = base.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(t), t)
    for i in range(1, n):
        d = 1e-6 * base[i].abs().item()
        up, down = base.clone(), base.clone()
        up[i] += d
        down[i] -= d
        fd = ((f(up) - f(down)) / (2 * d)).item()
        assert abs(g[i].item() - fd) <= 2e-5 * (1 + abs(fd)), i


def test_limits_at_infinite_ends_are_those_from_inside():
    """sigma = 0 and alpha = 0 give the numbers that times a hair inside give."""
    noise = ns.Flow()
    for steps in (
        (Step(),) * 4,
        (Step("velocity", order=2, variable="flow"),) * 4,
        (Step(tau=1.0),) * 4,
        (Step("noise", order=2),) * 4,
    ):
        if steps[0].basis == "noise":
            near, at = [0.9, 0.6, 0.3, 0.1, 1e-9], [0.9, 0.6, 0.3, 0.1, 0.0]
        else:
            near, at = [1 - 1e-10, 0.8, 0.5, 0.2, 1e-10], [1.0, 0.8, 0.5, 0.2, 0.0]
        one, two = (SolverSchedule(torch.tensor(t, dtype=torch.float64), steps).tabulate(noise) for t in (near, at))
        assert (one.A - two.A).abs().max() < 1e-6 and (one.B - two.B).abs().max() < 1e-6


def test_lowering_is_written_into_the_table():
    noise = ns.EDM()
    table = solvers.dpmpp_2m(grid(noise, 4), lower_order_final=False).tabulate(noise)
    assert table.notes[-1] == "order 2 lowered to 1: the interval ends at sigma = 0"
    capped = SolverSchedule(grid(noise, 4), (Step(order=3),) * 4).tabulate(noise)
    assert capped.notes[1] == "order 3 used as 1: 1 point known" and "order 3 used as 2" in capped.notes[2]
    assert "order 3 used as 2: 2 points known" in str(capped)
    flow = SolverSchedule(grid(ns.Flow(), 4), (Step(order=2),) * 4).tabulate(ns.Flow())
    assert "infinite end" in flow.notes[2]


def test_pseudo_corrector_changes_the_state_only():
    """Later rows read the corrected state and the output seen at the predicted one; no extra call."""
    noise, times = ns.EDM(), grid(ns.EDM(), 4)
    plain = SolverSchedule(times, (Step(),) * 4).tabulate(noise)
    pseudo = SolverSchedule(times, (Step(corrector="pseudo"),) * 4).tabulate(noise)
    implicit = SolverSchedule(times, (Step(corrector="implicit"),) * 4).tabulate(noise)
    assert pseudo.nfe == plain.nfe == 4 and implicit.nfe == 4 + 3
    assert [i for i, e in enumerate(pseudo.evaluated) if e] == [0, 1, 3, 5]
    assert pseudo.A[3, 2] != 0 and pseudo.A[3, 1] == 0 and pseudo.B[3, 1] != 0


def test_implicit_corrector_of_ddim_with_bh2_is_heun():
    """Up to the second call that Heun makes: Heun = DDIM, corrected with bh2 in the noise basis, called again."""
    noise, times = ns.EDM(), grid(ns.EDM(), 5)
    heun = solvers.heun(times).tabulate(noise)
    usf = SolverSchedule(
        times, (Step("noise", corrector="implicit", corrector_scaling="bh2"),) * 4 + (Step("noise"),)
    ).tabulate(noise)
    assert heun.nfe == usf.nfe == 9 and heun.difference(usf) < 1e-12


def test_stochastic_conventions_agree():
    noise, times = NOISES["vp"], grid(NOISES["vp"], 5)
    assert solvers.ddim(times, eta=1.0).tabulate(noise) == solvers.sde_dpmpp_1(times).tabulate(noise)
    table = solvers.ddim(times, eta=0.6).tabulate(noise)
    for i in range(1, 6):
        (a, s, _), (a2, s2, _) = places(noise, times[i - 1 : i + 1])
        assert abs(table.C[i].sum().item() - 0.6 * s2 / s * math.sqrt(max(0.0, 1 - a**2 / a2**2))) < 1e-12
    ode = solvers.sa_solver(times, tau=0.0, order=3, corrector_order=0).tabulate(noise)
    assert ode.difference(solvers.unip(times, order=3, variant="bh1").tabulate(noise)) < 1e-12


def test_churn_and_restart_rise_in_time():
    noise = ns.EDM()
    table = solvers.heun(grid(noise, 5), churn=2.0).tabulate(noise)
    assert abs(table.times[1] / table.times[0] - 1.4) < 1e-12 and not table.evaluated[0] and table.nfe == 9
    again = solvers.restart(grid(noise, 8), back=((0.3, 2.0, 3, 2),)).tabulate(noise)
    assert (again.times.diff() > 0).sum() == 2 and again.nfe == 15 + 2 * 6
    assert At(1.0) != Churn(1.0)


@pytest.mark.parametrize("afs", ["zero", "unit"])
def test_analytical_first_step(afs):
    noise, times = ns.EDM(), grid(ns.EDM(), 4)
    sched = replace(solvers.dpmpp_2m(times), afs=afs)
    table = sched.tabulate(noise)
    assert table.nfe == 3 and not table.evaluated[0] and table.expected
    d0 = 0.0 if afs == "zero" else 1 - 80 / math.sqrt(1 + 80**2)
    want = (times[1] / times[0]).item() + (1 - times[1] / times[0]).item() * d0
    assert abs(table.A[1, 0].item() - want) < 1e-12


def test_mean_image_is_a_constant_column():
    noise, times = ns.EDM(), grid(ns.EDM(), 3)
    mean = torch.full((1, 2, 2), 0.25)
    table = replace(solvers.ddim(times), afs="mean").tabulate(noise, mean=mean)
    assert table.nfe == 2 and table.K.shape == (4, 1) and not table.expected
    with pytest.raises(ArgumentError, match="mean="):
        replace(solvers.ddim(times), afs="mean").tabulate(noise)


def test_nfe_is_the_number_of_calls_made():
    from fewstep.sampling import sample

    for name, f in SIMPLE.items():
        made = []
        table = f(grid(ns.EDM(), 5)).tabulate(ns.EDM())
        sample(
            lambda x, t, _, made=made: made.append(t) or 0.3 * x + t,
            table,
            start=torch.ones(1, 2),
            noise=lambda m: torch.zeros(1, 2),
        )
        assert len(made) == table.nfe, name


def test_canonical_form_and_digest():
    noise, times = ns.EDM(), grid(ns.EDM(), 4)
    one = SolverSchedule(times, (Step(order=3),) + (Step(order=2),) * 3)
    two = SolverSchedule(
        times,
        (Step("noise", scaling="bh1"),) + (Step(order=2, active=((-2,),)),) * 2 + (Step(order=2, corrector="pseudo"),),
    )
    assert one.canonical() == two.canonical() and one.tabulate(noise).digest == two.tabulate(noise).digest
    assert one.tabulate(noise) == two.tabulate(noise)
    assert one.tabulate(noise).digest != SolverSchedule(times, (Step(order=2),) * 3 + (Step(),)).tabulate(noise).digest


@pytest.mark.parametrize("solver", sorted(SIMPLE))
def test_schedule_record_round_trip(solver):
    sched = SIMPLE[solver](grid(ns.EDM(), 5))
    again = SolverSchedule.from_dict(sched.to_dict())
    assert again == sched and again.steps == sched.steps
    assert again.tabulate(ns.EDM()).digest == sched.tabulate(ns.EDM()).digest


def test_bad_input():
    t = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    with pytest.raises(TimesError, match=r"entry 2 \(2.0\) does not lie below entry 1"):
        SolverSchedule(torch.tensor([3.0, 2.0, 2.0]), (Step(),) * 2)
    with pytest.raises(ArgumentError, match="3 moves advance"):
        SolverSchedule(t, (Step(),) * 3)
    with pytest.raises(ArgumentError, match="order=0"):
        Step(order=0)
    with pytest.raises(ArgumentError, match=r"order=2\.5"):
        Step(order=2.5)
    with pytest.raises(ArgumentError, match="statistics"):
        SolverSchedule(t, (Step("v3"), Step())).tabulate(ns.EDM())
    with pytest.raises(ArgumentError, match="deterministic"):
        Step("v3", tau=1.0)
    with pytest.raises(ArgumentError, match="one of tau, eta"):
        Step(tau=1.0, eta=1.0)
    with pytest.raises(ArgumentError, match="only 1 exist"):
        SolverSchedule(t, (Step(start=-2), Step())).tabulate(ns.EDM())
    with pytest.raises(ArgumentError, match="coincide"):
        SolverSchedule(t, (Step(node=Inner(1.0)), Step(), Step(order=3, active=((-2,), (-2, -3))))).tabulate(ns.EDM())
    with pytest.raises(ArgumentError, match="did you mean"):
        solvers.get("dpmp_2m")
