"""The hosts: how each reads a list of numbers, which of its samplers make which of our tables, and the text for it.

Each function returns the text and a `Reading`: the times that the host will have after reading it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, LossyExport
from fewstep.export_text import Reading, Rules, Source, apart, fixed, nearest, solver_of, trimmed
from fewstep.noise import Discrete, NoiseSchedule

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
A1111: Rules = {
    label: K_DIFFUSION[name]
    for name, label in {
        "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "lms": "LMS",
        "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_sde": "DPM++ SDE", "dpmpp_2m": "DPM++ 2M",
        "dpmpp_2m_sde": "DPM++ 2M SDE", "dpmpp_3m_sde": "DPM++ 3M SDE",
    }.items()
}  # fmt: skip
"""The WebUI's labels; its DPM2 and DPM2 a drop the last level but one of any list, so they are no rules."""
SDCPP: Rules = {
    label: K_DIFFUSION[name]
    for name, label in {
        "euler": "euler", "euler_ancestral": "euler_a", "heun": "heun", "dpm_2": "dpm2",
        "dpmpp_2s_ancestral": "dpm++2s_a", "dpmpp_2m": "dpm++2m",
    }.items()
}  # fmt: skip
"""`--sampling-method` of stable-diffusion.cpp, those whose formulas are k-diffusion's."""
STOCHASTIC_SDCPP = ("euler_a", "dpm++2s_a")
DIFFUSERS: Rules = {"EulerDiscreteScheduler": ("euler", {}), "DPMSolverMultistepScheduler": ("dpmpp_2m", {})}
DIFFUSERS_FLOW: Rules = {
    "FlowMatchEulerDiscreteScheduler": ("euler", {}),
    "UniPCMultistepScheduler": ("unipc", {"order": 2}),
}
SDNEXT: Rules = {"Euler": ("euler", {}), "DPM++ 2M": ("dpmpp_2m", {})}
NO_SPACING = "use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False"
"""These would throw a custom schedule away, or refuse it."""
UNIPC_EDGE = 1e-6
"""diffusers' UniPC starts flows this far below pure noise."""


@dataclass(frozen=True)
class Told:
    """A text, the host's reading of it, and the samplers that may run it."""

    text: Callable[[str], str]
    """sampler -> text"""
    reading: Reading
    rules: Rules
    note: Callable[[str], str] | None = None
    """sampler -> how to use it"""
    fixed_rules: bool = True
    """whether there is a host that runs one of the rules, so that the nearest is worth naming"""


def integer_times(noise: NoiseSchedule, grid: Tensor) -> Tensor:
    """The integer times nearest in log sigma, as ComfyUI's discrete models choose them; the clean end stays."""
    if not isinstance(noise, Discrete):
        return grid
    levels = noise.ratio(torch.arange(len(noise.alphas_cumprod), dtype=torch.float64, device="cpu")).log()
    wanted = noise.ratio(grid).log()
    near = (wanted[:, None] - levels).abs().nan_to_num(nan=math.inf, posinf=math.inf).argmin(1).double()
    return torch.where(noise.sigma(grid) > 0, near, grid)


def _in_sigma(source: Source, rules: Rules) -> Rules:
    return {name: rule for name, rule in rules.items() if rule[0] == "euler"} if source.is_flow else rules


def sigmas(source: Source) -> Told:
    """The plain list of noise levels."""
    return _plain(source, fixed(source.levels))


def timesteps(source: Source) -> Told:
    """The plain list of the schedule's own times, without the clean end, which is no step."""
    return _plain(source, fixed(source.times[:-1]))


def _plain(source: Source, text: str) -> Told:
    from fewstep import solvers

    named = source.tableau.schedule is not None  # else every solver would have to be tried, for a mere remark
    rules: Rules = {name: (name, {}) for name in solvers.NAMES} if named else {}
    return Told(lambda _: text, Reading(source.grid), rules, fixed_rules=False)


def comfyui(source: Source) -> Told:
    """ManualSigmas; discrete models are told the nearest integer time."""
    told = integer_times(source.noise, source.grid)
    use = lambda sampler: f"paste the numbers into ManualSigmas, and choose {sampler} in KSamplerSelect"  # noqa: E731
    text = fixed(source.levels)
    return Told(lambda _: text, Reading(source.grid, told), _in_sigma(source, K_DIFFUSION), use)


