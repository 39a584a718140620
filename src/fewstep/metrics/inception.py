"""The field's standard Inception features, for FID, through torch-fidelity: `pip install "fewstep[metrics]"`.

The weights (`weights-inception-2015-12-05-6726825d.pth`, from torch-fidelity's releases) are read from the path given
and nowhere else: nothing here downloads.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import ArgumentError, DenoiserError, FileFormatError

LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
EXTRA = (
    'Inception features need torch-fidelity: pip install "fewstep[metrics]" (and a torchvision that fits your torch)'
)


class Inception:
    """Images `[B, 1 or 3, H, W]` in [-1, 1] to Inception-v3 features `[B, d]`; d = 2048 at the standard layer.

    Images are clamped and rounded to bytes first, as if they had been saved: that is what published FID figures do.

    Args:
        weights: path of the weights file.
        layer: which features; "2048" is FID's.
        device: where the network runs.

    Raises:
        ImportError: torch-fidelity is missing or cannot be imported.
        ArgumentError: no such file or layer.
        FileFormatError: the file is not a plain dictionary of tensors.
    """

    def __init__(self, weights: str | Path, *, layer: str = "2048", device: torch.device | str = "cpu") -> None:
        weights = Path(weights)
        if layer not in LAYERS:
            raise ArgumentError(f"layer={layer!r} is not one of {', '.join(LAYERS)}; choose one, 2048 for FID")
        if not weights.is_file():
            raise ArgumentError(
                f"weights: no file {weights}; download weights-inception-2015-12-05-6726825d.pth from "
                "torch-fidelity's releases"
            )
        extractor = _extractor_class()
        _require_plain(weights)  # torch-fidelity itself would run whatever code a pickle holds
        self.network: Any = extractor("inception-v3-compat", [layer], feature_extractor_weights_path=str(weights)).to(
            device
        )
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features `[B, d]` on the CPU."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ArgumentError(f"images have shape {tuple(images.shape)}; give [B, 1 or 3, H, W] in [-1, 1]")
        pixels = images.to(self.device, torch.float32).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        features = self.network(pixels.expand(-1, 3, -1, -1))[0]
        if features.ndim != 2 or len(features) != len(images):
            raise DenoiserError(
                f"the Inception network returned {tuple(features.shape)} for {len(images)} images; check the "
                "installed torch-fidelity"
            )
        return features.float().cpu()


def _extractor_class() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise ImportError(f"{EXTRA}; the import failed with: {error}") from error
    return FeatureExtractorInceptionV3


def _require_plain(weights: Path) -> None:
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FileFormatError(f"{weights} is not a plain weights file ({error}); download it again") from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FileFormatError(
            f"{weights} does not hold a dictionary of tensors; give torch-fidelity's Inception weights"
        )
