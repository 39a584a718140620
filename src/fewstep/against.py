"""Two tables side by side: row by row, where they part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.tableau import Tableau

PARTS = ("times", "told", "start", "outputs", "noise", "constants")


@dataclass(frozen=True)
class Difference:
    """What `compared` found: per row the largest difference of each part, and in words what cannot be compared."""

    names: tuple[str, str]
    rows: tuple[dict[str, float], ...]
    remarks: tuple[str, ...]

    @property
    def largest(self) -> float:
        """Of all parts but the times."""
        return max((v for row in self.rows for k, v in row.items() if k not in ("row", "time", "times")), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        return {"names": self.names, "rows": self.rows, "remarks": self.remarks, "largest": self.largest}

    def __str__(self) -> str:
        head = f"{self.names[0]} against {self.names[1]}, unrolled; largest differences in each row"
        lines = [head, f"{'row':>4} {'time':>12} " + " ".join(f"{part:>10}" for part in PARTS)]
        for row in self.rows:
            cells = " ".join(f"{row[part]:>10.2g}" if row[part] else f"{'-':>10}" for part in PARTS)
            lines.append(f"{row['row']:>4.0f} {row['time']:>12.6g} {cells}")
        return "\n".join([*lines, *self.remarks])


def compared(one: Tableau, two: Tableau) -> Difference:
    """Both tables in their canonical form, row by row. Different numbers of calls are compared as far as both go.

    Raises:
        ArgumentError: tables of different noise schedules, whose times and weights mean different things.
    """
    if one.noise is not None and two.noise is not None and one.noise != two.noise:
        raise ArgumentError(
            f"one table is for {one.noise!r}, the other for {two.noise!r}: trace or tabulate both with the same noise "
            "(--noise)"
        )
    a, b = one.unrolled(), two.unrolled()
    remarks: list[str] = []
    if one.nfe != two.nfe:
        remarks.append(f"they make {one.nfe} and {two.nfe} network calls")
    if a.evaluated[0] != b.evaluated[0]:
        remarks.append("one of them has a free first step")
    for part, x, y in (("noise", a.C, b.C), ("constants", a.K, b.K)):
        if x.shape[1] != y.shape[1]:
            remarks.append(f"{part}: {x.shape[1]} columns and {y.shape[1]}")
    rows = [_row(a, b, k) for k in range(min(a.rows, b.rows))]
    found = Difference((one.name or "one", two.name or "two"), tuple(rows), tuple(remarks))
    if not remarks:
        worst = one.difference(two)
        same = "the same sampler" if worst <= 1e-9 else f"largest, relative to a row's largest weight: {worst:.3g}"
        return Difference(found.names, found.rows, (same,))
    return found


def _row(a: Tableau, b: Tableau, k: int) -> dict[str, float]:
    told = abs(a.model_times[k] - b.model_times[k]).item() if a.evaluated[k] and b.evaluated[k] else 0.0
    return {
        "row": float(k),
        "time": a.times[k].item(),
        "times": abs(a.times[k] - b.times[k]).item(),
        "told": told,
        "start": _apart(a.A[k, :1], b.A[k, :1]),
        "outputs": _apart(a.B[k, : k * a.channels], b.B[k, : k * b.channels]),
        "noise": _apart(a.C[k], b.C[k]),
        "constants": _apart(a.K[k], b.K[k]),
    }


def _apart(x: Tensor, y: Tensor) -> float:
    """Largest difference of the columns that both have; the rest counts in full."""
    shared = min(len(x), len(y))
    rest = [t[shared:].abs().max().item() for t in (x, y) if len(t) > shared]
    both = [(x[:shared] - y[:shared]).abs().max().item()] if shared else []
    return max([*both, *rest], default=0.0)
