"""Other libraries' networks as denoisers, and tables as other libraries' samplers: the conventions, written out."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep import solvers, times
from fewstep.adapters.frame import framed
from fewstep.adapters.samplers import edm_sampler, k_diffusion_sampler
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, Flow, VPLinear

F64 = torch.float64
SHAPE = (3, 4, 4)
SD = Discrete.scaled_linear(0.00085, 0.012, 1000)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dimmed(v, x):
    return v.reshape(-1, *[1] * (x.ndim - 1))


# ------------------------------------------------------------------------------------------------- networks in


class EdmNet(torch.nn.Module):
    """A stand-in for EDMPrecond that depends on the state, the level, and the class."""

    img_channels, img_resolution, label_dim, sigma_min, sigma_max = 3, 4, 5, 0.0, 40.0

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        s = dimmed(sigma.to(x.dtype), x)
        rows = torch.zeros(len(x), 5) if class_labels is None else class_labels
        shift = dimmed((rows * torch.arange(1.0, 6.0)).sum(1).to(x.dtype), x)
        return x / (1 + s**2) + torch.sin(s + shift) * (2.0 if force_fp32 else 1.0)


def test_edm_modules_take_levels_labels_and_options():
    net = EdmNet()
    model = fs.from_edm(net, network_dtype=F64, dtype=F64, check=False, force_fp32=True)
    assert model.noise == EDM(0.002, 40.0)
    assert model.shape == SHAPE
    x, labels = randn(4, *SHAPE), torch.tensor([0, 4, 2, 5])
    s, shift = 3.7, dimmed(torch.tensor([1.0, 5.0, 3.0, 0.0], dtype=F64), x)  # 5, the number of classes: no label
    torch.testing.assert_close(model(x, s, labels), x / (1 + s**2) + 2 * torch.sin(s + shift))
    rows = torch.nn.functional.one_hot(labels, 6)[:, :5].float()
    torch.testing.assert_close(model(x, s, rows), model(x, s, labels))
    torch.testing.assert_close(model(x, s), x / (1 + s**2) + 2 * torch.sin(torch.tensor(s, dtype=F64)))
    assert model.calls == 4


def test_edm_modules_in_other_coordinates():
    net, noise = EdmNet(), VPLinear()
    model = fs.from_edm(net, noise=noise, network_dtype=F64, dtype=F64, check=False)
    x, t = randn(2, *SHAPE), 0.4
    level = noise.ratio(t)
    want = net(x / noise.alpha(t), level.expand(2))
    torch.testing.assert_close(model(x, t), want)


@pytest.mark.parametrize(
    ("net", "options", "match"),
    [
        (SimpleNamespace(__call__=None), {}, "img_channels"),
        (EdmNet(), {"sigma_min": 50.0}, "no range"),
    ],
)
def test_edm_modules_refused(net, options, match):
    with pytest.raises(ArgumentError, match=match):
        fs.from_edm(net, check=False, **options)


def guided(x, t, y=None):
    """A network that depends on the state, the time and the class; twice as many channels: mean and variance."""
    told = dimmed(t.to(x.dtype), x)
    eps = torch.tanh(x) * (1 + told / 1000) + (0 if y is None else dimmed(y.to(x.dtype), x))
    return torch.cat([eps, torch.full_like(eps, 7.0)], 1)


def diffusion(n=1000, **about):
    """What `create_model_and_diffusion` returns, as far as it is looked at."""
    told = {"model_mean_type": SimpleNamespace(name="EPSILON"), "model_var_type": SimpleNamespace(name="LEARNED_RANGE"),
            "rescale_timesteps": False, "original_num_steps": n}  # fmt: skip
    return SimpleNamespace(betas=torch.linspace(1e-4, 0.02, n, dtype=F64).numpy(), **told | about)


def test_guided_diffusion_by_the_written_formula():
    model = fs.from_guided_diffusion(guided, diffusion(), shape=SHAPE, dtype=F64, check=False)
    assert model.noise.alphas_cumprod == pytest.approx(Discrete.linear().alphas_cumprod, rel=1e-14)
    x, y = randn(3, *SHAPE), torch.tensor([0, 1, 2])
    for t in (999, 400, 0):
        bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)[t]
        eps = guided(x, torch.full((3,), float(t), dtype=F64), y)[:, :3]
        want = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        torch.testing.assert_close(model(x, t, y), want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(x, t, {"y": y}), want, rtol=1e-9, atol=1e-9)


def test_guided_diffusion_tells_rescaled_times():
    told = []

    def watching(x, t, y=None):
        told.append(t.clone())
        return guided(x, t, y)[:, :3]

    about = {"model_var_type": SimpleNamespace(name="FIXED_LARGE"), "rescale_timesteps": True}
    model = fs.from_guided_diffusion(watching, diffusion(250, **about), shape=SHAPE, dtype=F64, check=False)
    model(randn(2, *SHAPE), 100)
    torch.testing.assert_close(told[0].double(), torch.full((2,), 100 * 1000 / 250, dtype=F64))


def test_guided_diffusion_that_predicts_x0():
    about = {"model_mean_type": SimpleNamespace(name="START_X"), "model_var_type": SimpleNamespace(name="LEARNED")}
    model = fs.from_guided_diffusion(guided, diffusion(**about), shape=SHAPE, dtype=F64, check=False)
    x = randn(2, *SHAPE)
    torch.testing.assert_close(model(x, 500), guided(x, torch.full((2,), 500.0))[:, :3])


def test_guided_diffusion_from_betas_sees_the_variance_itself():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    both = fs.from_guided_diffusion(guided, betas=betas, shape=SHAPE, dtype=F64, check=False)
    named = fs.from_guided_diffusion(guided, diffusion(), shape=SHAPE, dtype=F64, check=False)
    x = randn(2, *SHAPE)
    assert torch.equal(both(x, 300), named(x, 300))


def test_guided_diffusion_refusals_name_the_cure():
    make = fs.from_guided_diffusion
    with pytest.raises(ArgumentError, match="one of them"):
        make(guided, shape=SHAPE)
    with pytest.raises(ArgumentError, match="timestep_respacing=''"):
        make(guided, diffusion(25, original_num_steps=1000), shape=SHAPE)
    with pytest.raises(ArgumentError, match="previous state"):
        make(guided, diffusion(model_mean_type=SimpleNamespace(name="PREVIOUS_X")), shape=SHAPE)
    with pytest.raises(ArgumentError, match=r"give \(C, H, W\)"):
        make(guided, diffusion())
    fixed = diffusion(model_var_type=SimpleNamespace(name="FIXED_LARGE"))
    with pytest.raises(ArgumentError, match="learn_sigma=True"):
        make(guided, fixed, shape=SHAPE, check=False)(torch.zeros(1, *SHAPE), 10)


class Wrapper(torch.nn.Module):
    """k-diffusion's DiscreteEpsDDPMDenoiser: `x0 = x - eps(x c_in, sigma) sigma`, with the class as extra argument."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sigmas", SD.ratio(torch.arange(1000.0)))

    def forward(self, x, sigma, y=None):
        s = dimmed(sigma.to(x.dtype), x)
        return x - torch.tanh(x / (s**2 + 1).sqrt() + (0 if y is None else dimmed(y.to(x.dtype), x))) * s


