"""The strategy space of a Unified Sampling Framework (Liu et al., ICLR 2024): validity, canonical form, encoding.

A schedule of the space is multistep or flat single-step: every network call has its own time, and each step chooses
basis, Taylor order, starting point, estimation of the first derivative, its scaling, corrector and stochasticity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.rules import SolverSchedule, Step
from fewstep.search.s3.genes import (
    AFS,
    BASES,
    CORRECTORS,
    HIGHEST,
    SCALINGS,
    STEP_FIELDS,
    Bools,
    Floats,
    Genes,
    Ints,
    empty,
)

V3 = BASES.index("v3")
LEAST_GAP = 0.01
"""In log(alpha / sigma). Nearer points make the Taylor differences ill-conditioned."""


@dataclass(frozen=True)
class Space:
    """What a search may choose from.

    Attributes:
        noise: the noise schedule of the states.
        nfes: the numbers of network calls that are searched.
        bases: of "data", "noise", and "v3" where the network's statistics are known.
        afs: analytical first steps to choose from ("mean" needs the mean image).
        ends: the range of the last time; by default from `t_min` to one and a half times its noise level.
        clean: whether the last time may also be `t_clean`, where sigma is 0.
        orders: highest Taylor order, 1 to 4.
        starts: how far back a step may begin: 1 is multistep only, as the released search.
        implicit: whether correctors may call the network again.
        taus: stochasticities to choose from; an addition to USF.
        gap: least difference of neighbouring times in log(alpha / sigma).
        reach: the range of log(alpha / sigma) that the statistics of "v3" know; steps that leave it are data steps.

    Raises:
        ArgumentError: an empty or impossible choice, named.
    """

    noise: NoiseSchedule
    nfes: tuple[int, ...]
    bases: tuple[str, ...] = ("data", "noise")
    afs: tuple[str | None, ...] = (None, "zero")
    ends: tuple[float, float] | None = None
    clean: bool = False
    orders: int = HIGHEST
    starts: int = 1
    implicit: bool = False
    taus: tuple[float, ...] = (0.0,)
    gap: float = LEAST_GAP
    reach: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "nfes", tuple(sorted({int(n) for n in self.nfes})))
        checks = (
            (bool(self.nfes) and self.nfes[0] >= 1, "nfes: give one or more numbers of network calls, from 1 on"),
            (bool(self.bases) and set(self.bases) <= set(BASES), f"bases: choose from {', '.join(BASES)}"),
            (bool(self.afs) and set(self.afs) <= set(AFS), "afs: choose from None, 'zero', 'mean' and 'unit'"),
            (1 <= self.orders <= HIGHEST, f"orders={self.orders}: the highest Taylor order is 1 to {HIGHEST}"),
            (1 <= self.starts <= 3, f"starts={self.starts}: a step begins 1 to 3 points back"),
            (bool(self.taus) and min(self.taus) >= 0, "taus: give one or more numbers that are not negative"),
            (self.gap > 0, "gap: give a positive least difference in log(alpha / sigma)"),
        )
        for ok, message in checks:
            if not ok:
                raise ArgumentError(message)
        low, high = self.last_times
        if not self.noise.t_clean < low <= high < self.noise.t_max:
            raise ArgumentError(f"ends={self.ends}: give two rising times between t_clean and t_max")

    @cached_property
    def last_times(self) -> tuple[float, float]:
        """The range of the last time."""
        if self.ends is not None:
            return self.ends
        least = self.noise.t_min
        return least, float(self.noise.time_of_ratio(1.5 * self.noise.ratio(least)))

    @property
    def room(self) -> int:
        """Most steps of a schedule: one more than calls with an analytical first step, and one to spare."""
        return self.nfes[-1] + 2

    @cached_property
    def pure(self) -> bool:
        """Whether the first state holds nothing of an image: it then supports no differences."""
        return float(self.noise.alpha(self.noise.t_max)) == 0.0

    def lam(self, times: Floats) -> Floats:
        """`log(alpha / sigma)` of times of any shape (NaN stays)."""
        out: Floats = self.noise.lam(torch.from_numpy(np.ascontiguousarray(times)).flatten()).numpy()
        return out.reshape(times.shape)

    def valid(self, g: Genes) -> Bools:
        """`[P]` which schedules obey every rule and make a number of calls that is searched."""
        live, index = g.live, np.arange(g.room)
        low, high = self.last_times
        end = np.take_along_axis(g.times, g.steps[:, None], 1)[:, 0]
        ok = (g.steps >= 1) & (g.steps <= g.room) & np.isin(g.nfe, self.nfes) & (g.times[:, 0] == self.noise.t_max)
        ok &= ((end >= low) & (end <= high)) | ((end == self.noise.t_clean) & self.clean)
        with np.errstate(invalid="ignore"):
            steps = np.diff(self.lam(g.times), axis=1)
        ok &= ((steps >= self.gap) | ~live).all(1)
        rules = (
            (g.order >= 1) & (g.order <= np.minimum(self.orders, index + 1)),
            (g.start >= 1) & (g.start <= np.minimum(self.starts, index + 1)) & (g.start <= g.order),
            np.isin(g.basis, [BASES.index(b) for b in self.bases]),
            (g.low >= 0) & (g.low <= 2) & ((g.low == 0) | (g.low < g.order - 1)),
            (g.scaling >= 0) & (g.scaling < len(SCALINGS)) & np.isfinite(g.r),
            (g.corrector >= 0) & (g.corrector <= 1 + self.implicit) & ((g.corrector == 0) | ~g.last),
            np.isfinite(g.tau) & (g.tau >= 0),
            (g.basis != V3) | ((g.tau == 0) & self._reached(g.times, g.order)),
        )
        for rule in rules:
            ok &= (rule | ~live).all(1)
        return ok & np.isin(g.afs, [AFS.index(a) for a in self.afs])

    def canonical(self, g: Genes) -> Genes:
        """Decisions that change nothing, or that the rules do not allow where they stand, lowered."""
        index, live = np.arange(g.room), g.live
        known = np.maximum(index + 1 - (self.pure & (index > 0)), 1)
        onto_clean = g.last & (np.take_along_axis(g.times, g.steps[:, None], 1) == self.noise.t_clean)
        order = np.clip(g.order, 1, np.minimum(self.orders, known))
        order = np.where(onto_clean & (g.basis != 1), 1, order)
        g = replace(g, basis=np.where((g.basis == V3) & ~self._reached(g.times, order), 0, g.basis))
        start = np.clip(g.start, 1, np.minimum(self.starts, index + 1 - self.pure).clip(1))
        start = np.where(start > order, 1, start)
        low = np.where((order < 3) | (g.low >= order - 1), 0, g.low)
        plain = (order == 1) | onto_clean
        scaling = np.where(plain, 0, g.scaling)
        r = np.where(plain | (scaling > 0), 0.0, g.r)
        corrector = np.where(g.last | (self.pure & (index == 0)), 0, g.corrector)
        # From a pseudo-corrected state the bases differ even at first order: the network's noise was seen elsewhere.
        begin = (index + 1 - start).clip(0)
        corrected = np.concatenate([np.zeros((len(g), 1), bool), corrector == 1], 1)
        free = (order == 1) & (corrector == 0) & (g.tau == 0) & ~np.take_along_axis(corrected, begin, 1)
        free |= (order == 1) & (index == 0) & self.pure
        basis = np.where(free & (g.basis == 1), 0, g.basis)
        tau = np.where(basis == V3, 0.0, g.tau)
        out = {"order": order, "start": start, "low": low, "scaling": scaling, "r": r, "corrector": corrector}
        out |= {"basis": basis, "tau": tau}
        cut: dict[str, Any] = {name: np.where(live, out[name], 0) for name in STEP_FIELDS}
        times = np.where(np.arange(g.room + 1) <= g.steps[:, None], g.times, np.nan)
        return replace(g, times=times, **cut)

    def _reached(self, times: Floats, order: Ints) -> Bools:
        """`[P, L]` where statistics know both ends of a step and all that it reads: elsewhere there is no v3 step."""
        lam, index = self.lam(times), np.arange(self.room)
        low, high = self.reach or (-np.inf, np.inf)
        with np.errstate(invalid="ignore"):
            inside = np.isfinite(lam) & (lam >= low) & (lam <= high)
        unknown = np.concatenate([np.zeros((len(lam), 1), np.int64), (~inside).cumsum(1)], 1)
        # From the oldest point that is read; a first state of pure noise is none that differences could read.
        oldest = np.maximum(index + 1 - order, int(self.pure))
        return (unknown[:, 2:] == np.take_along_axis(unknown, oldest, 1)) & (index >= self.pure)

    def decode(self, g: Genes, row: int = 0, name: str = "") -> SolverSchedule:
        """One schedule as decisions."""
        n = int(g.steps[row])
        steps = tuple(self._step(g, row, i) for i in range(n))
        afs: Any = AFS[g.afs[row]]
        return SolverSchedule(torch.from_numpy(g.times[row, : n + 1].copy()), steps, afs=afs, name=name)

    def _step(self, g: Genes, row: int, i: int) -> Step:
        order, start, low = int(g.order[row, i]), int(g.start[row, i]), int(g.low[row, i])
        points = [*range(1 - start, 0), *range(-start - 1, -i - 2, -1)][: order - 1]
        sets = (tuple(points[: low or None]), *(tuple(points),) * (order - 2)) if order > 1 else None
        r = float(g.r[row, i])
        scaling: str | float = SCALINGS[g.scaling[row, i]]
        basis: Any = BASES[g.basis[row, i]]
        return Step(
            basis, order=order, active=sets, scaling=r if scaling == "none" and r != 0 else scaling, start=-start,
            tau=float(g.tau[row, i]), corrector=CORRECTORS[g.corrector[row, i]],
        )  # fmt: skip

    def encode(self, schedule: SolverSchedule) -> Genes | None:
        """The genes of a schedule, or None if it makes decisions outside of this space.

        The scaling of a first-order step's corrector (UniPC's first step) is dropped, as in the released search.
        """
        n = len(schedule.times) - 1
        if len(schedule.steps) != n or n > self.room or schedule.model_times is not None:
            return None
        g = empty(1, self.room)
        g.steps[0], g.afs[0] = n, AFS.index(schedule.afs)
        g.times[0, : n + 1] = schedule.times.detach().numpy()
        for i, move in enumerate(schedule.steps):
            if not isinstance(move, Step) or not self._put(g, i, move):
                return None
        out = self.canonical(g)
        return out if bool(self.valid(out)[0]) else None

    def _put(self, g: Genes, i: int, step: Step) -> bool:
        """Write a step's decisions; whether the space has them."""
        plain = replace(step, basis="data", order=1, active=None, scaling="none", start=-1, tau=0.0, corrector=None,
                        corrector_scaling="none")  # fmt: skip
        if plain != Step() or step.basis not in BASES or -step.start > i + 1 or step.order > HIGHEST:
            return False
        sets = step.derivative_points(i + 1)[: min(step.order, i + 1) - 1]
        order = 1 + len(sets)
        newer_first = [*range(step.start + 1, 0), *range(step.start - 1, -i - 2, -1)][: order - 1]
        low = len(sets[0]) if sets and len(sets[0]) < order - 1 else 0
        full = sets[1:] if low else sets
        if any(sorted(s) != sorted(newer_first) for s in full) or (low and set(sets[0]) != set(newer_first[:low])):
            return False
        named = isinstance(step.scaling, str)
        values: dict[str, Any] = {
            "order": order, "basis": BASES.index(step.basis), "start": -step.start, "low": low, "tau": step.tau,
            "scaling": SCALINGS.index(step.scaling) if isinstance(step.scaling, str) else 0,
            "r": 0.0 if named else step.scaling, "corrector": CORRECTORS.index(step.corrector),
        }  # fmt: skip
        for name, value in values.items():
            getattr(g, name)[0, i] = value
        return low <= 2
