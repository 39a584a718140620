"""`from_diffusers`: a pipeline as a `Denoiser`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.pipelines.family import Ask, Family, Leaves
from fewstep.adapters.pipelines.network import ByExpert, Latent, PipelineNetwork, adapters_of
from fewstep.adapters.pipelines.table import family_of
from fewstep.adapters.pipelines.training import training_of
from fewstep.adapters.pipelines.videos import ROUNDING
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.fingerprint import parameters_digest
from fewstep.guidance import guided

NO_PROMPTS = "{} needs prompts: give a list of texts (--prompts FILE), or embeds= if they are encoded already"


def from_diffusers(
    pipe: Any,
    prompts: Sequence[str] | Sequence[int] | None = None,
    *,
    negative_prompt: str | None = None,
    embeds: Mapping[str, Tensor] | None = None,
    guidance: float | None = None,
    guidance_2: float | None = None,
    guidance_rescale: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    shift: float | None = None,
    dtype: torch.dtype = torch.float32,
    check_finite: bool | None = None,
    **options: Any,
) -> Denoiser:
    """The network of a diffusers pipeline as a `Denoiser` of latents `[C, H, W]` (videos: `[C, frames, H, W]`).

    The prompts are encoded once, here, by the pipeline's own encoder, and taken in turn: seed s has prompt s modulo
    their number (`fewstep.models.default_condition`). The pipeline is called, not copied: its hooks (offloading), its
    adapters and its dtype stay in force. Its scheduler is only read, for the noise schedule of the network.

    Args:
        pipe: Stable Diffusion 1, 2, XL or 3, PixArt, DiT, Flux, Wan (2.2 with both experts) or LTX.
        prompts: texts; for DiT class numbers or names, all classes by default.
        negative_prompt: for guidance; the pipeline's own default otherwise.
        embeds: in place of prompts, the encoder's outputs by the pipeline's names (`prompt_embeds`, ...), `[N, ...]`
            each; with guidance also those that begin with `negative_`, `[1, ...]`.
        guidance: classifier-free guidance weight, which doubles the batch (1 is none); or, for a network that is told
            its weight (Flux dev, LCM), that weight. By default the pipeline's own.
        guidance_2: of Wan 2.2's expert of low noise; by default the same.
        guidance_rescale: phi of Lin et al. 2023, as in `fewstep.guidance.guided`.
        height, width, num_frames: in pixels and frames; by default the pipeline's own.
        shift: of a flow model; by default the scheduler's, at this resolution. It moves named grids only.
        dtype: of the states. The network computes in its own.
        check_finite: see `Denoiser`.
        options: further arguments of the pipeline's call that shape the prompts (`max_sequence_length`, `clip_skip`,
            ...), LTX's `frame_rate`.

    Errors: `ArgumentError` for a pipeline without an adapter, and for arguments that it does not take; before the
        network is called.
    """
    if not hasattr(pipe, "scheduler"):
        raise ArgumentError(f"pipe is a {type(pipe).__name__}: give a diffusers pipeline")
    family = family_of(pipe, Ask(height, width, num_frames, guidance, options))
    training = training_of(pipe.scheduler, _mu(family), shift)
    free = family.free and not family.embedded
    scales = (family.scale if free else 1.0, _second(family, guidance_2))
    cfg = free and max(scales) != 1
    if guidance_rescale and (not cfg or training.sigma_data is not None):
        raise ArgumentError("guidance_rescale: there is no guided prediction to rescale here; leave it out")
    if negative_prompt is not None and not cfg:
        raise ArgumentError("negative_prompt has no effect without classifier-free guidance: leave it out")
    if embeds is not None:
        leaves, null = _given(family, prompts, negative_prompt, embeds, cfg)
    else:
        leaves, null = family.encode(_texts(family, prompts), negative_prompt, cfg)
    told = {"digest": _digest(prompts, embeds), "count": len(next(iter(leaves.values())))}
    facts = _facts(family, told, negative_prompt, scales, guidance_rescale)
    latent = Latent(family, leaves, facts, _name(pipe))
    null = {name: leaf.to(family.device) for name, leaf in null.items()}
    base = PipelineNetwork(latent, training, null or None, dtype=dtype, check_finite=check_finite)
    return _guided(base, scales, guidance_rescale) if cfg else base


def _guided(base: PipelineNetwork, scales: tuple[float, float], rescale: float) -> Denoiser:
    high, low = (guided(base, scale, rescale=rescale if scale != 1 else 0.0) for scale in scales)
    if scales[0] == scales[1]:
        return high
    boundary = float(base.latent.family.boundary) - ROUNDING  # type: ignore[attr-defined]
    return ByExpert(high, low, lambda t: float(base.coordinates.at(t).told), boundary)


def _mu(family: Family) -> float | None:
    return family.mu() if family.pipe.scheduler.config.get("use_dynamic_shifting") else None


def _second(family: Family, asked: float | None) -> float:
    """Guidance of the expert of low noise."""
    if asked is None:
        return family.scale if family.free and not family.embedded else 1.0
    if getattr(family, "boundary", None) is None:
        raise ArgumentError(f"guidance_2={asked:g}: {type(family.pipe).__name__} has one network; leave it out")
    if not 1 <= asked < float("inf"):
        raise ArgumentError(f"guidance_2={asked:g}: anything up to 1 is none: give 1, or more")
    return float(asked)


def _texts(family: Family, prompts: Any) -> Sequence[Any]:
    name = type(family.pipe).__name__
    if isinstance(prompts, str):
        raise ArgumentError("prompts is one text: give a list of them")
    if prompts is None and hasattr(family, "classes"):
        return range(family.classes)  # type: ignore[attr-defined]
    if prompts is None or len(prompts) == 0:
        raise ArgumentError(NO_PROMPTS.format(name))
    missing = [part for part in family.encoders if getattr(family.pipe, part, None) is None]
    if missing and len(missing) == len(family.encoders):
        raise ArgumentError(f"{name} was loaded without {missing[0]}: give embeds= in place of prompts")
    bad = next((p for p in prompts if family.encoders and not isinstance(p, str)), None)
    if bad is not None:
        raise ArgumentError(f"prompts has {bad!r}, a {type(bad).__name__}: give texts")
    return prompts


def _given(
    family: Family, prompts: Any, negative: str | None, embeds: Mapping[str, Tensor], guided: bool
) -> tuple[Leaves, Leaves]:
    """Leaves that the user encoded."""
    if prompts is not None or negative is not None:
        raise ArgumentError("embeds are encoded prompts: leave prompts and negative_prompt out")
    wanted = {*family.leaves, *(f"negative_{name}" for name in family.leaves if guided)}
    if set(embeds) != wanted:
        raise ArgumentError(
            f"embeds has {', '.join(sorted(embeds)) or 'nothing'}: {type(family.pipe).__name__} "
            f"{'with' if guided else 'without'} guidance takes {', '.join(sorted(wanted))}"
        )
    lengths = {len(embeds[name]) for name in family.leaves}
    if len(lengths) != 1 or 0 in lengths or any(len(embeds[n]) != 1 for n in wanted - {*family.leaves}):
        raise ArgumentError(
            "embeds: all need the same first axis, the prompts; those that begin with negative_ one of length 1"
        )
    leaves = {name: family.kept(embeds[name]) for name in family.leaves}
    return leaves, {name: family.kept(embeds[f"negative_{name}"]) for name in family.leaves if guided}


def _digest(prompts: Any, embeds: Mapping[str, Tensor] | None) -> str:
    if embeds is not None:
        return parameters_digest(embeds)[:16]
    return hashlib.sha256(json.dumps(prompts if prompts is None else list(prompts)).encode()).hexdigest()[:16]


def _facts(
    family: Family, prompts: dict[str, Any], negative: str | None, scales: tuple[float, float], rescale: float
) -> dict[str, Any]:
    """What a file says about the network that it was found for."""
    pipe = family.pipe
    second = scales[1] if getattr(family, "boundary", None) is not None else None
    adapters = {name: found for name, module in family.networks().items() if (found := adapters_of(module))}
    facts = {
        "pipeline": type(pipe).__name__, "weights": _name(pipe),
        "guidance": family.scale if family.embedded else scales[0], "guidance_2": second, "rescale": rescale or None,
        "height": family.height, "width": family.width, "num_frames": family.frames, "prompts": prompts,
        "negative_prompt": negative, "dtype": str(family.dtype).removeprefix("torch."),
        "adapters": adapters or None, **family.facts(),
        "options": {k: v for k, v in family.options.items() if v is not None} or None,
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value is not None}


def _name(pipe: Any) -> str:
    return str(pipe.config.get("_name_or_path") or type(pipe).__name__)
