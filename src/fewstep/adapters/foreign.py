"""Foreign samplers by name, as tables: `diffusers:CLASS`, `k_diffusion:FUNCTION`, `python:MODULE:FUNCTION`.

The names are for command lines; in Python, `fewstep.from_sampler` takes the sampler itself.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import times
from fewstep.adapters.k_diffusion import takes
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, NoiseSchedule
from fewstep.tableau import Tableau
from fewstep.trace import from_sampler

KINDS = ("diffusers", "k_diffusion", "python")
FORMS = "diffusers:CLASS, k_diffusion:FUNCTION or python:MODULE:FUNCTION"
CONFIG = "scheduler_config.json"


def is_foreign(name: str) -> bool:
    """Whether a text names a foreign sampler and not a file."""
    return name.partition(":")[0] in KINDS


def foreign(
    name: str,
    steps: int | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    noise: NoiseSchedule | None = None,
) -> Tableau:
    """The table of a foreign sampler.

    Args:
        name: `diffusers:CLASS`, a scheduler class; `k_diffusion:FUNCTION`, as in `k_diffusion:sample_dpmpp_2m`;
            `python:MODULE:FUNCTION`, a function `(model, x, sigmas or times, ...)`, or a scheduler, its class, or a
            function without arguments that makes one.
        steps: along its times.
        options: of a scheduler's configuration, of `set_timesteps` or of `step` (by name); of a function's own
            arguments, and besides `times` (the name of a grid, karras by default), `start` and `end` of the grid, or
            `sigmas`, the list itself.
        config: a scheduler_config.json, or a folder of a pipeline, for `diffusers:`.
        noise: the noise schedule of the network; by default the host's own, EDM's for functions in sigma.

    Raises:
        ArgumentError: no such library, name or option; a missing number of steps.
        NotATable: the sampler is not linear.
    """
    kind, _, rest = name.partition(":")
    given = dict(options or {})
    if kind not in KINDS or not rest:
        raise ArgumentError(f"{name!r} names no foreign sampler: write {FORMS}")
    if kind != "diffusers" and config is not None:
        raise ArgumentError(f"--config is for diffusers: schedulers, and {name} is none: leave it out")
    if kind == "diffusers":
        return _traced_scheduler(_scheduler_class(rest), steps, given, config, noise)
    if kind == "k_diffusion":
        return _traced_function(_k_diffusion(rest), steps, given, noise)
    return _traced_object(_from_module(name), steps, given, noise)


def _scheduler_class(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ArgumentError(f"diffusers cannot be imported here ({error}): pip install 'fewstep[diffusers]'") from error
    found = getattr(diffusers, name, None)
    if found is None or not hasattr(found, "set_timesteps"):
        known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
        from difflib import get_close_matches

        stem = name.removesuffix("Scheduler")[:4].lower()
        alike = [n for n in known if n.lower().startswith(stem)]
        near = alike[:6] or get_close_matches(name, known, 4, 0.3) or known[:6]
        raise ArgumentError(f"diffusers has no scheduler {name!r}: did you mean {', '.join(near)}?")
    return found


def read_config(place: str | Path) -> dict[str, Any]:
    """A scheduler's configuration from its JSON file, its folder, or the folder of its pipeline.

    Raises:
        ArgumentError: nothing there, or no JSON object.
    """
    path = Path(place)
    candidates = [path] if path.is_file() else [path / CONFIG, path / "scheduler" / CONFIG]
    found = next((p for p in candidates if p.is_file()), None)
    if found is None:
        raise ArgumentError(f"{path} holds no {CONFIG}: give that file, or the folder of a pipeline")
    try:
        record = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{found} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(record, dict):
        raise ArgumentError(f"{found} holds no JSON object: give a scheduler_config.json")
    return record


def scheduler_of(name: str, config: Mapping[str, Any]) -> Any:
    """The scheduler of a class name and its configuration; entries that the class does not know stay in it.

    Raises:
        ArgumentError: diffusers cannot be imported, or has no such class.
    """
    return _scheduler_class(name).from_config(dict(config))


def pipeline_code(name: str) -> str:
    """The code of a pipeline's call; "" for a class that diffusers does not have, or cannot import here."""
    import diffusers

    try:
        return inspect.getsource(getattr(diffusers, name).__call__)
    except (AttributeError, ImportError, RuntimeError, OSError, TypeError):
        return ""


