"""Layers of the EDM networks (Karras et al. 2022): convolution with resampling, residual block, time embeddings.

Written from the papers' equations, with the parameter names of the released files, so that their tensors load as they
are. Only evaluation is covered: dropout does nothing, augmentation labels are absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Literal["up", "down"]


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, fewer where a group would have less than four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Convolution(nn.Module):
    """A convolution (none for kernel 0) with the resolution doubled or halved by a fixed separable filter.

    The filter comes before the convolution, except where `filter_last` says otherwise (the two do not commute at the
    border: padding with zeros happens first in either case).

    Args:
        channels_in, channels: of input and output; equal for kernel 0.
        kernel: 0 (resampling only), 1 or 3.
        resample: `up`, `down` or None.
        taps: the filter along one axis, normalised to sum 1.
        filter_last: filter behind the convolution (only for `down`).
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        resample: Resample | None = None,
        taps: Sequence[float] = (1, 1),
        *,
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.resample, self.filter_last = kernel, resample, filter_last
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            bound = (channels_in * kernel**2) ** -0.5
            self.weight = nn.Parameter(torch.empty(channels, channels_in, kernel, kernel).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.zeros(channels))
        self.resample_filter: Tensor | None
        axis = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("resample_filter", torch.outer(axis, axis)[None, None] if resample else None)
        self.filter_padding = (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels_in, H, W]` to `[B, channels, H', W']`."""
        if not self.filter_last:
            return self._convolved(self._resampled(x, self.filter_padding), self.kernel // 2)
        return self._resampled(self._convolved(x, self.kernel // 2 + self.filter_padding), 0)

    def _convolved(self, x: Tensor, padding: int) -> Tensor:
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=padding)

    def _resampled(self, x: Tensor, padding: int) -> Tensor:
        if self.resample_filter is None:
            return x
        each = self.resample_filter.expand(x.shape[1], -1, -1, -1)  # one filter, every channel for itself
        if self.resample == "down":
            return F.conv2d(x, each, stride=2, padding=padding, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * each, stride=2, padding=padding, groups=x.shape[1])


class Block(nn.Module):
    """Residual block with optional resampling and self-attention, told the noise level by an embedding.

    Args:
        channels_in, channels: of input and output.
        embedding: length of the embedding.
        resample, taps: as for `Convolution`; the first convolution and the skip path are resampled.
        heads: of the self-attention; 0 for none.
        modulated: the embedding scales and shifts the second norm (ADM); otherwise it is added before it (DDPM++).
        project: the skip path of a resampling block has a convolution even where the channels stay.
        gain: factor on every sum of two paths.
        eps: of the norms.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        embedding: int,
        *,
        resample: Resample | None = None,
        taps: Sequence[float] = (1, 1),
        heads: int = 0,
        modulated: bool = True,
        project: bool = False,
        gain: float = 1.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.channels_in, self.channels = channels_in, channels
        self.heads, self.modulated, self.gain = heads, modulated, gain
        self.norm0 = group_norm(channels_in, eps)
        self.conv0 = Convolution(channels_in, channels, 3, resample, taps)
        self.affine = nn.Linear(embedding, channels * (2 if modulated else 1))
        self.norm1 = group_norm(channels, eps)
        self.conv1 = Convolution(channels, channels, 3)
        self.skip: Convolution | None = None
        if resample or channels != channels_in:
            kernel = 1 if project or channels != channels_in else 0
            self.skip = Convolution(channels_in, channels, kernel, resample, taps)
        if heads:
            self.norm2 = group_norm(channels, eps)
            self.qkv = Convolution(channels, 3 * channels, 1)
            self.proj = Convolution(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x [B, channels_in, H, W]` and `embedding [B, e]` (float32) to `[B, channels, H', W']`."""
        told = self.affine(embedding)[:, :, None, None].to(x.dtype)
        h = self.conv0(F.silu(self.norm0(x)))
        if self.modulated:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + told)
        h = self.conv1(F.silu(h))
        h = self.gain * (h + (x if self.skip is None else self.skip(x)))
        return self.gain * (h + self._attention(h)) if self.heads else h

    def _attention(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        # The channels of the product are ordered (head, channel, which of q, k and v).
        mixed = self.qkv(self.norm2(x)).reshape(rows, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.transpose(2, 3).contiguous() for part in mixed.unbind(3))
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.proj(seen.transpose(2, 3).reshape(x.shape))


class PositionalEmbedding(nn.Module):
    """Cosines and sines at geometric frequencies from 1 to 1/10000 (to the last but one, unless `endpoint`)."""

    def __init__(self, channels: int, *, endpoint: bool = False) -> None:
        super().__init__()
        self.count, self.endpoint = channels // 2, endpoint

    def forward(self, time: Tensor) -> Tensor:
        """`[B]` to `[B, channels]`: all cosines, then all sines."""
        steps = torch.arange(self.count, dtype=torch.float32, device=time.device) / (self.count - self.endpoint)
        return waves(time, 1e-4**steps)


class FourierEmbedding(nn.Module):
    """Cosines and sines at random frequencies, which the file holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, time: Tensor) -> Tensor:
        """`[B]` to `[B, channels]`: all cosines, then all sines."""
        return waves(time, 2 * math.pi * self.freqs)


def waves(time: Tensor, frequencies: Tensor) -> Tensor:
    """`cos` and then `sin` of every time by every frequency, `[B, 2 F]`."""
    angles = time[:, None] * frequencies.to(time.dtype)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
