"""Whole tables of other people's samplers, as `tools/make_golden.py` read them: numbers, never code.

    golden = load("k_diffusion/dpmpp_2m karras6")
    golden.outputs[i, j]        # weight of state i (the i-th network input, or the sample) on output j (x0)

Every table is unrolled: states in terms of the start, the network's outputs (as x0) and unit noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import store


@dataclass(frozen=True)
class Golden:
    """One table. S rows: J network calls, then the sample. float64."""

    name: str
    host: str
    sampler: str
    options: dict[str, Any]
    rounding: float
    """The relative rounding of the host's arithmetic: 1e-15 where it ran in float64, about 1e-7 in float32."""
    told: Tensor
    """[J] the time told to the network, in the host's unit."""
    levels: Tensor
    """[J + 1, 2] the host's own alpha and sigma of each state (the sample's last)."""
    start: Tensor
    """[S] weights on the first state."""
    outputs: Tensor
    """[S, J] weights on the network's x0."""
    noise: Tensor
    """[S, M] weights on unit noise."""
    steps: Tensor
    """The host's grid: sigmas (k-diffusion and others in sigma), or sigmas it keeps, or the times of its steps."""

    @property
    def ratio(self) -> Tensor:
        """[J + 1] sigma over alpha of each state: its time for `fewstep.noise.EDM`."""
        return self.levels[:, 1] / self.levels[:, 0]

    def exploding(self) -> Golden:
        """The same sampler with states divided by their alpha (x0 + ratio * eps): its rows compare with `noise.EDM`."""
        alpha = self.levels[:, :1]
        first = self.levels[0, 0]
        levels = self.levels / alpha
        parts = {
            "start": self.start * first / alpha[:, 0],
            "outputs": self.outputs / alpha,
            "noise": self.noise / alpha,
            "levels": levels,
        }
        return Golden(**{**self.__dict__, **parts})


@cache
def load(name: str) -> Golden:
    """The golden table of this name, `FILE/CASE`."""
    file, case = name.split("/", 1)
    return from_record(name, store.read(file)[case])


def from_record(name: str, record: dict[str, Any]) -> Golden:
    def tensor(key: str) -> Tensor:
        return torch.tensor(record[key], dtype=torch.float64)

    rows = len(record["start"])

    def matrix(key: str, columns: int) -> Tensor:
        full = torch.zeros(rows, columns, dtype=torch.float64)
        for i, row in enumerate(record[key]):
            full[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        return full

    return Golden(
        name=name,
        host=record["host"],
        sampler=record["sampler"],
        options=record["options"],
        rounding=record["rounding"],
        told=tensor("told"),
        levels=torch.stack([tensor("alpha"), tensor("sigma")], 1),
        start=tensor("start"),
        outputs=matrix("outputs", rows - 1),
        noise=matrix("noise", max((len(row) for row in record["noise"]), default=0)),
        steps=tensor("steps"),
    )


def names(file: str | None = None) -> list[str]:
    """All golden tables (of one file)."""
    return [f"{f}/{case}" for f in ([file] if file else store.files()) for case in store.read(f)]
