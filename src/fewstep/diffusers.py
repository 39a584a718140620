"""fewstep in diffusers: the scheduler, whether a pipeline takes it, and a copy of it for the Hub.

    import fewstep.diffusers                          # also before from_pretrained of a pipeline saved with it
    pipe.scheduler = fewstep.diffusers.FewStepScheduler.from_config(pipe.scheduler.config, tableau="schedule.json")
    images = pipe(prompt, num_inference_steps=6).images

Importing this module loads diffusers.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from fewstep.adapters.hub import fewstep_scheduler
from fewstep.adapters.hub.fewstep_scheduler import FewStepScheduler
from fewstep.errors import ArgumentError, FileFormatError

# `save_pretrained` writes the module's name into model_index.json, so it must be one that stays; diffusers also looks
# SchedulerMixin up in it.
FewStepScheduler.__module__ = __name__

__all__ = ["FewStepScheduler", "SchedulerMixin", "check_pipeline", "save_to_hub_folder"]

CANNOT: Mapping[str, str] = {
    "LEditsPP": "it inverts images by the formulas of DDIM or DPM-Solver++",
    "BriaPipeline": "it passes times of its own to any scheduler but FlowMatchEuler",
    "LongCatAudioDiT": "it replaces every scheduler but FlowMatchEuler, and its time runs the other way",
    "StableCascade": "its networks are told a ratio that it computes from the scheduler's betas",
    "Wuerstchen": "its networks are told a ratio that it computes from its own scheduler",
    "LTXI2VLongMultiPrompt": "it passes times of its own to LTXEulerAncestralRF",
    "LTX2DFR": "it passes times of its own to LTXEulerAncestralRF",
    "CosmosTextToWorld": "it scales inputs by the EDM scheduler's own levels",
    "CosmosVideoToWorld": "it scales inputs by the EDM scheduler's own levels",
    "CycleDiffusion": "it inverts images by DDIM's formulas",
    "StableDiffusionParadigms": "it steps many times at once, by the scheduler's own tables",
    "TextToVideoZero": "it moves between times by the scheduler's betas",
    "ScoreSdeVe": "it calls step_pred and step_correct",
    "AudioDiffusion": "it inverts audio by DDIM's formulas",
    "DDIMPipeline": "it passes DDIM's eta; DDPMPipeline takes the same network and any scheduler",
    "RePaint": "it steps back into the noise by its own scheduler",
    "KarrasVe": "it draws its noise by its own scheduler",
    "UnCLIP": "its steps are told the time before",
    "KandinskyPrior": "its steps are told the time before",
    "KandinskyV22Prior": "its steps are told the time before",
    "LTXCondition": "every token has a time of its own, and no table does",
    "SanaWM": "every token has a time of its own, and no table does",
    "HeliosPyramid": "it changes the resolution on the way, by its own scheduler's levels",
}
"""Pipelines that need a scheduler class of their own, by the beginning of their names, and why."""


def check_pipeline(
    pipe: Any, *, guidance_scale: float | None = None, shape: tuple[int, ...] | None = None
) -> list[str]:
    """What speaks against running a pipeline with its `FewStepScheduler`.

    Args:
        pipe: a diffusers pipeline; `pipe.scheduler` is the scheduler.
        guidance_scale: that it will be called with.
        shape: of one sample's latents.

    Returns:
        What differs from what the tables were made for, as far as they say; empty if nothing does.

    Raises:
        ArgumentError: the pipeline cannot run it, or the tables belong to other experts (Wan 2.2); says why.
    """
    name = type(pipe).__name__
    for start, reason in CANNOT.items():
        if name.startswith(start):
            raise ArgumentError(f"{name} cannot run a FewStepScheduler: {reason}. Keep its own scheduler")
    scheduler = pipe.scheduler
    if not isinstance(scheduler, FewStepScheduler):
        raise ArgumentError(
            f"pipe.scheduler is a {type(scheduler).__name__}: set it to FewStepScheduler.from_config(...) first"
        )
    boundary = getattr(pipe, "config", {}).get("boundary_ratio")
    scheduler.check_experts(boundary)
    notes: list[str] = []
    for record in scheduler.config["tableau"]:
        made, which = record["made_for"], f"table of {record['calls']} calls"
        if boundary is not None and made.get("boundary_ratio") is None:
            notes.append(f"{which}: it does not say for which boundary between the experts it was made")
        for what, here in (("guidance", guidance_scale), ("shape", shape)):
            there = made.get(what)
            if there is not None and here is not None and _plain(there) != _plain(here):
                notes.append(f"{which}: optimised for {what} {_plain(there)}, here it is {_plain(here)}")
    return notes


def _plain(value: Any) -> Any:
    return [int(n) for n in value] if isinstance(value, list | tuple) else float(value)


def save_to_hub_folder(tableau: Any, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> list[Path]:
    """A scheduler that loads without fewstep (`trust_remote_code=True`): its configuration, and the class as one file.

    Args:
        tableau: what `FewStepScheduler` takes: a table, several, their files.
        folder: of a whole pipeline (with model_index.json): its scheduler is replaced. Any other folder gets the two
            files, for the `scheduler` folder of a repository.
        config: of the scheduler that the pipeline has now; by default read from the folder, else what the table says.

    Returns:
        The files written, each whole or not at all.

    Raises:
        ArgumentError, FileFormatError: a table of another model, or a damaged model_index.json.
    """
    from fewstep.files import atomic_write_text

    folder = Path(folder)
    index = folder / "model_index.json"
    place = folder / "scheduler" if index.exists() else folder
    present = place / FewStepScheduler.config_name
    if config is None:
        config = _json(present) if present.exists() else _config_of(tableau)
    scheduler = FewStepScheduler.from_config(config, tableau=tableau)
    module = place / Path(fewstep_scheduler.__file__).name
    texts = {module: inspect.getsource(fewstep_scheduler), present: scheduler.to_json_string()}
    if index.exists():
        record = _json(index) | {"scheduler": [module.stem, FewStepScheduler.__name__]}
        texts[index] = json.dumps(record, indent=2) + "\n"
    for path, text in texts.items():
        atomic_write_text(path, text)
    return list(texts)


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(record, dict):
        raise FileFormatError(f"{path} is no JSON object: download it again")
    return record


def _config_of(tableau: Any) -> dict[str, Any]:
    """The configuration of a network that only a table describes."""
    from fewstep.adapters.diffusers_record import config_of

    return config_of(tableau)
