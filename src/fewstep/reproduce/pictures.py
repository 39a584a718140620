"""Clean images for an experiment, with their labels where the network has classes: a folder, a zip or an npz."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, FileFormatError
from fewstep.inputs import Data
from fewstep.metrics.images import image_names, read_images, spread
from fewstep.networks import classes_of

LABEL_FILE = "dataset.json"
LABEL_ARRAYS = ("labels", "train_labels")


def clean_images(path: str | Path, model: Denoiser, most: int) -> Data:
    """Up to `most` images, evenly spread over the set, in [-1, 1]; with labels for a class-conditional network.

    Args:
        path: a folder or zip of pictures, labels in its `dataset.json` (`{"labels": [[name, label], ...]}`, as EDM's
            tools write it); or an npz of uint8 `[N, H, W, C]`, labels in its array `labels`.
        model: whose shape the images must have.
        most: images to read.

    Raises:
        ArgumentError: images of another shape, or a class-conditional network and no labels.
        FileFormatError: files that cannot be read.
    """
    path = Path(path)
    samples = torch.cat(list(read_images(path, channels=_channels(model), most=most)))
    if tuple(samples.shape[1:]) != tuple(model.shape):
        raise ArgumentError(
            f"the images of {path} have shape {tuple(samples.shape[1:])}, the network {tuple(model.shape)}: give the "
            "images that it was trained on, at its size"
        )
    classes = classes_of(model)
    labels = None if classes is None else _labels(path, classes)
    if labels is not None:
        labels = labels[torch.tensor(spread(len(labels), most))]
        if len(labels) != len(samples):
            raise FileFormatError(f"{path} has {len(labels)} labels for {len(samples)} images; make it again")
    return Data(samples, labels, f"{len(samples):,} images of {path.name}")


def _channels(model: Denoiser) -> int | None:
    if len(model.shape) != 3 or model.shape[0] not in (1, 3):
        raise ArgumentError(f"a network of shape {tuple(model.shape)} is none of pictures: it needs 1 or 3 channels")
    return model.shape[0]


def _labels(path: Path, classes: int) -> Tensor:
    """Labels of all images, in the order of `read_images`."""
    found = _labels_of_npz(path) if path.suffix == ".npz" else _labels_of_pictures(path)
    if found is None:
        where = " or ".join(LABEL_ARRAYS) if path.suffix == ".npz" else LABEL_FILE
        raise ArgumentError(f"the network is class-conditional, and {path} has no labels ({where}): add them")
    labels = torch.from_numpy(np.asarray(found))
    if labels.ndim != 1 or labels.is_floating_point() or not bool(((labels >= 0) & (labels < classes)).all()):
        raise FileFormatError(f"the labels of {path} are not integers from 0 to {classes - 1}; correct them")
    return labels.long()


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
