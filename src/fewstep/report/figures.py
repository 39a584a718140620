"""Figures: data in, `matplotlib.figure.Figure` out. Nothing is shown and no global state is touched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import ArgumentError
from fewstep.report.clouds import cloud_figure
from fewstep.report.style import COLOUR_OF, FAINT, INK, LINE, SERIES, SOFT, WIDE, new_figure, style
from fewstep.report.table import tableau_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fewstep.noise import NoiseSchedule
    from fewstep.tableau import Tableau

__all__ = ["Candidate", "Series", "cloud_figure", "quality_figure", "scores_figure", "tableau_figure", "times_figure"]

Floats = NDArray[np.float64]
LAM_LABEL = "noisy ← half log-SNR λ = log(α/σ) → clean"


@dataclass(frozen=True)
class Series:
    """One line of a chart: `value` at each `x`, with standard `error` where known.

    `role` (before, after or teacher) picks its colour.
    """

    label: str
    x: tuple[float, ...]
    value: tuple[float, ...]
    error: tuple[float | None, ...] = ()
    role: str = ""


@dataclass(frozen=True)
class Candidate:
    """One candidate of a search: the score that selected, and its score on fresh seeds if it was taken again."""

    label: str
    selection: float
    fresh: float | None = None
    fresh_error: float | None = None
    role: str = ""


def times_figure(entries: Sequence[tuple[str, Tableau]], *, roles: Sequence[str] = ()) -> Figure:
    """Times of network calls on the axis of half the log signal-to-noise ratio, one line per entry.

    Calls of equal index are joined; `roles[i]` (before, after, teacher) picks the colour of entry i.

    Raises:
        ArgumentError: a table without a noise schedule.
    """
    if not entries:
        raise ArgumentError("entries is empty; give at least one (label, tableau)")
    points = [_lams_of_calls(label, tableau) for label, tableau in entries]
    noise = _noise_of(*entries[0])
    with style():
        figure = new_figure(WIDE, 0.95 + 0.5 * len(entries))
        axis = figure.subplots()
        finite = np.concatenate([p[np.isfinite(p)] for p in points])
        low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
        pad = 0.04 * max(high - low, 1.0)
        for p in points:  # alpha = 0 and sigma = 0 stand at the rims
            np.copyto(p, np.clip(p, low - pad, high + pad))
        for i, (upper, lower) in enumerate(itertools.pairwise(points)):
            if len(upper) == len(lower):
                for a, b in zip(upper, lower, strict=True):
                    axis.plot([a, b], [i, i + 1], color=LINE, linewidth=0.9, zorder=1)
        for i, p in enumerate(points):
            role = roles[i] if i < len(roles) else ""
            axis.plot(
                p,
                np.full(len(p), i),
                "o",
                markersize=6.5,
                color=COLOUR_OF.get(role, SERIES[i % len(SERIES)]),
                markeredgecolor="white",
                zorder=2,
            )
        axis.set_yticks(range(len(entries)), [label for label, _ in entries])
        axis.set_ylim(len(entries) - 0.5, -0.5)
        axis.set_xlim(low - 2 * pad, high + 2 * pad)
        axis.set_xlabel(LAM_LABEL)
        axis.grid(axis="x")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        _noise_level_axis(axis, noise)
    return figure


def _noise_level_axis(axis: Axes, noise: NoiseSchedule) -> None:
    """A second scale on top, in sigma / alpha, at round values."""
    low, high = axis.get_xlim()
    ratios = [10.0**k for k in range(-6, 7) if low <= -k * math.log(10) <= high]
    top = axis.secondary_xaxis("top")
    top.set_xticks([-math.log(r) for r in ratios], [f"{r:g}" for r in ratios])
    top.set_xlabel("noise level σ/α", fontsize=8)
    top.spines["top"].set_visible(False)
    top.tick_params(length=0, labelsize=8)


def _noise_of(label: str, tableau: Tableau) -> NoiseSchedule:
    if tableau.noise is None:
        raise ArgumentError(
            f"the table of {label!r} has no noise schedule; set Tableau.noise so that its times can be placed"
        )
    return tableau.noise


def _lams_of_calls(label: str, tableau: Tableau) -> Floats:
    noise = _noise_of(label, tableau)
    called = [i for i, evaluated in enumerate(tableau.evaluated) if evaluated]
    return noise.lam(tableau.model_times[called]).detach().numpy().copy()


def quality_figure(series: Sequence[Series], *, judge: str, xlabel: str = "network calls per sample (NFE)") -> Figure:
    """Quality against the number of calls, lower is better, with bars of one standard error where known.

    A logarithmic axis is taken when the values span more than a factor of four. Lines are labelled at their ends.
    """
    if not any(s.value for s in series):
        raise ArgumentError("series holds no value; give at least one Series with one point")
    values = [v for s in series for v in s.value]
    calls = sorted({x for s in series for x in s.x if s.role != "teacher"})
    with style():
        figure = new_figure(WIDE, 3.4)
        axis = figure.subplots()
        ends: list[tuple[float, str, str]] = []
        spare = iter(SERIES * (1 + len(series) // len(SERIES)))
        barred = [s.label for s in series if any(s.error)]
        for s in sorted(series, key=lambda s: s.role == "after"):  # the found schedule is drawn last, on top
            colour = COLOUR_OF.get(s.role) or next(spare)
            if s.role == "teacher":
                axis.axhline(s.value[0], color=colour, linewidth=1.1, linestyle=(0, (4, 3)))
            else:
                errors = [e or 0.0 for e in s.error] if any(s.error) else None
                width = 2.2 if s.role == "after" else 1.3
                # Side by side, so that bars of equal length do not cover each other.
                aside = 0.05 * (barred.index(s.label) - (len(barred) - 1) / 2) if s.label in barred else 0.0
                axis.errorbar(
                    [x + aside for x in s.x],
                    s.value,
                    errors,
                    color=colour,
                    linewidth=width,
                    marker="o",
                    markersize=5,
                    markeredgecolor="white",
                    capsize=2.5,
                    elinewidth=1.1,
                )
            if len(s.x) == 1 and s.role != "teacher":
                at: dict[str, Any] = {
                    "xycoords": "data",
                    "xytext": (8, 9),
                    "textcoords": "offset points",
                    "va": "center",
                    "fontsize": 8.5,
                }
                axis.annotate(s.label, (s.x[0], s.value[0]), color=colour, **at)
            else:
                ends.append((s.value[-1], s.label, colour))
        if min(values) > 0 and max(values) > 4 * min(values):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda v, _: f"{v:.3g}")
            axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.3g}" if f"{v:e}"[0] in "25" else "")
        axis.set_xticks(calls, [f"{x:g}" for x in calls])
        axis.set_xlim(calls[0] - 0.4, calls[-1] + 0.4)
        axis.set_xlabel(xlabel)
        axis.set_title(f"{judge}, lower is better", fontweight="normal", fontsize=9, color=SOFT)
        axis.grid(axis="y")
        _label_ends(axis, ends)
    return figure


def _label_ends(axis: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels beside the right ends of the lines, moved apart so that none covers another."""
    if not ends:
        return
    axis.figure.canvas.draw()
    low, high = axis.transData.transform([(0, v) for v in axis.get_ylim()])[:, 1]
    height = high - low
    least = 13.0 * axis.figure.dpi / 72 / height
    places = [(float(axis.transData.transform((0, v))[1] - low) / height, text, colour) for v, text, colour in ends]
    places.sort()
    at: list[float] = []
    for y, _, _ in places:
        at.append(max(y, at[-1] + least) if at else y)
    over = max(0.0, at[-1] - 1.0)
    for y, (_, text, colour) in zip(at, places, strict=True):
        axis.annotate(
            text,
            (1.0, y - over),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
        )


