"""The digit networks that ship: a class-conditional denoiser, the features that judge it, and their references.

Everything is read from the package's own `weights` folder (safetensors, and one npz of images); nothing is downloaded.
The weights are stored in float16 and computed with in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fewstep.denoiser import Denoiser, from_callable
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics.statistics import Statistics
from fewstep.networks.classifier import Classifier
from fewstep.networks.labels import Labelled, check_labels
from fewstep.networks.unet import EDMPrecond, UNet, channels_last
from fewstep.noise import EDM, NoiseSchedule

SHAPE = (1, 28, 28)
CLASS_SHARES = tuple(n / 60_000 for n in (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949))
"""Shares of the digits 0..9 in MNIST's training set."""
TRAINED_ON = EDM(sigma_min=0.002, sigma_max=80.0)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (float32) and metadata of a safetensors file written by the training scripts; `config` is parsed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} cannot be read as safetensors ({error}); install the package again") from error
    if "config" in metadata:
        metadata["config"] = json.loads(metadata["config"])
    return tensors, metadata


def _ready(make: Callable[[], nn.Module], tensors: dict[str, Tensor]) -> nn.Module:
    """The module with its weights, for use, in float32 on the CPU whatever torch's defaults are."""
    with torch.device("cpu"):
        module = make().float()
    module.load_state_dict(tensors)
    module.requires_grad_(False).eval()
    channels_last(module)
    return module


class DigitNetwork(Labelled):
    """A network `(x, sigma, label)` that also takes no label: then it gets the null class."""

    identity = "fewstep.networks.mnist.Labelled"

    def __init__(self, network: EDMPrecond) -> None:
        super().__init__()
        self.network = network

    @property
    def classes(self) -> int:
        """Number of classes, which is also the label that means "no label"."""
        return self.network.net.classes

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """`x [B, C, H, W]`, `sigma [B]`, `label [B]` integers in 0..classes to x_0."""
        if label is None:
            label = torch.full((len(x),), self.classes, device=x.device)
        elif not torch.compiler.is_compiling():
            check_labels(label, len(x), self.classes)
        return self.network(x, sigma, label.to(x.device))


def load_denoiser(
    path: Path,
    *,
    noise: NoiseSchedule | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Denoiser:
    """A denoiser from a file of `fewstep.networks.train`; the condition is labels `[B]` or None."""
    tensors, metadata = read_weights(path)
    network = cast(EDMPrecond, _ready(lambda: EDMPrecond(UNet(**metadata["config"])), tensors))
    return from_callable(
        DigitNetwork(network).to(device),
        prediction="x0",
        noise=TRAINED_ON if noise is None else noise,
        network_noise=TRAINED_ON,
        shape=(metadata["config"]["channels"], *SHAPE[1:]),
        network_dtype=torch.float32,
        null_condition=network.net.classes,
        device=device,
        dtype=dtype,
        check=False,
    )


class DigitFeatures(nn.Module):
    """Images `[B, 1, 28, 28]` in [-1, 1] (clamped to it) to features `[B, 64]`, a thousand images at a time."""

    def __init__(self, classifier: Classifier, accuracy: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.accuracy = accuracy
        """share of MNIST's test images that the classifier gets right"""

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, 64]`, float32; unit mean variance over the training images."""
        return torch.cat([self.classifier.features(part) for part in self._parts(images)])

    def logits(self, images: Tensor) -> Tensor:
        """Logits `[B, 10]`."""
        return torch.cat([self.classifier(part) for part in self._parts(images)])

    def _parts(self, images: Tensor) -> tuple[Tensor, ...]:
        if images.ndim != 4 or tuple(images.shape[1:]) != SHAPE:
            raise ArgumentError(f"images have shape {tuple(images.shape)}; give [B, 1, 28, 28] in [-1, 1]")
        device = self.classifier.scale.device
        return images.to(device, torch.float32).clamp(-1, 1).contiguous(memory_format=torch.channels_last).split(1000)


def load_features(path: Path) -> DigitFeatures:
    """The feature network of a file of `fewstep.networks.train_features`."""
    tensors, metadata = read_weights(path)
    classifier = cast(Classifier, _ready(lambda: Classifier(**metadata["config"], normalised=False), tensors))
    return DigitFeatures(classifier, float(metadata["test_accuracy"]))


def shipped(name: str) -> Path:
    """Path of a file in the package's `weights` folder."""
    path = Path(str(resources.files("fewstep.networks") / "weights" / name))
    if not path.is_file():
        raise FileFormatError(f"the package lacks its file {name} ({path}); install it again")
    return path


def mnist_denoiser(
    *,
    noise: NoiseSchedule | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Denoiser:
    """The digit network as a `Denoiser`: shape (1, 28, 28), pixels in [-1, 1], trained on `EDM(0.002, 80)`.

    The condition is a tensor of labels `[B]` in 0..9, or None for digits of any kind. `noise` is the schedule of the
    states (the network's own by default) and `dtype` their type; the network itself computes in float32.
    """
    return load_denoiser(shipped("mnist.safetensors"), noise=noise, dtype=dtype, device=device)


@lru_cache(maxsize=1)
def mnist_features() -> DigitFeatures:
    """The feature network, on the CPU: images `[B, 1, 28, 28]` in [-1, 1] to `[B, 64]`. Gradients reach the images."""
    return load_features(shipped("mnist_features.safetensors"))


def mnist_classify(images: Tensor) -> Tensor:
    """Labels `[B]` that the feature network's last layer gives to images `[B, 1, 28, 28]` in [-1, 1]."""
    return mnist_features().logits(images).argmax(dim=1)


def mnist_reference(part: str = "train") -> Statistics:
    """Feature statistics of MNIST's `train` (60,000 images), `train_10k` (its first 10,000) or `test` images."""
    parts = ("train", "train_10k", "test")
    if part not in parts:
        raise ArgumentError(f"part={part!r} is none of {', '.join(parts)}; choose one")
    return Statistics.load(shipped(f"mnist_{part}.safetensors"))


def mnist_reference_features() -> Tensor:
    """Features `[5000, 64]` of the first training images, for precision, recall and kernel distance."""
    return read_weights(shipped("mnist_reference.safetensors"))[0]["features"]


def mnist_floors() -> dict[str, Any]:
    """What real images score against the training set: Fréchet at several sizes, kernel, precision, recall."""
    return cast(dict[str, Any], json.loads(read_weights(shipped("mnist_reference.safetensors"))[1]["floors"]))


class Images(NamedTuple):
    """Images with their labels."""

    images: Tensor
    labels: Tensor


def mnist_images(n: int = 1000) -> Images:
    """The first n (at most 1000) of some MNIST test images: uint8 `[n, 1, 28, 28]`, and their labels, k % 10."""
    if not 1 <= n <= 1000:
        raise ArgumentError(f"n={n}: 1,000 images ship; ask for 1 to 1000")
    with shipped("mnist_images.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        images, labels = data["images"][:n], data["labels"][:n]
    return Images(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())
