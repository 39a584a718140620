"""One look for all figures: colours with fixed meanings, light axes, and figures as SVG text or PNG bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE, FAINT = "#1b2430", "#5b6776", "#c8cfd8", "#eef1f5"
BEFORE, AFTER, TEACHER = "#7c8798", "#c2410c", "#1d4ed8"
SERIES = ("#0f766e", "#a16207", "#7e22ce", "#0369a1", "#be185d", "#4d7c0f", "#9f1239", "#334155")
"""Colours of further lines; readable on white, and of different lightness for readers who do not see all colours."""
WIDE = 9.3  # inches: the width of the report's column
COLOUR_OF = {"before": BEFORE, "after": AFTER, "teacher": TEACHER}

_SETTINGS: dict[str, Any] = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": FAINT,
    "grid.linewidth": 0.9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",
}
_PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@contextmanager
def style() -> Generator[None]:
    """The settings of every figure, on top of matplotlib's own defaults (a user's matplotlibrc does not reach in)."""
    import matplotlib as mpl

    # Backends are left alone: a rc_context that sets one closes the user's open figures.
    defaults: dict[Any, Any] = {
        key: value
        for key, value in mpl.rcParamsDefault.items()
        if not key.startswith(("backend", "webagg", "interactive"))
    }
    settings: dict[Any, Any] = defaults | _SETTINGS
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, outside pyplot's global list."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08), facecolor="white")


def bare(axes: Axes, *, keep: str = "") -> None:
    """Take the frame and the ticks away; `keep` names the sides that stay (`"x"`, `"y"`)."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"x": ("bottom",), "y": ("left",)}.get(keep, ()))
    if keep != "x":
        axes.set_xticks([])
    if keep != "y":
        axes.set_yticks([])


def svg(figure: Figure) -> str:
    """The figure as one `<svg>` element that can stand in a page: no prolog, no outside reference, the page's font."""
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans', sans-serif", _PAGE_FONT).replace("'DejaVu Sans'", _PAGE_FONT)
    return _distinct_ids(text)


def png_of(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _distinct_ids(text: str) -> str:
    """Ids made unique by the content: figures on one page must not share `axes_1` or a clip path by accident."""
    import zlib

    mark = f"f{zlib.crc32(text.encode()):08x}-"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{mark}\1"', text)
    return re.sub(r'(url\(#|xlink:href="#|href="#)', rf"\1{mark}", text)
