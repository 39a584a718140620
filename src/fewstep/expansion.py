"""One step as a row: the Taylor expansion from its support points, what must be lowered, and the corrector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fewstep.builder import CONSTANT, NOISE, STATE, Builder, Form, Point, add
from fewstep.errors import ArgumentError
from fewstep.phi import Scalar, derivative_weights, value
from fewstep.rules import Active, Step
from fewstep.transfer import Place, move, scaling_factor


def mixture(b: Builder, step: Step, start: Point, t: Place, note: str) -> tuple[Form, str, Form]:
    """The row of one step, what was lowered in it, and its noise term (a corrector uses the same noise)."""
    order, step, sets, notes = _usable(b, step, start, t, note)
    if step.basis == "v3":
        return v3_form(b, step, sets, start, t), notes, {}
    numbers = move(step, start.place, t, order, b.noise)
    form: Form = {(STATE, start.state): numbers.base}
    if step.weights is not None:
        for index, weight in step.weights:
            if -index > len(b.history):
                raise ArgumentError(f"weights read {-index} points back, but only {len(b.history)} exist at this step")
            add(form, b.value(b.history[index], step.basis), numbers.moments[0] * weight)
    else:
        taylor(form, step, sets, b, start, t, numbers.moments, lambda point: b.value(point, step.basis))
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


def v3_form(b: Builder, step: Step, sets: Active, start: Point, t: Place) -> Form:
    """The row of a step in DPM-Solver-v3's basis; its quantity depends on the start (see `fewstep.ems.integrals`)."""
    ems = b.statistics
    if ems is None:
        raise ArgumentError(
            "this step is in DPM-Solver-v3's basis and needs the network's statistics: give tabulate(..., statistics=) "
            "an EMS, from EMS.compute(denoiser, data) or EMS.load(file), or use basis 'data' or 'noise'"
        )
    s = start.place
    numbers = ems.move(s.lam, t.lam, len(sets) + 1)
    form: Form = {(STATE, start.state): t.alpha / s.alpha * numbers.gain}
    if ems.shifts:
        form[CONSTANT, b.ones] = -t.alpha * numbers.gain * numbers.shift
        b.shifted = True

    known = dict[int, Form]()

    def quantity(point: Point) -> Form:
        if id(point) not in known:
            growth, drift = ems.relative(s.lam, point.place.lam)
            seen = known[id(point)] = dict[tuple[int, int], Scalar]()
            add(seen, b.value(point, "v3"), growth)
            if ems.shifts:
                seen[CONSTANT, b.ones] = -drift
        return known[id(point)]

    taylor(form, step, sets, b, start, t, [-t.alpha * numbers.gain * m for m in numbers.moments], quantity)
    b.expected.append("DPM-Solver-v3's weights, exact for their own statistics only")
    return form


def taylor(
    form: Form, step: Step, sets: Active, b: Builder, start: Point, t: Place, moments: Sequence[Scalar],
    quantity: Callable[[Point], Form],
) -> None:  # fmt: skip
    """Add `moments[0] F(s) + sum_k c_k moments[k] sum_j w_kj (F(a_j) - F(s))`."""
    here = quantity(start)
    add(form, here, moments[0])
    origin = start.place.coordinate(step.variable)
    for k, points in enumerate(sets, 1):
        weight = moments[k]
        if k == 1 and step.scaling != "none":
            h = t.lam - start.place.lam
            rate = 1.0 + step.tau**2
            # USF's code has z = +h for v3 too.
            weight = weight * scaling_factor(step.scaling, h if step.basis in ("noise", "v3") else -rate * h, h)
        if k == 2:
            weight = weight * step.second
        offsets = [b.history[a].place.coordinate(step.variable) - origin for a in points]
        if len({value(o) for o in offsets} | {0.0}) <= len(offsets):
            raise ArgumentError(
                f"derivative {k} differences points that coincide ({points}): choose points at different times"
            )
        for a, w in zip(points, derivative_weights(k, offsets), strict=True):
            add(form, quantity(b.history[a]), weight * w)
            add(form, here, -weight * w)


def _usable(b: Builder, step: Step, start: Point, t: Place, note: str) -> tuple[int, Step, Active, str]:
    """The order that can be used here, the step as lowered, its derivatives' active points, the note for `print`."""
    if step.basis == "v3" and (start.place.pure or t.clean):
        end = "begins at alpha = 0" if start.place.pure else "ends at sigma = 0"
        step = replace(step, basis="data", order=1, active=None, scaling="none")
        return 1, step, (), "; ".join(filter(None, (note, f"v3 lowered to DDIM: the interval {end}")))
    if step.basis == "noise" and start.place.pure:
        lowered = step.order > 1 or step.weights is not None
        why = f"order {step.order} lowered to 1: the interval begins at alpha = 0" if lowered else ""
        step = replace(step, basis="data", order=1, active=None, weights=None)
        return 1, step, (), "; ".join(filter(None, (note, why)))
    if step.weights is not None:
        return 1, step, (), note
    available = len(b.history)
    wanted = step.derivative_points(available)
    finite = [
        tuple(a for a in points if -a <= available and not _infinite(b.history[a].place, step.variable))
        for points in wanted
    ]
    usable = [points for k, points in enumerate(finite, 1) if len(points) >= k]
    order, why = 1 + len(usable), ""
    if order < step.order:
        dropped = any(
            -a <= available and a not in kept for points, kept in zip(wanted, finite, strict=True) for a in points
        )
        reason = (
            "a point at an infinite end gives no difference"
            if dropped
            else f"{available} point{'s' * (available > 1)} known"
        )
        why = f"order {step.order} used as {order}: {reason}"
    if order > 1 and _infinite(start.place, step.variable):
        order, why = 1, f"order {step.order} lowered to 1: the interval begins at alpha = 0"
    if order > 1 and t.clean and step.basis == "data":
        order, why = 1, f"order {step.order} lowered to 1: the interval ends at sigma = 0"
    if order > 1 and t.clean and step.scaling != "none":
        step = replace(step, scaling="none")
        why = "; ".join(filter(None, (why, "no scaling: the interval ends at sigma = 0")))
    return order, step, tuple(usable[: order - 1]), "; ".join(filter(None, (note, why)))


def _infinite(p: Place, variable: str) -> bool:
    return (variable == "lam" and (p.clean or p.pure)) or (variable == "rho" and p.pure)


def correct(b: Builder, step: Step, t: Place, noise_term: Form) -> None:
    """Re-mix the newest state from the same starting point, now that its output is known (UniC; USF section 3.6)."""
    start = b.history[step.start - 1]
    sets = step.corrector_points(len(b.history) - 1)
    corrector = replace(
        step, order=len(sets) + 1, active=sets, start=step.start - 1, corrector=None, scaling=step.corrector_scaling,
        second=1.0, corrector_active=None,
    )  # fmt: skip
    draws = b.draws
    form, note, own = mixture(b, corrector, start, t, "")
    for key in own:
        del form[key]
    b.draws = draws
    add(form, noise_term, 1.0)
    row = b.push_row(form, t, "; ".join(filter(None, ("corrected", note))))
    b.history[-1] = replace(b.history[-1], state=row, seen=row if step.corrector == "implicit" else b.history[-1].seen)
