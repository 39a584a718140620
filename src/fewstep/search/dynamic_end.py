"""The end error of a sampler, predicted from a teacher's trajectories alone; and times that make it small.

Near the teacher's states the student's network answers `D(x) = D_k + J_k (x - X_k)` to first order. With a model of the
Jacobian the student's whole run is linear in the teacher's states and outputs, local errors, their growth, their decay
and their cancellation included:

    x_i = sum_k A[i,k] x_k + sum_j B[i,j] (D_j + J_j (x_j - X_j)),    end error = x_last - X_last

The model is that of Gaussian data with the end points' own covariance, whose Jacobian at noise level r is
`v / (v + r^2)` (over alpha) in a direction of variance v. It is exact for Gaussian data. Directions of like variance
are taken together in bands, so that only the inner products of each band are needed.

Any deterministic sampler that calls the network at the teacher's times has a predicted error: any order, correctors,
Heun. It is no sum over steps, so that the times of
least predicted error are not a shortest path; `improved` moves one knot at a time, from the paths that are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.builder import OUTPUT, STATE
from fewstep.errors import ArgumentError
from fewstep.noise import NoiseSchedule
from fewstep.rules import SolverSchedule
from fewstep.search.dynamic import Array
from fewstep.search.dynamic_errors import BATCH
from fewstep.search.trajectories import Trajectories
from fewstep.tabulate import built

BANDS = 8
"""Groups of directions; what the end points do not span is one more."""
OFFSETS = (-1, 1, -2, 2, -4, 4)
"""Knots by which one time is moved."""


@dataclass(frozen=True)
class EndError:
    """What predicts the end error of a sampler on a teacher's grid.

    Attributes:
        noise, times: `[T+1]`, of the teacher.
        products: `[bands, 2T+1, 2T+1]` mean inner products per dimension of the states and then the outputs.
        gains: `[bands, T+1]` the Jacobian at each time.
    """

    noise: NoiseSchedule
    times: Tensor
    products: Array
    gains: Array

    @staticmethod
    def of(trajectories: Trajectories, noise: NoiseSchedule, bands: int = BANDS) -> EndError:
        """From trajectories with outputs, a few in memory at a time."""
        ends = trajectories.state(-1).double().flatten(1)
        count, size = ends.shape
        directions, variances, members = _bands(ends, bands)
        width = 2 * len(trajectories.times) - 1
        products = torch.zeros(len(variances), width, width, dtype=torch.float64, device="cpu")
        for part in trajectories.batches(BATCH):
            rows = torch.cat([part.states.flatten(2), part.outputs.flatten(2)], 1).double()
            along = rows @ directions.T
            whole = torch.einsum("nad,nbd->ab", rows, rows)
            for k, member in enumerate(members):
                mine = along[:, :, member]
                product = torch.einsum("nad,nbd->ab", mine, mine)
                products[k] += product
                whole -= product
            products[-1] += whole
        v, alpha, sigma = variances[:, None], trajectories.alpha, trajectories.sigma
        gains = v * alpha / (v * alpha**2 + sigma**2).clamp_min(1e-300)
        return EndError(noise, trajectories.times, (products / (count * size)).numpy(), gains.numpy())

    def predict(self, schedule: SolverSchedule) -> float:
        """The root mean square difference, per dimension, of the sampler's ends from the teacher's.

        Errors: `ArgumentError` for a sampler with times that are none of the teacher's, or one that draws noise.
        """
        rows = built(schedule, self.noise)
        try:
            knots = [self._knot[float(place.time)] for place in rows.places]
        except KeyError as error:
            raise ArgumentError(f"time {error} is none of the teacher's: its states are not known there") from None
        size = len(self.times)
        # Differences from the teacher's states, as weights on its states and outputs, for each band.
        off = np.zeros((len(self.products), len(knots), self.products.shape[1]))
        for i, form in enumerate(rows.rows[1:], 1):
            off[:, i, knots[i]] -= 1
            for (kind, j), weight in form.items():
                if kind == STATE:
                    off[:, i, knots[j]] += float(weight)
                    off[:, i] += float(weight) * off[:, j]
                elif kind == OUTPUT:
                    off[:, i, size + knots[j]] += float(weight)
                    off[:, i] += float(weight) * self.gains[:, knots[j], None] * off[:, j]
                else:
                    raise ArgumentError("a sampler that draws noise, or reads constants, has no predicted end error")
        end = off[:, -1]
        return float(np.sqrt(max(0.0, np.einsum("bv,bvw,bw->", end, self.products, end))))

    @cached_property
    def _knot(self) -> dict[float, int]:
        return {t: k for k, t in enumerate(self.times.tolist())}

    def improved(
        self, solver: Callable[[Tensor], SolverSchedule], path: Sequence[int], known: dict[tuple[int, ...], float]
    ) -> list[int]:
        """The path after moving one knot after the other to where the predicted error is least, until none moves.

        Args:
            solver: the target solver.
            path: knots to start from.
            known: predicted errors by path, to be shared among starts.
        """

        def error(at: tuple[int, ...]) -> float:
            if at not in known:
                known[at] = self.predict(solver(self.times[list(at)]))
            return known[at]

        best, stuck, k = tuple(path), 0, 0
        while stuck < len(best) - 2:
            k = k % (len(best) - 2) + 1
            near = [
                (*best[:k], best[k] + offset, *best[k + 1 :])
                for offset in OFFSETS
                if best[k - 1] < best[k] + offset < best[k + 1]
            ]
            closer = min(near, key=error, default=best)
            stuck += 1
            if error(closer) < error(best) * (1 - 1e-9):
                best, stuck = closer, 0
        return list(best)


def _bands(ends: Tensor, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Principal directions `[m, size]` of the end points, their mean variance by band, and the directions of each.

    The last band, of what they do not span, has a variance but no directions: what is left of the products is its own.
    """
    centred = ends - ends.mean(0)
    n, size = ends.shape
    _, s, directions = torch.linalg.svd(centred, full_matrices=False)
    variances = s.square() / max(1, n - 1)
    kept = variances > 1e-9 * variances.sum().clamp_min(1e-300)
    directions, variances = directions[kept], variances[kept]
    members = [part for part in torch.arange(len(variances), device="cpu").tensor_split(count) if len(part)]
    means = [variances[part].mean() for part in members]
    # The end points of few seeds span little; beyond, the data vary about as much as in the least direction known.
    rest = variances[-1] if len(variances) and size > len(variances) else torch.zeros((), dtype=torch.float64)
    return directions, torch.stack([*means, rest]), members