def k_diffusion(source: Source) -> Told:
    """Two lines of Python."""
    levels = fixed(source.levels)

    def text(sampler: str) -> str:
        call = f"samples = k_diffusion.sampling.sample_{sampler or '...'}(model, noise * sigmas[0], sigmas)"
        return f"sigmas = torch.tensor([{levels}])\n{call}"

    return Told(text, Reading(source.grid), _in_sigma(source, K_DIFFUSION))


def a1111(source: Source) -> Told:
    """The WebUI's list of levels; it interpolates the times of discrete models, as k-diffusion does."""
    levels = fixed(source.levels)

    def use(sampler: str) -> str:
        steps = len(source.times) - 1
        return (
            f"choose the sampler {sampler} and {steps} steps, and paste the numbers as custom sigmas of the extension "
            "ExtraSchedulers; or make an extension of your own with --to a1111-extension"
        )

    return Told(lambda _: levels, Reading(source.grid), _in_sigma(source, A1111), use)


def sdcpp(source: Source) -> Told:
    """The command line of stable-diffusion.cpp; `--steps` is one less than the levels."""
    levels = fixed(source.levels)

    def text(sampler: str) -> str:
        method = f"--sampling-method {sampler}" + (" --eta 1" if sampler in STOCHASTIC_SDCPP else "")
        return f'sd-cli {method} --steps {len(source.times) - 1} --sigmas "{levels}"'

    return Told(text, Reading(source.grid), _in_sigma(source, SDCPP), lambda _: "add your model and prompt")


def sdnext(source: Source) -> Told:
    """The comma string of integer times that SD.Next hands to diffusers' set_timesteps."""
    steps = _integers(source, "SD.Next")
    if len(steps) < 3:
        raise LossyExport(f"SD.Next ignores lists of fewer than three times, and this has {len(steps)}")
    use = lambda sampler: f"Advanced > Timesteps override (schedulers_timesteps), with the sampler {sampler}"  # noqa: E731
    return Told(lambda _: ", ".join(map(str, steps)), _rounded(source, steps), SDNEXT, use)


def diffusers(source: Source) -> Told:
    """A stock scheduler and the argument of the pipeline's call: the one that makes the table, or comes nearest."""
    if source.noise.family == "edm":
        raise LossyExport(
            "diffusers has no scheduler that takes free noise levels for EDM networks: export to k-diffusion, or run "
            "the file itself (Tableau.load)"
        )
    makers = [_flow_euler, _flow_unipc] if source.is_flow else [_vp_euler, _vp_dpm]
    found: list[Told] = []
    refused: LossyExport | None = None
    for make in makers:
        try:
            told = make(source)
        except LossyExport as error:  # no integer network, or times that repeat
            refused = error
            continue
        if solver_of(source.tableau, told.rules):
            return told
        found.append(told)
    if refused is not None and solver_of(source.tableau, DIFFUSERS):
        raise refused  # it would have been exact
    return min(found, key=lambda told: _distance(source, told))


def _distance(source: Source, told: Told) -> float:
    runs = nearest(source.tableau, source.noise, told.reading, told.rules)[1]
    return math.inf if runs is None else apart(runs, source.tableau)


def _vp_euler(source: Source) -> Told:
    name, numbers = "EulerDiscreteScheduler", fixed(source.levels)
    text = _snippet(name, NO_SPACING, f"sigmas=[{numbers}]")
    return Told(lambda _: text, Reading(source.grid), {name: DIFFUSERS[name]})


def _vp_dpm(source: Source) -> Told:
    name = "DPMSolverMultistepScheduler"
    steps = _integers(source, name)
    options = (
        f'algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", {NO_SPACING}, use_lu_lambdas=False'
    )
    text = _snippet(name, options, f"timesteps={steps}")
    return Told(lambda _: text, _rounded(source, steps), {name: DIFFUSERS[name]})


def _integers(source: Source, host: str) -> list[int]:
    if not source.is_discrete:
        raise LossyExport(
            f"{host} takes integer times, and this network's ({source.noise.family}) are none: export to sigmas"
        )
    steps = [round(t) for t in source.times[:-1]]
    if len(set(steps)) < len(steps):
        raise LossyExport(f"{host} takes integer times, and these repeat when rounded: {steps}. Export to k-diffusion")
    return steps


