"""`from_sampler` on samplers written here: functions, schedulers, and our own loop; and what is refused."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep import noise as ns
from fewstep import solvers
from fewstep.errors import ArgumentError, NotATable
from fewstep.rules import Down, Renoise, SolverSchedule, Step
from fewstep.sampling import sample, trajectory
from fewstep.trace import from_sampler

SIGMAS = torch.tensor([14.6, 6.5, 2.6, 0.9, 0.26, 0.0])
VP = ns.VPLinear()


def times(noise, n=6):
    lam = torch.linspace(noise.lam(noise.t_max).item(), noise.lam(noise.t_min).item(), n + 1, dtype=torch.float64)
    return noise.time_of_lam(lam)


# ----------------------------------------------------------------------------------------------------- functions


def sample_ancestral(model, x, sigmas, extra_args=None, disable=None, noise_sampler=None):
    """Euler ancestral in k-diffusion's convention."""
    noise_sampler = noise_sampler or (lambda a, b: torch.randn_like(x))
    for a, b in pairwise(sigmas):
        x0 = model(x, a * x.new_ones([x.shape[0]]))
        up = min(b, (b**2 * (a**2 - b**2) / a**2) ** 0.5)
        down = (b**2 - up**2) ** 0.5
        x = x + (x - x0) / a * (down - a)
        if b > 0:
            x = x + noise_sampler(a, b) * up
    return x


def test_a_k_diffusion_function_is_our_table():
    traced = from_sampler(sample_ancestral, SIGMAS)
    ours = solvers.euler_ancestral(SIGMAS.double()).tabulate(traced.noise)
    assert traced.difference(ours) < 1e-12
    assert (
        traced.nfe == 5
        and traced.name == "sample_ancestral"
        and traced.model_times[:-1].tolist() == SIGMAS[:-1].tolist()
    )
    assert traced.meta["trace"]["form"] == "unrolled only" and traced.meta["trace"]["defect"] < 1e-14
    assert traced.verify().expected == ()
    assert from_sampler(sample_ancestral, sigmas=SIGMAS).isclose(traced)


def test_the_network_of_another_schedule_gets_its_states_and_times():
    """Told a VP noise schedule, the table is in its coordinates: the same sampler, rescaled."""
    traced = from_sampler(sample_ancestral, SIGMAS, noise=VP)
    ours = solvers.euler_ancestral(torch.cat([VP.time_of_ratio(SIGMAS[:-1].double()), torch.zeros(1)])).tabulate(VP)
    assert traced.difference(ours) < 1e-12


def ddim_epsilon(model, x, ts, eta=0.0):
    for s, t in pairwise(ts):
        eps = model(x, s)
        a, b = VP.alpha(s), VP.alpha(t)
        up = eta * (VP.sigma(t) / VP.sigma(s)) * (1 - (a / b) ** 2).sqrt()
        x = b * (x - VP.sigma(s) * eps) / a + (VP.sigma(t) ** 2 - up**2).clamp_min(0).sqrt() * eps
        x = x + up * torch.empty_like(x).normal_() if eta else x
    return x


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_any_function_with_epsilon_prediction(eta):
    ts = times(VP)
    traced = from_sampler(ddim_epsilon, ts, noise=VP, prediction="epsilon", eta=eta)
    assert traced.difference(solvers.ddim(ts, eta=eta).tabulate(VP)) < 1e-10


def test_noise_before_the_first_call_makes_the_start_a_row_of_its_own():
    def churned(model, x, sigmas):
        for a, b in pairwise(sigmas):
            high = a * 1.2
            x = x + torch.randn_like(x) * (high**2 - a**2) ** 0.5
            x = x + (x - model(x, high)) / high * (b - high)
        return x

    traced = from_sampler(churned, SIGMAS)
    moves = fs.solvers.euler(SIGMAS.double(), churn=1.0).steps
    ours = SolverSchedule(SIGMAS.double(), moves).tabulate(ns.EDM(0.01, 100.0))
    assert traced.rows == 7 and traced.evaluated == (False, *(True,) * 5, False)
    assert traced.unrolled().times[:2].tolist() == pytest.approx([14.6, 14.6 * 1.2], rel=1e-6)
    assert torch.allclose(traced.unrolled().A, ours.unrolled().A, atol=1e-12)
    assert torch.allclose(traced.unrolled().C, ours.unrolled().C, atol=1e-6)


def test_overlapping_brownian_increments_become_disjoint_columns():
    def two_draws(model, x, sigmas, noise_sampler=None):
        first = noise_sampler(sigmas[0], sigmas[1])  # over [1, 3]
        whole = noise_sampler(sigmas[0], sigmas[2])  # over [0.5, 3]: contains the first
        x = model(x + first, sigmas[0]) + whole
        return x

    traced = from_sampler(two_draws, torch.tensor([3.0, 1.0, 0.5]))
    c = traced.C[[1, 2]] if traced.rows == 3 else traced.C
    assert c.shape[1] == 2
    gram = c @ c.T
    assert gram.diagonal().tolist() == pytest.approx([1.0, 1.0])
    assert gram[0, 1] == pytest.approx(math.sqrt(2.0 / 2.5))


