"""Networks that are told another time than their state's: what that does to a table.

A host that rounds times hands its network the state of time t with the word "t'". A `Denoiser` at t' takes its input
for a state of t', so the x0 that the host forms at t is a mix of the state and of that answer: entries of A and B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.noise import NoiseSchedule
from fewstep.tableau import Tableau

Prediction = Literal["x0", "epsilon", "v", "flow"]


def at_model_times(
    noise: NoiseSchedule,
    prediction: Prediction,
    a: Tensor,
    b: Tensor,
    times: Tensor,
    told: Tensor,
    alpha: Tensor,
    sigma: Tensor,
) -> tuple[Tensor, Tensor]:
    """Outputs as x0 at the time told: `D_t = p x + q D_told` by what the network predicts, which gives entries of A."""
    if prediction == "x0":
        return a, b
    moved = ((told - times).abs() > 1e-6 * times.abs().clamp_min(1e-3)) & (sigma > 0)
    if not moved.any():
        return a, b
    there, noisy = noise.alpha(told), noise.sigma(told)
    q = sigma / noisy
    if prediction == "epsilon":
        p, q = (1 - q) / alpha, q * there / alpha
    else:  # velocities: x0 = alpha x - sigma v on the circle, x - sigma u on straight paths
        p = alpha - q * there if prediction == "v" else 1 - q
    p, q = torch.where(moved, p, torch.zeros_like(p)), torch.where(moved, q, torch.ones_like(q))
    return a + (b * p).tril(-1), b * q


def told_other_times(tableau: Tableau, told: Tensor, prediction: Prediction) -> Tableau:
    """The table of a host that runs this one and tells its network the times `told [S]` instead.

    Only for tables whose network is told the times of the states so far.
    """
    assert tableau.noise is not None
    called = torch.tensor(tableau.evaluated)
    told = torch.where(called, told, tableau.times)
    if bool(((told - tableau.times).abs() <= 1e-9 * tableau.times.abs().clamp_min(1)).all()):
        return tableau
    a, b = at_model_times(
        tableau.noise, prediction, tableau.A, tableau.B, tableau.times, told, tableau.alpha, tableau.sigma
    )
    return replace(
        tableau, A=a, B=b, model_times=told, schedule=None, expected=(*tableau.expected, "the host rounds its times")
    )