def _rounded(source: Source, steps: list[int]) -> Reading:
    return Reading(torch.tensor([*map(float, steps), source.times[-1]], dtype=torch.float64, device="cpu"))


def _flow_shift(source: Source) -> tuple[str, str, str]:
    """`(levels before the host's shift, the options that set it, how to say it)`.

    Flow schedulers shift the given levels again, `s = shift u / (1 + (shift - 1) u)`, and append the 0 themselves.
    """
    if source.mu is not None and source.shift is not None:
        raise ArgumentError("shift and mu both say how the host shifts: give one of them")
    shift = math.exp(source.mu) if source.mu is not None else source.shift
    shift = shift if shift is not None else float(getattr(source.noise, "shift", 1.0))
    if not shift > 0:
        raise ArgumentError(f"shift={shift}: give the positive shift of the host's scheduler config")
    numbers = fixed([s / (shift - (shift - 1) * s) for s in source.levels[:-1]])
    if source.mu is not None:
        said = f"mu={source.mu:.10g}, which depends on the resolution"
        return numbers, 'use_dynamic_shifting=True, time_shift_type="exponential", shift_terminal=None', said
    options = f"shift={trimmed(f'{shift:.10f}')}, use_dynamic_shifting=False, shift_terminal=None"
    return numbers, options, f"shift of {shift:g}"


def _flow_note(said: str, more: str = "") -> Callable[[str], str]:
    return lambda _: f"the numbers are before the scheduler's own {said}; under another they mean other times{more}"


def _flow_euler(source: Source) -> Told:
    name = "FlowMatchEulerDiscreteScheduler"
    numbers, options, said = _flow_shift(source)
    text = _snippet(name, f"{options}, {NO_SPACING}", f"sigmas=[{numbers}]")
    return Told(lambda _: text, Reading(source.grid), {name: DIFFUSERS_FLOW[name]}, _flow_note(said))


def _flow_unipc(source: Source) -> Told:
    """It wants an array, and the flow options of its other name."""
    name = "UniPCMultistepScheduler"
    numbers, options, said = _flow_shift(source)
    options = options.replace("shift=", "flow_shift=", 1) if options.startswith("shift=") else options
    edge = (
        ""
        if source.levels[0] < 1 - UNIPC_EDGE
        else "; from pure noise it starts at 1 - 1e-6, which changes its weights"
    )
    flow = 'use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, final_sigmas_type="zero"'
    text = "import numpy as np\n" + _snippet(name, f"{flow}, {options}, {NO_SPACING}", f"sigmas=np.array([{numbers}])")
    return Told(lambda _: text, _unipc_reading(source), {name: DIFFUSERS_FLOW[name]}, _flow_note(said, edge))


def _unipc_reading(source: Source) -> Reading:
    """UniPC starts at 1 - 1e-6 and tells integer times, cut off."""
    s = source.noise.sigma(source.grid)
    s = torch.where((s - 1).abs() < UNIPC_EDGE, s - UNIPC_EDGE, s)
    read = torch.tensor(s.float().tolist(), dtype=torch.float64, device="cpu")
    inner = lambda v: source.noise.time_of_ratio(v / (1 - v))  # noqa: E731
    grid = torch.cat([inner(read[:-1]), source.grid[-1:]])
    cut = (s[:-1] * 1000).floor() / 1000
    return Reading(grid, torch.cat([inner(cut), source.grid[-1:]]), "flow")


def _snippet(scheduler: str, options: str, argument: str) -> str:
    arguments = ", ".join(filter(None, ["pipe.scheduler.config", options]))
    setup = f"from diffusers import {scheduler}\n\npipe.scheduler = {scheduler}.from_config({arguments})"
    return f"{setup}\nimages = pipe(prompt, {argument}).images"


TARGETS: dict[str, Callable[[Source], Told]] = {
    "sigmas": sigmas,
    "timesteps": timesteps,
    "comfyui": comfyui,
    "k-diffusion": k_diffusion,
    "a1111": a1111,
    "sdcpp": sdcpp,
    "sdnext": sdnext,
    "diffusers": diffusers,
}
