"""The two U-Nets of the EDM networks: DDPM++ or NCSN++ (`SongUNet`) and ADM (`DhariwalUNet`).

An implementation of its own, for evaluation only; parameters and arguments are named as in the released files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import ArgumentError
from fewstep.networks.edm_layers import Block, Convolution, FourierEmbedding, PositionalEmbedding, group_norm


def _known(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ArgumentError(f"{argument}={value!r} is not supported: the released networks have {' or '.join(known)}")


HEAD_CHANNELS = 64
"""channels of one attention head in ADM; DDPM++ and NCSN++ have one head"""


def levels(resolution: int, mults: Sequence[int], channels: int) -> list[tuple[str, int, int]]:
    """`("32x32", 32, channels)` from the finest resolution to the coarsest."""
    return [(f"{resolution >> k}x{resolution >> k}", resolution >> k, channels * m) for k, m in enumerate(mults)]


class UNet(nn.Module):
    """What both architectures share: the encoder, the decoder with its skips, and the walk through them."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.map_label: nn.Linear | None = None

    def _grow(
        self,
        stages: list[tuple[str, int, int]],
        channels_in: int,
        first: int,
        blocks: int,
        make: Callable[..., Block],
        attended: Callable[[int, bool], bool],
        residual: Callable[[int, int], Convolution] | None = None,
    ) -> int:
        """Fill encoder and decoder; returns the channels that come out.

        `make(channels_in, channels, attention=..., resample=...)` makes a block, `attended(resolution, last)` says
        which decoder blocks attend, `residual` makes the path of the shrunken input into each level (NCSN++).
        """
        name = stages[0][0]
        self.enc[f"{name}_conv"] = Convolution(channels_in, first, 3)
        now, aside, skips = first, channels_in, [first]
        for k, (name, resolution, width) in enumerate(stages):
            if k:
                self.enc[f"{name}_down"] = make(now, now, resample="down")
                skips.append(now)
                if residual is not None:
                    self.enc[f"{name}_aux_residual"] = residual(aside, now)
                    aside = now
            for index in range(blocks):
                self.enc[f"{name}_block{index}"] = make(now, width, attention=attended(resolution, True))
                now = width
                skips.append(now)
        for k, (name, resolution, width) in reversed(list(enumerate(stages))):
            if k == len(stages) - 1:
                self.dec[f"{name}_in0"] = make(now, now, attention=True)
                self.dec[f"{name}_in1"] = make(now, now)
            else:
                self.dec[f"{name}_up"] = make(now, now, resample="up")
            for index in range(blocks + 1):
                attention = attended(resolution, index == blocks)
                self.dec[f"{name}_block{index}"] = make(now + skips.pop(), width, attention=attention)
                now = width
        return now

    def _walk(self, x: Tensor, embedding: Tensor) -> Tensor:
        aside, skips = x, list[Tensor]()
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = aside = skips[-1] = (x + layer(aside)) / math.sqrt(2)
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, Block):
                x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return x


class SongUNet(UNet):
    """DDPM++ and NCSN++ (Song et al. 2021): `(x, c_noise, labels) -> F`.

    Args are those of the released files; `augment_dim` makes a layer that is loaded and never used, and both dropouts
    do nothing.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        _known("embedding_type", embedding_type, ("positional", "fourier"))
        _known("encoder_type", encoder_type, ("standard", "residual"))
        _known("decoder_type", decoder_type, ("standard",))
        told, wide = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(told, endpoint=True) if positional else FourierEmbedding(told)
        self.map_label = nn.Linear(label_dim, told) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, told, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(told, wide), nn.Linear(wide, wide)

        def make(channels_in: int, channels: int, *, attention: bool = False, resample: Any = None) -> Block:
            return Block(
                channels_in, channels, wide, resample=resample, taps=resample_filter, heads=int(attention),
                modulated=False, project=True, gain=math.sqrt(0.5), eps=1e-6,
            )  # fmt: skip

        def residual(channels_in: int, channels: int) -> Convolution:
            return Convolution(channels_in, channels, 3, "down", resample_filter, filter_last=True)

        stages = levels(img_resolution, channel_mult, model_channels)
        last = self._grow(
            stages, in_channels, model_channels, num_blocks, make,
            lambda resolution, final: final and resolution in attn_resolutions,
            residual if encoder_type == "residual" else None,
        )  # fmt: skip
        self.finest = stages[0][0]
        self.dec[f"{self.finest}_aux_norm"] = group_norm(last, 1e-6)
        self.dec[f"{self.finest}_aux_conv"] = Convolution(last, out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """`x [B, C, H, W]`, `c_noise [B]`, `labels [B or 1, label_dim]` (one-hot) to the raw output, in x's dtype."""
        cosines, sines = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)  # this family has them the other way round
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels * math.sqrt(self.map_label.in_features))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        h = self._walk(x, embedding)
        return self.dec[f"{self.finest}_aux_conv"](F.silu(self.dec[f"{self.finest}_aux_norm"](h)))


class DhariwalUNet(UNet):
    """ADM (Dhariwal & Nichol 2021): `(x, c_noise, labels) -> F`; arguments as for `SongUNet`."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
    ) -> None:
        super().__init__()
        wide = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(model_channels, wide), nn.Linear(wide, wide)
        self.map_label = nn.Linear(label_dim, wide, bias=False) if label_dim else None

        def make(channels_in: int, channels: int, *, attention: bool = False, resample: Any = None) -> Block:
            heads = channels // HEAD_CHANNELS if attention else 0
            return Block(channels_in, channels, wide, resample=resample, heads=heads)

        stages = levels(img_resolution, channel_mult, model_channels)
        last = self._grow(
            stages, in_channels, stages[0][2], num_blocks, make, lambda resolution, _: resolution in attn_resolutions
        )
        self.out_norm, self.out_conv = group_norm(last, 1e-5), Convolution(last, out_channels, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """As `SongUNet.forward`."""
        embedding = self.map_layer1(F.silu(self.map_layer0(self.map_noise(c_noise))))
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels)
        return self.out_conv(F.silu(self.out_norm(self._walk(x, F.silu(embedding)))))


UNETS: dict[str, Callable[..., UNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
