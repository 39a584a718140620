"""One self-contained HTML page: pictures and figures inside, no script, nothing fetched from anywhere."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.files import atomic_write_text
from fewstep.report import figures, images
from fewstep.report.figures import Candidate, Series
from fewstep.report.parts import card, document, drawing, duration, grid_of, picture, section
from fewstep.words import with_error

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.tableau import Tableau

MOST_DRAWN = 24  # candidates


@dataclass(frozen=True)
class Entry:
    """One sampler on the page. `role` is before, after or teacher; `score` and `error` are on the fresh seeds.

    `label` is short, `detail` says more (the solver, where the times come from). `others` holds
    further judges: name -> (value, standard error or None).
    """

    label: str
    role: str
    nfe: int
    tableau: Tableau | None = None
    samples: Tensor | None = None
    score: float | None = None
    error: float | None = None
    detail: str = ""
    others: Mapping[str, tuple[float, float | None]] = field(default_factory=dict[str, tuple[float, float | None]])


@dataclass(frozen=True)
class Cost:
    """What one stage took."""

    stage: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Page:
    """All that a report shows. Empty parts are left out.

    `judge` names the score of the entries ("Fréchet distance, 5,000 samples"), `selected_by` the one that chose.
    `series_judge` names the score of the lines where it is another, `series_note` explains them.
    `classes` is their number where the samples were made with balanced classes, k modulo classes for seed k.
    `trials` is the table of everything that was scored, its header first; `parts` and `course` are tables of what each
    part of the search found, and where it stood after each. `facts` is provenance: seeds, versions.
    `gain_error` is the standard error of the difference of before and after on the same seeds.
    """

    model: str
    nfe: int
    method: str
    judge: str
    entries: Sequence[Entry]
    selected_by: str = ""
    series: Sequence[Series] = ()
    series_judge: str = ""
    series_note: str = ""
    candidates: Sequence[Candidate] = ()
    trials: Sequence[Sequence[str]] = ()
    parts: Sequence[Sequence[str]] = ()
    course: Sequence[Sequence[str]] = ()
    costs: Sequence[Cost] = ()
    schedule_file: str = "schedule.json"
    classes: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    gain_error: float | None = None

    @property
    def title(self) -> str:
        """The headline."""
        return f"{self.model} in {self.nfe} network calls"

    def entry(self, role: str) -> Entry | None:
        """The first entry of this role."""
        return next((e for e in self.entries if e.role == role), None)


def write(page: Page, path: str | Path) -> Path:
    """Write the page atomically; returns the path."""
    return atomic_write_text(path, html(page))


def html(page: Page) -> str:
    """The page as one HTML document."""
    parts = (_head, _samples, _quality, _times, _table, _candidates, _others, _parts, _costs, _use, _facts)
    return document(page.title, [part(page) for part in parts])


def verdict(before: Entry, after: Entry, gain_error: float | None = None) -> str:
    """The result in one sentence, that claims a gain only outside two standard errors of the difference.

    `gain_error` is the standard error of the difference where it was measured on the same seeds; the two errors joined
    as if they were independent stand for it otherwise.
    """
    if before.score is None or after.score is None:
        return "Neither was judged on fresh seeds, so look at the samples."
    gain, error = before.score - after.score, math.hypot(before.error or 0.0, after.error or 0.0)
    error = error if gain_error is None else gain_error
    share = f"{abs(gain) / before.score:.0%}" if before.score > 0 else f"{abs(gain):.3g}"
    known = before.error is not None and after.error is not None
    if known and abs(gain) <= 2 * error:
        return "The two differ by less than two standard errors: on this judge no gain can be shown."
    outside = ", outside the error bars" if known else " (no error bars are known)"
    return (
        f"The found schedule is {share} {'lower (better)' if gain > 0 else 'higher (worse)'} on fresh seeds{outside}."
    )


def _head(page: Page) -> str:
    before, after = page.entry("before"), page.entry("after")
    cards = [card(e.role, with_error(e.score, e.error), _described(e)) for e in page.entries if e.score is not None]
    if page.costs:
        calls, seconds = sum(c.calls for c in page.costs), sum(c.seconds for c in page.costs)
        cards.append(card("", f"{calls:,}", f"network calls in all, {duration(seconds)}"))
    lead = f'<p class="lead">{escape(verdict(before, after, page.gain_error))}</p>' if before and after else ""
    judge = f'<p class="note">{escape(page.judge)}, lower is better. Method: {escape(page.method)}.</p>'
    return f'<h1>{escape(page.title)}</h1>\n{lead}\n<div class="cards">{"".join(cards)}</div>\n{judge}'


def _described(entry: Entry) -> str:
    return f"{entry.label}, {entry.nfe} calls" + (f": {entry.detail}" if entry.detail else "")


def _samples(page: Page) -> str:
    shown = [(e, e.samples) for e in page.entries if e.samples is not None and len(e.samples)]
    if not shown:
        return ""
    labels = f" Sample k has class k modulo {page.classes}." if page.classes else ""
    note = f"<p>The same seeds in the same places.{labels}</p>"
    if all(images.is_image(tuple(samples.shape[1:])) for _, samples in shown):
        cells = "".join(picture(e.label, e.role, _calls_of(e), samples) for e, samples in shown)
        return section("Samples", note, f'<div class="grids">{cells}</div>')
    clouds = [(e.label, samples.detach().cpu().double().flatten(1).numpy()) for e, samples in shown]
    return section("Samples", note, drawing(figures.cloud_figure(clouds, roles=[e.role for e, _ in shown])))


def _calls_of(entry: Entry) -> str:
    return f"{entry.nfe} calls" + (f", {entry.detail}" if entry.detail else "")


def _quality(page: Page) -> str:
    if not page.series:
        return ""
    bars = "Bars are one standard error. " if any(any(s.error) for s in page.series) else ""
    figure = figures.quality_figure(page.series, judge=page.series_judge or page.judge)
    return section("Quality against network calls", f"<p>{bars}{escape(page.series_note)}</p>", drawing(figure))


def _times(page: Page) -> str:
    shown = [(e, e.tableau) for e in page.entries if e.tableau is not None and e.tableau.noise is not None]
    if not shown:
        return ""
    note = "<p>Where the network is called, from noise on the left to the clean image on the right.</p>"
    figure = figures.times_figure([(e.label, tableau) for e, tableau in shown], roles=[e.role for e, _ in shown])
    return section("Times", note, drawing(figure))


def _table(page: Page) -> str:
    after = page.entry("after")
    if after is None or after.tableau is None or after.tableau.A.ndim > 2:
        return ""
    note = (
        "<p>The whole sampler. Each row is a state, written as a weighted sum of the start <i>x<sub>T</sub></i>, the "
        "network's outputs <i>D<sub>j</sub></i> (its estimates of the clean image) and fresh noise. "
        "Grey cells do not exist yet.</p>"
    )
    text = f"<details><summary>The same in numbers</summary><pre>{escape(str(after.tableau))}</pre></details>"
    return section("The table", note, drawing(figures.tableau_figure(after.tableau)), text)


def _candidates(page: Page) -> str:
    if not page.candidates:
        return ""
    judge = page.selected_by or page.judge
    note = (
        f"<p>The last round on the seeds that selected (by {escape(judge)}), and the finalists on fresh ones. "
        "The best of many noisy scores is too good on average; the distance of the two marks shows by how much.</p>"
    )
    figure = figures.scores_figure(page.candidates, judge=judge, most=MOST_DRAWN)
    return section("Candidates", note, drawing(figure), _trials(page.trials))


def _trials(trials: Sequence[Sequence[str]]) -> str:
    if len(trials) < 2:
        return ""
    summary = f"All {len(trials) - 1} candidates, by number of samples (only scores in one column can be compared)"
    return f"<details><summary>{summary}</summary>{grid_of(trials[0], trials[1:])}</details>"


def _others(page: Page) -> str:
    """Further judges beside the one that selected: they disagree, and a reader should see it."""
    names = list(dict.fromkeys(name for e in page.entries for name in e.others))
    if not names:
        return ""
    told = [e for e in page.entries if e.others]
    rows = [(e.label, *(with_error(*e.others.get(n, (math.nan, None))) for n in names)) for e in told]
    return section("Other judges", "<p>Judges disagree; none of these selected.</p>", grid_of(("", *names), rows))


def _parts(page: Page) -> str:
    tables = [grid_of(rows[0], rows[1:]) for rows in (page.parts, page.course) if rows]
    return section("What each part found", *tables) if tables else ""


def _costs(page: Page) -> str:
    if not page.costs:
        return ""
    rows = [(c.stage, f"{c.calls:,}", duration(c.seconds)) for c in page.costs]
    total = ("in all", f"{sum(c.calls for c in page.costs):,}", duration(sum(c.seconds for c in page.costs)))
    return section("Cost", grid_of(("stage", "network calls", "time"), rows, total))


def _use(page: Page) -> str:
    name, model = shlex.quote(page.schedule_file), shlex.quote(page.model)
    labels = f", condition=torch.arange(64) % {page.classes}" if page.classes else ""
    python = (
        f"{'import torch' + chr(10) if labels else ''}import fewstep as fs\n\n"
        f'model = fs.load("{page.model}")\n'
        f'tableau = fs.Tableau.load("{page.schedule_file}")\n'
        f"images = fs.sample(model, tableau, seeds=range(64){labels})"
    )
    shell = (
        f"fewstep sample {model} --schedule {name} --seeds 0-63 --out grid.png\n"
        f"fewstep compare {model} --nfe {page.nfe} --schedule {name}\n"
        f"fewstep show {name}\nfewstep export {name} --to comfyui"
    )
    parts = (("In Python:", python), ("From the shell:", shell))
    return section("Use it", *(f"<p>{title}</p>\n<pre>{escape(text, quote=False)}</pre>" for title, text in parts))


def _facts(page: Page) -> str:
    if not page.facts:
        return ""
    rows = "".join(f'<tr><td>{escape(k)}</td><td class="text">{escape(v)}</td></tr>' for k, v in page.facts.items())
    return section("How it was made", f"<table>{rows}</table>")
