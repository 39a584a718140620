"""What a surrogate sees of a schedule: a token for each step, and how it would do on data that are known beforehand.

On Gaussian data every schedule is a straight line from noise to sample, and its errors there are exact and cost
microseconds. They are known of any schedule before the first evaluation: how much of the spread of a mode of width c it
loses, and how far it moves the mean. The surrogate learns what they leave open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.search.s3.genes import AFS, BASES, CORRECTORS, HIGHEST, SCALINGS, Floats, Genes, Ints
from fewstep.search.s3.simulate import simulate
from fewstep.search.s3.space import Space

SPREADS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0)
"""Standard deviations of the Gaussian data, for images within [-1, 1]."""
SMALL = 3e-3
"""Errors are told apart down to about this size."""
REALS, OCTAVES = 6, 4
FARTHEST = 12.0
"""log(alpha / sigma) is cut here where it is infinite."""


@dataclass(frozen=True)
class Features:
    """Of P schedules.

    Attributes:
        tokens: `[P, L, d]`, 0 beyond the last step.
        steps: `[P]` number of tokens.
        errors: `[P, e]` on Gaussian data, squashed.
        nfe: `[P]`.
    """

    tokens: Floats
    steps: Ints
    errors: Floats
    nfe: Ints

    @property
    def waves(self) -> range:
        """Which entries of a token are sines and cosines of its place."""
        return range(REALS, REALS + 2 * OCTAVES)

    def take(self, rows: Ints) -> Features:
        """Some of the schedules."""
        return Features(self.tokens[rows], self.steps[rows], self.errors[rows], self.nfe[rows])


def features(space: Space, g: Genes) -> Features:
    """The features of schedules."""
    return Features(_tokens(space, g), g.steps, gaussian_errors(space, g), g.nfe)


def _tokens(space: Space, g: Genes) -> Floats:
    lam = np.clip(space.lam(np.where(np.isnan(g.times), space.noise.t_clean, g.times)), -FARTHEST, FARTHEST)
    top, end = lam[:, :1], float(np.clip(space.lam(np.array([space.last_times[0]]))[0], -FARTHEST, FARTHEST))
    place = (lam - top) / (end - top)
    gap = np.maximum(np.diff(lam, axis=1), 1e-3)
    # How long the step is beside the one before it: what extrapolation depends on.
    ratio = np.log(gap[:, 1:] / gap[:, :-1])
    ratio = np.concatenate([np.zeros((len(g), 1)), ratio], 1).clip(-4, 4)
    reals = [np.log(gap), ratio, g.r * 4, g.r * gap, g.tau]
    waves = [f(place[:, 1:] * np.pi * 2**k) for k in range(OCTAVES) for f in (np.sin, np.cos)]
    parts = [place[:, 1:, None] * 2 - 1, *(r[:, :, None] for r in (*reals, *waves))]
    counts = (("order", HIGHEST + 1), ("basis", len(BASES)), ("low", 3), ("scaling", len(SCALINGS)),
              ("corrector", len(CORRECTORS)), ("start", 4))  # fmt: skip
    parts += [np.eye(n)[getattr(g, name)] for name, n in counts]
    parts.append(np.broadcast_to(np.eye(len(AFS))[g.afs][:, None], (*g.order.shape, len(AFS))))
    return np.concatenate(parts, 2) * g.live[:, :, None]


def gaussian_errors(space: Space, g: Genes) -> Floats:
    """`[P, 4 |SPREADS|]` errors of gain and of mean on Gaussian data, each signed and by its size."""
    c = np.array(SPREADS + SPREADS)
    m = np.repeat([0.0, 1.0], len(SPREADS))
    z = 1 - m

    def denoise(x: Floats, alpha: Floats, sigma: Floats) -> Floats:
        gain = alpha * c**2 / (alpha**2 * c**2 + sigma**2)
        return m + gain * (x - alpha * m)

    noise = space.noise
    alpha, sigma = float(noise.alpha(noise.t_max)), float(noise.sigma(noise.t_max))
    exact = m + c * (sigma * z - alpha * m) / np.sqrt(alpha**2 * c**2 + sigma**2)
    with np.errstate(over="ignore", invalid="ignore"):
        error = simulate(noise, g, denoise, z) - exact
    error = np.nan_to_num(error / np.where(m == 0, c, 1.0), nan=1e3, posinf=1e3, neginf=-1e3).clip(-1e3, 1e3)
    signed = np.arcsinh(error / SMALL) / 4
    return np.concatenate([signed, np.log10(np.abs(error) + SMALL / 4) + 2], 1)
