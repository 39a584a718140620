"""Samples as one picture file: a grid for images, points or a histogram for vectors; several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.errors import ArgumentError
from fewstep.files import atomic_write_bytes
from fewstep.report import images
from fewstep.report.clouds import cloud_figure
from fewstep.report.style import COLOUR_OF, INK, WIDE, bare, new_figure, png_of, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

SUFFIXES = (".png", ".npy")


def check_suffix(path: Path) -> None:
    """Refuse a file kind that cannot be written, before any work.

    Raises:
        ArgumentError: not `.png` or `.npy`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            f"{path} would be a {path.suffix or 'nameless'} file: end it in .png (picture) or .npy (numbers)"
        )


def write(path: Path, samples: Tensor, *, columns: int | None = None) -> Path:
    """Samples `[B, *shape]` as `.png` (grid, points or histogram) or `.npy` (float32 `[B, *shape]`), atomically."""
    import io

    check_suffix(path)
    if path.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, samples.detach().float().cpu().numpy(), allow_pickle=False)
        return atomic_write_bytes(path, buffer.getvalue())
    shape = tuple(samples.shape[1:])
    if images.is_image(shape):
        grid = images.image_grid(samples, columns=columns, scale=images.comfortable_scale(shape[-1]))
        return atomic_write_bytes(path, images.png(grid))
    return atomic_write_bytes(path, png_of(cloud_figure([(f"{len(samples)} samples", vectors(samples))])))


def vectors(samples: Tensor) -> Any:
    """Samples as a float64 matrix `[B, d]`."""
    return samples.detach().cpu().double().flatten(1).numpy()


def side_by_side(entries: Sequence[tuple[str, Tensor]], *, roles: Sequence[str] = ()) -> Figure:
    """The samples of several runs `[(label, samples)]` next to each other, the same seeds in the same places."""
    if not entries:
        raise ArgumentError("entries is empty; give at least one (label, samples)")
    if not all(images.is_image(tuple(samples.shape[1:])) for _, samples in entries):
        return cloud_figure([(label, vectors(samples)) for label, samples in entries], roles=roles)
    grids = [images.image_grid(samples, gap=1, scale=2) for _, samples in entries]
    with style():
        figure = new_figure(WIDE / 3 * len(entries), WIDE / 3 * grids[0].shape[0] / grids[0].shape[1] + 0.35)
        axes: list[Axes] = list(figure.subplots(1, len(entries), squeeze=False)[0])
        for i, (axis, (label, _), grid) in enumerate(zip(axes, entries, grids, strict=True)):
            shown = grid[..., 0] if grid.shape[2] == 1 else grid
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(label, color=COLOUR_OF.get(roles[i] if i < len(roles) else "", INK), fontsize=9)
            bare(axis)
    return figure
