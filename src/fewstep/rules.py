"""The decisions of a sampler: one `Step` per move, and `SolverSchedule`, the times and steps of a whole run.

The words are USF's (Liu et al. 2024): every step chooses its own prediction basis, starting point, Taylor order,
derivative estimation, scaling and corrector. `tabulate` turns decisions into numbers.

Points are counted backwards as in USF: -1 is the newest state, -2 the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, FileFormatError, TimesError
from fewstep.noise import NoiseSchedule, as_float64

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

Basis = Literal["data", "noise", "velocity", "v3"]
Variable = Literal["lam", "rho", "time", "flow"]
Active = tuple[tuple[int, ...], ...]

BASES = ("data", "noise", "velocity", "v3")
VARIABLES = ("lam", "rho", "time", "flow")
SCALINGS = ("none", "bh1", "bh2", "+0.5exp", "-0.5exp")
AFS = (None, "zero", "unit", "mean")


def _require(ok: bool, message: str) -> None:
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
_NODES: dict[str, Any] = {c.kind: c for c in (Inner, Down, Churn, At)}


@dataclass(frozen=True)
class Step:
    """One move of the state. The defaults are DDIM.

    Attributes:
        basis: what is expanded: the network's x0 ("data"), its noise, or its straight-path velocity.
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

    def __post_init__(self) -> None:
        _require(self.basis in BASES, f"basis={self.basis!r}: choose one of {', '.join(BASES)}")
        _require(self.basis != "v3", "basis='v3' needs the network's DPM-Solver-v3 statistics, which this version cannot compute: use 'data' or 'noise'")
        _require(self.variable in VARIABLES, f"variable={self.variable!r}: choose one of {', '.join(VARIABLES)}")
        _require(isinstance(self.order, int) and 1 <= self.order <= 5, f"order={self.order!r}: give an integer from 1 to 4 (5 only for the corrector of a step of order 4)")
        _require(self.start <= -1, f"start={self.start}: points count backwards, -1 is the newest")
        for name in ("scaling", "corrector_scaling"):
            scaling = getattr(self, name)
            _require(isinstance(scaling, float | int) or scaling in SCALINGS, f"{name}={scaling!r}: give a number r or one of {', '.join(SCALINGS)}")
        _require(self.tau >= 0 and 0 <= self.eta <= 1, "tau must not be negative, and eta must lie between 0 and 1")
        _require((self.tau > 0) + (self.eta > 0) + (self.kernel is not None) <= 1, "give one of tau, eta and kernel: they are three conventions for the same noise")
        _require(self.corrector in (None, "pseudo", "implicit"), f"corrector={self.corrector!r}: choose None, 'pseudo' or 'implicit'")
        _require(self.weights is None or self.corrector is None, "a step with fixed weights takes no corrector")
        if self.active is not None:
            _require(len(self.active) == self.order - 1, f"active needs one set of points for each of the {self.order - 1} derivatives of order {self.order}, got {len(self.active)}")
            for k, points in enumerate(self.active, 1):
                _require(len(points) >= k and len(set(points)) == len(points) and self.start not in points, f"derivative {k} needs at least {k} distinct points other than the start {self.start}, got {points}")

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


@dataclass(frozen=True)
class Renoise:
    """Add fresh noise to the newest state, up to a noisier node; that state then takes its place."""

    node: Node | None = None
    noise_scale: float = 1.0


Move = Step | Renoise


