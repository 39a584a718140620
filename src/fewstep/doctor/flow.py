"""Traps of flow models' schedulers: shifts that come twice, integer times, inputs that are refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fewstep.doctor.patient import Finding, Patient, as_numbers, quiet, shown

PROBE = (1.0, 0.8, 0.5, 0.2)


def double_shift(p: Patient) -> Finding | None:
    """FlowMatchEuler keeps its smallest sigma after shifting, and shifts the range from there again."""
    if p.name != "FlowMatchEulerDiscreteScheduler" or p.dynamic or p.shift == 1:
        return None
    used = p.levels()
    raw = np.linspace(1, 1 / p.trained, p.steps)
    once = np.append(p.shift * raw / (1 + (p.shift - 1) * raw), 0.0)
    gap = float(np.abs(used - once).max())
    if gap < 1e-4:
        return None
    return Finding(
        "double-shift",
        "trap",
        f"the default levels are shifted by {p.shift:g} twice at the low end: {shown(used)}; shifted once they are "
        f"{shown(once)}. The last network call is at sigma {used[-2]:.4f}",
        "pass sigmas of your own (fewstep export --to diffusers takes the shift out), or run a FewStepScheduler",
        {"sigmas": shown(used), "once": shown(once), "largest": gap},
    )


def custom_sigmas_shifted(p: Patient) -> Finding | None:
    """Levels that are given are shifted again."""
    if not p.is_flow or not p.takes("sigmas") or p.shift == 1:
        return None
    used = p.levels(sigmas=np.array(PROBE))
    gap = float(np.abs(used[:-1] - np.array(PROBE)).max())
    if gap < 1e-4:
        return None
    back = [s / (p.shift - (p.shift - 1) * s) for s in PROBE]
    way = f"exp(mu) = {p.shift:.4g} at mu = {p.mu:g}" if p.dynamic else f"{p.shift:g}"
    return Finding(
        "custom-sigmas-shifted",
        "trap",
        f"sigmas={list(PROBE)} runs {shown(used)}: the scheduler's shift of {way} is applied on top",
        f"give the levels before the shift, s / (shift - (shift - 1) s): {shown(back)} runs {list(PROBE)}; "
        "fewstep export does it",
        {"given": list(PROBE), "runs": shown(used), "unshifted": shown(back), "largest": gap, "shift": p.shift},
    )


def handed_sigmas(p: Patient) -> Finding | None:
    """Levels that the pipeline passes in every call, in place of the scheduler's own."""
    if not p.is_flow or not p.pipeline or not p.hands_sigmas:
        return None
    handed = np.linspace(1, 1 / p.steps, p.steps)
    said = f"{p.pipeline} passes sigmas={shown(handed)} whenever its user gives none"
    given: dict[str, Any] = {"mu": p.mu} if p.dynamic and p.takes("mu") else {}
    if not p.takes("sigmas"):
        return Finding(
            "handed-sigmas", "trap", f"{said}, and {p.name} takes none: every call ends in a ValueError",
            "take a scheduler with sigmas= in set_timesteps: FlowMatchEuler, UniPC with use_flow_sigmas, or a "
            "FewStepScheduler", {"raises": "ValueError"},
        )  # fmt: skip
    alone = copy.deepcopy(p.scheduler)
    with quiet():
        alone.set_timesteps(p.steps, **given)
    own, used = as_numbers(alone.sigmas), p.levels(sigmas=handed)
    gap = float(np.abs(own - used).max())
    if gap < 1e-4:
        return None
    falling = bool((np.diff(used) < 0).all())
    wrong = "" if falling else ". They rise, which is no way from noise to data"
    return Finding(
        "handed-sigmas",
        "note" if falling else "trap",
        f"{said}: the scheduler runs {shown(used)} instead of its own {shown(own)}, up to {gap:.3f} away{wrong}",
        "its own spacing does not act here: give sigmas yourself, or change its shift"
        + ("" if falling else " (and take use_karras_sigmas and its like away)"),
        {"handed": shown(handed), "runs": shown(used), "own": shown(own), "largest": gap, "falling": falling},
    )


