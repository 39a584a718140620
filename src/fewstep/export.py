"""A table as text for other programs: noise levels or times, and which of their samplers makes the same table of them.

Hosts take a list of numbers and run a sampler of their own on it. So an export holds everything only if the table is
what one of their samplers makes of its times; anything else (learned weights, decisions that change between steps, a
free first step) is lost, which is refused unless the caller agrees. Conventions differ from host to host:

* ComfyUI, k-diffusion, stable-diffusion.cpp: noise levels sigma / alpha (flow models: sigma), ending in 0, used as
  they are. ComfyUI reads no exponents, so numbers are written with fixed decimals.
* diffusers: Euler takes noise levels with the final 0; flow schedulers without it, and they apply their shift on top,
  so it is taken out first; DPM-Solver++ takes integer times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewstep.errors import ArgumentError, LossyExport

if TYPE_CHECKING:
    from fewstep.noise import NoiseSchedule
    from fewstep.tableau import Tableau

DIGITS = 10  # significant digits of the smallest number
Rules = Mapping[str, tuple[str, Mapping[str, Any]]]
"""A host's samplers: its name -> (our solver, the options with which it makes the same table)."""

K_DIFFUSION: Rules = {
    "euler": ("euler", {}),
    "euler_ancestral": ("euler_ancestral", {}),
    "heun": ("heun", {}),
    "dpm_2": ("dpm_2", {}),
    "dpm_2_ancestral": ("dpm_2_ancestral", {}),
    "lms": ("lms", {}),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}),
    "dpmpp_sde": ("dpmpp_sde", {}),
    "dpmpp_2m": ("dpmpp_2m", {"lower_order_final": False}),
    "dpmpp_2m_sde": ("sde_dpmpp_2m", {"lower_order_final": False}),
    "dpmpp_3m_sde": ("sde_dpmpp_3m", {}),
}
"""k-diffusion's samplers, which ComfyUI calls by the same names. Flow models agree on "euler" only: there the hosts
take the others' differences in log sigma, not in log signal-to-noise."""
DIFFUSERS: Rules = {"EulerDiscreteScheduler": ("euler", {}), "DPMSolverMultistepScheduler": ("dpmpp_2m", {})}
DIFFUSERS_FLOW: Rules = {"FlowMatchEulerDiscreteScheduler": ("euler", {})}


@dataclass(frozen=True)
class Export:
    """`text` for the host, `sampler` to choose there ("" if it has none), what is lost, and what else to know."""

    target: str
    text: str
    sampler: str
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def export(tableau: Tableau, to: str, *, accept_loss: bool = False, shift: float | None = None) -> Export:
    """The table as text for `to`: `sigmas`, `timesteps`, `comfyui`, `k-diffusion` or `diffusers`.

    Args:
        tableau: the sampler; it must know its noise schedule.
        to: the target.
        accept_loss: export the times even where the host's sampler will not be this one.
        shift: the host's flow shift (diffusers flow models only); by default the noise schedule's own.

    Raises:
        LossyExport: the host cannot run this table from a list of times; lists what would be lost.
        ArgumentError: an unknown target, or a table without noise schedule or times.
    """
    if to not in TARGETS:
        raise ArgumentError(f"to={to!r}: choose one of {', '.join(TARGETS)}")
    if tableau.noise is None:
        raise ArgumentError("this table has no noise schedule, so its times mean nothing to a host; set Tableau.noise")
    source = Source(tableau, tableau.noise, shift)
    result = TARGETS[to](source)
    result = replace(result, losses=_losses(source, to, result.sampler), notes=(*result.notes, *_warnings(source)))
    if result.losses and not accept_loss:
        raise LossyExport(
            f"{to} cannot hold this table: {'; '.join(result.losses)}. Run the file itself (Tableau.load), or take the "
            "times alone with accept_loss=True (on the command line --accept-loss)"
        )
    return result


