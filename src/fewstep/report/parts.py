"""What the report pages are put together of: the document, its sections, tables, cards and pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from fewstep.report import images, style
from fewstep.words import seconds_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def document(title: str, parts: Iterable[str]) -> str:
    """A whole self-contained page: no script, nothing fetched from anywhere. Empty parts are left out."""
    body = "\n".join(filter(None, parts))
    css = files("fewstep.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n"
        "</html>\n"
    )


def card(role: str, number: str, text: str) -> str:
    """A number with its words; an error after " ± " is set smaller."""
    value, _, error = number.partition(" ± ")
    small = f" <small>± {error}</small>" if error else ""
    return f'<div class="card"><b class="{role}">{value}{small}</b><span>{escape(text)}</span></div>'


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return "\n".join((f"<h2>{title}</h2>", *filter(None, parts)))


def picture(label: str, role: str, detail: str, samples: Tensor) -> str:
    """A grid of images with its caption."""
    data = base64.b64encode(images.png(images.image_grid(samples, gap=1))).decode("ascii")
    caption = f'<figcaption class="{role}">{escape(label)} <small>{escape(detail)}</small></figcaption>'
    return f'<figure>{caption}<img alt="samples of {escape(label)}" src="data:image/png;base64,{data}"></figure>'


def grid_of(header: Iterable[str], lines: Iterable[Iterable[str]], total: Iterable[str] = ()) -> str:
    """A table."""
    cells = lambda row, tag: "".join(f"<{tag}>{escape(c)}</{tag}>" for c in row)  # noqa: E731
    body = "".join(f"<tr>{cells(r, 'td')}</tr>" for r in lines)
    last = f'<tr class="sum">{cells(total, "td")}</tr>' if total else ""
    return f'<div class="wide"><table class="loose"><tr>{cells(header, "th")}</tr>{body}{last}</table></div>'


def drawing(drawn: Figure) -> str:
    """A drawing, as SVG in the page."""
    return f'<figure class="wide">{style.svg(drawn)}</figure>'


def duration(value: float) -> str:
    """In words; short times to a tenth of a second."""
    return seconds_in_words(value) if value >= 10 else f"{value:.1f} s"
