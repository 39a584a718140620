"""Reading a linear sampler's weights: play it scripted network outputs and scripted noise, and watch its states.

A sampler that only forms weighted sums treats every element of the state alike. So the elements themselves can stand
for the unknowns: element 0 for the start, the next ones for the outputs, the noise draws and (where the host allows it)
small edits of the state between two steps. Play it unit vectors, and each state that it hands to the network *is* a row
of its table. One run reads everything; two more, with random values everywhere, measure how far from linear it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, NotATable
from fewstep.script import F64, Catch, Row, Script, Unknown

Host = Callable[[Script], Tensor]
"""Runs a sampler once, from start to end, under a script."""


@dataclass(frozen=True)
class Weights:
    """What a probe read. S rows: J network calls, then the sample. All float64."""

    start: Tensor
    """[S] weights on the first state."""
    outputs: Tensor
    """[S, J] weights on the network's outputs."""
    noise: Tensor
    """[S, M] weights on unit noise; all-zero columns are dropped."""
    offset: Tensor
    """[S] what is added to every element whatever comes in; zero for most samplers."""
    edits: Tensor | None
    """[S, S] response of row i to an edit of state k, with a unit diagonal; None where the host allows no edit."""
    calls: list[Row]
    """The network calls; each one's state is a row of the above."""
    draws: tuple[int, ...]
    """Which of the sampler's draws the noise columns are (Brownian pieces are numbered after the draws)."""
    defect: float
    """The measured departure from linearity, relative to the largest term of its row."""

    def stepwise(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """`A [S, S], B [S, J], C [S, M], offset [S]` in terms of earlier states; None where no edits could be made.

        With G the response to edits, the unrolled weights are G times the stepwise ones, and A = 1 - inverse(G).
        """
        if self.edits is None:
            return None
        response = self.edits
        inverse = torch.linalg.solve_triangular(
            response, torch.eye(len(response), **F64), upper=False, unitriangular=True
        )
        a = torch.eye(len(response), **F64) - inverse
        parts = [a.tril(-1), (inverse @ self.outputs), (inverse @ self.noise), (inverse @ self.offset[:, None])[:, 0]]
        # What rounding left where a weight is zero; a host in float32 leaves about 1e-7 of the row's largest entry.
        floor = max(8 * self.defect, 1e-14)
        largest = torch.cat([parts[0].abs(), parts[1].abs()], 1).amax(1)
        return tuple(
            torch.where(p.abs() <= floor * (largest if p.ndim == 1 else largest[:, None]), 0.0, p) for p in parts
        )  # type: ignore[return-value]


def _random(seed: int, width: int) -> Callable[[Unknown], Tensor]:
    """Random values of the unknowns, some large, on a grid of 1/64 so that 16-bit hosts hold them exactly."""
    kinds = {"start": 1, "output": 2, "noise": 3, "interval": 4, "edit": 5}

    def value(unknown: Unknown) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(
            seed * 1_000_003 + kinds[unknown[0]] * 10_007 + unknown[1]
        )
        drawn = torch.randint(-256, 257, (width,), generator=generator, device="cpu")
        return drawn.to(torch.float64) / 64

    return value


def _unit(index: dict[Unknown, int], width: int) -> Callable[[Unknown], Tensor]:
    """Unit vectors; the last element stays zero for every unknown, so that it shows an offset."""

    def value(unknown: Unknown) -> Tensor:
        vector = torch.zeros(width, **F64)
        if unknown in index:
            vector[index[unknown]] = 1.0
        return vector

    return value


def _run(
    host: Host, value: Callable[[Unknown], Tensor], ndim: int, dtype: torch.dtype, knots: list[float] | None
) -> tuple[Script, Tensor]:
    width = value(("start", 0)).numel()
    script = Script(value, (1,) * (ndim - 1) + (width,), dtype, knots)
    with torch.no_grad(), Catch(script):
        last = host(script)
    if not isinstance(last, Tensor) or last.numel() != width:  # pyright: ignore[reportUnnecessaryIsInstance]
        shape = getattr(last, "shape", type(last))
        raise ArgumentError(f"the sampler must return one tensor of the state's shape {script.shape}, got {shape}")
    if not script.rows:
        raise ArgumentError("the sampler never called its network: check that it takes the model as its first argument")
    return script, last.detach().reshape(-1).to(**F64)


def probe(host: Host, *, ndim: int = 4, dtype: torch.dtype = torch.float64, tolerance: float = 1e-4) -> Weights:
    """Read the weights of the sampler that `host` runs.

    Args:
        host: runs the sampler once under a `Script`; it is called three times and must start afresh each time.
        ndim: how many dimensions the sampler expects a state to have (the first is the batch).
        dtype: of the states; a host that computes in float32 inside yields float32 accuracy.
        tolerance: largest departure from linearity, relative to the row's largest term, that still passes as rounding.

    Raises:
        NotATable: the sampler is not linear, or does something else each time; carries the measured defect and the row.
    """
    counted, _ = _run(host, _random(1, 24), ndim, dtype, None)
    ends = _knots(counted.asked)
    pieces = max(len(ends) - 1, 0)
    unknowns: list[Unknown] = [
        ("start", 0),
        *(("output", j) for j in range(len(counted.rows))),
        *(("noise", m) for m in range(counted.draws)),
    ]
    unknowns += [("interval", k) for k in reversed(range(pieces))] + [("edit", i) for i in counted.edits]
    read, last = _run(host, _unit({u: i for i, u in enumerate(unknowns)}, len(unknowns) + 1), ndim, dtype, ends)
    _same_course(counted, read)
    seen = torch.stack([*(row.state for row in read.rows), last])
    offset = seen[:, -1].clone()
    table = seen[:, :-1] - offset[:, None]
    defect = _defect(host, table, offset, unknowns, ndim, dtype, ends, tolerance, read)
    return _split(table, offset, unknowns, read, defect)


def _knots(asked: list[tuple[float, float]]) -> list[float]:
    """The end points of all increments, ascending; those that differ by rounding only count as one."""
    knots: list[float] = []
    for level in sorted(level for pair in asked for level in pair):
        if not knots or level - knots[-1] > 1e-6 * abs(level):
            knots.append(level)
    return knots


def _same_course(one: Script, other: Script) -> None:
    told = [[row.told for row in s.rows] for s in (one, other)]
    if told[0] == told[1] and (one.draws, one.asked) == (other.draws, other.asked):
        return
    row = next((i for i, (a, b) in enumerate(zip(*told, strict=False)) if a != b), min(map(len, told)))
    raise NotATable(
        f"the sampler chooses its course by what the network answers: it made {len(told[0])} network calls in one run "
        f"and {len(told[1])} in another, which part at row {row}. Adaptive samplers are not tables; fix its steps, or "
        "sample with it directly",
        defect=float("inf"),
        row=row,
    )


def _defect(
    host: Host,
    table: Tensor,
    offset: Tensor,
    unknowns: list[Unknown],
    ndim: int,
    dtype: torch.dtype,
    ends: list[float],
    tolerance: float,
    read: Script,
) -> float:
    value = _random(2, 61)
    script, last = _run(host, value, ndim, dtype, ends)
    _same_course(read, script)
    seen = torch.stack([*(row.state for row in script.rows), last])
    values = torch.stack([value(u) for u in unknowns])
    largest = (table.abs() * values.abs().amax(1)).amax(1).clamp_min(1e-300)
    per_row = ((seen - table @ values - offset[:, None]).abs().amax(1) / largest).nan_to_num(nan=torch.inf)
    worst = int(per_row.argmax())
    if per_row[worst] > tolerance:
        where = (
            "the sample"
            if worst == len(script.rows)
            else f"the state of network call {worst} (told time {script.rows[worst].told:g})"
        )
        raise NotATable(
            f"the sampler is not linear in its start, outputs and noise: {where}, row {worst}, is off by "
            f"{float(per_row[worst]):.2g} of its largest term. Thresholding, clipping and norms cannot be in a table: "
            "switch them off here and wrap them into the denoiser instead",
            defect=float(per_row[worst]),
            row=worst,
        )
    return float(per_row[worst])


def _split(table: Tensor, offset: Tensor, unknowns: list[Unknown], read: Script, defect: float) -> Weights:
    def columns(*kinds: str) -> list[int]:
        return [i for i, u in enumerate(unknowns) if u[0] in kinds]

    rows = len(table)
    noise = columns("noise", "interval")
    used = [i for i in noise if bool((table[:, i] != 0).any())]
    edits = None
    if read.edits and len(read.edits) == rows - 2:  # before every call but the first
        edits = torch.eye(rows, **F64)
        edits[:, 0] = table[:, 0]
        for column, row in zip(columns("edit"), read.edits, strict=True):
            edits[:, row] = table[:, column]
    return Weights(
        start=table[:, 0].clone(),
        outputs=table[:, columns("output")],
        noise=table[:, used],
        offset=offset,
        edits=edits,
        calls=read.rows,
        draws=tuple(noise.index(i) for i in used),
        defect=defect,
    )
