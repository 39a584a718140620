"""DyWeight: mixtures of past slopes whose sums are free, so that the time that was really reached drifts along."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.search.gradient.numbers import Axis, Numbers, constant, matrix_of, require_reproduced
from fewstep.tableau import Tableau


class Drifting(nn.Module):
    """In `t = sigma / alpha`, with d the slopes: `x' = x + (t' - s) sum_j W_ij d_j`, `s' = s + (sum_j W_ij)(t' - s)`.

    s is the time reached, t' the next nominal one, `d_j = (x_j - D_j) / s_j` and the network is told `scale_j s_j`.

    Args:
        start: a table of these slopes with rows that sum to one: iPNDM (the authors' start), Euler, DEIS in rho. An
            analytical first step of unit variance (`afs="unit"`) is kept.
        noise: the noise schedule.
        axis: keeps the network's times in range. The authors take absolute values, which hides a change of sign.
            Times that are reached stay in their order.
        window: slopes in a step.

    Errors: `ArgumentError` for another start, or where alpha is 0 at the first time.
    """

    def __init__(self, start: Tableau, noise: NoiseSchedule, axis: Axis, *, window: int = 3) -> None:
        super().__init__()
        self.noise, self.axis, self.window = noise, axis, window
        n = Numbers.of(start)
        self.free = not n.evaluated[0]
        if n.alpha[0] == 0:
            raise ArgumentError("DyWeight counts time in sigma / alpha, which is infinite where alpha is 0")
        if n.calls != list(range(int(self.free), start.rows - 1)):
            raise ArgumentError(f"{start.name} makes other than one call a step: DyWeight starts from ipndm or euler")
        alpha, self.nominal = n.alpha.clone(), n.sigma / n.alpha
        gap = alpha[1:] * self.nominal.diff()
        W = -n.B[1:, :-1] * self.nominal[:-1] / gap[:, None]
        if self.free:  # the first slope is no output: its weight is what makes a row's sum one
            W[:, 0] = 1 - W[:, 1:].sum(1)
        self.end = alpha[-1].item()
        self.places = [(i, j) for i in range(len(W)) for j in range(max(0, i - window + 1), i + 1)]
        self.W = nn.Parameter(constant([W[i, j].item() for i, j in self.places]))
        self.scale = nn.Parameter(torch.ones(len(n.calls), dtype=torch.float64, device="cpu"))
        require_reproduced(self(n.times), start, f"a mixture of the last {window} slopes")

    def forward(self, times: Tensor) -> Numbers:
        """The numbers along the nominal times."""
        nominal = self.noise.ratio(times)
        weight = dict(zip(self.places, self.W.unbind(), strict=True))
        reached, steps = [nominal[0]], list[Tensor]()
        low = self.noise.ratio(self.axis.low)
        for i in range(len(times) - 1):
            steps.append(nominal[i + 1] - reached[i])
            total = torch.stack([w for (row, _), w in weight.items() if row == i]).sum()
            floor = low if i < len(times) - 2 else torch.zeros_like(low)
            # Neither beyond the end nor back: weights of negative sum would cross the times.
            reached.append(torch.minimum(torch.maximum(reached[i] + total * steps[i], floor), reached[i]))
        s = torch.stack(reached[:-1])
        where = torch.cat([self.noise.time_of_ratio(s), times[-1:]])
        alpha = torch.cat([self.noise.alpha(where[:-1]), constant([self.end])])
        told, sigma = self._told(s, where), torch.cat([alpha[:-1] * s, alpha[-1:] * nominal[-1:]])
        A, B = self._matrices(weight, steps, s, alpha)
        called = tuple(i > 0 or not self.free for i in range(len(times) - 1))
        return Numbers(A, B, where, told, alpha, sigma, (*called, False))

    def _told(self, s: Tensor, where: Tensor) -> Tensor:
        scaled = self.axis.inside(self.noise.time_of_ratio((self.scale * s[len(s) - len(self.scale) :]).abs()))
        return torch.cat([where[: int(self.free)], scaled, where[-1:]])

    def _matrices(
        self, weight: dict[tuple[int, int], Tensor], steps: list[Tensor], s: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        n = len(steps) + 1
        A, B = (dict[tuple[int, int], Tensor]() for _ in range(2))
        for i in range(n - 1):
            A[i + 1, i] = alpha[i + 1] / alpha[i]
        for (i, j), w in weight.items():
            slope = alpha[i + 1] * steps[i] * w
            if j == 0 and self.free:  # eps is the normalised state
                A[i + 1, j] = A.get((i + 1, j), 0.0) + slope / alpha[j] / (1 + s[0] ** 2).sqrt()
                continue
            A[i + 1, j] = A.get((i + 1, j), 0.0) + slope / (alpha[j] * s[j])
            B[i + 1, j] = -slope / s[j]
        return matrix_of(A, n), matrix_of(B, n)
