"""A table drawn: the weights of every state as a map of colours with the numbers in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import ArgumentError
from fewstep.report.style import AFTER, FAINT, INK, SOFT, TEACHER, bare, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fewstep.tableau import Tableau

MOST_NUMBERED = 16  # columns; a larger table is drawn without its numbers
Floats = NDArray[np.float64]


def tableau_figure(tableau: Tableau) -> Figure:
    """The unrolled table drawn: one row a state, one column a source (start, network outputs, noise, constants).

    Outputs are coloured by weight; start and noise by their share of the state's noise level, so that tables of
    different noise schedules look alike. Numbers are the weights themselves (left out beyond 16 columns).
    """
    flat = tableau.unrolled()
    if flat.A.ndim > 2 or flat.B.ndim > 2 or flat.C.ndim > 2 or flat.K.ndim > 2:
        raise ArgumentError(
            "tableau has per-element weights; draw one element of it (index its trailing dimensions first)"
        )
    blocks = _blocks(flat)
    rows, columns = blocks[0].weights.shape[0], sum(b.weights.shape[1] for b in blocks)
    with style():
        figure = new_figure(1.9 + 0.62 * columns, 1.1 + 0.31 * rows)
        widths = [b.weights.shape[1] for b in blocks]
        axes: list[Axes] = list(
            figure.subplots(1, len(blocks), squeeze=False, gridspec_kw={"width_ratios": widths, "wspace": 0.03})[0]
        )
        for axis, block in zip(axes, blocks, strict=True):
            _draw_block(axis, block, numbers=columns <= MOST_NUMBERED)
        axes[0].set_yticks(range(rows), _row_labels(flat), fontsize=8)
        axes[0].tick_params(axis="y", length=0, labelcolor=INK)
    return figure


@dataclass(frozen=True)
class _Block:
    title: str
    labels: list[str]
    weights: Floats  # [states, columns]
    colour: Floats  # in [-1, 1]; NaN where a state cannot read the column


def _blocks(flat: Tableau) -> list[_Block]:
    """Start, outputs, noise and constants of an unrolled table, without the start row."""
    start, outputs, noises, constants = (m.detach().numpy()[1:] for m in (flat.A[:, :1], flat.B, flat.C, flat.K))
    sigma = flat.sigma.detach().numpy()
    share = np.where(sigma[1:] > 0, sigma[1:], np.inf)[:, None]
    used = [j for j in range(outputs.shape[1]) if flat.evaluated[j // flat.channels]]
    outputs = outputs[:, used]
    names = [f"$D_{{{j // flat.channels}}}$" + (f".{j % flat.channels}" if flat.channels > 1 else "") for j in used]
    reach = np.array([[j // flat.channels < i + 1 for j in used] for i in range(len(outputs))]).reshape(outputs.shape)
    largest = max(float(np.abs(outputs).max(initial=0.0)), 1e-12)
    blocks = [
        _Block("start", ["$x_T$"], start, np.abs(start) * sigma[0] / share),
        _Block("network outputs", names, outputs, np.where(reach, outputs / largest, np.nan)),
    ]
    if noises.shape[1] > MOST_NUMBERED // 2:
        noises, labels = np.sqrt((noises**2).sum(1, keepdims=True)), ["all"]
    else:
        labels = [f"$z_{{{m}}}$" for m in range(noises.shape[1])]
    if noises.size:
        blocks.append(_Block("noise", labels, noises, np.where(noises != 0, np.abs(noises) / share, np.nan)))
    if constants.size:
        top = max(float(np.abs(constants).max()), 1e-12)
        blocks.append(
            _Block("constants", [f"$k_{{{q}}}$" for q in range(constants.shape[1])], constants, constants / top)
        )
    return [b for b in blocks if b.labels]


def _draw_block(axis: Axes, block: _Block, *, numbers: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    blend = LinearSegmentedColormap.from_list("weights", [TEACHER, "#93b4f4", "#ffffff", "#f3b48b", AFTER])
    colours = blend.with_extremes(bad=FAINT)
    axis.imshow(np.ma.masked_invalid(block.colour), cmap=colours, vmin=-1.15, vmax=1.15, aspect="auto")
    axis.set_title(block.title, fontsize=8, color=SOFT, fontweight="normal", pad=20, loc="left")
    bare(axis)
    axis.set_xticks(range(len(block.labels)), block.labels)
    axis.xaxis.tick_top()
    axis.tick_params(axis="x", length=0, labelcolor=INK)
    rows, columns = block.weights.shape
    axis.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.6)
    axis.tick_params(which="minor", length=0)
    if not numbers:
        return
    for i in range(rows):
        for j in range(columns):
            if np.isfinite(block.colour[i, j]) and block.weights[i, j] != 0:
                dark = abs(block.colour[i, j]) > 0.75
                axis.text(
                    j,
                    i,
                    _short(block.weights[i, j]),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if dark else INK,
                )


def _short(weight: float) -> str:
    """Three digits that fit in a cell: `0.418`, `-1.25`, `63.1`, `4e-5`."""
    size = abs(weight)
    if size >= 99.5 or size < 5e-4:
        return f"{weight:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{weight:.{3 if size < 1 else 2 if size < 10 else 1}f}".replace("-", "\N{MINUS SIGN}")


def _row_labels(flat: Tableau) -> list[str]:
    labels: list[str] = []
    last = len(flat.times) - 1
    for i in range(1, last + 1):
        name = "sample" if i == last else f"state {i}" + ("" if flat.evaluated[i] else " (no call)")
        labels.append(f"{name}, t {float(flat.times[i]):.4g}")
    return labels
