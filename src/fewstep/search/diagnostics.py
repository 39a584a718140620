"""How far a KLUB read off a `Gram` can be trusted: too few samples, too few levels, a network that is no martingale.

Also the constant by which the KLUB of other members of the paper's solver family differs (its Eq. 32).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.noise import as_float64
from fewstep.search.klub import Gram
from fewstep.search.lookup import Lookup

FINER = 8
SPLINE = 4
"""Noise levels that a cubic spline needs."""


@dataclass(frozen=True)
class Diagnostics:
    """The KLUB of one grid, and its errors.

    Attributes:
        klub: per dimension, in nats.
        standard_error: over the data samples (jackknife); NaN where the table has one part only.
        interpolation_error: the value less what infinitely many noise levels would give, estimated; signed.
        martingale_defect: `Gram.martingale_defect`: 0 for an ideal denoiser, whose KLUB depends on its loss alone. It
            is not an error of the value: for guided or imperfect networks the value is right and this is not 0.
        samples, levels: of the table.
    """

    klub: float
    standard_error: float
    interpolation_error: float
    martingale_defect: float
    samples: int
    levels: int

    @property
    def text(self) -> str:
        """Two sentences for a report."""
        relative = 100 * abs(self.interpolation_error) / self.klub if self.klub else 0.0
        error = f" +- {self.standard_error:.2g}" if math.isfinite(self.standard_error) else ""
        return (
            f"KLUB {self.klub:.4g}{error} nats per dimension from {self.samples} samples; "
            f"{self.levels} noise levels leave an error of {relative:.2g} %. "
            f"The outputs miss a martingale by {100 * self.martingale_defect:.2g} % of the largest loss."
        )


def diagnose(gram: Gram, ratios: Tensor) -> Diagnostics:
    """The diagnostics of a grid's KLUB.

    Args:
        gram: the table.
        ratios: `[n+1]` the grid, rising or falling, as for `Gram.total`.
    """
    klub, error = gram.total_with_error(ratios)
    return Diagnostics(
        klub, error, interpolation_error(gram, ratios), gram.martingale_defect(), gram.samples, len(gram.ratios)
    )


def interpolation_error(gram: Gram, ratios: Tensor) -> float:
    """The KLUB of a grid less what infinitely many noise levels would give, estimated.

    The look-up is exact for squared distances that are linear in log r between levels. The error of that depends on
    where in their cells the grid's points lie, so that halving the levels (Richardson) does not show it. Instead the
    distances are laid on `FINER` times as many levels by cubic splines, and looked up there. What is smooth, and so
    fit for a spline, is `sign(k - j) E|D_j - D_k|^2`, which for an ideal denoiser is `m(r_k) - m(r_j)`.

    Errors: `ArgumentError` for a table of less than four levels.
    """
    from scipy.interpolate import RectBivariateSpline

    logs, levels = gram.ratios.log().numpy(), len(gram.ratios)
    if levels < SPLINE:
        raise ArgumentError(f"the table has {levels} noise levels: make one with at least {SPLINE}")
    signs = np.sign(np.arange(levels)[None, :] - np.arange(levels)[:, None])
    smooth: Any = RectBivariateSpline(logs, logs, signs * gram.gaps.numpy(), s=0)
    parts = np.arange(FINER * (levels - 1) + 1) / FINER
    fine = np.interp(parts, np.arange(levels), logs)
    lookup = Lookup(torch.from_numpy(np.exp(fine)), torch.from_numpy(np.abs(smooth(fine, fine))))
    r = as_float64(ratios).sort().values.numpy()
    return gram.total(ratios) - float(lookup.klub(r[:-1].clip(gram.ratios[0].item()), r[1:]).sum())


def family_factor(lam: float) -> float:
    """By what the KLUB of the solver family's member lambda exceeds `Gram.klub`: (lambda^2 + 1)^2 / (4 lambda^2).

    The family (AYS, Eq. 32; `Step(basis="data", order=1, tau=lambda)`) steps from ratio b to a by

        x_a = (a/b)^(lambda^2 + 1) x_b + (1 - (a/b)^(lambda^2 + 1)) D(x_b) + a sqrt(1 - (a/b)^(2 lambda^2)) z,

    the exact solution of `dx = (1 + lambda^2) (x - D) / t dt + lambda sqrt(2 t) dw` with D frozen, so that Girsanov's
    integrand is `(1 + lambda^2)^2 / (4 lambda^2) |D_t - D_b|^2 t^-3`. At lambda = 1 (stochastic DDIM) the factor is 1
    and least. It does not depend on the grid: all members have the same KLUB-optimal times. The paper prints twice
    this, (lambda^2 + 1)^2 / (2 lambda^2), with its integral's factor of 2 left inside.

    Errors: `ArgumentError` unless lambda is positive; the ODE (lambda = 0) has no such bound.
    """
    if not (lam > 0 and math.isfinite(lam)):
        raise ArgumentError(f"lam is {lam}: give a positive number; the KLUB of the ODE, lambda = 0, is infinite")
    return (lam**2 + 1) ** 2 / (4 * lam**2)
