"""Decisions to numbers: `tabulate(schedule, noise)` gives the stepwise table of a solver schedule.

Written rules by which a decision is lowered because its formula has no finite limit; `print` shows each where it acts:

* no point where alpha or sigma is 0 supports a difference in lam or rho (the limit of its weight is 0);
* a data-basis step of order 2 or more onto sigma = 0 becomes order 1 (its weights grow like log 1/sigma);
* a noise-basis step from alpha = 0 becomes order 1 (the same as DDIM there);
* an interval with an inner node that has no place (in lam next to an infinite end, or at sigma = 0) becomes one
  first-order step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.phi import Scalar, derivative_weights, root, value
from fewstep.rules import At, Churn, Down, Inner, Node, Renoise, SolverSchedule, Step
from fewstep.rules import Move as Decision
from fewstep.tableau import Tableau, stack_rows
from fewstep.transfer import Move, Place, move, place, scaling_factor

STATE, OUTPUT, NOISE, CONSTANT = range(4)
Form = dict[tuple[int, int], Scalar]
"""A linear form: (kind, index) -> weight."""


def add(form: Form, other: Form, weight: Scalar) -> None:
    """`form += weight * other`, in place."""
    for key, w in other.items():
        form[key] = form[key] + weight * w if key in form else weight * w


@dataclass
class Point:
    """A point of the history: its place, the row of its state, the row at which the network saw it."""

    place: Place
    state: int
    seen: int


@dataclass
class Builder:
    """The table while it grows."""

    noise: NoiseSchedule
    afs: str | None
    rows: list[Form] = field(default_factory=list[Form])
    places: list[Place] = field(default_factory=list[Place])
    told: list[Scalar] = field(default_factory=list[Scalar])
    notes: list[str] = field(default_factory=list[str])
    history: list[Point] = field(default_factory=list[Point])
    draws: int = 0
    expected: list[str] = field(default_factory=list[str])

    def push_row(self, form: Form, where: Place, note: str = "", told: Scalar | None = None) -> int:
        """Append a row; its index."""
        self.rows.append(form)
        self.places.append(where)
        self.told.append(where.time if told is None else told)
        self.notes.append(note)
        return len(self.rows) - 1

    def output(self, point: Point) -> Form:
        """The network's x0 at a point; an analytical first step replaces the call at row 0."""
        if point.seen > 0 or self.afs is None:
            return {(OUTPUT, point.seen): 1.0}
        if self.afs == "zero":
            return {}
        if self.afs == "mean":
            return {(CONSTANT, 0): 1.0}
        p = point.place
        size = root(p.alpha**2 + p.sigma**2)
        return {(STATE, 0): p.alpha / (size * (size + p.sigma))}

    def value(self, point: Point, basis: str) -> Form:
        """The expanded quantity at a point: x0, noise or velocity, as seen by the network there."""
        out = self.output(point)
        if basis == "data":
            return out
        p = self.places[point.seen]
        form: Form = {(STATE, point.seen): 1.0 / p.sigma}
        add(form, out, -(p.alpha if basis == "noise" else p.alpha + p.sigma) / p.sigma)
        return form


def tabulate(schedule: SolverSchedule, noise: NoiseSchedule, *, mean: Tensor | None = None) -> Tableau:
    """The table of a solver schedule for one noise schedule.

    Args:
        schedule: times and decisions.
        noise: alpha and sigma at the times.
        mean: the mean image, needed (and only used) by `afs="mean"`.

    Raises:
        ArgumentError: a support point that does not exist, two that coincide, or a missing mean image.
        TableauError: times outside the range in which the noise schedule is finite.
    """
    if (schedule.afs == "mean") != (mean is not None):
        raise ArgumentError("afs='mean' needs mean=, the mean image of the data; other schedules take none")
    times: list[Scalar] = list(schedule.times) if schedule.times.requires_grad else schedule.times.tolist()
    macro = [place(noise, t) for t in times]
    told: list[Scalar | None] = [None] * len(macro)
    if schedule.model_times is not None:
        told = list(schedule.model_times) if schedule.model_times.requires_grad else list(schedule.model_times.tolist())
    b = Builder(noise, schedule.afs)
    b.history.append(Point(macro[0], b.push_row({}, macro[0], told=told[0]), 0))
    for target, moves in enumerate(_intervals(schedule.steps), 1):
        _interval(b, moves, macro[target], told[target], last=target == len(macro) - 1)
    return _finish(b, schedule, mean)


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
        begin = _resolve(b.noise, moves[0].node, begin, end)
    if _homeless(b.noise, moves, begin, end):
        moves = churned[:1] + [Step(basis="velocity" if _basis(moves) == "velocity" else "data")]
        note = "one first-order step: an inner node has no place next to an infinite end"
    begin = b.history[-1].place
    for k, decision in enumerate(moves):
        final = last and k == len(moves) - 1
        target = _resolve(b.noise, decision.node, begin, end)
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


