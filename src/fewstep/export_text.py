"""What every text export is made of: the table's grid, a host's reading of it, and the host's sampler that fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.told import Prediction, told_other_times

if TYPE_CHECKING:
    from fewstep.noise import NoiseSchedule
    from fewstep.tableau import Tableau

DIGITS = 10  # significant digits of the smallest number
Rules = Mapping[str, tuple[str, Mapping[str, Any]]]
"""A host's samplers: its name -> (our solver, the options with which it makes the same table)."""


@dataclass(frozen=True)
class Export:
    """A table as text for a host.

    Attributes:
        target: the host.
        text: what to give it.
        sampler: what to choose there ("" if it has none): the sampler that makes the table, or, with losses, the one
            whose table is nearest.
        losses: what is lost, with sizes.
        notes: what else to know.
        runs: the table that the host really runs on this text, where it is known.
        difference: of that table's weights and ours, relative to each row's largest; infinite for other calls.
    """

    target: str
    text: str
    sampler: str
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    runs: Tableau | None = None
    difference: float = 0.0


@dataclass(frozen=True)
class Reading:
    """What a host makes of a text: `grid` in the noise schedule's times, and what it tells its network there."""

    grid: Tensor
    told: Tensor | None = None
    prediction: Prediction = "epsilon"

    def table(self, noise: NoiseSchedule, rule: tuple[str, Mapping[str, Any]]) -> Tableau:
        """The table of one of the host's samplers on this text.

        Raises:
            ArgumentError: the sampler cannot have these times.
        """
        from fewstep import solvers

        made = solvers.get(rule[0])(self.grid, **rule[1]).tabulate(noise)
        if self.told is None:
            return made
        own, told = self.grid.tolist(), self.told.tolist()
        near = {t: word for t, word in zip(own, told, strict=False)}
        words = [near.get(t, t) for t in made.times.tolist()]
        return told_other_times(made, torch.tensor(words, dtype=torch.float64, device="cpu"), self.prediction)


@dataclass(frozen=True)
class Source:
    """What the targets read."""

    tableau: Tableau
    noise: NoiseSchedule
    shift: float | None = None
    mu: float | None = None

    @property
    def times(self) -> list[float]:
        """The grid `[n + 1]`: the schedule's own where there is one, else the falling times of the states."""
        return grid_of(self.tableau)

    @property
    def grid(self) -> Tensor:
        """The same as a tensor."""
        return torch.tensor(self.times, dtype=torch.float64, device="cpu")

    @property
    def levels(self) -> list[float]:
        """Noise levels of the grid: sigma / alpha, or sigma itself for flow models, whose hosts count in it."""
        levels = [(self.noise.sigma if self.is_flow else self.noise.ratio)(t).item() for t in self.times]
        if not all(map(math.isfinite, levels)):
            raise ArgumentError(
                "the first state has alpha = 0, so its noise level is infinite and no list can say it: export "
                "timesteps, or start at a time where alpha > 0"
            )
        return levels

    @property
    def is_flow(self) -> bool:
        """Whether states lie on straight paths."""
        return self.noise.family == "flow"

    @property
    def is_discrete(self) -> bool:
        """Whether the network was trained on integer times."""
        return self.noise.family == "discrete"


def grid_of(tableau: Tableau) -> list[float]:
    """The times `[n + 1]` of a table: its schedule's own, else those of the states that go further down."""
    if tableau.schedule is not None:
        return tableau.schedule.times.detach().tolist()
    grid: list[float] = []
    for t in tableau.times.tolist():
        if not grid or t < grid[-1]:
            grid.append(t)
    return grid


def solver_of(tableau: Tableau, rules: Rules | None = None) -> str:
    """The sampler (of `rules`, or of our named solvers) that makes this table from its times alone, or "".

    It is rebuilt and compared number by number: a name in a file proves nothing.
    """
    from fewstep import solvers

    schedule, noise = tableau.schedule, tableau.noise
    if noise is None or tableau.channels > 1 or tableau.constants:
        return ""
    if schedule is not None and schedule.model_times is not None:
        return ""
    known: Rules = rules if rules is not None else {name: (name, {}) for name in solvers.NAMES}
    reading = Reading(torch.tensor(grid_of(tableau), dtype=torch.float64, device="cpu"))
    name = schedule.name if schedule is not None else tableau.name
    for host, rule in sorted(known.items(), key=lambda item: item[1][0] != name):
        if solvers.calls(rule[0], tableau.nfe) not in (len(reading.grid) - 1, None):
            continue
        try:
            if reading.table(noise, rule).isclose(tableau):
                return host
        except ArgumentError:  # this solver cannot have these times
            continue
    return ""


def nearest(tableau: Tableau, noise: NoiseSchedule, reading: Reading, rules: Rules) -> tuple[str, Tableau | None]:
    """The host's sampler whose table on its own reading of the times is nearest to ours, and that table.

    The number of network calls comes first, then the weights, then the order of the rules.
    """
    found: list[tuple[float, float, int, str, Tableau]] = []
    for place, (host, rule) in enumerate(rules.items()):
        try:
            made = reading.table(noise, rule)
        except ArgumentError:
            continue
        found.append((abs(made.nfe - tableau.nfe), apart(made, tableau), place, host, made))
    if not found:
        return "", None
    *_, host, made = min(found, key=lambda entry: entry[:3])
    return host, made


def apart(one: Tableau, two: Tableau) -> float:
    """Largest difference of two tables' weights, relative to each row's largest; times are not compared."""
    from dataclasses import replace

    a, b = one.unrolled(), two.unrolled()
    if a.rows != b.rows or a.evaluated != b.evaluated:
        return float("inf")
    same = replace(b, times=a.times, model_times=a.model_times)
    return replace(a, expected=("compared",)).difference(replace(same, expected=("compared",)))


def fixed(numbers: Sequence[float]) -> str:
    """`14.6146, 3.861, 0.0`: comma separated, no exponents, ten significant digits of the smallest number.

    ComfyUI's ManualSigmas reads "1e-3" as the two numbers 1 and -3.
    """
    smallest = min((abs(v) for v in numbers if v), default=1.0)
    places = max(DIGITS - 1 - math.floor(math.log10(smallest)), DIGITS)
    return ", ".join(trimmed(f"{v:.{places}f}") for v in numbers)


def trimmed(number: str) -> str:
    """Without needless zeros at the end."""
    number = number.rstrip("0")
    return number + "0" if number.endswith(".") else number
