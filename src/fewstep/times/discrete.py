"""The integer time steps of diffusers' schedulers (`timestep_spacing`), for discrete noise schedules only.

diffusers appends its final state itself: sigma = 0 (`final_sigmas_type="zero"`, here `end="zero"`) or index 0
(`"sigma_min"`, `end="min"`). All return `[n+1]` float64 times: the `n` time steps of the host, then that state.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import Discrete, NoiseSchedule
from fewstep.times.ends import falling, whole

End = Literal["zero", "min"]


def _length(noise: NoiseSchedule, n: int) -> tuple[int, int]:
    n = whole(n)
    if not isinstance(noise, Discrete):
        raise ArgumentError("integer time steps need a Discrete noise schedule: use times.uniform for a continuous one")
    length = len(noise.alphas_cumprod)
    if n >= length:
        raise ArgumentError(f"n is {n}, but the schedule has only {length} time steps: give a smaller n")
    return n, length


def _with_end(noise: NoiseSchedule, steps: Tensor, end: End) -> Tensor:
    if end not in ("zero", "min"):
        raise ArgumentError(f'end is {end!r}: give "zero" or "min"')
    return falling(torch.cat([steps, steps.new_tensor([noise.t_clean if end == "zero" else noise.t_min])]))


def _ramp(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64, device="cpu")


def linspace(noise: NoiseSchedule, n: int, *, one_more: bool = False, end: End = "zero") -> Tensor:
    """`timestep_spacing="linspace"`: whole numbers nearest to n uniform ones, both ends included.

    Args:
        noise: a `Discrete` schedule.
        n: number of steps.
        one_more: lay n + 1 and drop the last: DPM-Solver++, UniPC, DEIS and SA-Solver do, DDIM, DDPM and PNDM do not.
        end: the final state.
    """
    n, length = _length(noise, n)
    count = n + 1 if one_more else n
    # A single step is numpy's linspace(0, last, 1) = [0]: the host then starts at the image, which no sampler can use.
    if count == 1:
        raise ArgumentError("linspace with one step is the clean end in diffusers: give n=2 or more, or use trailing")
    steps = (_ramp(count) * ((length - 1) / (count - 1))).round().flip(0)
    return _with_end(noise, steps[:n], end)


def leading(noise: NoiseSchedule, n: int, *, one_more: bool = False, offset: int = 0, end: End = "zero") -> Tensor:
    """`timestep_spacing="leading"`: every k-th index from `offset` (diffusers' `steps_offset`, 1 for Stable Diffusion).

    Args:
        noise: a `Discrete` schedule.
        n: number of steps.
        one_more: as in `linspace`.
        offset: added to every index.
        end: the final state.
    """
    n, length = _length(noise, n)
    count = n + 1 if one_more else n
    steps = (_ramp(count) * (length // count)).flip(0)[:n] + whole(offset, "offset", least=0)
    if steps[0] > length - 1:
        raise ArgumentError(
            f"offset is {offset}, which moves the first time step past {length - 1}: give a smaller one"
        )
    return _with_end(noise, steps, end)


def trailing(noise: NoiseSchedule, n: int, *, end: End = "zero") -> Tensor:
    """`timestep_spacing="trailing"`: every k-th index counted from the last (Lin et al. 2023, table 2)."""
    n, length = _length(noise, n)
    return _with_end(noise, (length - _ramp(n) * (length / n)).round() - 1, end)
