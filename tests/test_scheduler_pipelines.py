"""`FewStepScheduler` in the pipelines of diffusers: the table of the scheduler that a pipeline has gives its pictures.

Every network here is small and random (tests/tiny_pipelines.py), so these are statements about arithmetic: the same
noise, prompt and network give the same latents, whatever they show.
"""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.diffusers import FewStepScheduler, check_pipeline
from fewstep.models import default_condition
from fewstep.tableau import Tableau
from tests import tiny_pipelines
from tests.tiny_pipelines import TinyPipeline

# diffusers warns about its own old spellings, and about configuration keys that one class has and another has not.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 5
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
KARRAS = {"use_karras_sigmas": True}
UNCLIPPED = {"clip_sample": False}


def apart(one: Tensor, two: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((one - two).abs().max() / two.abs().max()).item()


def stock(tiny: TinyPipeline, name: str, **options: Any) -> Any:
    return getattr(diffusers, name).from_config(tiny.pipe.scheduler.config, **options)


def run_and_trace(tiny: TinyPipeline, scheduler: Any, **inputs: Any) -> tuple[Tensor, Tableau]:
    """A scheduler's latents, and its table under the very arguments that the pipeline gave to `set_timesteps`."""
    asked: dict[str, Any] = {}
    real = scheduler.set_timesteps

    def listening(*args: Any, **kwargs: Any) -> Any:
        asked.update(inspect.signature(real).bind(*args, **kwargs).arguments)
        return real(*args, **kwargs)

    listening.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
    scheduler.set_timesteps = listening
    latents = tiny.run(STEPS, scheduler=scheduler, **inputs)
    del scheduler.set_timesteps
    options = {k: v for k, v in asked.items() if k in ("sigmas", "timesteps", "mu") and v is not None}
    steps = asked.get("num_inference_steps")
    return latents, fs.from_sampler(scheduler, *([steps] if steps else []), ndim=len(tiny.shape), **options)


def ours(scheduler: Any, *tables: Tableau, **options: Any) -> FewStepScheduler:
    return FewStepScheduler.from_config(scheduler.config, tableau=list(tables), **options)


DPM, UNIPC, EULER, DEIS, DDIM = (
    "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "DEISMultistepScheduler",
    "DDIMScheduler",
)  # fmt: skip
HEUN, LMS, PNDM, FLOW_EULER = (
    "HeunDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "FlowMatchEulerDiscreteScheduler"
)  # fmt: skip

QUICK: list[tuple[str, str, dict[str, Any]]] = [
    ("sd", DPM, {}), ("sd", UNIPC, {}), ("sd", DEIS, {}), ("sd-v", PNDM, {}), ("sdxl", EULER, {}),
    ("sd3", FLOW_EULER, {}), ("flux", FLOW_EULER, {}), ("ltx", FLOW_EULER, {}), ("pixart", DPM, {}),
    ("dit", DDIM, UNCLIPPED), ("wan", DEIS, FLOW), ("wan-2.2", UNIPC, FLOW),
]  # fmt: skip
DIFFUSION = ("sd", "sd-v", "sdxl", "pixart", "dit")
# DiT does not scale its network's input for EDM-like schedulers at the start, and its random network explodes in them.
ALL: list[tuple[str, str, dict[str, Any]]] = [
    (name, scheduler, UNCLIPPED if scheduler == DDIM else {})
    for name in DIFFUSION
    for scheduler in (DDIM, DPM, UNIPC, DEIS, EULER, HEUN, LMS)
    if name != "dit" or scheduler in (DDIM, DPM, UNIPC, DEIS)
] + [
    (name, scheduler, {} if scheduler == FLOW_EULER else FLOW)
    for name in ("sd3", "wan", "wan-2.2")
    for scheduler in (FLOW_EULER, DPM, UNIPC, DEIS)
]  # fmt: skip
REST = [case for case in ALL if case not in QUICK]


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_reproduces_the_stock_scheduler(name: str, scheduler: str, options: dict[str, Any]) -> None:
    tiny = tiny_pipelines.build(name)
    host = stock(tiny, scheduler, **options)
    latents, table = run_and_trace(tiny, host)
    mine = tiny.run(table.nfe, scheduler=ours(host, table))
    # DEIS in flow models loses digits itself, in float32 differences of logarithms.
    assert apart(mine, latents) < (1e-4 if scheduler == DEIS else 1e-5)


@pytest.mark.parametrize(
    ("name", "scheduler", "options", "least", "most"),
    [("sd", DPM, KARRAS, 2e-5, 2e-2), ("wan", UNIPC, FLOW, 1e-4, 5e-2)],
)
def test_rounded_times_of_a_host_are_kept_and_the_exact_ones_differ(
    name: str, scheduler: str, options: dict[str, Any], least: float, most: float
) -> None:
    tiny = tiny_pipelines.build(name)
    host = stock(tiny, scheduler, **options)
    latents, table = run_and_trace(tiny, host)
    assert (table.model_times - table.times).abs().max() > 1e-4  # the host tells its network rounded times
    exact = fs.from_sampler(host, STEPS, ndim=len(tiny.shape), at_model_time=False)
    told_exactly = Tableau(
        A=exact.A, B=exact.B, times=exact.times, alpha=exact.alpha, sigma=exact.sigma, noise=exact.noise,
        meta=exact.meta,
    )  # fmt: skip
    rounded = tiny.run(STEPS, scheduler=ours(host, table))
    other = tiny.run(STEPS, scheduler=ours(host, told_exactly))
    assert apart(rounded, latents) < 1e-5
    assert least < apart(other, latents) < most


# ------------------------------------------------------------------------------------------------ image to image
@pytest.mark.parametrize(
    ("scheduler", "options", "strength"),
    [(DPM, {}, 0.6), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (DPM, {}, 0.3), (DPM, {}, 1.0), (DDIM, UNCLIPPED, 0.6), (EULER, {}, 0.6), (EULER, {}, 1.0),
    ))],
)  # fmt: skip
def test_image_to_image_starts_in_the_middle_like_the_stock_scheduler(
    scheduler: str, options: dict[str, Any], strength: float
) -> None:
    """A multistep table that begins in the middle has no history: it begins with first order, as its host does."""
    tiny = tiny_pipelines.build("sd-img2img")
    host = stock(tiny, scheduler, **options)
    latents, table = run_and_trace(tiny, host, strength=strength)
    mine = tiny.run(STEPS, scheduler=ours(host, table), strength=strength)
    assert apart(mine, latents) < 1e-5