def solver_of(tableau: Tableau, rules: Rules | None = None) -> str:
    """The sampler (of `rules`, or of our named solvers) that makes this table from its times alone, or "".

    It is rebuilt and compared number by number: a name in a file proves nothing.
    """
    from fewstep import solvers

    schedule, noise = tableau.schedule, tableau.noise
    if (
        schedule is None
        or noise is None
        or tableau.channels > 1
        or tableau.constants
        or schedule.model_times is not None
    ):
        return ""
    known: Rules = rules or {name: (name, {}) for name in solvers.NAMES}
    for host, (name, options) in sorted(known.items(), key=lambda item: item[1][0] != schedule.name):
        try:
            rebuilt = solvers.NAMES[name](schedule.times, **options).tabulate(noise)
        except ArgumentError:  # this solver cannot have these times
            continue
        if rebuilt.isclose(tableau):
            return host
    return ""


def fixed(numbers: Sequence[float]) -> str:
    """`14.6146, 3.861, 0.0`: comma separated, no exponents, ten significant digits of the smallest number.

    ComfyUI's ManualSigmas reads "1e-3" as the two numbers 1 and -3.
    """
    smallest = min((abs(v) for v in numbers if v), default=1.0)
    places = max(DIGITS - 1 - math.floor(math.log10(smallest)), DIGITS)
    return ", ".join(_trimmed(f"{v:.{places}f}") for v in numbers)


def _trimmed(number: str) -> str:
    number = number.rstrip("0")
    return number + "0" if number.endswith(".") else number


@dataclass(frozen=True)
class Source:
    """What the targets read."""

    tableau: Tableau
    noise: NoiseSchedule
    shift: float | None

    @property
    def times(self) -> list[float]:
        """The grid `[n + 1]`: the schedule's own where there is one, else the falling times of the states."""
        if self.tableau.schedule is not None:
            return self.tableau.schedule.times.detach().tolist()
        grid: list[float] = []
        for t in self.tableau.times.tolist():
            if not grid or t < grid[-1]:
                grid.append(t)
        return grid

    @property
    def levels(self) -> list[float]:
        """Noise levels of the grid: sigma / alpha, or sigma itself for flow models, whose hosts count in it."""
        levels = [(self.noise.sigma if self.is_flow else self.noise.ratio)(t).item() for t in self.times]
        if not all(map(math.isfinite, levels)):
            raise ArgumentError(
                "the first state has alpha = 0, so its noise level is infinite and no list can say it: export "
                "timesteps, or start at a time where alpha > 0"
            )
        return levels

    @property
    def is_flow(self) -> bool:
        """Whether states lie on straight paths."""
        return self.noise.family == "flow"

    @property
    def is_discrete(self) -> bool:
        """Whether the network was trained on integer times."""
        return self.noise.family == "discrete"


def _losses(source: Source, host: str, sampler: str) -> tuple[str, ...]:
    """What a host's own sampler, run on the times, would not do."""
    if sampler:
        return ()
    tableau, found = source.tableau, list[str]()
    if not tableau.evaluated[0]:
        found.append("the free first step: the host calls the network there")
    called = [i for i, evaluated in enumerate(tableau.evaluated) if evaluated]
    if not tableau.model_times[called].equal(tableau.times[called]):
        found.append("the times told to the network, which are not the times of the states")
    named = f"of {tableau.name}" if tableau.name else "of this solver"
    where = "no named solver makes" if host in ("sigmas", "timesteps") else f"no sampler of {host} makes"
    found.append(f"the weights {named}: {where} them from the times alone")
    return tuple(found)


def _warnings(source: Source) -> tuple[str, ...]:
    """What every user of a list of times must know."""
    last = source.noise.sigma(source.times[-1]).item()
    remains = f"the last noise level is {last:.3g}, not 0: the host's sample keeps that much noise" if last > 0 else ""
    noise = "the host draws its own noise: samples agree in distribution, not one by one"
    return tuple(filter(None, (remains, noise if source.tableau.C.shape[1] else "")))


def _rounding(source: Source, host: str) -> str:
    """How far the noise level told to the network is off when the host rounds times to integers; "" if nowhere."""
    levels = [(source.noise.ratio(t).item(), source.noise.ratio(float(round(t))).item()) for t in source.times[:-1]]
    worst = max((abs(used / wanted - 1) for wanted, used in levels if math.isfinite(wanted)), default=0.0)
    text = f"{host} tells the network the nearest integer times: its noise level is off by up to {worst:.2%}"
    return text if worst > 1e-6 else ""


