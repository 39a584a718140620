"""The network in a diffusers pipeline: its family, what it predicts, and what one call of it means to a table.

Families are named as `FewStepScheduler` has them: "vp" (Stable Diffusion, PixArt, DiT), "flow" (SD3, Flux, Wan, LTX),
"edm" (EDM's own preconditioning: Playground 2.5) and "continuous" (Stable Video Diffusion). A state is kept as the
network's input, so a variance-exploding table is scaled down for all but flow models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fewstep.coordinates import Coordinates
from fewstep.errors import ArgumentError
from fewstep.noise import EDM, Discrete, Flow, NoiseSchedule, VPCosine, VPLinear
from fewstep.tableau import Tableau

PREDICTIONS: Mapping[str, Any] = {
    "epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"
}  # fmt: skip
NEAR = 1e-4  # of angles atan2(sigma, alpha): float32 tables differ from float64 ones by 1e-7


class Host(NamedTuple):
    """A diffusers network: its family, its noise schedule, what it predicts."""

    family: str
    noise: NoiseSchedule
    prediction: str
    trained: int
    sigma_data: float


def host_of(config: Mapping[str, Any], table: Tableau) -> Host:
    """The network that a scheduler's configuration describes; what it leaves open is taken from the table."""
    family = config.get("family") or _family(table.noise)
    prediction = config.get("prediction_type") or ("flow_prediction" if family == "flow" else "epsilon")
    if prediction not in PREDICTIONS or (family == "flow") != (prediction == "flow_prediction"):
        raise ArgumentError(
            f"prediction_type={prediction!r} of a {family!r} network is not supported: one of "
            f"{', '.join(PREDICTIONS)} is, the last for flow models only"
        )
    trained = int(config.get("num_train_timesteps") or 1000)
    if family == "flow":
        noise: NoiseSchedule = Flow()
    elif family == "vp":
        noise = _discrete(config, trained)
    elif family in ("edm", "continuous"):
        noise = EDM(float(config.get("sigma_min") or 0.002), float(config.get("sigma_max") or 80.0))
    else:
        raise ArgumentError(f"family={family!r} is not known: vp, flow, edm or continuous")
    return Host(family, noise, prediction, trained, float(config.get("sigma_data") or 0.5))


def _family(noise: NoiseSchedule | None) -> str:
    return "flow" if isinstance(noise, Flow) else "edm" if isinstance(noise, EDM) else "vp"


def _discrete(config: Mapping[str, Any], n: int) -> Discrete:
    first, last = float(config.get("beta_start") or 1e-4), float(config.get("beta_end") or 0.02)
    kind = config.get("beta_schedule") or "linear"
    if config.get("trained_betas") is not None:
        noise = Discrete.from_betas(list(config["trained_betas"]))
    elif kind in ("linear", "scaled_linear"):
        noise = getattr(Discrete, kind)(first, last, n)
    elif kind == "squaredcos_cap_v2":
        noise = Discrete.cosine(n)
    else:
        raise ArgumentError(f"beta_schedule={kind!r} is not known: give trained_betas, the list of its betas")
    return noise.rescaled_to_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else noise


class Meaning(NamedTuple):
    """Of one network call: what the network is told, its input's scale, and `x0 = skip * input + gain * output`."""

    told: float
    scale: float
    skip: float
    gain: float


def meanings(table: Tableau, host: Host) -> list[Meaning]:
    """What each network call of a table means to a network.

    Raises:
        ArgumentError: the table was made for another kind of network or another noise schedule.
    """
    assert table.noise is not None
    _require_same_noise(table.noise, host)
    calls = [t for t, e in zip(table.model_times.tolist(), table.evaluated, strict=True) if e]
    if host.family in ("edm", "continuous"):
        return [_continuous(*table.noise.scalar_levels(t)[:2], host) for t in calls]
    same = isinstance(table.noise, type(host.noise))
    own = Coordinates(table.noise, table.noise if same else host.noise, PREDICTIONS[host.prediction], "index")
    found: list[Meaning] = []
    for t in calls:
        told, scale, skip, gain = own.at(t)
        told = float(told) * (host.trained / 1000 if host.family == "flow" else 1.0)
        last = host.trained if host.family == "flow" else host.trained - 1
        if not -NEAR <= told / last <= 1 + NEAR:
            raise ArgumentError(
                f"the table calls the network at timestep {told:.6g}, outside its training range 0 to {last}: make a "
                "table for this model's noise schedule"
            )
        told = min(max(told, 0.0), float(last))  # a host's float32 levels end a little beyond
        told = round(told) if abs(told - round(told)) < 1e-9 * max(1.0, abs(told)) else told
        found.append(Meaning(float(told), 1.0 if scale is None else float(scale), float(skip), float(gain)))
    return found


def _continuous(alpha: float, sigma: float, host: Host) -> Meaning:
    """Networks that are told a quarter of log sigma: EDM's, and Stable Video Diffusion's."""
    level = sigma / alpha
    if not host.noise.t_min * (1 - 1e-6) <= level <= host.noise.t_max * (1 + 1e-6):
        raise ArgumentError(
            f"the table calls the network at noise level {level:.6g}, outside {host.noise.t_min:g} to "
            f"{host.noise.t_max:g}: make a table for this model's range"
        )
    told = math.log(level) / 4
    if host.family == "continuous":
        root = math.hypot(1.0, level)
        if host.prediction == "v_prediction":
            return Meaning(told, 1 / root / alpha, 1 / root, -level / root)
        skip, gain = (0.0, 1.0) if host.prediction == "sample" else (root, -level)
        return Meaning(told, 1 / root / alpha, skip, gain)
    data, root = host.sigma_data, math.hypot(level, host.sigma_data)
    sign = -1.0 if host.prediction == "v_prediction" else 1.0
    return Meaning(told, 1 / root / alpha, data**2 / root, sign * level * data / root)


def _require_same_noise(noise: NoiseSchedule, host: Host) -> None:
    kinds = {"vp": (Discrete, VPLinear, VPCosine, EDM), "flow": (Flow,), "edm": (EDM,), "continuous": (EDM,)}
    if not isinstance(noise, kinds[host.family]):
        raise ArgumentError(
            f"the table was made for {noise!r}, this pipeline has a {host.family!r} network: use a table of this model"
        )
    if not isinstance(noise, Discrete):
        return
    assert isinstance(host.noise, Discrete)
    mine, theirs = len(noise.alphas_cumprod), len(host.noise.alphas_cumprod)
    if mine != theirs:
        raise ArgumentError(
            f"the table was made for {mine} training steps, this model has num_train_timesteps={theirs}: use a table "
            "of this model"
        )
    angle = lambda bar: math.atan2(math.sqrt(1 - bar), math.sqrt(bar))  # noqa: E731
    for index in spread(mine):
        one, two = noise.alphas_cumprod[index], host.noise.alphas_cumprod[index]
        if abs(angle(one) - angle(two)) > NEAR * angle(two):
            raise ArgumentError(
                f"the table was made for other betas: alphas_cumprod[{index}] is {one:.6g} there and {two:.6g} in this "
                "pipeline. Use a table of this model"
            )


def spread(n: int) -> list[int]:
    """Nine indices from the first to the last of n."""
    return sorted({round(k * (n - 1) / 8) for k in range(9)})
