"""Points in the plane whose law has no closed denoiser: what small networks are trained on and judged against.

    points = fewstep.problems.datasets.draw("spirals", 10_000, seed=1)

Every set is centred with a standard deviation of 0.5 (to 2 %) in both coordinates, the scale that EDM's preconditioning
takes for granted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import ArgumentError

Draw = Callable[[int, int], Tensor]
"""`(n, seed) -> points [n, 2]`, float32 on the CPU."""

TURNS = 1.5
"""Turns of each spiral arm."""
JITTER = 0.02
"""Deviation of the points from their arm."""
SQUARES = 4
"""Squares of the checkerboard along one side; every other one is filled."""
HALF_SIDE = 0.5 * math.sqrt(3)
"""The checkerboard fills [-HALF_SIDE, HALF_SIDE] in both coordinates: its deviation is 0.5."""


def spirals(n: int, seed: int = 0) -> Tensor:
    """Two arms of a spiral `[n, 2]`, each the other turned by half a turn, evenly filled in area, slightly blurred."""
    generator = _generator(n, seed)
    radius = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu").sqrt()
    side = 2.0 * torch.randint(2, (n,), generator=generator, device="cpu") - 1
    angle = 2 * math.pi * TURNS * radius
    arm = (side * radius)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    blur = torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")
    return (arm + JITTER * blur).float()


def checkerboard(n: int, seed: int = 0) -> Tensor:
    """Uniform points `[n, 2]` on the eight dark squares of a 4 x 4 board (the one at the lower left is dark)."""
    generator = _generator(n, seed)
    across = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu") * SQUARES
    pair = torch.randint(SQUARES // 2, (n,), generator=generator, device="cpu")
    inside = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
    up = 2 * pair + across.floor() % 2 + inside
    return ((torch.stack([across, up], dim=1) * (2 / SQUARES) - 1) * HALF_SIDE).float()


NAMES: dict[str, Draw] = {"spirals": spirals, "checkerboard": checkerboard}
"""Name to `(n, seed) -> points`."""


def draw(name: str, n: int, seed: int = 0) -> Tensor:
    """Points `[n, 2]` of a named set, the same for the same n and seed.

    Raises:
        ArgumentError: no such set; lists the names.
    """
    if name not in NAMES:
        raise ArgumentError(f"no set of points is named {name!r}: give one of {', '.join(NAMES)}")
    return NAMES[name](n, seed)


def _generator(n: int, seed: int) -> torch.Generator:
    if n < 1:
        raise ArgumentError(f"n={n}: give a positive number of points")
    return torch.Generator("cpu").manual_seed(seed)
