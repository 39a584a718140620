"""`from_sampler`: any foreign sampler as a table.

A k-diffusion (or ComfyUI, or WebUI) sampler function, a diffusers scheduler, or any `f(model, x, ...)` is played
scripted outputs (see `fewstep.probe`); what comes out is exact to rounding. A sampler that is not linear raises
`NotATable` with the size of the defect and the row where it is largest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.adapters import diffusers, k_diffusion
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule
from fewstep.probe import Host, Weights, probe
from fewstep.script import Script
from fewstep.tableau import Tableau
from fewstep.told import Prediction, at_model_times


@dataclass(frozen=True)
class _Source:
    """A foreign sampler, made ready: how to run it, and what its numbers mean."""

    host: Host
    noise: NoiseSchedule
    told: Callable[[float, float], float]
    """What it tells its network and the level of the state -> the time in `noise`'s unit."""
    prediction: Prediction
    name: str
    end: tuple[float, float] | None = None
    """The host's alpha and sigma of the sample, and of the start, where it says."""
    start: tuple[float, float] | None = None
    spread: float | None = None
    """The standard deviation of the noise that the host's users start from, where it says."""


def from_sampler(
    sampler: Any,
    *args: Any,
    noise: NoiseSchedule | None = None,
    prediction: Prediction | None = None,
    at_model_time: bool = True,
    ndim: int = 4,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-4,
    **options: Any,
) -> Tableau:
    """The table of a foreign sampler, exact to the rounding of its arithmetic.

    Args:
        sampler: a diffusers scheduler; a k-diffusion function `(model, x, sigmas, ...)`; or any function
            `(model, x, *args, **options)` that returns the last state and calls `model(x, t)`.
        args: for a scheduler the number of steps; for a function what follows `model` and `x`.
        noise: the noise schedule of the network that will run the table. By default the host's own: the scheduler's
            alphas_cumprod, straight paths for flow models, EDM for k-diffusion. Required for any other function.
        prediction: what the network predicts to the sampler; by default x0, or what the scheduler's configuration says.
        at_model_time: where a host tells its network another time than the state's (rounded timesteps), take D as x0 at
            the time told, which is what a `Denoiser` returns, so that the table repeats the host exactly. False takes
            the host's own x0, which is what its formulas are written in.
        ndim: dimensions of a state, the batch included (5 for video schedulers that insist).
        dtype: of the probe; schedulers' float32 tables are raised to it where they allow.
        tolerance: departure from linearity, relative to a row's largest term, that passes as rounding.
        options: passed on to the sampler, to `set_timesteps` or to `step` (sigmas, timesteps, mu, eta, s_churn, ...).

    Returns:
        The table: stepwise for schedulers, whose state can be edited between steps; unrolled for functions.
        `meta["trace"]` tells the form, the sampler, the measured defect, which of its draws the noise columns are, and
        `spread`, the standard deviation of the noise that a scheduler starts from (1 for most, where sigma is 0.998).

    Raises:
        NotATable: not linear (thresholding, clipping, norms), or adaptive; tells by how much and at which row.
        ArgumentError: an option the host does not have, or a missing `noise`.
    """
    if hasattr(sampler, "set_timesteps") and hasattr(sampler, "step"):
        source = _scheduler(sampler, args, noise, prediction, options)
    elif not callable(sampler):
        raise ArgumentError(
            f"cannot trace {type(sampler).__name__}: give a diffusers scheduler or a function (model, x, ...)"
        )
    elif k_diffusion.takes(sampler, "sigmas") or k_diffusion.takes(sampler, "sigma_max"):
        source = _k_diffusion(sampler, args, noise, options)
    else:
        source = _function(sampler, args, noise, prediction or "x0", options)
    weights = probe(source.host, ndim=ndim, dtype=dtype, tolerance=tolerance)
    return _tableau(source, weights, at_model_time)


def _name(sampler: Any) -> str:
    return getattr(sampler, "__name__", None) or type(sampler).__name__


def _scheduler(
    scheduler: Any,
    args: tuple[Any, ...],
    noise: NoiseSchedule | None,
    prediction: Prediction | None,
    options: dict[str, Any],
) -> _Source:
    host = diffusers.host(scheduler, *args, prediction=prediction, **options)
    ready = diffusers.prepared(scheduler, *args, **options)
    kind: Any = prediction or diffusers.prediction_of(ready)
    trained = diffusers.training_steps(ready)
    schedule = noise or _own_noise(ready)
    told: Callable[[float, float], float]
    if isinstance(schedule, Discrete):
        told = lambda told, _: told  # noqa: E731
    elif isinstance(schedule, Flow) and diffusers.is_flow(ready) and not type(ready).__name__.startswith("MiniMax"):
        told = lambda told, _: _unshifted(schedule, told / trained)  # noqa: E731
    else:
        told = lambda _, ratio: _time(schedule, ratio)  # noqa: E731
    spread = getattr(ready, "init_noise_sigma", None)
    return _Source(
        host, schedule, told, kind, _name(scheduler), diffusers.end(ready),
        spread=None if spread is None else float(spread),
    )  # fmt: skip