def test_k_diffusion_wrappers():
    wrapper = Wrapper()
    model = fs.from_k_diffusion(wrapper, shape=SHAPE, dtype=F64, check=False)
    assert model.noise == EDM(wrapper.sigmas[0].item(), wrapper.sigmas[-1].item())
    x, y = randn(2, *SHAPE), torch.tensor([1, 2])
    torch.testing.assert_close(model(x, 2.5, {"y": y}), wrapper(x, torch.full((2,), 2.5, dtype=F64), y))
    vp = fs.from_k_diffusion(wrapper, shape=SHAPE, noise=SD, dtype=F64, check=False)
    torch.testing.assert_close(
        vp(x, 321.0), wrapper(x / SD.alpha(321.0), SD.ratio(321.0).expand(2)), rtol=1e-9, atol=1e-9
    )
    assert model.fingerprint != fs.from_k_diffusion(EdmNet(), shape=SHAPE, check=False).fingerprint


# ------------------------------------------------------------------------------------------------- samplers out


def x0_of(x, sigma, y=0.0):
    """x0 in a host's coordinates, depending on both."""
    s = dimmed(sigma.to(x.dtype), x)
    return torch.tanh(x / (1 + s)) + 0.1 * torch.sin(s) + y


def denoiser(noise):
    """The same network in ours."""

    def fn(x, t, condition):
        a, s = noise.alpha(t), noise.sigma(t)
        if noise.family == "flow":
            return x0_of(x, s.reshape(1))
        return x0_of(x / a, (s / a).reshape(1))

    return fs.Denoiser(fn, noise=noise, shape=SHAPE, dtype=F64)


