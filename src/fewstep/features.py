"""Judges by features that a user brings; on a pipeline they see decoded pictures, not latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep import models
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.metrics import Features, Statistics
from fewstep.models import Judge


def on_pictures(model: Denoiser, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of pictures as one of samples: a pipeline's are decoded for it, others passed as they are."""
    if not models.about(model):
        return function

    def seen(samples: Tensor) -> Tensor:
        return function(models.pictures(model, samples))

    seen.__name__ = getattr(function, "__name__", "objective")
    if hasattr(function, "fingerprint"):  # by which its scores are kept
        seen.__dict__["fingerprint"] = getattr(function, "fingerprint")  # noqa: B009
    return seen


def judge_from(model: Denoiser, features: str | None, reference: str | Path | None) -> Judge | None:
    """The judge that `--features` and `--reference` name, None without them.

    Args:
        model: whose samples are judged.
        features: `python:MODULE:FACTORY`; `FACTORY()` returns a function of pictures, `[B, C, H, W]` in [-1, 1] to
            `[B, d]`.
        reference: npz with `mu` and `sigma` of the features of real images.

    Raises:
        ArgumentError: one without the other, no function, or statistics of other features.
    """
    if (features is None) != (reference is None):
        raise ArgumentError(
            "--features python:MODULE:FACTORY and --reference STATS belong together: give both, or neither"
        )
    if features is None or reference is None:
        return None
    statistics = Statistics.load(Path(reference))
    made: Any = models.made_by(features)
    if not callable(made):
        raise ArgumentError(f"--features {features}: the factory returned a {type(made).__name__}, not a function")
    seen = on_pictures(model, cast("Features", made))
    with torch.no_grad():
        found = seen(torch.zeros(2, *model.shape, device=model.device, dtype=model.dtype)).shape
    if tuple(found) != (2, statistics.d):
        raise ArgumentError(
            f"--features {features} gives {tuple(found)} for two samples, and {reference} has statistics of "
            f"{statistics.d} features: both must come from one feature network"
        )
    return Judge(features, seen, statistics, torch.empty(0, statistics.d))
