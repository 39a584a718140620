"""What all families of pipelines share: sizes, prompts to condition leaves, decoding. A family gives the rest."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.errors import ArgumentError

Leaves = dict[str, Tensor]
"""Condition leaves by the pipeline's own names, `[prompts, ...]` each."""

ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class Ask:
    """What the user asked for; None is the pipeline's own default."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    guidance: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """arguments of the pipeline's call that its prompt encoder takes (max_sequence_length, clip_skip, ...)"""


class Family(ABC):
    """One kind of pipeline: how it is sized, prompted, called and decoded.

    Attributes:
        component: the network's name in the pipeline; encoders: those of its text encoders.
        outputs: what `encode_prompt` returns, in its order; those that begin with `negative_` are for guidance.
        leaves: the condition of one sample.
        free: whether the pipeline has classifier-free guidance.
        encodes: whether `encode_pixels` is there.
    """

    component: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    outputs: ClassVar[tuple[str, ...]] = ("prompt_embeds", "negative_prompt_embeds")
    leaves: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    free: ClassVar[bool] = True
    encodes: ClassVar[bool] = False

    def __init__(self, pipe: Any, ask: Ask) -> None:
        self.pipe = pipe
        self.defaults = {name: p.default for name, p in inspect.signature(pipe.__call__).parameters.items()}
        self.options = self._known_options(ask.options)
        self.height, self.width, self.frames = self._size(ask)
        self.scale = self._guidance(ask.guidance)

    # ------------------------------------------------------------------------------------------ what a family gives
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one latent."""

    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels when the user gives none."""

    @abstractmethod
    def multiple(self) -> int:
        """What height and width must be divisible by."""

    @abstractmethod
    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        """The raw prediction `[B, *shape]` of latents x `[B, *shape]` in the network's dtype, told times `[B]`."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in about [-1, 1], `[B, 3, H, W]` or `[B, 3, frames, H, W]`."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Latents of pictures `[B, 3, H, W]` in [-1, 1]: what `decode` undoes, as far as it can."""
        raise NotImplementedError

    def require_encoder(self) -> None:
        """Refuse pictures where the family has no encoder of them.

        Errors: `ArgumentError`.
        """
        if not self.encodes:
            raise ArgumentError(
                f"{type(self.pipe).__name__} encodes no pictures here: give its latents as numbers (.safetensors with "
                "`samples`), or no data, and the teacher makes some"
            )

    def mu(self) -> float | None:
        """Of the scheduler's resolution-dependent shift, where the pipeline has one."""
        return None

    def network(self, time: float) -> Any:
        """The module that is called when told `time`."""
        return getattr(self.pipe, self.component)

    def networks(self) -> dict[str, Any]:
        """All modules that `network` may give, by name."""
        return {self.component: getattr(self.pipe, self.component)}

    @property
    def embedded(self) -> bool:
        """Whether the guidance weight is told to the network, in place of classifier-free guidance."""
        return False

    def facts(self) -> dict[str, Any]:
        """What else the samples depend on, for the fingerprint."""
        return {}

    # ------------------------------------------------------------------------------------------------------- shared
    @property
    def temporal(self) -> int:
        """Frames that one latent frame stands for; 0 for pictures."""
        return 0

    @property
    def latent_frames(self) -> int:
        """Frames of a latent video."""
        return (int(self.frames or 1) - 1) // self.temporal + 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        return next(iter(self.networks().values())).dtype

    @cached_property
    def device(self) -> torch.device:
        """Where the pipeline computes, wherever its weights rest meanwhile; asked once, since it takes a while."""
        return torch.device(self.pipe._execution_device)

    def _size(self, ask: Ask) -> tuple[int, int, int | None]:
        name = type(self.pipe).__name__
        height, width = self.default_size()
        height, width, step = ask.height or height, ask.width or width, self.multiple()
        if min(height, width) < 1 or height % step or width % step:
            raise ArgumentError(f"height={height}, width={width}: {name} takes positive multiples of {step}")
        if not self.temporal:
            if ask.frames is not None:
                raise ArgumentError(f"num_frames={ask.frames}: {name} makes pictures; leave it out")
            return height, width, None
        frames = self.defaults["num_frames"] if ask.frames is None else ask.frames
        if frames < 1 or (frames - 1) % self.temporal:
            raise ArgumentError(f"num_frames={frames}: {name} takes one frame more than a multiple of {self.temporal}")
        return height, width, frames

    def _guidance(self, asked: float | None) -> float:
        name = type(self.pipe).__name__
        if not self.free and not self.embedded:
            if asked not in (None, 1):
                raise ArgumentError(
                    f"guidance={asked:g}: this {type(self.network(0.0)).__name__} was distilled and takes no guidance; "
                    "leave it out"
                )
            return 1.0
        scale = float(self.defaults.get("guidance_scale", 1.0) if asked is None else asked)
        if not self.embedded and not 1 <= scale < float("inf"):
            raise ArgumentError(f"guidance={scale:g}: {name} takes anything up to 1 as none: give 1, or more")
        return scale

    def _known_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        encode = getattr(self.pipe, "encode_prompt", None)
        names = set(inspect.signature(encode).parameters) & set(self.defaults) if encode is not None else set[str]()
        ours = ("prompt", "negative_", "num_")
        own = {n for n in names if not n.startswith(ours) and "embeds" not in n} | self.more_options()
        unknown = sorted(set(options) - own)
        if unknown:
            raise ArgumentError(
                f"{', '.join(unknown)}: no argument of {type(self.pipe).__name__} that this adapter passes on; known "
                f"are {', '.join(sorted(own)) or 'none'}"
            )
        return {n: self.defaults[n] for n in own if self.defaults[n] is not inspect.Parameter.empty} | dict(options)

    def more_options(self) -> set[str]:
        """Arguments of the pipeline's call that the family itself looks at."""
        return set()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negative: str | None, guided: bool) -> tuple[Leaves, Leaves]:
        """`(leaves of all prompts, leaves of the negative prompt)`, from the pipeline's own encoder, on the CPU."""
        parts = [
            self._encoded(prompts[k : k + ENCODED_AT_ONCE], None, False)
            for k in range(0, len(prompts), ENCODED_AT_ONCE)
        ]
        leaves = {name: torch.cat([part[name] for part in parts]) for name in self.leaves}
        null: Leaves = {}
        if guided:
            negative = self.defaults.get("negative_prompt") if negative is None else negative
            made = self._encoded(prompts[:1], negative, True)
            null = {name: made[f"negative_{name}"] for name in self.leaves}
        return leaves, null

    def _encoded(self, prompts: Sequence[str], negative: str | None, guided: bool) -> Leaves:
        arguments = {
            "prompt": list(prompts), "prompt_2": None, "prompt_3": None, "device": self.device,
            "num_images_per_prompt": 1, "num_videos_per_prompt": 1, "do_classifier_free_guidance": guided,
            "negative_prompt": None if negative is None else [negative] * len(prompts),
            "negative_prompt_2": None, "negative_prompt_3": None, **self.options,
        }  # fmt: skip
        takes = inspect.signature(self.pipe.encode_prompt).parameters
        made = self.pipe.encode_prompt(**{name: value for name, value in arguments.items() if name in takes})
        return {name: self.kept(leaf) for name, leaf in zip(self.outputs, made, strict=True) if leaf is not None}

    def kept(self, leaf: Tensor) -> Tensor:
        """A leaf as it is stored: on the CPU, numbers in the network's dtype."""
        return leaf.detach().to("cpu", self.dtype if leaf.is_floating_point() else leaf.dtype)


def dynamic_mu(scheduler: Any, tokens: int) -> float:
    """The pipelines' `calculate_shift`: linear in the number of image tokens."""
    config = scheduler.config
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) / (many - few) * (tokens - few)


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pixels of the latents of a picture autoencoder."""
    scale, shift = _units(vae, latents)
    with _precise(vae):
        return vae.decode((latents * scale + shift).to(vae.dtype), return_dict=False)[0]


def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pictures, from a picture autoencoder: the modes, which need no seeds."""
    with _precise(vae):
        found = vae.encode(pixels.to(vae.dtype), return_dict=False)[0]
    latents = found.mode() if hasattr(found, "mode") else found
    scale, shift = _units(vae, latents)
    return (latents - shift) / scale


def _units(vae: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """`(scale, shift)` from the network's latents to the autoencoder's."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return _channelled(std, like) / config.scaling_factor, _channelled(mean, like)
    return 1 / config.scaling_factor, getattr(config, "shift_factor", None) or 0.0


@contextmanager
def _precise(vae: Any) -> Generator[None]:
    """SDXL's autoencoder in float32 meanwhile: it overflows in float16."""
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(torch.float16)


def _channelled(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, *(1,) * (like.ndim - 2))