def _resolve(noise: NoiseSchedule, node: Node | None, begin: Place, end: Place) -> Place:
    """The place of a node relative to its interval."""
    if node is None:
        return end
    if isinstance(node, At):
        return place(noise, node.time)
    if isinstance(node, Churn):
        return _at_ratio(noise, begin.rho * (1.0 + node.gamma))
    if isinstance(node, Down):
        top = _resolve(noise, node.of, begin, end)
        up = node.eta * root(top.rho**2 * (1.0 - (top.rho / begin.rho) ** 2))
        up = top.rho if value(up) > value(top.rho) else up
        return _at_ratio(noise, root(top.rho**2 - up**2))
    target = end if node.of is None else _resolve(noise, node.of, begin, end)
    if node.r == 1.0:
        return target
    a, b = begin.coordinate(node.variable), target.coordinate(node.variable)
    at = a + node.r * (b - a)
    if node.variable == "time":
        return place(noise, at)
    to_time = {"lam": noise.time_of_lam, "rho": noise.time_of_ratio}[node.variable]
    return place(noise, _like(to_time(at), at))


def _at_ratio(noise: NoiseSchedule, ratio: Scalar) -> Place:
    return place(noise, _like(noise.time_of_ratio(ratio), ratio))


def _like(result: Tensor, argument: Scalar) -> Scalar:
    return result if isinstance(argument, Tensor) else result.item()


def _renoise(b: Builder, decision: Renoise, target: Place) -> None:
    if target.clean:
        return
    newest = b.history[-1]
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
        raise ArgumentError(f"start={step.start} reads {-step.start} points back, but only {len(b.history)} exist at this step")
    start = b.history[step.start]
    form, what, noise_term = _mixture(b, step, start, t, note)
    row = b.push_row(form, t, what, told)
    b.history.append(Point(t, row, row))
    if step.corrector is not None and not last and not t.clean:
        _correct(b, step, t, noise_term)


def _mixture(b: Builder, step: Step, start: Point, t: Place, note: str) -> tuple[Form, str, Form]:
    """The row of one step, what was lowered in it, and its noise term (a corrector uses the same noise)."""
    order, step, notes = _usable(b, step, start, t, note)
    numbers = move(step, start.place, t, order, b.noise)
    form: Form = {(STATE, start.state): numbers.base}
    if step.weights is not None:
        for index, weight in step.weights:
            if -index > len(b.history):
                raise ArgumentError(f"weights read {-index} points back, but only {len(b.history)} exist at this step")
            add(form, b.value(b.history[index], step.basis), numbers.moments[0] * weight)
    else:
        _taylor(b, form, step, start, t, numbers)
    noise_term: Form = {}
    if value(numbers.std) != 0.0:
        noise_term[NOISE, b.draws] = numbers.std * step.noise_scale
        b.draws += 1
        add(form, noise_term, 1.0)
    if step.stochastic and step.noise_scale != 1.0:
        b.expected.append(f"noise scaled by {step.noise_scale}")
    if step.tau > 0 and step.basis == "noise":
        b.expected.append("variance of the noise-basis SDE step, exact to first order only")
    return form, notes, noise_term


def _taylor(b: Builder, form: Form, step: Step, start: Point, t: Place, numbers: Move) -> None:
    """Add `moments[0] F(s) + sum_k c_k moments[k] sum_j w_kj (F(a_j) - F(s))`."""
    here = b.value(start, step.basis)
    add(form, here, numbers.moments[0])
    origin = start.place.coordinate(step.variable)
    for k, points in enumerate(step.active or (), 1):
        weight = numbers.moments[k]
        if k == 1 and step.scaling != "none":
            h = t.lam - start.place.lam
            rate = 1.0 + step.tau**2
            weight = weight * scaling_factor(step.scaling, h if step.basis == "noise" else -rate * h, h)
        if k == 2:
            weight = weight * step.second
        offsets = [b.history[a].place.coordinate(step.variable) - origin for a in points]
        if len({value(o) for o in offsets} | {0.0}) <= len(offsets):
            raise ArgumentError(f"derivative {k} differences points that coincide ({points}): choose points at different times")
        for a, w in zip(points, derivative_weights(k, offsets), strict=True):
            add(form, b.value(b.history[a], step.basis), weight * w)
            add(form, here, -weight * w)


