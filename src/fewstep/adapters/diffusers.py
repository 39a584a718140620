"""diffusers' calling convention: `set_timesteps(...)`, then `step(model_output, t, sample)` for each of `timesteps`.

Nothing here imports diffusers: a scheduler is whatever has that interface. Three things differ between its classes and
are found out here: where a state is (alpha, sigma), what the network predicts, and what `step` wants besides.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.probe import Host
from fewstep.script import Script

_NAMES = {
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
    "epsilon": "epsilon",
    "trigflow": "flow",
}


def _config(scheduler: Any, name: str, default: Any = None) -> Any:
    config = getattr(scheduler, "config", {})
    return config.get(name, default) if hasattr(config, "get") else getattr(config, name, default)


def is_flow(scheduler: Any) -> bool:
    """Whether its states are `(1 - s) x0 + s eps`."""
    flow_only = hasattr(scheduler, "scale_noise") or type(scheduler).__name__.startswith("LTXEuler")
    return bool(
        flow_only or _config(scheduler, "use_flow_sigmas") or _config(scheduler, "prediction_type") == "flow_prediction"
    )


def is_exploding(scheduler: Any) -> bool:
    """Whether its states are `x0 + s eps` (Euler, Heun, LMS, KDPM2, EDM): these shrink the network's input."""
    ancestral = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE", "EDM", "CosineDPM", "CMStochastic")
    return not is_flow(scheduler) and type(scheduler).__name__.startswith(ancestral)


def prediction_of(scheduler: Any) -> str:
    """What the scheduler takes its network to predict: epsilon, v, x0 or flow."""
    if is_flow(scheduler):
        return "flow"
    if not hasattr(scheduler, "sigmas") and not hasattr(scheduler, "alphas_cumprod"):
        return "v"  # iPNDM, the one class that has its own alphas and betas and no choice
    return _NAMES.get(str(_config(scheduler, "prediction_type", "epsilon")), "epsilon")


def _level(scheduler: Any, t: Tensor) -> float | None:
    """`scheduler.sigmas` at the coming step, or the stage between two of them."""
    if not isinstance(getattr(scheduler, "sigmas", None), Tensor):
        return None
    started = scheduler.step_index is not None
    if not started:
        if not hasattr(scheduler, "_init_step_index"):
            return float(scheduler.sigmas[scheduler.index_for_timestep(t)])
        scheduler._init_step_index(t)
    middle = getattr(scheduler, "mid_point_sigma", None)
    if middle is not None:
        return float(middle)
    between = getattr(scheduler, "sigmas_interpol", None)
    if between is not None and not scheduler.state_in_first_order:
        ahead = int(hasattr(scheduler, "sigmas_up"))  # the ancestral class has one entry more at the front
        return float(between[int(scheduler.step_index) - ahead])
    return float(scheduler.sigmas[scheduler.step_index])


