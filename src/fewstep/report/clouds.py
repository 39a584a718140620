"""Samples that are no pictures: points in the plane, or a histogram on the line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import ArgumentError
from fewstep.report.style import COLOUR_OF, SERIES, WIDE, bare, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


def cloud_figure(entries: Sequence[tuple[str, Floats]], *, roles: Sequence[str] = ()) -> Figure:
    """Samples `[B, d]` of the entries side by side on equal axes: two coordinates as points, a histogram for d = 1."""
    if not entries:
        raise ArgumentError("entries is empty; give at least one (label, samples)")
    clouds = [np.asarray(points, np.float64).reshape(len(points), -1) for _, points in entries]
    low, high = _middle_range(np.concatenate(clouds))
    with style():
        flat = clouds[0].shape[1] == 1
        figure = new_figure(WIDE / 3 * len(entries), 2.2 if flat else 3.35)
        axes: list[Axes] = list(figure.subplots(1, len(entries), squeeze=False, sharex=True, sharey=True)[0])
        for i, (axis, (label, _), points) in enumerate(zip(axes, entries, clouds, strict=True)):
            colour = COLOUR_OF.get(roles[i] if i < len(roles) else "", SERIES[i % len(SERIES)])
            axis.set_title(label, color=colour, fontsize=9)
            if flat:
                axis.hist(
                    points[:, 0], bins=np.linspace(low[0], high[0], 61).tolist(), density=True, color=colour, alpha=0.85
                )
                bare(axis, keep="x")
            else:
                axis.plot(
                    points[:, 0],
                    points[:, 1],
                    "o",
                    markersize=2.2,
                    markeredgewidth=0,
                    color=colour,
                    alpha=max(0.15, min(0.8, 400 / len(points))),
                )
                axis.set_xlim(low[0], high[0])
                axis.set_ylim(low[1], high[1])
                axis.set_aspect("equal")
                bare(axis)
                for spine in axis.spines.values():
                    spine.set_visible(True)
    return figure


def _middle_range(points: Floats) -> tuple[Floats, Floats]:
    """A box of all but the last thousandth at each side: one escaped sample must not shrink the rest to a dot."""
    good = points[np.isfinite(points).all(1)]
    if not len(good):
        raise ArgumentError("no sample is finite; check the network and the table before drawing")
    low, high = np.quantile(good, [0.001, 0.999], axis=0)
    pad = 0.06 * np.maximum(high - low, 1e-6)
    return low - pad, high + pad
