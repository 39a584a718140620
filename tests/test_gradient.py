"""Learned tables: spaces that hold their starts, gradients against finite differences, descents that never lose."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep import problems, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.metrics import Statistics, frechet, kernel_distance
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPLinear
from fewstep.progress import Event
from fewstep.randomness import CalibrationSeeds, SelectionSeeds, unit_noise
from fewstep.sampling import sample
from fewstep.search.cache import Cache
from fewstep.search.gradient.fit import GIVEN_UP, Fit
from fewstep.search.gradient.grids import Softmax, Sticks
from fewstep.search.gradient.learn import Learner
from fewstep.search.gradient.lion import Lion
from fewstep.search.gradient.losses import NAMES, objective
from fewstep.search.gradient.midpoints import steps_of
from fewstep.search.gradient.numbers import Axis
from fewstep.search.gradient.objectives import (
    Along,
    Batch,
    EndPoints,
    FaithfulLoss,
    FrechetLoss,
    KernelLoss,
    MatchedLoss,
    Objective,
    Run,
    Track,
    l2,
)
from fewstep.search.gradient.pairs import Pairs
from fewstep.search.gradient.recipes import RECIPES, Phase, Recipe, Rule
from fewstep.search.gradient.slope import Slope
from fewstep.search.gradient.soft import Soft
from fewstep.search.gradient.space import SPACES, Space, Start
from fewstep.search.teacher import Teacher, reference_schedule
from fewstep.tableau import Tableau

NOISE = EDM()
STARTS = {"dyweight": "ipndm_3", "dc": "unipc", "epd-1": "dpm_2", "epd": "dpm_2", "gs": "dpmpp_3m"}
"""Solvers that a space begins at, where dpmpp_2m is not one of its own."""


def mixture(noise: NoiseSchedule = NOISE, dtype: torch.dtype = torch.float64) -> Denoiser:
    means = torch.tensor([[-0.5, 0.3], [0.6, -0.2]], dtype=torch.float64)
    return problems.GaussianMixture(means, 0.04, noise=noise, name="two").denoiser(dtype=dtype)


def start(name: str, noise: NoiseSchedule = NOISE, steps: int = 4, **ends: Any) -> Start:
    return Start.of(solvers.get(STARTS.get(name, "dpmpp_2m"))(times.logsnr(noise, steps, **ends)), noise)


def moved(space: Space, seed: int = 1, size: float = 0.03) -> Space:
    """The space at a point that is not its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in space.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * size)
    return space


# ---------------------------------------------------------------------------------------------------------- the spaces
NOISES = {"edm": NOISE, "vp": VPLinear(), "sd": Discrete.scaled_linear()}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize(
    "family, end", [("edm", "zero"), pytest.param("vp", "zero", marks=pytest.mark.slow), ("sd", "min")]
)
def test_a_space_begins_at_its_start(name: str, family: str, end: str) -> None:
    begun = start(name, NOISES[family], end=end)
    made = SPACES[name](begun).tableau()
    if name != "epd":
        assert made.difference(begun.tableau) < 1e-9
        return
    # Two points in one place are one point: the samples agree, and the calls are counted for both.
    assert made.nfe == steps_of(made.nfe, 2, to_zero=end == "zero") * 3 - 2 * (end == "zero")
    net = mixture(NOISES[family])
    ours, theirs = (sample(net, t, seeds=range(3)) for t in (made, begun.tableau))
    assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["times", "joint", "ld3", "gs", "bns", "s4s-alt", "neural-solver"])
def test_flows_begin_at_their_start_too(name: str) -> None:
    solver = "euler" if name == "neural-solver" else "dpmpp_2m"
    grid = torch.tensor([1.0, 0.8, 0.45, 0.2, 0.0], dtype=torch.float64)
    begun = Start.of(solvers.get(solver)(grid), Flow())
    assert SPACES[name](begun).tableau().difference(begun.tableau) < 1e-9


def test_every_multistep_solver_is_a_point_of_the_large_spaces() -> None:
    for solver in ("unipc", "ipndm", "heun", "deis"):
        begun = Start.of(solvers.get(solver)(times.logsnr(NOISE, 4)), NOISE)
        for name in ("weights", "bns"):
            assert SPACES[name](begun).tableau().difference(begun.tableau) < 1e-9, (solver, name)


