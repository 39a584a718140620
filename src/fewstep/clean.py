"""Clean samples that a user has on disk: pictures (a folder, a zip, an npz), or numbers in the network's own units."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep import models
from fewstep.adapters.pipelines.network import Latent, latent_of
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.metrics.images import count_images, image_names, read_images
from fewstep.networks import classes_of
from fewstep.progress import Event, Report, silent

LABEL_FILE = "dataset.json"
LABEL_ARRAYS = ("labels", "train_labels")
NUMBERS = (".npy", ".safetensors")
ENCODED, AT_ONCE = 256, 32
"""Pictures that a pipeline encodes at most, each as dear as some network calls; pictures that are read at once."""

Conditions = Callable[[Sequence[int]], Any]
"""Conditions of the samples with these numbers."""


@dataclass(frozen=True)
class Data:
    """Clean samples in the network's units, with their conditions.

    Attributes:
        samples: `[N, *shape]`; condition: theirs.
        note: where they come from, in words.
        cure: what to do with a `{formula}` where they are in another range than the network's.
    """

    samples: Tensor
    condition: Any
    note: str
    cure: str = "give {formula}"


def clean_samples(
    path: str | Path, model: Denoiser, most: int, conditions: Conditions | None = None, progress: Report = silent
) -> Data:
    """Up to `most` clean samples, drawn from all of a set in a fixed random order, with their conditions.

    Args:
        path: pictures (see `clean_images`), which a pipeline's encoder turns into latents; or numbers in the network's
            units `[N, *shape]`: an .npy (as `fewstep sample --out latents.npy` writes), or a .safetensors with the
            tensor `samples` and, for a class-conditional network, `labels`.
        model: whose shape the samples must have.
        most: samples to read.
        conditions: of a network whose conditions are neither classes nor prompts. The k-th sample of a pipeline has the
            k-th prompt, in turns.
        progress: told of pictures that are encoded.

    Raises:
        ArgumentError: nothing there, samples of another shape, or a class-conditional network and no labels.
        FileFormatError: files that cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in NUMBERS:
        return clean_images(path, model, most, conditions, progress)
    if not path.is_file():
        raise ArgumentError(f"nothing at {path}; give pictures, an .npy, or a .safetensors")
    try:
        samples, labels = _npy(path) if path.suffix.lower() == ".npy" else _safetensors(path)
    except ArgumentError:
        raise
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); write it again") from error
    fits = tuple(samples.shape[1:]) == tuple(model.shape) and samples.shape[:1].numel() >= 2
    if not fits or samples.is_complex():
        raise ArgumentError(
            f"{path} holds {samples.dtype} of shape {tuple(samples.shape)}: give two or more clean samples [N, "
            f"{', '.join(map(str, model.shape))}] in the network's units"
        )
    picked = drawn(len(samples), most)
    condition = _condition(path, model, labels, len(samples), picked, conditions)
    cure = f"write {{formula}} in place of {path.name}"
    rows = [samples[k].float() for k in picked]  # row by row: not every type of numbers can be indexed by a list
    return Data(torch.stack(rows), condition, f"{len(picked):,} of {path.name}", cure)


def drawn(count: int, most: int) -> list[int]:
    """`most` of the numbers from 0 to count - 1 (all, where they are fewer) in a fixed random order.

    Files are often sorted by class, and users of some of the samples take the first: these must be of all classes.
    """
    if most < 1:
        raise ArgumentError(f"most={most}: give a positive number of samples")
    return torch.randperm(count, generator=torch.Generator("cpu").manual_seed(0), device="cpu")[:most].tolist()


def _npy(path: Path) -> tuple[Tensor, Any]:
    """The array, which stays on the disk until rows of it are taken."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)), None


def _safetensors(path: Path) -> tuple[Tensor, Any]:
    """The samples, which stay on the disk until rows of them are taken, and labels where there are some."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        if "samples" not in names:
            raise ArgumentError(f"{path} has no tensor `samples`; it holds {', '.join(names) or 'nothing'}")
        return file.get_tensor("samples"), file.get_tensor("labels").numpy() if "labels" in names else None


