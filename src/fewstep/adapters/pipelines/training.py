"""What a pipeline's scheduler says about its network: the noise schedule, the prediction, EDM's preconditioning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters.diffusers import is_flow
from fewstep.conventions import Prediction
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, as_float64

PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
SAME = 1e-4
"""Departure of float32 tables from the recipe that they were computed by, relative."""


@dataclass(frozen=True)
class Training:
    """How the network of a pipeline was trained.

    Attributes:
        noise: the schedule of its states.
        prediction: what it predicts; x0 for EDM's, whose preconditioning is then done around it.
        sigma_data: of EDM's preconditioning, else None.
        negated: EDM's preconditioning with -c_out (`prediction_type="v_prediction"`).
    """

    noise: NoiseSchedule
    prediction: Prediction
    sigma_data: float | None = None
    negated: bool = False


def training_of(scheduler: Any, mu: float | None = None, shift: float | None = None) -> Training:
    """What the scheduler's configuration tells.

    Args:
        scheduler: of the pipeline, whichever of diffusers' classes: they all carry the network's betas or shift.
        mu: of the resolution, for flow models whose shift depends on it.
        shift: of a flow model, instead of the configuration's.

    Errors: `ArgumentError` for a scheduler that does not tell, or a shift for a model that has none.
    """
    config, name = scheduler.config, type(scheduler).__name__
    family = config.get("family")  # as FewStepScheduler says it, which has the methods of all kinds
    if family == "flow" or (family is None and is_flow(scheduler)):
        if config.get("num_train_timesteps", 1000) != 1000:
            raise ArgumentError(
                f"{name} counts {config['num_train_timesteps']} training steps, and flow models here count 1000: wrap "
                "the network with fewstep.from_callable and time="
            )
        return Training(Flow(_shift(scheduler, mu) if shift is None else shift), "flow")
    if shift is not None:
        raise ArgumentError(f"shift={shift:g}: {name} is of a model without one; leave it out")
    if family == "edm" or name.startswith(("EDM", "CosineDPM")):
        noise = EDM(float(config["sigma_min"]), float(config["sigma_max"]))
        return Training(noise, "x0", float(config["sigma_data"]), config.get("prediction_type") == "v_prediction")
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ArgumentError(f"{name} says prediction_type={kind!r}: known are {', '.join(PREDICTIONS)}")
    return Training(_discrete(scheduler), PREDICTIONS[kind])


def _shift(scheduler: Any, mu: float | None) -> float:
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    if mu is None:
        raise ArgumentError(
            "the scheduler's shift depends on the resolution, and for this pipeline the rule is not known: give shift="
        )
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


def _discrete(scheduler: Any) -> Discrete:
    """From the betas' recipe where there is one (a short record), else from the scheduler's own table."""
    config = scheduler.config
    ends = (config.get("beta_start"), config.get("beta_end"), config.get("num_train_timesteps"))
    table = getattr(scheduler, "alphas_cumprod", None)
    zero = bool(config.get("rescale_betas_zero_snr"))
    recipes: dict[str, Callable[[float, float, int], Discrete]] = {
        "linear": Discrete.linear,
        "scaled_linear": Discrete.scaled_linear,
        "squaredcos_cap_v2": lambda _first, _last, n: Discrete.cosine(n),
    }
    make = recipes.get(str(config.get("beta_schedule")))
    if make is not None and None not in ends and config.get("trained_betas") is None:
        noise = make(*ends)
        noise = noise.rescaled_to_zero_terminal_snr() if zero else noise
        if table is None or _agrees(noise, table):
            return noise
    if not isinstance(table, Tensor):
        raise ArgumentError(
            f"{type(scheduler).__name__} does not tell the noise schedule that the network was trained on: put "
            "DDIMScheduler.from_config(...) of the network's own configuration into pipe.scheduler"
        )
    noise = Discrete.from_alphas_cumprod(table)
    if zero and noise.alphas_cumprod[-1] > 0:  # some classes keep 2**-24 in its place
        noise = Discrete((*noise.alphas_cumprod[:-1], 0.0))
    return noise


def _agrees(noise: Discrete, table: Tensor) -> bool:
    mine, theirs = as_float64(noise.alphas_cumprod), as_float64(table)
    return mine.shape == theirs.shape and bool(torch.allclose(mine, theirs, rtol=SAME, atol=1e-6))
