"""What every table must satisfy; each message names row and column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fewstep.errors import TableauError
from fewstep.program import occupied

if TYPE_CHECKING:
    from fewstep.tableau import Tableau


def check_shapes(t: Tableau) -> None:
    """Every part fits the number of states."""
    rows = t.rows
    if rows < 2:
        raise TableauError(f"a table needs at least two states, the start and the sample; got {rows}")
    for name, width in (("A", rows), ("B", rows * t.channels), ("C", None), ("K", len(t.constants))):
        shape = tuple(getattr(t, name).shape)
        if len(shape) < 2 or shape[0] != rows or (width is not None and shape[1] != width):
            raise TableauError(
                f"{name} has shape {shape}; {rows} states with {t.channels} output channel(s) and {len(t.constants)} "
                f"constants need [{rows}, {'M' if width is None else width}]"
            )
    for name in ("model_times", "alpha", "sigma"):
        if getattr(t, name).shape != (rows,):
            raise TableauError(
                f"{name} has shape {tuple(getattr(t, name).shape)}; it needs one entry for each of the {rows} states"
            )
    if t.notes and len(t.notes) != rows:
        raise TableauError(f"notes has {len(t.notes)} entries for {rows} rows; give one for each, or none")


def check_numbers(t: Tableau) -> None:
    """Finite, and strictly lower triangular."""
    names = ("A", "B", "C", "K", "times", "model_times", "alpha", "sigma")
    parts = [getattr(t, name).detach() for name in names]
    fine = bool(torch.cat([p.flatten() for p in parts]).isfinite().all())
    for name, part in () if fine else zip(names, parts, strict=True):
        bad = (~torch.isfinite(part)).nonzero()
        if len(bad):
            where = f"row {bad[0, 0].item()}" + (f", column {bad[0, 1].item()}" if bad.shape[1] > 1 else "")
            raise TableauError(
                f"{name} is not finite in {where}: recompute the table with times inside the noise schedule's range"
            )
    upper = torch.ones(t.rows, t.rows, dtype=torch.bool, device="cpu").triu()[:, :, None]
    for name, what, per in (("A", "state", 1), ("B", "output", t.channels)):
        there = occupied(getattr(t, name))
        late = there.reshape(t.rows, t.rows, per) & upper
        for i, column in late.flatten(1).nonzero().tolist():
            raise TableauError(
                f"row {i} reads {what} {column // per}, which does not exist yet ({name}[{i},{column}]): weights "
                "must lie below the diagonal"
            )


def check_evaluated(t: Tableau) -> None:
    """Every output that is read exists."""
    if len(t.evaluated) != t.rows:
        raise TableauError(f"evaluated has {len(t.evaluated)} entries for {t.rows} rows; give one for each")
    read = occupied(t.B).reshape(t.rows, t.rows, t.channels).any(2)
    missing = read & ~torch.tensor(t.evaluated, device="cpu")
    for i, j in missing.nonzero().tolist():
        raise TableauError(
            f"row {i} reads output {j}, but state {j} is not evaluated: set evaluated[{j}] or drop the weight"
        )
    if t.evaluated[-1]:
        raise TableauError("the last row is the sample and must not be evaluated")
