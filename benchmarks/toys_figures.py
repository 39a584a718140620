"""Histograms of samples in the plane: data and three schedules side by side, as in the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.toys_cells import FIGURES, SOLVERS, Place, Sizes, cells_of
from benchmarks.toys_sets import SPREAD, MixtureToy, TrainedToy
from fewstep.compare import Results
from fewstep.files import atomic_write_bytes
from fewstep.problems.datasets import HALF_SIDE
from fewstep.randomness import ReportSeeds
from fewstep.report.style import SOFT, bare, new_figure, png_of, style

BINS = 50
SHOWN = {"edm": "EDM (ρ = 7)", "logsnr": "LogSNR", "ays": "Align Your Steps"}
SIDE = {"grid_8x8": 25 / 21, "grid_8x4": 25 / 21, "grid_6x6": 1.25, "spirals": 1.15, "checkerboard": 1.25 * HALF_SIDE}
"""Half the picture's side. The distance of two modes, or a square, is then a whole number of bins: all are cut in
the same way."""


def counts(points: Tensor, side: float) -> Tensor:
    """Number of points in each of 50 x 50 bins of the square [-side, side]^2, `[y, x]`; those outside are left out."""
    edges = torch.linspace(-side, side, BINS + 1, dtype=torch.float64, device="cpu")
    return torch.histogramdd(points.double().flip(1), bins=[edges, edges]).hist


def histogram_figure(panels: list[tuple[str, str, Tensor]], title: str, side: float) -> Any:
    """Panels `(title, remark, points)` on equal axes and one colour scale: its top is the data's, the first panel's."""
    grids = [counts(points, side) / len(points) * BINS**2 for *_, points in panels]
    top = grids[0].max().item()
    with style():
        figure = new_figure(2.35 * len(panels) + 0.5, 3.05)
        axes = figure.subplots(1, len(panels))
        image = None
        for axis, (name, remark, _), grid in zip(axes, panels, grids, strict=True):
            image = axis.imshow(
                grid.numpy(), origin="lower", extent=(-side, side, -side, side), vmin=0, vmax=top, cmap="magma",
                interpolation="nearest",
            )  # fmt: skip
            axis.set_title(name, fontsize=9)
            axis.set_xlabel(remark, fontsize=8, color=SOFT)
            axis.set_aspect("equal")
            bare(axis)
        bar = figure.colorbar(image, ax=axes, shrink=0.72, pad=0.01, aspect=24)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("density (mean bin = 1)", fontsize=7, color=SOFT)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def draw_all(a: MixtureToy | TrainedToy, kept: Results, sizes: Sizes, folder: Path) -> None:
    """The picture of one set, if it has one."""
    for name, solver, nfe in FIGURES:
        if name != a.name:
            continue
        seeds = ReportSeeds(sizes.report)
        panels = [("data", "", a.exact(seeds))]
        for cell in cells_of(a, kept, Place(name, solver, nfe), sizes):
            if cell.times in SHOWN and cell.tableau is not None:
                points = a.draw(cell.tableau, seeds)
                panels.append((SHOWN[cell.times], f"KL {a.divergence(points[:SPREAD]):.2f}", points))
        figure = histogram_figure(panels, f"{SOLVERS[solver]}, {nfe} calls", SIDE[name])
        atomic_write_bytes(folder / f"toys_{name}.png", png_of(figure, dpi=110))
