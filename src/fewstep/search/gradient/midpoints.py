"""EPD: every step probes the slope once and then averages K slopes at free points inside the step, in parallel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.search.gradient.numbers import Axis, Numbers, constant, matrix_of

SCALE_DIRECTION, SCALE_TIME = 0.05, 0.05
"""How far the factors on slopes and on model times may be from 1."""
SHARES = (0.6, 0.4)
"""Weights of two parallel points at the start. Both points begin in the middle; equal weights would never part them."""


def steps_of(nfe: int, parallel: int, *, to_zero: bool) -> int:
    """How many steps make `nfe` real network calls with `parallel` points a step (parallel calls count).

    Errors: `ArgumentError` where no number does, with those near by.
    """
    whole, rest = divmod(nfe - to_zero, 1 + parallel)
    if rest or whole < 1:
        near = [k * (1 + parallel) + to_zero for k in range(max(1, whole), max(1, whole) + 2)]
        raise ArgumentError(
            f"epd with {parallel} point{'s' * (parallel > 1)} a step cannot make exactly {nfe} network calls (parallel "
            f"calls count); near by it can make {', '.join(map(str, near))}"
        )
    return whole + to_zero


class Midpoints(nn.Module):
    """In `t = sigma / alpha`: `x' = x + (t' - t) sum_k w_k c_k d(x + (t_k - t) d_n, a_k t_k)`.

    `t_k = t'^r_k t^(1 - r_k)` with r a sigmoid, w a softmax, c and a within 5 % of 1 by a sigmoid. The last step
    onto sigma = 0 has no point inside and is the Euler step. Begins at the midpoint
    rule of DPM-Solver-2 in log sigma (`dpm_2`).

    Args:
        times: `[n+1]` of the steps, which stay.
        noise: the noise schedule.
        axis: keeps model times in the network's range.
        parallel: K, one or two points.

    Errors: `ArgumentError` where alpha is 0 at the first time, or for another number of points.
    """

    def __init__(self, times: Tensor, noise: NoiseSchedule, axis: Axis, *, parallel: int) -> None:
        super().__init__()
        if parallel not in (1, 2):
            raise ArgumentError(f"parallel is {parallel}: give one or two points a step")
        if noise.alpha(times[0]) == 0:
            raise ArgumentError("EPD counts time in sigma / alpha, which is infinite where alpha is 0")
        self.noise, self.axis, self.parallel = noise, axis, parallel
        self.inner = len(times) - 1 - int(noise.sigma(times[-1]) == 0)
        if self.inner < 1:
            raise ArgumentError("EPD needs a step that does not end at sigma = 0: give more network calls")
        self.ends = tuple((1 + parallel) * n for n in range(1, self.inner + 1 - (self.inner == len(times) - 1)))
        shape = (self.inner, parallel)
        zeros = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self.r = nn.Parameter(zeros.clone())
        self.w = nn.Parameter(zeros + constant([*SHARES] if parallel == 2 else [1.0]).log())
        self.direction, self.time = nn.Parameter(zeros.clone()), nn.Parameter(zeros.clone())

    def forward(self, times: Tensor) -> Numbers:
        """The numbers over these steps."""
        grid = self.noise.ratio(times)
        w, r = torch.softmax(self.w, 1), torch.sigmoid(self.r)
        c = 1 + SCALE_DIRECTION * (2 * torch.sigmoid(self.direction / 2) - 1)
        a = 1 + SCALE_TIME * (2 * torch.sigmoid(self.time / 2) - 1)
        # Rows in scaled states x / alpha; each row's place is its ratio.
        A, B = (dict[tuple[int, int], Tensor]() for _ in range(2))
        ratios, told, called = [grid[0]], [times[0]], list[bool]()
        one = torch.ones((), dtype=torch.float64, device="cpu")
        for n in range(self.inner):
            here, t, after = len(ratios) - 1, grid[n], grid[n + 1]
            called.append(True)
            target = here + self.parallel + 1
            A[target, here] = one
            for k in range(self.parallel):
                row, at = here + 1 + k, after ** r[n, k] * t ** (1 - r[n, k])
                A[row, here], B[row, here] = 1 + (at - t) / t, (t - at) / t
                share = (after - t) * w[n, k] * c[n, k] / at
                A[target, row], B[target, row] = share, -share
                ratios.append(at)
                told.append(self.axis.inside(self.noise.time_of_ratio(a[n, k] * at)))
                called.append(True)
            ratios.append(after)
            told.append(times[n + 1])
        if self.inner < len(times) - 1:
            last = len(ratios) - 1
            A[last + 1, last], B[last + 1, last] = 0 * one, one
            called.append(True)
            ratios.append(grid[-1])
            told.append(times[-1])
        called.append(False)
        return self._scaled(A, B, torch.stack(ratios), torch.stack(told), times, called)

    def _scaled(
        self, A: dict[tuple[int, int], Tensor], B: dict[tuple[int, int], Tensor], ratios: Tensor, told: Tensor,
        times: Tensor, called: list[bool],
    ) -> Numbers:  # fmt: skip
        """From scaled states to states."""
        where = torch.cat([self.noise.time_of_ratio(ratios[:-1]), times[-1:]])
        alpha = self.noise.alpha(where)
        rows = len(ratios)
        states = matrix_of({(i, k): w * alpha[i] / alpha[k] for (i, k), w in A.items()}, rows)
        outputs = matrix_of({(i, k): w * alpha[i] for (i, k), w in B.items()}, rows)
        return Numbers(states, outputs, where, told, alpha, alpha * ratios, tuple(called))
