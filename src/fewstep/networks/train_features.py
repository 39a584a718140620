"""Train the feature network that ships: `python -m fewstep.networks.train_features --data mnist.npz --out FILE`.

The data file is the one of `fewstep.networks.train`, with `test_images` and `test_labels` beside the training set.
Plain supervised training: cross-entropy, AdamW, one cycle of the learning rate, random shifts of up to two pixels. No
label smoothing: it squeezes the features of a class together, and a judge that sees less spread sees fewer faults. The
test images choose nothing; the accuracy on them is printed at the end and stored with the weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fewstep.metrics.images import to_unit
from fewstep.networks.classifier import Classifier
from fewstep.networks.unet import channels_last


def load_split(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images of `split` ("train" or "test") as uint8 `[N, C, H, W]`, and their labels."""
    with np.load(path) as data:
        images, labels = data[f"{split}_images"], data[f"{split}_labels"]
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.contiguous(), torch.from_numpy(labels).long()


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own random whole number of pixels, up to `most` each way; what enters is black (-1)."""
    n, channels, height, width = images.shape
    padded = F.pad(images, [most] * 4, value=-1.0)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    sample = torch.arange(n).reshape(-1, 1, 1, 1)
    channel = torch.arange(channels).reshape(1, -1, 1, 1)
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


@torch.no_grad()
def batched(function: Callable[[Tensor], Tensor], pixels: Tensor, batch: int = 500) -> Tensor:
    """`function` of the images, in batches; bytes in, one tensor out."""
    return torch.cat([function(to_unit(pixels[k : k + batch])) for k in range(0, len(pixels), batch)])


def accuracy(model: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """Share of images that are classified as their label."""
    return float((batched(model, pixels).argmax(dim=1) == labels).double().mean())


def fit(model: Classifier, pixels: Tensor, labels: Tensor, args: argparse.Namespace) -> None:
    """Train `model` in place."""
    channels_last(model)
    generator = torch.Generator().manual_seed(0)
    steps = args.epochs * (len(pixels) // args.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=steps, pct_start=0.2)
    started, running = time.time(), 0.0
    for epoch in range(args.epochs):
        order = torch.randperm(len(pixels), generator=generator)[: len(pixels) // args.batch * args.batch]
        for rows in order.split(args.batch):
            images = shifted(to_unit(pixels[rows]), args.shift, generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            running += (loss.item() - running) * 0.02
        print(f"epoch {epoch + 1} of {args.epochs}  loss {running:.4f}  {time.time() - started:.0f} s", flush=True)


def train(args: argparse.Namespace) -> None:
    """Train, fold, scale, measure and write."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    pixels, labels = load_split(args.data, "train")
    config: dict[str, Any] = {
        "channels": pixels.shape[1],
        "widths": list(args.widths),
        "classes": int(labels.max()) + 1,
    }
    raw = Classifier(**config)
    fit(raw, pixels, labels, args)
    model = raw.folded()
    variance = batched(model.features, pixels).double().var(dim=0).mean()
    model.scale.copy_(variance.rsqrt())
    model.half().float()  # the accuracy stored is that of the weights stored
    right = accuracy(model, *load_split(args.data, "test"))
    print(f"test accuracy {right:.4%}")
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    metadata = {"config": json.dumps(config), "test_accuracy": repr(right), "epochs": str(args.epochs)}
    save_file(weights, args.out, metadata=metadata)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="npz with train_images, train_labels, test_images, test_labels"
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--shift", type=int, default=2, help="largest random shift, in pixels")
    parser.add_argument("--widths", type=int, nargs=2, default=(32, 64))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--no-bfloat16", dest="bfloat16", action="store_false", help="for processors without bfloat16 arithmetic"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
