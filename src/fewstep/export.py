"""A table as text for other programs: noise levels or times, and which of their samplers makes the same table of them.

Hosts take a list of numbers and run a sampler of their own on it. So an export holds everything only if the table is
what one of their samplers makes of its times; anything else (learned weights, decisions that change between steps, a
free first step) is lost, which is refused unless the caller agrees. Conventions differ from host to host:

* ComfyUI, k-diffusion, the WebUI, stable-diffusion.cpp: noise levels sigma / alpha (flow models: sigma), ending in 0,
  used as they are. ComfyUI reads no exponents, so numbers are written with fixed decimals; its discrete models are told
  the nearest integer time.
* diffusers: Euler takes noise levels with the final 0; flow schedulers without it, and they apply their shift on top,
  so it is taken out first; DPM-Solver++ takes integer times, and so does SD.Next.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fewstep.errors import ArgumentError, LossyExport
from fewstep.export_hosts import A1111, DIFFUSERS, DIFFUSERS_FLOW, K_DIFFUSION, SDCPP, SDNEXT, TARGETS, Told
from fewstep.export_hosts import integer_times as _integer_times
from fewstep.export_text import Export, Reading, Source, apart, fixed, grid_of, nearest, solver_of

if TYPE_CHECKING:
    from fewstep.tableau import Tableau

__all__ = [
    "A1111", "DIFFUSERS", "DIFFUSERS_FLOW", "K_DIFFUSION", "SDCPP", "SDNEXT", "TARGETS", "Export", "export", "fixed",
    "grid_of", "snapped", "solver_of",
]  # fmt: skip

SHOWN = 1e-6
"""Differences below this are rounding, and not told."""


def export(
    tableau: Tableau,
    to: str,
    *,
    accept_loss: bool = False,
    shift: float | None = None,
    mu: float | None = None,
) -> Export:
    """The table as text for `to`, one of `TARGETS`.

    Args:
        tableau: the sampler; it must know its noise schedule.
        to: the target.
        accept_loss: export the times even where the host's sampler will not be this one; the result names the sampler
            whose table is nearest. `fewstep.retuning.retuned` does better, with the network.
        shift: the host's flow shift (diffusers flow models only); by default the noise schedule's own.
        mu: instead of the shift, the exponent that a pipeline with dynamic shifting computes from the resolution.

    Raises:
        LossyExport: the host cannot run this table from a list of times; lists what would be lost, and how much.
        ArgumentError: an unknown target, or a table without noise schedule or times.
    """
    if to not in TARGETS:
        raise ArgumentError(f"to={to!r}: choose one of {', '.join(TARGETS)}")
    if tableau.noise is None:
        raise ArgumentError("this table has no noise schedule, so its times mean nothing to a host; set Tableau.noise")
    source = Source(tableau, tableau.noise, shift, mu)
    told = TARGETS[to](source)
    exact = solver_of(tableau, told.rules)
    sampler, runs = exact, None
    if exact:
        runs = told.reading.table(source.noise, told.rules[exact])
    elif told.fixed_rules:
        sampler, runs = nearest(tableau, source.noise, told.reading, told.rules)
    losses = () if exact else _losses(source, to, sampler, runs, told.reading)
    if losses and not accept_loss:
        raise LossyExport(
            f"{to} cannot hold this table: {'; '.join(losses)}. Run the file itself (Tableau.load), or take the "
            "times alone with accept_loss=True (on the command line --accept-loss)"
        )
    use = told.note(sampler or "a sampler") if told.note is not None else ""
    return Export(
        to, told.text(sampler), sampler, losses, tuple(filter(None, (use, *_notes(source, told, exact, runs)))), runs,
        apart(runs, tableau) if runs is not None else float("inf"),
    )  # fmt: skip


def snapped(tableau: Tableau) -> Tableau:
    """The same decisions on the integer times nearest to the table's, for hosts that round; others come back as is.

    The weights are made anew for those times, so that solver and network agree on where the states are.

    Raises:
        ArgumentError: the table has no decisions to make weights of, or two times round to the same.
    """
    noise, schedule = tableau.noise, tableau.schedule
    if noise is None or noise.family != "discrete":
        return tableau
    if schedule is None:
        raise ArgumentError(
            "this table has no decisions, so its weights cannot be made for other times: export it as it is, or search "
            "again on integer times"
        )
    grid = _integer_times(noise, schedule.times.detach())
    if len(set(grid.tolist())) < len(grid):
        raise ArgumentError(f"two times round to the same integer: {grid.tolist()}; export them as they are")
    made = replace(schedule, times=grid).tabulate(noise)
    return replace(made, meta=tableau.meta)


def _losses(source: Source, host: str, sampler: str, runs: Tableau | None, reading: Reading) -> tuple[str, ...]:
    """What a host's own sampler, run on the times, would not do, with sizes."""
    tableau, found = source.tableau, list[str]()
    if not tableau.evaluated[0]:
        found.append("the free first step: the host calls the network there")
    called = [i for i, evaluated in enumerate(tableau.evaluated) if evaluated]
    if not tableau.model_times[called].equal(tableau.times[called]):
        worst = _worst(source, tableau.times[called].tolist(), tableau.model_times[called].tolist())
        found.append(f"the times told to the network, which are not the times of the states (by up to {worst:.2%})")
    named = f"of {tableau.name}" if tableau.name else "of this solver"
    where = "no named solver makes" if host in ("sigmas", "timesteps") else f"no sampler of {host} makes"
    size = ""
    if runs is not None:
        gap = apart(runs, tableau)
        size = f"; the nearest, {sampler}, " + (
            f"is off by up to {gap:.2g} of a row's largest weight"
            if math.isfinite(gap)
            else f"has another form, with {runs.nfe} network calls for {tableau.nfe}"
        )
    found.append(f"the weights {named}: {where} them from the times alone{size}")
    rounding = _rounding(source, host, reading)
    return (*found, rounding) if rounding else tuple(found)


