"""EPD and its plugin for iPNDM (BeierZhu/EPD), and AdaSDE (Westlake-AGI-Lab/AdaSDE): snapshots of their predictors.

A step asks for the slope d at t, and then at K points inside it, `t_k = t'^r_k t^(1 - r_k)`:
`x' = x + (t' - t) sum_k w_k c_k d_k` with `d_k = (x_k - net(x_k, a_k t_k)) / t_k` and `x_k = x + (t_k - t) d`.
The plugin goes to x_k along iPNDM's mixture of d and the slopes before. AdaSDE first adds noise, up to (1 + gamma) t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fewstep.builder import Form
from fewstep.errors import ArgumentError
from fewstep.networks.edm_pickle import Record
from fewstep.noise import NoiseSchedule
from fewstep.peers.held import Contents, parameters
from fewstep.peers.setting import Setting, setting
from fewstep.peers.sheet import FREE, Sheet, mix
from fewstep.tableau import Tableau

ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
GAMMA_MIN, GAMMA_SHARE = 1e-4, 0.6
"""AdaSDE's smallest gamma where the file has none, and the share of the largest at which its parameter is 0."""
NAMES = {"EPD_predictor": "EPD", "adasde_predictor": "AdaSDE"}


class Points(NamedTuple):
    """The inner points of one step, and the noise before it."""

    r: list[float]
    weight: list[float]
    direction: list[float]
    time: list[float]
    gamma: float


def read_snapshot(
    contents: Contents,
    noise: NoiseSchedule | None,
    *,
    sigmas: Sequence[float] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    shift: float | None = None,
) -> Tableau:
    """A network-snapshot-*.pkl of either project's `train.py`, or an exported predictor of EPD-Solver++."""
    predictor = contents.predictor
    where = setting(contents, noise, sigmas, (sigma_min, sigma_max), shift)
    steps, said = len(where.levels) - 1, predictor.state
    held = parameters(predictor)
    wanted = ["r_params", "weight_s", "scale_dir_params", "scale_time_params"]
    wanted += ["gamma_params"] if said.get("gamma") else []
    if any(len(held.get(name) or []) != steps for name in wanted):
        raise contents.broken(f"has no parameters of {steps} steps")
    points = [_points(predictor, {name: held[name][i] for name in wanted}, i, steps) for i in range(steps)]
    window = 1
    if said.get("sampler_stu") == "ipndm":
        window = int(said.get("max_order") or 4)
        if not 1 <= window <= len(ADAMS):
            raise contents.broken(f"says max_order={window}")
    return _table(where, points, window, NAMES[predictor.class_name])


def _points(predictor: Record, raw: dict[str, list[float]], i: int, steps: int) -> Points:
    said = predictor.state
    sde = predictor.class_name == "adasde_predictor"

    def near_one(name: str) -> list[float]:
        width = float(said.get(name) or 0.0)
        width = min(width, 0.99) if sde else width
        return [1 + width * math.tanh(p / (2 if sde else 4)) for p in raw[f"{name}_params"]]

    exponentials = [math.exp(p - max(raw["weight_s"])) for p in raw["weight_s"]]
    weight = [e / sum(exponentials) for e in exponentials]
    direction = [1.0 for _ in weight] if said.get("fcn") and i == steps - 1 else near_one("scale_dir")
    gamma = 0.0
    if "gamma_params" in raw and i > 0:
        low, high = float(said.get("gamma_min", GAMMA_MIN)), float(said["gamma"])
        offset = math.log(GAMMA_SHARE / (1 - GAMMA_SHARE))
        each = [low + (high - low) * _sigmoid(p / 2 + offset) for p in raw["gamma_params"]]
        gamma = sum(w * g for w, g in zip(weight, each, strict=True))
    return Points([_sigmoid(p) for p in raw["r_params"]], weight, direction, near_one("scale_time"), gamma)


def _sigmoid(p: float) -> float:
    return 1 / (1 + math.exp(-p)) if p >= 0 else math.exp(p) / (1 + math.exp(p))


def _table(where: Setting, points: list[Points], window: int, name: str) -> Tableau:
    sheet = Sheet(where.frame, where.noise)
    x, slopes = sheet.start(where.levels[0]), list[Form]()
    for i, ((t, after), inner) in enumerate(zip(where.steps, points, strict=True)):
        if inner.gamma > 0:
            raised = (1 + inner.gamma) * t
            x, t = mix((1.0, x), (math.sqrt(raised**2 - t**2), sheet.draw())), raised
        if where.free and i == 0:
            sheet.expected.append(FREE)
            slope = mix(((1 + t**2) ** -0.5, x))
        else:
            x, x0 = sheet.ask(x, t)
            slope = mix((1 / t, x), (-1 / t, x0))
        slopes = [slope, *slopes][:window]
        ahead = mix(*zip(ADAMS[len(slopes) - 1], slopes, strict=True))
        moved = x
        for r, w, c, a in zip(*inner[:4], strict=True):
            at = after**r * t ** (1 - r)
            if not at > 0:
                raise ArgumentError("a step ends at sigma = 0, and has no points inside: leave the 0 out of sigmas")
            there, x0 = sheet.ask(mix((1.0, x), (at - t, ahead)), at, a * at)
            share = w * c * (after - t) / at
            moved = mix((1.0, moved), (share, there), (-share, x0))
        x = moved
    return sheet.finished(x, where.levels[-1], name, where.meta)
