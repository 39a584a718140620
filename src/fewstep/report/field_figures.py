"""Figures of the field's table: quality against network calls, and against what a method's search cost."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.errors import ArgumentError
from fewstep.report.style import AFTER, BEFORE, LINE, SERIES, SOFT, TEACHER, WIDE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMNS = 3
BEST = "best by hand"
DASHED = (0, (4, 3))
MARKED: dict[str, Any] = {
    "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.6, "capsize": 2, "elinewidth": 0.9,
}  # fmt: skip
COST = "network calls of the search, the teacher's included; one that was differentiated counts three times"


@dataclass(frozen=True)
class Point:
    """A sampler: its number of network calls, its figure with standard error, and what its search cost in calls."""

    nfe: int
    value: float
    error: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True)
class Line:
    """The samplers of one method; `hand` for hand-crafted ones, which are drawn behind and are not named one by one,
    and `first` for the one that stands out.
    """

    label: str
    points: tuple[Point, ...]
    hand: bool = False
    first: bool = False


@dataclass(frozen=True)
class Panel:
    """One judge's view of all methods, and of the teacher where it has one."""

    judge: str
    lines: Sequence[Line]
    teacher: float | None = None


def calls_figure(panels: Sequence[Panel]) -> Figure:
    """Quality against network calls, a panel for each judge. Hand-crafted samplers are thin lines, and the best of them
    at each number of calls a thick one: that one is flattered, for it was chosen by these very figures.
    """
    _require([line for panel in panels for line in panel.lines])
    looks = _looks([line for panel in panels for line in panel.lines])
    with style():
        figure = new_figure(WIDE, 4.4)
        axes = list(figure.subplots(1, len(panels), squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=True):
            _draw_calls(axis, panel, looks)
        figure.supxlabel("network calls per sample (NFE)", fontsize=9, color=SOFT)
        _legend(figure, axes)
    return figure


def _draw_calls(axis: Axes, panel: Panel, looks: dict[str, dict[str, Any]]) -> None:
    for line in panel.lines:
        x, y = [p.nfe for p in line.points], [p.value for p in line.points]
        if line.hand:
            axis.plot(x, y, color=LINE, linewidth=0.8, zorder=1)
            continue
        axis.errorbar(
            x, y, [p.error for p in line.points], label=line.label, linewidth=2.4 if line.first else 1.2,
            zorder=4 if line.first else 3, **MARKED, **looks[line.label],
        )  # fmt: skip
    best = _best_by_hand(panel.lines)
    if best:
        axis.plot([p.nfe for p in best], [p.value for p in best], color=BEFORE, linewidth=2.0, label=BEST, zorder=2)
    if panel.teacher is not None:
        axis.axhline(panel.teacher, color=TEACHER, linewidth=1.0, linestyle=DASHED, label="teacher", zorder=2)
    _scale(axis, [p.value for line in panel.lines for p in line.points])
    nfes = sorted({p.nfe for line in panel.lines for p in line.points})
    axis.set_xticks(nfes, [str(n) for n in nfes])
    _say(axis, panel.judge)
    axis.grid(axis="y")


def cost_figure(lines: Sequence[Line], *, judge: str) -> Figure:
    """Quality against what the search cost, one panel for each number of network calls of a search; a method that was
    given several budgets is a line.

    The dashed line is the best hand-crafted sampler, which cost nothing; methods without a cost stand at the left rim.
    """
    _require(lines)
    searched = [line for line in lines if not line.hand]
    looks = _looks(lines)
    nfes = sorted({p.nfe for line in searched or lines for p in line.points})
    costs = [p.cost for line in searched for p in line.points if p.cost > 0]
    free = any(p.cost <= 0 for line in searched for p in line.points)
    rim = min(costs, default=10.0) / (3 if free else 1.5)
    rows = -(-len(nfes) // COLUMNS)
    with style():
        figure = new_figure(WIDE, 1.2 + 2.4 * rows)
        axes = list(figure.subplots(rows, min(COLUMNS, len(nfes)), squeeze=False, sharex=True).flat)
        best = {p.nfe: p.value for p in _best_by_hand(lines)}
        for axis, nfe in itertools.zip_longest(axes, nfes):
            if nfe is None:
                axis.set_visible(False)
                continue
            for line in searched:
                points = sorted((p for p in line.points if p.nfe == nfe), key=lambda p: p.cost)
                if points:
                    axis.errorbar(
                        [max(p.cost, rim) for p in points], [p.value for p in points], [p.error for p in points],
                        linewidth=1.0, label=line.label, **MARKED, **looks[line.label],
                    )  # fmt: skip
            if nfe in best:
                axis.axhline(best[nfe], color=BEFORE, linewidth=1.2, linestyle=DASHED, label=BEST)
            _scale(axis, [p.value for line in searched for p in line.points if p.nfe == nfe])
            _cost_axis(axis, rim / 1.5, 2 * max(costs, default=3 * rim))
            axis.set_title(f"{nfe} calls", fontsize=9)
            axis.grid(axis="y")
        figure.suptitle(f"{judge}, lower is better", fontsize=9, color=SOFT, x=0.01, ha="left")
        figure.supxlabel(COST, fontsize=9, color=SOFT)
        _legend(figure, axes)
    return figure


def _cost_axis(axis: Axes, low: float, high: float) -> None:
    """A logarithmic axis of network calls with a few round numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_xlim(low, high)
    wide = high > 100 * low
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(
        lambda v, _: f"{v / 1e6:g}M" if v >= 1e6 else f"{v / 1e3:g}k" if v >= 1e3 else f"{v:g}"
    )
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=8)


def _say(axis: Axes, judge: str) -> None:
    """The judge above a panel, in lines that fit."""
    words = textwrap.fill(f"{judge}, lower is better", 52)
    axis.set_title(words, fontweight="normal", fontsize=9, color=SOFT)


def _require(lines: Sequence[Line]) -> None:
    if not any(line.points for line in lines):
        raise ArgumentError("lines holds no point; give at least one Line with one")


def _looks(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every line that is named: colours come back with another marker."""
    pairs = ((colour, marker) for marker in itertools.cycle(MARKERS) for colour in SERIES)
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if not line.hand and line.label not in found:
            colour, marker = (AFTER, "o") if line.first else next(pairs)
            found[line.label] = {"color": colour, "marker": marker}
    return found


def _best_by_hand(lines: Sequence[Line]) -> list[Point]:
    found: dict[int, Point] = {}
    for p in (p for line in lines if line.hand for p in line.points):
        if p.nfe not in found or p.value < found[p.nfe].value:
            found[p.nfe] = p
    return [found[nfe] for nfe in sorted(found)]


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the values span more than a factor of four."""
    if values and min(values) > 0 and max(values) > 4 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda v, _: f"{v:.3g}")
        axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.3g}" if f"{v:e}"[0] in "25" else "")