def clean_images(
    path: str | Path, model: Denoiser, most: int, conditions: Conditions | None = None, progress: Report = silent
) -> Data:
    """Up to `most` pictures in [-1, 1]; of a pipeline their latents, the modes of its encoder (at most `ENCODED`).

    Args:
        path: a folder or zip of pictures, labels in its `dataset.json` (`{"labels": [[name, label], ...]}`, as EDM's
            tools write it); or an npz of uint8 `[N, H, W, C]`, labels in its array `labels`.
        model: whose shape the images must have.
        most: images to read.
        conditions, progress: as in `clean_samples`.

    Raises:
        ArgumentError: images of another shape, or a class-conditional network and no labels.
        FileFormatError: files that cannot be read.
    """
    path, latent = Path(path), latent_of(model)
    size = _pixels(path, model, latent)
    labelled, npz = classes_of(model) is not None, path.suffix == ".npz"
    count = count_images(path)
    labels = None if not labelled else _labels_of_npz(path) if npz else _labels_of_pictures(path)
    picked = drawn(count, most if latent is None else min(most, ENCODED))
    condition = _condition(path, model, labels, count, picked, conditions)
    order = sorted(picked)
    parts: list[Tensor] = []
    done = 0
    for batch in read_images(path, batch=AT_ONCE, channels=size[0], only=order):
        if tuple(batch.shape[1:]) != size:
            raise ArgumentError(
                f"the images of {path} have shape {tuple(batch.shape[1:])}, the network {size}: give the "
                "images that it was trained on, at its size"
            )
        parts.append(batch if latent is None else latent.encode(batch))
        done += len(batch)
        if latent is not None:
            progress(Event("encoding pictures", done, len(picked)))
    place = {number: row for row, number in enumerate(order)}
    samples = torch.cat(parts)[[place[number] for number in picked]]
    cure = "pictures are read as [-1, 1]: give them as numbers instead (.npy), {formula}"
    return Data(samples, condition, f"{len(samples):,} images of {path.name}", cure)


def _pixels(path: Path, model: Denoiser, latent: Latent | None) -> tuple[int, ...]:
    """The shape that pictures must have, `[C, H, W]`.

    Errors: `ArgumentError` for a network, or a pipeline, that knows no pictures.
    """
    if latent is not None:
        latent.family.require_encoder()
        return 3, latent.family.height, latent.family.width
    size = tuple(model.shape)
    if len(size) != 3 or size[0] not in (1, 3):
        raise ArgumentError(
            f"a network of shape {size} is none of pictures, which have 1 or 3 channels: give numbers in its units "
            f"({' or '.join(NUMBERS)}), not {path}"
        )
    return size


def _condition(
    path: Path, model: Denoiser, labels: Any, count: int, picked: Sequence[int], conditions: Conditions | None
) -> Any:
    """Conditions of the samples with these numbers: labels, a pipeline's prompts in turns, or what the user gave."""
    latent, classes = latent_of(model), classes_of(model)
    if latent is not None:
        return latent.rows(picked)
    if classes is None or labels is None:
        if conditions is not None:
            return conditions(picked)
        if classes is None:
            return models.default_condition(model, picked)
        where = {".npz": " or ".join(LABEL_ARRAYS), ".safetensors": "labels", ".npy": "a .safetensors can"}
        raise ArgumentError(
            f"the network is class-conditional, and {path} has no labels ({where.get(path.suffix, LABEL_FILE)}): "
            "add them"
        )
    try:
        found = np.asarray(labels)
    except ValueError:  # rows of different lengths
        found = np.empty(0)
    whole = found.ndim == 1 and found.dtype.kind in "iu"
    if not whole or not bool(((found >= 0) & (found < classes)).all()):
        raise FileFormatError(f"the labels of {path} are not integers from 0 to {classes - 1}; correct them")
    if len(found) != count:
        raise FileFormatError(f"{path} has {len(found)} labels for {count} samples; make it again")
    return torch.from_numpy(found.astype(np.int64))[list(picked)]


def _labels_of_npz(path: Path) -> Any:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return next((data[name] for name in LABEL_ARRAYS if name in data), None)
    except ValueError as error:
        raise FileFormatError(f"the labels of {path} cannot be read ({error}); write integers") from error


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
