"""The moves of a sampler: `Step`, `Renoise`, and the nodes that they go to.

Points are counted backwards as in USF (Liu et al. 2024): -1 is the newest state, -2 the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fewstep.errors import ArgumentError

Basis = Literal["data", "noise", "velocity", "v3"]
Variable = Literal["lam", "rho", "time", "flow"]
Active = tuple[tuple[int, ...], ...]

BASES = ("data", "noise", "velocity", "v3")
VARIABLES = ("lam", "rho", "time", "flow")
SCALINGS = ("none", "bh1", "bh2", "+0.5exp", "-0.5exp")
AFS = (None, "zero", "unit", "mean")


def require(ok: bool, message: str) -> None:
    """Raise ArgumentError unless ok."""
    if not ok:
        raise ArgumentError(message)


@dataclass(frozen=True)
class Inner:
    """A node inside the current interval, at fraction r of the way in `variable`; `of` may shorten the interval."""

    r: float
    variable: Variable = "lam"
    of: Down | None = None
    kind: ClassVar[str] = "inner"


@dataclass(frozen=True)
class Down:
    """Below the target, so that fresh noise of `eta` leads up to it (k-diffusion's ancestral split)."""

    eta: float
    of: Inner | None = None
    kind: ClassVar[str] = "down"


@dataclass(frozen=True)
class Churn:
    """Up from the current state to `(1 + gamma)` times its noise level (EDM, Algorithm 2)."""

    gamma: float
    kind: ClassVar[str] = "churn"


@dataclass(frozen=True)
class At:
    """A time of its own, outside `times` (restart sampling)."""

    time: float
    kind: ClassVar[str] = "at"


Node = Inner | Down | Churn | At
NODES: dict[str, Any] = {c.kind: c for c in (Inner, Down, Churn, At)}


@dataclass(frozen=True)
class Step:
    """One move of the state. The defaults are DDIM.

    Attributes:
        basis: what is expanded: the network's x0 ("data"), its noise, its straight-path velocity, or DPM-Solver-v3's
            mixture of x0 and state ("v3"), for which `tabulate` must be given the network's statistics.
        order: Taylor order, 1 to 4: how many terms of the expansion are kept.
        active: which points estimate each derivative, `((-2,), (-2, -3))` for the first and second; None is full order.
        scaling: factor on the first derivative (UniPC's B(h): "bh1", "bh2"), or a number r for `1 + r h`.
        variable: the derivatives are with respect to it: "lam", "rho" (sigma / alpha), "time", or "flow".
        weights: `((-1, 1.5), (-2, -0.5))`: a fixed mixture of outputs instead of a Taylor expansion.
        start: the point moved from; -1 is multistep, -2 and -3 are single-step solvers' updates.
        tau: stochasticity, `std = sigma' sqrt(1 - exp(-2 tau^2 h))` (SA-Solver, Align Your Steps).
        eta: stochasticity by DDIM's convention, `std = eta sigma' sqrt(1 - exp(-2 h))`.
        kernel: "er_sde" for ER-SDE's noise function instead of tau.
        corrector: "pseudo" re-mixes the new state once its output is known, for free; "implicit" calls again there.
        corrector_order: its Taylor order; one more than the step's by default.
        corrector_scaling: as `scaling`, for a corrector of order 2.
        corrector_active: as `active`, for the corrector, with the new state as -1; by default the step's own points and
            the new one, and one derivative more.
        node: where to; None is the next of the schedule's times.
        noise_scale: factor on the fresh noise (1 is exact).
        second: factor on the second derivative (1/2 in DPM-Solver++(3M) as published in code).
    """

    basis: Basis = "data"
    order: int = 1
    active: Active | None = None
    scaling: str | float = "none"
    variable: Variable = "lam"
    weights: tuple[tuple[int, float], ...] | None = None
    start: int = -1
    tau: float = 0.0
    eta: float = 0.0
    kernel: Literal["er_sde"] | None = None
    corrector: Literal["pseudo", "implicit"] | None = None
    corrector_order: int | None = None
    corrector_scaling: str | float = "none"
    node: Node | None = None
    noise_scale: float = 1.0
    second: float = 1.0
    corrector_active: Active | None = None

    def __post_init__(self) -> None:
        require(self.basis in BASES, f"basis={self.basis!r}: choose one of {', '.join(BASES)}")
        plain = not self.stochastic and self.weights is None and self.variable == "lam"
        require(
            self.basis != "v3" or plain,
            "basis='v3' is a deterministic Taylor step in lam: leave out tau, eta, kernel, weights and variable",
        )
        require(self.variable in VARIABLES, f"variable={self.variable!r}: choose one of {', '.join(VARIABLES)}")
        require(
            isinstance(self.order, int) and 1 <= self.order <= 5,
            f"order={self.order!r}: give an integer from 1 to 4 (5 only for the corrector of a step of order 4)",
        )
        require(self.start <= -1, f"start={self.start}: points count backwards, -1 is the newest")
        for name in ("scaling", "corrector_scaling"):
            scaling = getattr(self, name)
            require(
                isinstance(scaling, float | int) or scaling in SCALINGS,
                f"{name}={scaling!r}: give a number r or one of {', '.join(SCALINGS)}",
            )
        require(self.tau >= 0 and 0 <= self.eta <= 1, "tau must not be negative, and eta must lie between 0 and 1")
        require(
            (self.tau > 0) + (self.eta > 0) + (self.kernel is not None) <= 1,
            "give one of tau, eta and kernel: they are three conventions for the same noise",
        )
        require(
            self.corrector in (None, "pseudo", "implicit"),
            f"corrector={self.corrector!r}: choose None, 'pseudo' or 'implicit'",
        )
        require(self.weights is None or self.corrector is None, "a step with fixed weights takes no corrector")
        if self.active is not None:
            require(
                len(self.active) == self.order - 1,
                f"active needs one set of points for each of the {self.order - 1} derivatives of order {self.order}, "
                f"got {len(self.active)}",
            )
            _require_points(self.active, self.start)
        if self.corrector_active is not None:
            require(
                self.corrector is not None and self.corrector_order is None and len(self.corrector_active) > 0,
                "corrector_active needs a corrector, no corrector_order, and points of at least one derivative",
            )
            _require_points(self.corrector_active, self.start - 1)

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.tau > 0 or self.eta > 0 or self.kernel is not None

    def derivative_points(self, available: int) -> Active:
        """The active points of each derivative with `available` points in the history; full order by default."""
        if self.active is not None:
            return self.active
        newer = list(range(self.start + 1, 0))
        older = list(range(self.start - 1, -available - 1, -1))
        points = tuple((newer + older)[: self.order - 1])
        return (points,) * len(points)

    def corrector_points(self, available: int) -> Active:
        """Active points of the corrector with `available` points before the new one, which is -1.

        By default the step's own, shifted by one, and the new point; one derivative more (USF, section 3.6).
        """
        if self.corrector_active is not None:
            return self.corrector_active
        if self.corrector_order is not None:
            older = range(self.start - 2, -available - 2, -1)
            points = (-1, *older)[: self.corrector_order - 1]
            return (points,) * len(points)
        predictor = self.derivative_points(available)[: self.order - 1]
        sets = [(*tuple(a - 1 for a in points if -a <= available), -1) for points in predictor]
        sets = [s for k, s in enumerate(sets, 1) if len(s) >= k + 1]
        return (*sets, sets[-1] if sets else (-1,))


def _require_points(sets: Active, start: int) -> None:
    for k, points in enumerate(sets, 1):
        require(
            len(points) >= k and len(set(points)) == len(points) and start not in points and max(points) < 0,
            f"derivative {k} needs at least {k} distinct points other than the start {start}, counted backwards from "
            f"-1; got {points}",
        )


@dataclass(frozen=True)
class Renoise:
    """Add fresh noise to the newest state, up to a noisier node; that state then takes its place."""

    node: Node | None = None
    noise_scale: float = 1.0


Move = Step | Renoise
