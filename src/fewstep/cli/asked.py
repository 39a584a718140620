"""What `fewstep optimize` runs: one search, or several on one network, with their pictures and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import ArgumentError
from fewstep.words import seconds_in_words, with_error

if TYPE_CHECKING:
    from fewstep.found import Found
    from fewstep.many import FoundMany
    from fewstep.models import Judge

SUMMARY = "searches.json"
OPTIONS = {
    "teacher_calls=": "--teacher-calls ", "leave teacher_calls out": "leave --teacher-calls out",
    "judge=, or a function objective=": "--features and --reference", "judge=": "--features and --reference",
    "objective=": "--objective ", "data=": "--data", "batch_size=": "--batch-size ", "solver=": "--solver ",
    "method=": "--method ",
}  # fmt: skip
"""Arguments of `optimize` in messages, and what the command line calls them."""


@dataclass(frozen=True)
class Asked:
    """The arguments that all results share; `model` with its options."""

    model: str
    method: str
    objective: str
    minutes: float | None
    max_calls: int | None
    start: float | None
    strength: float | None
    end: str
    batch_size: int
    around: bool
    quiet: bool
    source: Path | None = None
    features: str | None = None
    reference: Path | None = None
    loss: str = "auto"
    data: Path | None = None
    teacher_calls: int | None = None

    def one(self, nfe: int, solver: str | list[str] | None, folder: Path) -> tuple[Found, list[Path]]:
        """One search and its files."""
        from fewstep.cli.common import load_table
        from fewstep.optimizing import optimize
        from fewstep.progress import shown

        given = None if self.source is None else load_table(self.source)
        calls, own = self._left([nfe])
        try:
            with shown(quiet=self.quiet) as report:
                found = optimize(
                    self.model, nfe, self.method, solver=solver, minutes=self.minutes, max_calls=calls, out=folder,
                    progress=report, given=given, **self._options(),
                )  # fmt: skip
                return found, self._delivered(found, folder, folder / ".cache", report)
        except ArgumentError as error:
            raise self._named(error, calls, own) from None

    def many(self, nfes: Sequence[int], solvers: Sequence[str], folder: Path, *, each: bool) -> tuple[FoundMany, str]:
        """A result for each solver with each number of calls (without `each` the solvers compete), and a table."""
        from fewstep.many import folder_of, optimize_many
        from fewstep.progress import shown
        from fewstep.search.methods import RECOMMENDED, default_solver
        from fewstep.search.parts import PARTS

        if self.source is not None:
            raise ArgumentError(
                "--from starts one search, of the file's number of calls: give one --nfe, without --each"
            )
        solvers = solvers or [default_solver(self.method)] if self.method in PARTS else solvers
        names = list(RECOMMENDED) if each and list(solvers) == ["auto"] else list(solvers)
        if not each and len(names) > 1:
            raise ArgumentError("several --nfe take one --solver, or auto: add --each for a result of every solver")
        calls, own = self._left([nfe for nfe in nfes for _ in names], default=False)
        try:
            with shown(quiet=self.quiet) as report:
                found = optimize_many(
                    self.model, nfes, names, self.method, minutes=self.minutes, max_calls=calls, out=folder,
                    progress=report, **self._options(),
                )  # fmt: skip
                files = [folder / SUMMARY]
                for (solver, nfe), result in found.results.items():
                    place = folder / folder_of(solver, nfe)
                    files += self._delivered(result, place, folder / ".cache", report)
        except ArgumentError as error:
            raise self._named(error, calls, own) from None
        return found, summary(found, folder)

    def _options(self) -> dict[str, Any]:
        """Arguments that are the same for one search and for several."""
        return self._ground() | {
            "objective": self.objective, "batch_size": self.batch_size, "start": self._start(), "end": self._end(),
            "judge": self.judge, "loss": self.loss,
        }  # fmt: skip

    def _ground(self) -> dict[str, Any]:
        """Those that the pictures of a search need too."""
        teacher = {} if self.teacher_calls is None else {"teacher_calls": self.teacher_calls}
        return {"data": self.data} | teacher

    @cached_property
    def judge(self) -> Judge | None:
        """The judge of --features, if any."""
        if self.features is None and self.reference is None:
            return None
        from fewstep.features import judge_from
        from fewstep.models import load

        return judge_from(load(self.model), self.features, self.reference)

    def _start(self) -> float | None:
        if self.strength is None:
            return self.start
        if self.start is not None:
            raise ArgumentError("--start and --strength both say where to begin: give one of them")
        from fewstep.models import load
        from fewstep.search.window import Window

        return Window.start_of(load(self.model).noise, self.strength)

    def _end(self) -> Any:
        if self.end in ("zero", "min"):
            return self.end
        try:
            return float(self.end)
        except ValueError:
            raise ArgumentError(f"--end {self.end}: give zero, min, or a time of the network") from None

    def _delivered(self, found: Found, folder: Path, cache: Path, report: Any) -> list[Path]:
        from fewstep.cli.delivery import Delivery

        made = Delivery(found, self.model, folder, self.batch_size, report, cache, self.judge, **self._ground())
        return made.write(around=self.around)

    def _left(self, nfes: Sequence[int], *, default: bool = True) -> tuple[int | None, int]:
        """The calls of the search, less those of its pictures and charts; and those."""
        from fewstep.cli.delivery import own_calls
        from fewstep.search.parts import PARTS
        from fewstep.search.plan import default_calls

        learned = self.method in PARTS and bool(PARTS[self.method].learned)
        own = sum(own_calls(nfe, self.around) for nfe in nfes)
        if self.max_calls is None:
            return (default_calls(nfes[0], learned=learned) - own if default and self.minutes is None else None), own
        if self.max_calls - own < 1:
            raise ArgumentError(
                f"--max-calls {self.max_calls}: the picture and the chart alone take {own}; give more calls"
            )
        return self.max_calls - own, own

    def _named(self, error: ArgumentError, calls: int | None, own: int) -> ArgumentError:
        """The error in the words of the command line."""
        if self.max_calls is None or f"max_calls={calls}" not in str(error):
            text = str(error)
            for ours, option in OPTIONS.items():
                text = text.replace(ours, option)
            return type(error)(text)
        return ArgumentError(f"--max-calls {self.max_calls}: the picture and the chart take {own} of them, and {error}")


def verdict(found: Found) -> str:
    """What came of one search: whether the difference on report seeds is outside two standard errors."""
    from fewstep.remarks import SURE
    from fewstep.report.found import gain

    if not found.improved:
        return "hand-crafted kept"
    gained, error = gain(found) or (0.0, None)
    if error is None:
        return "not judged"
    return "no difference shown" if abs(gained) <= SURE * error else "better" if gained > 0 else "worse"


def summary(many: FoundMany, folder: Path) -> str:
    """One line for each result, what was shared, and what could not be made."""
    from fewstep.report.found import figure, judge_in_words

    rows = [("solver", "calls", "found", "best hand-crafted", "result", "times found", "folder")]
    for (solver, nfe), found in many.results.items():
        before, after = figure(found, "before"), figure(found, "after")
        rows.append(
            (
                solver,
                str(nfe),
                with_error(*after) if after else "",
                with_error(*before) if before else "",
                verdict(found),
                found.origin,
                f"{solver}-{nfe}",
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    judges = dict.fromkeys(judge_in_words(found) for found in many)
    shared = sum(stage["calls"] for stage in many.shared)
    seconds = sum(stage["seconds"] for stage in many.shared) + sum(s["seconds"] for f in many for s in f.stages)
    return "\n".join(
        [
            *(f"{judge}, lower is better:" for judge in judges),
            *lines,
            *(f"left out: {text}" for text in many.skipped),
            "",
            f"{many.calls:,} network calls, {seconds_in_words(seconds)}; "
            f"{shared:,} of them for what all results share, counted once",
            f"  {folder / SUMMARY}",
        ]
    )