def scores_figure(candidates: Sequence[Candidate], *, judge: str, most: int = 24) -> Figure:
    """All candidates by the score that selected (hollow), and by a score on fresh seeds (filled).

    The shift from hollow to filled is the winner's curse: the best of many noisy scores is too good on average.
    """
    if not candidates:
        raise ArgumentError("candidates is empty; give at least one")
    ranked = sorted(candidates, key=lambda c: c.selection)
    shown = ranked[:most]
    with style():
        figure = new_figure(WIDE, 0.9 + 0.235 * len(shown))
        axis = figure.subplots()
        for i, c in enumerate(shown):
            colour = COLOUR_OF.get(c.role, SOFT)
            axis.axhline(i, color=FAINT, linewidth=0.9, zorder=0)
            if c.fresh is not None:
                axis.plot([c.selection, c.fresh], [i, i], color=colour, linewidth=1.4, zorder=1)
                axis.errorbar(
                    c.fresh,
                    i,
                    xerr=c.fresh_error,
                    fmt="o",
                    color=colour,
                    markersize=6,
                    capsize=2.5,
                    elinewidth=1.1,
                    markeredgecolor="white",
                    zorder=3,
                )
            axis.plot(c.selection, i, "o", markersize=5.5, markerfacecolor="white", markeredgecolor=colour, zorder=2)
        axis.set_yticks(range(len(shown)), [c.label for c in shown], fontsize=8)
        for label, c in zip(axis.get_yticklabels(), shown, strict=True):
            label.set_color(COLOUR_OF.get(c.role, INK))
            label.set_fontweight("bold" if c.role == "after" else "normal")
        axis.set_ylim(len(shown) - 0.4, -0.6)
        spread = [v for c in shown for v in (c.selection, c.fresh) if v is not None]
        if min(spread) > 0 and max(spread) > 6 * min(spread):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda v, _: f"{v:.3g}")
            axis.xaxis.set_minor_formatter(lambda v, _: f"{v:.3g}" if f"{v:e}"[0] in "25" else "")
        bars = " ± one standard error" if any(c.fresh_error for c in shown) else ""
        axis.set_xlabel(f"{judge}, lower is better\nhollow: selection seeds; filled: fresh seeds{bars}")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    return figure