def _own_noise(ready: Any) -> NoiseSchedule:
    """The noise schedule of a scheduler's network."""
    if diffusers.is_flow(ready):
        return Flow()
    if hasattr(ready, "alphas_cumprod"):
        return Discrete.from_alphas_cumprod(ready.alphas_cumprod)
    if diffusers.is_exploding(ready):
        return _edm(ready.sigmas)
    return Flow()  # iPNDM: alpha and sigma of its own, from pure noise


def _edm(sigmas: Tensor) -> EDM:
    """EDM's own range, or wider where the levels are."""
    usual = EDM()
    return EDM(min(usual.sigma_min, float(sigmas[sigmas > 0].min())), max(usual.sigma_max, float(sigmas.max())))


def _k_diffusion(sampler: Any, args: tuple[Any, ...], noise: NoiseSchedule | None, options: dict[str, Any]) -> _Source:
    sigmas = options.get("sigmas", args[0] if args else None)
    start = end = None
    if isinstance(sigmas, Tensor):
        sigmas = sigmas.to(device="cpu", dtype=torch.float64)
        start, end = (1.0, float(sigmas[0])), (1.0, float(sigmas[-1]))
        args = (sigmas, *args[1:]) if args else args
        options = {**options, "sigmas": sigmas} if "sigmas" in options else options
        noise = noise or _edm(sigmas)
    schedule = noise or EDM()
    host = k_diffusion.host(sampler, *args, **options)
    return _Source(host, schedule, lambda told, _: _time(schedule, told), "x0", _name(sampler), end, start)


def _function(
    sampler: Any, args: tuple[Any, ...], noise: NoiseSchedule | None, prediction: Prediction, options: dict[str, Any]
) -> _Source:
    if noise is None:
        raise ArgumentError(
            "noise is missing: give the noise schedule whose times the sampler tells its network, "
            "e.g. fewstep.noise.VPLinear()"
        )
    schedule = noise

    def run(script: Script) -> Tensor:
        def model(x: Tensor, t: Any, *_: Any, **__: Any) -> Tensor:
            told = float(t.reshape(-1)[0]) if isinstance(t, Tensor) else float(t)
            alpha, sigma = schedule.alpha(told).item(), schedule.sigma(told).item()
            x0 = script.output(x, told, alpha, sigma)
            return diffusers.encode(None, prediction, x, x0, alpha, sigma)

        return sampler(model, script.start(), *args, **options)

    return _Source(run, schedule, lambda told, _: told, prediction, _name(sampler))


def _time(noise: NoiseSchedule, ratio: float) -> float:
    return noise.t_max if ratio == float("inf") else noise.time_of_ratio(ratio).item()


def _unshifted(noise: Flow, s: float) -> float:
    """The time t of Flow(shift) at which sigma is s."""
    return s / (noise.shift - (noise.shift - 1) * s)


def _levels(source: _Source, weights: Weights) -> Tensor:
    """`[S, 2]` the host's alpha and sigma of each state; the sample's by the identities where the host does not say."""
    rows = [(r.alpha, r.sigma) for r in weights.calls]
    alpha, sigma = rows[0]
    assert alpha is not None and sigma is not None
    last = source.end
    if last is None:
        mean = float(weights.start[-1] * alpha + weights.outputs[-1].sum() + weights.offset[-1])
        std = float((weights.start[-1] * sigma) ** 2 + (weights.noise[-1] ** 2).sum()) ** 0.5
        floor = max(1e-9, 10 * weights.defect)
        last = (1.0, 0.0) if std < floor and abs(mean - 1) < floor else (mean, std)
    return torch.tensor([*rows, last], dtype=torch.float64, device="cpu")


