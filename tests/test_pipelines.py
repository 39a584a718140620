"""Pipelines as networks: their own runs are repeated to rounding, and what cannot be is refused in time."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.adapters.pipelines.family import Ask
from fewstep.adapters.pipelines.network import adapters_of
from fewstep.adapters.pipelines.table import family_of
from fewstep.adapters.pipelines.training import training_of
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.models import default_condition, pictures
from fewstep.networks.labels import innermost
from fewstep.noise import EDM, Discrete, Flow
from tests import tiny_pipelines
from tests.tiny_pipelines import TinyPipeline

# diffusers and transformers warn about their own old spellings.
pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = ("sd", "sd-v", "sdxl", "sd3", "flux", "pixart", "dit", "wan", "wan-2.2", "ltx")
PASSED_ON = ("negative_prompt", "height", "width", "num_frames", "max_sequence_length", "clean_caption")


def model_of(tiny: TinyPipeline, **changed: Any) -> Denoiser:
    """The tiny pipeline with the arguments of its own calls."""
    given = {k: v for k, v in tiny.inputs.items() if k in PASSED_ON}
    given["guidance"] = tiny.inputs.get("guidance_scale")
    given["guidance_2"] = tiny.inputs.get("guidance_scale_2")
    prompts = tiny.inputs.get("class_labels") or [tiny.inputs["prompt"]]
    return fs.from_diffusers(tiny.pipe, **({"prompts": prompts} | given | changed))


def packed(tiny: TinyPipeline, latents: Tensor) -> Tensor:
    """Latents as the pipeline holds them."""
    if tiny.name == "flux":
        return tiny.pipe._pack_latents(latents, *latents.shape)
    return tiny.pipe._pack_latents(latents) if tiny.name == "ltx" else latents


def stock_table(tiny: TinyPipeline, model: Denoiser, steps: int) -> Any:
    """The table of the pipeline's own scheduler, set as the pipeline sets it."""
    scheduler: Any = scheduler_of(tiny)
    options: dict[str, Any] = {"ndim": 1 + len(model.shape)}
    if tiny.name in ("flux", "ltx"):
        options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        options["mu"] = float(torch.tensor(model.noise.shift).log())  # type: ignore[attr-defined]
        return fs.from_sampler(scheduler, noise=model.noise, **options)
    return fs.from_sampler(scheduler, steps, noise=model.noise, **options)


def scheduler_of(tiny: TinyPipeline) -> Any:
    """The pipeline's own; for the v network DDIM, since PNDM's last state is at no level where v is combined."""
    if tiny.name == "sd-v":
        return diffusers.DDIMScheduler.from_config(tiny.pipe.scheduler.config, clip_sample=False)
    return tiny.pipe.scheduler


def gap(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("name", FAMILIES)
def test_own_run_is_repeated(name: str, guided: bool) -> None:
    tiny, steps = tiny_pipelines.build(name), 4
    off = {} if guided else {"guidance": 1.0, "guidance_2": None, "negative_prompt": None}
    model = model_of(tiny, **off)
    noise = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(3))
    call = {} if guided else {"guidance_scale": 1.0, "guidance_scale_2": None, "negative_prompt": None}
    call = {k: v for k, v in call.items() if k in tiny.inputs}
    table = stock_table(tiny, model, steps)
    first = noise  # the pipelines start from unit noise, even where sigma is a little less
    if name == "dit":  # draws its own noise
        first = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(3))
    else:
        copies = "num_videos_per_prompt" if len(model.shape) == 4 else "num_images_per_prompt"
        call |= {"latents": packed(tiny, noise), copies: 2}
    theirs = tiny.run(steps, seed=3, scheduler=scheduler_of(tiny), **call)
    mine = fs.sample(model, table, start=first, condition=default_condition(model, range(len(first))))
    assert packed(tiny, mine).shape == theirs.shape
    assert gap(packed(tiny, mine), theirs) < 1e-5


