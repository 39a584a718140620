"""Labels of class-conditional networks: one integer for each sample, the number of classes for "no label"."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError


class Labelled(nn.Module):
    """A network `(x, sigma, label)` of this package, perhaps class-conditional."""

    @property
    @abstractmethod
    def classes(self) -> int | None:
        """Number of classes; None for an unconditional network."""


def innermost(denoiser: Denoiser) -> Any:
    """The function or module inside all wrappers."""
    inner: Any = denoiser
    while isinstance(inner, Denoiser):
        inner = inner.fn
    return inner


def classes_of(denoiser: Denoiser) -> int | None:
    """Number of classes of a network of this package, also inside wrappers; None for any other denoiser."""
    inner = innermost(denoiser)
    return inner.classes if isinstance(inner, Labelled) else None


def check_labels(label: Tensor, rows: int, classes: int) -> None:
    """Refuse anything but `[rows]` integers in `0..classes`.

    The values are looked at on the CPU only: on an accelerator the look would wait for the device in every call.

    Raises:
        ArgumentError: naming the condition, which is what labels are to a denoiser.
    """
    if label.shape != (rows,) or label.is_floating_point():
        raise ArgumentError(
            f"condition has shape {tuple(label.shape)} and dtype {label.dtype}; give one integer label for each of the "
            f"{rows} samples"
        )
    if label.device.type == "cpu" and not bool(((label >= 0) & (label <= classes)).all()):
        raise ArgumentError(
            f"condition has labels outside 0..{classes - 1} ({classes} stands for no label); correct them"
        )
