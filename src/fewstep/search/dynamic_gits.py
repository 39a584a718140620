"""GITS: times from the geometry of a teacher's trajectories, by dynamic programming.

Chen, Zhou, Wang, Shen & Lyu, On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024. Every pair of
times i < j has a cost, that of one Euler jump from the teacher's state `x_i` to `t_j`; the times of n steps are a
cheapest path, where the cost of what follows a step is multiplied by a coefficient.

The states are those of the variance-exploding process, `x / alpha` at noise level `sigma / alpha`, as the authors have
it. A process that starts without any signal (alpha = 0) has no such state; there `x / (alpha + sigma)` at
`sigma / (alpha + sigma)` is used, in which the same jump is straight too.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.search.dynamic import Array
from fewstep.search.trajectories import Trajectories

Metric = Literal["dev", "l1", "l2"]
COEFFICIENT = 1.15
"""The authors' for pixels; 1.2 for latents."""
BATCH = 8


def jump_costs(trajectories: Trajectories, metric: Metric = "dev") -> Array:
    """Costs `[T+1, T+1]` of Euler jumps along the trajectories, their mean; zero on and below the diagonal.

    Args:
        trajectories: of the teacher, with outputs.
        metric: `l1`, `l2`: norm of the difference from the teacher's state. `dev`: the deviation, distance from the
            straight line between the trajectory's ends, of the point that the jump reaches, less that of the teacher's
            state (signed: a jump may land closer to the line).
    """
    if metric not in get_args(Metric):
        raise ArgumentError(f"metric is {metric!r}: choose one of {', '.join(get_args(Metric))}")
    alpha, sigma = trajectories.alpha, trajectories.sigma
    scale = alpha if alpha[0] > 0 else alpha + sigma
    level = sigma / scale
    count = len(level)
    costs = torch.zeros(count, count, dtype=torch.float64, device="cpu")
    for part in trajectories.batches(BATCH):
        states = part.states.flatten(2).double() / scale[:, None]
        for i in range(count - 1):
            # dx/dsigma: the noise; in the other coordinates noise less x0, which is written the same.
            slope = (states[:, i] - part.output(i).flatten(1).double()) / level[i]
            there = states[:, i, None] + (level[i + 1 :] - level[i])[:, None] * slope[:, None]
            if metric == "dev":
                cost = _deviation(there, states) - _deviation(states[:, i + 1 :], states)
            else:
                cost = (there - states[:, i + 1 :]).norm(p=1 if metric == "l1" else 2, dim=2)
            costs[i, i + 1 :] += cost.sum(0)
    return (costs / len(trajectories)).numpy()


def _deviation(points: Tensor, states: Tensor) -> Tensor:
    """Distances `[b, m]` of points `[b, m, d]` from the lines between the first and the last states `[b, T+1, d]`."""
    end = states[:, -1:]
    line = end - states[:, :1]
    line = line / line.norm(dim=2, keepdim=True)
    rest = end - points
    return (rest - (rest * line).sum(2, keepdim=True) * line).norm(dim=2)
