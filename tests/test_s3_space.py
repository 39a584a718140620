"""The strategy space of S³: operators keep schedules valid, calls are counted as made, encodings lose nothing."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from fewstep import noise as ns
from fewstep import solvers, times
from fewstep.ems import EMS, log_snr_grid
from fewstep.errors import ArgumentError
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search.s3 import PRESETS, Rates, Space
from fewstep.search.s3.crossover import COMPONENTS, crossover, draw
from fewstep.search.s3.genes import AFS, Genes
from fewstep.search.s3.initial import initial
from fewstep.search.s3.mutation import mutate
from fewstep.search.s3.rates import default_rates, released
from fewstep.search.s3.simulate import simulate

NFES = (3, 4, 5, 6, 8, 10)
NOISES = {"vp": ns.VPLinear(), "edm": ns.EDM(), "flow": ns.Flow(shift=3.0), "discrete": ns.Discrete.scaled_linear()}


def space_of(family, **options):
    return Space(NOISES[family], NFES, **{"clean": True, "starts": 3, "implicit": True, **options})


def population(family, count, generations, seed=0, **options):
    """Random schedules after some generations of crossover and mutation: space, rates, all generations."""
    space, rng = space_of(family, **options), np.random.default_rng(seed)
    rates = replace(default_rates(space.noise), start=0.2)
    g = draw(space, rates, rng.choice(NFES, count), rng)
    out = []
    for _ in range(generations):
        g = mutate(space, rates, crossover(space, rates, g, g.take(rng.permutation(count)), rng), rng)
        out.append(g)
    return space, rates, out


def bent(x, alpha, sigma):
    """A denoiser that depends on the state and on the noise level."""
    return np.tanh(x / np.sqrt(alpha**2 + sigma**2) + 0.3 * sigma / (1 + sigma))


class Counting:
    """The same denoiser as a network that counts its calls."""

    def __init__(self, noise):
        self.noise, self.calls = noise, 0

    def __call__(self, x, t, condition):
        self.calls += 1
        return torch.from_numpy(bent(x.numpy(), float(self.noise.alpha(t)), float(self.noise.sigma(t))))


@pytest.mark.parametrize("family", NOISES)
def test_ten_thousand_children_are_valid_finite_and_make_the_calls_they_count(family):
    space, _, generations = population(family, 250, 10)  # four families: 10,000 children
    z = np.random.default_rng(1).standard_normal(3)
    runs = 0
    for g in generations:
        assert space.valid(g).all()
        assert set(g.nfe) <= set(NFES)
        for f in fields(Genes):  # canonical once is canonical for good
            assert np.array_equal(getattr(space.canonical(g), f.name), getattr(g, f.name), equal_nan=True)
        samples = simulate(space.noise, g, bent, z)
        assert np.isfinite(samples).all()
        for row in range(0, len(g), 60):
            table = space.decode(g, row).tabulate(space.noise)
            network = Counting(space.noise)
            real = sample(network, table, start=torch.from_numpy(z)[:, None] * table.sigma[0])[:, 0].numpy()
            assert network.calls == table.nfe == g.nfe[row]
            assert np.abs(real - samples[row]).max() < 1e-9 * max(1, np.abs(real).max())
            runs += 1
    assert runs == 50


@pytest.mark.parametrize("family", ["vp", "flow"])
def test_schedules_survive_json_and_equal_names_are_equal_tables(family):
    space, _, generations = population(family, 40, 3, seed=3)
    g = generations[-1]
    tables = {}
    for row, name in enumerate(g.names()):
        schedule = space.decode(g, row)
        again = SolverSchedule.from_dict(schedule.to_dict())
        assert again == schedule
        assert space.encode(again).names()[0] == name
        tables[name] = schedule.tabulate(space.noise)
    digests = {t.digest for t in tables.values()}
    assert len(digests) == len(tables)
    some = list(tables.values())[:14]
    assert all(one.difference(two) > 1e-9 for i, one in enumerate(some) for two in some[:i])


def test_decisions_that_change_nothing_are_lowered():
    space, _, generations = population("flow", 60, 3, seed=4)
    g = generations[-1]
    noisy = g.copy()
    idle = (g.order < 3) & g.live
    noisy.low[idle] = 2
    noisy.r[(g.order == 1) & g.live] = 0.3
    noisy.corrector[g.last] = 1
    noisy.corrector[:, 0] = 1  # from pure noise nothing can be corrected
    noisy.order[:, 0] = 4
    lowered = space.canonical(noisy)
    assert lowered.names() == g.names()
    for row in range(0, 60, 6):
        one, two = (space.decode(x, row).tabulate(space.noise) for x in (g, lowered))
        assert one == two and one.digest == two.digest


def test_bases_differ_at_first_order_after_a_pseudo_corrector():
    """The noise was seen at the predicted state: a first-order step from the corrected one is not the same twice."""
    noise = NOISES["vp"]
    grid = times.logsnr(noise, 3, end="min")
    one = solvers.unipc(grid, order=2)
    tables = [
        replace(one, steps=(one.steps[0], replace(one.steps[2], basis=b, corrector=None), one.steps[2])).tabulate(noise)
        for b in ("data", "noise")
    ]
    assert tables[0] != tables[1] and tables[0].digest != tables[1].digest


def test_validity_rules_name_what_is_wrong():
    space, _, generations = population("vp", 30, 2, seed=5)
    g = generations[-1].take(generations[-1].steps >= 3)
    broken = {
        "order beyond what is known": lambda x: x.order.__setitem__((slice(None), 0), 2),
        "corrector at the end": lambda x: x.corrector.__setitem__(x.last, 1),
        "times too near": lambda x: x.times.__setitem__((slice(None), 2), x.times[:, 1] - 1e-7),
        "times not falling": lambda x: x.times.__setitem__((slice(None), 2), x.times[:, 1] + 0.01),
        "end outside its range": lambda x: x.times.__setitem__((np.arange(len(x)), x.steps), 0.1),
        "another start": lambda x: x.times.__setitem__((slice(None), 0), 0.99),
    }
    assert space.valid(g).all()
    for name, wreck in broken.items():
        bad = g.copy()
        wreck(bad)
        assert not space.valid(bad).any(), name


def test_operators_leave_parents_alone_and_inherit_whole_components():
    space, rates, generations = population("vp", 80, 1, seed=6)
    g = generations[0].take(generations[0].steps == 5)
    before = g.names()
    rng = np.random.default_rng(0)
    other = g.take(rng.permutation(len(g)))
    child = crossover(space, replace(rates, deep=0.0), g, other, rng)
    mutate(space, rates, g, rng)
    assert g.names() == before
    times_from = [np.array_equal(child.times[k], g.times[k], equal_nan=True) for k in range(len(g))]
    assert any(times_from) and not all(times_from)
    for k in range(len(g)):
        known = [set(map(tuple, x.times[k : k + 1].round(12).tolist())) for x in (g, other)]
        assert tuple(child.times[k].round(12)) in known[0] | known[1] or np.isnan(child.times[k]).any()
    assert len(COMPONENTS) == 7


def test_insertion_and_deletion_reach_other_numbers_of_calls_only_if_searched():
    rng = np.random.default_rng(0)
    wide, narrow = Space(ns.VPLinear(), (5, 6)), Space(ns.VPLinear(), (5,))
    for space, wanted in ((wide, {5, 6}), (narrow, {5})):
        g = mutate(space, Rates(), draw(space, Rates(), np.full(300, 5), rng), rng)
        assert set(g.nfe) == wanted
        assert set(g.steps) >= {5, 6}  # with and without an analytical first step


def test_named_solvers_are_schedules_of_the_space():
    space = Space(ns.VPLinear(), (5,))
    grid = times.logsnr(space.noise, 5, end=space.last_times[0])
    for name in ("ddim", "dpmpp_2m", "unip_3_bh2_noise", "unip_4_bh1_data", "dpm_solver_1"):
        schedule = solvers.get(name)(grid)
        found = space.encode(schedule)
        assert found is not None
        assert space.decode(found).tabulate(space.noise) == schedule.tabulate(space.noise)
    for name in ("ipndm_4", "deis_tab_3", "heun", "sa_solver", "dpmpp_3m"):
        assert space.encode(solvers.get(name)(grid)) is None


def test_released_configurations_and_bad_arguments():
    assert set(PRESETS) == {"cifar10_vp", "cifar10_edm", "imagenet256", "latent"}
    edm, imagenet = released("cifar10_edm"), released("imagenet256")
    assert (edm.cross, edm.time_spread, edm.relative, imagenet.rank) == (0.3, 0.08, True, 30)
    assert default_rates(ns.EDM()) is edm and default_rates(ns.Flow()) is released("cifar10_vp")
    with pytest.raises(ArgumentError, match="nfes"):
        Space(ns.EDM(), ())
    with pytest.raises(ArgumentError, match="bases"):
        Space(ns.EDM(), (5,), bases=("v7",))
    with pytest.raises(ArgumentError, match="ends"):
        Space(ns.EDM(), (5,), ends=(0.1, 0.01))
    with pytest.raises(ArgumentError, match="released"):
        released("cifar100")
    with pytest.raises(ArgumentError, match="chance"):
        Rates(cross=2.0)


def test_v3_tau_and_mean_are_decisions_when_asked_for():
    space = Space(
        ns.EDM(), (4, 6), bases=("data", "noise", "v3"), afs=(None, "mean", "unit"), taus=(0.0, 0.5), orders=3
    )
    rates, rng = replace(default_rates(space.noise), tau=0.3), np.random.default_rng(0)
    g = draw(space, rates, rng.choice((4, 6), 200), rng)
    g = mutate(space, rates, g, rng)
    assert space.valid(g).all() and set(g.basis[g.live]) == {0, 1, 2} and (g.tau > 0).any() and g.order.max() == 3
    assert {AFS[a] for a in g.afs} == {None, "mean", "unit"}
    plain = Space(ns.EDM(), (4, 6), taus=(0.0, 0.5))
    stochastic = mutate(plain, rates, draw(plain, rates, np.full(20, 4), rng), rng)
    for row in np.flatnonzero((stochastic.tau > 0).any(1))[:5]:
        schedule = plain.decode(stochastic, row)
        assert schedule.tabulate(plain.noise).nfe == stochastic.nfe[row]
        assert plain.encode(schedule).names()[0] == stochastic.names()[row]


class Noisy:
    """Statistics that depend on the log-SNR, for every element of a sample of one number."""

    def __new__(cls, noise, **ends):
        lams = log_snr_grid(noise, 40, **ends)
        return EMS(lams, 0.5 + 0.3 * lams.sin(), 0.2 * lams.cos() - 0.4, 0.1 * lams.sin())


@pytest.mark.parametrize("family", NOISES)
@pytest.mark.parametrize("count", [50, pytest.param(2500, marks=pytest.mark.slow)])
def test_children_with_the_third_basis_are_valid_and_make_the_calls_they_count(family, count):
    """200 children by default, 10,000 with -m slow; all of them as tables, with statistics of a part of the range."""
    noise = NOISES[family]
    first, last = (float(noise.time_of_ratio(r * noise.ratio(t))) for r, t in ((0.2, noise.t_max), (3.0, noise.t_min)))
    if noise.alpha(noise.t_max) == 0:
        first = 0.9 * noise.t_max
    ems = Noisy(noise, start=first, end=last)
    space, _, generations = population(
        family, count // 5, 5, seed=8, bases=("data", "noise", "v3"), reach=ems.reach, taus=(0.0, 0.5)
    )
    start = torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    third = 0
    for g in generations:
        assert space.valid(g).all()
        for f in fields(Genes):
            assert np.array_equal(getattr(space.canonical(g), f.name), getattr(g, f.name), equal_nan=True)
        third += int((g.basis[g.live] == 2).sum())
        for row in range(len(g)):
            schedule = space.decode(g, row)
            table = schedule.tabulate(noise, statistics=ems)
            network = Counting(noise)
            assert torch.isfinite(sample(network, table, start=start * table.sigma[0])).all()
            assert network.calls == table.nfe == g.nfe[row]
            assert space.encode(schedule).names() == g.take([row]).names()
    assert third > count / 4


def test_published_samplers_with_the_third_basis_come_first_where_statistics_reach():
    noise = ns.EDM()
    ems = Noisy(noise)
    space = Space(noise, (5,), bases=("data", "noise", "v3"), reach=ems.reach, clean=True)
    found = initial(space, 12)
    assert sum(p.origin.startswith("dpm_solver_v3") for p in found) == 12
    assert {p.schedule.tabulate(noise, statistics=ems).nfe for p in found} == {5}
    short = Noisy(noise, start=40.0, end=0.01)
    rest = initial(replace(space, reach=short.reach), 12)
    assert not any(p.origin.startswith("dpm_solver_v3") for p in rest)
