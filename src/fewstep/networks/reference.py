"""Build what ships beside the digit networks: `python -m fewstep.networks.reference --data mnist.npz --weights FOLDER`.

From the images (see `fewstep.networks.train`) and the feature network already in FOLDER it writes

- `mnist_train.safetensors`, `mnist_train_10k.safetensors`, `mnist_test.safetensors`: feature statistics of the whole
  training set, of its first 10,000 images, and of the test set;
- `mnist_reference.safetensors`: features of the first 5,000 training images (float16), for precision, recall and kernel
  distance, with floors in its metadata: what real images score against the training set;
- `mnist_images.npz`: 1,000 test images with labels, image k showing digit k % 10.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.metrics import Statistics, frechet, kernel_distance, precision_recall
from fewstep.networks.mnist import load_features
from fewstep.networks.train_features import batched, load_split

SUBSET = 10_000
STORED = 5_000
SAMPLE = 1_000
FLOOR_SIZES = (256, 512, 1_000, 2_000, 5_000, 10_000)


def subset(train: Tensor) -> int:
    """Size of the training subset that floors are measured with: 10,000, or half of a smaller set."""
    return min(SUBSET, len(train) // 2)


def floors(train: Tensor, test: Tensor, whole: Statistics) -> dict[str, object]:
    """What real images score: the least that a perfect network could be asked for, at each number of samples."""
    stored, half = train[:STORED].half().double(), subset(train)
    overlap = precision_recall(test, stored)
    return {
        "train_10k_to_test": frechet(Statistics.of(train[:half]), Statistics.of(test)),
        "train_10k_to_other_train_10k": frechet(Statistics.of(train[:half]), Statistics.of(train[half : 2 * half])),
        "test_to_train": {str(n): frechet(Statistics.of(test[:n]), whole) for n in FLOOR_SIZES if n <= len(test)},
        "kernel_test": list(kernel_distance(test, stored)),
        "precision_test": overlap.precision,
        "recall_test": overlap.recall,
    }


def balanced_rows(labels: Tensor, n: int, classes: int = 10) -> Tensor:
    """The first n / classes rows of each class (fewer if one has fewer), interleaved: row k has label k % classes."""
    each = min(n // classes, int(torch.bincount(labels, minlength=classes).min()))
    rows = [(labels == c).nonzero().flatten()[:each] for c in range(classes)]
    return torch.stack(rows, dim=1).flatten()


def build(data: Path, weights: Path) -> None:
    """Write all files and print the floors."""
    features = load_features(weights / "mnist_features.safetensors")
    train, (test_pixels, test_labels) = batched(features, load_split(data, "train")[0]), load_split(data, "test")
    test = batched(features, test_pixels)
    whole = Statistics.of(train)
    whole.save(weights / "mnist_train.safetensors")
    Statistics.of(train[: subset(train)]).save(weights / "mnist_train_10k.safetensors")
    Statistics.of(test).save(weights / "mnist_test.safetensors")
    found = floors(train, test, whole)
    stored = {"features": train[:STORED].half().contiguous()}
    save_file(stored, weights / "mnist_reference.safetensors", metadata={"floors": json.dumps(found)})
    rows = balanced_rows(test_labels, SAMPLE)
    images, labels = test_pixels[rows, 0].numpy(), test_labels[rows].numpy().astype(np.uint8)
    np.savez_compressed(weights / "mnist_images.npz", images=images, labels=labels)
    print(json.dumps(found, indent=2))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz with train and test images and labels")
    parser.add_argument(
        "--weights", type=Path, default=Path(__file__).parent / "weights", help="folder to read and write"
    )
    args = parser.parse_args()
    build(args.data, args.weights)


if __name__ == "__main__":
    main()
