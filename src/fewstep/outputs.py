"""What a network may return: checks of one output, with messages that say which samples are at fault."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fewstep.errors import DenoiserError
from fewstep.noise import NoiseSchedule, Time


def as_number(t: Time) -> float:
    """The time as a plain number, whatever graph it is in."""
    return float(t.detach() if isinstance(t, Tensor) else t)


def check_kind(out: Any, x: Tensor, t: Time) -> None:
    """Refuse an output that is no tensor, or has another shape, kind or device than the states x."""
    if not isinstance(out, Tensor):
        problem, cure = f"a {type(out).__name__}", "return a tensor (for a diffusers model, its `.sample`)"
    elif out.shape != x.shape:
        problem, cure = f"shape {tuple(out.shape)}", "return one value per entry of the input"
        if out.ndim == x.ndim > 1 and out.shape[1] == 2 * x.shape[1] and out.shape[2:] == x.shape[2:]:
            cure = "it also predicts variances: return the first half of its channels"
    elif not out.is_floating_point() or out.device != x.device:
        problem, cure = f"{out.dtype} on {out.device}", "return floating point on the states' device"
    else:
        return
    raise DenoiserError(
        f"the network returned {problem} for states {tuple(x.shape)} in {x.dtype} on {x.device} at time "
        f"{as_number(t):g}: {cure}",
        time=as_number(t),
    )


USUAL = 100.0
"""A stable sampler's states are below this many times `1 + sigma`, in the network's units."""


def check_finite(out: Tensor, t: Time, x: Tensor, noise: NoiseSchedule) -> None:
    """Refuse NaN and infinity, naming the samples; the error also says if their states x were sane.

    Waits for the device.
    """
    # One sum is the cheapest look; finite numbers may overflow in it, so only then is every row looked at.
    if math.isfinite(out.sum().item()):
        return
    rows = (~out.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if rows:
        level = 1 + noise.sigma(as_number(t)).item()
        sane = bool((x[rows].abs() <= USUAL * level).all())
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise DenoiserError(
            f"the network's output is not finite at time {as_number(t):g}, in {len(rows)} of {len(out)} samples "
            f"(rows {shown} of the batch): check its dtype (16-bit activations overflow), its input scale and the "
            "noise level",
            time=as_number(t),
            rows=tuple(rows),
            sane=sane,
        )
