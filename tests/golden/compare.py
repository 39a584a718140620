"""Row-by-row comparison of one of our tables with a golden one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.tableau import Tableau

from . import Golden


@dataclass(frozen=True)
class Gap:
    """Largest differences, relative to each row's largest entry."""

    weights: Tensor
    """[S] of the weights on start and outputs."""
    noise: float
    """Of the weights on noise, column by column; inf where the draws are split differently."""
    covariance: float
    """Of the covariance of the states' noise, which does not care how draws are split; relative to sigma^2."""
    variance: float
    """Of its diagonal alone."""
    times: float
    """Of the levels of the states."""

    @property
    def worst(self) -> float:
        return max(self.weights.max().item(), self.noise)


def rows_of(tableau: Tableau, *, exploding: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(start, outputs, noise, ratio)` at the evaluated rows and the sample; exploding: of states over their alpha."""
    a, b, c, _ = tableau.expanded
    if exploding:
        alpha = tableau.alpha
        a, b, c = a * alpha[0] / alpha, b / alpha[:, None], c / alpha[:, None]
    keep = [i for i, e in enumerate(tableau.evaluated) if e] + [tableau.rows - 1]
    used = (c != 0).any(0)
    return a[keep], b[keep][:, keep[:-1]], c[keep][:, used], (tableau.sigma / tableau.alpha)[keep]


def gap(golden: Golden, tableau: Tableau, *, exploding: bool = False) -> Gap:
    """How far our table is from a golden one of the same frame (exploding: ours is divided by alpha first).

    Raises:
        AssertionError: they do not make the same number of network calls.
    """
    start, outputs, noise, ratio = rows_of(tableau, exploding=exploding)
    assert outputs.shape == golden.outputs.shape, (
        f"{outputs.shape[1]} network calls, theirs makes {golden.outputs.shape[1]}"
    )
    ours = torch.cat([start[:, None], outputs], 1)
    theirs = torch.cat([golden.start[:, None], golden.outputs], 1)
    largest = theirs.abs().amax(1).clamp_min(1e-30)
    same = noise.shape == golden.noise.shape
    columns = (
        ((noise - golden.noise).abs().amax(1) / largest).max().item()
        if same and noise.shape[1]
        else (0.0 if same else torch.inf)
    )
    covariance = [noise @ noise.T, golden.noise @ golden.noise.T]
    scale = torch.maximum(covariance[1].diagonal(), golden.levels[:, 1] ** 2).sqrt()
    scale = scale.clamp_min(1e-6 * scale.max())
    relative = (covariance[0] - covariance[1]).abs() / (scale[:, None] * scale)
    theirs_ratio = golden.ratio
    finite = theirs_ratio.isfinite() & ratio.isfinite()
    times = ((ratio - theirs_ratio)[finite].abs() / theirs_ratio[finite].abs().clamp_min(1e-3)).max().item()
    return Gap(
        (ours - theirs).abs().amax(1) / largest, columns, relative.max().item(), relative.diagonal().max().item(), times
    )