def _notes(source: Source, told: Told, exact: str, runs: Tableau | None) -> tuple[str, ...]:
    """What every user of a list of times must know."""
    rounding = _rounding(source, "the host", told.reading) if exact else ""
    gap = apart(runs, source.tableau) if runs is not None and exact else 0.0
    moved = f"so its table differs from this one by up to {gap:.2g} of a row's largest weight" if gap > SHOWN else ""
    last = source.noise.sigma(source.times[-1]).item()
    remains = f"the last noise level is {last:.3g}, not 0: the host's sample keeps that much noise" if last > 0 else ""
    noise = "the host draws its own noise: samples agree in distribution, not one by one"
    return tuple(
        filter(None, ("; ".join(filter(None, (rounding, moved))), remains, noise if source.tableau.C.shape[1] else ""))
    )


def _rounding(source: Source, host: str, reading: Reading) -> str:
    """How far the noise levels that the host uses, and tells its network, are off; "" if nowhere."""
    own = source.times[:-1]
    used = _worst(source, own, reading.grid[:-1].tolist())
    told = _worst(source, own, (reading.grid if reading.told is None else reading.told)[:-1].tolist())
    if max(used, told) <= SHOWN:
        return ""
    if used <= max(SHOWN, told / 10):
        return f"{host} tells the network integer times: its noise level is off by up to {told:.2%}"
    return f"{host} moves the times to integers: noise levels are off by up to {max(used, told):.2%}"


def _worst(source: Source, wanted: list[float], used: list[float]) -> float:
    level = source.noise.sigma if source.is_flow else source.noise.ratio
    pairs = [(level(a).item(), level(b).item()) for a, b in zip(wanted, used, strict=True)]
    return max((abs(u / w - 1) for w, u in pairs if math.isfinite(w) and w > 0), default=0.0)
