"""Figures of a search over whole schedules: which strategy where, the best so far, what each component is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fewstep.errors import ArgumentError
from fewstep.report.figures import LAM_LABEL
from fewstep.report.style import AFTER, FAINT, INK, SERIES, SOFT, WIDE, new_figure, style
from fewstep.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fewstep.noise import NoiseSchedule
    from fewstep.rules import SolverSchedule

BASIS_COLOURS = {"data": "#1d4ed8", "noise": "#c2410c", "v3": "#0f766e", "velocity": "#7e22ce"}
BEYOND = 1.0
"""An end where log(alpha / sigma) is infinite stands so far beyond the last finite one."""


def strategies_figure(entries: Sequence[tuple[str, SolverSchedule]], noise: NoiseSchedule) -> Figure:
    """Each schedule on a line: a mark where a step ends; colour: basis, number: order, ring: corrector.

    Below a mark stand the points of a low-order first derivative and a scaling other than none. A label's second line
    is set smaller.
    """
    if not entries:
        raise ArgumentError("entries is empty; give at least one (label, schedule)")
    places = _places([s for _, s in entries], noise)
    with style():
        figure = new_figure(WIDE, 1.25 + 0.52 * len(entries))
        axis = figure.subplots()
        used: list[str] = []
        for row, ((_, schedule), place) in enumerate(zip(entries, places, strict=True)):
            axis.plot([place[0], place[-1]], [row, row], color="#dde2e9", linewidth=1.0, zorder=0)
            axis.plot(place[0], row, "|", color=SOFT, markersize=9, zorder=1)
            if schedule.afs:
                axis.annotate(f"x0 = {schedule.afs}", (place[0], row), xytext=(3, 6), textcoords="offset points",
                              fontsize=7, color=SOFT)  # fmt: skip
            ends = iter(place[1:])
            for move in schedule.steps:
                if move.node is None:
                    used.append(_mark(axis, next(ends), row, move))
        for basis in BASIS_COLOURS:
            if basis in used:
                axis.plot([], [], "o", color=BASIS_COLOURS[basis], label=f"{basis} basis")
        axis.plot([], [], "o", color="white", markeredgecolor=INK, markeredgewidth=1.6, label="corrector")
        axis.set_yticks(range(len(entries)), [label.partition("\n")[0] for label, _ in entries])
        for row, (label, _) in enumerate(entries):
            axis.annotate(label.partition("\n")[2], (0, row), xycoords=("axes fraction", "data"), xytext=(-4, -9),
                          textcoords="offset points", ha="right", va="center", fontsize=6.5, color=SOFT)  # fmt: skip
        axis.set_ylim(len(entries) - 0.4, -0.7)
        axis.set_xlabel(LAM_LABEL)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=8)
    return figure


def _mark(axis: Axes, x: float, row: int, move: object) -> str:
    """One step; returns its basis."""
    basis = move.basis if isinstance(move, Step) else "data"
    colour = BASIS_COLOURS[basis]
    ringed = isinstance(move, Step) and move.corrector is not None
    axis.plot(x, row, "o", color=colour, markersize=13, markeredgecolor=INK if ringed else colour, markeredgewidth=1.6,
              zorder=2)  # fmt: skip
    if not isinstance(move, Step):
        return basis
    axis.annotate(str(move.order), (x, row), ha="center", va="center", color="white", fontsize=8, zorder=3)
    words: list[str] = []
    if move.active is not None and move.order > 2 and len(move.active[0]) < move.order - 1:
        words.append(f"F' of {len(move.active[0])}")
    if move.scaling not in ("none", 0.0):
        words.append(f"r {round(move.scaling, 2) + 0.0:+.2g}" if isinstance(move.scaling, float) else str(move.scaling))
    if words:
        axis.annotate("\n".join(words), (x, row), xytext=(0, -9), textcoords="offset points", ha="center", va="top",
                      fontsize=6.5, color=SOFT)  # fmt: skip
    return basis


def _places(
    schedules: Sequence[SolverSchedule], noise: NoiseSchedule
) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    found = [noise.lam(s.times.detach()).numpy().copy() for s in schedules]
    finite = np.concatenate([p[np.isfinite(p)] for p in found])
    return [np.clip(p, finite.min() - BEYOND, finite.max() + BEYOND) for p in found]


def curves_figure(
    curves: Mapping[int, Sequence[tuple[int, float]]], *, judge: str, published: Mapping[int, int] | None = None
) -> Figure:
    """The best score so far after each evaluation `(evaluations, score)`, a panel for each number of calls.

    `published[nfe]`: so many of the first schedules are those of published solvers; they are shaded.
    """
    if not curves:
        raise ArgumentError("curves is empty; give at least one")
    wide = min(4, len(curves))
    rows = math.ceil(len(curves) / wide)
    with style():
        figure = new_figure(WIDE, 0.8 + 2.0 * rows)
        panels = figure.subplots(rows, wide, squeeze=False)
        for axis in panels.flat[len(curves) :]:
            axis.set_visible(False)
        for axis, (nfe, curve) in zip(panels.flat, curves.items(), strict=False):
            x, y = zip(*curve, strict=True)
            axis.step(x, y, where="post", color=AFTER, linewidth=1.6)
            first = (published or {}).get(nfe, 0)
            if first:
                axis.axvspan(0, first, color=FAINT, zorder=-1, linewidth=0)
                axis.annotate("published solvers", (first, 1), xycoords=("data", "axes fraction"), xytext=(-3, -3),
                              textcoords="offset points", ha="right", va="top", fontsize=7, color=SOFT)  # fmt: skip
            axis.set_xlim(0, 1.02 * x[-1])
            axis.set_title(f"{nfe} calls", fontsize=9)
            axis.grid(axis="y")
            if 0 < 4 * min(y) < max(y):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(lambda v, _: f"{v:.3g}")
                axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.2g}" if f"{v:e}"[0] in "25" else "")
        figure.supxlabel("evaluated schedules of this number of calls", fontsize=9, color=SOFT)
        figure.suptitle(f"{judge}, lower is better", fontsize=9, color=SOFT, x=0.01, ha="left")
    return figure


def worth_figure(bars: Sequence[tuple[str, float, float | None]], *, label: str) -> Figure:
    """Horizontal bars `(name, value, error)`, in the given order from the top."""
    if not bars:
        raise ArgumentError("bars is empty; give at least one")
    names, values, errors = zip(*bars, strict=True)
    with style():
        figure = new_figure(WIDE, 0.8 + 0.3 * len(bars))
        axis = figure.subplots()
        y = range(len(bars))
        axis.barh(y, values, xerr=[e or 0.0 for e in errors] if any(errors) else None, color=SERIES[0], height=0.62,
                  error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5})  # fmt: skip
        axis.axvline(0.0, color=SOFT, linewidth=0.8)
        axis.set_yticks(y, names)
        axis.invert_yaxis()
        axis.set_xlabel(label)
        axis.grid(axis="x")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
    return figure
