"""The page of a search over whole schedules: the front, how it came about, what was chosen, what each part is worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.files import atomic_write_text
from fewstep.report import figures, images, search_figures
from fewstep.report.figures import Series
from fewstep.report.parts import card, document, drawing, grid_of, picture, section
from fewstep.words import with_error

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.noise import NoiseSchedule
    from fewstep.rules import SolverSchedule


@dataclass(frozen=True)
class Point:
    """One number of calls: the best schedule found, and the best constant one, as far as each is known.

    Attributes:
        nfe: network calls.
        found, constant: their decisions; `origin` and `constant_origin` say where they come from.
        selected, constant_selected: scores on the seeds that selected, on `images` images.
        fresh, constant_fresh: score and standard error on `fresh_images` seeds that never selected.
        gain: constant less found on these seeds, with its standard error.
        worth: component -> how much worse the found schedule is with the constant one's, and the error; None where
            both agree.
        curve: best score so far after so many evaluations of this number of calls; the first `published` of them are
            schedules of published solvers.
        samples: images or points of both, the same seeds in the same places.
    """

    nfe: int
    found: SolverSchedule
    origin: str
    selected: float
    images: int
    constant: SolverSchedule | None = None
    constant_origin: str = ""
    constant_selected: float | None = None
    fresh: tuple[float, float | None] | None = None
    constant_fresh: tuple[float, float | None] | None = None
    fresh_images: int = 0
    gain: tuple[float, float | None] | None = None
    worth: Mapping[str, tuple[float, float | None] | None] = field(
        default_factory=dict[str, tuple[float, float | None] | None]
    )
    curve: Sequence[tuple[int, float]] = ()
    published: int = 0
    samples: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])


@dataclass(frozen=True)
class SearchPage:
    """All that the page shows; empty parts are left out.

    `importance` is `(component, drop of Kendall's tau, spread)` of the surrogate, `tau` its held-out rank correlation.
    `stages` is a table of what was learned, header first; `facts` is provenance; `save` the command that writes the
    schedules.
    """

    model: str
    proposer: str
    judge: str
    noise: NoiseSchedule
    points: Sequence[Point]
    evaluated: int
    tau: float | None = None
    importance: Sequence[tuple[str, float, float]] = ()
    stages: Sequence[Sequence[str]] = ()
    classes: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    save: str = ""

    @property
    def title(self) -> str:
        """The headline."""
        calls = [p.nfe for p in self.points]
        span = f"{calls[0]}" if len(calls) == 1 else f"{min(calls)} to {max(calls)}"
        return f"{self.model}: whole schedules of {span} network calls"


def write(page: SearchPage, path: str | Path) -> Path:
    """Write the page atomically; returns the path."""
    return atomic_write_text(path, html(page))


def html(page: SearchPage) -> str:
    """The page as one HTML document."""
    parts = (_head, _front, _schedules, _samples, _curves, _worth, _surrogate, _use, _facts)
    return document(page.title, [part(page) for part in parts])


def _head(page: SearchPage) -> str:
    cards = [card("after", with_error(*p.fresh), f"{p.nfe} calls, found") for p in page.points if p.fresh is not None]
    judged = f"{escape(page.judge)}, lower is better. "
    method = f"{page.evaluated:,} schedules evaluated, proposed by {escape(page.proposer)}."
    shown = f'<div class="cards">{"".join(cards)}</div>\n' if cards else ""
    lead = f'<p class="lead">{_verdict(page)}</p>'
    return f'<h1>{escape(page.title)}</h1>\n{lead}\n{shown}<p class="note">{judged}{method}</p>'


def _verdict(page: SearchPage) -> str:
    """For how many numbers of calls a mixed schedule beats the best constant one outside two standard errors."""
    told = [p for p in page.points if p.gain is not None]
    if not told:
        return "No schedule was compared with a constant one on fresh seeds."
    sure = sum(p.gain is not None and p.gain[0] > 2 * (p.gain[1] or 0.0) for p in told)
    return (
        f"On fresh seeds the best mixed schedule beats the best constant strategy by more than two standard errors of "
        f"their difference for {sure} of {len(told)} numbers of calls."
    )


def _front(page: SearchPage) -> str:
    lines: list[Series] = []
    for label, role, name in (("best constant strategy", "before", "constant_fresh"), ("best mixed", "after", "fresh")):
        known = [(p.nfe, told) for p in page.points if (told := getattr(p, name)) is not None]
        if known:
            errors = tuple(told[1] for _, told in known)
            lines.append(Series(label, tuple(float(n) for n, _ in known), tuple(t[0] for _, t in known), errors, role))
    header = ("calls", "best constant strategy", "selected by", "fresh", "best mixed", "selected by", "fresh", "gain")
    rows = [
        (
            str(p.nfe), p.constant_origin or "-", _number(p.constant_selected), _told(p.constant_fresh), p.origin,
            _number(p.selected), _told(p.fresh), _told(p.gain),
        )
        for p in page.points
    ]  # fmt: skip
    counts = sorted({(p.images, p.fresh_images) for p in page.points})
    note = (
        f"<p>Selected by: on the seeds that selected ({_counts(n for n, _ in counts)} images), and so too good. Fresh: "
        f"on {_counts(n for _, n in counts)} images of seeds that selected nothing. Gain: the difference of the two on "
        "the same fresh seeds, whose error is smaller than theirs. Guided: proposed by the surrogate; bred: a child of "
        "these trials.</p>"
    )
    chart = drawing(figures.quality_figure(lines, judge=page.judge)) if lines and len(page.points) > 1 else ""
    return section("The front: quality against network calls", note, chart, grid_of(header, rows))


def _schedules(page: SearchPage) -> str:
    entries: list[tuple[str, SolverSchedule]] = []
    for p in page.points:
        if p.constant is not None:
            entries.append((f"{p.nfe} calls, best constant\n{p.constant_origin}", p.constant))
        if p.found != p.constant:
            entries.append((f"{p.nfe} calls, found\n{p.origin}", p.found))
    note = (
        "<p>A mark stands where a step ends; its colour is what is expanded, its number the Taylor order, a dark ring "
        "a corrector. Small print: a first derivative from fewer points, and its scaling (bh1, bh2; r: by 1 + r h).</p>"
    )
    return section("Which strategy where", note, drawing(search_figures.strategies_figure(entries, page.noise)))


def _samples(page: SearchPage) -> str:
    cells: list[str] = []
    clouds: list[tuple[str, Any]] = []
    for p in page.points:
        for role, label in (("before", "best constant"), ("after", "found")):
            made = p.samples.get(role)
            if made is None:
                continue
            if images.is_image(tuple(made.shape[1:])):
                cells.append(picture(label, role, f"{p.nfe} calls", made))
            else:
                clouds.append((f"{label}, {p.nfe} calls", made.detach().cpu().double().flatten(1).numpy()))
    labels = f" Sample k has class k modulo {page.classes}." if page.classes else ""
    note = f"<p>The same seeds in the same places.{labels}</p>"
    if cells:
        return section("Samples", note, f'<div class="grids">{"".join(cells)}</div>')
    return section("Samples", note, drawing(figures.cloud_figure(clouds))) if clouds else ""


def _curves(page: SearchPage) -> str:
    curves = {p.nfe: p.curve for p in page.points if p.curve}
    if not curves:
        return ""
    note = (
        "<p>On the seeds that select; shaded: the schedules of published solvers, with which every search begins.</p>"
    )
    published = {p.nfe: p.published for p in page.points}
    return section(
        "Best so far", note, drawing(search_figures.curves_figure(curves, judge=page.judge, published=published))
    )


def _worth(page: SearchPage) -> str:
    told = [p for p in page.points if p.worth]
    if not told:
        return ""
    names = list(dict.fromkeys(name for p in told for name in p.worth))
    rows = [(str(p.nfe), *(_marked(worth) if (worth := p.worth.get(n)) else "same" for n in names)) for p in told]
    note = (
        "<p>One component at a time is set back to the best constant strategy's, and the schedule truly evaluated "
        "again on fresh seeds: how much worse it then is, with the standard error of the difference. Components work "
        "together, so the parts do not add up to the whole. Same: both agree there. \N{HEAVY ASTERISK}: beyond two "
        "standard errors.</p>"
    )
    return section("What each component is worth", note, grid_of(("calls", *names), rows))


def _surrogate(page: SearchPage) -> str:
    parts: list[str] = []
    if page.importance:
        parts.append(
            f"<p>A surrogate made of four fifths of the trials ranks the others with Kendall's tau {page.tau:.2f}. The "
            "bars are how much of that is lost when a component is taken from another trial with as many steps.</p>"
        )
        label = "drop of Kendall's tau on unseen trials, with the spread over permutations"
        parts.append(drawing(search_figures.worth_figure(page.importance, label=label)))
    if len(page.stages) > 1:
        table = grid_of(page.stages[0], page.stages[1:])
        times = "once" if len(page.stages) == 2 else f"{len(page.stages) - 1} times"
        parts.append(f"<details><summary>What was learned, {times}</summary>{table}</details>")
    return section("What the surrogate ranks by", *parts) if parts else ""


def _use(page: SearchPage) -> str:
    note = "<p>Writes each schedule found as nfe-N.json, which sample, compare, show and export take:</p>"
    return section("Use it", note, f"<pre>{escape(page.save, quote=False)}</pre>") if page.save else ""


def _facts(page: SearchPage) -> str:
    rows = "".join(f'<tr><td>{escape(k)}</td><td class="text">{escape(v)}</td></tr>' for k, v in page.facts.items())
    return section("How it was made", f"<table>{rows}</table>") if rows else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _told(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "-"
    return with_error(*value) if math.isfinite(value[0]) else "not finite"


def _marked(worth: tuple[float, float | None]) -> str:
    """With a star beyond two standard errors."""
    sure = worth[1] is not None and abs(worth[0]) > 2 * worth[1]
    return _told(worth) + (" \N{HEAVY ASTERISK}" if sure else "")


def _counts(values: Iterable[int]) -> str:
    found = sorted({n for n in values if n})
    return " or ".join(f"{n:,}" for n in found) or "no"
