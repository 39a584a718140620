"""Clean samples that a user has on disk: pictures (a folder, a zip, an npz), or numbers in the network's own units."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor

from fewstep import models
from fewstep.adapters.pipelines.network import latent_of
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics.images import count_images, image_names, read_images, spread
from fewstep.networks import classes_of

LABEL_FILE = "dataset.json"
LABEL_ARRAYS = ("labels", "train_labels")
NUMBERS = (".npy", ".safetensors")


@dataclass(frozen=True)
class Data:
    """Clean samples in the network's units, with their conditions; `note` says where they come from."""

    samples: Tensor
    condition: Any
    note: str


def clean_samples(path: str | Path, model: Denoiser, most: int) -> Data:
    """Up to `most` clean samples, evenly spread over the set, with their conditions.

    Args:
        path: pictures (see `clean_images`), which a pipeline's encoder turns into latents; or numbers in the network's
            units `[N, *shape]`: an .npy (as `fewstep sample --out latents.npy` writes), or a .safetensors with the
            tensor `samples` and, for a class-conditional network, `labels`.
        model: whose shape the samples must have. The k-th sample of a pipeline has the k-th prompt, in turns.
        most: samples to read.

    Raises:
        ArgumentError: nothing there, samples of another shape, or a class-conditional network and no labels.
        FileFormatError: files that cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in NUMBERS:
        return clean_images(path, model, most)
    samples, labels = _numbers(path)
    if samples.ndim < 2 or tuple(samples.shape[1:]) != tuple(model.shape):
        raise ArgumentError(
            f"{path} holds numbers of shape {tuple(samples.shape)}: give clean samples [N, "
            f"{', '.join(map(str, model.shape))}] in the network's units"
        )
    picked = list(spread(len(samples), most))
    return Data(samples[picked].float(), _condition(path, model, labels, picked), f"{len(picked):,} of {path.name}")


def _numbers(path: Path) -> tuple[Tensor, Any]:
    """Samples of a file of numbers, and labels where it has some."""
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".npy":
            return torch.from_numpy(np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)), None
        found = tensors_of(data)
    except FileNotFoundError:
        raise ArgumentError(f"nothing at {path}; give pictures, an .npy, or a .safetensors") from None
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); write it again") from error
    if "samples" not in found:
        raise ArgumentError(f"{path} has no tensor `samples`; it holds {', '.join(sorted(found)) or 'nothing'}")
    return found["samples"], found.get("labels")


def clean_images(path: str | Path, model: Denoiser, most: int) -> Data:
    """Up to `most` pictures, evenly spread over the set, in [-1, 1]; of a pipeline their latents (the encoder's modes).

    Args:
        path: a folder or zip of pictures, labels in its `dataset.json` (`{"labels": [[name, label], ...]}`, as EDM's
            tools write it); or an npz of uint8 `[N, H, W, C]`, labels in its array `labels`.
        model: whose shape the images must have.
        most: images to read.

    Raises:
        ArgumentError: images of another shape, or a class-conditional network and no labels.
        FileFormatError: files that cannot be read.
    """
    path, latent = Path(path), latent_of(model)
    size = tuple(model.shape) if latent is None else (3, latent.family.height, latent.family.width)
    if latent is None and (len(size) != 3 or size[0] not in (1, 3)):
        raise ArgumentError(
            f"a network of shape {size} is none of pictures, which have 1 or 3 channels: give numbers in its units "
            f"({' or '.join(NUMBERS)}), not {path}"
        )
    samples = torch.cat(list(read_images(path, channels=size[0], most=most)))
    if tuple(samples.shape[1:]) != size:
        raise ArgumentError(
            f"the images of {path} have shape {tuple(samples.shape[1:])}, the network {size}: give the "
            "images that it was trained on, at its size"
        )
    npz = path.suffix == ".npz"
    labels = None if classes_of(model) is None else _labels_of_npz(path) if npz else _labels_of_pictures(path)
    whole = count_images(path) if labels is None else len(labels)
    picked = list(spread(whole, most))
    if len(picked) != len(samples):
        raise FileFormatError(f"{path} has {whole} labels for {len(samples)} images; make it again")
    condition = _condition(path, model, labels, picked)
    samples = samples if latent is None else latent.encode(samples)
    return Data(samples, condition, f"{len(samples):,} images of {path.name}")


def _condition(path: Path, model: Denoiser, labels: Any, picked: Sequence[int]) -> Any:
    """Conditions of the samples with these numbers: their labels, or a pipeline's prompts in turns."""
    classes = classes_of(model)
    if classes is None:
        return models.default_condition(model, picked)
    if labels is None:
        where = {".npz": " or ".join(LABEL_ARRAYS), ".safetensors": "labels", ".npy": "a .safetensors can"}
        raise ArgumentError(
            f"the network is class-conditional, and {path} has no labels ({where.get(path.suffix, LABEL_FILE)}): "
            "add them"
        )
    labels = torch.as_tensor(np.asarray(labels))
    if labels.ndim != 1 or labels.is_floating_point() or not bool(((labels >= 0) & (labels < classes)).all()):
        raise FileFormatError(f"the labels of {path} are not integers from 0 to {classes - 1}; correct them")
    if max(picked, default=0) >= len(labels):
        raise FileFormatError(f"{path} has {len(labels)} labels, and more samples; make it again")
    return labels.long()[list(picked)]


def _labels_of_npz(path: Path) -> Any:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
        return next((data[name] for name in LABEL_ARRAYS if name in data), None)


def _labels_of_pictures(path: Path) -> list[int] | None:
    try:
        if path.is_dir():
            text = (path / LABEL_FILE).read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(LABEL_FILE)
        table = json.loads(text)["labels"]
        label_of = None if table is None else dict(table)
        return None if label_of is None else [label_of[name] for name in image_names(path)]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeyError) and LABEL_FILE in str(error):
            return None  # what zipfile raises for a name that is not there
        raise FileFormatError(f"{path}: {LABEL_FILE} has no label for every image ({error}); make it again") from error
