"""OSS: times from the student's own states, by dynamic programming.

Pei, Hu & Gu, Optimal Stepsize for Diffusion Sampling, 2025 (arXiv 2503.21774). For k = 1, 2, .. the best state of k
Euler steps at every time j is the jump, from some best state of k - 1 steps, that comes closest to the teacher's:

    z_j^k = the jump i -> j of z_i^{k-1} with least |z - X_j|^2, over i < j

Each of these states costs a network call. Only the closest state at each time goes on, so the result is not the best
path of all. Unlike the authors' code, where a state of fewer steps may stand in for one of k (so that the steps that
are traced back are not those that made the state), a path here has exactly k steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.batching import in_batches
from fewstep.conditions import rows
from fewstep.errors import ArgumentError
from fewstep.progress import Event, Report, silent
from fewstep.search.trajectories import Trajectories

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser


@dataclass(frozen=True)
class OptimalSteps:
    """What the search kept.

    Attributes:
        costs: `[n_max + 1, m, K]` mean squared difference from the teacher's states, of m images, or of all (m = 1).
        before: `[n_max + 1, m, K]` the knot from which the last step came.
    """

    costs: Tensor
    before: Tensor

    def path(self, n: int) -> list[int]:
        """The knots of n steps; for images searched one by one, the median of each.

        Errors: `ArgumentError` for a number of steps that was not searched.
        """
        if not 1 <= n < len(self.costs):
            raise ArgumentError(f"n is {n}: paths of 1 to {len(self.costs) - 1} steps were searched")
        here = torch.full_like(self.before[0, :, 0], self.before.shape[2] - 1)
        found = [here]
        for k in range(n, 0, -1):
            here = self.before[k].gather(1, here[:, None])[:, 0]
            found.append(here)
        # A median of rising paths rises: each step of each of them is at least one knot.
        return torch.stack(found[::-1]).median(1).values.tolist()


def calls(knots: int, n_max: int) -> int:
    """Network evaluations of one image: of its best states of 1 to n_max - 1 steps, at every time but the last."""
    return sum(knots - 1 - k for k in range(1, n_max))


def optimal_steps(
    denoiser: Denoiser,
    trajectories: Trajectories,
    n_max: int,
    *,
    condition: Any = None,
    each: bool = False,
    batch_size: int = 64,
    progress: Report = silent,
) -> OptimalSteps:
    """Search paths of 1 to `n_max` steps, all in one pass of `calls(knots, n_max)` evaluations per image.

    Args:
        denoiser: the network.
        trajectories: of the teacher, with outputs.
        n_max: largest number of steps, fewer than the teacher's.
        condition: of the trajectories' seeds.
        each: search each image by itself, as the authors do; else one path for the mean over all.
        batch_size: images given to the network at a time.
        progress: told after every time.
    """
    last = len(trajectories.times) - 1
    if not 1 <= n_max <= last:
        raise ArgumentError(f"n_max is {n_max}: the teacher's {last + 1} times allow 1 to {last} steps")
    teacher = [trajectories.state(k) for k in range(last + 1)]
    many = len(trajectories) if each else 1
    costs = torch.full((n_max + 1, many, last + 1), torch.inf, dtype=torch.float64, device="cpu")
    before = torch.zeros(n_max + 1, many, last + 1, dtype=torch.long, device="cpu")
    states: list[Tensor | None] = [teacher[0], *[None] * last]
    for k in range(1, n_max + 1):
        reached: list[Tensor | None] = [None] * (last + 1)
        for i in range(k - 1, last):
            state = states[i]
            if state is None:
                continue
            output = trajectories.output(0) if k == 1 else _ask(denoiser, state, trajectories, i, condition, batch_size)
            for j in range(i + 1, last + 1):
                there = _jump(trajectories, state, output, i, j)
                gap = (there - teacher[j]).double().flatten(1).square().mean(1)
                cost = gap if each else gap.mean()[None]
                closer = cost < costs[k, :, j]
                costs[k, :, j] = torch.where(closer, cost, costs[k, :, j])
                before[k, :, j] = torch.where(closer, i, before[k, :, j])
                chosen = closer.expand(len(gap)).reshape(-1, *[1] * (there.ndim - 1))
                known = reached[j]
                reached[j] = there if known is None else torch.where(chosen, there, known)
            progress(Event("optimal steps", (k - 1) * last + i + 1, n_max * last))
        states = reached
    return OptimalSteps(costs, before)


def _jump(trajectories: Trajectories, state: Tensor, output: Tensor, i: int, j: int) -> Tensor:
    alpha, sigma = trajectories.alpha, trajectories.sigma
    share = (sigma[j] / sigma[i]).item()
    return state * share + output * (alpha[j].item() - share * alpha[i].item())


def _ask(
    denoiser: Denoiser, state: Tensor, trajectories: Trajectories, i: int, condition: Any, batch_size: int
) -> Tensor:
    time = trajectories.times[i].item()

    def run(lo: int, hi: int) -> Tensor:
        x = state[lo:hi].to(device=denoiser.device, dtype=denoiser.dtype)
        with torch.no_grad():
            return denoiser(x, time, rows(condition, slice(lo, hi))).to(device="cpu", dtype=state.dtype)

    parts = in_batches(run, len(state), batch_size, trajectories.seeds)
    return torch.cat([part for _, _, part in parts])