def tables(noise):
    grid = times.logsnr(noise, 5, start=0.9) if noise.family == "flow" else times.karras(noise, 5)
    plain = solvers.dpmpp_2m(grid).tabulate(noise)
    learned = dataclasses.replace(plain, B=plain.B * 1.03, A=plain.A * 0.99, schedule=None, expected=("learned",))
    free = dataclasses.replace(solvers.dpmpp_2m(grid), afs="unit").tabulate(noise)
    told = grid * torch.tensor([1, 0.98, 0.97, 0.99, 0.98, 1])
    moved = dataclasses.replace(solvers.dpmpp_2m(grid), model_times=told).tabulate(noise)
    heun = solvers.heun(grid).tabulate(noise)
    return {"plain": plain, "learned": learned, "free": free, "moved": moved, "heun": heun,
            "sde": solvers.dpmpp_sde(grid).tabulate(noise), "sa": solvers.sa_solver(grid).tabulate(noise)}  # fmt: skip


@pytest.mark.parametrize("noise", [EDM(), VPLinear(), SD, Flow(shift=3.0)], ids=lambda n: n.family)
@pytest.mark.parametrize("which", ["plain", "learned", "free", "moved", "heun", "sde", "sa"])
def test_as_a_k_diffusion_sampler_it_is_sample(noise, which):
    table = tables(noise)[which]
    sampler = k_diffusion_sampler(table)
    unit = randn(2, *SHAPE)
    draws = randn(max(table.C.shape[1], 1), 2, *SHAPE, seed=1)
    ours = fs.sample(denoiser(noise), table, start=unit * table.sigma[0], noise=lambda m: draws[m])
    order = iter(range(len(draws)))
    drawn = {}

    def noise_sampler(a, b):
        assert 0 <= float(b) < float(a)
        return drawn.setdefault((float(a), float(b)), draws[next(order)])

    x = unit * sampler.sigmas[0]
    theirs = sampler(lambda x, s, y: x0_of(x, s, y), x, sampler.sigmas, {"y": 0.0}, noise_sampler=noise_sampler)
    scale = 1 if noise.family == "flow" else table.alpha[-1]
    torch.testing.assert_close(theirs * scale, ours, rtol=1e-10, atol=1e-10)
    assert len(drawn) == table.C.shape[1]  # no interval twice: a Brownian sampler would repeat its noise


def test_a_k_diffusion_sampler_traces_back_to_its_table():
    for noise in (EDM(), SD):
        for name in ("dpmpp_2m", "heun", "euler_ancestral"):
            table = solvers.get(name)(times.karras(noise, 5)).tabulate(noise)
            sampler = k_diffusion_sampler(table)
            assert fs.from_sampler(sampler, sampler.sigmas, noise=noise).difference(table) < 1e-9