def _sigmas(source: Source) -> Export:
    return Export("sigmas", fixed(source.levels), solver_of(source.tableau))


def _timesteps(source: Source) -> Export:
    return Export("timesteps", fixed(source.times[:-1]), solver_of(source.tableau))  # the clean end is no step


def _in_sigma(source: Source) -> Rules:
    return {"euler": K_DIFFUSION["euler"]} if source.is_flow else K_DIFFUSION


def _comfyui(source: Source) -> Export:
    sampler = solver_of(source.tableau, _in_sigma(source))
    use = f"paste the numbers into ManualSigmas, and choose {sampler or 'a sampler'} in KSamplerSelect"
    rounding = _rounding(source, "ComfyUI") if source.is_discrete else ""
    return Export("comfyui", fixed(source.levels), sampler, notes=tuple(filter(None, (use, rounding))))


def _k_diffusion(source: Source) -> Export:
    sampler = solver_of(source.tableau, _in_sigma(source))
    call = f"samples = k_diffusion.sampling.sample_{sampler or '...'}(model, noise * sigmas[0], sigmas)"
    return Export("k-diffusion", f"sigmas = torch.tensor([{fixed(source.levels)}])\n{call}", sampler)


def _diffusers(source: Source) -> Export:
    if source.noise.family == "edm":
        raise LossyExport(
            "diffusers has no scheduler that takes free noise levels for EDM networks: export to k-diffusion, or run "
            "the file itself (Tableau.load)"
        )
    if source.is_flow:
        return _diffusers_flow(source)
    sampler = solver_of(source.tableau, DIFFUSERS)
    if sampler == "DPMSolverMultistepScheduler" and source.is_discrete:
        steps = [round(t) for t in source.times[:-1]]
        if len(set(steps)) < len(steps):
            raise LossyExport(
                f"{sampler} takes integer times, and these repeat when rounded: {steps}. Export to k-diffusion"
            )
        options = 'algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"'
        notes = tuple(filter(None, [_rounding(source, sampler)]))
        return Export("diffusers", _snippet(sampler, options, f"timesteps={steps}"), sampler, notes=notes)
    name = "EulerDiscreteScheduler"
    text = _snippet(name, "", f"sigmas=[{fixed(source.levels)}]")
    return Export("diffusers", text, sampler if sampler == name else "")


def _diffusers_flow(source: Source) -> Export:
    """Its scheduler shifts the given levels again, `s = shift u / (1 + (shift - 1) u)`, and appends the 0 itself."""
    shift = source.shift if source.shift is not None else float(getattr(source.noise, "shift", 1.0))
    if not shift > 0:
        raise ArgumentError(f"shift={shift}: give the positive shift of the host's scheduler config")
    name = "FlowMatchEulerDiscreteScheduler"
    unshifted = [s / (shift - (shift - 1) * s) for s in source.levels[:-1]]
    text = _snippet(
        name, f"shift={_trimmed(f'{shift:.10f}')}, use_dynamic_shifting=False", f"sigmas=[{fixed(unshifted)}]"
    )
    note = f"the numbers are before the scheduler's own shift of {shift:g}; under another shift they mean other times"
    return Export("diffusers", text, solver_of(source.tableau, DIFFUSERS_FLOW), notes=(note,))


def _snippet(scheduler: str, options: str, argument: str) -> str:
    arguments = ", ".join(filter(None, ["pipe.scheduler.config", options]))
    setup = f"from diffusers import {scheduler}\n\npipe.scheduler = {scheduler}.from_config({arguments})"
    return f"{setup}\nimages = pipe(prompt, {argument}).images"


TARGETS: dict[str, Callable[[Source], Export]] = {
    "sigmas": _sigmas,
    "timesteps": _timesteps,
    "comfyui": _comfyui,
    "k-diffusion": _k_diffusion,
    "diffusers": _diffusers,
}
