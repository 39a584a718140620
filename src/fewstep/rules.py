"""The decisions of a sampler: one `Step` per move, and `SolverSchedule`, the times and steps of a whole run.

The words are USF's (Liu et al. 2024): every step chooses its own prediction basis, starting point, Taylor order,
derivative estimation, scaling and corrector. `tabulate` turns decisions into numbers.

Points are counted backwards as in USF: -1 is the newest state, -2 the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fewstep.errors import FileFormatError, TimesError
from fewstep.noise import NoiseSchedule, as_float64
from fewstep.steps import (
    AFS,
    NODES,
    Active,
    At,
    Basis,
    Churn,
    Down,
    Inner,
    Move,
    Node,
    Renoise,
    Step,
    Variable,
    require,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fewstep.ems import EMS
    from fewstep.tableau import Tableau

__all__ = [
    "Active", "At", "Basis", "Churn", "Down", "Inner", "Move", "Node", "Renoise", "SolverSchedule", "Step", "Variable",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class SolverSchedule:
    """A sampler as decisions: times and moves. USF's own term; see `tabulate`.

    Attributes:
        times: `[n + 1]` from noisy to clean, in the noise schedule's unit.
        steps: the moves; exactly n of them have no node of their own, and each of these ends an interval of `times`.
        afs: analytical first step, which saves the first call: x0 taken as 0 ("zero"), as of unit variance ("unit":
            eps is the normalised state), or as the mean image ("mean"; give it to `tabulate`).
        model_times: `[n + 1]` what the network is told at the times, where that differs.
        meta: what a reader wants to know beside the decisions (JSON values); no part of the sampler.

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
    meta: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", as_float64(self.times))
        if self.model_times is not None:
            object.__setattr__(self, "model_times", as_float64(self.model_times))
            require(self.model_times.shape == self.times.shape, "model_times must have one entry for each of times")
        if self.times.ndim != 1 or len(self.times) < 2:
            raise TimesError(
                f"times must be a list of at least two times, from noisy to clean; got shape {tuple(self.times.shape)}"
            )
        values = self.times.detach().tolist()
        for k in range(1, len(values)):
            if not values[k] < values[k - 1]:
                raise TimesError(
                    f"times must fall strictly: entry {k} ({values[k]!r}) does not lie below entry {k - 1} "
                    f"({values[k - 1]!r}). Remove the repeat or sort them"
                )
        require(self.afs in AFS, f"afs={self.afs!r}: choose None, 'zero', 'unit' or 'mean'")
        advance = sum(move.node is None for move in self.steps)
        require(
            advance == len(values) - 1, f"{advance} moves advance along {len(values)} times; {len(values) - 1} must"
        )

    def tabulate(self, noise: NoiseSchedule, *, mean: Tensor | None = None, statistics: EMS | None = None) -> Tableau:
        """The numbers of these decisions for one noise schedule; differentiable in the times."""
        from fewstep.tabulate import tabulate

        return tabulate(self, noise, mean=mean, statistics=statistics)

    @staticmethod
    def from_usf(record: dict[str, Any] | str | Path, noise: NoiseSchedule | None = None) -> SolverSchedule:
        """A solver schedule of USF's authors, from its record or its `.pth` file; see `fewstep.usf.from_usf`."""
        from fewstep.usf import from_usf

        return from_usf(record, noise)

    def to_usf(self, noise: NoiseSchedule | None = None) -> dict[str, Any]:
        """The record in the encoding of USF's authors; see `fewstep.usf.to_usf`."""
        from fewstep.usf import to_usf

        return to_usf(self, noise)

    def with_times(self, times: Tensor) -> SolverSchedule:
        """The same moves at other times (of the same number)."""
        return replace(self, times=times, model_times=None)

    def canonical(self) -> SolverSchedule:
        """Decisions that change nothing, removed: equal samplers get equal records."""
        # A pseudo corrector leaves a state at which the network's noise and x0 do not fit together: from there even
        # first-order steps of two bases differ.
        mixed, steps = [False], list[Move]()
        for k, move in enumerate(self.steps):
            if isinstance(move, Renoise):
                steps.append(move)
                mixed[-1] = False
                continue
            start = mixed[move.start] if -move.start <= len(mixed) else False
            step = _canonical_step(move, len(mixed), last=k == len(self.steps) - 1, mixed=start)
            steps.append(step)
            mixed.append(step.corrector == "pseudo")
        return replace(self, steps=tuple(steps), name="", citation="", meta={})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SolverSchedule) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.steps, self.afs))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; only what differs from the defaults."""
        record: dict[str, Any] = {"times": self.times.detach().tolist(), "steps": [_move_record(m) for m in self.steps]}
        if self.model_times is not None:
            record["model_times"] = self.model_times.detach().tolist()
        return record | {k: v for k in ("afs", "name", "citation", "meta") if (v := getattr(self, k))}

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


def _canonical_step(step: Step, available: int, *, last: bool, mixed: bool) -> Step:
    if step.weights is not None:
        kept = tuple(sorted((p, w) for p, w in step.weights if w != 0))
        return replace(step, weights=kept, order=1, active=None, scaling="none", second=1.0, variable="lam")
    order = min(step.order, available) if step.active is None else step.order
    step = step if order == step.order else replace(step, order=order)
    points = tuple(_sorted(p) for p in step.derivative_points(available))
    corrector = None if last else step.corrector
    changes: dict[str, Any] = {"active": points or None, "corrector": corrector}
    if order == 1:
        changes |= {"active": None, "scaling": "none"}
        if corrector is None and step.basis != "v3":
            kept = step.tau or step.kernel or mixed
            changes |= {"variable": "lam", "basis": step.basis if kept else "data"}
    if order < 3:
        changes["second"] = 1.0
    if isinstance(step.scaling, float | int) and step.scaling == 0:
        changes["scaling"] = "none"
    if corrector is None:
        changes |= {"corrector_order": None, "corrector_scaling": "none", "corrector_active": None}
    elif step.corrector_active is not None:
        usual = replace(step, corrector_active=None).corrector_points(available)
        same = [*map(_sorted, usual)] == [*map(_sorted, step.corrector_active)]
        changes["corrector_active"] = None if same else tuple(map(_sorted, step.corrector_active))
    return step if all(getattr(step, k) == v for k, v in changes.items()) else replace(step, **changes)


def _sorted(points: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(points, reverse=True))


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
    kind: Callable[..., Node] = NODES[values.pop("kind")]
    if "of" in values:
        values["of"] = _node_from(values["of"])
    return kind(**values)


def _move_from(record: dict[str, Any]) -> Move:
    values = dict(record)
    if "node" in values:
        values["node"] = _node_from(values["node"])
    for name in ("active", "weights", "corrector_active"):
        if values.get(name) is not None:
            values[name] = tuple(tuple(p) for p in values[name])
    return Renoise(**values) if values.pop("renoise", False) else Step(**values)