def test_a_constant_is_a_column_of_its_own():
    def shifted(model, x, sigmas):
        return model(x + 0.25, sigmas[0]) + 0.5

    traced = from_sampler(shifted, torch.tensor([2.0, 0.1]))
    assert traced.K[-2:, 0].tolist() == [0.25, 0.5] and len(traced.constants) == 1
    assert sample(lambda x, t, c: 0 * x + 1, traced, start=torch.zeros(2, 3)).tolist() == [[1.5] * 3] * 2


@pytest.mark.parametrize("name", sorted(set(solvers.NAMES) - {"restart", "heun_churn"}))
def test_our_own_loop_traces_back_to_its_table(name):
    noise = ns.EDM(0.01, 20.0)
    table = solvers.NAMES[name](torch.tensor([20.0, 9.0, 4.0, 1.5, 0.6, 0.2, 0.05, 0.0])).tabulate(noise)

    def run(model, x):
        drawn: dict[int, torch.Tensor] = {}
        draw = lambda m: drawn.setdefault(m, torch.randn_like(x))  # noqa: E731 - corrected rows share their draw
        *_, last = trajectory(lambda x, t, c: model(x, t), table, x, noise=draw)
        return last.state

    traced = from_sampler(run, noise=noise)
    assert traced.difference(table) < 1e-12


