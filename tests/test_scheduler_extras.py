"""What people add to a pipeline: control networks, low-rank adapters, offloading, 16 bits. With `FewStepScheduler` in
place of the stock scheduler the latents stay what they were, and nobody here moves a module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor

import fewstep as fs
from fewstep.models import about
from tests import tiny_pipelines
from tests.test_pipelines import model_of, x0_of
from tests.test_scheduler_pipelines import DPM, FLOW_EULER, STEPS, apart, ours, run_and_trace, stock
from tests.tiny_pipelines import TinyPipeline

# diffusers and transformers warn about their own old spellings.
pytestmark = pytest.mark.filterwarnings("ignore")


# ---------------------------------------------------------------------------------------------------- control images
def test_a_control_network_acts_as_under_the_stock_scheduler() -> None:
    """`control_guidance_end` counts steps: it is off after the same call."""
    tiny = tiny_pipelines.build("sd-controlnet")
    host = stock(tiny, DPM)
    latents, table = run_and_trace(tiny, host, control_guidance_end=0.5)
    scheduler = ours(host, table)
    assert apart(tiny.run(STEPS, scheduler=scheduler, control_guidance_end=0.5), latents) < 1e-5
    for other in ({"controlnet_conditioning_scale": 0.0}, {"image": 1 - tiny.inputs["image"]}, {}):
        assert apart(tiny.run(STEPS, scheduler=scheduler, **other), latents) > 1e-3


# -------------------------------------------------------------------------------------------------- low-rank adapters
def with_adapter(name: str, component: str) -> TinyPipeline:
    peft = pytest.importorskip("peft")
    tiny = tiny_pipelines.fresh(name)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    getattr(tiny.pipe, component).add_adapter(config, "style")
    return tiny


@pytest.mark.parametrize(
    ("name", "component", "host"), [("sd", "unet", DPM), ("sd3", "transformer", FLOW_EULER)], ids=["sd", "sd3"]
)
def test_low_rank_adapters_act_as_under_the_stock_scheduler(name: str, component: str, host: str) -> None:
    tiny = with_adapter(name, component)
    scheduler = stock(tiny, host)
    latents, table = run_and_trace(tiny, scheduler)
    mine = ours(scheduler, table)
    assert apart(tiny.run(STEPS, scheduler=mine), latents) < 1e-5
    assert apart(latents, tiny_pipelines.build(name).run(STEPS, scheduler=mine)) > 1e-3
    tiny.pipe.set_adapters(["style"], [0.5])
    half = tiny.run(STEPS, scheduler=mine)
    assert apart(half, latents) > 1e-3
    tiny.pipe.fuse_lora()
    assert apart(tiny.run(STEPS, scheduler=mine), half) < 1e-4


def test_adapters_of_the_real_package_are_named_and_told_apart() -> None:
    tiny = with_adapter("sd", "unet")
    full = model_of(tiny)
    assert about(full)["adapters"] == {"unet": {"style": [1.0]}}
    before, name = x0_of(full, [0, 1]), full.fingerprint
    tiny.pipe.set_adapters(["style"], [0.5])
    half = model_of(tiny)
    assert about(half)["adapters"] == {"unet": {"style": [0.5]}} and half.fingerprint != name
    assert (x0_of(half, [0, 1]) - before).abs().max() > 1e-3
    tiny.pipe.unet.disable_lora()
    assert "adapters" not in about(model_of(tiny))
    assert torch.equal(x0_of(model_of(tiny), [0, 1]), x0_of(model_of(tiny_pipelines.build("sd")), [0, 1]))


# --------------------------------------------------------------------------------------------------------- offloading
PASSING = ("torch.", "tests.", "diffusers.models.", "transformers.modeling_utils")
"""Those that only hand on what somebody asks."""


@contextmanager
def moves() -> Iterator[list[str]]:
    """Modules whose code moves a module meanwhile."""
    seen: list[str] = []
    real = torch.nn.Module._apply

    def watched(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_globals["__name__"].startswith(PASSING):
            frame = frame.f_back
        seen.append("" if frame is None else frame.f_globals["__name__"])
        return real(self, fn, *args, **kwargs)

    torch.nn.Module._apply = watched  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        torch.nn.Module._apply = real  # type: ignore[method-assign]


def by_model(tiny: TinyPipeline) -> None:
    tiny.pipe.enable_model_cpu_offload(device="cpu")


def by_layer(tiny: TinyPipeline) -> None:
    """What `enable_sequential_cpu_offload` does, but for the text encoder, where accelerate fails on a processor."""
    for part in (tiny.pipe.unet, tiny.pipe.vae):
        cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert next(tiny.pipe.unet.parameters()).device.type == "meta"


@pytest.mark.parametrize("offload", [by_model, by_layer])
def test_offloaded_pipelines_run_and_are_searched_where_they_rest(offload: Any) -> None:
    whole, tiny = tiny_pipelines.build("sd"), tiny_pipelines.fresh("sd")
    scheduler = ours(whole.pipe.scheduler, fs.from_sampler(stock(whole, DPM), 3))
    offload(tiny)
    rest = {name: p.device for name, p in tiny.pipe.unet.named_parameters()}
    with moves() as movers:
        latents = tiny.run(3, scheduler=scheduler)
        model = model_of(tiny)
        x0 = x0_of(model, [0, 1])
        fingerprint = model.fingerprint
    assert not [name for name in movers if name.startswith("fewstep")]
    assert (offload is by_model) == any(name.startswith("accelerate") for name in movers)
    assert rest == {name: p.device for name, p in tiny.pipe.unet.named_parameters()}
    assert torch.equal(latents, whole.run(3, scheduler=scheduler))
    assert torch.equal(x0, x0_of(model_of(whole), [0, 1]))
    assert fingerprint == model_of(whole).fingerprint


def test_offloaded_weights_are_part_of_the_fingerprint() -> None:
    tiny = tiny_pipelines.fresh("sd")
    next(tiny.pipe.unet.parameters()).data.mul_(1.01)
    cpu_offload(tiny.pipe.unet, torch.device("cpu"))
    assert model_of(tiny).fingerprint != model_of(tiny_pipelines.build("sd")).fingerprint


# ------------------------------------------------------------------------------------------------------------ 16 bits
def off(short: Tensor, exact: Tensor) -> float:
    return ((short.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize(("name", "host"), [("sd", DPM), ("sd3", FLOW_EULER), ("flux", FLOW_EULER)])
def test_pipelines_in_16_bits_are_as_near_to_float32_as_the_stock_scheduler(
    name: str, host: str, dtype: torch.dtype, most: float
) -> None:
    exact_pipe, tiny = tiny_pipelines.build(name), tiny_pipelines.fresh(name)
    scheduler = stock(exact_pipe, host)
    exact, table = run_and_trace(exact_pipe, scheduler)
    tiny.pipe.to(dtype)
    mine = tiny.run(STEPS, scheduler=ours(scheduler, table))
    theirs = tiny.run(STEPS, scheduler=scheduler)
    assert mine.dtype == theirs.dtype == dtype
    assert off(mine, exact) < most and off(mine, exact) < 1.1 * off(theirs, exact)
