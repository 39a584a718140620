"""Published times as data: AYS, GITS, OSS, with their source and with the conventions of the programs that use them.

The same "10 steps" of one list are different times in different programs; `published(..., host=)` follows each exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import Discrete, NoiseSchedule, as_float64, from_dict
from fewstep.times.ends import End, check, grid, whole
from fewstep.times.resample import log_linear, resample

Host = Literal["paper", "diffusers", "comfyui", "a1111"]
HOSTS = ("paper", "diffusers", "comfyui", "a1111")


@dataclass(frozen=True)
class Published:
    """One published list, or one list per number of steps, as printed."""

    name: str
    model: str
    """The network, and the solver if the list was made for one."""
    source: str
    url: str
    convention: str
    """How the numbers are meant, and what programs make of them."""
    unit: Literal["ratio", "flow", "fraction"]
    """ratio: `sigma / alpha`. flow: sigma of a flow model. fraction: of the training steps."""
    lists: dict[int, tuple[float, ...]]
    """Number of network calls -> the numbers, noisy to clean, as printed."""
    decimals: tuple[int, int]
    """Decimals printed of the first and of the last number."""
    indices: tuple[int, ...] = ()
    """The integer time steps that diffusers stores (of ays-if the paper), without the final state; empty if none."""
    comfyui: tuple[float, ...] = ()
    """The numbers that ComfyUI stores, where it has more digits."""
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    """The noise schedule, as its `to_dict` writes it."""

    @property
    def noise(self) -> NoiseSchedule:
        """The noise schedule that the list was made for."""
        return from_dict(self.record)


def _load() -> dict[str, Published]:
    text = resources.files("fewstep.times").joinpath("published.json").read_text(encoding="utf-8")
    entries: dict[str, Published] = {}
    for name, record in json.loads(text).items():
        entries[name] = Published(
            name=name,
            model=record["model"],
            source=record["source"],
            url=record["url"],
            convention=record["convention"],
            unit=record["unit"],
            lists={int(n): tuple(values) for n, values in record["lists"].items()},
            decimals=(record["decimals"][0], record["decimals"][1]),
            indices=tuple(record.get("indices", ())),
            comfyui=tuple(record.get("comfyui", ())),
            record=record["noise"],
        )
    return entries


PUBLISHED: dict[str, Published] = _load()


def published(
    name: str,
    n: int | None = None,
    noise: NoiseSchedule | None = None,
    host: Host = "paper",
    *,
    denoise: float = 1.0,
    clip: bool = False,
) -> Tensor:
    """Published times in the unit of a noise schedule.

    Args:
        name: a key of `PUBLISHED`.
        n: number of steps. None: as many as the list has (it must then be the only one). Where no list has n steps, the
            longest is resampled log-linearly in the printed numbers.
        noise: the noise schedule of your network; None for the one the list was made for. The noise levels
            `sigma / alpha` are kept, and a first or last value that is the range's end but for its last printed digit
            becomes that end.
        host: "paper" keeps the printed end. "comfyui" takes n + 1 values and puts zero noise in place of the last.
            "a1111" (WebUI, Forge) takes n values and appends zero noise. "diffusers" has one length only: integer time
            steps where the list has some, else the numbers, and zero noise last. A list that a host does not have is
            taken as its own ones are.
        denoise: for image-to-image, as ComfyUI has it: of the n steps the last `round(n * denoise)` are kept.
        clip: move times outside the network's range to its ends, with a warning, instead of refusing them.

    Returns:
        `[n+1]` float64 times, noisy to clean; `[round(n * denoise) + 1]` with denoise below 1.

    Errors: `ArgumentError` for an unknown name, host or step count, `TimesError` for times outside the range.
    """
    entry = PUBLISHED.get(name)
    if entry is None:
        raise ArgumentError(f"no published times {name!r}: the names are {', '.join(PUBLISHED)}")
    if host not in HOSTS:
        raise ArgumentError(f"host is {host!r}: give one of {', '.join(HOSTS)}")
    longest = max(entry.lists)
    if n is None and len(entry.lists) > 1:
        raise ArgumentError(f"{name} has lists for {', '.join(map(str, entry.lists))} steps: say which with n")
    steps = longest if n is None else whole(n)
    noise = entry.noise if noise is None else noise
    kept = _kept(steps, denoise, host)
    if host == "diffusers":
        if steps not in entry.lists:
            lengths = ", ".join(map(str, entry.lists))
            raise ArgumentError(f'{name} is stored for {lengths} steps only: give one of them as n, or host="comfyui"')
        if entry.indices:
            return _appended(noise, _same_steps(entry, noise), clip)
    stored = entry.comfyui if host == "comfyui" and entry.comfyui else entry.lists.get(steps, entry.lists[longest])
    times = _times(entry, noise, stored, steps if host == "a1111" else steps + 1)
    if host == "a1111":
        return _appended(noise, times, clip)
    if host != "paper":
        times[-1] = noise.t_clean
    return check(times[-(kept + 1) :], noise, clip=clip)


def listed(name: str) -> Callable[..., Tensor]:
    """A published list as a grid `(noise, n, *, start=None, end="zero", clip=False)` like those of `times.NAMES`.

    It keeps its own first noise level. Ends are those of `fewstep.times.grid`: "zero" puts zero noise in place of the
    last value, as ComfyUI does, "append" resamples to one value fewer and appends it, as WebUI and Forge do.

    Errors: `ArgumentError` for another start; others as in `published`.
    """

    def laid(
        noise: NoiseSchedule, n: int, *, start: float | None = None, end: End = "zero", clip: bool = False
    ) -> Tensor:
        own = published(name, whole(n), noise, clip=clip)[0].item()
        if start is not None and start != own:
            raise ArgumentError(
                f"start is {start:.6g}, and {name} starts at {own:.6g}: leave start out (for image-to-image, "
                'published(..., host="comfyui", denoise=))'
            )
        return grid(noise, n, lambda first, last, steps: published(name, steps, noise, clip=clip), own, end)

    return laid


def _kept(steps: int, denoise: float, host: Host) -> int:
    """How many of the steps ComfyUI's "denoise" leaves."""
    if denoise == 1:
        return steps
    if host != "comfyui":
        raise ArgumentError(f'denoise is {denoise}, which is ComfyUI\'s: give host="comfyui", or leave it at 1')
    kept = round(steps * denoise) if 0 < denoise < 1 else 0
    if not kept:
        raise ArgumentError(f"denoise is {denoise}, which leaves none of {steps} steps: give more, at most 1")
    return kept


