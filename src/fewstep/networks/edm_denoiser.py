"""EDM networks as denoisers: integer labels become one-hot rows, noise levels stay inside the network's range."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.fingerprint import fingerprint_of, parameters_digest
from fewstep.networks.edm import Preconditioned
from fewstep.networks.edm_file import EdmFile, read
from fewstep.networks.labels import Labelled, check_labels
from fewstep.noise import EDM, NoiseSchedule

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""EDM's sampling range; a network with a narrower one narrows it."""


class EdmNetwork(Labelled):
    """An EDM network that takes labels as integers `[B]`, or None for no label (zeros instead of a one-hot row)."""

    def __init__(self, network: Preconditioned) -> None:
        super().__init__()
        self.network = network

    @property
    def classes(self) -> int | None:
        """Number of classes; None for an unconditional network."""
        return self.network.label_dim or None

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """`x [B, C, H, W]`, `sigma [B]`, `label [B]` in 0..classes (classes: no label) to x_0."""
        classes = self.classes
        if label is None:
            return self.network(x, sigma)
        if classes is None:
            raise ArgumentError("condition was given to an unconditional network; leave it out")
        if not torch.compiler.is_compiling():
            check_labels(label, len(x), classes)
        rows = F.one_hot(label.to(x.device).long(), classes + 1)[:, :classes]
        return self.network(x, sigma, rows.to(torch.float32))


def edm_denoiser(
    file: str | Path | EdmFile,
    *,
    trust_pickle: bool = False,
    fp16: bool = False,
    noise: NoiseSchedule | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Denoiser:
    """An EDM network as a `Denoiser`: pixels in [-1, 1], shape (C, H, W); the condition is labels `[B]` or None.

    Args:
        file: path of a .safetensors (see `fewstep.networks.edm_file`) or a .pkl of the released format, or its content.
        trust_pickle: needed for a .pkl; nothing in it is executed in any case.
        fp16: compute in float16 inside the network (the released ImageNet network was trained so; for GPUs). States,
            embeddings and preconditioning stay in float32.
        noise: schedule of the states; by default EDM's from 0.002 to 80, narrowed to the range the network takes.
        dtype, device: of the states.

    Raises:
        ArgumentError: no such file, or a pickle without `trust_pickle`.
        FileFormatError: a file that is damaged, or not of a known network.
    """
    held = file if isinstance(file, EdmFile) else read(file, trust_pickle=trust_pickle)
    network = held.network()
    low, high = max(SIGMA_MIN, network.sigma_min), min(SIGMA_MAX, network.sigma_max)
    if not low < high:
        raise FileFormatError(f"the network takes noise levels from {low:g} to {high:g}, which is no range")
    own = EDM(low, high)
    states = own if noise is None else noise
    fingerprint = fingerprint_of(
        "edm", dict(held.config), parameters_digest(network.state_dict()), fp16, own.to_dict(), states.to_dict()
    )
    if fp16:
        network.halve()
    size = network.img_resolution
    return from_callable(
        EdmNetwork(network).to(device),
        prediction="x0",
        noise=states,
        network_noise=own,
        shape=(network.img_channels, size, size),
        network_dtype=torch.float32,
        fingerprint=fingerprint,
        device=device,
        dtype=dtype,
        check=False,
    )
