"""The networks for points in the plane that ship: one small preconditioned network each for spirals and checkerboard.

    model = fewstep.networks.points.spirals()
    points = fewstep.sample(model, tableau, seeds=range(1000))      # [1000, 2]

On the command line they are `python:fewstep.networks.points:spirals` and `python:fewstep.networks.points:checkerboard`;
`python -m fewstep.networks.train_points` trained them.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError
from fewstep.networks.mnist import TRAINED_ON, read_weights, shipped
from fewstep.problems.datasets import NAMES

SIGMA_DATA = 0.5


class PointNetwork(nn.Module):
    """`(x [B, 2], sigma [B]) -> x_0 [B, 2]`: a few residual layers inside EDM's preconditioning (Karras et al. 2022).

    The layers see the scaled point, waves of it (a plain network is slow to learn sharp edges), and waves of log sigma.

    Args:
        width: of the layers.
        depth: residual layers between the first and the last.
        waves: frequencies of each coordinate, doubling from a quarter of pi.
        noise_waves: frequencies of log sigma.
    """

    def __init__(self, width: int = 128, depth: int = 3, waves: int = 6, noise_waves: int = 8) -> None:
        super().__init__()
        self.waves: Tensor
        self.noise_waves: Tensor
        self.register_buffer("waves", math.pi / 4 * 2.0 ** torch.arange(waves), persistent=False)
        self.register_buffer("noise_waves", torch.logspace(0, math.log10(30), noise_waves), persistent=False)
        self.enter = nn.Linear(2 + 4 * waves + 2 * noise_waves, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.leave = nn.Linear(width, 2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised points."""
        s = sigma[:, None]
        norm = (s**2 + SIGMA_DATA**2).sqrt()
        scaled = x / norm
        place = (scaled[:, :, None] * self.waves).flatten(1)
        level = s.log() / 4 * self.noise_waves
        h = self.enter(torch.cat([scaled, place.sin(), place.cos(), level.sin(), level.cos()], dim=1))
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return (SIGMA_DATA / norm) ** 2 * x + (s * SIGMA_DATA / norm) * self.leave(F.silu(h))


def load_points(path: Path) -> Denoiser:
    """The denoiser of a file of `fewstep.networks.train_points`: shape (2,), no condition, `EDM(0.002, 80)`."""
    tensors, metadata = read_weights(path)
    with torch.device("cpu"):
        network = PointNetwork(**metadata["config"]).float()
    network.load_state_dict(tensors)
    network.requires_grad_(False).eval()
    return from_callable(network, prediction="x0", noise=TRAINED_ON, time="sigma", shape=(2,), check=False)


def points_denoiser(name: str) -> Denoiser:
    """The shipped network of a set of points, `spirals` or `checkerboard` (`fewstep.problems.datasets`).

    Raises:
        ArgumentError: no such set; lists the names.
    """
    if name not in NAMES:
        raise ArgumentError(f"no network for points named {name!r}: give one of {', '.join(NAMES)}")
    return load_points(shipped(f"points_{name}.safetensors"))


def spirals() -> Denoiser:
    """The network trained on `fewstep.problems.datasets.spirals`."""
    return points_denoiser("spirals")


def checkerboard() -> Denoiser:
    """The network trained on `fewstep.problems.datasets.checkerboard`."""
    return points_denoiser("checkerboard")
