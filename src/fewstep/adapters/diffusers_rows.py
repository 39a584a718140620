"""A table's rows as a diffusers pipeline asks for them: one for each network call, on the state that it hands over.

A pipeline calls its network and hands output and state to the scheduler, which answers with the next state. Two things
are done to a table for that, once, in float64:

* rows without a network call (a corrected state, a free first step) are put into the rows that read them;
* rows that do not read the state in the pipeline's hands, but older ones (correctors restart from their own last
  state), are written on that state, which is the same unless the pipeline has edited it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fewstep.errors import ArgumentError, TableauError
from fewstep.tableau import Tableau

START, STATE, OUTPUT, NOISE, SHIFT = range(5)
Form = dict[tuple[int, int], float]
"""A linear form: (kind, index) -> weight; states and outputs are counted by network calls."""


class Rows(NamedTuple):
    """One form for each network call and the sample; the level of each state, and the spread of the first."""

    forms: list[Form]
    alpha: list[float]
    sigma: list[float]
    start: float


def rows_of(table: Tableau) -> Rows:
    """A table's rows from one network call to the next, each on the state that the pipeline holds."""
    _require_plain(table)
    calls = [i for i, e in enumerate(table.evaluated) if e]
    index = {row: k for k, row in enumerate(calls)}
    read: list[Form] = []
    forms: list[Form] = []
    for row in range(table.rows):
        form = {(START, 0): 1.0} if row == 0 else _eliminated(table, row, read, index)
        if row in index or row == table.rows - 1:
            forms.append(form)
            read.append({(STATE, len(forms) - 1): 1.0})
        else:
            read.append(form)
    forms = _on_present_states(_from_first_state(forms))
    levels = [[v[i].item() for i in (*calls, table.rows - 1)] for v in (table.alpha, table.sigma)]
    # A traced scheduler may start from unit noise where sigma is 0.998; others start as `fewstep.sample` does.
    spread = table.meta.get("trace", {}).get("spread", table.sigma[0].item())
    return Rows(forms[1:], levels[0], levels[1], _spread_of(forms[0], spread))


def _require_plain(table: Tableau) -> None:
    if table.channels > 1:
        raise ArgumentError(
            "this table has guidance inside (two output channels), and a pipeline guides before the scheduler: "
            "make a table of the guided network"
        )
    elements = max(m[0, 0].numel() for m in (table.A, table.B, table.C, table.K) if m.numel())
    elements = max(elements, *(c.numel() for c in table.constants), 1)
    if elements > 1:
        raise ArgumentError(
            f"this table has weights or constants for each of {elements} elements (DPM-Solver-v3's statistics, a mean "
            "image): a scheduler keeps its table in its configuration, a text, and runs at any resolution. Average the "
            "statistics over the elements, choose another solver, or run it by fewstep.sample on "
            "fewstep.from_diffusers(pipe, ...)"
        )
    if not any(table.evaluated):
        raise TableauError("this table never calls the network: there is nothing for a pipeline to run")


def _eliminated(table: Tableau, row: int, read: Sequence[Form], index: Mapping[int, int]) -> Form:
    form: Form = {}
    for k in table.A[row].nonzero()[:, 0].tolist():
        _add(form, read[k], table.A[row, k].item())
    for j in table.B[row].nonzero()[:, 0].tolist():
        _add(form, {(OUTPUT, index[j]): 1.0}, table.B[row, j].item())
    for m in table.C[row].nonzero()[:, 0].tolist():
        _add(form, {(NOISE, m): 1.0}, table.C[row, m].item())
    for q in table.K[row].nonzero()[:, 0].tolist():
        _add(form, {(SHIFT, 0): float(table.constants[q])}, table.K[row, q].item())
    return form


def _add(form: Form, other: Form, weight: float) -> None:
    for key, w in other.items():
        form[key] = form.get(key, 0.0) + weight * w


def _from_first_state(forms: list[Form]) -> list[Form]:
    """What reads the start, written on the first state that the network sees (a free first step lies between)."""
    first = forms[0]
    draws, weight = {k for k in first if k[0] == NOISE}, first.get((START, 0), 0.0)
    out = [first]
    for form in forms[1:]:
        share = form.pop((START, 0), 0.0)
        if (share and (draws or (SHIFT, 0) in first or not weight)) or draws & set(form):
            raise ArgumentError(
                "later rows of this table read the start or its noise past a random first step, which a pipeline "
                "cannot repeat: use a table without one"
            )
        if share:
            _add(form, {(STATE, 0): 1.0}, share / weight)
        out.append(form)
    if first.get((SHIFT, 0)):
        raise ArgumentError("the first state of this table has a constant, which a pipeline's noise has not")
    return out


def _spread_of(first: Form, sigma: float) -> float:
    """The standard deviation of the first state, noise of a random first step included."""
    return math.hypot(first.get((START, 0), 0.0) * sigma, *(w for k, w in first.items() if k[0] == NOISE))


