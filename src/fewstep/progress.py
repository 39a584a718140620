"""What long work says while it runs, and two ways to show it: a live bar on a terminal, plain lines elsewhere.

The library only ever calls a function with an `Event`; who draws it is decided here. Nothing is printed to standard
output, which belongs to results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from fewstep.words import seconds_in_words

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY = 5.0  # seconds between two plain lines


@dataclass(frozen=True)
class Event:
    """One sign of life: `done` of `total` units of `stage` (None: unknown), and the best found so far in words."""

    stage: str
    done: float
    total: float | None = None
    best: str = ""

    @property
    def finished(self) -> bool:
        """Whether the stage is complete."""
        return self.total is not None and self.done >= self.total


Report = Callable[[Event], None]


def silent(_event: Event) -> None:
    """The report of library calls that nobody watches."""


class PlainReport:
    """One line per stage change and every `every` seconds, with the time left of the stage."""

    def __init__(self, stream: TextIO, every: float = PLAIN_EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.every, self.clock = stream, every, clock
        self.stage, self.printed = "", 0.0
        self.since: tuple[float, float] = (0.0, 0.0)  # when the stage was entered, and how much was done then

    def __call__(self, event: Event) -> None:
        """Print the event, unless it is too soon."""
        now = self.clock()
        if event.stage != self.stage:
            self.stage, self.since = event.stage, (now, event.done)
        elif not event.finished and now - self.printed < self.every:
            return
        self.printed = now
        print(self.line(event, now), file=self.stream, flush=True)

    def line(self, event: Event, now: float) -> str:
        """One event in words; the time left follows from the pace since the stage was last entered."""
        elapsed, done = now - self.since[0], event.done - self.since[1]
        parts = [event.stage]
        if event.total:
            parts.append(f"{100 * event.done / event.total:.0f} %")
            if done > 0 and elapsed > 0 and not event.finished:
                parts.append(f"{seconds_in_words(elapsed * (event.total - event.done) / done)} left")
        elif event.done:
            parts.append(f"{event.done:g} done")
        if event.best:
            parts.append(f"best {event.best}")
        return "  ".join(parts)


class LiveReport:
    """One rich bar per stage; the bars of finished stages stay, with their time."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        """Move the bar of the stage, making it first."""
        if event.stage not in self.tasks:
            self.tasks[event.stage] = self.bars.add_task(event.stage, total=event.total, best="")
        best = f"best {event.best}" if event.best else ""
        self.bars.update(self.tasks[event.stage], completed=event.done, total=event.total, best=best)


@contextmanager
def shown(*, quiet: bool = False, stream: TextIO | None = None) -> Generator[Report]:
    """A report that draws on `stream` (standard error by default): bars on a terminal, plain lines elsewhere.

    >>> with shown(quiet=True) as report:
    ...     report(Event("teacher", 1, 2))
    """
    out = stream or sys.stderr
    if quiet:
        yield silent
    elif not out.isatty():
        yield PlainReport(out)
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("[green]{task.fields[best]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(file=out)) as bars:
            yield LiveReport(bars)