def _usable(b: Builder, step: Step, start: Point, t: Place, note: str) -> tuple[int, Step, str]:
    """The order that can be used here, the step with its active points spelled out, and the note for `print`."""
    if step.basis == "noise" and start.place.pure:
        lowered = step.order > 1 or step.weights is not None
        why = f"order {step.order} lowered to 1: the interval begins at alpha = 0" if lowered else ""
        step = replace(step, basis="data", order=1, active=None, weights=None)
        return 1, step, "; ".join(filter(None, (note, why)))
    if step.weights is not None:
        return 1, step, note
    available = len(b.history)
    wanted = step.derivative_points(available)
    finite = [tuple(a for a in points if -a <= available and not _infinite(b.history[a].place, step.variable)) for points in wanted]
    usable = [points for k, points in enumerate(finite, 1) if len(points) >= k]
    order, why = 1 + len(usable), ""
    if order < step.order:
        dropped = any(-a <= available and a not in kept for points, kept in zip(wanted, finite, strict=True) for a in points)
        reason = "a point at an infinite end gives no difference" if dropped else f"{available} point{'s' * (available > 1)} known"
        why = f"order {step.order} used as {order}: {reason}"
    if order > 1 and _infinite(start.place, step.variable):
        order, why = 1, f"order {step.order} lowered to 1: the interval begins at alpha = 0"
    if order > 1 and t.clean and step.basis == "data":
        order, why = 1, f"order {step.order} lowered to 1: the interval ends at sigma = 0"
    if order > 1 and t.clean and step.scaling != "none":
        step = replace(step, scaling="none")
        why = "; ".join(filter(None, (why, "no scaling: the interval ends at sigma = 0")))
    step = replace(step, order=order, active=tuple(usable[: order - 1]) or None)
    return order, step, "; ".join(filter(None, (note, why)))


def _infinite(p: Place, variable: str) -> bool:
    return (variable == "lam" and (p.clean or p.pure)) or (variable == "rho" and p.pure)


def _correct(b: Builder, step: Step, t: Place, noise_term: Form) -> None:
    """Re-mix the newest state from the same starting point, now that its output is known (UniC; USF section 3.6)."""
    start = b.history[step.start - 1]
    sets = corrector_points(step, len(b.history) - 1)
    corrector = replace(
        step, order=len(sets) + 1, active=sets, start=step.start - 1, corrector=None, scaling=step.corrector_scaling, second=1.0,
    )  # fmt: skip
    draws = b.draws
    form, note, own = _mixture(b, corrector, start, t, "")
    for key in own:
        del form[key]
    b.draws = draws
    add(form, noise_term, 1.0)
    row = b.push_row(form, t, "; ".join(filter(None, ("corrected", note))))
    b.history[-1] = replace(b.history[-1], state=row, seen=row if step.corrector == "implicit" else b.history[-1].seen)


def corrector_points(step: Step, available: int) -> tuple[tuple[int, ...], ...]:
    """Active points of a corrector: the predictor's, shifted by one, and the new point -1; one derivative more."""
    if step.corrector_order is not None:
        older = range(step.start - 2, -available - 2, -1)
        points = (-1, *older)[: step.corrector_order - 1]
        return (points,) * len(points)
    predictor = step.derivative_points(available)[: step.order - 1]
    sets = [tuple(a - 1 for a in points if -a <= available) + (-1,) for points in predictor]
    sets = [s for k, s in enumerate(sets, 1) if len(s) >= k + 1]
    return (*sets, sets[-1] if sets else (-1,))


def _finish(b: Builder, schedule: SolverSchedule, mean: Tensor | None) -> Tableau:
    rows = len(b.rows)
    part = lambda kind, width: stack_rows([{j: w for (k, j), w in form.items() if k == kind} for form in b.rows], width)  # noqa: E731
    if schedule.afs == "zero":
        b.expected.append("free first step (x0 taken as 0)")
    if schedule.afs == "unit":
        b.expected.append("free first step (x0 taken as of unit variance)")
    return Tableau(
        A=part(STATE, rows), B=part(OUTPUT, rows), C=part(NOISE, b.draws), K=part(CONSTANT, int(mean is not None)),
        times=_vector([p.time for p in b.places]), model_times=_vector(b.told),
        alpha=_vector([p.alpha for p in b.places]), sigma=_vector([p.sigma for p in b.places]),
        constants=() if mean is None else (mean,), noise=b.noise, schedule=schedule, expected=tuple(dict.fromkeys(b.expected)),
        notes=tuple(b.notes), name=schedule.name,
    ).verify(1e-8)  # fmt: skip


def _vector(values: list[Scalar]) -> Tensor:
    if any(isinstance(v, Tensor) for v in values):
        return torch.stack([v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64, device="cpu") for v in values])
    return torch.tensor(values, dtype=torch.float64, device="cpu")
