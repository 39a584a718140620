"""Times: where the states of a sampler are, from noisy to clean.

Hand-crafted grids (`uniform`, `karras`, `logsnr`, ...), published lists (`published`), checks for a user's own
(`check`) and other step counts (`resample`). `NAMES` holds the hand-crafted grids that differ from one another and suit
every noise schedule, for sweeps; `ALIASES` the other names of the field.

>>> from fewstep import noise, times
>>> times.karras(noise.EDM(), 4, end="min")
tensor([8.0000e+01, 1.7528e+01, 2.5152e+00, 1.6975e-01, 2.0000e-03],
       dtype=torch.float64)
"""

from collections.abc import Callable

from torch import Tensor

from fewstep.errors import ArgumentError
from fewstep.times.discrete import leading, linspace, trailing
from fewstep.times.ends import check, grid
from fewstep.times.grids import (
    beta,
    cosine,
    cosine_logsnr,
    exponential,
    flow_shift,
    karras,
    laplace,
    logsnr,
    polyexponential,
    quadratic,
    sgm_uniform,
    tangent,
    uniform,
    vp_uniform,
)
from fewstep.times.published import HOSTS, PUBLISHED, Published, listed, published
from fewstep.times.resample import resample

edm = karras

NAMES: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "logsnr": logsnr,
    "karras": karras,
    "cosine_logsnr": cosine_logsnr,
    "tangent": tangent,
    "beta": beta,
    "vp_uniform": vp_uniform,
    "flow_shift": flow_shift,
    "laplace": laplace,
    "cosine": cosine,
}
"""Hand-crafted grids for any noise schedule, `name(noise, n, *, start, end, clip, ...)`."""

ALIASES: dict[str, Callable[..., Tensor]] = {
    "edm": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "kl_optimal": cosine_logsnr,
    "sgm_uniform": sgm_uniform,
}
"""Names of the field that mean, with their default options, a grid of `NAMES`."""


def named(name: str) -> Callable[..., Tensor]:
    """The grid function of that name or alias, or a published list as one (`listed`).

    Errors: `ArgumentError` that lists all names, for any other.
    """
    found = NAMES.get(name) or ALIASES.get(name)
    if found is None and name not in PUBLISHED:
        raise ArgumentError(f"no times named {name!r}: the names are {', '.join([*NAMES, *ALIASES, *PUBLISHED])}")
    return found or listed(name)


__all__ = [
    "ALIASES",
    "HOSTS",
    "NAMES",
    "PUBLISHED",
    "Published",
    "beta",
    "check",
    "cosine",
    "cosine_logsnr",
    "edm",
    "exponential",
    "flow_shift",
    "grid",
    "karras",
    "laplace",
    "leading",
    "linspace",
    "listed",
    "logsnr",
    "named",
    "polyexponential",
    "published",
    "quadratic",
    "resample",
    "sgm_uniform",
    "tangent",
    "trailing",
    "uniform",
    "vp_uniform",
]
