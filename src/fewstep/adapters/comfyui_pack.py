"""Samplers found by fewstep, as two ComfyUI nodes: file -> SIGMAS, file -> SAMPLER.

`fewstep export FILE --to comfyui-nodes --out DIR` copies this file there; it needs torch and ComfyUI alone. A schedule
is a table of numbers in `schedules/`: every state of the run is a weighted sum of earlier states, of the model's
estimates of the clean image, and of fresh noise. ComfyUI's models answer with that estimate at a noise level sigma,
whatever they predict inside, so one loop runs every table exactly.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT, VERSION = "fewstep.comfyui", 1
FOLDER = Path(__file__).resolve().parent / "schedules"
CLOSE = 1e-4  # SIGMAS are float32
Row = dict[str, Any]


class Plan:
    """A schedule file: the rows of the table and the noise levels that ComfyUI is given."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        if record.get("format") != FORMAT:
            raise ValueError("this is no schedule for ComfyUI: make it with `fewstep export FILE --to comfyui-nodes`")
        if record.get("version", 0) > VERSION:
            raise ValueError("this schedule is newer than these nodes: export the nodes again, with the newer fewstep")
        self.name: str = record["name"]
        self.flow: bool = record["family"] == "flow"
        self.levels: list[float] = record["levels"]
        self.intervals: list[list[float]] = record["intervals"]
        self.rows: list[Row] = record["rows"]
        self.forget = _forget(self.rows)

    @property
    def sigmas(self) -> Tensor:
        """What ComfyUI calls SIGMAS: falling, the last level included."""
        return torch.tensor(self.levels, dtype=torch.float32)

    def require(self, sigmas: Tensor) -> None:
        """Refuse SIGMAS of another schedule."""
        given = sigmas.detach().double().cpu()
        own = torch.tensor(self.levels, dtype=torch.float64)
        if given.shape != own.shape or bool(((given - own).abs() > CLOSE * own).any()):
            told, want = ([float(f"{v:.4g}") for v in s.tolist()] for s in (given, own))
            raise ValueError(
                f"the sampler {self.name} was made for the sigmas {want} and was given {told}: connect the SIGMAS of "
                "the node `fewstep sigmas` with the same schedule, neither split nor shortened"
            )

    def require_model(self, model: Any) -> None:
        """Refuse a model of the other kind of noise; a warning where the range of noise levels is another."""
        sampling = getattr(getattr(getattr(model, "inner_model", None), "inner_model", None), "model_sampling", None)
        if sampling is None:
            return
        flow = any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)
        if flow != self.flow:
            kinds = ("noise levels sigma (Stable Diffusion, SDXL, EDM)", "a flow model (SD3, Flux, Wan)")
            raise ValueError(
                f"the sampler {self.name} was made for {kinds[self.flow]}, and this is {kinds[flow]}: take a schedule "
                "that was found for this model"
            )
        highest = float(sampling.sigma_max)
        if self.levels[0] > 1.01 * highest:
            logging.warning("fewstep: %s starts at sigma %g, the model ends at %g", self.name, self.levels[0], highest)


def _forget(rows: list[Row]) -> list[list[tuple[str, int]]]:
    """For each row what no later row reads."""
    last: dict[tuple[str, int], int] = {}
    for i, row in enumerate(rows):
        for kind in ("states", "outputs", "noise"):
            last.update(((kind, int(k)), i) for k, _ in row.get(kind, ()))
    return [[key for key, reader in last.items() if reader == i] for i in range(len(rows))]


def run(
    plan: Plan,
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Sample as ComfyUI's own samplers do: `model(x, sigma, **extra_args)` gives x0, `x` is the noised start.

    Fresh noise comes from `noise_sampler`, by default ComfyUI's own with the seed of `extra_args`. `disable` is for the
    interface: progress is what `callback` tells.
    """
    plan.require(sigmas)
    plan.require_model(model)
    extra = extra_args or {}
    if plan.intervals and noise_sampler is None:
        noise_sampler = _comfy_noise(x, extra.get("seed"))
    wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    kept: dict[tuple[str, int], Tensor] = {}
    state = x
    for i, row in enumerate(plan.rows):
        for column, _ in row.get("noise", ()):
            if ("noise", column) not in kept:
                first, last = (x.new_tensor(v) for v in plan.intervals[column])
                assert noise_sampler is not None
                kept["noise", column] = noise_sampler(first, last).to(wide)
        state = x.to(wide) if i == 0 else _mixed(row, kept, x, wide)
        for key in plan.forget[i]:
            kept.pop(key, None)
        kept["states", i] = state
        if row.get("told") is not None:
            shown = (state if row["input"] == 1 else state * row["input"]).to(x.dtype)
            denoised = model(shown, x.new_full((len(x),), row["told"]), **extra)
            kept["outputs", i] = denoised.to(wide)
            if callback is not None:
                step = row["step"]
                told = {"i": step, "sigma": sigmas[step], "sigma_hat": sigmas.new_tensor(row["told"])}
                callback({"x": shown, "denoised": denoised, **told})
    return state.to(x.dtype)


def _mixed(row: Row, kept: Mapping[tuple[str, int], Tensor], x: Tensor, wide: torch.dtype) -> Tensor:
    """The weighted sum of one row."""
    total = torch.full_like(x, row.get("offset", 0.0), dtype=wide)
    for kind in ("states", "outputs", "noise"):
        for k, weight in row.get(kind, ()):
            total.add_(kept[kind, k], alpha=weight)
    return total


def _comfy_noise(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    from comfy.k_diffusion.sampling import default_noise_sampler  # pyright: ignore

    return default_noise_sampler(x, seed=seed)


def available() -> list[str]:
    """Names of the schedules beside this file."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Plan:
    """The schedule of that name."""
    path = FOLDER / f"{name}.json"
    if name not in available():
        raise ValueError(f"there is no schedule {name} in {FOLDER}: it has {', '.join(available()) or 'none'}")
    return Plan(json.loads(path.read_text(encoding="utf-8")))


class FewstepSigmas:
    """The noise levels of a schedule."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = "Noise levels of a schedule that fewstep found; for the sampler of the same schedule."
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node asks for."""
        return {"required": {"schedule": (available(),)}}

    @classmethod
    def IS_CHANGED(cls, schedule: str) -> float:
        """Anew when the file is."""
        return (FOLDER / f"{schedule}.json").stat().st_mtime

    def make(self, schedule: str) -> tuple[Tensor]:
        """SIGMAS of the schedule."""
        return (load(schedule).sigmas,)


class FewstepSampler(FewstepSigmas):
    """The sampler of a schedule."""

    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "The exact sampler of a schedule that fewstep found; give it the sigmas of the same schedule."
    RETURN_TYPES = ("SAMPLER",)

    def make(self, schedule: str) -> tuple[Any]:
        """SAMPLER of the schedule."""
        from comfy.samplers import KSAMPLER  # pyright: ignore

        plan = load(schedule)

        def sampler(
            model: Any,
            x: Tensor,
            sigmas: Tensor,
            extra_args: Any = None,
            callback: Any = None,
            disable: Any = None,
            noise_sampler: Any = None,
        ) -> Tensor:
            with torch.no_grad():
                return run(plan, model, x, sigmas, extra_args, callback, disable, noise_sampler)

        return (KSAMPLER(sampler),)


NODE_CLASS_MAPPINGS = {"FewstepSigmas": FewstepSigmas, "FewstepSampler": FewstepSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"FewstepSigmas": "fewstep sigmas", "FewstepSampler": "fewstep sampler"}
