"""DyWeight (Westlake-AGI-Lab/DyWeight): snapshots of its predictor, and its files for FLUX.

One step is `x' = x + (t' - t) sum_j W_ij d_j` with slopes `d_j = (x_j - net(x_j, |s_j t_j|)) / (t_j + 1e-8)`. t' is the
nominal next time, and t the one that was really reached, which rows of another sum than one move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.builder import Form
from fewstep.errors import ArgumentError
from fewstep.noise import Flow, NoiseSchedule
from fewstep.peers.grids import checked, shifted
from fewstep.peers.held import Contents, parameters
from fewstep.peers.setting import Setting, setting
from fewstep.peers.sheet import FREE, Sheet, mix
from fewstep.tableau import Tableau

NAME = "DyWeight"
TINY = 1e-8
"""Added to the time that a slope is divided by."""


def read_snapshot(
    contents: Contents,
    noise: NoiseSchedule | None,
    *,
    sigmas: Sequence[float] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tableau:
    """A network-snapshot-*.pkl of `train.py`."""
    predictor = contents.predictor
    where = setting(contents, noise, sigmas, (sigma_min, sigma_max))
    held = parameters(predictor)
    weights, mask = held.get("hybrid_weights"), parameters(predictor, "_buffers").get("mask")
    n = len(where.levels) - 1
    if not weights or len(weights) != n:
        raise contents.broken(f"has no {n} x {n} weights")
    masked = [[w * (mask[i][j] if mask else 1.0) for j, w in enumerate(row)] for i, row in enumerate(weights)]
    return _table(where, masked, held.get("t_scale") or [1.0] * (n - where.free))


def read_flux(
    contents: Contents,
    noise: NoiseSchedule | None,
    *,
    sigmas: Sequence[float] | None = None,
    shift: float | None = None,
) -> Tableau:
    """A final-step.pt or dyweight_nfe*.pt of `train_flux.py`: weights and scales, no times."""
    weights, scales = contents.get("dyweight_weights_raw"), contents.get("dyweight_t_scales")
    if not isinstance(weights, list) or not isinstance(scales, list) or len(weights) != len(scales):
        raise contents.broken("has no weights and scales of one length")
    n = len(scales)
    if (sigmas is None) == (shift is None):
        raise ArgumentError(
            f"{contents.path} does not hold the times: give shift= (e to the pipeline's mu, 3.158 for FLUX at 1024 x "
            f"1024), or all {n + 1} as sigmas=[...], the last 0 included"
        )
    levels = (
        checked(sigmas, n + 1) if sigmas is not None else [*shifted([1 - i / n for i in range(n)], shift or 1), 0.0]
    )
    noise = Flow() if noise is None else noise
    meta: dict[str, Any] = {"peer": {"file": contents.path.name, "class": "DyweightParams", "dataset": "flux"}}
    return _table(Setting(noise, Flow(), levels, False, meta), weights, scales)


def _table(where: Setting, weights: list[list[float]], scales: list[float]) -> Tableau:
    sheet, flow = Sheet(where.frame, where.noise), isinstance(where.frame, Flow)
    x, reached, slopes = sheet.start(where.levels[0]), where.levels[0], list[Form]()
    for i, (_, after) in enumerate(where.steps):
        if where.free and i == 0:
            sheet.expected.append(FREE)
            slopes.append(mix(((1 + reached**2) ** -0.5, x)))
        else:
            scale = scales[i - where.free] if i - where.free < len(scales) else 1.0
            told = abs(scale * reached)
            x, x0 = sheet.ask(x, reached, told)
            # FLUX answers with a velocity, (x - x0) / told.
            size = told if flow else reached + TINY
            slopes.append(mix((1 / size, x), (-1 / size, x0)))
        row = weights[i][: i + 1]
        x = mix((1.0, x), *((w * (after - reached), d) for w, d in zip(row, slopes, strict=True) if w))
        reached = reached + sum(row) * (after - reached)
        if not reached > 0 and i < len(where.steps) - 1:
            raise ArgumentError(f"after step {i} the time reached is {reached:g}: these weights do not fit these times")
    return sheet.finished(x, where.levels[-1], NAME, where.meta)