@dataclass(frozen=True, eq=False)
class SolverSchedule:
    """A sampler as decisions: times and moves. USF's own term; see `tabulate`.

    Attributes:
        times: `[n + 1]` from noisy to clean, in the noise schedule's unit.
        steps: the moves; exactly n of them have no node of their own, and each of these ends an interval of `times`.
        afs: analytical first step, which saves the first call: x0 taken as 0 ("zero"), as of unit variance ("unit":
            eps is the normalised state), or as the mean image ("mean"; give it to `tabulate`).
        model_times: `[n + 1]` what the network is told at the times, where that differs.

    Raises:
        TimesError: times that do not fall strictly, with the indices.
        ArgumentError: moves that do not fit the times.
    """

    times: Tensor
    steps: tuple[Move, ...]
    afs: Literal["zero", "unit", "mean"] | None = None
    model_times: Tensor | None = None
    name: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", as_float64(self.times))
        if self.model_times is not None:
            object.__setattr__(self, "model_times", as_float64(self.model_times))
            _require(self.model_times.shape == self.times.shape, "model_times must have one entry for each of times")
        if self.times.ndim != 1 or len(self.times) < 2:
            raise TimesError(f"times must be a list of at least two times, from noisy to clean; got shape {tuple(self.times.shape)}")
        values = self.times.detach().tolist()
        for k in range(1, len(values)):
            if not values[k] < values[k - 1]:
                raise TimesError(f"times must fall strictly: entry {k} ({values[k]!r}) does not lie below entry {k - 1} ({values[k - 1]!r}). Remove the repeat or sort them")
        _require(self.afs in AFS, f"afs={self.afs!r}: choose None, 'zero', 'unit' or 'mean'")
        advance = sum(move.node is None for move in self.steps)
        _require(advance == len(values) - 1, f"{advance} moves advance along {len(values)} times; {len(values) - 1} must")

    def tabulate(self, noise: NoiseSchedule, *, mean: Tensor | None = None) -> Tableau:
        """The numbers of these decisions for one noise schedule; differentiable in the times."""
        from fewstep.tabulate import tabulate

        return tabulate(self, noise, mean=mean)

    def with_times(self, times: Tensor) -> SolverSchedule:
        """The same moves at other times (of the same number)."""
        return replace(self, times=times, model_times=None)

    def canonical(self) -> SolverSchedule:
        """Decisions that change nothing, removed: equal samplers get equal records."""
        available, steps = 1, list[Move]()
        for k, move in enumerate(self.steps):
            if isinstance(move, Renoise):
                steps.append(move)
                continue
            last = k == len(self.steps) - 1
            steps.append(_canonical_step(move, available, last))
            available += 1
        return replace(self, steps=tuple(steps), name="", citation="")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SolverSchedule) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.steps, self.afs))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; only what differs from the defaults."""
        record: dict[str, Any] = {"times": self.times.detach().tolist(), "steps": [_move_record(m) for m in self.steps]}
        if self.model_times is not None:
            record["model_times"] = self.model_times.detach().tolist()
        return record | {k: v for k in ("afs", "name", "citation") if (v := getattr(self, k))}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> SolverSchedule:
        """The schedule that `to_dict` wrote.

        Raises:
            FileFormatError: damaged or unknown fields.
        """
        try:
            values = dict(record)
            times = torch.tensor(values.pop("times"), dtype=torch.float64, device="cpu")
            told = values.pop("model_times", None)
            steps = tuple(_move_from(m) for m in values.pop("steps"))
            return SolverSchedule(times, steps, model_times=None if told is None else as_float64(told), **values)
        except (KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"damaged solver schedule: {error!r}") from error


def _canonical_step(step: Step, available: int, last: bool) -> Step:
    if step.weights is not None:
        kept = tuple(sorted((p, w) for p, w in step.weights if w != 0))
        return replace(step, weights=kept, order=1, active=None, scaling="none", second=1.0, variable="lam")
    order = min(step.order, available) if step.active is None else step.order
    step = replace(step, order=order)
    points = step.derivative_points(available)
    corrector = None if last else step.corrector
    changes: dict[str, Any] = {"active": points or None, "corrector": corrector}
    if order == 1:
        changes |= {"active": None, "scaling": "none"}
        if corrector is None:
            changes |= {"variable": "lam", "basis": step.basis if step.tau or step.kernel else "data"}
    if order < 3:
        changes["second"] = 1.0
    if isinstance(step.scaling, float | int) and step.scaling == 0:
        changes["scaling"] = "none"
    if corrector is None:
        changes |= {"corrector_order": None, "corrector_scaling": "none"}
    return replace(step, **changes)


def _move_record(move: Move) -> dict[str, Any]:
    record: dict[str, Any] = {"renoise": True} if isinstance(move, Renoise) else {}
    for f in fields(move):
        v = getattr(move, f.name)
        if f.name == "node":
            if v is not None:
                record["node"] = _node_record(v)
        elif f.default is MISSING or v != f.default:
            record[f.name] = v
    return record


def _node_record(node: Node) -> dict[str, Any]:
    record = {k: v for k, v in asdict(node).items() if k != "of"}
    inside = getattr(node, "of", None)
    return {"kind": node.kind, **record} | ({"of": _node_record(inside)} if inside is not None else {})


def _node_from(record: dict[str, Any]) -> Node:
    values = dict(record)
    kind: Callable[..., Node] = _NODES[values.pop("kind")]
    if "of" in values:
        values["of"] = _node_from(values["of"])
    return kind(**values)


def _move_from(record: dict[str, Any]) -> Move:
    values = dict(record)
    if "node" in values:
        values["node"] = _node_from(values["node"])
    for name in ("active", "weights"):
        if values.get(name) is not None:
            values[name] = tuple(tuple(p) for p in values[name])
    return Renoise(**values) if values.pop("renoise", False) else Step(**values)