def _on_present_states(forms: list[Form]) -> list[Form]:
    """Rows that read older states but not the present one, as what the present one lacks of them.

    With everything written out (on the first state, outputs and noise) row i is `a_i x + ...` and the present state
    `a_p x + ...`, so `row_i - (a_i / a_p) present` has no first state left. Outputs that both share cancel to
    rounding; what is below it is dropped.
    """
    whole: list[Form] = [{(STATE, 0): 1.0}]
    out = [forms[0]]
    for i, form in enumerate(forms[1:], 1):
        full: Form = {}
        for key, w in form.items():
            _add(full, whole[key[1]] if key[0] == STATE else {key: 1.0}, w)
        older = any(key[0] == STATE and key[1] < i - 1 for key in form)
        there = whole[i - 1].get((STATE, 0), 0.0)
        if older and not form.get((STATE, i - 1)) and there:
            share = full.get((STATE, 0), 0.0) / there
            form = dict(full)
            _add(form, whole[i - 1], -share)
            floor = 1e-13 * max(map(abs, full.values()))
            form = {key: w for key, w in form.items() if abs(w) > floor and key != (STATE, 0)}
            form[STATE, i - 1] = share
        whole.append(full)
        out.append(form)
    return out


def starts_of(table: Tableau, rows: Rows) -> dict[int, dict[int, Form]]:
    """For each later call that a run can begin with, the rows that need something else than in a whole run.

    A table with its decisions is tabulated again from there (their orders rise again from 1). Without them, rows that
    read what does not exist become first order: an old x0 is replaced by the present one, which for a row that reads
    old states too needs DDIM's formula.
    """
    n = len(rows.forms)
    return {k: changes for k in range(1, n) if (changes := _again(table, k, n) or _lowered(rows, k)) is not None}


def _again(table: Tableau, k: int, n: int) -> dict[int, Form] | None:
    """The rows of the same decisions from the k-th network call, where that is the beginning of an interval."""
    schedule, noise = table.schedule, table.noise
    if schedule is None or noise is None:
        return None
    calls = [i for i, e in enumerate(table.evaluated) if e]
    level = table.times[calls[k]].item()
    macro = schedule.times.tolist()
    ends = [i for i, move in enumerate(schedule.steps) if move.node is None]
    if level not in macro[1:-1] or table.times[calls].tolist().index(level) != k:
        return None
    m = macro.index(level)
    told = None if schedule.model_times is None else schedule.model_times[m:]
    try:
        rest = replace(
            schedule, times=schedule.times[m:], steps=schedule.steps[ends[m - 1] + 1 :], afs=None, model_times=told
        )
        return _differing(table, rest.tabulate(noise), k, n)
    except ArgumentError:  # decisions that name older points than there are
        return None


def _differing(table: Tableau, part: Tableau, k: int, n: int) -> dict[int, Form] | None:
    whole, fresh = rows_of(table).forms, rows_of(part).forms
    if len(fresh) != n - k:
        return None
    draws = sorted({key[1] for form in whole[k:] for key in form if key[0] == NOISE})
    moved = [_moved(form, k, draws) for form in fresh]
    return {k + i: form for i, form in enumerate(moved) if not _close(form, whole[k + i])}


def _moved(form: Form, k: int, draws: Sequence[int]) -> Form:
    """Counted from the k-th network call on; noise columns by the whole table's."""
    names = {STATE: lambda j: j + k, OUTPUT: lambda j: j + k, NOISE: lambda m: draws[m], SHIFT: lambda _: 0}
    return {(kind, names[kind](j)): w for (kind, j), w in form.items()}


def _close(one: Form, two: Form) -> bool:
    size = max(map(abs, [*one.values(), *two.values()]), default=0.0)
    return all(abs(one.get(key, 0.0) - two.get(key, 0.0)) <= 1e-12 * size for key in {*one, *two})


def _lowered(rows: Rows, k: int) -> dict[int, Form] | None:
    changed: dict[int, Form] = {}
    for i in range(k, len(rows.forms)):
        form = rows.forms[i]
        if not any(j < k for (kind, j) in form if kind in (STATE, OUTPUT)):
            continue
        states = {j for (kind, j) in form if kind == STATE}
        if states <= {i}:
            new = {key: w for key, w in form.items() if key[0] != OUTPUT}
            new[OUTPUT, i] = sum(w for key, w in form.items() if key[0] == OUTPUT)
        elif not any(kind == NOISE for kind, _ in form):
            share = rows.sigma[i + 1] / rows.sigma[i]
            new = {(STATE, i): share, (OUTPUT, i): rows.alpha[i + 1] - share * rows.alpha[i]}
        else:
            return None
        changed[i] = new
    return changed
