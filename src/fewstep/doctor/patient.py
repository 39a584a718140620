"""The scheduler that is examined, made of its configuration alone, and what a check says about it."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewstep.adapters import diffusers as adapter
from fewstep.adapters.foreign import pipeline_code, pipeline_of, read_config, scheduler_of
from fewstep.errors import ArgumentError

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Severity = Literal["trap", "note"]

FLOW_KEYS = ("base_shift", "max_shift", "use_dynamic_shifting", "base_image_seq_len", "shift_terminal")
"""Only the configurations of flow models have these."""
FLOW_PIPELINES = (
    "StableDiffusion3", "Flux", "Wan", "QwenImage", "LTX", "HunyuanVideo", "Sana", "Lumina2", "AuraFlow", "Mochi",
    "Chroma", "HiDream", "Cosmos", "Bria", "Ovis", "ZImage", "Krea2",
)  # fmt: skip
HANDED = ("sigmas = np.linspace(1", "sigmas = torch.linspace(1")
"""How the code of pipelines spells the list that it passes to the scheduler."""
UNSCALED_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
"""These never call scale_model_input."""


@dataclass(frozen=True)
class Finding:
    """One trap that is there.

    Attributes:
        check: its name.
        severity: `trap`, something that changes images; `note`, something to know.
        what: what happens, with the sizes on this configuration.
        cure: what to do.
        measured: the numbers.
    """

    check: str
    severity: Severity
    what: str
    cure: str
    measured: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return asdict(self)


@dataclass(frozen=True)
class Patient:
    """A scheduler as its user runs it.

    Attributes:
        scheduler: made of the configuration; checks run copies of it.
        steps: network calls that the user asks for.
        pipeline: class of the pipeline, "" where only the scheduler is known.
        mu: exponent of the dynamic shift.
        compiling: whether to measure what takes seconds.
    """

    scheduler: Any
    steps: int
    pipeline: str = ""
    mu: float = 1.15
    compiling: bool = False

    @property
    def name(self) -> str:
        """The scheduler's class."""
        return type(self.scheduler).__name__

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration, defaults included."""
        return self.scheduler.config

    def get(self, key: str, default: Any = None) -> Any:
        """One entry of the configuration."""
        return self.config.get(key, default)

    @property
    def own_keys(self) -> set[str]:
        """What the class itself can be configured with."""
        return set(inspect.signature(type(self.scheduler).__init__).parameters)

    @property
    def is_flow(self) -> bool:
        """Whether the scheduler's states lie on straight paths."""
        return adapter.is_flow(self.scheduler)

    @property
    def dynamic(self) -> bool:
        """Whether the pipeline computes a shift from the resolution."""
        return bool(self.get("use_dynamic_shifting"))

    @property
    def hands_sigmas(self) -> bool:
        """Whether the pipeline passes `linspace(1, 1/n, n)` as sigmas when its user gives none."""
        code = pipeline_code(self.pipeline)
        dropped = "use_flow_sigmas" in code and bool(self.get("use_flow_sigmas"))  # by Flux, Flux.2 and Ovis
        return not dropped and any(text in code for text in HANDED)

    @property
    def shift(self) -> float:
        """The shift of a flow scheduler."""
        if self.dynamic:
            return float(np.exp(self.mu))
        return float(self.get("flow_shift" if self.get("use_flow_sigmas") else "shift", 1.0) or 1.0)

    @property
    def trained(self) -> float:
        """Number of training steps."""
        return adapter.training_steps(self.scheduler)

    def takes(self, *names: str) -> bool:
        """Whether `set_timesteps` has all these parameters."""
        return set(names) <= set(inspect.signature(self.scheduler.set_timesteps).parameters)

    def ready(self, steps: int | None = None, **given: Any) -> Any:
        """A copy with its timesteps set, as a pipeline would."""
        own = copy.deepcopy(self.scheduler)
        if self.dynamic and self.takes("mu"):
            given.setdefault("mu", self.mu)
        if not {"sigmas", "timesteps"} & set(given):
            given["num_inference_steps"] = self.steps if steps is None else steps
            if self.dynamic and self.name.startswith("FlowMatchEuler"):  # what its pipelines pass
                count = given["num_inference_steps"]
                given["sigmas"] = np.linspace(1, 1 / count, count)
        with quiet():
            own.set_timesteps(**given)
        return own

    def levels(self, **given: Any) -> Numbers:
        """`sigmas` after set_timesteps."""
        return as_numbers(self.ready(**given).sigmas)

    def trained_levels(self) -> Numbers:
        """`sigma / alpha` of every training step, for variance-preserving networks."""
        bar = as_numbers(self.scheduler.alphas_cumprod)
        return np.sqrt((1 - bar) / bar)


Check = Callable[[Patient], Finding | None]


def as_numbers(values: Any) -> Numbers:
    """A tensor, list or array as float64."""
    return np.asarray(values.tolist() if hasattr(values, "tolist") else values, dtype=np.float64)


def shown(values: Any, digits: int = 4) -> list[float]:
    """Rounded, for texts and records."""
    return [round(float(v), digits) for v in as_numbers(values)]


@contextmanager
def quiet() -> Generator[None]:
    """Without the remarks of the library that is examined."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def admitted(place: str | Path | Mapping[str, Any], steps: int, mu: float = 1.15, compiling: bool = False) -> Patient:
    """The patient of a scheduler_config.json, its folder, a pipeline's folder, or a configuration.

    Raises:
        ArgumentError: nothing readable there, no class name in it, or a class that diffusers does not have.
    """
    if steps < 1:
        raise ArgumentError(f"steps={steps}: give the number of network calls, from 1")
    if isinstance(place, Mapping):
        config, pipeline = dict(place), ""
    else:
        config, pipeline = read_config(place), pipeline_of(place)
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise ArgumentError("the configuration names no scheduler (_class_name): give a scheduler_config.json")
    with quiet():
        return Patient(scheduler_of(name, config), steps, pipeline, mu, compiling)
