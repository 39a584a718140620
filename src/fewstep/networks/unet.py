"""A small class-conditional U-Net for images, preconditioned as in EDM.

It is built for two CPU cores: pixels are folded 2x2 into channels first (space-to-depth), so that all convolutions run
at half and quarter resolution, and every width is a multiple of 16. The 7x7 level has no attention: three blocks of
3x3 convolutions already see the whole of it, and attention took an eighth of the training time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def channels_last(module: nn.Module) -> None:
    """Lay out convolution weights (in place) as the CPU's convolutions want them."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the embedding scales and shifts the second norm (Dhariwal & Nichol, 2021)."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * channels)
        self.norm2 = nn.GroupNorm(8, channels, affine=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x [B, channels_in, H, W]`, `embedding [B, embedding]` to `[B, channels, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class UNet(nn.Module):
    """`(x, c_noise, label) -> F`, the raw network inside EDM's preconditioning.

    `x` is `[B, channels, size, size]` with an even size, `c_noise` is `[B]`, `label` is `[B]` integers in
    `0..classes`; the value `classes` means "no label" (classifier-free guidance's null class).
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        widths: tuple[int, int] = (48, 96),
        down: int = 1,
        middle: int = 3,
        up: int = 2,
        classes: int = 10,
        embedding: int = 192,
        frequencies: int = 32,
    ) -> None:
        super().__init__()
        wide, deep = widths
        self.classes = classes
        self.frequencies: Tensor
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(0.0, math.log(100.0), frequencies)), persistent=False
        )
        self.time = nn.Sequential(nn.Linear(2 * frequencies, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(classes + 1, embedding)
        self.enter = nn.Conv2d(4 * channels, wide, 3, padding=1)
        self.down = nn.ModuleList([ResidualBlock(wide, wide, embedding) for _ in range(down)])
        self.shrink = nn.Conv2d(wide, deep, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([ResidualBlock(deep, deep, embedding) for _ in range(middle)])
        self.grow = nn.Conv2d(deep, 4 * wide, 1)
        self.up = nn.ModuleList([ResidualBlock(2 * wide if k == 0 else wide, wide, embedding) for k in range(up)])
        self.norm = nn.GroupNorm(8, wide)
        self.leave = nn.Conv2d(wide, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        """The raw output, of x's shape."""
        angles = c_noise[:, None] * self.frequencies
        embedding = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.label(label))
        h = self.enter(F.pixel_unshuffle(x, 2))
        for block in self.down:
            h = block(h, embedding)
        skip = h
        h = self.shrink(h)
        for block in self.middle:
            h = block(h, embedding)
        h = F.pixel_shuffle(self.grow(h), 2)[..., : skip.shape[-2], : skip.shape[-1]]
        h = torch.cat([h, skip], dim=1)
        for block in self.up:
            h = block(h, embedding)
        return F.pixel_shuffle(self.leave(F.silu(self.norm(h))), 2)


class EDMPrecond(nn.Module):
    """EDM's preconditioning (Karras et al. 2022, Table 1): `(x, sigma, label) -> x0`, with `x = x0 + sigma * noise`."""

    def __init__(self, net: UNet, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """The denoised `x [B, C, H, W]` at noise levels `sigma [B]`."""
        s = sigma.reshape(-1, 1, 1, 1)
        d = self.sigma_data
        norm = (s**2 + d**2).sqrt()
        raw = self.net((x / norm).to(memory_format=torch.channels_last), s.flatten().log() / 4, label)
        return (d**2 / norm**2) * x + (s * d / norm) * raw