@pytest.mark.parametrize(
    "name, solver, why",
    [
        ("s4s", "heun", "multistep"),
        ("dyweight", "dpmpp_2m", "cannot hold"),
        ("neural-solver", "ipndm", "cannot hold"),
        ("gs", "unipc", "method 'weights'"),
        ("dc", "ipndm", "unipc or dpmpp"),
        ("weights", "sde_dpmpp_2m", "deterministic"),
    ],
)
def test_a_start_that_a_space_cannot_hold_is_refused(name: str, solver: str, why: str) -> None:
    with pytest.raises(ArgumentError, match=why):
        SPACES[name](Start.of(solvers.get(solver)(times.logsnr(NOISE, 4)), NOISE))


@pytest.mark.parametrize("kind", [Softmax, Sticks])
def test_times_never_cross(kind: type[Softmax]) -> None:
    for noise in (EDM(), Flow(), VPLinear(), Discrete.linear()):
        grid = times.logsnr(noise, 7, end="min")
        module = kind(grid, Axis.of(noise, grid[0].item(), grid[-1].item()))
        assert torch.allclose(module(), grid, rtol=1e-11, atol=0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            with torch.no_grad():
                module.theta.copy_(3 * torch.randn(module.theta.shape, generator=generator, dtype=torch.float64))
            t = module()
            assert bool((t.diff() < 0).all()) and t[0] == grid[0] and t[-1] == grid[-1]


def test_a_free_end_moves_below_the_given_one() -> None:
    grid = times.logsnr(NOISE, 4, end="min")
    axis = Axis.of(NOISE, grid[0].item(), grid[-1].item())
    free = Softmax(grid, axis, free_end=True)
    assert len(free.theta) == 5 and torch.allclose(free(), grid, rtol=1e-11, atol=0)
    with torch.no_grad():
        free.theta[-1] -= 1
    assert 0 < free()[-1] < grid[-1] and free()[0] == grid[0]
    with pytest.raises(ArgumentError, match="clean"):
        Softmax(times.logsnr(NOISE, 4), axis, free_end=True)


def test_dyweights_times_keep_their_order() -> None:
    """Also with weights of negative sum, which would go back."""
    space = SPACES["dyweight"](start("dyweight"))
    with torch.no_grad():
        space.weights.W.mul_(-0.5)
    times_reached = space.tableau().times
    assert bool((times_reached.diff() <= 0).all()) and bool(torch.isfinite(times_reached).all())


def test_dyweight_is_its_authors_step() -> None:
    """The published loop with learned numbers (the NFE 3 row of the paper's CIFAR table), written out in sigma."""
    grid = times.karras(NOISE, 4, end="min")
    schedule = replace(solvers.get("ipndm_3")(grid), afs="unit")
    space = SPACES["dyweight"](Start.of(schedule, NOISE))
    rows = [[1.0777], [-0.7249, 1.7243], [0.3426, -1.3497, 1.8457], [0.3953, -1.3311, 1.9211]]
    with torch.no_grad():
        space.weights.W.copy_(torch.tensor([w for row in rows for w in row], dtype=torch.float64))
        space.weights.scale.copy_(torch.tensor([0.8747, 1.0033, 0.9228], dtype=torch.float64))
    net = mixture()
    x = unit_noise(range(3), (2,), dtype=torch.float64) * 80.0
    reached, slopes, scales = 80.0, [x / math.sqrt(1 + 80.0**2)], [None, 0.8747, 1.0033, 0.9228]
    expected = x
    for i in range(4):
        if i:
            slopes.append((expected - net(expected, max(abs(scales[i] * reached), 0.002))) / reached)
        step = grid[i + 1].item() - reached
        used = slopes[-len(rows[i]) :]
        expected = expected + step * sum(w * d for w, d in zip(rows[i], used, strict=True))
        reached = max(reached + sum(rows[i]) * step, 0.002)
    table = space.tableau()
    assert table.nfe == 3
    assert (sample(net, table, start=x) - expected).abs().max() < 1e-9


def test_gs_is_its_authors_step() -> None:
    """x' = theory + a_1 x - c_1 m_0 + c_2 D_1 - c_3 D_2 + c_4 m_-3 + a_2 x_-1 + ..., in units of unit variance."""
    noise = VPLinear()
    grid = times.logsnr(noise, 4, end="min")
    begun = Start.of(solvers.dpmpp_3m(grid, lower_order_final=False), noise)
    space = SPACES["gs"](begun)
    moved(space.weights, size=0.1)
    a = dict(zip(space.weights.states, space.weights.a.tolist(), strict=True))
    c = dict(zip(space.weights.outputs, space.weights.c.tolist(), strict=True))
    net, lam, theory = mixture(noise), noise.lam(grid), begun.tableau
    x = [unit_noise(range(3), (2,), dtype=torch.float64)]
    m: list[Tensor] = []
    for i in range(1, 5):
        m.append(net(x[-1], grid[i - 1].item()))
        new = sum(theory.A[i, k] * x[k] + theory.B[i, k] * m[k] for k in range(i))
        new = new + sum(a[i, k] * x[k] for k in range(i))
        h = lam[i] - lam[i - 1]
        new = new - c[i, i - 1] * m[-1]
        if i >= 2:
            r0 = (lam[i - 1] - lam[i - 2]) / h
            d0 = (m[-1] - m[-2]) / r0
        if i == 2:
            new = new - c[2, 0] * d0
        if i >= 3:
            r1 = (lam[i - 2] - lam[i - 3]) / h
            d1 = (m[-2] - m[-3]) / r1
            new = new + c[i, i - 2] * (d0 + r0 / (r0 + r1) * (d0 - d1)) - c[i, i - 3] * (d0 - d1) / (r0 + r1)
        if i == 4:
            new = new + c[4, 0] * m[0]
        x.append(new)
    numbers = Space(SPACES["weights"](begun).grid, space.weights, noise).tableau()
    assert (sample(net, numbers, start=x[0]) - x[-1]).abs().max() < 1e-9


def test_offsets_are_an_epsilon_networks() -> None:
    """LD3: the network's epsilon at tau stands for that at t."""
    noise = VPLinear()
    space = SPACES["ld3"](Start.of(solvers.ddim(times.logsnr(noise, 3)), noise))
    with torch.no_grad():
        space.offsets.xi.copy_(torch.tensor([0.01, 0.02], dtype=torch.float64))
    t, net = space.grid(), mixture(noise)
    x = unit_noise(range(3), (2,), dtype=torch.float64)
    gap = (t[:-1].diff().abs().min() / 2 / (noise.t_max - noise.t_min)).item()
    expected = x
    for k in range(3):
        part = 0.0 if k == 0 else min([0.01, 0.02][k - 1], gap)
        tau = min(max(t[k].item() - part * (noise.t_max - noise.t_min), noise.t_min), 1.0)
        eps = (expected - noise.alpha(tau) * net(expected, tau)) / noise.sigma(tau)
        x0 = (expected - noise.sigma(t[k]) * eps) / noise.alpha(t[k])
        expected = noise.alpha(t[k + 1]) * x0 + noise.sigma(t[k + 1]) * eps
    assert (sample(net, space.tableau(), start=x) - expected).abs().max() < 1e-9


def test_dc_solver_interpolates_the_newest_output() -> None:
    noise = VPLinear()
    space = SPACES["dc"](Start.of(solvers.dpmpp_2m(times.logsnr(noise, 4)), noise))
    with torch.no_grad():
        space.weights.rho.copy_(torch.tensor([1.2, 0.8], dtype=torch.float64))
    theory, grid, net = space.weights.theory.schedule.tabulate(noise), space.grid(), mixture(noise)
    x, stored = [unit_noise(range(3), (2,), dtype=torch.float64)], list[Tensor]()
    for i in range(4):
        stored.append(net(x[-1], grid[i].item()))
        if i >= 2:
            rho = [1.2, 0.8][i - 2]
            at = rho * grid[i] + (1 - rho) * grid[i - 1]
            p = [grid[i - k] for k in range(3)]
            weights = [math.prod(((at - p[j]) / (p[k] - p[j])).item() for j in range(3) if j != k) for k in range(3)]
            stored[i] = sum(w * stored[i - k] for k, w in enumerate(weights))
        x.append(sum(theory.A[i + 1, k] * x[k] + theory.B[i + 1, k] * stored[k] for k in range(i + 1)))
    assert (sample(net, space.tableau(), start=x[0]) - x[-1]).abs().max() < 1e-9


def test_epd_is_its_authors_step() -> None:
    space = SPACES["epd"](Start.of(solvers.ddim(times.karras(NOISE, 2, end="min")), NOISE))
    r, w, c, a = ([0.0759, 0.6324], [0.4174, 0.5826], [0.9940, 1.0071], [1.0450, 1.0433])
    back = lambda v: 2 * math.log((v - 0.95) / (1.05 - v))  # noqa: E731 - of 1 - s + 2 s sigmoid(p / 2), s = 0.05
    with torch.no_grad():
        space.weights.r.copy_(torch.tensor([r] * 2, dtype=torch.float64).logit())
        space.weights.w.copy_(torch.tensor([w] * 2, dtype=torch.float64).log())
        space.weights.direction.copy_(torch.tensor([[back(v) for v in c]] * 2, dtype=torch.float64))
        space.weights.time.copy_(torch.tensor([[back(v) for v in a]] * 2, dtype=torch.float64))
    net, grid = mixture(), space.grid().tolist()
    x = unit_noise(range(3), (2,), dtype=torch.float64) * 80.0
    expected = x
    for t, after in itertools.pairwise(grid):
        slope = (expected - net(expected, t)) / t
        total = torch.zeros_like(x)
        for k in range(2):
            mid = after ** r[k] * t ** (1 - r[k])
            inner = expected + (mid - t) * slope
            total = total + w[k] * c[k] * (inner - net(inner, min(a[k] * mid, 80.0))) / mid
        expected = expected + (after - t) * total
    table = space.tableau()
    assert table.nfe == 6 and (sample(net, table, start=x) - expected).abs().max() < 1e-9
    with pytest.raises(ArgumentError, match="near by it can make 4, 7"):
        steps_of(5, 2, to_zero=True)


# ------------------------------------------------------------------------------------------------------- the gradients
def feature(x: Tensor) -> Tensor:
    return torch.cat([x, (x**2).tanh()], 1)


class All:
    """Every objective on one run; `values` has them one by one."""

    name, along, whole = "all", True, False

    def __init__(self, objectives: dict[str, Objective]) -> None:
        self.objectives = objectives
        self.values: dict[str, float] = {}
        self.only = ""

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        losses = {n: o(run, batch) for n, o in self.objectives.items() if self.only in ("", n)}
        self.values = {n: v.item() for n, v in losses.items()}
        return torch.stack([*losses.values()]).sum()


@pytest.fixture(scope="module")
def batch() -> Batch:
    net = mixture()
    teacher = Teacher(net, reference_schedule(NOISE, 12).tabulate(NOISE))
    paths = teacher.trajectory(range(6), outputs=False)
    states = paths.states.transpose(0, 1).contiguous()
    noise = unit_noise(range(6), (2,), dtype=torch.float64) * NOISE.sigma_max
    return Batch(noise, teacher(range(6)), Track(states, paths.alpha, paths.sigma), None)


@pytest.mark.parametrize("name", SPACES)
def test_gradients_are_finite_differences(name: str, batch: Batch) -> None:
    reference = unit_noise(range(9), (2,), dtype=torch.float64)
    known = {
        "features": feature, "reference": Statistics.of(feature(reference)), "reference_features": feature(reference),
    }  # fmt: skip
    every = All({n: objective(n, **known) for n in NAMES if n != "lpips"})  # of pictures: tests/test_perceptual.py
    # Its Huber loss has kinks 0.001 from the teacher: too near for differences of 1e-5.
    del every.objectives["neural-solver"]
    space, slope = moved(SPACES[name](start(name, steps=3))), Slope(mixture(), batch_size=6, checkpoint=False)
    ps = [*space.parameters()]
    generator = torch.Generator().manual_seed(2)
    way = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in ps]

    def at(distance: float) -> dict[str, float]:
        with torch.no_grad():
            for p, d in zip(ps, way, strict=True):
                p.add_(d, alpha=distance)
            slope.value(space, every, batch)
            for p, d in zip(ps, way, strict=True):
                p.sub_(d, alpha=distance)
        return every.values

    e = 1e-5
    far, near = (
        ({n: v - minus[n] for n, v in plus.items()}) for plus, minus in ((at(2 * e), at(-2 * e)), (at(e), at(-e)))
    )
    for n in every.objectives:
        for p in ps:
            p.grad = None
        every.only = n
        slope(space, every, batch)
        analytic = sum((p.grad * d).sum().item() for p, d in zip(ps, way, strict=True) if p.grad is not None)
        differences = (8 * near[n] - far[n]) / (12 * e)
        assert analytic == pytest.approx(differences, rel=1e-5, abs=1e-9), n