def _appended(noise: NoiseSchedule, times: Tensor, clip: bool) -> Tensor:
    return check(torch.cat([times, times.new_tensor([noise.t_clean])]), noise, clip=clip)


def _same_steps(entry: Published, noise: NoiseSchedule) -> Tensor:
    """The host's integer steps; on a schedule of another kind, the times of the same noise level."""
    indices = as_float64([float(k) for k in entry.indices])
    return indices if isinstance(noise, Discrete) else noise.time_of_ratio(entry.noise.ratio(indices))


def _times(entry: Published, noise: NoiseSchedule, stored: tuple[float, ...], count: int) -> Tensor:
    """The stored numbers, resampled to `count`, as times of `noise`."""
    values = as_float64(stored)
    if entry.unit == "fraction":
        own = entry.noise
        indices = values * (own.t_max + 1) - 1
        own_times = resample(indices, count - 1, own) if count != len(values) and count > 1 else indices[:count]
        return own_times if noise == own else noise.time_of_ratio(own.ratio(own_times))
    if count != len(values):
        values = log_linear(values, count)
    printed = values
    times = noise.time_of_ratio(values / (1 - values) if entry.unit == "flow" else values)
    for k, time in ((0, noise.t_max), (-1, noise.t_min)):
        # A printed number stands for the whole interval of its last digit.
        end = noise.ratio(time)
        end = end / (1 + end) if entry.unit == "flow" and torch.isfinite(end) else end
        if abs(printed[k].item() - end.item()) <= 0.5 * 10 ** -entry.decimals[k] + 1e-12:
            times[k] = time
    return times
