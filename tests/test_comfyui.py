"""The ComfyUI nodes that `export` writes, run inside a small stand-in for ComfyUI.

The stand-in has what the nodes meet there, written down from ComfyUI's interface: `comfy.samplers.KSAMPLER` (noise
scaling by the model's sampling, the call of the sampler function, the inverse scaling), `comfy.model_sampling` of
models in noise levels and of flow models, and `comfy.k_diffusion.sampling.default_noise_sampler` (one generator, by
seed). The nodes import nothing else of ComfyUI.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fewstep as fs
from fewstep import solvers, times
from fewstep.adapters.comfyui import export_nodes
from fewstep.errors import ArgumentError, LossyExport
from fewstep.noise import EDM, Discrete, Flow, VPLinear

F64 = torch.float64
SHAPE = (4, 4, 4)
SD = Discrete.scaled_linear(0.00085, 0.012, 1000)


class EPS:
    """States x0 + sigma eps."""

    sigma_max = torch.tensor(14.6146)

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return noise * ((1 + sigma**2) ** 0.5 if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class CONST:
    """States (1 - sigma) x0 + sigma eps."""

    sigma_max = torch.tensor(1.0)

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)


class Sampling1(EPS):
    pass


class Sampling2(CONST):
    pass


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None):
        def model_k(x, sigma, denoise_mask, model_options, seed):
            return model_wrap(x, sigma, model_options=model_options, seed=seed)

        model_k.inner_model = model_wrap
        extra_args["denoise_mask"] = None
        sampling = model_wrap.inner_model.model_sampling
        most = bool(sigmas[0] >= sampling.sigma_max * (1 - 1e-5))
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, most)
        told = callback and (lambda d: callback(d["i"], d["denoised"], d["x"], len(sigmas) - 1))
        out = self.sampler_function(
            model_k, x, sigmas, extra_args=extra_args, callback=told, disable=True, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], out)


def default_noise_sampler(x, seed=None):
    generator = None if seed is None else torch.Generator(device=x.device).manual_seed(seed)
    return lambda sigma, sigma_next: torch.randn(x.size(), dtype=x.dtype, device=x.device, generator=generator)


@pytest.fixture
def comfy(monkeypatch):
    parts = {"comfy": {}, "comfy.samplers": {"KSAMPLER": KSAMPLER}, "comfy.k_diffusion": {},
             "comfy.k_diffusion.sampling": {"default_noise_sampler": default_noise_sampler}}  # fmt: skip
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def x0_of(x, sigma):
    s = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return torch.tanh(x / (1 + s)) + 0.1 * torch.sin(s)


class Guider:
    """What samplers are given as a model; depends on state and level."""

    def __init__(self, sampling):
        self.inner_model, self.levels = SimpleNamespace(model_sampling=sampling), []

    def __call__(self, x, sigma, model_options=None, seed=None):
        self.levels.append(float(sigma[0]))
        return x0_of(x, sigma)


def pack(folder):
    """The nodes, imported from their folder as ComfyUI does."""
    spec = importlib.util.spec_from_file_location(
        "fewstep_pack", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables(noise):
    grid = times.logsnr(noise, 5, start=0.9) if noise.family == "flow" else times.karras(noise, 5)
    plain = solvers.dpmpp_2m(grid).tabulate(noise)
    return {
        "plain": plain,
        "learned": dataclasses.replace(plain, B=plain.B * 1.03, schedule=None, expected=("learned",)),
        "free": dataclasses.replace(solvers.dpmpp_2m(grid), afs="unit").tabulate(noise),
        "moved": dataclasses.replace(
            solvers.dpmpp_2m(grid), model_times=grid * torch.tensor([1, 0.98, 0.97, 0.99, 0.98, 1])
        ).tabulate(noise),
        "heun": solvers.heun(grid).tabulate(noise),
        "sde": solvers.dpmpp_sde(grid).tabulate(noise),
        "offset": dataclasses.replace(
            plain, K=torch.linspace(0, 0.2, 6, dtype=F64)[:, None], constants=(torch.ones(()),), expected=("offset",)
        ),
    }


@pytest.mark.parametrize("noise", [EDM(), VPLinear(), SD, Flow(shift=3.0)], ids=lambda n: n.family)
@pytest.mark.parametrize("which", ["plain", "learned", "free", "moved", "heun", "sde", "offset"])
def test_the_nodes_run_the_table(noise, which, comfy, tmp_path):
    table = tables(noise)[which]
    export_nodes(table, tmp_path / "nodes", "found")
    nodes = pack(tmp_path / "nodes").NODE_CLASS_MAPPINGS
    (sigmas,) = nodes["FewstepSigmas"]().make("found")
    (sampler,) = nodes["FewstepSampler"]().make("found")
    assert sigmas.dtype == torch.float32 and sigmas[-1] == 0 and len(sigmas) == 6
    flow = noise.family == "flow"
    sampling = Sampling2() if flow else Sampling1()
    model, seen = Guider(sampling), []
    unit = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=F64)
    clean = torch.linspace(-1, 1, unit.numel(), dtype=F64).reshape(unit.shape)
    got = sampler.sample(model, sigmas, {"model_options": {}, "seed": 11}, lambda *a: seen.append(a), unit, clean)

    most = bool(sigmas[0] >= sampling.sigma_max * (1 - 1e-5))
    gain = torch.ones_like(table.alpha) if flow else table.alpha
    start = sampling.noise_scaling(sigmas[0], unit, clean, most) * gain[0]
    noise_sampler = default_noise_sampler(unit, 11)
    draws = [noise_sampler(1.0, 0.0) for _ in range(table.C.shape[1])]

    def fn(x, t, _):
        a, s = noise.alpha(t), noise.sigma(t)
        return x0_of(x, s.reshape(1)) if flow else x0_of(x / a, (s / a).reshape(1))

    ours = fs.sample(fs.Denoiser(fn, noise=noise, shape=SHAPE, dtype=F64), table, start=start, noise=lambda m: draws[m])
    torch.testing.assert_close(got * gain[-1], ours, rtol=1e-9, atol=1e-9)
    assert len(model.levels) == table.nfe == len(seen)
    assert [n for *_, n in seen] == [5] * table.nfe
    steps = [i for i, *_ in seen]
    assert steps == sorted(steps) and steps[-1] == 4


def test_half_precision_latents_are_summed_in_single(comfy, tmp_path):
    table = tables(SD)["plain"]
    export_nodes(table, tmp_path / "n", "t")
    (sampler,) = pack(tmp_path / "n").FewstepSampler().make("t")
    (sigmas,) = pack(tmp_path / "n").FewstepSigmas().make("t")
    unit = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(unit)

    def ran(dtype):
        return sampler.sample(
            Guider(Sampling1()), sigmas, {"model_options": {}, "seed": 1}, None, unit.to(dtype), zero.to(dtype)
        )

    assert ran(torch.float16).dtype == torch.float16
    torch.testing.assert_close(ran(torch.float16).float(), ran(torch.float32), atol=5e-3, rtol=0)


def test_wrong_sigmas_and_models_are_refused(comfy, tmp_path, caplog):
    export_nodes(tables(SD)["plain"], tmp_path / "n", "t")
    module = pack(tmp_path / "n")
    (sampler,) = module.FewstepSampler().make("t")
    (sigmas,) = module.FewstepSigmas().make("t")
    unit = torch.zeros(1, *SHAPE)
    args = {"model_options": {}, "seed": 1}
    with pytest.raises(ValueError, match="connect the SIGMAS of the node"):
        sampler.sample(Guider(Sampling1()), sigmas[1:], dict(args), None, unit, unit)
    with pytest.raises(ValueError, match=r"made for noise levels.*this is a flow model"):
        sampler.sample(Guider(Sampling2()), sigmas, dict(args), None, unit, unit)
    small = Sampling1()
    small.sigma_max = torch.tensor(5.0)
    sampler.sample(Guider(small), sigmas, dict(args), None, unit, unit)
    assert "the model ends at 5" in caplog.text
    with pytest.raises(ValueError, match="it has t"):
        module.load("other")


def test_a_folder_holds_several_schedules_and_nothing_else(tmp_path):
    place = tmp_path / "nodes"
    export_nodes(tables(SD)["plain"], place)
    project = place / "pyproject.toml"
    project.write_text(project.read_text().replace('PublisherId = ""', 'PublisherId = "me"'))
    export_nodes(tables(Flow())["heun"], place, "my flow!")
    assert pack(place).available() == ["dpmpp_2m-5", "my-flow"]
    assert 'PublisherId = "me"' in project.read_text()  # what the user wrote stays
    assert pack(place).FewstepSigmas.INPUT_TYPES() == {"required": {"schedule": (["dpmpp_2m-5", "my-flow"],)}}
    text = (place / "README.md").read_text()
    assert "`dpmpp_2m-5`: dpmpp_2m, 5 network calls" in text and "`my-flow`: heun, 9 network calls" in text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="holds something else"):
        export_nodes(tables(SD)["plain"], tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thing.txt"]


def test_what_plain_numbers_cannot_hold_is_refused(tmp_path):
    table = tables(EDM())["plain"]
    wide = dataclasses.replace(table, B=table.B[..., None].expand(*table.B.shape, 4).clone(), expected=("wide",))
    with pytest.raises(LossyExport, match="sample's shape"):
        export_nodes(wide, tmp_path / "n")
    with pytest.raises(ArgumentError, match="noise schedule"):
        export_nodes(dataclasses.replace(table, noise=None), tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_newer_and_foreign_files_are_refused(tmp_path):
    export_nodes(tables(EDM())["plain"], tmp_path / "n", "t")
    module, path = pack(tmp_path / "n"), tmp_path / "n" / "schedules" / "t.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"version": 2}))
    with pytest.raises(ValueError, match="newer than these nodes"):
        module.load("t")
    path.write_text(json.dumps(record | {"format": "x"}))
    with pytest.raises(ValueError, match="no schedule for ComfyUI"):
        module.load("t")
