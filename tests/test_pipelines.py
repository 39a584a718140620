"""Pipelines as networks: their own runs are repeated to rounding, and what cannot be is refused in time."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import fewstep as fs
from fewstep.denoiser import Denoiser
from fewstep.models import default_condition
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
