"""Families of videos: Wan 2.1 and 2.2, LTX. Latents are `[C, frames, H, W]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.pipelines.family import Family, Leaves, dynamic_mu
from fewstep.errors import ArgumentError

ROUNDING = 1e-6
"""A time told that is less than this below the experts' boundary is on it."""


class Video(Family):
    """What both have in common."""

    def default_size(self) -> tuple[int, int]:
        return int(self.defaults["height"]), int(self.defaults["width"])

    def shape(self) -> tuple[int, ...]:
        channels = int(self.network(0.0).config.in_channels)
        return (channels, self.latent_frames, self.height // self.factor, self.width // self.factor)

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return int(self.pipe.vae_scale_factor_spatial)


class Wan(Video):
    """Wan; 2.2 has two experts, one for times at and above `boundary_ratio`, one below."""

    @property
    def temporal(self) -> int:
        return int(self.pipe.vae_scale_factor_temporal)

    @property
    def boundary(self) -> float | None:
        """The time told from which on the expert of high noise is called; None for a single network."""
        ratio = self.pipe.config.boundary_ratio
        return None if ratio is None else ratio * self.pipe.scheduler.config.num_train_timesteps

    def networks(self) -> dict[str, Any]:
        both = {name: getattr(self.pipe, name, None) for name in ("transformer", "transformer_2")}
        found = {name: module for name, module in both.items() if module is not None}
        if not found:
            raise ArgumentError("the pipeline has no transformer: load it with one")
        return found

    def network(self, time: float) -> Any:
        found = list(self.networks().values())
        high = self.boundary is None or time >= self.boundary - ROUNDING
        return found[0 if high or len(found) == 1 else 1]

    def multiple(self) -> int:
        return self.factor * max(self.network(0.0).config.patch_size[1:])

    def facts(self) -> dict[str, Any]:
        return {} if self.boundary is None else {"boundary_ratio": self.pipe.config.boundary_ratio}

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        if self.pipe.config.expand_timesteps:  # one time for each token
            tokens = x.shape[2] * -(-x.shape[3] // 2) * -(-x.shape[4] // 2)
            t = t[:, None].expand(-1, tokens)
        return network(
            hidden_states=x, timestep=t, encoder_hidden_states=given["prompt_embeds"], return_dict=False
        )[0]  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = latents.to(vae.dtype)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return vae.decode(latents * std + mean, return_dict=False)[0]


class LTX(Video):
    """LTX-Video: packed latents, an attention mask, positions in seconds and pixels."""

    outputs = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    leaves = ("prompt_embeds", "prompt_attention_mask")

    @property
    def temporal(self) -> int:
        return int(self.pipe.vae_temporal_compression_ratio)

    @property
    def factor(self) -> int:
        return int(self.pipe.vae_spatial_compression_ratio)

    def multiple(self) -> int:
        return max(32, self.factor)

    def more_options(self) -> set[str]:
        return {"frame_rate"}

    def mu(self) -> float:
        _, frames, height, width = self.shape()
        return dynamic_mu(self.pipe.scheduler, frames * height * width)

    def __call__(self, network: Any, x: Tensor, t: Tensor, given: Leaves) -> Tensor:
        frames, height, width = x.shape[2:]
        patches = self.pipe.transformer_spatial_patch_size, self.pipe.transformer_temporal_patch_size
        out = network(
            hidden_states=self.pipe._pack_latents(x, *patches), encoder_hidden_states=given["prompt_embeds"],
            timestep=t, encoder_attention_mask=given["prompt_attention_mask"], num_frames=frames, height=height,
            width=width, rope_interpolation_scale=(self.temporal / self.options["frame_rate"],) + (self.factor,) * 2,
            return_dict=False,
        )[0]  # fmt: skip
        return self.pipe._unpack_latents(out, frames, height, width, *patches)

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = self.pipe._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        ).to(vae.dtype)
        # A decoder that denoises is told the time 0 (its default), and gets no fresh noise.
        time = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        return vae.decode(latents, time, return_dict=False)[0]
