"""What concerns any scheduler: the wrong family, image-to-image, what it takes."""

from __future__ import annotations

from fewstep.doctor.patient import FLOW_KEYS, FLOW_PIPELINES, Finding, Patient

STRENGTHS = (0.2, 0.3, 0.5, 0.75)


def wrong_family(p: Patient) -> Finding | None:
    """A scheduler of one family with the configuration, or the pipeline, of the other; nothing raises an error."""
    hidden = getattr(p.scheduler, "_internal_dict", {})
    foreign = [k for k in FLOW_KEYS if k in hidden and k not in p.own_keys]
    flow_pipeline = p.pipeline.startswith(FLOW_PIPELINES)
    if p.is_flow and p.pipeline.startswith(("StableDiffusionPipeline", "StableDiffusionXL", "DDPM", "DDIM")):
        return Finding(
            "wrong-family", "trap",
            f"{p.name} is for flow models, and {p.pipeline} has a network that predicts noise: images will be noise",
            "take a scheduler of the network's family", {"scheduler": "flow", "pipeline": p.pipeline},
        )  # fmt: skip
    if p.is_flow or not (foreign or flow_pipeline):
        return None
    start = float(getattr(p.ready(), "init_noise_sigma", 1.0))
    why = f"{p.pipeline} is a flow model" if flow_pipeline else f"the configuration has {', '.join(foreign)}"
    return Finding(
        "wrong-family",
        "trap",
        f"{p.name} is for networks in variance-preserving noise, predicting {p.get('prediction_type', 'epsilon')}, and "
        f"{why}: it runs, without an error, and makes garbage (states begin {start:.4g} large, a flow's at 1)",
        "take a FlowMatch scheduler, or UniPC or DPM-Solver++ with use_flow_sigmas=True, "
        'prediction_type="flow_prediction" and flow_shift',
        {
            "foreign": foreign,
            "pipeline": p.pipeline,
            "prediction": p.get("prediction_type", "epsilon"),
            "start": start,
        },
    )


def image_to_image(p: Patient) -> Finding | None:
    """`steps * strength` network calls in whole numbers, sometimes none."""
    order = int(getattr(p.scheduler, "order", 1))
    up = p.is_flow and not p.pipeline.startswith("Wan")  # SD3, Flux, Qwen-Image, Chroma, Sana
    counts = {s: p.steps - int(p.steps - p.steps * s) if up else int(p.steps * s) for s in STRENGTHS}
    if p.steps > 20:
        return None
    said = ", ".join(f"{n} at strength {s:g}" for s, n in counts.items())
    empty = " (none at all there: the image comes back as it is, or an error)" if 0 in counts.values() else ""
    return Finding(
        "image-to-image",
        "note",
        f"of {p.steps} steps image-to-image runs steps x strength, rounded {'up' if up else 'down'}: {said}{empty}"
        + (f"; times {order} calls each" if order > 1 else ""),
        "search a schedule for that start (fewstep optimize --strength) instead of cutting one short",
        {"steps": {str(s): n for s, n in counts.items()}, "calls_per_step": order, "rounded": "up" if up else "down"},
    )


def accepted(p: Patient) -> Finding | None:
    """What a schedule of one's own may be given as."""
    sigmas = p.takes("sigmas") and (p.get("use_flow_sigmas") or p.name != "UniPCMultistepScheduler")
    sigmas = sigmas and not p.name.startswith("EDM")
    times = p.takes("timesteps") and not p.get("use_flow_sigmas")
    if sigmas or times:
        return None
    return Finding(
        "no-own-schedule",
        "note",
        f"{p.name} takes neither sigmas nor timesteps with this configuration: an optimised schedule cannot be used "
        "with it",
        "run a FewStepScheduler (fewstep export --to diffusers-hub), or Euler, which takes free sigmas",
        {"sigmas": bool(sigmas), "timesteps": bool(times)},
    )


CHECKS = (wrong_family, image_to_image, accepted)
