"""What DyWeight's, EPD's and AdaSDE's snapshots say around their parameters: steps, times, the network's family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from fewstep.errors import ArgumentError
from fewstep.networks.edm_pickle import Held
from fewstep.noise import EDM, Flow, NoiseSchedule
from fewstep.peers.grids import checked, ladder, shifted
from fewstep.peers.held import Contents

EDM_DATA = ("cifar10", "ffhq", "afhqv2", "imagenet64")
"""Their names of the data sets whose networks are EDM's, so that the file alone says the noise schedule."""


@dataclass(frozen=True)
class Setting:
    """What a snapshot was made for.

    Attributes:
        noise: the network's.
        frame: the noise schedule in which the formulas are written: variance exploding, or flow matching.
        levels: `[n+1]`, its times along the steps.
        free: whether the first step is free (the analytical first step).
        meta: for the table.
    """

    noise: NoiseSchedule
    frame: NoiseSchedule
    levels: list[float]
    free: bool
    meta: dict[str, Any]

    @property
    def steps(self) -> list[tuple[float, float]]:
        """The nominal ends of every step."""
        return list(pairwise(self.levels))


def setting(
    contents: Contents,
    noise: NoiseSchedule | None,
    sigmas: Sequence[float] | None,
    ends: tuple[float | None, float | None],
    shift: float | None = None,
) -> Setting:
    """The setting of a snapshot.

    Args:
        contents: of the file.
        noise: the network's, if the user gave one.
        sigmas: all levels, if the user gave them.
        ends: sigma_min and sigma_max, if the user gave them.
        shift: of a flow matching scheduler, if the user gave it.

    Raises:
        ArgumentError: what the file does not say, and the user did not.
    """
    predictor, loss = contents.predictor, contents.record("loss_fn")
    said: Mapping[str, Any] = {**(loss.state if loss else {}), **predictor.state}
    n, kind, data = int(said["num_steps"]), str(said.get("schedule_type", "polynomial")), said.get("dataset_name")
    flow = kind == "flowmatch"
    if sigmas is not None and (ends, shift) != ((None, None), None):
        raise ArgumentError("sigmas= are all levels: leave sigma_min=, sigma_max= and shift= out")
    if shift is not None and not flow:
        raise ArgumentError(f"shift= is for flow matching, and the times of {contents.path} are {kind!r}: leave it out")
    if noise is None:
        if not flow and data not in EDM_DATA:
            raise ArgumentError(
                f"{contents.path} was learned for {data!r}, and does not hold that network's noise schedule: give "
                "noise= (--noise), e.g. fewstep.noise.Discrete.scaled_linear() for Stable Diffusion"
            )
        noise = Flow() if flow else EDM()
    if sigmas is not None:
        levels = checked(sigmas, n)
    elif flow:
        levels = _flow_levels(contents, said, n, ends, shift)
    else:
        levels = _levels(said, n, kind, noise, ends, edm=data in EDM_DATA)
    meta = {
        "file": contents.path.name, "class": predictor.class_name, "dataset": data, "schedule": kind,
        "guidance": said.get("guidance_rate"),
    }  # fmt: skip
    frame = Flow() if flow else EDM(max(levels[-1], 1e-9), levels[0])
    return Setting(noise, frame, levels, bool(said.get("afs")), {"peer": meta})


def _levels(
    said: Mapping[str, Any],
    n: int,
    kind: str,
    noise: NoiseSchedule,
    ends: tuple[float | None, float | None],
    *,
    edm: bool,
) -> list[float]:
    kept = said.get("t_steps")
    if isinstance(kept, Held) and kept.tensor.shape == (n,) and ends == (None, None):
        return kept.tensor.tolist()
    own = (said.get("sigma_min"), said.get("sigma_max")) if edm else (None, None)
    range_ = (noise.ratio(noise.t_min).item(), noise.ratio(noise.t_max).item())
    low, high = (next(v for v in pair if v is not None) for pair in zip(ends, own, range_, strict=True))
    if not 0 < low < high < math.inf:
        raise ArgumentError(f"sigma_min={low:g} and sigma_max={high:g}: give 0 < sigma_min < sigma_max, both finite")
    return ladder(kind, n, noise, (low, high), float(said.get("schedule_rho", 7.0)))


def _flow_levels(
    contents: Contents, said: Mapping[str, Any], n: int, ends: tuple[float | None, float | None], shift: float | None
) -> list[float]:
    """Equal steps between the ends, shifted as the pipeline's scheduler shifts them; the last 0 is left out."""
    kept = cast(Mapping[str, Any], said.get("backend_config") or {})
    mu, low, high = kept.get("flowmatch_mu"), ends[0] or kept.get("sigma_min"), ends[1] or kept.get("sigma_max", 1.0)
    shift = shift or (math.exp(mu) if mu is not None else kept.get("flowmatch_shift"))
    if not (low and high and shift):
        raise ArgumentError(
            f"{contents.path} does not hold the times of its flow matching scheduler: give the scheduler's shift= (3 "
            f"for Stable Diffusion 3) and sigma_min=, or all {n} as sigmas=[...], without the last 0"
        )
    return shifted([high + i / (n - 1) * (low - high) for i in range(n)], shift)
