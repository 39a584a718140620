"""One seed per sample, so that no result depends on how a batch was split; and three kinds of seeds that never mix.

Noise is drawn on the CPU from a generator that is seeded by (seed, stream): stream 0 is the start, stream m + 1 is
noise column m of a table; a Brownian motion that all columns share has its own (`fewstep.brownian`). The same sample
therefore has the same noise in any batch, on any device, after any retry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self, overload

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import SeedsError

START = 0
"""The stream of the start noise; noise column m of a table is stream m + 1."""


def unit_noise(
    seeds: Sequence[int], shape: tuple[int, ...], stream: int = START, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Unit normals `[len(seeds), *shape]` on the CPU; row k depends on `seeds[k]` and `stream` alone."""
    rows = torch.empty((len(seeds), *shape), dtype=dtype, device="cpu")
    for row, seed in zip(rows, seeds, strict=True):
        state = int(np.random.SeedSequence((int(seed), stream)).generate_state(1, np.uint64)[0]) >> 1
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(state), dtype=dtype, out=row)
    return rows


class Seeds(Sequence[int]):
    """`n` consecutive seeds of one kind. Use one of the three subclasses, whose ranges are disjoint.

    A figure that was selected on the seeds that it is reported on is too good (the winner's curse); a function that
    needs one kind refuses the others.
    """

    kind: ClassVar[str]
    first: ClassVar[int]
    room: ClassVar[int] = 1_000_000_000

    def __init__(self, n: int, offset: int = 0) -> None:
        if type(self) is Seeds:
            raise SeedsError("use CalibrationSeeds, SelectionSeeds or ReportSeeds")
        if n < 1 or offset < 0 or offset + n > self.room:
            raise SeedsError(
                f"n={n} and offset={offset} must satisfy n >= 1, offset >= 0 and offset + n <= {self.room}"
            )
        self.n, self.offset = int(n), int(offset)

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        start = self.first + self.offset
        return range(start, start + self.n)[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    def __contains__(self, seed: object) -> bool:
        return seed in self[:]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n}, offset={self.offset})"

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other) and isinstance(other, Seeds) and (self.n, self.offset) == (other.n, other.offset)
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.n, self.offset))

    @classmethod
    def require(cls, seeds: object, argument: str) -> Self:
        """The seeds, if they are of this kind.

        Raises:
            SeedsError: they are of another kind, or plain integers.
        """
        if not isinstance(seeds, cls):
            raise SeedsError(
                f"{argument} must be {cls.__name__}, not {type(seeds).__name__}: {cls.kind} seeds must not be used for "
                "anything else"
            )
        return seeds


class ReportSeeds(Seeds):
    """Seeds of the figures that are reported, and of nothing else."""

    kind, first = "report", 0


class CalibrationSeeds(Seeds):
    """Seeds of what a method learns from: noised data, teacher trajectories."""

    kind, first = "calibration", 1_000_000_000


class SelectionSeeds(Seeds):
    """Seeds on which candidates are compared."""

    kind, first = "selection", 2_000_000_000