def place(scheduler: Any, t: Tensor) -> tuple[float, float]:
    """The scheduler's own alpha and sigma of the state that it is about to step from."""
    level = _level(scheduler, t)
    if level is not None:
        return _split(scheduler, level)
    if hasattr(scheduler, "alphas_cumprod"):
        bar = float(scheduler.alphas_cumprod[int(t)])
        return bar**0.5, (1 - bar) ** 0.5
    if hasattr(scheduler, "alphas") and hasattr(scheduler, "betas"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return float(scheduler.alphas[scheduler.step_index]), float(scheduler.betas[scheduler.step_index])
    raise ArgumentError(
        f"{type(scheduler).__name__} keeps neither sigmas nor alphas_cumprod: "
        "give place=, a function (scheduler, t) -> (alpha, sigma)"
    )


def _split(scheduler: Any, level: float) -> tuple[float, float]:
    """Alpha and sigma of a state at `level`, an entry of `sigmas`."""
    if is_flow(scheduler):
        return 1 - level, level
    if is_exploding(scheduler):
        return 1.0, level
    shrink = (1 + level**2) ** -0.5
    return shrink, shrink * level


def end(scheduler: Any) -> tuple[float, float] | None:
    """Alpha and sigma of the sample, where the scheduler keeps sigmas; None where it does not say."""
    sigmas = getattr(scheduler, "sigmas", None)
    return _split(scheduler, float(sigmas[-1])) if isinstance(sigmas, Tensor) else None


def encode(scheduler: Any, prediction: str, state: Tensor, x0: Tensor, alpha: float, sigma: float) -> Tensor:
    """What the network would have predicted for the scheduler to take `x0` as its estimate."""
    if prediction == "x0":
        return x0
    if type(scheduler).__name__.startswith(("EDM", "CosineDPM")):
        return _edm_output(scheduler, state, x0, sigma)
    if prediction == "flow":
        towards_data = type(scheduler).__name__.startswith("MiniMax")
        return (x0 - state) / sigma if towards_data else (state - x0) / sigma
    if prediction == "v":
        norm = (alpha**2 + sigma**2) ** 0.5  # a variance-exploding state has to be shrunk first
        return (alpha * state / norm**2 - x0) * (norm / sigma)
    return (state - alpha * x0) / sigma


def _edm_output(scheduler: Any, state: Tensor, x0: Tensor, sigma: float) -> Tensor:
    data = float(_config(scheduler, "sigma_data", 0.5))
    skip = data**2 / (sigma**2 + data**2)
    out = sigma * data / (sigma**2 + data**2) ** 0.5
    return (x0 - skip * state) / (-out if _config(scheduler, "prediction_type") == "v_prediction" else out)


def upcast(scheduler: Any) -> None:
    """Its float32 tables as float64 (the same numbers): what it computes from them is then exact, where it lets."""
    for name, value in vars(scheduler).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32 and name != "timesteps":
            setattr(scheduler, name, value.double())
    if hasattr(scheduler, "betas") and hasattr(scheduler, "alphas") and not hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas = (1 - scheduler.betas**2).sqrt()  # iPNDM's pair, which must not part by rounding


def _known(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    names = inspect.signature(function).parameters
    return {name: options[name] for name in options if name in names}


def training_steps(scheduler: Any) -> float:
    """`num_train_timesteps`: what the time 1 of a flow model is told as."""
    return float(_config(scheduler, "num_train_timesteps", 1000) or 1000)


def prepared(scheduler: Any, steps: int | None = None, **options: Any) -> Any:
    """A copy of the scheduler with its timesteps set."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(**({} if steps is None else {"num_inference_steps": steps}), **_known(own.set_timesteps, options))
    return own


def host(
    scheduler: Any,
    steps: int | None = None,
    *,
    prediction: str | None = None,
    exact: bool = True,
    place: Any = place,
    **options: Any,
) -> Host:
    """A scheduler as a host for `probe`; the state may be edited between its steps, so that stepwise weights come out.

    Args:
        scheduler: a configured scheduler; it is copied for every run and never changed.
        steps: `num_inference_steps`; None where `timesteps=` or `sigmas=` say it.
        prediction: overrides what its configuration says the network predicts.
        exact: raise its float32 tables to float64 first, so that rounding does not hide in the weights.
        place: `(scheduler, t) -> (alpha, sigma)` of a state, for classes that keep neither sigmas nor alphas_cumprod.
        options: go to `set_timesteps` or `step`, whichever has such a parameter (timesteps, sigmas, mu, eta, ...).
    """
    for_times, for_step = _known(scheduler.set_timesteps, options), _known(scheduler.step, options)
    unknown = set(options) - set(for_times) - set(for_step)
    if unknown:
        raise ArgumentError(
            f"{type(scheduler).__name__} has no option {', '.join(sorted(unknown))}: "
            "neither set_timesteps nor step takes it"
        )

    def run(script: Script) -> Tensor:
        own = prepared(scheduler, steps, **for_times)
        if exact:
            upcast(own)
        if hasattr(own, "noise_sampler"):
            own.noise_sampler = lambda first, second: script.increment(float(first), float(second))
        kind = prediction or prediction_of(own)
        state = script.start()
        for i, t in enumerate(own.timesteps):
            if i > 0:
                state = script.edit(state)
            if hasattr(own, "scale_model_input"):
                own.scale_model_input(state, t)
            alpha, sigma = place(own, t)
            x0 = script.output(state, float(t), alpha, sigma)
            state = own.step(encode(own, kind, state, x0, alpha, sigma), t, state, return_dict=False, **for_step)[0]
        return state

    return run
