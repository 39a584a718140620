"""`diffusers:PLACE`: a pipeline from a folder or the Hub, with its prompts from a file. diffusers is imported here."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fewstep.adapters.pipelines.build import NO_PROMPTS, from_diffusers
from fewstep.adapters.pipelines.table import family_named
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError

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
            `width`, `frames`, `max-sequence-length` (of prompts, in tokens), `dtype` of the network, `guidance-2`,
            `guidance-rescale`, `shift`, and `offload`, which keeps only the part at work on the device.

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
    name_of_class = _class_name(place)
    if name_of_class is not None and family_named(name_of_class).encoders and not asked:
        raise ArgumentError(NO_PROMPTS.format(name_of_class))
    pipe = opened(place, DTYPES[name], device, offload="offload" in options)
    return from_diffusers(pipe, guidance=guidance, negative_prompt=options.get("negative-prompt"), **values, **asked)


NUMBERS: dict[str, tuple[str, type]] = {
    "height": ("height", int), "width": ("width", int), "frames": ("num_frames", int),
    "guidance-2": ("guidance_2", float), "guidance-rescale": ("guidance_rescale", float), "shift": ("shift", float),
    "max-sequence-length": ("max_sequence_length", int),
}  # fmt: skip
OPTIONS = ("prompts", "negative-prompt", *NUMBERS, "dtype", "offload")


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError(f"{name}={text}: give {'a whole number' if kind is int else 'a number'}") from None


def _class_name(place: str) -> str | None:
    """The class of a pipeline in a folder; None for an id of the Hub.

    Errors: `ArgumentError` for a folder that holds none.
    """
    folder = Path(place).expanduser()
    if not folder.exists() and not place.startswith((".", "/", "~")) and place.count("/") == 1:
        return None
    try:
        return str(json.loads((folder / "model_index.json").read_text("utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{place} has no model_index.json that names a pipeline: give the folder of a pipeline's save_pretrained, "
            "or an id of the Hub, as owner/name"
        ) from error


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


@lru_cache(maxsize=1)  # a search and its report use the same pipeline
def opened(place: str, dtype: torch.dtype, device: torch.device | str | None, *, offload: bool = False) -> Any:
    """A pipeline on its device, without its progress bar.

    Errors: `ArgumentError` for a place that holds none.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ArgumentError("diffusers: models need diffusers: pip install 'fewstep[diffusers]'") from error
    folder = Path(place).expanduser() if _class_name(place) is not None else None
    name = "dtype" if tuple(int(n) for n in diffusers.__version__.split(".")[:2]) >= (0, 42) else "torch_dtype"
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(  # pyright: ignore[reportPrivateImportUsage]
            place if folder is None else str(folder), **{name: dtype}
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArgumentError(f"diffusers cannot load {place} ({first}): give a folder or an id that it can") from error
    pipe.set_progress_bar_config(disable=True)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if offload:
        pipe.enable_model_cpu_offload(device=where)
        return pipe
    return pipe.to(where)