FLOWS = ("sd3-img2img", "flux-img2img", "sd3-inpaint", "flux-inpaint")


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        *((name, 0.6) for name in FLOWS),
        *(pytest.param(n, s, marks=pytest.mark.slow) for n in FLOWS for s in (0.3, 1.0)),
    ],
)
def test_flows_start_in_the_middle_and_keep_what_is_not_masked(name: str, strength: float) -> None:
    """Image-to-image is noised once, by `scale_noise` at the first call; inpainting again after every step."""
    tiny = tiny_pipelines.build(name)
    host = stock(tiny, FLOW_EULER)
    latents, table = run_and_trace(tiny, host, strength=strength)
    scheduler = ours(host, table)
    assert apart(tiny.run(STEPS, scheduler=scheduler, strength=strength), latents) < 1e-5
    assert scheduler.step_index == STEPS and scheduler.begin_index == int(STEPS - STEPS * strength)
    other = tiny.run(STEPS, scheduler=scheduler, strength=strength - 0.2)
    assert apart(other, latents) > 1e-2


@pytest.mark.parametrize("name", ["sd3-img2img", "flux-img2img"])
def test_flows_start_at_the_noise_level_where_the_table_does(name: str) -> None:
    """All calls are spent on the image: at strength 1 a table of three calls that begins at sigma 0.55 adds that noise,
    in the pipeline as in the library's own loop.
    """
    tiny = tiny_pipelines.build(name)
    levels = [0.55, 0.4, 0.2]
    host = stock(tiny, FLOW_EULER, shift=1.0, use_dynamic_shifting=False)
    latents, table = run_and_trace(tiny, host, strength=1.0, sigmas=levels)
    scheduler = ours(host, table)
    assert scheduler.sigmas[:-1].tolist() == pytest.approx(levels)
    assert apart(tiny.run(3, scheduler=scheduler, strength=1.0), latents) < 1e-5
    starts: list[Tensor] = []
    noised = scheduler.scale_noise
    scheduler.scale_noise = lambda *given: starts.append(noised(*given)) or starts[-1]  # type: ignore[method-assign]
    latents = tiny.run(3, scheduler=scheduler, strength=1.0)
    told = {k: tiny.inputs.get(k) for k in ("negative_prompt", "max_sequence_length")} | {"height": 16, "width": 16}
    guidance = tiny.inputs["guidance_scale"]
    model = fs.from_diffusers(tiny.pipe, [tiny.inputs["prompt"]], guidance=guidance, shift=1.0, **told)
    mine = fs.sample(model, table, start=starts[0], condition=default_condition(model, [0]))
    mine = tiny.pipe._pack_latents(mine, *mine.shape) if "flux" in name else mine
    assert apart(mine, latents) < 1e-5