def test_distribution_losses_are_the_metrics() -> None:
    x, reference = (unit_noise(range(k, k + 40), (3,), dtype=torch.float64) for k in (0, 100))
    run, nothing = Run(x, {}, x, x), Batch(x, x, None, None)
    stats = Statistics.of(reference)
    assert FrechetLoss(lambda f: f, stats)(run, nothing).item() == pytest.approx(frechet(Statistics.of(x), stats))
    beside = Batch(x, reference, None, None)
    assert MatchedLoss(lambda f: f)(run, beside).item() == pytest.approx(frechet(Statistics.of(x), stats))
    seen = frechet(Statistics.of(x**2), Statistics.of(reference**2))
    wanted = (seen * frechet(Statistics.of(x), stats)) ** 0.5
    assert FaithfulLoss(lambda f: f**2)(run, beside).item() == pytest.approx(wanted)
    wanted = kernel_distance(x, reference).value
    assert KernelLoss(lambda f: f, reference)(run, nothing).item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["l2", "matched", "faithful", "frechet", "kernel"])
def test_a_batch_may_be_cut_and_recomputed(name: str, batch: Batch) -> None:
    """Gradients do not depend on the batch size or on checkpoints, for distances of distributions neither."""
    found: list[list[Tensor]] = []
    lowered = objective(
        name, features=feature, reference=Statistics.of(feature(batch.target)), reference_features=feature(batch.target)
    )
    for size, recompute in ((6, False), (2, False), (4, True)):
        space = moved(SPACES["joint"](start("joint")))
        loss, first = Slope(mixture(), batch_size=size, checkpoint=recompute)(space, lowered, batch)
        found.append([torch.tensor(loss), first, *(p.grad for p in space.parameters() if p.grad is not None)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one.double(), two.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["l2", "matched"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(name: str, batch: Batch) -> None:
    """The gradient is the same; only the calls that were whole count; and one sample must fit."""
    lowered = objective(name, features=feature, reference=None, reference_features=None)
    inner = mixture()

    def small(x: Tensor, t: Any, condition: Any = None) -> Tensor:
        if len(x) > limit:
            raise torch.OutOfMemoryError("pretended")
        return inner(x, t, condition)

    found: list[list[Tensor]] = []
    for limit in (6, 2):
        space = moved(SPACES["joint"](start("joint")))
        slope = Slope(Denoiser(small, noise=NOISE, shape=(2,), dtype=torch.float64), batch_size=6, checkpoint=False)
        value, (loss, first) = slope.value(space, lowered, batch), slope(space, lowered, batch)
        assert value == pytest.approx(loss) and slope.batch_size == (6 if limit == 6 else 2)
        assert slope.backward == 6 * len(space().calls)
        found.append([torch.tensor(loss), first, *(p.grad for p in space.parameters() if p.grad is not None)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), two.double(), rtol=1e-9, atol=1e-12)
    limit = 0
    with pytest.raises(DenoiserError, match="single sample.*checkpoint=True"):
        slope(space, lowered, batch)


def wide(x: Tensor, t: Any, condition: Any = None) -> Tensor:
    """A network of large activations."""
    hidden = torch.tanh(x.repeat(1, 500) * (1 + t / 100))
    return torch.tanh(hidden).reshape(len(x), 500, 2).mean(1)


def test_memory_holds_the_activations_of_one_call(batch: Batch) -> None:
    """Bytes kept for the backward pass, and the most of them at a time."""
    net = Denoiser(wide, noise=NOISE, shape=(2,), dtype=torch.float64)
    peak: dict[tuple[int, bool], int] = {}
    for steps in (4, 8):
        for recompute in (True, False):
            kept: dict[int, int] = {}
            most = 0

            class Held:
                def __init__(self, value: Tensor, kept: dict[int, int] = kept) -> None:
                    nonlocal most
                    self.value, self.kept = value, kept
                    kept[id(self)] = value.nbytes
                    most = max(most, sum(kept.values()))

                def __del__(self) -> None:
                    self.kept.pop(id(self), None)

            space = SPACES["weights"](start("weights", steps=steps))
            slope = Slope(net, batch_size=6, checkpoint=recompute)
            with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.value):
                slope(space, EndPoints(l2, "l2"), batch)
            peak[steps, recompute] = most
    one = 6 * 1000 * 8  # bytes of one hidden layer; the hook sees what autograd saves outside the checkpoint
    assert peak[8, False] > peak[4, False] + 4 * one
    assert peak[8, True] < peak[4, True] + one and peak[8, True] < peak[8, False] / 4


def test_bfloat16_runs_the_network_only(batch: Batch) -> None:
    seen: list[torch.dtype] = []

    def net(x: Tensor, t: Any, condition: Any = None) -> Tensor:
        out = x @ torch.eye(2, dtype=x.dtype)
        seen.append(out.dtype)
        return out.to(x.dtype) * 0.5

    half = Denoiser(net, noise=NOISE, shape=(2,), dtype=torch.float32)
    part = Batch(batch.start.float(), batch.target.float(), None, None)
    space = SPACES["times"](start("times"))
    loss, _ = Slope(half, batch_size=6, autocast=torch.bfloat16)(space, EndPoints(l2, "l2"), part)
    assert set(seen) == {torch.bfloat16} and math.isfinite(loss)
    assert all(p.grad is not None and p.grad.dtype == torch.float64 for p in space.parameters())


# --------------------------------------------------------------------------------------------------------- the descent
SMALL = Recipe("small", "times", "l2", {"times": Rule("adam", 3e-2)}, 40, batch=8)


def learner(net: Denoiser | None = None, **changes: Any) -> Learner:
    net = net or mixture(dtype=torch.float32)
    teacher = Teacher(net, reference_schedule(NOISE, 12).tabulate(NOISE))
    selection = SelectionSeeds(24)
    wanted = teacher(selection)

    def judge(table: Tableau) -> float:
        return l2(sample(net, table, seeds=selection), wanted).item()

    return Learner(teacher, CalibrationSeeds(32), SelectionSeeds(16, 100), judge, **changes)


QUICK = ("ld3", "neural-solver", "dc")
"""Descents of every kind: soft and in phases, Lion along the path, one number at a time."""


@pytest.mark.parametrize("method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in RECIPES])
def test_every_method_learns(method: str) -> None:
    """No worse by the judge, better on the pairs; what a method needs it says."""
    begun = start(method, steps=3)
    recipe = RECIPES[method]
    lowered = objective(recipe.loss, features=feature)
    found = learner()(begun, replace(recipe, batch=min(recipe.batch, 16)), lowered, iterations=12)
    assert found.score <= found.start_score
    assert found.losses["found"]["from"] < found.losses["start"]["from"], (found.losses, found.history)
    assert found.tableau.nfe == found.start.nfe and found.backward >= 12 * found.tableau.nfe
    assert math.isfinite(found.defects["mean"]) and found.record()["method"] == method


def test_a_kill_changes_nothing(tmp_path: Path) -> None:
    recipe = replace(RECIPES["s4s-alt"], ema=0.9, batch=6)  # soft: the noises are part of the state
    lowered = objective("l2")
    whole = learner()(start("s4s-alt"), recipe, lowered, iterations=12)

    class Killed(Exception):
        pass

    def kill(event: Event) -> None:
        if event.stage == "s4s-alt" and event.done >= 5:
            raise Killed

    with pytest.raises(Killed):
        learner(cache=Cache(tmp_path), judged_by="l2", progress=kill)(start("s4s-alt"), recipe, lowered, iterations=12)
    on = learner(cache=Cache(tmp_path), judged_by="l2")(start("s4s-alt"), recipe, lowered, iterations=12)
    assert on.tableau.difference(whole.tableau) < 1e-12
    assert [h[2] for h in on.history] == [h[2] for h in whole.history] and on.backward < whole.backward
    again = learner(cache=Cache(tmp_path), judged_by="l2")(start("s4s-alt"), recipe, lowered, iterations=12)
    assert again.tableau.difference(whole.tableau) < 1e-12 and again.backward == 0


def test_a_state_is_taken_up_only_by_what_it_belongs_to(tmp_path: Path) -> None:
    """Another judge, recipe, precision, loss or network begins anew; a judge without a name keeps nothing."""

    def backward(recipe: Recipe = SMALL, lowered: Objective = objective("l2"), **changes: Any) -> int:  # noqa: B008
        return learner(cache=Cache(tmp_path), **changes)(start("times"), recipe, lowered, iterations=4).backward

    assert backward() > 0 and not list(tmp_path.iterdir())
    assert backward(judged_by="one") > 0 and backward(judged_by="one") == 0
    assert backward(judged_by="two") > 0
    assert backward(replace(SMALL, rules={"times": Rule("adam", 2e-2)}), judged_by="one") > 0
    assert backward(judged_by="one", autocast=torch.bfloat16) > 0
    assert backward(judged_by="one", net=mixture(dtype=torch.float64)) > 0
    means = [Statistics.of(feature(unit_noise(range(lo, lo + 9), (2,), dtype=torch.float64))) for lo in (0, 9)]
    losses = [objective("frechet", features=feature, reference=mean) for mean in means]
    assert all(backward(lowered=lowered, judged_by="one") > 0 for lowered in losses)
    assert backward(judged_by="one") == 0


def fit(lowered: Objective, space: Space, **changes: Any) -> Fit:
    school = learner()
    pairs = Pairs(school.teacher, school.calibration, path=False, progress=school.progress, sigma=80.0, alpha=1.0)
    slope = Slope(school.teacher.denoiser, batch_size=64, checkpoint=False)
    return Fit(space, lowered, pairs, changes.pop("recipe", SMALL), slope, school.judge, **changes)


class Sometimes:
    """A loss whose gradient is not a number at some updates."""

    name, along, whole = "sometimes", False, False

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.count = bad, 0

    def __call__(self, run: Run, batch: Batch) -> Tensor:
        self.count += 1
        bad = math.nan if self.count in self.bad else 1.0
        return l2(run.sample, batch.target) * bad


def test_a_gradient_that_is_not_finite_is_undone() -> None:
    run = fit(Sometimes({4, 5}), SPACES["times"](start("times")), iterations=12, recipe=replace(SMALL, patience=99))
    table = run.run()
    assert len(run.now.notes) == 2 and "Update 4 was not finite" in run.now.notes[0] and run.now.slower == 0.25
    assert all(bool(torch.isfinite(p).all()) for p in run.space.parameters()) and table.nfe == 4
    hopeless = fit(Sometimes(set(range(100))), SPACES["times"](start("times")), iterations=20)
    assert hopeless.run().difference(start("times").tableau) < 1e-9
    assert hopeless.now.iteration == GIVEN_UP and "descent ended" in hopeless.now.notes[-1]


def test_an_undone_step_leaves_the_point_before_it() -> None:
    seen: list[Tensor] = []

    class Watched(Sometimes):
        def __call__(self, run: Run, batch: Batch) -> Tensor:
            seen.append(space.grid.theta.detach().clone())
            return super().__call__(run, batch)

    space = SPACES["times"](start("times"))
    fit(Watched({4}), space, iterations=5, recipe=replace(SMALL, patience=99)).run()
    assert torch.equal(seen[4], seen[2]) and not torch.equal(seen[3], seen[2])


def test_an_undone_step_leaves_the_average_before_it_too() -> None:
    recipe = replace(SMALL, ema=0.9, patience=99)
    run = fit(Sometimes({3}), SPACES["times"](start("times")), iterations=5, recipe=recipe)
    run._update()
    first = {n: v.clone() for n, v in run.average.items()}
    run._update()
    assert not all(torch.equal(run.average[n], first[n]) for n in first)
    run._update()  # the third loss is no number: the second step is what led there
    assert all(torch.equal(run.average[n], first[n]) for n in first)


def test_a_network_that_fails_is_no_matter_of_rates() -> None:
    def broken(x: Tensor, t: Any, condition: Any = None) -> Tensor:
        return x * math.nan

    school = learner()
    net = Denoiser(broken, noise=NOISE, shape=(2,))
    school.teacher.denoiser = net
    with pytest.raises(DenoiserError):
        school(start("times"), SMALL, objective("l2"), iterations=5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["l2", "log-l2"])
def test_overfitting_is_said(loss: str) -> None:
    """Four pairs and many numbers; also where the loss is a logarithm."""
    school = learner()
    school.calibration = CalibrationSeeds(4)
    recipe = replace(RECIPES["weights"], rules={"weights": Rule("adam", 0.05)}, ema=0.0, batch=4)
    scores = iter(range(100, 0, -1))
    school.judge = lambda _table: float(next(scores))
    found = school(start("weights"), recipe, objective(loss), iterations=60)
    assert any(note.startswith("Overfitted") and "4 pairs" in note for note in found.notes), found.losses


def test_a_teacher_that_the_judge_likes_less_is_said() -> None:
    school = learner()
    ends = school.teacher(school.held)
    school.look_at = lambda images, seeds: float(torch.equal(images, ends))
    found = school(start("times"), SMALL, objective("l2"), iterations=4)
    assert any("The judge scores the teacher at 1" in note for note in found.notes)


def test_without_a_better_point_the_start_comes_back() -> None:
    school = learner()
    scores = iter(range(1000))
    school.judge = lambda _table: float(next(scores))
    found = school(start("joint"), replace(RECIPES["joint"], batch=4), objective("l2"), iterations=12)
    assert found.tableau.difference(start("joint").tableau) < 1e-9 and "the start is returned" in found.notes[-1]


def test_the_soft_teacher_stays_in_its_ball() -> None:
    school = learner()
    pairs = Pairs(school.teacher, school.calibration, path=False, progress=school.progress, sigma=80.0, alpha=1.0)
    soft, slope = Soft(pairs, 4), torch.ones(3, 2)
    soft([0, 1, 2], slope, 1.0, lambda: 0.5)
    sizes = pairs.moved.flatten(1).norm(dim=1)
    assert torch.allclose(sizes[:3], torch.full((3,), 0.001 * 2 / 16)) and not bool(sizes[3:].any())
    kept = pairs.moved.clone()
    soft([0, 1, 2], -slope, 1.0, lambda: 1.5)
    assert torch.equal(pairs.moved, kept)
    moved_start = (
        pairs.batch([0]).start
        - Pairs(school.teacher, school.calibration, path=False, progress=school.progress, sigma=80.0, alpha=1.0)
        .batch([0])
        .start
    )
    torch.testing.assert_close(moved_start, 80.0 * kept[:1], rtol=1e-4, atol=1e-6)


def test_phases() -> None:
    """S4S-Alt moves weights and times in turns; DC-Solver one ratio at a time, each by the state that it leads to."""
    alt = fit(
        objective("l2"),
        SPACES["s4s-alt"](start("s4s-alt")),
        recipe=replace(RECIPES["s4s-alt"], soft=False),
        iterations=8,
    )
    changed: list[tuple[bool, bool]] = []
    for _ in range(4):
        before = [p.detach().clone() for p in (alt.space.weights.c, alt.space.grid.theta)]
        alt._update()
        alt.now.iteration += 1
        after = (alt.space.weights.c, alt.space.grid.theta)
        changed.append(tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
    assert changed == [(True, False), (False, True)] * 2
    phases = RECIPES["dc"].phases(SPACES["dc"](start("dc", steps=5)))
    assert [p.only for p in phases] == [0, 1, 2]
    assert all(isinstance(p.objective, Along) for p in phases[:-1]) and phases[-1] == Phase(1 / 3, only=2)


def test_lion() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    lion = Lion([p], lr=0.1)
    p.grad = torch.tensor([3.0, -0.01])
    lion.step()
    assert torch.allclose(p.detach(), torch.tensor([0.9, -1.9]))
    p.grad = torch.tensor([-0.1, 0.0])  # the momentum, 0.03, still points the other way: 0.9 * 0.03 - 0.01 > 0
    lion.step()
    assert torch.allclose(p.detach(), torch.tensor([0.8, -1.8]))
