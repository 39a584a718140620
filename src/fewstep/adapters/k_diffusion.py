"""k-diffusion's calling convention, which ComfyUI and the WebUIs share: `sample_x(model, x, sigmas, ..., **options)`.

The state is variance exploding (alpha = 1), the time told to the model is sigma, and the model answers with x0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.probe import Host
from fewstep.script import Script


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def host(sampler: Callable[..., Any], *args: Any, **options: Any) -> Host:
    """A sampler function as a host for `probe`; Brownian noise is traced over disjoint increments.

    Args:
        sampler: `sample_x(model, x, *args, **options)`.
        args: what follows model and x, usually the sigmas.
        options: passed on; a `noise_sampler` of your own is left alone (and its noise is then not traced).
    """

    def run(script: Script) -> Tensor:
        def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            level = float(sigma.reshape(-1)[0])
            return script.output(x, level, 1.0, level)

        given = dict(options)
        if takes(sampler, "noise_sampler"):
            given.setdefault("noise_sampler", lambda first, second: script.increment(float(first), float(second)))
        if takes(sampler, "disable"):
            given.setdefault("disable", True)  # its progress bar
        return sampler(model, script.start(), *args, **given)

    return run
