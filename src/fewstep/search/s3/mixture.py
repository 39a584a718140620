"""The search's own test problem: a one-dimensional mixture whose score is exact (USF notes, section 13).

Schedules are judged by the root mean squared distance of their samples to the exact solution of the probability-flow
ODE, which keeps every state's quantile. A few milliseconds judge a schedule, so that searches can be compared over
thousands of evaluations and several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from fewstep.noise import VPLinear
from fewstep.problems import GaussianMixture
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search.s3.genes import Floats, Genes
from fewstep.search.s3.simulate import simulate
from fewstep.search.s3.space import Space

WEIGHTS, MEANS, SPREADS = (0.3, 0.7), (-1.0, 0.6), (0.25, 0.4)
ENDS = (1e-4, 1e-3)
SEARCH_STATES, FRESH_STATES = 256, 4000


class Mixture:
    """RMS distance to the exact solution on fixed states; lower is better.

    Args:
        nfes: the numbers of calls that its space allows.
        fresh: judge on 4,000 other states instead of the 256 of the search.
    """

    def __init__(self, nfes: Sequence[int] = (5,), *, fresh: bool = False) -> None:
        self.noise = VPLinear(t_min=ENDS[0])
        self.space = Space(self.noise, tuple(nfes), ends=ENDS)
        count, seed = (FRESH_STATES, 2) if fresh else (SEARCH_STATES, 1)
        self.start: Floats = np.random.default_rng(seed).standard_normal(count)

    @cached_property
    def problem(self) -> GaussianMixture:
        """The data's law."""
        means = torch.tensor(MEANS, dtype=torch.float64, device="cpu")[:, None]
        variances = torch.tensor(SPREADS, dtype=torch.float64, device="cpu") ** 2
        return GaussianMixture(means, variances, WEIGHTS, noise=self.noise)

    @cached_property
    def exact(self) -> Floats:
        """Where the ODE takes the states."""
        first = self.noise.t_max
        states = torch.from_numpy(self.start)[:, None] * self.noise.sigma(first)
        out: Floats = self.problem.ode_solution(states, first, self.noise.t_clean)[:, 0].numpy()
        return out

    def denoise(self, x: Floats, alpha: Floats, sigma: Floats) -> Floats:
        """The exact `E[x_0 | x]`, for `simulate`."""
        (w, v), (m, n), (a, b) = WEIGHTS, MEANS, SPREADS
        one, two = alpha**2 * a**2 + sigma**2, alpha**2 * b**2 + sigma**2
        gap, other = x - alpha * m, x - alpha * n
        odds = math.log(v / w) + 0.5 * np.log(one / two) + gap**2 / (2 * one) - other**2 / (2 * two)
        share = 1 / (1 + np.exp(np.clip(-odds, -700, 700)))
        first, second = m + alpha * a**2 / one * gap, n + alpha * b**2 / two * other
        return first + share * (second - first)

    def scores(self, g: Genes) -> Floats:
        """`[P]` of schedules in the space; infinite where samples are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            gap = simulate(self.noise, g, self.denoise, self.start) - self.exact
            out = np.sqrt((gap**2).mean(1))
        return np.where(np.isfinite(out), out, np.inf)

    def score(self, schedule: SolverSchedule) -> float:
        """Of any schedule, by its table."""
        table = schedule.tabulate(self.noise)
        start = torch.from_numpy(self.start)[:, None] * table.sigma[0]
        out = sample(lambda x, t, _: self.problem.denoise(x, t), table, start=start)[:, 0].numpy()
        value = float(np.sqrt(((out - self.exact) ** 2).mean()))
        return value if math.isfinite(value) else math.inf

    def __call__(self, schedule: SolverSchedule) -> float:
        """Of any schedule, the quick way where there is one."""
        genes = self.space.encode(schedule)
        exact = genes is not None and self.space.decode(genes).canonical() == schedule.canonical()
        return float(self.scores(genes)[0]) if genes is not None and exact else self.score(schedule)
