"""Families of pictures: Stable Diffusion 1, 2, XL and 3, PixArt, DiT, Flux."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.pipelines.family import Family, Leaves, decoded, dynamic_mu, encoded
from fewstep.errors import ArgumentError


class Picture(Family):
    """Latents `[C, H / 8, W / 8]` of a picture autoencoder."""

    encodes = True

    def shape(self) -> tuple[int, ...]:
        return (self.channels, self.height // self.factor, self.width // self.factor)

    def default_size(self) -> tuple[int, int]:
        size = self.network(0.0).config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.factor, width * self.factor

    def multiple(self) -> int:
        return self.factor

    def decode(self, latents: Tensor) -> Tensor:
        return decoded(self.pipe.vae, latents)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return encoded(self.pipe.vae, pixels)

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return int(self.pipe.vae_scale_factor)

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.network(0.0).config.in_channels)


class StableDiffusion(Picture):
    """Stable Diffusion 1 and 2."""

    component = "unet"

    @property
    def embedded(self) -> bool:
        return self.pipe.unet.config.time_cond_proj_dim is not None

    def _told_guidance(self, rows: int) -> Tensor | None:
        """The embedding of the guidance weight, for networks that were distilled to take it (LCM)."""
        if not self.embedded:
            return None
        weights = torch.tensor(self.scale - 1).repeat(rows)
        width = self.pipe.unet.config.time_cond_proj_dim
        return self.pipe.get_guidance_scale_embedding(weights, embedding_dim=width).to(self.device, self.dtype)

    def _added(self, rows: int, given: Leaves) -> dict[str, Tensor] | None:
        return None

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        return network(
            x, t, encoder_hidden_states=given["prompt_embeds"], timestep_cond=self._told_guidance(len(x)),
            added_cond_kwargs=self._added(len(x), given), return_dict=False,
        )[0]  # fmt: skip


POOLED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class StableDiffusionXL(StableDiffusion):
    """SDXL: a pooled embedding and the sizes besides."""

    encoders = ("text_encoder", "text_encoder_2")
    outputs = POOLED
    leaves = ("prompt_embeds", "pooled_prompt_embeds")

    def _added(self, rows: int, given: Leaves) -> dict[str, Tensor]:
        pooled, second = given["pooled_prompt_embeds"], self.pipe.text_encoder_2
        size = (self.height, self.width)
        ids = self.pipe._get_add_time_ids(
            size, (0, 0), size, dtype=pooled.dtype,
            text_encoder_projection_dim=pooled.shape[-1] if second is None else second.config.projection_dim,
        )  # fmt: skip
        return {"text_embeds": pooled, "time_ids": ids.to(pooled.device).expand(rows, -1)}


class StableDiffusion3(Picture):
    """SD3 and 3.5."""

    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    outputs = POOLED
    leaves = ("prompt_embeds", "pooled_prompt_embeds")

    def multiple(self) -> int:
        return self.factor * int(self.pipe.transformer.config.patch_size)

    def mu(self) -> float:
        patch = int(self.pipe.transformer.config.patch_size)
        return dynamic_mu(self.pipe.scheduler, (self.shape()[1] // patch) * (self.shape()[2] // patch))

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        return network(
            hidden_states=x, timestep=t, encoder_hidden_states=given["prompt_embeds"],
            pooled_projections=given["pooled_prompt_embeds"], return_dict=False,
        )[0]  # fmt: skip


class PixArt(Picture):
    """PixArt-alpha and -sigma; no resolution binning: the network runs at the size that is asked for."""

    outputs = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    leaves = ("prompt_embeds", "prompt_attention_mask")

    def multiple(self) -> int:
        return self.factor * int(self.pipe.transformer.config.patch_size)

    def more_options(self) -> set[str]:
        return {"clean_caption"}

    def _micro(self, x: Tensor) -> dict[str, Tensor | None]:
        if self.pipe.transformer.config.sample_size != 128:
            return {"resolution": None, "aspect_ratio": None}
        sizes = torch.tensor([[self.height, self.width]]).to(x.device, x.dtype)
        ratio = torch.tensor([[float(self.height / self.width)]]).to(x.device, x.dtype)
        return {"resolution": sizes.expand(len(x), -1), "aspect_ratio": ratio.expand(len(x), -1)}

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        out = network(
            x, encoder_hidden_states=given["prompt_embeds"], encoder_attention_mask=given["prompt_attention_mask"],
            timestep=t, added_cond_kwargs=self._micro(x), return_dict=False,
        )[0]  # fmt: skip
        return out[:, : self.channels]  # the rest are variances


class DiT(Picture):
    """DiT: class labels in place of prompts."""

    encoders = ()
    leaves = ("class_labels",)

    def _size(self, ask: Any) -> tuple[int, int, int | None]:
        size = super()._size(ask)
        if size[:2] != self.default_size():
            raise ArgumentError(f"height={size[0]}, width={size[1]}: this DiT makes {self.default_size()[0]} only")
        return size

    @property
    def factor(self) -> int:
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)

    @property
    def classes(self) -> int:
        """Number of classes; that number itself stands for none."""
        return int(self.pipe.transformer.config.num_embeds_ada_norm)

    def encode(self, prompts: Sequence[Any], negative: str | None, guided: bool) -> tuple[Leaves, Leaves]:
        if negative is not None:
            raise ArgumentError("negative_prompt: DiT knows classes, not texts; leave it out")
        labels = [self._label(prompt) for prompt in prompts]
        null = {"class_labels": torch.tensor([self.classes], device="cpu")} if guided else {}
        return {"class_labels": torch.tensor(labels, device="cpu")}, null

    def _label(self, prompt: Any) -> int:
        named = self.pipe.labels if isinstance(getattr(self.pipe, "labels", None), dict) else {}
        label = named.get(prompt, int(prompt) if str(prompt).isdigit() else -1)
        if not 0 <= label < self.classes:
            raise ArgumentError(
                f"prompts: {prompt!r} is no class of this DiT: give numbers from 0 to {self.classes - 1}"
                + (", or names of its labels" if named else "")
            )
        return label

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        out = network(x, timestep=t, class_labels=given["class_labels"], return_dict=False)[0]
        return out[:, : self.channels]  # the rest are variances


class Flux(Picture):
    """Flux: packed latents, positions, the guidance weight told to the network (dev) or none (schnell)."""

    encoders = ("text_encoder", "text_encoder_2")
    outputs = ("prompt_embeds", "pooled_prompt_embeds", "text_ids")
    leaves = ("prompt_embeds", "pooled_prompt_embeds")
    free = False

    @property
    def embedded(self) -> bool:
        return bool(self.pipe.transformer.config.guidance_embeds)

    @property
    def channels(self) -> int:
        return int(self.pipe.transformer.config.in_channels) // 4

    def default_size(self) -> tuple[int, int]:
        side = int(self.pipe.default_sample_size) * self.factor
        return side, side

    def multiple(self) -> int:
        return 2 * self.factor

    def mu(self) -> float:
        _, height, width = self.shape()
        return dynamic_mu(self.pipe.scheduler, (height // 2) * (width // 2))

    def _encoded(self, prompts: Sequence[str], negative: str | None, guided: bool) -> Leaves:
        made = super()._encoded(prompts, negative, guided)
        return {name: made[name] for name in self.leaves}

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        rows, channels, height, width = x.shape
        weight = torch.full((rows,), self.scale, device=x.device) if self.embedded else None
        ids = self.pipe._prepare_latent_image_ids(rows, height // 2, width // 2, x.device, x.dtype)
        out = network(
            hidden_states=self.pipe._pack_latents(x, rows, channels, height, width), timestep=t / 1000,
            guidance=weight, pooled_projections=given["pooled_prompt_embeds"],
            encoder_hidden_states=given["prompt_embeds"],
            txt_ids=ids.new_zeros(given["prompt_embeds"].shape[1], 3), img_ids=ids, return_dict=False,
        )[0]  # fmt: skip
        return self.pipe._unpack_latents(out, self.height, self.width, self.factor)