def test_sampling_with_a_traced_table_repeats_the_sampler():
    problem = fs.problems.Gaussian(0.3, torch.linspace(0.1, 2.0, 12).double(), shape=(12,), noise=ns.EDM(0.01, 20.0))
    net = problem.denoiser(dtype=torch.float64)
    start = 14.6 * torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = torch.randn(5, 5, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    queue = iter(drawn)
    wanted = sample_ancestral(
        lambda x, s: net(x, s.reshape(-1)[0], None), start, SIGMAS.double(), noise_sampler=lambda *_: next(queue)
    )
    got = sample(net, from_sampler(sample_ancestral, SIGMAS, noise=net.noise), start=start, noise=lambda m: drawn[m])
    assert (got - wanted).abs().max() < 1e-10


# ---------------------------------------------------------------------------------------------------- schedulers


class Multistep:
    """A scheduler in diffusers' convention that runs DPM-Solver++(2M) on a variance-preserving grid."""

    def __init__(self):
        self.config = {"prediction_type": "epsilon", "num_train_timesteps": 1000}
        self.alphas_cumprod = torch.tensor(ns.Discrete.scaled_linear().alphas_cumprod, dtype=torch.float64)
        self.order, self.noise = 1, ns.Discrete.scaled_linear()

    def set_timesteps(self, num_inference_steps=None):
        self.timesteps = torch.linspace(999, 0, num_inference_steps + 1)[:-1].round().long()
        self.before = None

    def scale_model_input(self, sample, timestep=None):
        return sample

    def step(self, model_output, timestep, sample, return_dict=True, generator=None):
        grid = [*self.timesteps.tolist(), -1]
        i = grid.index(int(timestep))
        s, t = grid[i], grid[i + 1]
        n = self.noise
        x0 = (sample - n.sigma(s) * model_output) / n.alpha(s)
        x = (n.sigma(t) / n.sigma(s)) * sample
        gain = n.alpha(t) - n.alpha(s) * n.sigma(t) / n.sigma(s)
        if self.before is None or t < 0:
            x = x + gain * x0
        else:
            r = (n.lam(s) - n.lam(grid[i - 1])) / (n.lam(t) - n.lam(s))
            x = x + gain * (x0 + (x0 - self.before) / (2 * r))
        self.before = x0
        return (x,) if not return_dict else SimpleNamespace(prev_sample=x)


def test_a_scheduler_gives_its_stepwise_table():
    scheduler = Multistep()
    traced = from_sampler(scheduler, 8)
    grid = torch.cat([torch.linspace(999, 0, 9)[:-1].round(), torch.tensor([-1.0])]).double()
    ours = solvers.dpmpp_2m(grid).tabulate(ns.Discrete.scaled_linear())
    assert traced.meta["trace"]["form"] == "stepwise"
    assert traced.model_times[:-1].tolist() == grid[:-1].tolist()
    assert traced.difference(ours) < 1e-10
    assert (traced.A - ours.A).abs().max() < 1e-10 and (traced.B - ours.B).abs().max() < 1e-10
    assert (traced.A.ne(0) == ours.A.ne(0)).all()  # one state per row, and nothing left of rounding
    assert not hasattr(scheduler, "timesteps")  # the user's object is never touched


def test_options_of_a_scheduler_must_exist():
    with pytest.raises(ArgumentError, match="Multistep has no option s_churn"):
        from_sampler(Multistep(), 5, s_churn=1.0)


# ------------------------------------------------------------------------------------------------ what is refused


def clipped(model, x, sigmas):
    for a, b in pairwise(sigmas):
        x = x + (x - model(x, a).clamp(-1, 1)) / a * (b - a)
    return x


def normed(model, x, sigmas):
    for a in sigmas[:2]:
        d = model(x, a)
        x = x + d / d.norm()
    return x


@pytest.mark.parametrize(("sampler", "row"), [(clipped, 1), (normed, 1)])
def test_nonlinear_samplers_are_refused_with_the_size_and_the_row(sampler, row):
    with pytest.raises(NotATable, match=r"row \d+, is off by .* wrap them into the denoiser") as caught:
        from_sampler(sampler, SIGMAS)
    assert caught.value.defect > 0.1 and caught.value.row >= row


def test_adaptive_samplers_are_refused():
    def adaptive(model, x, sigmas):
        sigma = sigmas[0]
        while sigma > 0.5:
            d = model(x, sigma)
            sigma = sigma * (0.9 if d.abs().max() > 3.99 else 0.5)
            x = d
        return x

    with pytest.raises(NotATable, match="chooses its course") as caught:
        from_sampler(adaptive, SIGMAS)
    assert math.isinf(caught.value.defect)


def test_unrepeatable_samplers_are_refused():
    def hidden(model, x, sigmas):
        return model(x, sigmas[0]) + torch.rand(x.shape, dtype=x.dtype)

    with pytest.raises(NotATable):
        from_sampler(hidden, SIGMAS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_sampler(lambda model, x: model(x, 1.0)), "noise is missing"),
        (lambda: from_sampler(3), "cannot trace int"),
        (lambda: from_sampler(lambda model, x: x, noise=VP), "never called its network"),
        (lambda: from_sampler(lambda model, x: model(x, 0.5)[..., :1], noise=VP), "one tensor of the state's shape"),
        (lambda: from_sampler(lambda model, x: model(torch.cat([x, x]), 0.5)[:1], noise=VP), "without guidance"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_noise_of_another_shape_is_no_column():
    with pytest.raises(NotATable, match="no column of a table can hold"):
        from_sampler(lambda model, x: model(x, 0.5) + torch.randn(1), noise=VP)


def test_defaults_of_torch_do_not_matter():
    wanted = from_sampler(sample_ancestral, SIGMAS)
    torch.set_default_dtype(torch.float64)
    assert from_sampler(sample_ancestral, SIGMAS).difference(wanted) == 0
    torch.set_default_dtype(torch.float32)


# ------------------------------------------------------------------------------------------- a real scheduler, live


@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed: pip install 'fewstep[dev]'")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_a_traced_scheduler_repeats_its_pipeline_although_it_rounds_its_times(name, prediction):
    """With Karras levels these tell the network rounded timesteps; D taken at the time told repeats them exactly."""
    import diffusers

    kind = {"epsilon": "epsilon", "v_prediction": "v"}[prediction]
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "use_karras_sigmas": True}
    scheduler = getattr(diffusers, name)(**config, prediction_type=prediction)
    noise = ns.Discrete.from_alphas_cumprod(scheduler.alphas_cumprod)
    exact = fs.problems.Gaussian(0.2, torch.linspace(0.2, 1.5, 16).double(), shape=(1, 4, 4), noise=noise).denoise

    def network(x, t):
        alpha, sigma = noise.alpha(t).item(), noise.sigma(t).item()
        x0 = exact(x, t, None)
        return (x - alpha * x0) / sigma if kind == "epsilon" else (alpha * x - x0) / sigma

    start = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheduler.set_timesteps(6)
    state = start
    for t in scheduler.timesteps:
        state = scheduler.step(network(state, float(t)), t, state, return_dict=False)[0]
    denoise = lambda x, t, c: exact(x, float(t), None)  # noqa: E731
    gaps = []
    for at_model_time in (True, False):
        table = from_sampler(scheduler, 6, at_model_time=at_model_time)
        gaps.append((sample(denoise, table, start=start) - state).abs().max().item())
    assert gaps[0] < 2e-5 < gaps[1]


def test_renoising_has_a_table_too():
    """A check of the words used above: down and up again is Euler ancestral."""
    moves = (Step(node=Down(1.0)), Renoise()) * 4 + (Step(),)
    assert (
        SolverSchedule(SIGMAS.double(), moves)
        .tabulate(ns.EDM(0.01, 20.0))
        .difference(solvers.euler_ancestral(SIGMAS.double()).tabulate(ns.EDM(0.01, 20.0)))
        < 1e-9
    )
