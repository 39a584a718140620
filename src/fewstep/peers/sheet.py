"""A table that grows while a peer's formula is followed: its states, slopes and outputs are linear forms.

A peer may count its states in other units than the network here: EPD's are those of variance exploding networks, GS's
of variance preserving ones, whatever the network. So each row that the network sees is written in the network's own
units at the time that it is told; then it sees exactly what the peer's wrapper would give it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewstep.builder import NOISE, OUTPUT, STATE, Form, add, stack_rows
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, NoiseSchedule
from fewstep.search.gradient.numbers import LEARNED
from fewstep.tableau import Tableau

Levels = tuple[float, float, float]
FREE = "free first step (x0 taken as of unit variance)"


def mix(*terms: tuple[float, Form]) -> Form:
    """`sum_i weight_i form_i`."""
    out: Form = {}
    for weight, form in terms:
        add(out, form, weight)
    return out


def read_at(here: Levels, told: Levels, x: Form, there: Form) -> Form:
    """x0 of the noise that a network gives where it is told, read with alpha and sigma of where the state is.

    Args:
        here, told: alpha, sigma and lam.
        x: the state that the network sees.
        there: the x0 that its answer means where it is told.

    Raises:
        ArgumentError: it is told a time without noise.
    """
    if not told[1] > 0:
        raise ArgumentError("the network is told a time without noise: the file does not fit this noise schedule")
    kept = here[1] / told[1]
    return mix(((1 - kept) / here[0], x), (kept * told[0] / here[0], there))


class Sheet:
    """The rows so far.

    Args:
        theirs: the noise schedule in which the peer writes its formula; times below are its times.
        ours: that of the network, and of the table.
    """

    def __init__(self, theirs: NoiseSchedule, ours: NoiseSchedule) -> None:
        self.theirs, self.ours = theirs, ours
        self._same = theirs == ours or (isinstance(theirs, EDM) and isinstance(ours, EDM))
        self._rows: list[Form] = []
        self._places: list[tuple[float, float, float, float]] = []
        self._called: list[bool] = []
        self._draws = 0
        self.expected = [LEARNED]

    def start(self, time: float, std: float | None = None) -> Form:
        """The first state, in the peer's units; `std` is its spread there, by default sigma of its time."""
        unit = self._unit(time)
        self._push({}, unit, time, time)
        if std is not None:
            place = self._places[0]
            self._places[0] = (*place[:2], unit * std, place[3])
        return {(STATE, 0): 1.0 / unit}

    def ask(self, x: Form, time: float, told: float | None = None) -> tuple[Form, Form]:
        """The network's x0 of a state: `(the state as one row, x0)`.

        Args:
            x: the state, in the peer's units.
            time: where it is.
            told: what the network is told instead.
        """
        told = time if told is None else told
        unit = self._unit(told)
        row = len(self._rows) - 1
        if self._called[row] or not (set(x) == {(STATE, row)} and math.isclose(x[STATE, row] * unit, 1, rel_tol=1e-14)):
            row = self._push(x, unit, time, told)
        self._called[row] = True
        self._places[row] = (*self._places[row][:3], self._time(told))
        return {(STATE, row): 1.0 / unit}, {(OUTPUT, row): 1.0}

    def draw(self) -> Form:
        """A fresh unit normal."""
        self._draws += 1
        return {(NOISE, self._draws - 1): 1.0}

    def finished(self, x: Form, time: float, name: str, meta: dict[str, Any]) -> Tableau:
        """The table whose sample is `x`, at `time`."""
        self._push(x, self._unit(time), time, time)
        rows = len(self._rows)
        times, alpha, sigma, told = (
            torch.tensor(v, dtype=torch.float64, device="cpu") for v in zip(*self._places, strict=True)
        )
        return Tableau(
            A=self._part(STATE, rows), B=self._part(OUTPUT, rows), C=self._part(NOISE, self._draws), times=times,
            model_times=told, alpha=alpha, sigma=sigma, evaluated=tuple(self._called), noise=self.ours,
            expected=tuple(dict.fromkeys(self.expected)), name=name, meta=meta,
        )  # fmt: skip

    def _part(self, kind: int, width: int) -> Tensor:
        return stack_rows([{j: w for (k, j), w in form.items() if k == kind} for form in self._rows], width)

    def _push(self, x: Form, unit: float, time: float, told: float) -> int:
        alpha, sigma, _ = self.theirs.scalar_levels(time)
        self._rows.append({key: unit * w for key, w in x.items()})
        self._places.append((self._time(time), unit * alpha, unit * sigma, self._time(told)))
        self._called.append(False)
        return len(self._rows) - 1

    def _time(self, time: float) -> float:
        return time if self._same else self.ours.scalar_time_of_ratio(self._ratio(time))

    def _unit(self, time: float) -> float:
        """How much larger the network's states are than the peer's."""
        if self._same:
            return 1.0
        self._ratio(time)
        return self.ours.scalar_levels(self._time(time))[0] / self.theirs.scalar_levels(time)[0]

    def _ratio(self, time: float) -> float:
        ratio = self.theirs.ratio(time).item()
        if not (math.isfinite(ratio) and ratio >= 0):
            raise ArgumentError(
                f"this sampler asks at time {time:g} of {self.theirs!r}, which has no counterpart in {self.ours!r}: "
                "give the noise schedule that it was learned for"
            )
        return ratio
