"""Noise schedules: `x_t = alpha(t) x_0 + sigma(t) eps`.

A schedule is a small frozen value that knows its own time unit (seconds of a VP process, the integer index of a
discrete one, sigma itself for EDM). Every function takes a float or a float64 tensor and returns float64 tensors on the
CPU, whatever the user's default device or dtype, and is differentiable in the time. `lam` is half the log
signal-to-noise ratio, `log(alpha / sigma)`: plus infinity at the clean end, minus infinity where alpha is 0 (flow
models).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fewstep.errors import FileFormatError
from fewstep.noise.base import NoiseSchedule, Time, as_float64
from fewstep.noise.continuous import EDM, Flow, VPCosine, VPLinear
from fewstep.noise.discrete import Discrete

FAMILIES: dict[str, type[NoiseSchedule]] = {c.family: c for c in (VPLinear, VPCosine, Discrete, EDM, Flow)}


def from_dict(record: dict[str, Any]) -> NoiseSchedule:
    """The schedule that `to_dict` wrote.

    Raises:
        FileFormatError: unknown family or missing fields.
    """
    values = dict(record)
    family = FAMILIES.get(values.pop("family", None))  # type: ignore[arg-type]
    if family is None:
        raise FileFormatError(
            f"unknown noise family {record.get('family')!r}; this version knows {', '.join(FAMILIES)}"
        )
    try:
        if family is Discrete:
            if "recipe" in values:
                name, args = values["recipe"]
                if name not in ("linear", "scaled_linear", "cosine"):
                    raise FileFormatError(f"unknown recipe {name!r} for a discrete noise schedule")
                n = -1 if name != "cosine" else 0
                args = [int(v) if k == n % len(args) else v for k, v in enumerate(args)]
                return getattr(Discrete, name)(*args)
            return Discrete(tuple(values["alphas_cumprod"]))
        return family(**{f.name: values[f.name] for f in fields(family) if f.name in values})  # type: ignore[arg-type]
    except (TypeError, KeyError, ValueError) as error:
        raise FileFormatError(f"damaged record of noise family {family.family!r}: {error}") from error


__all__ = [
    "EDM",
    "FAMILIES",
    "Discrete",
    "Flow",
    "NoiseSchedule",
    "Time",
    "VPCosine",
    "VPLinear",
    "as_float64",
    "from_dict",
]
