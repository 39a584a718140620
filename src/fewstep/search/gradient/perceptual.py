"""LPIPS (Zhang et al. 2018), the distance that LD3, S4S and GS lower on pixels, with the `lpips` package: an extra.

Its VGG comes from torchvision, which downloads the weights: the package is imported only where the loss is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError

LEAST = 16
"""Pixels of a side, at least: VGG halves four times."""
CHANNELS = (1, 3)


class Lpips:
    """Mean LPIPS distance of pictures `[B, 1 or 3, H, W]` in [-1, 1] to the teacher's, as large as they are (as LD3's).

    Args:
        shape: of one sample.
        network: `vgg` (of the papers), `alex` or `squeeze`.

    Errors: `ArgumentError` for samples that are no pictures, or where the package is not installed.
    """

    def __init__(self, shape: Sequence[int], network: str = "vgg") -> None:
        if len(shape) != 3 or shape[0] not in CHANNELS or min(shape[1:]) < LEAST:
            raise ArgumentError(
                f"loss='lpips' looks at pictures of 1 or 3 channels and at least {LEAST} x {LEAST} pixels, and one "
                f"sample here is {tuple(shape)}: choose l1 (GS's for latents), l2 or another loss"
            )
        try:
            package: Any = importlib.import_module("lpips")
        except (ImportError, RuntimeError) as error:  # torchvision built for another torch: a RuntimeError
            raise ArgumentError(
                f"loss='lpips' needs the lpips package and a torchvision that fits torch ({error}): "
                'pip install "fewstep[lpips]", or choose another loss'
            ) from error
        self._network: Any = package.LPIPS(net=network, verbose=False).eval().requires_grad_(False)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance, 0-d, float32."""
        network = self._network.to(student.device)
        distances: Tensor = network(_picture(student), _picture(teacher))
        return distances.mean()


def _picture(samples: Tensor) -> Tensor:
    """Three channels, float32."""
    return samples.to(torch.float32).expand(-1, 3, -1, -1)
