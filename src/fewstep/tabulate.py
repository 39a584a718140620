"""Decisions to numbers: `tabulate(schedule, noise)` gives the stepwise table of a solver schedule.

Written rules by which a decision is lowered because its formula has no finite limit; `print` shows each where it acts:

* no point where alpha or sigma is 0 supports a difference in lam or rho (the limit of its weight is 0);
* a data-basis step of order 2 or more onto sigma = 0 becomes order 1 (its weights grow like log 1/sigma);
* a noise-basis step from alpha = 0 becomes order 1 (the same as DDIM there);
* a step in DPM-Solver-v3's basis from alpha = 0 or onto sigma = 0 becomes DDIM (its statistics end before);
* an interval with an inner node that has no place (in lam next to an infinite end, or at sigma = 0) becomes one
  first-order step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.builder import CONSTANT, NOISE, OUTPUT, STATE, Builder, Form, Point, resolve, stack_rows
from fewstep.errors import ArgumentError
from fewstep.expansion import correct, mixture
from fewstep.noise import NoiseSchedule
from fewstep.phi import Scalar, root, value
from fewstep.rules import At, Churn, Down, Inner, Renoise, SolverSchedule, Step
from fewstep.rules import Move as Decision
from fewstep.tableau import Tableau
from fewstep.transfer import Place, places

if TYPE_CHECKING:
    from fewstep.ems import EMS


def tabulate(
    schedule: SolverSchedule, noise: NoiseSchedule, *, mean: Tensor | None = None, statistics: EMS | None = None
) -> Tableau:
    """The table of a solver schedule for one noise schedule.

    Args:
        schedule: times and decisions.
        noise: alpha and sigma at the times.
        mean: the mean image, needed (and only used) by `afs="mean"`.
        statistics: the network's, needed (and only used) by steps with `basis="v3"`; the weights are then per element.

    Raises:
        ArgumentError: a support point that does not exist, two that coincide, a missing mean image, or statistics that
            are missing, of another noise schedule, or end before the times do.
        TableauError: times outside the range in which the noise schedule is finite.
    """
    if (schedule.afs == "mean") != (mean is not None):
        raise ArgumentError("afs='mean' needs mean=, the mean image of the data; other schedules take none")
    return _finish(built(schedule, noise, statistics), schedule, mean)


def built(schedule: SolverSchedule, noise: NoiseSchedule, statistics: EMS | None = None) -> Builder:
    """The rows of the table as sparse forms, unchecked: half the work of `tabulate`, for those who make thousands."""
    macro = places(noise, schedule.times)
    told: list[Scalar | None] = [None] * len(macro)
    if schedule.model_times is not None:
        told = list(schedule.model_times) if schedule.model_times.requires_grad else list(schedule.model_times.tolist())
    if statistics is not None:
        statistics.require_noise(noise)
    b = Builder(noise, schedule.afs, statistics)
    b.history.append(Point(macro[0], b.push_row({}, macro[0], told=told[0]), 0))
    for target, moves in enumerate(_intervals(schedule.steps), 1):
        _interval(b, moves, macro[target], told[target], last=target == len(macro) - 1)
    return b


def _intervals(steps: tuple[Decision, ...]) -> Iterator[list[Decision]]:
    """The moves grouped by the interval of `times` that they belong to; a move without a node ends one."""
    group: list[Decision] = []
    for decision in steps:
        group.append(decision)
        if decision.node is None:
            yield group
            group = []
    if group:
        raise ArgumentError("the last move must end the last interval: give it no node of its own")


def _interval(b: Builder, moves: list[Decision], end: Place, told: Scalar | None, *, last: bool) -> None:
    detour = 1 + max((k for k, m in enumerate(moves) if isinstance(m.node, At)), default=-1)
    if 0 < detour < len(moves):  # restart sampling: it has places of its own, whatever becomes of the interval after it
        _interval(b, moves[:detour], end, None, last=False)
        moves = moves[detour:]
    begin, note = b.history[-1].place, ""
    churned = [m for m in moves if isinstance(m, Renoise) and isinstance(m.node, Churn)]
    if churned and churned[0] is moves[0]:
        begin = resolve(b, moves[0].node, begin, end)
    if _homeless(b.noise, moves, begin, end):
        moves = [*churned[:1], Step(basis="velocity" if _basis(moves) == "velocity" else "data")]
        note = "one first-order step: an inner node has no place next to an infinite end"
    begin = b.history[-1].place
    for k, decision in enumerate(moves):
        final = last and k == len(moves) - 1
        target = resolve(b, decision.node, begin, end)
        if isinstance(decision, Renoise):
            _renoise(b, decision, target)
            if isinstance(decision.node, Churn | At):
                begin = target
        else:
            _step(b, decision, target, note, told if decision.node is None else None, last=final)
            if isinstance(decision.node, At):
                begin = target


def _basis(moves: list[Decision]) -> str:
    return next((m.basis for m in moves if isinstance(m, Step)), "data")


def _homeless(noise: NoiseSchedule, moves: list[Decision], begin: Place, end: Place) -> bool:
    """Whether some inner node of the interval has no finite place, or would be evaluated at sigma = 0."""
    for decision in moves:
        node = decision.node
        if isinstance(node, Inner):
            ends = (begin, end)
            if end.clean and node.r >= 1:
                return True
            if node.variable in ("lam", "rho") and begin.pure:
                return True
            if node.variable == "lam" and any(p.clean for p in ends):
                return True
        elif isinstance(node, Down) and end.clean:
            return True
    return False


def _renoise(b: Builder, decision: Renoise, target: Place) -> None:
    newest = b.history[-1]
    if target.clean or newest.place.pure:  # noise alone cannot become noisier
        return
    share = target.alpha / newest.place.alpha
    std = root(target.sigma**2 - (share * newest.place.sigma) ** 2) * decision.noise_scale
    form: Form = {(STATE, newest.state): share}
    if value(std) != 0.0:
        form[NOISE, b.draws] = std
        b.draws += 1
    if decision.noise_scale != 1.0:
        b.expected.append(f"noise scaled by {decision.noise_scale}")
    row = b.push_row(form, target, "fresh noise")
    b.history[-1] = Point(target, row, row)


def _step(b: Builder, step: Step, t: Place, note: str, told: Scalar | None, *, last: bool) -> None:
    if -step.start > len(b.history):
        raise ArgumentError(
            f"start={step.start} reads {-step.start} points back, but only {len(b.history)} exist at this step"
        )
    start = b.history[step.start]
    form, what, noise_term = mixture(b, step, start, t, note)
    row = b.push_row(form, t, what, told)
    b.history.append(Point(t, row, row))
    if step.corrector is not None and not last and not t.clean:
        correct(b, step, t, noise_term)


def _finish(b: Builder, schedule: SolverSchedule, mean: Tensor | None) -> Tableau:
    rows = len(b.rows)
    part = lambda kind, width: stack_rows([{j: w for (k, j), w in form.items() if k == kind} for form in b.rows], width)  # noqa: E731
    if schedule.afs == "zero":
        b.expected.append("free first step (x0 taken as 0)")
    if schedule.afs == "unit":
        b.expected.append("free first step (x0 taken as of unit variance)")
    constants = () if mean is None else (mean,)
    meta = dict[str, Any]()
    if b.shifted:
        constants += (torch.ones((), dtype=torch.float32, device="cpu"),)
    if b.statistics is not None and any(isinstance(m, Step) and m.basis == "v3" for m in schedule.steps):
        meta["statistics"] = b.statistics.digest
    return Tableau(
        A=part(STATE, rows), B=part(OUTPUT, rows), C=part(NOISE, b.draws), K=part(CONSTANT, len(constants)),
        times=_vector([p.time for p in b.places]), model_times=_vector(b.told),
        alpha=_vector([p.alpha for p in b.places]), sigma=_vector([p.sigma for p in b.places]),
        constants=constants, noise=b.noise, schedule=schedule, expected=tuple(dict.fromkeys(b.expected)),
        notes=tuple(b.notes), name=schedule.name, meta=meta,
    ).verify()  # fmt: skip


def _vector(values: list[Scalar]) -> Tensor:
    if any(isinstance(v, Tensor) for v in values):
        return torch.stack(
            [v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device="cpu") for v in values]
        )
    return torch.tensor(values, dtype=torch.float64, device="cpu")