# -------------------------------------------------------------------------------------------- schedulers, guidance
def test_schedule_comes_from_the_betas() -> None:
    ddim = diffusers.DDIMScheduler
    scaled = training_of(ddim(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"))
    assert scaled.noise == Discrete.scaled_linear() and scaled.prediction == "epsilon"
    assert training_of(ddim(beta_schedule="linear")).noise == Discrete.linear()
    cosine = training_of(ddim(beta_schedule="squaredcos_cap_v2", prediction_type="sample"))
    assert cosine.prediction == "x0"
    assert torch.allclose(
        cosine.noise.alpha(500.0) ** 2, ddim(beta_schedule="squaredcos_cap_v2").alphas_cumprod[500].double()
    )
    betas = np.linspace(1e-3, 1e-2, 50)
    own = training_of(ddim(trained_betas=betas, num_train_timesteps=50)).noise
    assert torch.allclose(own.alpha(49.0) ** 2, torch.tensor(np.cumprod(1 - betas)[-1]), rtol=1e-5)


@pytest.mark.parametrize("make", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler], ids=["exact", "nearly"])
def test_zero_terminal_snr_is_pure_noise(make: Any) -> None:
    trained = training_of(make(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert trained.noise.alpha(trained.noise.t_max) == 0 and trained.prediction == "v"


def test_flow_shift_is_fixed_given_or_by_resolution() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    assert training_of(flow(shift=3.0)).noise == Flow(3.0)
    assert training_of(flow(shift=3.0), shift=5.0).noise == Flow(5.0)
    dynamic = flow(use_dynamic_shifting=True)
    assert training_of(dynamic, mu=1.15).noise == Flow(math.exp(1.15))
    with pytest.raises(ArgumentError, match="give shift="):
        training_of(dynamic)
    with pytest.raises(ArgumentError, match="shift=3"):
        training_of(diffusers.DDIMScheduler(), shift=3.0)


def test_a_scheduler_that_does_not_tell_is_refused() -> None:
    with pytest.raises(ArgumentError, match="does not tell"):
        training_of(diffusers.IPNDMScheduler())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_preconditioning(prediction: str) -> None:
    """Playground's kind: an SDXL network in EDM's coordinates."""
    tiny = tiny_pipelines.build("sdxl")
    scheduler = diffusers.EDMEulerScheduler(prediction_type=prediction)
    with tiny.scheduled(scheduler):
        model = model_of(tiny)
        assert model.noise == EDM(0.002, 80.0)
        table = fs.from_sampler(scheduler, 4, noise=model.noise)
        noise = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(3))
        theirs = tiny.run(4, latents=noise)
        # The scheduler starts from sqrt(sigma^2 + 1) times the noise.
        mine = fs.sample(model, table, start=noise * (80.0**2 + 1) ** 0.5, condition=default_condition(model, [0]))
    assert gap(mine, theirs) < 1e-5


def test_guidance_rescale_is_the_pipelines() -> None:
    tiny = tiny_pipelines.build("sd")
    model = model_of(tiny, guidance_rescale=0.7)
    noise = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(3))
    mine = fs.sample(model, stock_table(tiny, model, 4), start=noise, condition=default_condition(model, [0]))
    assert gap(mine, tiny.run(4, latents=noise, guidance_rescale=0.7)) < 1e-5
    assert gap(mine, tiny.run(4, latents=noise)) > 1e-3


def test_guidance_counts_two_rows_and_embedded_guidance_one() -> None:
    for name, cost in (("sd", 2), ("flux", 1)):
        model = model_of(tiny_pipelines.build(name))
        table = fs.solvers.ddim(fs.times.uniform(model.noise, 2)).tabulate(model.noise)
        fs.sample(model, table, seeds=range(3), condition=default_condition(model, range(3)))
        assert (model.batch_cost, model.calls, model.evaluations) == (cost, 2, 6 * cost)


# ------------------------------------------------------------------------------------------- conditions, identity
TWO = ["a small red cat", "a photo of a dog", "a blurry cat"]


def x0_of(model: Denoiser, seeds: list[int]) -> Tensor:
    x = torch.randn(len(seeds), *model.shape, generator=torch.Generator().manual_seed(5))
    t = model.noise.time_of_ratio(1.0).item()
    return torch.cat([model(x[k : k + 1], t, default_condition(model, [seed])) for k, seed in enumerate(seeds)])


def test_seeds_take_the_prompts_in_turn_in_any_batch() -> None:
    model = model_of(tiny_pipelines.build("sdxl"), prompts=TWO)
    given = default_condition(model, [0, 1, 2, 3, 1_000_000_000])
    leaf = given["prompt_embeds"]
    assert torch.equal(leaf[0], leaf[3]) and not torch.equal(leaf[0], leaf[1])
    assert torch.equal(leaf[4], leaf[1_000_000_000 % 3])
    table = fs.solvers.dpmpp_2m(fs.times.karras(model.noise, 3)).tabulate(model.noise)
    whole = fs.sample(model, table, seeds=range(4), condition=default_condition(model, range(4)))
    split = fs.sample(model, table, seeds=range(4), condition=default_condition(model, range(4)), batch_size=3)
    assert gap(split, whole) < 1e-5


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_an_image_to_image_pipeline_has_the_same_network(name: str) -> None:
    pipe = tiny_pipelines.build(name).pipe
    checker = {"requires_safety_checker": False} if name == "sd" else {}
    other = getattr(diffusers, type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline"))(**pipe.components, **checker)
    size = {"guidance": 3.0, "height": 16, "width": 16}
    mine, theirs = (x0_of(fs.from_diffusers(p, TWO, **size), [0, 1]) for p in (other, pipe))
    assert torch.equal(mine, theirs)


def test_fingerprint_names_what_the_samples_depend_on() -> None:
    tiny = tiny_pipelines.build("wan-2.2")
    base = model_of(tiny).fingerprint
    assert model_of(tiny).fingerprint == base
    changes = (
        {"prompts": TWO}, {"negative_prompt": "a dog"}, {"guidance": 4.0}, {"guidance_2": 3.0}, {"height": 32},
        {"num_frames": 9}, {"shift": 5.0},
    )  # fmt: skip
    others = [model_of(tiny, **change).fingerprint for change in changes]
    own = tiny_pipelines.fresh("wan-2.2")
    own.pipe.register_to_config(boundary_ratio=0.8)
    others.append(model_of(own).fingerprint)
    own = tiny_pipelines.fresh("wan-2.2")
    next(own.pipe.transformer_2.parameters()).data.mul_(1.01)
    others.append(model_of(own).fingerprint)
    assert len({base, *others}) == len(others) + 1


def test_low_rank_adapters_and_their_scale_are_part_of_the_fingerprint() -> None:
    """As PEFT's layers carry them."""
    net = torch.nn.Sequential(torch.nn.Identity())
    net[0].scaling, net[0].active_adapters = {"style": 0.5}, ["style"]
    assert adapters_of(net) == {"style": [0.5]}
    net[0].disable_adapters = True
    assert adapters_of(net) == {}


def test_wan_calls_each_expert_on_its_side_of_the_boundary() -> None:
    tiny = tiny_pipelines.build("wan-2.2")
    family = family_of(tiny.pipe, Ask(height=64, width=64, frames=5))
    assert family.network(875.0) is family.network(874.9999999) is tiny.pipe.transformer
    assert family.network(874.99) is tiny.pipe.transformer_2


def test_embeddings_stand_in_for_an_absent_text_encoder() -> None:
    tiny = tiny_pipelines.fresh("sdxl")
    model = model_of(tiny, prompts=TWO)
    latent = innermost(model)
    embeds = dict(latent.leaves) | {f"negative_{k}": v for k, v in model.null_condition.items()}
    tiny.pipe.text_encoder = tiny.pipe.text_encoder_2 = None
    size = {"height": 16, "width": 16, "guidance": 3.0}
    again = fs.from_diffusers(tiny.pipe, embeds=embeds, **size)
    assert gap(x0_of(again, [0, 1]), x0_of(model, [0, 1])) < 1e-6
    for bad, words in (
        ({"prompts": TWO}, "without text_encoder: give embeds="),
        ({"embeds": latent.leaves}, "takes negative_pooled_prompt_embeds"),
        ({"embeds": embeds, "prompts": TWO}, "leave prompts"),
        ({"embeds": embeds | {"prompt_embeds": embeds["prompt_embeds"][:1]}}, "same first axis"),
    ):
        with pytest.raises(ArgumentError, match=words):
            fs.from_diffusers(tiny.pipe, **(size | bad))


def test_network_computes_in_its_dtype_and_states_stay_wide() -> None:
    tiny = tiny_pipelines.fresh("sd3")
    wide = x0_of(model_of(tiny), [0, 1])
    tiny.pipe.to(torch.bfloat16)
    narrow = x0_of(model_of(tiny), [0, 1])
    assert narrow.dtype == torch.float32
    assert 1e-5 < gap(narrow, wide) < 0.05


def test_hooks_of_offloading_stay_in_force() -> None:
    from accelerate import cpu_offload

    tiny = tiny_pipelines.fresh("sd")
    before = x0_of(model_of(tiny), [0, 1])
    cpu_offload(tiny.pipe.unet, execution_device=torch.device("cpu"))
    assert next(tiny.pipe.unet.parameters()).device.type == "meta"
    model = model_of(tiny)
    assert torch.equal(x0_of(model, [0, 1]), before)
    assert len(model.fingerprint) == 16


def test_no_graph_is_kept_unless_somebody_wants_one() -> None:
    tiny = tiny_pipelines.fresh("sd")
    tiny.pipe.unet.requires_grad_(True)
    model = model_of(tiny)
    x, given = torch.randn(1, *model.shape), default_condition(model, [0])
    assert not model(x, 500.0, given).requires_grad
    assert torch.autograd.grad(model(x.requires_grad_(), 500.0, given).sum(), x)[0].abs().max() > 0


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "wan", "ltx"])
def test_latents_are_decoded_as_the_pipeline_does(name: str) -> None:
    tiny = tiny_pipelines.build(name)
    model = model_of(tiny)
    latents = tiny.run(2)
    theirs = tiny.run(2, output_type="pt")
    if name == "flux":
        latents = tiny.pipe._unpack_latents(latents, 16, 16, tiny.pipe.vae_scale_factor)
    if name == "ltx":
        latents = tiny.pipe._unpack_latents(latents, *model.shape[1:])
    mine = pictures(model, latents) / 2 + 0.5
    mine = mine.transpose(1, 2) if mine.ndim == 5 else mine  # videos come with the frames first
    assert mine.shape == theirs.shape
    assert (mine - theirs.clamp(0, 1)).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("sd", {"prompts": None}, "needs prompts"),
        ("sd", {"prompts": []}, "needs prompts"),
        ("sd", {"prompts": "a cat"}, "give a list"),
        ("sd", {"prompts": ["a cat", 3]}, "prompts has 3, a int"),
        ("sd", {"guidance": 0.0}, "anything up to 1 as none"),
        ("sd", {"guidance": float("nan")}, "guidance=nan"),
        ("sd", {"guidance": 1.0}, "negative_prompt has no effect"),
        ("sd", {"guidance": 1.0, "negative_prompt": None, "guidance_rescale": 0.5}, "nothing|no guided prediction"),
        ("sd", {"guidance_2": 2.0}, "has one network"),
        ("sd", {"height": 15}, "multiples of 2"),
        ("sd", {"num_frames": 9}, "makes pictures"),
        ("sd", {"eta": 0.5}, "eta: no argument"),
        ("sd", {"shift": 3.0}, "shift=3"),
        ("flux", {"negative_prompt": "blurry"}, "negative_prompt has no effect"),
        ("dit", {"prompts": [1000]}, "no class of this DiT"),
        ("dit", {"height": 64, "width": 64}, "makes 16 only"),
        ("wan", {"num_frames": 6}, "one frame more than a multiple of 4"),
        ("sd-inpaint", {}, "also takes the mask"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_the_network_is_called(name: str, change: dict[str, Any], words: str) -> None:
    tiny = tiny_pipelines.build(name)
    hook = tiny.network.register_forward_pre_hook(lambda *_: pytest.fail("the network was called"))
    try:
        with pytest.raises(ArgumentError, match=words):
            model_of(tiny, **change)
    finally:
        hook.remove()


def test_guidance_of_a_distilled_flux_is_refused() -> None:
    tiny = tiny_pipelines.fresh("flux")
    tiny.pipe.transformer.register_to_config(guidance_embeds=False)
    with pytest.raises(ArgumentError, match=r"guidance=3\.5: this FluxTransformer2DModel was distilled"):
        model_of(tiny)


def test_other_pipelines_are_refused_by_name() -> None:
    class QwenImagePipeline:
        scheduler = None

    class NobodysPipeline:
        scheduler = None

    for pipe, words in (
        (QwenImagePipeline(), "renormalises the guided prediction"),
        (NobodysPipeline(), "Known are StableDiffusionPipeline.*from_callable"),
        (torch.nn.Linear(1, 1), "give a diffusers pipeline"),
    ):
        with pytest.raises(ArgumentError, match=words):
            fs.from_diffusers(pipe, TWO)


def test_a_condition_is_needed_without_guidance() -> None:
    model = model_of(tiny_pipelines.build("sd3"), guidance=1.0, negative_prompt=None)
    with pytest.raises(ArgumentError, match="default_condition"):
        model(torch.zeros(1, *model.shape), 0.5)
