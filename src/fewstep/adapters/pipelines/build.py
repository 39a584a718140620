"""`from_diffusers`: a pipeline as a `Denoiser`; and a pipeline from a folder or the Hub. diffusers is imported here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
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
        raise ArgumentError(f"{name} needs prompts: give a list of texts, or embeds= if they are encoded already")
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
        "adapters": adapters or None, "options": family.options or None, **family.facts(),
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value is not None}


def _name(pipe: Any) -> str:
    return str(pipe.config.get("_name_or_path") or type(pipe).__name__)


DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip


def load(
    place: str, *, guidance: float | None = None, device: torch.device | str | None = None, **options: str
) -> Denoiser:
    """The pipeline of a folder or of the Hub, as `diffusers:PLACE?name=value&...` asks for it.

    Args:
        place: folder of `save_pretrained`, or an id of the Hub.
        guidance, device: see `fewstep.load`.
        options: `prompts` (a file: one prompt a line, or .safetensors of embeddings), `negative-prompt`, `height`,
            `width`, `frames`, `dtype` of the network, `guidance-2`, `guidance-rescale`, `shift`, and `offload`, which
            keeps only the part at work on the device.

    Errors: `ArgumentError`, before anything is loaded where the name alone tells.
    """
    unknown = sorted(set(options) - {*OPTIONS})
    if unknown:
        raise ArgumentError(
            f"{unknown[0]!r} in the model's name is no option of a pipeline; known are {', '.join(OPTIONS)}"
        )
    values = {argument: _number(name, options[name], kind) for name, (argument, kind) in NUMBERS.items()
              if name in options}  # fmt: skip
    name = options.get("dtype", "float32")
    if name not in DTYPES:
        raise ArgumentError(f"dtype={name}: give one of {', '.join(DTYPES)}")
    asked = read_prompts(options["prompts"]) if "prompts" in options else {}
    pipe = opened(place, DTYPES[name], device, offload="offload" in options)
    return from_diffusers(pipe, guidance=guidance, negative_prompt=options.get("negative-prompt"), **values, **asked)


NUMBERS: dict[str, tuple[str, type]] = {
    "height": ("height", int), "width": ("width", int), "frames": ("num_frames", int),
    "guidance-2": ("guidance_2", float), "guidance-rescale": ("guidance_rescale", float), "shift": ("shift", float),
}  # fmt: skip
OPTIONS = ("prompts", "negative-prompt", *NUMBERS, "dtype", "offload")


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError(f"{name}={text}: give {'a whole number' if kind is int else 'a number'}") from None


def read_prompts(file: str | Path) -> dict[str, Any]:
    """`prompts`, one a line, of a text file; or `embeds` of a .safetensors.

    Errors: `ArgumentError` for a file that is not there, holds nothing, or cannot be read.
    """
    path = Path(file)
    if not path.is_file():
        raise ArgumentError(f"the prompts file {path} does not exist: give a text file, one prompt a line")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {"embeds": load_file(path)}
        except (SafetensorError, OSError) as error:
            raise ArgumentError(f"the prompts file {path} cannot be read as safetensors ({error})") from error
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise ArgumentError(f"the prompts file {path} cannot be read as UTF-8 text ({error})") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise ArgumentError(f"the prompts file {path} is empty: write one prompt a line")
    return {"prompts": prompts}


def opened(place: str, dtype: torch.dtype, device: torch.device | str | None, *, offload: bool = False) -> Any:
    """A pipeline on its device, without its progress bar.

    Errors: `ArgumentError` for a place that holds none.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ArgumentError("diffusers: models need diffusers: pip install 'fewstep[diffusers]'") from error
    folder = Path(place).expanduser()
    local = folder.exists() or place.startswith((".", "/", "~")) or place.count("/") != 1
    if local and not (folder / "model_index.json").is_file():
        raise ArgumentError(
            f"{place} has no model_index.json: give the folder of a pipeline's save_pretrained, or an id of the Hub"
        )
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder) if local else place, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArgumentError(f"diffusers cannot load {place} ({first}): give a folder or an id that it can") from error
    pipe.set_progress_bar_config(disable=True)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if offload:
        pipe.enable_model_cpu_offload(device=where)
        return pipe
    return pipe.to(where)
