"""From where to where a sampler goes: the ends that all grids, the teacher and the scores of one search share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.errors import ArgumentError, TimesError
from fewstep.noise import EDM, NoiseSchedule
from fewstep.times.ends import End, span
from fewstep.times.grids import Ends, finite_ratio
from fewstep.times.resample import log_linear


@dataclass(frozen=True)
class Window:
    """The two ends of a search, in the noise schedule's time.

    Attributes:
        noise: the network's noise schedule.
        start: time of the first state; None for `noise.t_max`, where it is noise alone. Below that it is
            `alpha image + sigma noise` (image-to-image).
        end: `zero` (the last state is clean), `min` (it is at `noise.t_min`), or its time.
    """

    noise: NoiseSchedule
    start: float | None = None
    end: End = "zero"

    @staticmethod
    def checked(noise: NoiseSchedule, start: float | None, end: End) -> Window:
        """The window, if it lies in the network's range.

        Errors: `TimesError` for an end outside the range, `ArgumentError` for another word.
        """
        if isinstance(end, str):
            if end not in ("zero", "min"):
                raise ArgumentError(f'end is {end!r}: give "zero" (sigma 0), "min" (the network\'s t_min), or a time')
        elif float(end) in (noise.t_clean, noise.t_min):
            end = "zero" if float(end) == noise.t_clean else "min"
        elif not noise.t_min <= end < noise.t_max:
            raise TimesError(f"end is {end:.6g}, outside the network's range {span(noise)}: give a time inside it")
        window = Window(noise, None if start is None or float(start) == noise.t_max else float(start), end)
        if start is not None and not window.low < start <= noise.t_max:
            raise TimesError(
                f"start is {start:.6g}, and the network's range is {span(noise)}: give a time above "
                f"{window.low:.6g} and up to {noise.t_max:.6g}"
            )
        return window

    @staticmethod
    def start_of(noise: NoiseSchedule, strength: float) -> float:
        """The time at which image-to-image of this strength starts, that part of the network's range of times.

        Errors: `ArgumentError` for a strength outside (0, 1], and for EDM, whose time is the noise level itself.
        """
        if not 0 < strength <= 1:
            raise ArgumentError(f"strength is {strength:g}: give a number above 0 and up to 1 (from noise alone)")
        if isinstance(noise, EDM):
            raise ArgumentError(
                f"strength={strength:g} means a part of the training time, and the time of this network is the noise "
                f"level itself: give the start as a noise level in {span(noise)}"
            )
        return noise.t_min + strength * (noise.t_max - noise.t_min)

    @property
    def ends(self) -> Ends:
        """The arguments that grids take."""
        return {"start": self.start, "end": self.end}

    @property
    def first(self) -> float:
        """Time of the first state."""
        return self.noise.t_max if self.start is None else self.start

    @property
    def last(self) -> float:
        """Time of the last state."""
        if isinstance(self.end, str):
            return self.noise.t_clean if self.end == "zero" else self.noise.t_min
        return float(self.end)

    @property
    def low(self) -> float:
        """The least noisy time at which the network may be asked."""
        return max(self.last, self.noise.t_min)

    @property
    def to_zero(self) -> bool:
        """Whether the last state is clean."""
        return self.last == self.noise.t_clean

    @property
    def whole(self) -> bool:
        """Whether it is the default: from noise alone to a clean sample."""
        return self.start is None and self.to_zero

    def levels(self, n: int) -> Tensor:
        """`n` noise levels `sigma / alpha` over the window, rising, evenly spaced in the logarithm."""
        return log_linear(finite_ratio(self.noise, self.first, self.low).flip(0), n)

    @property
    def words(self) -> str:
        """Both ends, for reports."""
        first = "noise alone" if self.start is None else f"image-to-image from time {self.first:.6g}"
        level = self.noise.ratio(self.first).item()
        last = "sigma 0" if self.to_zero else f"time {self.last:.6g} (sigma/alpha {self.noise.ratio(self.last):.4g})"
        return f"{first} (sigma/alpha {level:.4g}) to {last}"

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "start": self.first,
            "end": self.end,
            "last": self.last,
            "image_to_image": self.start is not None,
            "words": self.words,
        }
