"""Train a network for points in the plane: `python -m fewstep.networks.train_points spirals --out FILE.safetensors`.

EDM's training (Karras et al. 2022, section 5) on fresh points at every step, so there is nothing to overfit. One CPU
thread and about a quarter of an hour; a checkpoint beside the file is written every half minute and taken up again by
the same command.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.networks.points import SIGMA_DATA, PointNetwork
from fewstep.networks.train import learning_rate, save_atomically, strata
from fewstep.problems import datasets

LEAST, MOST = 0.002, 80.0
"""Noise levels, all decades alike: sharp edges in the plane are decided at low noise, and few-step times go from the
highest level to below 1 in one step, so its answer there must be right too."""
EMA_DECAY = 0.9995
BLOCK = 64
"""Batches of data drawn at a time."""


def even_sigmas(n: int, generator: torch.Generator) -> Tensor:
    """Noise levels even in log sigma, one from each of n strata, in random order."""
    return LEAST * (MOST / LEAST) ** strata(n, generator)


def loss_of(network: PointNetwork, x0: Tensor, generator: torch.Generator) -> Tensor:
    """EDM's weighted denoising loss of clean points `[B, 2]`."""
    sigma = even_sigmas(len(x0), generator)
    s = sigma[:, None]
    denoised = network(x0 + s * torch.randn(x0.shape, generator=generator), sigma)
    return ((s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2 * (denoised - x0) ** 2).mean()


def export(average: PointNetwork, path: Path, config: dict[str, Any], data: str, steps: int) -> None:
    """Averaged weights in float16, with the architecture in the metadata."""
    weights = {name: value.half().contiguous() for name, value in average.state_dict().items()}
    metadata = {"config": json.dumps(config), "data": data, "steps": str(steps)}
    save_atomically(lambda p: save_file(weights, p, metadata=metadata), path)


def train(data: str, out: Path, *, steps: int, batch: int, rate: float, config: dict[str, Any]) -> float:
    """Train, or go on training, for `steps` steps in all; returns the running loss."""
    torch.manual_seed(0)
    network = PointNetwork(**config)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, fused=True)
    parts: dict[str, Any] = {"network": network, "average": average, "optimiser": optimiser}
    checkpoint, first, running = out.with_suffix(".checkpoint"), 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first, running = state["step"], state["loss"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    generator = torch.Generator().manual_seed(first)
    points, saved = torch.empty(0, 2), time.monotonic()
    for step in range(first, steps):
        k = step % BLOCK
        if k == 0 or not len(points):
            points = datasets.draw(data, BLOCK * batch, seed=step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step / steps, step, rate)
        loss = loss_of(network, points[k * batch : (k + 1) * batch], generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 20))
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
        running = loss.item() if step == 0 else running + 0.001 * (loss.item() - running)
        if time.monotonic() - saved > 30 or step + 1 == steps:
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1, "loss": running}
            save_atomically(lambda p, state=state: torch.save(state, p), checkpoint)
            export(average, out, config, data, step + 1)
            print(f"{data}: step {step + 1:,} of {steps:,}, loss {running:.4f}", flush=True)
            saved = time.monotonic()
    return running


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(datasets.NAMES))
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = {"width": args.width, "depth": args.depth}
    train(args.data, args.out, steps=args.steps, batch=args.batch, rate=args.lr, config=config)


if __name__ == "__main__":
    main()