def test_callback_and_levels_are_as_in_k_diffusion():
    table = solvers.heun(times.karras(EDM(), 4)).tabulate(EDM())
    sampler = k_diffusion_sampler(table)
    seen = []
    x = randn(2, *SHAPE) * 80
    sampler(x0_of, x, sampler.sigmas.float(), callback=seen.append, disable=True)
    assert [d["i"] for d in seen] == [0, 1, 1, 2, 2, 3, 3]
    assert {"x", "i", "sigma", "sigma_hat", "denoised"} == set(seen[0])
    torch.testing.assert_close(seen[0]["x"], x)
    torch.testing.assert_close(seen[0]["denoised"], x0_of(x, torch.full((2,), 80.0, dtype=F64)))
    assert [float(d["sigma_hat"]) for d in seen] == pytest.approx(table.times[list(table.evaluated)].tolist())
    with pytest.raises(ArgumentError, match=r"noise levels \[80.0.*was given \[80.0, 9.*Pass the sampler's own"):
        sampler(x0_of, x, torch.tensor([80.0, 9, 2, 0.1, 0]))
    with pytest.raises(ArgumentError, match="was given"):
        sampler(x0_of, x, sampler.sigmas[1:])


def test_as_edms_sampler_it_is_sample():
    noise = EDM()
    for name in ("dpmpp_2m", "euler_ancestral"):
        table = solvers.get(name)(times.karras(noise, 5)).tabulate(noise)
        unit, labels = randn(2, *SHAPE), torch.tensor([0.3, 0.7])
        draws = randn(8, 2, *SHAPE, seed=3)
        order = iter(draws)

        def net(x, sigma, class_labels):
            return x0_of(x, sigma, dimmed(class_labels.to(x.dtype), x)).float().double()

        kept = edm_sampler(table)(net, unit, labels, randn_like=lambda x, order=order: next(order), num_steps=5)
        model = fs.Denoiser(lambda x, t, c: net(x, t.reshape(1), c) if isinstance(t, torch.Tensor) else
                            net(x, torch.tensor([t], dtype=F64), c), noise=noise, shape=SHAPE, dtype=F64)  # fmt: skip
        ours = fs.sample(model, table, start=unit * 80, noise=lambda m, draws=draws: draws[m], condition=labels)
        torch.testing.assert_close(kept, ours, rtol=1e-9, atol=1e-9)


def test_as_edm2s_sampler_it_guides():
    table = solvers.euler(times.karras(EDM(), 4)).tabulate(EDM())
    unit, guide = randn(2, *SHAPE), lambda x, s, c: 0.5 * x0_of(x, s)
    run = edm_sampler(table)
    got = run(net=lambda x, s, c: x0_of(x, s), noise=unit, labels=None, gnet=guide, guidance=1.8, dtype=F64)
    both = lambda x, s, c: guide(x, s, c).lerp(x0_of(x, s), 1.8)  # noqa: E731
    torch.testing.assert_close(got, run(both, unit))
    assert run(both, unit.float(), dtype=torch.float32).dtype == torch.float32


def test_edm_settings_that_the_table_fixes_are_refused():
    table = solvers.dpmpp_2m(times.karras(EDM(), 5)).tabulate(EDM())
    run = edm_sampler(table)
    unit, net = randn(1, *SHAPE), lambda x, s, c: x0_of(x, s)
    run(net, unit, num_steps=5, sigma_max=80, sigma_min=table.times[-2].item(), rho=None)
    with pytest.raises(ArgumentError, match=r"num_steps=18, and the table was made with 5"):
        run(net, unit, num_steps=18)
    with pytest.raises(ArgumentError, match=r"S_churn=40.*leave S_churn out"):
        run(net, unit, S_churn=40)
    with pytest.raises(ArgumentError, match="latents is missing"):
        run(net)


def test_tables_that_hosts_cannot_place_are_refused():
    table = solvers.euler(times.karras(EDM(), 3)).tabulate(EDM())
    with pytest.raises(ArgumentError, match=r"Tableau\.noise"):
        framed(dataclasses.replace(table, noise=None))
    flat = Discrete((0.9, 0.5, 0.1, 0.0))
    infinite = solvers.dpmpp_2m(torch.tensor([3.0, 2.0, 1.0, -1.0], dtype=F64)).tabulate(flat)
    with pytest.raises(ArgumentError, match="alpha = 0"):
        k_diffusion_sampler(infinite)
    assert math.isinf(flat.ratio(3.0).item())