def _tableau(source: _Source, weights: Weights, at_model_time: bool) -> Tableau:
    levels = _levels(source, weights)
    stepwise = weights.stepwise()
    size = len(levels)
    if stepwise is not None:
        a, b, c, k = stepwise
    else:
        a = torch.zeros(size, size, dtype=torch.float64, device="cpu")
        a[:, 0], b, c, k = weights.start, weights.outputs, weights.noise, weights.offset
    b = torch.cat([b, b.new_zeros(size, 1)], 1)
    begun = bool(weights.start[0] == 1 and not (weights.noise[0] != 0).any() and weights.offset[0] == 0)
    if begun:  # the first network call is on the start itself
        a[0, 0] = 0.0
    else:  # something happened before it (churn): the start is a row of its own
        a = torch.nn.functional.pad(a, (0, 0, 1, 0)) if stepwise is None else a
        a, b, c, k = _with_start(a, b, c, k)
        levels = torch.cat([_start_level(source, weights, levels[0]), levels])
    times, gain, alpha, sigma = _frame(source.noise, levels, source.end is not None)
    a = a * gain[:, None] / gain
    b, c, k = b * gain[:, None], c * gain[:, None], k * gain
    ratio = (levels[:, 1] / levels[:, 0]).tolist()
    told = [source.told(r.told, q) for r, q in zip(weights.calls, ratio[len(ratio) - size :], strict=False)]
    model_times = times.clone()
    model_times[len(times) - size : -1] = torch.tensor(told, dtype=torch.float64, device="cpu")
    if at_model_time:
        a, b = at_model_times(source.noise, source.prediction, a, b, times, model_times, alpha, sigma)
    shifted = bool((k != 0).any())
    evaluated = (False,) * (len(times) - size) + (True,) * (size - 1) + (False,)
    table = Tableau(
        A=a, B=b, C=c, times=times, model_times=model_times, alpha=alpha, sigma=sigma, evaluated=evaluated,
        K=k[:, None][:, : int(shifted)], name=source.name, noise=source.noise,
        constants=(torch.ones((), dtype=torch.float32, device="cpu"),) * shifted,
        meta={"trace": {
            "sampler": source.name, "form": "stepwise" if stepwise is not None else "unrolled only",
            "defect": weights.defect, "draws": list(weights.draws),
            **({} if source.spread is None else {"spread": source.spread * gain[0].item()}),
        }},
    )  # fmt: skip
    return _expecting(table, max(1e-9, 100 * weights.defect))


def _start_level(source: _Source, weights: Weights, first: Tensor) -> Tensor:
    """`[1, 2]` alpha and sigma of the start below a first state that is not the start itself."""
    if source.start is not None:
        return torch.tensor([source.start], dtype=torch.float64, device="cpu")
    variance = (first[1] ** 2 - (weights.noise[0] ** 2).sum()).clamp_min(0)
    return torch.stack([first[0], variance.sqrt()])[None] / weights.start[0]


def _with_start(a: Tensor, b: Tensor, c: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same rows below a new row 0, the start; `a` (unrolled) already has its empty row."""
    column = torch.zeros(len(a), 1, dtype=torch.float64, device="cpu")
    pad = torch.nn.functional.pad
    return torch.cat([a[:, :1], column, a[:, 1:]], 1), pad(b, (1, 0, 1, 0)), pad(c, (0, 0, 1, 0)), pad(k, (1, 0))


def _frame(noise: NoiseSchedule, levels: Tensor, told_end: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(times, gain, alpha, sigma)` in the noise schedule's coordinates: state = gain * the host's state."""
    ratio = levels[:, 1] / levels[:, 0]
    times = torch.tensor(
        [noise.t_clean if q == 0 else _time(noise, q) for q in ratio.tolist()], dtype=torch.float64, device="cpu"
    )
    alpha, sigma = noise.alpha(times), noise.sigma(times)
    gain = (alpha + sigma) / levels.sum(1)
    gain = torch.where((gain - 1).abs() < 1e-7, torch.ones_like(gain), gain)  # the host's own frame, up to its rounding
    if not told_end and bool((gain[:-1] == 1).all()):
        gain[-1] = 1.0  # a sample of another spread than its level's (PNDM on v) is the host's own affair
    return times, gain, alpha, sigma


def _expecting(table: Tableau, tolerance: float) -> Tableau:
    """Defects of the identities that the host has, written down."""
    found: list[str] = []
    for which, defect in zip(("mean", "variance"), table.defects(), strict=True):
        scale = table.sigma**2 + 1 if which == "variance" else table.alpha.abs() + 1
        worst = int((defect.abs() / scale).argmax())
        if abs(defect[worst].item()) > tolerance * float(scale[worst]):
            found.append(f"{which} of row {worst} off by {defect[worst].item():.3g}, as traced")
    return replace(table, expected=tuple(found)) if found else table