@pytest.mark.parametrize(("name", "host"), [("sd-img2img", DPM), ("sd3-img2img", FLOW_EULER)])
def test_strength_says_how_many_calls(name: str, host: str) -> None:
    """Stable Diffusion's pipeline rounds `steps * strength` down, SD3's up."""
    tiny = tiny_pipelines.build(name)
    table = fs.from_sampler(stock(tiny, host), 6)
    scheduler = ours(tiny.pipe.scheduler, table)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = tiny.network.register_forward_hook(count)
    for wanted in (1, 5):
        calls = 0
        tiny.run(6, scheduler=scheduler, strength=scheduler.strength(wanted))
        assert calls == wanted
    hook.remove()


def test_strength_is_right_whichever_way_a_pipeline_rounds() -> None:
    table = fs.solvers.ddim(torch.linspace(999, 0, 2)).tabulate(fs.noise.Discrete.linear())
    scheduler = ours(diffusers.DDIMScheduler(), table)
    assert scheduler.strength(2) == 1.0
    for n in range(1, 22):
        scheduler._table = scheduler._table._replace(rows=scheduler._table.rows[:1] * n)
        for calls in range(1, n + 1):
            strength = scheduler.strength(calls)
            assert 0 < strength <= 1 and min(int(n * strength), n) == calls == n - int(max(n - n * strength, 0))


# ----------------------------------------------------------------------------------------------------- inpainting
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (DPM, {}),
        (DEIS, {}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((DDIM, UNCLIPPED), (EULER, {}))),
    ],
)
def test_inpainting_edits_are_honoured_like_by_the_stock_scheduler(scheduler: str, options: dict[str, Any]) -> None:
    """The four-channel pipeline overwrites the known half of the latents after every step."""
    tiny = tiny_pipelines.build("sd-inpaint")
    host = stock(tiny, scheduler, **options)
    latents, table = run_and_trace(tiny, host)
    assert apart(tiny.run(STEPS, scheduler=ours(host, table)), latents) < 1e-5


@pytest.mark.slow
def test_inpainting_with_nine_channels() -> None:
    tiny = tiny_pipelines.build("sd-inpaint-9")
    host = stock(tiny, DPM)
    latents, table = run_and_trace(tiny, host)
    assert apart(tiny.run(STEPS, scheduler=ours(host, table)), latents) < 1e-5


def shifted(tiny: TinyPipeline, scheduler: Any) -> Tensor:
    """A run whose latents somebody edits once, after the second step."""

    def edit(_: Any, i: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] + 0.5 * (i == 1)}

    return tiny.run(STEPS, scheduler=scheduler, callback_on_step_end=edit)


def test_a_single_edit_is_honoured_like_by_the_stock_scheduler() -> None:
    tiny = tiny_pipelines.build("sd")
    host = stock(tiny, DPM)
    mine = ours(host, fs.from_sampler(host, STEPS))
    assert apart(shifted(tiny, mine), shifted(tiny, host)) < 1e-5
    assert apart(shifted(tiny, mine), tiny.run(STEPS, scheduler=mine)) > 1e-2


def test_stock_unipc_forgets_edits_and_ours_does_not() -> None:
    """UniPC's corrector restarts from its own last state. The same numbers, written on the state that the pipeline
    holds, are the same sampler where nobody edits, and keep the edit where somebody does. (A mask that is pasted after
    every step hides the difference: elements do not mix in a scheduler.)
    """
    tiny = tiny_pipelines.build("sd")
    host = stock(tiny, UNIPC, prediction_type="sample")
    mine = ours(host, fs.from_sampler(host, STEPS))
    ramp = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)

    def states(scheduler: Any, edit: float) -> list[Tensor]:
        """Outputs that lie there: what an edit changes, it changes through the scheduler alone."""
        scheduler.set_timesteps(STEPS)
        x, seen = ramp, []
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(torch.sin((i + 1) * ramp), t, x, return_dict=False)[0]
            seen.append(x)
            x = x + edit if i == 1 else x
        return seen

    for one, two in zip(states(mine, 0.0), states(host, 0.0), strict=True):
        assert apart(one, two) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(states(host, 0.5), states(host, 0.0), strict=True))
    mine.set_timesteps(STEPS)
    ratio = mine._table.sigma[3] / mine._table.sigma[2]  # noise shrinks with sigma, and so does what is not data
    moved = states(mine, 0.5)[2] - states(mine, 0.0)[2]
    assert (moved - 0.5 * ratio).abs().max() < 1e-5 and ratio > 0.1


