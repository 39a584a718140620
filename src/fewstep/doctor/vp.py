"""Traps of schedulers for variance-preserving networks: rounded times, repeats, noise that stays, scales."""

from __future__ import annotations

import numpy as np

from fewstep.doctor.patient import UNSCALED_PIPELINES, Finding, Patient, as_numbers, shown


def _has_table(p: Patient) -> bool:
    return not p.is_flow and hasattr(p.scheduler, "alphas_cumprod")


def rounded_times(p: Patient) -> Finding | None:
    """The solver works at one noise level and the network is told another."""
    if not _has_table(p) or not hasattr(p.scheduler, "sigmas"):
        return None
    ready = p.ready()
    used, told = as_numbers(ready.sigmas), as_numbers(ready.timesteps)
    if len(used) != len(told) + 1:
        return None  # several calls a step: their times are not in `sigmas`
    known = p.trained_levels()
    if p.get("timestep_type") == "continuous" or told.min() < 0:
        return None
    network = np.exp(np.interp(told, np.arange(len(known)), np.log(known)))
    relative = np.abs(network / used[:-1] - 1)
    worst = int(relative.argmax())
    if relative[worst] < 1e-4:
        return None
    return Finding(
        "rounded-times",
        "trap",
        f"the solver's noise level and the network's differ by up to {relative[worst]:.2%}: at call {worst + 1} of "
        f"{len(told)} the state is at sigma {used[worst]:.4g} and the network is told t={told[worst]:g}, which is "
        f"sigma {network[worst]:.4g}",
        "a FewStepScheduler tells exact times; or take times that are integers (fewstep export --snap)",
        {"largest": float(relative[worst]), "call": worst + 1, "sigmas": shown(used), "told": shown(told, 3)},
    )


def repeated_times(p: Patient) -> Finding | None:
    """The network is asked twice at the same time."""
    try:
        told = as_numbers(p.ready().timesteps)
    except IndexError:
        return None
    calls = int(getattr(p.scheduler, "order", 1))
    distinct = len({round(float(t), 6) for t in told})
    expected = len(told) if calls == 1 else -(-(len(told) + 1) // 2)
    if distinct >= expected:
        return None
    return Finding(
        "repeated-times",
        "trap",
        f"{len(told)} steps have {distinct} different times: {shown(told, 2)}. Repeats are wasted network calls, and "
        "image-to-image can fail on them",
        "take fewer steps, or other times (use_karras_sigmas=False)",
        {"steps": len(told), "distinct": distinct},
    )


def noise_stays(p: Patient) -> Finding | None:
    """The last state is not clean."""
    if not hasattr(p.scheduler, "sigmas"):
        return None
    last = float(p.levels()[-1])
    if last < 1e-6:
        return None
    return Finding(
        "noise-stays",
        "trap",
        f"the last noise level is {last:.4g}, not 0: the sample keeps that much noise",
        'set final_sigmas_type="zero"' if "final_sigmas_type" in p.config else "append a 0 to the levels",
        {"last": last},
    )


def half_precision_tables(p: Patient) -> Finding | None:
    """Image-to-image in float16 noises the image with a table in float16."""
    import torch

    if not hasattr(p.scheduler, "add_noise") or p.is_flow:
        return None
    own = p.ready()
    if not len(own.timesteps):
        return None
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(1, 4, 64, 64, generator=generator).half() for _ in range(2))
    worst, scale = 0.0, 1.0
    for t in own.timesteps:
        at = t[None]
        try:
            fine = own.add_noise(image.float(), noise.float(), at)
            coarse = own.add_noise(image, noise, at).float()
        except (IndexError, ValueError, RuntimeError):
            return None
        scale = max(1.0, float(fine.std()))  # variance-exploding states are large; this is on a scale of 1
        worst = max(worst, float((fine - coarse).abs().max()) / scale)
    if worst < 1e-4:
        return None
    return Finding(
        "half-precision-tables",
        "note",
        f"in float16 add_noise rounds its table too: image-to-image starts off by up to {worst:.1e} on unit states",
        "noise in float32 and cast afterwards; a FewStepScheduler does",
        {"largest": worst},
    )


def unscaled_input(p: Patient) -> Finding | None:
    """Pipelines that never call scale_model_input, with a scheduler that needs it."""
    from fewstep.adapters.diffusers import is_exploding

    if not p.pipeline.startswith(UNSCALED_PIPELINES) or not is_exploding(p.scheduler):
        return None
    first = float(p.levels()[0])
    return Finding(
        "unscaled-input",
        "trap",
        f"{p.pipeline} does not shrink the network's input, and {p.name} keeps states of scale {first:.4g}: the "
        "network sees them at that scale instead of 1, and no error is raised",
        "take a scheduler in the network's own space: DDIM, DPM-Solver++, UniPC, or a FewStepScheduler",
        {"scale": first},
    )


CHECKS = (rounded_times, repeated_times, noise_stays, half_precision_tables, unscaled_input)