def pipeline_of(place: str | Path) -> str:
    """Class of the pipeline whose folder this is, or whose scheduler's; "" where there is none."""
    path = Path(place)
    for folder in (path, path.parent, path.parent.parent):
        index = folder / "model_index.json"
        if index.is_file():
            try:
                return str(json.loads(index.read_text(encoding="utf-8")).get("_class_name", ""))
            except (OSError, ValueError, AttributeError) as error:
                raise ArgumentError(f"{index} cannot be read as JSON ({error}): download it again") from error
    return ""


def _traced_scheduler(
    cls: Any, steps: int | None, given: dict[str, Any], config: str | Path | None, noise: NoiseSchedule | None
) -> Tableau:
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    inside = {k: given.pop(k) for k in list(given) if k in known}
    base = {} if config is None else {k: v for k, v in read_config(config).items() if not k.startswith("_")}
    scheduler = cls.from_config({**base, **inside})
    listed = {k: given[k] for k in ("sigmas", "timesteps") if k in given}
    if listed and "sigmas" in listed and "array" not in str(type(listed["sigmas"])):
        import numpy as np

        given["sigmas"] = np.array(listed["sigmas"], dtype=np.float64)  # UniPC takes no list
    if steps is None and not listed:
        raise ArgumentError(f"--steps is missing: the number of steps of {cls.__name__}")
    return from_sampler(scheduler, *(() if listed else (steps,)), noise=noise, **given)


def _k_diffusion(name: str) -> Any:
    try:
        sampling = importlib.import_module("k_diffusion.sampling")
    except Exception as error:  # with a torchvision that does not fit torch, importing it fails in many ways
        raise ArgumentError(
            f"k_diffusion cannot be imported here ({type(error).__name__}: {error}). It needs torchvision, which must "
            "fit the installed torch. Install both, or give the function of another module: python:MODULE:FUNCTION"
        ) from error
    found = getattr(sampling, name, None)
    if not callable(found):
        known = [n for n in dir(sampling) if n.startswith("sample_")]
        raise ArgumentError(f"k_diffusion.sampling has no {name}: it has {', '.join(known)}")
    return found


def _from_module(name: str) -> Any:
    module, _, what = name.removeprefix("python:").rpartition(":")
    if not module or not what:
        raise ArgumentError(f"{name!r}: write python:MODULE:FUNCTION")
    here = os.getcwd()
    sys.path.insert(0, here)  # a console script does not look in the working folder by itself
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ArgumentError(f"{name!r}: {error}; run from its folder, or install it") from error
    finally:
        sys.path.remove(here)
    if not hasattr(found, what):
        public = [n for n, v in vars(found).items() if callable(v) and not n.startswith("_")]
        raise ArgumentError(f"{name!r}: {module} has no {what}; it has {', '.join(public) or 'nothing to call'}")
    return getattr(found, what)


def _traced_object(found: Any, steps: int | None, given: dict[str, Any], noise: NoiseSchedule | None) -> Tableau:
    if inspect.isclass(found) and hasattr(found, "set_timesteps") and hasattr(found, "from_config"):
        return _traced_scheduler(found, steps, given, None, noise)
    if callable(found) and not inspect.isclass(found) and not _arguments(found):
        found = found()  # a function that makes a scheduler
    if hasattr(found, "set_timesteps"):
        if steps is None:
            raise ArgumentError("--steps is missing: the number of steps of the scheduler")
        return from_sampler(found, steps, noise=noise, **given)
    return _traced_function(found, steps, given, noise)


def _arguments(function: Any) -> Sequence[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ["?"]


def _traced_function(function: Any, steps: int | None, given: dict[str, Any], noise: NoiseSchedule | None) -> Tableau:
    """A function `(model, x, sigmas, ...)` on noise levels, or `(model, x, times, ...)` on its network's times."""
    in_sigma = takes(function, "sigmas")
    if not in_sigma and noise is None:
        raise ArgumentError("--noise is missing: the function takes no sigmas, so its times need a noise schedule")
    schedule = noise or EDM()
    grid = _grid(schedule, steps, given, in_sigma)
    if in_sigma:
        return from_sampler(function, grid, noise=noise, **given)
    return from_sampler(function, grid, noise=schedule, **given)


def _grid(noise: NoiseSchedule, steps: int | None, given: dict[str, Any], in_sigma: bool) -> Tensor:
    listed = given.pop("sigmas", None)
    if listed is not None:
        return torch.tensor(listed, dtype=torch.float64, device="cpu")
    if steps is None:
        raise ArgumentError("--steps is missing: the number of steps along the times (or give --option sigmas=...)")
    ends = {k: given.pop(k) for k in ("start", "end") if k in given}
    grid = times.named(str(given.pop("times", "karras")))(noise, steps, **ends)
    return noise.ratio(grid) if in_sigma else grid
