"""Samples as pictures: one grid of bytes, and a PNG writer that needs nothing but zlib."""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

Bytes = NDArray[np.uint8]
PAPER = 255  # colour of the gaps and of empty cells
PNG_COLOUR = {1: 0, 3: 2, 4: 6}  # channels -> colour type (grey, RGB, RGBA)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is shown as a picture: `(C, H, W)`, or `(C, T, H, W)` by its middle frame."""
    return len(shape) in (3, 4) and min(shape[-2:]) >= 4


def to_bytes(samples: Tensor) -> Bytes:
    """Samples `[B, C, H, W]` (or `[B, C, T, H, W]`) as uint8 `[B, H, W, 1 or 3]`.

    One and three channels are pixels in [-1, 1]. Other counts are latents: their first three channels, each stretched
    to its own range. Errors: `ArgumentError` for a shape that is no picture.
    """
    import torch

    if not is_image(tuple(samples.shape[1:])):
        raise ArgumentError(
            f"samples of shape {tuple(samples.shape)} are not pictures; draw vectors with figures.cloud_figure"
        )
    if samples.ndim == 5:
        samples = samples[:, :, samples.shape[2] // 2]
    values = samples.detach().to("cpu", torch.float64)
    if values.shape[1] in (1, 3):
        values = (values + 1) / 2
    else:
        values = values[:, :3] if values.shape[1] >= 3 else values[:, :1]
        low, high = values.amin((0, 2, 3), keepdim=True), values.amax((0, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp_min(1e-12)
    return (values.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def thumbnails(samples: Tensor, most: int = 160) -> Tensor:
    """Pixels `[B, C, H, W]` (videos: the middle frame) averaged over squares until no side exceeds about `most`."""
    import torch

    if samples.ndim == 5:
        samples = samples[:, :, samples.shape[2] // 2]
    return torch.nn.functional.avg_pool2d(samples, math.ceil(max(samples.shape[-2:]) / most))


def image_grid(samples: Tensor | Bytes, *, columns: int | None = None, gap: int = 2, scale: int = 1) -> Bytes:
    """The samples side by side, row by row, as uint8 `[H, W, 1 or 3]`; each pixel becomes `scale` pixels wide.

    `gap` white pixels lie between. `samples`: a tensor as for `to_bytes`, or bytes `[B, H, W, C]`. `columns` defaults
    to a nearly square grid.
    """
    cells = samples if isinstance(samples, np.ndarray) else to_bytes(samples)
    if len(cells) == 0:
        raise ArgumentError("samples is empty; a grid needs at least one image")
    cells = cells.repeat(scale, axis=1).repeat(scale, axis=2)
    n, height, width, channels = cells.shape
    across = columns or _columns(n)
    down = math.ceil(n / across)
    grid = np.full((down * (height + gap) - gap, across * (width + gap) - gap, channels), PAPER, np.uint8)
    for i, cell in enumerate(cells):
        top, left = (i // across) * (height + gap), (i % across) * (width + gap)
        grid[top : top + height, left : left + width] = cell
    return grid


def _columns(n: int) -> int:
    """The width of a nearly square grid, wider by up to half where that leaves no empty cell."""
    least = math.ceil(math.sqrt(n))
    return next((width for width in range(least, math.ceil(1.5 * least) + 1) if n % width == 0), least)


def comfortable_scale(size: int, wanted: int = 80) -> int:
    """Whole-number enlargement that brings an image of `size` pixels to about `wanted`."""
    return max(1, round(wanted / max(size, 1)))


def png(pixels: Bytes) -> bytes:
    """A PNG file of uint8 `[H, W]` or `[H, W, 1, 3 or 4]`."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[2] not in PNG_COLOUR:
        raise ArgumentError(
            f"pixels are {pixels.dtype} {pixels.shape}; give uint8 [H, W], or [H, W, C] with C in {sorted(PNG_COLOUR)}"
        )
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # every row begins with filter type 0
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
