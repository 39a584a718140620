"""Analytic problems: data whose denoiser, score, density and samples are exact at every noise level.

    problem = fewstep.problems.get("grid_8x8")
    problem.nll(fewstep.sample(problem.denoiser(), tableau, seeds=range(10_000)))

They are what solvers and schedules are tested on where no network can be wrong, and every one works with any noise
schedule (`get(name, noise=...)`). Points without a closed denoiser, for small networks, are in
`fewstep.problems.datasets`.
"""

from fewstep.problems import datasets
from fewstep.problems.base import Problem
from fewstep.problems.catalogue import NAMES, get
from fewstep.problems.gaussian import Gaussian
from fewstep.problems.mixture import GaussianMixture

__all__ = ["NAMES", "Gaussian", "GaussianMixture", "Problem", "datasets", "get"]
