"""The two ends of a grid of times, and the checks that every grid passes."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, TimesError
from fewstep.noise import NoiseSchedule, as_float64

End = Literal["zero", "min", "append"] | float
Curve = Callable[[float, float, int], Tensor]
"""`curve(first, last, steps)`: `steps + 1` times between two given ones."""


def grid(
    noise: NoiseSchedule, n: int, curve: Curve, start: float | None = None, end: End = "zero", clip: bool = False
) -> Tensor:
    """Lays a curve between the two ends that `start` and `end` ask for, and sets the ends exactly.

    Args:
        noise: the noise schedule whose times these are.
        n: number of steps, at least 1.
        curve: `curve(first, last, steps)` returns `steps + 1` times; it never sees the clean time.
        start: time of the first state, `noise.t_max` when None. Less for image-to-image.
        end: "zero" lays the curve down to `noise.t_min` and then replaces its last time by `noise.t_clean`, so the last
            network call is well above `t_min`; "min" stops at `t_min`, as papers do; "append" lays `n` points down to
            `t_min` and appends `t_clean`, as k-diffusion, EDM and diffusers do; a number is the time of the last state.
        clip: move a start or an end that lies outside the network's range to the range's end, with a warning.

    Returns:
        `[n+1]` float64 times, strictly falling.

    Errors: `ArgumentError` for n, `TimesError` for a start or an end outside the range and for times that coincide.
    """
    n = whole(n)
    first, last = _first_and_last(noise, start, end, clip)
    clean = end == "zero" or last == noise.t_clean
    appended = end == "append"
    last = noise.t_min if appended or clean else last
    steps = n - 1 if appended else n
    times = as_float64(curve(first, last, steps)).clone() if steps else as_float64([first])
    times[0] = first
    if steps:
        times[-1] = noise.t_clean if clean and not appended else last
    if appended:
        times = torch.cat([times, times.new_tensor([noise.t_clean])])
    return falling(times)


def whole(n: int, name: str = "n", least: int = 1) -> int:
    """The argument as an int; an `ArgumentError` that names it when it is not a whole number, or too small."""
    try:
        value = -1 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        value = -1
    if value < least:
        raise ArgumentError(f"{name} is {n!r}: give a whole number of steps, at least {least}")
    return value


def span(noise: NoiseSchedule) -> str:
    """The network's range, for messages."""
    return f"[{noise.t_min:.6g}, {noise.t_max:.6g}]"


def _first_and_last(noise: NoiseSchedule, start: float | None, end: End, clip: bool) -> tuple[float, float]:
    """Start and end as numbers inside the network's range; the clean time is the one allowed end below it."""
    if isinstance(end, str) and end not in ("zero", "min", "append"):
        raise ArgumentError(f'end is {end!r}: give "zero", "min", "append" or a time')
    first = noise.t_max if start is None else _inside(noise, "start", float(start), clip)
    if isinstance(end, str):
        last = noise.t_clean if end == "zero" else noise.t_min
    else:
        last = float(end) if float(end) == noise.t_clean else _inside(noise, "end", float(end), clip)
    if not first > max(last, noise.t_min):
        low = max(last, noise.t_min)
        raise TimesError(
            f"start is {first:.6g}, not above the end of the grid at {low:.6g}: "
            f"give a start in ({low:.6g}, {noise.t_max:.6g}]"
        )
    return first, last


def _inside(noise: NoiseSchedule, name: str, time: float, clip: bool) -> float:
    """The time, which must lie in the network's range; moved there, with a warning, when clip is set."""
    nearest = min(max(time, noise.t_min), noise.t_max)
    if nearest != time:
        if not clip or time != time:
            raise TimesError(
                f"{name} is {time:.6g}, outside the network's range {span(noise)}: give a time inside it, or clip=True"
            )
        warnings.warn(
            f"{name} moved from {time:.6g} to {nearest:.6g}: the network's range is {span(noise)}", stacklevel=5
        )
    return nearest


def falling(times: Tensor) -> Tensor:
    """The times, if they fall strictly also in float32, in which networks are told of them.

    Errors: `TimesError` with the two indices.
    """
    bad = torch.nonzero(~(times[1:] < times[:-1])).flatten().tolist()
    if bad:
        k = bad[0]
        word = "equal" if times[k] == times[k + 1] else "rising"
        raise TimesError(
            f"times {k} and {k + 1} are {word} ({times[k].item():.9g}, {times[k + 1].item():.9g}): "
            "times must fall strictly, from noisy to clean; use fewer steps or drop one"
        )
    same = torch.nonzero(~(times[1:].float() < times[:-1].float())).flatten().tolist()
    if same:
        k = same[0]
        raise TimesError(
            f"times {k} and {k + 1} are equal once rounded to float32 ({times[k].item():.9g}): "
            "use fewer steps or drop one"
        )
    return times


def check(
    times: Sequence[float] | Tensor,
    noise: NoiseSchedule,
    *,
    clip: bool = False,
    integer: bool = False,
    merge: bool = False,
) -> Tensor:
    """Times from a user, checked: finite, strictly falling, inside the network's range.

    The network is called at all times but the last, so these must lie in `[noise.t_min, noise.t_max]`; the last may
    also be `noise.t_clean`, or anything between.

    Args:
        times: noisy to clean, at least two.
        noise: the noise schedule whose times they are.
        clip: move times outside the range to its ends, with a warning that says which moved. Errors of rounding (1e-9
            of the range) are always put right.
        integer: round all to whole numbers first, as hosts with integer time steps do.
        merge: drop repeated times instead of refusing them.

    Returns:
        `[n+1]` float64 times on the CPU.

    Errors: `TimesError`, with the indices and the range.
    """
    t = as_float64(times).detach().clone()
    if t.ndim != 1 or len(t) < 2:
        raise TimesError(f"times has shape {tuple(t.shape)}: give a flat list of at least two times, noisy to clean")
    bad = torch.nonzero(~torch.isfinite(t)).flatten().tolist()
    if bad:
        raise TimesError(f"time {bad[0]} is {t[bad[0]].item()}: times must be finite numbers")
    t = t.round() if integer else t
    if t[-1] > t[0]:
        raise TimesError(
            f"times rise from {t[0].item():.6g} to {t[-1].item():.6g}: give them from noisy to clean (reversed)"
        )
    low = torch.full_like(t, noise.t_min)
    low[-1] = noise.t_clean
    inside = torch.minimum(torch.maximum(t, low), torch.full_like(t, noise.t_max))
    moved = torch.nonzero((inside - t).abs() > 1e-9 * (noise.t_max - noise.t_min)).flatten().tolist()
    if moved:
        what = ", ".join(f"time {k} = {t[k].item():.9g}" for k in moved[:5]) + (", ..." if len(moved) > 5 else "")
        if not clip:
            raise TimesError(
                f"{what} outside the network's range {span(noise)} (the last time may be {noise.t_clean:g}): "
                "change them, or give clip=True"
            )
        warnings.warn(f"moved into the network's range {span(noise)}: {what}", stacklevel=2)
    if merge:
        keep = torch.cat([torch.ones(1, dtype=torch.bool, device="cpu"), inside[1:] != inside[:-1]])
        inside = inside[keep]
        if len(inside) < 2:
            raise TimesError("all times are equal: give at least two different ones")
    return falling(inside)
