"""Options of `diffusers:` models, which every command that loads a model takes: folded into the model's name."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import typer

from fewstep.cli.common import with_option
from fewstep.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., None])
PANEL = "Pipelines (diffusers: models)"


def _option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=PANEL, **more)


OPTIONS: dict[str, Any] = {
    "prompts": Annotated[
        Path | None, _option("--prompts", metavar="FILE", help="One prompt a line; or .safetensors of embeddings.")
    ],
    "negative_prompt": Annotated[str | None, _option("--negative-prompt", help="For guidance.")],
    "guidance_2": Annotated[float | None, _option("--guidance-2", help="Guidance of Wan 2.2's low-noise expert.")],
    "height": Annotated[int | None, _option("--height", min=1, help="In pixels.", show_default="the pipeline's")],
    "width": Annotated[int | None, _option("--width", min=1, help="In pixels.", show_default="the pipeline's")],
    "frames": Annotated[int | None, _option("--frames", min=1, help="Of a video.", show_default="the pipeline's")],
    "max_sequence_length": Annotated[
        int | None,
        _option("--max-sequence-length", min=1, help="Of prompts, in tokens.", show_default="the pipeline's"),
    ],
    "dtype": Annotated[
        str | None, _option("--dtype", help="Of the network: float32, bfloat16, float16.", show_default="float32")
    ],
    "device": Annotated[
        str | None, _option("--device", help="Where it runs.", show_default="cuda if there is one, else cpu")
    ],
    "offload": Annotated[bool, _option("--offload", help="Keep only the part at work on the device.")],
}
"""Parameters of the commands; the model's name has them with hyphens."""


def with_pipeline_options(function: F) -> F:
    """A command with a `model` that also takes the options above; what is given stands in the model's name."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        asked = {name: kwargs.pop(name, None) for name in OPTIONS if name not in own.parameters}
        kwargs["model"] = folded(kwargs["model"], asked)
        function(*args, **kwargs)

    own = inspect.signature(function, eval_str=True)
    more = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False if name == "offload" else None, annotation=kind
        )
        for name, kind in OPTIONS.items()
        if name not in own.parameters
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


def folded(model: str | None, asked: dict[str, Any]) -> str | None:
    """The model's name with the options that were given.

    Raises:
        ArgumentError: options of pipelines for another kind of model.
    """
    for name, value in asked.items():
        option = name.replace("_", "-")
        if value is None or value is False:
            continue
        if model is None or (name != "device" and not model.startswith("diffusers:")):
            raise ArgumentError(f"--{option} is for diffusers: models, and {model or 'there'} is none; leave it out")
        text = str(value.expanduser().absolute()) if isinstance(value, Path) else str(value)
        model = with_option(model, option if value is True else f"{option}={quote(text, safe='/:,~ ')}")
    return model


def short_name(model: str) -> str:
    """A model's name for a folder: letters, digits and hyphens; of a pipeline the last part of its place."""
    if model.startswith("diffusers:"):
        model = model.removeprefix("diffusers:").partition("?")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip("-")
