"""Many solver schedules at once, as arrays: what operators, surrogate and simulation work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BASES = ("data", "noise", "v3")
SCALINGS = ("none", "bh1", "bh2", "+0.5exp", "-0.5exp")
"""The first one leaves the factor to `r`."""
SLOPES = (0.0, -1 / 3, 1 / 6, 0.5, -0.5)
"""Of the named factors in z: the relaxation r that is nearest to each (USF section 3.5)."""
CORRECTORS = (None, "pseudo", "implicit")
AFS = (None, "zero", "mean", "unit")
HIGHEST = 4


@dataclass(frozen=True)
class Genes:
    """P schedules with room for L steps each; what lies beyond a schedule's own steps is 0, its times NaN.

    Attributes:
        steps: `[P]` how many steps.
        afs: `[P]` analytical first step, an index of `AFS`.
        times: `[P, L + 1]`.
        order: `[P, L]` Taylor order.
        basis: `[P, L]` an index of `BASES`.
        start: `[P, L]` how many points back the step begins: 1 is multistep, 2 and 3 are single-step updates.
        low: `[P, L]` how many points estimate the first derivative; 0 is full order.
        scaling: `[P, L]` an index of `SCALINGS`.
        r: `[P, L]` relaxation, where the scaling is "none".
        corrector: `[P, L]` an index of `CORRECTORS`.
        tau: `[P, L]` stochasticity.
    """

    steps: Ints
    afs: Ints
    times: Floats
    order: Ints
    basis: Ints
    start: Ints
    low: Ints
    scaling: Ints
    r: Floats
    corrector: Ints
    tau: Floats

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def room(self) -> int:
        """Most steps that fit."""
        return self.order.shape[1]

    @property
    def live(self) -> Bools:
        """`[P, L]` which steps exist."""
        return np.arange(self.room) < self.steps[:, None]

    @property
    def last(self) -> Bools:
        """`[P, L]` which step is the last one."""
        return np.arange(self.room) == self.steps[:, None] - 1

    @property
    def nfe(self) -> Ints:
        """`[P]` network calls: one a step, one more for an implicit corrector, one less after an analytical step."""
        return self.steps + (self.corrector == 2).sum(1) - (self.afs > 0)

    def take(self, rows: Any) -> Genes:
        """Some of the schedules (a copy)."""
        return Genes(*(np.array(getattr(self, f.name)[rows]) for f in fields(self)))

    def copy(self) -> Genes:
        """A copy that may be written to."""
        return self.take(slice(None))

    def names(self) -> list[bytes]:
        """A name for each schedule: equal keys, equal genes."""
        numbers = np.stack([self.order, self.basis, self.start, self.low, self.scaling, self.corrector], 1)
        flat = numbers.astype(np.int8).reshape(len(self), -1)
        reals = np.concatenate([self.times, self.r, self.tau], 1)
        return [
            int(a).to_bytes(1, "little") + n.tobytes() + x.tobytes()
            for a, n, x in zip(self.afs, flat, reals, strict=True)
        ]


STEP_FIELDS = ("order", "basis", "start", "low", "scaling", "r", "corrector", "tau")
"""The decisions that every step makes."""


def empty(rows: int, room: int) -> Genes:
    """Genes to be filled: no steps."""
    ints = lambda: np.zeros((rows, room), np.int64)  # noqa: E731
    reals = lambda: np.zeros((rows, room))  # noqa: E731
    one = lambda: np.zeros(rows, np.int64)  # noqa: E731
    return Genes(
        one(), one(), np.full((rows, room + 1), np.nan), ints(), ints(), ints(), ints(), ints(), reals(), ints(),
        reals(),
    )  # fmt: skip


def concat(parts: Sequence[Genes]) -> Genes:
    """Several populations as one; all have the same room."""
    return Genes(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Genes)))
