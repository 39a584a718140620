"""BNS: the whole run as free weights on x_0 and all velocities so far (Shaul et al. 2024, non-stationary solvers)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.search.gradient.numbers import Numbers, constant, filled
from fewstep.tableau import Tableau


class NonStationary(nn.Module):
    """`x_i = a_i x_0 + sum_{k<i} b_ik u_k`, all a and b free; u is the network's velocity.

    States are scaled to the straight path, `x / (alpha + sigma)`, on which `u = eps - x0`: for flow models this is the
    paper's form, for the others the same solver through the change of variables that makes it one. The times act only
    through what the network is told, as in the paper. Begins at the unrolled start, whatever solver that is.
    """

    def __init__(self, start: Tableau, noise: NoiseSchedule) -> None:
        super().__init__()
        self.noise = noise
        Numbers.of(start)
        if start.evaluated[0] is False:
            raise ArgumentError("a free first step leaves BNS without its first velocity: start from another solver")
        whole = start.unrolled()
        size = whole.alpha + whole.sigma
        n = whole.rows - 1
        # Rows over (x_0, u_0, ..., u_{n-1}), in the units of the straight path, by D_k = y_k - sigma_k / size_k u_k.
        rows = [torch.zeros(n + 1, dtype=torch.float64, device="cpu")]
        rows[0][0] = 1.0
        for i in range(1, n + 1):
            row = torch.zeros(n + 1, dtype=torch.float64, device="cpu")
            row[0] = whole.A[i, 0] * size[0] / size[i]
            for k in range(i):
                share = whole.B[i, k] / size[i]
                row += share * rows[k]
                row[k + 1] -= share * whole.sigma[k] / size[k]
            rows.append(row)
        found = torch.stack(rows)
        self.places = [(i, k) for i in range(1, n + 1) for k in range(i)]
        self.a = nn.Parameter(constant(found[1:, 0]))
        self.b = nn.Parameter(constant([found[i, k + 1].item() for i, k in self.places]))
        self.times = constant(whole.times)

    def forward(self, times: Tensor) -> Numbers:
        """The numbers with the network called at these times."""
        alpha, sigma, _ = self.noise.levels(times)
        size, n = alpha + sigma, len(times)
        b = filled((n, n), self.places, self.b)
        first = torch.nn.functional.pad(self.a[:, None], (0, n - 1, 1, 0))
        # u_k = (y_k - D_k) size_k / sigma_k with y_k = x_k / size_k; the last state is never read.
        per = torch.cat([size[:-1] / sigma[:-1], torch.zeros(1, dtype=torch.float64, device="cpu")])
        A = size[:, None] * (first + b * per) / size
        return Numbers(A, -size[:, None] * b * per, times, times, alpha, sigma, (True,) * (n - 1) + (False,))