# --------------------------------------------------------------------------------------------------- Wan's experts
def test_the_experts_of_wan_2_2_get_the_calls_they_were_meant_for() -> None:
    tiny = tiny_pipelines.build("wan-2.2")
    boundary = tiny.pipe.config.boundary_ratio
    host = stock(tiny, UNIPC, **FLOW)
    table = fs.from_sampler(host, STEPS, ndim=5)
    scheduler = ours(host, table, boundary_ratio=boundary)
    calls = {"transformer": 0, "transformer_2": 0}
    hooks = [
        getattr(tiny.pipe, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name in calls
    ]
    tiny.run(STEPS, scheduler=scheduler, guidance_scale=1.0, guidance_scale_2=1.0)
    for hook in hooks:
        hook.remove()
    high = sum(float(t) >= boundary * 1000 for t in scheduler.timesteps)
    assert calls == {"transformer": high, "transformer_2": STEPS - high} and 0 < high < STEPS
    with tiny.scheduled(scheduler):
        assert check_pipeline(tiny.pipe) == []
    with pytest.raises(ValueError, match="boundary_ratio=0.875, where"):
        FewStepScheduler.from_config(scheduler.config, boundary_ratio=0.5)
    with tiny.scheduled(ours(host, table)):
        assert "which boundary" in check_pipeline(tiny.pipe)[0]


# ------------------------------------------------------------------------------------------------------ precision
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_sixteen_bit_latents_are_summed_in_float32(dtype: torch.dtype, most: float) -> None:
    """One step in 16 bits is the float32 step on the same numbers, rounded once."""
    tiny = tiny_pipelines.build("sd")
    table = fs.from_sampler(stock(tiny, DPM), STEPS)
    scheduler = ours(tiny.pipe.scheduler, table)
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 4, 8, 8, generator=generator).to(dtype) for _ in range(STEPS)]
    start = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)

    def states(cast: torch.dtype) -> list[Tensor]:
        scheduler.set_timesteps(STEPS)
        x, seen = start.to(cast), []
        for out, t in zip(outputs, scheduler.timesteps, strict=True):
            x = scheduler.step(out.to(cast), t, x, return_dict=False)[0]
            seen.append(x)
        return seen

    short, long = states(dtype), states(torch.float32)
    assert all(x.dtype == dtype for x in short)
    assert torch.equal(short[0], long[0].to(dtype))
    assert apart(short[-1].float(), long[-1]) < most


def test_whole_pipeline_in_bfloat16() -> None:
    tiny = tiny_pipelines.fresh("sd")
    table = fs.from_sampler(stock(tiny, DPM), STEPS)
    scheduler = ours(tiny.pipe.scheduler, table)
    exact = tiny.run(STEPS, scheduler=scheduler)
    tiny.pipe.to(torch.bfloat16)
    short = tiny.run(STEPS, scheduler=scheduler)
    assert short.dtype == torch.bfloat16 and apart(short.float(), exact) < 0.3


# ------------------------------------------------------------------------------------------------ stochastic tables
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [("EulerAncestralDiscreteScheduler", {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (DPM, {"algorithm_type": "sde-dpmsolver++"}), ("DDPMScheduler", UNCLIPPED),
    ))],
)  # fmt: skip
def test_noise_comes_from_the_pipelines_generator(scheduler: str, options: dict[str, Any]) -> None:
    tiny = tiny_pipelines.build("sdxl" if "Euler" in scheduler else "sd")
    host = stock(tiny, scheduler, **options)
    latents, table = run_and_trace(tiny, host)
    assert table.C.shape[1] >= STEPS - 1
    mine = ours(host, table)
    assert apart(tiny.run(STEPS, scheduler=mine), latents) < 1e-5
    assert apart(tiny.run(STEPS, scheduler=mine, seed=1), latents) > 1e-2


def test_one_generator_for_each_sample() -> None:
    """A sample depends on its own generator alone, whatever else is in the batch."""
    tiny = tiny_pipelines.build("sdxl")
    host = stock(tiny, "EulerAncestralDiscreteScheduler")
    mine = ours(host, fs.from_sampler(host, STEPS))
    seeds = lambda *s: [torch.Generator().manual_seed(k) for k in s]  # noqa: E731
    both = tiny.run(STEPS, scheduler=mine, num_images_per_prompt=2, generator=seeds(3, 4))
    alone = tiny.run(STEPS, scheduler=mine, generator=seeds(4))
    assert apart(both[1:], alone) < 1e-5
