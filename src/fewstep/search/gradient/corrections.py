"""Weights on top of theory: a solver's own numbers at the times as they are, plus free corrections (GS)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.rules import SolverSchedule
from fewstep.search.gradient.numbers import Numbers, filled


class Theory(nn.Module):
    """The solver's own weights, a function of the times alone."""

    def __init__(self, schedule: SolverSchedule, noise: NoiseSchedule) -> None:
        super().__init__()
        self.schedule, self.noise = schedule.with_times(schedule.times.detach()), noise
        self._kept: tuple[Tensor, Numbers] | None = None

    def forward(self, times: Tensor) -> Numbers:
        """The numbers at these times; computed once where the times stay."""
        if times.requires_grad:
            return Numbers.of(self.schedule.with_times(times).tabulate(self.noise))
        if self._kept is None or not torch.equal(times, self._kept[0]):
            self._kept = times, Numbers.of(self.schedule.with_times(times).tabulate(self.noise))
        return self._kept[1]


class Corrected(nn.Module):
    """Theory plus a free number at every place of the table: all earlier states and outputs, in every row.

    The numbers are in units of states of unit variance, `x / sqrt(alpha^2 + sigma^2)`: what variance-preserving
    schedules have anyway, and the form that GS gives EDM's networks. In EDM's own coordinates one step of an optimiser
    would mean eighty times more at one end than at the other.
    """

    def __init__(self, theory: Theory) -> None:
        super().__init__()
        self.theory = theory
        n = theory(theory.schedule.times)
        self.states = [(i, k) for i in range(1, len(n.times)) for k in range(i)]
        self.outputs = [(i, j) for i, j in self.states if n.evaluated[j]]
        self.a = nn.Parameter(torch.zeros(len(self.states), dtype=torch.float64, device="cpu"))
        self.c = nn.Parameter(torch.zeros(len(self.outputs), dtype=torch.float64, device="cpu"))

    def forward(self, times: Tensor) -> Numbers:
        """The numbers at these times."""
        n = self.theory(times)
        size = (len(n.times), len(n.times))
        unit = (n.alpha**2 + n.sigma**2).sqrt()
        A = n.A + filled(size, self.states, self.a) * (unit[:, None] / unit)
        return n._replace(A=A, B=n.B + self.outputs_part(n, size) * unit[:, None])

    def outputs_part(self, n: Numbers, size: tuple[int, int]) -> Tensor:
        """What is added to B."""
        return filled(size, self.outputs, self.c)


class Generalised(Corrected):
    """GS's corrections: the first three of a row act on m_0, D_1, D_2 of DPM-Solver++(3M), the others on the outputs.

    `x' = (theory + a_1) x - c_1 m_0 + c_2 D_1 - c_3 D_2 + sum_{i>3} c_i m_-i + sum_{i>1} a_i x_-i` (at the second step
    `- c_2 D_1`, as its authors have it). D_1 and D_2 have no finite value in a step onto sigma = 0 or next to alpha =
    0: there the corrections act on the outputs themselves, which span the same.

    Errors: `ArgumentError` for a solver that does not make one network call a step.
    """

    def __init__(self, theory: Theory) -> None:
        super().__init__(theory)
        n = theory(theory.schedule.times)
        if n.calls != list(range(len(n.times) - 1)):
            raise ArgumentError(
                f"{theory.schedule.name} makes other than one row and network call a step: GS corrects multistep "
                "solvers (dpmpp_3m is its own); method 'weights' takes any"
            )

    def outputs_part(self, n: Numbers, size: tuple[int, int]) -> Tensor:
        """See `Corrected`."""
        lam = n.alpha.log() - n.sigma.log()
        by_row: dict[int, list[Tensor]] = {}
        for (i, _), c in zip(reversed(self.outputs), reversed(self.c.unbind()), strict=True):
            by_row.setdefault(i, []).append(c)
        rows = [torch.zeros(size[1], dtype=torch.float64, device="cpu")]
        for i in range(1, size[0]):
            rows.append(_row(i, by_row[i], lam, size[1]))
        return torch.stack(rows)


def _row(i: int, c: list[Tensor], lam: Tensor, width: int) -> Tensor:
    """One row of B's corrections; c is newest first. Step i - 1 -> i reads outputs i - 1, i - 2, ..."""
    terms: dict[int, Tensor] = {i - 1 - k: value for k, value in enumerate(c)}
    used = lam[max(0, i - 3) : i + 1].detach()
    if bool(torch.isfinite(used).all()):
        terms = dict[int, Tensor]()
        for column, weight in _differences(i, c, lam):
            terms[column] = terms[column] + weight if column in terms else weight
    columns = torch.tensor(list(terms), device="cpu")
    return torch.zeros(width, dtype=torch.float64, device="cpu").index_put((columns,), torch.stack([*terms.values()]))


def _differences(i: int, c: list[Tensor], lam: Tensor) -> Iterator[tuple[int, Tensor]]:
    """`(output, weight)` of `- c_1 m_0 + c_2 D_1 - c_3 D_2 + ...`, with DPM-Solver++(3M)'s D_1 and D_2."""
    yield i - 1, -c[0]
    if i == 1:
        return
    h, h0 = lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
    r0 = h0 / h
    if i == 2:
        yield i - 1, -c[1] / r0
        yield i - 2, c[1] / r0
        return
    r1 = (lam[i - 2] - lam[i - 3]) / h
    # D_1 = d0 + r0 / (r0 + r1) (d0 - d1), D_2 = (d0 - d1) / (r0 + r1), d0 = (m_0 - m_-1) / r0, d1 = (m_-1 - m_-2) / r1.
    mix = r0 / (r0 + r1)
    of_d0 = c[1] * (1 + mix) - c[2] / (r0 + r1)
    of_d1 = -c[1] * mix + c[2] / (r0 + r1)
    yield i - 1, of_d0 / r0
    yield i - 2, of_d1 / r1 - of_d0 / r0
    yield i - 3, -of_d1 / r1
    for k in range(3, len(c)):
        yield i - 1 - k, c[k]
