"""The field's table as a page and two figures, from the cells that lie in a folder; no network is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import ArgumentError
from fewstep.files import atomic_write_bytes, atomic_write_text
from fewstep.reproduce.field_table import ABOUT, CELLS, FieldTable
from fewstep.results import Results
from fewstep.words import with_error

if TYPE_CHECKING:
    from fewstep.report.field_figures import Line

PAGE, CALLS_FIGURE, COST_FIGURE = "field.md", "quality-calls.png", "quality-cost.png"
COSTS = ("teacher_calls", "search_calls", "backward_calls", "seconds", "memory_mib")
FIRST = "auto"
"""The method that the figures make stand out."""
BACKWARD = 2
"""What differentiating a call costs beside it, in calls."""


@dataclass(frozen=True)
class Entry:
    """A method at a number of calls, over its seeds."""

    method: str
    kind: str
    nfe: int
    cells: tuple[dict[str, Any], ...]

    def score(self, name: str) -> tuple[float, float] | None:
        """Mean over the seeds with its error: the larger of what the errors of the cells and what the spread between
        them say. None where a cell has no such score.
        """
        values = [cell["scores"].get(name, math.nan) for cell in self.cells]
        if not values or not all(math.isfinite(v) for v in values):
            return None
        k, mean = len(values), sum(values) / len(values)
        within = math.sqrt(sum(cell["scores"].get(f"{name}_error", 0.0) ** 2 for cell in self.cells)) / k
        between = math.sqrt(sum((v - mean) ** 2 for v in values) / (k - 1) / k) if k > 1 else 0.0
        return mean, max(within, between)

    def cost(self, name: str) -> float:
        """Mean over the seeds."""
        return sum(cell.get("cost", {}).get(name, 0.0) for cell in self.cells) / len(self.cells)

    @property
    def calls(self) -> float:
        """All that the search cost, in network calls."""
        return self.cost("teacher_calls") + self.cost("search_calls") + BACKWARD * self.cost("backward_calls")

    @property
    def kept(self) -> bool:
        """Whether the search of any seed found nothing better than what it began with."""
        return any(cell.get("kept") for cell in self.cells)


@dataclass(frozen=True)
class Page:
    """What a folder holds: facts, entries of methods in their order, and the teacher's own.

    Where a cell was made with several efforts, `entries` has the last, and `earlier` the others.
    """

    about: dict[str, Any]
    entries: tuple[Entry, ...]
    teacher: Entry
    earlier: tuple[Entry, ...] = ()

    @staticmethod
    def read(folder: Path) -> Page:
        """The page of a folder.

        Errors: `ArgumentError` where there is no table.
        """
        try:
            about = json.loads((folder / ABOUT).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ArgumentError(f"{folder} holds no table of the field ({error}): run it first") from error
        groups: dict[tuple[str, str, int], dict[str, dict[int, dict[str, Any]]]] = {}
        for cell in Results(folder / CELLS):
            if cell.get("ground") == about["ground"]:
                efforts = groups.setdefault((cell["kind"], cell["method"], cell["nfe"]), {})
                efforts.setdefault(cell.get("effort", ""), {})[cell["seed"]] = cell
        found = [
            [Entry(method, kind, nfe, tuple(cells[seed] for seed in sorted(cells))) for cells in efforts.values()]
            for (kind, method, nfe), efforts in groups.items()
        ]
        teacher = next((entries[-1] for entries in found if entries[0].kind == "teacher"), None)
        if teacher is None:
            raise ArgumentError(f"{folder} holds no finished cell yet: go on with the run")
        found = [entries for entries in found if entries[0].kind != "teacher"]
        return Page(about, tuple(e[-1] for e in found), teacher, tuple(e for some in found for e in some[:-1]))

    @property
    def nfes(self) -> list[int]:
        """Numbers of calls that have a cell."""
        return sorted({e.nfe for e in self.entries})

    @property
    def methods(self) -> list[str]:
        """Names in the order of their first cells, hand-crafted ones first."""
        hand = dict.fromkeys(e.method for e in self.entries if e.kind == "hand")
        return [*hand, *dict.fromkeys(e.method for e in self.entries if e.kind != "hand")]

    def at(self, method: str, nfe: int) -> Entry | None:
        """One entry."""
        return next((e for e in self.entries if (e.method, e.nfe) == (method, nfe)), None)

    @property
    def views(self) -> dict[str, str]:
        """The scores that have a table of their own, the first first, in words."""
        taught = {"to_teacher": f"{self.about['between']} to the teacher's samples"}
        return ({"excess": f"{self.about['distance']}, above the teacher's"} if self.about["distance"] else {}) | taught

    def markdown(self) -> str:
        """The page."""
        about, seeds = self.about, len(self.teacher.cells)
        own = self.teacher.score("distance")
        lines = [
            f"# The field on {about['model']}", "",
            f"{about['images']:,} images a cell on fresh seeds, {seeds} repetition{'s' if seeds > 1 else ''}; the "
            f"teacher makes {about['teacher_calls']} calls" + (f" and is at {with_error(*own)}. " if own else ". ")
            + f"{self._efforts()}Device: {about['device']}. Errors are one standard error; † marks methods that found "
            "nothing better than what they began with.", "",
        ]  # fmt: skip
        for score, words in self.views.items():
            lines += [f"## {words[0].upper()}{words[1:]}", "", *self._overview(score), ""]
        lines += [f"![Quality against network calls]({CALLS_FIGURE})", "",
                  f"![Quality against the cost of the search]({COST_FIGURE})", ""]  # fmt: skip
        for nfe in self.nfes:
            lines += [f"## {nfe} calls", "", *self._details(nfe), ""]
        lines += self._missing()
        return "\n".join(lines).rstrip() + "\n"

    def _efforts(self) -> str:
        """What the searches may spend, by method where that differs."""
        methods: dict[str, dict[str, None]] = {}
        for entry in self.entries:
            for effort in {cell["effort"]: None for cell in entry.cells if "effort" in cell}:
                methods.setdefault(effort, {})[entry.method] = None
        told = [effort if len(methods) == 1 else f"{', '.join(those)}: {effort}" for effort, those in methods.items()]
        return f"Searches: {'; '.join(told)}. " if told else ""

    def _overview(self, score: str) -> Iterator[str]:
        yield "| method | " + " | ".join(f"{n} calls" for n in self.nfes) + " |"
        yield "|---|" + "---:|" * len(self.nfes)
        for method in self.methods:
            yield f"| {method} | " + " | ".join(self._words(method, score)) + " |"

    def _words(self, method: str, score: str) -> Iterator[str]:
        for nfe in self.nfes:
            entry = self.at(method, nfe)
            found = entry.score(score) if entry else None
            if entry is None or found is None:
                yield "" if entry is None else "n/a"
                continue
            others = [s[0] for e in self.entries if e.nfe == nfe and (s := e.score(score))]
            text = with_error(*found) + ("†" if entry.kept else "")
            yield f"**{text}**" if found[0] == min(others) else text

    def _details(self, nfe: int) -> Iterator[str]:
        about, real = self.about, "the data" if self.about["real"] else "the teacher's samples"
        heads = {
            "distance": about["distance"], "excess": "above the teacher's", "to_teacher": "to the teacher's samples",
            "rms": "paired RMS", "precision": f"precision, {real}", "recall": f"recall, {real}",
        }  # fmt: skip
        shown = {name: words for name, words in heads.items() if words and (about["distance"] or name != "excess")}
        costs = [name.replace("_", " ").replace("mib", "MiB") for name in COSTS]
        yield "| method | " + " | ".join([*shown.values(), *costs]) + " | found |"
        yield "|---|" + "---:|" * (len(shown) + len(costs)) + "---|"
        for entry in (e for m in self.methods if (e := self.at(m, nfe))):
            scores = [with_error(*found) if (found := entry.score(name)) else "n/a" for name in shown]
            spent = [f"{entry.cost(name):,.0f}" if name != "seconds" else f"{entry.cost(name):,.1f}" for name in COSTS]
            origin = "; ".join(dict.fromkeys(c.get("origin", "") for c in entry.cells)).replace("|", "/")
            yield (
                f"| {entry.method} | " + " | ".join([*scores, *spent, "" if origin == entry.method else origin]) + " |"
            )

    def _missing(self) -> list[str]:
        """Why cells have no figures."""
        told = [
            f"- {e.method}, {e.nfe} calls: {cell['reason']}" for e in self.entries for cell in e.cells[:1]
            if "reason" in cell
        ]  # fmt: skip
        return ["## Cells without figures", "", *told] if told else []

    def lines(self, score: str, *, earlier: bool = False) -> list[Line]:
        """Every method as a line of the figures; `earlier` adds those of other efforts."""
        from fewstep.report.field_figures import Line, Point

        found: list[Line] = []
        every = (*self.earlier, *self.entries) if earlier else self.entries
        for method in self.methods:
            entries = sorted((e for e in every if e.method == method), key=lambda e: (e.nfe, e.calls))
            scored = [(e, s) for e in entries if (s := e.score(score))]
            points = tuple(Point(e.nfe, *s, e.calls) for e, s in scored)
            if points:
                found.append(Line(method, points, hand=entries[0].kind == "hand", first=method == FIRST))
        return found


def filled(table: FieldTable) -> Sequence[Path]:
    """Run a table and write its page, also when it is stopped; returns the files.

    Raises:
        KeyboardInterrupt: stopped; the page shows what there is.
    """
    try:
        table.run()
    except KeyboardInterrupt:
        if any(True for _ in table.cells):
            write(table.folder)
        raise
    return write(table.folder)


def write(folder: Path) -> Sequence[Path]:
    """Write `field.md` and, where there are figures to show, two pictures beside it; returns the files.

    Errors: `ArgumentError` where there is no table in the folder.
    """
    from fewstep.report.field_figures import Panel, calls_figure, cost_figure
    from fewstep.report.style import png_of

    page = Page.read(folder)
    own, between = page.teacher.score("distance"), Panel(page.views["to_teacher"], page.lines("to_teacher"))
    panels = [between] if own is None else [Panel(page.about["distance"], page.lines("distance"), own[0]), between]
    files = [atomic_write_text(folder / PAGE, page.markdown())]
    if between.lines:
        files.append(atomic_write_bytes(folder / CALLS_FIGURE, png_of(calls_figure(panels))))
        # Not the excess: within a few errors of zero it tells no two samplers apart.
        cost = cost_figure(page.lines("to_teacher", earlier=True), judge=page.views["to_teacher"])
        files.append(atomic_write_bytes(folder / COST_FIGURE, png_of(cost)))
    return files
