"""Who asked a teacher for what: the price of a method, whether or not its teacher's runs lay in a cache already.

with metered() as meter:
    optimize(...)
meter.needed, meter.made        # network calls of all seeds asked for, and those made now
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fewstep.randomness import ReportSeeds

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser


@dataclass
class Meter:
    """What teachers did while it was open; report seeds are not counted as needed, for figures are no part of a method.

    Attributes:
        seeds: asked for, by the digest of the teacher's table; costs: network calls of one of them.
        made: network calls made.
    """

    seeds: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    costs: dict[str, int] = field(default_factory=dict[str, int])
    made: int = 0

    @property
    def needed(self) -> int:
        """Network calls that all seeds together cost, each once."""
        return sum(len(seeds) * self.costs[table] for table, seeds in self.seeds.items())

    def ask(self, table: str, cost: int, seeds: Iterable[int]) -> None:
        """Take note of seeds."""
        self.costs[table] = cost
        first = ReportSeeds.first
        self.seeds.setdefault(table, set()).update(s for s in seeds if not first <= s < first + ReportSeeds.room)


_OPEN: ContextVar[tuple[Meter, ...]] = ContextVar("open meters", default=())


@contextmanager
def metered(meter: Meter | None = None) -> Generator[Meter]:
    """Count what every teacher of this thread does inside, on top of what the meter holds."""
    counted = meter or Meter()
    token = _OPEN.set((*_OPEN.get(), counted))
    try:
        yield counted
    finally:
        _OPEN.reset(token)


def asked(table: str, cost: int, seeds: Iterable[int]) -> None:
    """A teacher is asked for these seeds."""
    for meter in _OPEN.get():
        meter.ask(table, cost, seeds)


@contextmanager
def making(denoiser: Denoiser) -> Generator[None]:
    """A teacher runs its network inside."""
    before = denoiser.evaluations
    try:
        yield
    finally:
        for meter in _OPEN.get():
            meter.made += denoiser.evaluations - before
