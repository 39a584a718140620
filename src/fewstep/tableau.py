"""`Tableau`: a whole sampling run as one strictly lower-triangular table of numbers.

It is the non-stationary solver of the *whole run*, not Butcher's tableau of one step: it knows its times, so the step
sizes are inside the numbers. Row i says how state i is mixed, and `D_j` is the network's x0 at state j:

    state_i = sum_{k<i} A[i,k] state_k + sum_{j<i} B[i,j] D_j + sum_m C[i,m] noise_m + sum_q K[i,q] const_q
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.errors import TableauError
from fewstep.noise import NoiseSchedule, as_float64
from fewstep.program import RowProgram, compile_rows, occupied
from fewstep.tableau_checks import check_evaluated, check_numbers, check_shapes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fewstep.rules import SolverSchedule

TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class Tableau:
    """A sampler as numbers. Rows 0..S-1 are states: row 0 is the start, row S-1 the sample.

    Attributes:
        A: `[S, S]` weights on earlier states. Weights may carry trailing dimensions that broadcast over one sample.
        B: `[S, S * channels]` weights on earlier outputs; column `j * channels + c` is channel c of output j.
        times: `[S]` where the states are, in the noise schedule's unit; they may repeat or rise.
        model_times: `[S]` what the network is told; equal to `times` unless given.
        alpha, sigma: `[S]` of the states, so that the table can check itself.
        C: `[S, M]` weights on unit normals; K: `[S, Q]` weights on `constants`, Q tensors of one sample's shape.
        evaluated: whether the network is called at a state; by default where a later row reads its output.
        expected: defects of the identities that are meant ("free first step").
        notes: per row, what was lowered or is special.

    Raises:
        TableauError: wrong shapes, non-finite numbers, an entry on or above the diagonal; names row and column.
    """

    A: Tensor
    B: Tensor
    times: Tensor
    alpha: Tensor
    sigma: Tensor
    # None is filled in below, so that nobody else has to ask.
    model_times: Tensor = None  # pyright: ignore[reportAssignmentType]
    C: Tensor = None  # pyright: ignore[reportAssignmentType]
    K: Tensor = None  # pyright: ignore[reportAssignmentType]
    constants: tuple[Tensor, ...] = ()
    evaluated: tuple[bool, ...] = None  # pyright: ignore[reportAssignmentType]
    channels: int = 1
    noise: NoiseSchedule | None = None
    schedule: SolverSchedule | None = None
    expected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    name: str = ""
    meta: dict[str, Any] = field(default_factory=dict[str, Any])
    program: tuple[RowProgram, ...] = field(init=False)
    """The rows as the sampling loop wants them (see `fewstep.sampling`)."""

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the one way to set a frozen field
        for name in ("A", "B", "times", "alpha", "sigma"):
            put(name, as_float64(getattr(self, name)))
        rows = len(self.times)
        put("model_times", self.times if self.model_times is None else as_float64(self.model_times))
        for name in ("C", "K"):
            given = getattr(self, name)
            empty = torch.zeros(rows, 0, dtype=torch.float64, device="cpu")
            put(name, empty if given is None else as_float64(given))
        check_shapes(self)
        check_numbers(self)
        if self.evaluated is None:
            read = occupied(self.B).reshape(rows, rows, self.channels).any(2).any(0)
            put("evaluated", tuple(read.tolist()))
        check_evaluated(self)
        put("notes", self.notes or ("",) * rows)
        put("program", compile_rows(self))

    @property
    def rows(self) -> int:
        """Number of states, the start and the sample included."""
        return len(self.times)

    @property
    def nfe(self) -> int:
        """Network calls per sample."""
        return sum(self.evaluated)

    @cached_property
    def expanded(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every row over start, outputs, noise and constants: `(a [S,..], B, C, K)` with A eliminated."""
        tail = torch.broadcast_shapes(*(m.shape[2:] for m in (self.A, self.B, self.C, self.K)))
        width = 1 + self.B.shape[1] + self.C.shape[1] + self.K.shape[1]

        def lift(t: Tensor) -> Tensor:
            return t.reshape(*t.shape, *(1,) * (2 + len(tail) - t.ndim)).expand(*t.shape[:2], *tail) if tail else t

        first = torch.zeros(self.rows, 1, *tail, dtype=torch.float64, device="cpu")
        direct = torch.cat([first, lift(self.B), lift(self.C), lift(self.K)], dim=1)
        start = torch.zeros(width, *tail, dtype=torch.float64, device="cpu")
        start[0] = 1
        out = [start]
        weights = self.A if self.A.requires_grad or self.A.ndim > 2 else self.A.tolist()
        for i, live in enumerate(occupied(self.A).tolist()[1:], 1):
            row = direct[i]
            for k in (k for k, there in enumerate(live) if there):
                row = row + weights[i][k] * out[k]
            out.append(row)
        whole = torch.stack(out)
        b, c = 1 + self.B.shape[1], 1 + self.B.shape[1] + self.C.shape[1]
        return whole[:, 0], whole[:, 1:b], whole[:, b:c], whole[:, c:]

    def unrolled(self) -> Tableau:
        """The canonical form: A only in column 0, no rows but the start, the evaluated ones and the sample."""
        keep = sorted({0, self.rows - 1} | {i for i, e in enumerate(self.evaluated) if e})
        a, B, C, K = (part[keep] for part in self.expanded)
        A = torch.zeros(len(keep), len(keep), *a.shape[1:], dtype=torch.float64, device="cpu")
        A[1:, 0] = a[1:]
        columns = [j * self.channels + c for j in keep for c in range(self.channels)]
        used = occupied(C).any(0)
        return replace(
            self, A=A, B=B[:, columns], C=C[:, used], K=K, times=self.times[keep], model_times=self.model_times[keep],
            alpha=self.alpha[keep], sigma=self.sigma[keep], evaluated=tuple(self.evaluated[i] for i in keep),
            notes=tuple(self.notes[i] for i in keep), schedule=self.schedule,
        )  # fmt: skip

    def defects(self) -> tuple[Tensor, Tensor]:
        """How far each row is from the two identities of a linear sampler, `[S]` each (elementwise worst case).

        If the network always returned the true x0, every row would have the right mean and the right noise:
        `a alpha_T + sum b + sum k = alpha_i` and `(a sigma_T)^2 + sum c^2 = sigma_i^2`.
        """
        a, B, C, K = self.expanded
        flat = lambda t: t.reshape(self.rows, -1)  # noqa: E731
        mean = flat(a * self.alpha[0] + B.sum(1) + K.sum(1)) - self.alpha[:, None]
        variance = flat((a * self.sigma[0]) ** 2 + (C**2).sum(1)) - self.sigma[:, None] ** 2
        worst = lambda t: t.gather(1, t.abs().argmax(1, keepdim=True))[:, 0]  # noqa: E731
        return worst(mean), worst(variance)

    def verify(self, tolerance: float = TOLERANCE) -> Tableau:
        """Itself, if both identities hold (relative to the row's largest term), or `expected` lists their defects.

        Raises:
            TableauError: naming the identity, the row and the size.
        """
        if self.expected:
            return self
        size = 1.0 + self._largest()
        for which, defect, scale in zip(("mean", "variance"), self.defects(), (size, size**2), strict=True):
            relative = defect.detach().abs() / scale
            i = int(relative.argmax())
            if not relative[i] <= tolerance:
                raise TableauError(
                    f"row {i} breaks the {which} identity by {defect[i].item():.3g}: its weights do not belong to its "
                    "time. Mend the formula, or list the defect in `expected` if it is meant"
                )
        return self

    def _largest(self) -> Tensor:
        """Per row, the largest term in units of the state's spread: rounding grows with it."""
        a, b, c, k = (part.detach().abs().reshape(self.rows, -1) for part in self.expanded)
        terms = torch.cat([a * self.sigma[0].detach(), a * self.alpha[0].detach(), b, c, k], 1)
        return terms.amax(1)

    def isclose(self, other: Tableau, tolerance: float = TOLERANCE) -> bool:
        """Whether both are the same sampler: canonical forms equal elementwise, relative to 1 or the row's largest."""
        return self.difference(other) <= tolerance

    def difference(self, other: Tableau) -> float:
        """Largest difference of the canonical forms, relative to each row's largest entry; inf for unequal shapes."""
        one, two = self.unrolled(), other.unrolled()
        if (
            one.evaluated != two.evaluated
            or one.channels != two.channels
            or any(x.shape[1:2] != y.shape[1:2] for x, y in ((one.C, two.C), (one.K, two.K)))
        ):
            return float("inf")
        worst = 0.0
        calls = torch.tensor(one.evaluated)
        for x, y in ((one.times, two.times), (one.model_times[calls], two.model_times[calls])):
            worst = max(worst, ((x - y).abs() / x.abs().clamp_min(1.0)).max().item() if len(x) else 0.0)
        try:
            rows = [
                torch.cat(
                    [
                        t.A.reshape(t.rows, -1),
                        t.B.reshape(t.rows, -1),
                        t.C.reshape(t.rows, -1),
                        t.K.reshape(t.rows, -1),
                    ],
                    1,
                )
                for t in (one, two)
            ]
            gap = (rows[0] - rows[1]).abs().amax(1) / rows[0].abs().amax(1).clamp_min(1.0)
        except RuntimeError:  # per-element weights of different shapes
            return float("inf")
        if any(
            x.shape != y.shape or (x - y).abs().max() > TOLERANCE
            for x, y in zip(one.constants, two.constants, strict=True)
        ):
            return float("inf")
        return max(worst, gap.max().item())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tableau) and self.isclose(other)

    def __hash__(self) -> int:
        return hash((self.nfe, self.channels))

    @cached_property
    def digest(self) -> str:
        """A name for this sampler: of the canonical decisions where it has them, else of the numbers to ten digits."""
        if self.schedule is not None and self.noise is not None:
            record: Any = [self.schedule.canonical().to_dict(), self.noise.to_dict()]
            # What the decisions leave open: DPM-Solver-v3's statistics, the mean image.
            record += [self.meta["statistics"]] if "statistics" in self.meta else []
            record += [c.double().flatten().tolist() for c in self.constants if c.ndim]
        else:
            t = self.unrolled()
            numbers = [t.times, t.model_times, t.A, t.B, t.C, t.K, *t.constants]
            record = [[f"{v:.10g}" for v in n.detach().double().flatten().tolist()] for n in numbers]
            record += [list(t.evaluated), t.channels]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        from fewstep.printing import tableau_text

        return tableau_text(self)

    def __repr__(self) -> str:
        return f"<Tableau {self.name or 'unnamed'}: {self.nfe} calls, {self.rows} states, digest {self.digest}>"

    def plot(self) -> Figure:
        """The table drawn, as a matplotlib figure."""
        from fewstep.report.figures import tableau_figure

        return tableau_figure(self)

    def save(self, path: str | Path) -> None:
        """Write versioned JSON (floats exact), and any tensors to a safetensors file beside it; all or nothing."""
        from fewstep import tableau_file

        tableau_file.save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Tableau:
        """Read what `save` wrote; everything is checked, nothing is half loaded.

        Raises:
            TableauError, FileFormatError: a damaged, foreign or newer file, with row and column where there is one.
        """
        from fewstep import tableau_file

        return tableau_file.load(Path(path))

    def to_dict(self) -> dict[str, Any]:
        """The JSON record, without tensors of a sample's shape."""
        from fewstep import tableau_file

        return tableau_file.to_dict(self)

    @staticmethod
    def from_dict(record: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Tableau:
        """The table of a record that `to_dict` made."""
        from fewstep import tableau_file

        return tableau_file.from_dict(record, tensors or {})
