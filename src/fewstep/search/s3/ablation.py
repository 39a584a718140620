"""What each component of a found schedule is worth: one at a time goes back to a constant strategy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fewstep.errors import ArgumentError
from fewstep.search.s3.genes import STEP_FIELDS, Genes, Ints
from fewstep.search.s3.space import Space
from fewstep.times.resample import resample

COMPONENTS: dict[str, tuple[str, ...]] = {
    "times": ("times",), "basis": ("basis",), "order": ("order",), "derivative estimation": ("low",),
    "scaling": ("scaling", "r"), "corrector": ("corrector",), "first step": ("afs",),
}  # fmt: skip
"""The components by name, with the genes that they are."""


def resets(space: Space, found: Genes, constant: Genes) -> dict[str, Genes | None]:
    """For each component the found schedule with that component of the constant one; None where nothing changes.

    Steps correspond by their place along the schedule. Another number of steps (an analytical first step saves a call)
    has the constant schedule's times log-linearly resampled; taking the first step back adds or removes the step where
    it changes least, so that the calls stay the same.

    Args:
        space: of both.
        found, constant: one schedule each, with equally many calls.
    """
    out: dict[str, Genes | None] = {}
    for name in COMPONENTS:
        changed = _reset(space, found, constant, name)
        same = changed is None or changed.names() == found.names() or not bool(space.valid(changed)[0])
        out[name] = None if same else changed
    return out


def _reset(space: Space, found: Genes, constant: Genes, name: str) -> Genes | None:
    n, m = int(found.steps[0]), int(constant.steps[0])
    g = found.copy()
    if name == "first step":
        return _first_step(space, g, constant)
    if name == "times":
        times = constant.times[0, : m + 1]
        if n != m:
            try:
                times = resample(times.tolist(), n, space.noise).numpy()
            except ArgumentError:
                return None
        g.times[0, : n + 1] = times
    else:
        place = np.round(np.arange(n) * (m - 1) / max(n - 1, 1)).astype(np.int64)
        for gene in COMPONENTS[name]:
            getattr(g, gene)[0, :n] = getattr(constant, gene)[0, place]
    return space.canonical(g)


def _first_step(space: Space, g: Genes, constant: Genes) -> Genes | None:
    if g.afs[0] == constant.afs[0]:
        return None
    g.afs[0] = constant.afs[0]
    spare = int(g.nfe[0] - constant.nfe[0])
    lam = space.lam(g.times[0])
    n = int(g.steps[0])
    if spare == 1 and n > 1:
        spans = lam[2 : n + 1] - lam[: n - 1]
        spans[~np.isfinite(spans)] = np.inf
        keep = np.delete(np.arange(n + 1), 1 + int(spans.argmin()))
        g = _taken(g, keep, np.delete(np.arange(n), int(spans.argmin())))
    elif spare == -1 and n < space.room:
        gaps = np.diff(lam[: n + 1])
        gaps[~np.isfinite(gaps)] = -np.inf
        at = int(gaps.argmax())
        low, high = g.times[0, at], g.times[0, at + 1]
        middle = float(space.noise.time_of_ratio(np.exp(-(lam[at] + lam[at + 1]) / 2)))
        g = _taken(g, np.insert(np.arange(n + 1), at + 1, at), np.insert(np.arange(n), at, at))
        g.times[0, at + 1] = middle if high < middle < low else (low + high) / 2
    elif spare:
        return None
    return space.canonical(g)


def _taken(g: Genes, times: Ints, steps: Sequence[int] | Ints) -> Genes:
    """A schedule of some of another's times and steps."""
    out = g.copy()
    old = {name: getattr(g, name)[0].copy() for name in (*STEP_FIELDS, "times")}
    out.times[0, :] = np.nan
    out.times[0, : len(times)] = old["times"][times]
    for name in STEP_FIELDS:
        getattr(out, name)[0, :] = 0
        getattr(out, name)[0, : len(steps)] = old[name][steps]
    return replace(out, steps=np.array([len(steps)]))