def timesteps_beside_sigmas(p: Patient) -> Finding | None:
    """Of both, only the sigmas are shifted: network and state disagree."""
    if not p.is_flow or not p.takes("sigmas", "timesteps") or p.shift == 1:
        return None
    ready = p.ready(sigmas=list(PROBE), timesteps=[p.trained * s for s in PROBE])
    told, used = as_numbers(ready.timesteps) / p.trained, as_numbers(ready.sigmas)[:-1]
    gap = float(np.abs(told - used).max())
    if gap < 1e-4:
        return None
    worst = int(np.abs(told - used).argmax())
    return Finding(
        "timesteps-beside-sigmas",
        "trap",
        f"given timesteps and sigmas together, the sigmas are shifted and the timesteps are not: the network is told "
        f"t={told[worst] * p.trained:.0f} for a state at sigma {used[worst]:.3f}",
        "give sigmas alone",
        {"told": shown(told * p.trained, 1), "sigmas": shown(used), "largest": gap},
    )


def integer_times(p: Patient) -> Finding | None:
    """UniPC and DPM-Solver++ cut the times of flow models to integers."""
    if not p.is_flow or not p.get("use_flow_sigmas"):
        return None
    ready = p.ready()
    told, used = as_numbers(ready.timesteps), as_numbers(ready.sigmas)[:-1]
    gap = float(np.abs(told / p.trained - used).max())
    if not np.equal(told, told.round()).all() or gap < 1e-6:
        return None
    return Finding(
        "integer-times",
        "trap",
        f"the network is told {shown(told, 0)} while the solver works at {shown(used, 6)}: off by up to {gap:.4f} in "
        "sigma",
        "a FewStepScheduler tells exact times",
        {"told": shown(told, 1), "sigmas": shown(used, 6), "largest": gap},
    )


def refused_inputs(p: Patient) -> Finding | None:
    """Custom schedules that end in a TypeError."""
    if not p.get("use_flow_sigmas"):
        return None
    tried = {}
    if p.takes("sigmas"):
        tried["sigmas as a list"] = {"sigmas": list(PROBE)}
    if p.takes("timesteps"):
        tried["timesteps"] = {"timesteps": [int(p.trained * s) - 1 for s in PROBE]}
    failed: dict[str, str] = {}
    for name, given in tried.items():
        try:
            p.ready(**given)
        except Exception as error:  # whatever it raises is what the user sees
            failed[name] = type(error).__name__
    if not failed:
        return None
    said = ", ".join(f"{name}: {kind}" for name, kind in failed.items())
    array = "give sigmas as a numpy array" if p.takes("sigmas") else "this class takes no schedule of your own"
    return Finding("refused-inputs", "note", f"{p.name} fails on {said}", array, {"raises": failed})


def mutated_config(p: Patient) -> Finding | None:
    """A call with mu leaves its shift behind, for the next call that has none."""
    if not p.dynamic or not p.takes("mu"):
        return None
    ready = p.ready()
    before, after = vars(p.scheduler.config), vars(ready.config)
    changed = {k: [v, float(after[k])] for k, v in before.items() if isinstance(v, float | int) and after.get(k) != v}
    if not changed:
        return None
    saved = [k for k in changed if ready.config[k] != p.config[k]]
    said = ", ".join(f"{k} from {old:g} to {new:.4g}" for k, (old, new) in changed.items())
    kept = "and save_pretrained keeps it" if saved else "(what save_pretrained writes stays)"
    return Finding(
        "mutated-config",
        "trap",
        f"set_timesteps(mu={p.mu:g}) changes the scheduler's configuration in place: {said} {kept}; a later call "
        "without mu runs with the shift of the last resolution",
        "give mu in every call, or make the scheduler anew",
        {"changed": changed, "saved": saved},
    )


CHECKS = (
    double_shift, custom_sigmas_shifted, handed_sigmas, timesteps_beside_sigmas, integer_times, refused_inputs,
    mutated_config,
)  # fmt: skip
