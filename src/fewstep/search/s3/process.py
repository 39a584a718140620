"""The quick surrogate: a Gaussian process over what a schedule does on Gaussian data, and over its decisions.

It learns from a dozen trials, in milliseconds, and knows what it does not know. Beside the sequence model it is the
one that the search uses by default; `docs/theory/s3.md` shows the two next to each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fewstep.search.s3.features import Features
from fewstep.search.s3.genes import Floats, Ints
from fewstep.search.s3.surrogate import normalised, rank_correlation
from fewstep.search.surrogate import Process

SLOTS = 12
"""Steps are read at so many places along a schedule, so that schedules of unequal length compare."""
WEIGHTS = (0.3, 0.6)
"""Of decisions beside errors; the likelier one is taken."""
CALLS = 0.5
"""Weight of a doubling of the number of calls."""
FOLDS = 5
MOST = 500
"""Trials that a process is made of: the best and the newest ones."""


class ProcessModel:
    """Fitted to scored schedules.

    Args:
        known: their features.
        scores: lower is better; infinite ones count as the worst.

    Attributes:
        unseen: `[P]` each trial's prediction from the other folds (NaN where it was not used); `fold` of the used ones.
        tau: rank correlation of these with the scores, averaged over the numbers of calls.
    """

    def __init__(self, known: Features, scores: Floats) -> None:
        values = normalised(scores, known.nfe)
        self.used = _chosen(values, known.nfe)
        known, values = known.take(self.used), values[self.used]
        self._blocks = [_Block(known.errors), _Block(_decisions(known))]
        best = -np.inf
        for weight in WEIGHTS:
            points = self._points(known, weight)
            process = Process(points, values, np.ones(len(values)), np.ones(points.shape[1]))
            likelihood = -0.5 * process.half @ process.half - np.log(np.diag(process.root)).sum()
            if likelihood > best:
                best, self.weight, self.process = likelihood, weight, process
        self.fold = np.random.default_rng(0).permutation(len(values)) % FOLDS
        residual = _left_out(self.process, self.fold)
        self.unseen: Floats = np.full(len(scores), np.nan)
        self.unseen[self.used] = values - residual
        self.tau = rank_correlation(values - residual, values, known.nfe)

    def predict(self, f: Features) -> tuple[Floats, Floats]:
        """Mean and deviation of the normalised scores `[P]`."""
        return self.process.predict(self._points(f, self.weight))

    def points(self, f: Features) -> Floats:
        """Where schedules lie, in units of the process's length: near ones score alike."""
        return self._points(f, self.weight) / self.process.length

    def _points(self, f: Features, weight: float) -> Floats:
        errors, decisions = self._blocks
        calls = CALLS * np.log2(f.nfe)[:, None]
        return np.concatenate([errors(f.errors), weight * decisions(_decisions(f)), calls], 1)


def _left_out(process: Process, fold: Ints) -> Floats:
    """`[P]` value less prediction of each trial, its fold left out: `(K^-1)_FF^-1 (K^-1 y)_F`, without a second fit."""
    inverse = np.linalg.inv(process.root)
    precision, pull = inverse.T @ inverse, inverse.T @ process.half
    out = np.empty(len(fold))
    for k in np.unique(fold):
        rows = np.flatnonzero(fold == k)
        out[rows] = np.linalg.solve(precision[np.ix_(rows, rows)], pull[rows])
    return out * process.scale


class _Block:
    """Columns in units of their spread, so that the block's mean squared distance is about 1."""

    def __init__(self, known: Floats) -> None:
        spread = known.std(0)
        self.mean = known.mean(0)
        self.unit = (spread + 0.1 * spread.mean() + 1e-3) * np.sqrt(known.shape[1])

    def __call__(self, values: Floats) -> Floats:
        return (values - self.mean) / self.unit


def _decisions(f: Features) -> Floats:
    """The tokens at `SLOTS` places, without the waves, which only a network needs."""
    index = ((np.arange(SLOTS) + 0.5) / SLOTS * f.steps[:, None]).astype(np.int64)
    kept = [c for c in range(f.tokens.shape[2]) if c not in f.waves]
    return np.take_along_axis(f.tokens[:, :, kept], index[:, :, None], 1).reshape(len(f.steps), -1)


def _chosen(values: Floats, nfe: Ints) -> Ints:
    """At most `MOST` trials: half of them the newest, the others the best of each number of calls."""
    count = len(values)
    if count <= MOST:
        return np.arange(count)
    groups: Sequence[int] = np.unique(nfe).tolist()
    place = np.empty(count)
    for n in groups:
        rows = np.flatnonzero(nfe == n)
        place[rows] = values[rows].argsort(kind="stable").argsort(kind="stable")
    place[-MOST // 2 :] = -1
    return np.sort(place.argsort(kind="stable")[:MOST])
