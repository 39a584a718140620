"""Figures of the field's table: quality against network calls, and against what a method's search cost."""

from __future__ import annotations

import itertools
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


def calls_figure(lines: Sequence[Line], *, judge: str, teacher: float | None = None) -> Figure:
    """Quality against network calls. Hand-crafted samplers are thin lines, and the best of them at each number of calls
    a thick one: that one is flattered, for it was chosen by these very figures.
    """
    _require(lines)
    looks = _looks(lines)
    with style():
        figure = new_figure(WIDE, 4.6)
        axis = figure.subplots()
        for line in lines:
            x, y = [p.nfe for p in line.points], [p.value for p in line.points]
            if line.hand:
                axis.plot(x, y, color=LINE, linewidth=0.8, zorder=1)
                continue
            width = 2.4 if line.first else 1.2
            axis.errorbar(
                x, y, [p.error for p in line.points], label=line.label, linewidth=width, markersize=5,
                markeredgecolor="white", markeredgewidth=0.6, capsize=2, elinewidth=0.9, zorder=4 if line.first else 3,
                **looks[line.label],
            )  # fmt: skip
        best = _best_by_hand(lines)
        if best:
            axis.plot([p.nfe for p in best], [p.value for p in best], color=BEFORE, linewidth=2.0, label="best by hand",
                      zorder=2)  # fmt: skip
        if teacher is not None:
            axis.axhline(teacher, color=TEACHER, linewidth=1.0, linestyle=(0, (4, 3)), label="teacher", zorder=2)
        _scale(axis, [p.value for line in lines for p in line.points])
        nfes = sorted({p.nfe for line in lines for p in line.points})
        axis.set_xticks(nfes, [str(n) for n in nfes])
        axis.set_xlabel("network calls per sample (NFE)")
        axis.set_title(f"{judge}, lower is better", fontweight="normal", fontsize=9, color=SOFT)
        axis.grid(axis="y")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def cost_figure(lines: Sequence[Line], *, judge: str) -> Figure:
    """Quality against what the search cost, one panel for each number of network calls; a method that was given several
    budgets is a line.

    The dashed line is the best hand-crafted sampler, which cost nothing; methods without a cost stand at the left rim.
    """
    _require(lines)
    searched = [line for line in lines if not line.hand]
    looks = _looks(lines)
    nfes = sorted({p.nfe for line in lines for p in line.points})
    costs = [p.cost for line in searched for p in line.points if p.cost > 0]
    rim = min(costs, default=10.0) / 3
    rows = -(-len(nfes) // COLUMNS)
    with style():
        figure = new_figure(WIDE, 1.1 + 2.3 * rows)
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
                        linewidth=1.0, markersize=5.5, capsize=2, elinewidth=0.9, markeredgecolor="white",
                        markeredgewidth=0.6, label=line.label, **looks[line.label],
                    )  # fmt: skip
            if nfe in best:
                axis.axhline(best[nfe], color=BEFORE, linewidth=1.2, linestyle=(0, (4, 3)), label="best by hand")
            axis.set_xscale("log")
            _scale(axis, [p.value for line in searched for p in line.points if p.nfe == nfe])
            axis.set_title(f"{nfe} calls", fontsize=9)
            axis.grid(axis="y")
        figure.supxlabel(COST, fontsize=9, color=SOFT)
        figure.supylabel(f"{judge}, lower is better", fontsize=9, color=SOFT)
        named = {
            label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        if named:
            figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=8)
    return figure


def _require(lines: Sequence[Line]) -> None:
    if not any(line.points for line in lines):
        raise ArgumentError("lines holds no point; give at least one Line with one")


def _looks(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every line that is named: colours come back with another marker."""
    pairs = ((colour, marker) for marker in itertools.cycle(MARKERS) for colour in SERIES)
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if not line.hand:
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
