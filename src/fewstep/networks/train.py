"""Train the networks that ship: `python -m fewstep.networks.train --data mnist.npz --out mnist.safetensors`.

The data file is an npz with `train_images` `[N, H, W]` or `[N, H, W, C]` (uint8) and `train_labels` `[N]`. Training
follows EDM (Karras et al. 2022, section 5): log-normal noise levels, preconditioned network, weighted denoising loss,
averaged weights. Labels are dropped one time in ten, so the one network serves classifier-free guidance.

Several workers (`torchrun --nproc-per-node 2 -m fewstep.networks.train ...`) share each batch. A checkpoint is written
every minute and taken up again by the same command; the number of workers may change in between.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from fewstep.networks.unet import EDMPrecond, UNet, channels_last

LABEL_DROPOUT = 0.1
EMA_DECAY = 0.9993
WARM_UP_STEPS = 400


def load_images(path: Path) -> tuple[Tensor, Tensor]:
    """Training images as float32 `[N, C, H, W]` in [-1, 1], and their labels."""
    with np.load(path) as data:
        images, labels = data["train_images"], data["train_labels"]
    pixels = torch.from_numpy(images).float().div_(127.5).sub_(1)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.contiguous(), torch.from_numpy(labels).long()


def strata(n: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers `[n]`, one from each of n equal strata, in random order (less noise in a loss)."""
    return (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n


def stratified_sigmas(n: int, mean: float, spread: float, generator: torch.Generator) -> Tensor:
    """Noise levels with `log sigma ~ N(mean, spread^2)`, one from each of n equally likely strata."""
    u = strata(n, generator)
    return torch.exp(mean + spread * math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-0.999999, 0.999999)))


def denoising_loss(
    model: EDMPrecond, x0: Tensor, label: Tensor, args: argparse.Namespace, generator: torch.Generator
) -> Tensor:
    """EDM's loss: `lambda(sigma) |D(x0 + sigma n, sigma) - x0|^2`, mean over pixels."""
    sigma = stratified_sigmas(len(x0), args.noise_mean, args.noise_spread, generator)
    dropped = torch.rand(len(x0), generator=generator) < LABEL_DROPOUT
    label = torch.where(dropped, model.net.classes, label)
    noise = torch.randn(x0.shape, generator=generator)
    s = sigma.reshape(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
        denoised = model(x0 + s * noise, sigma, label)
    weight = (s**2 + model.sigma_data**2) / (s * model.sigma_data) ** 2
    return (weight * (denoised.float() - x0) ** 2).mean()


def learning_rate(done: float, step: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to zero; `done` is the finished fraction of training."""
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def share_gradients(model: torch.nn.Module, workers: int) -> None:
    """Replace each gradient by its mean over the workers."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for g, piece in zip(grads, (flat / workers).split([g.numel() for g in grads]), strict=True):
        g.copy_(piece.view_as(g))


def save_atomically(save: Callable[[Path], object], path: Path) -> None:
    """`save` to a temporary file, then rename: a crash leaves the old file."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    save(temporary)
    os.replace(temporary, path)


def export(ema: EDMPrecond, path: Path, config: dict[str, Any], seen: int) -> None:
    """Averaged weights in float16 (half the size, no visible change), with the architecture in the metadata."""
    weights = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
    metadata = {"config": json.dumps(config), "images_seen": str(seen)}
    save_atomically(lambda p: save_file(weights, p, metadata=metadata), path)


def resume(parts: dict[str, Any], checkpoint: Path) -> tuple[int, int]:
    """Load model, average and optimiser from the checkpoint, if there is one; steps done and images seen."""
    if not checkpoint.exists():
        return 0, 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["seen"]


def train(args: argparse.Namespace) -> None:
    """Train, or go on training, until `args.images` images were seen."""
    rank, workers = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if workers > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(args.threads)
    images, labels = load_images(args.data)
    config: dict[str, Any] = {
        "channels": images.shape[1],
        "widths": args.widths,
        "down": args.down,
        "middle": args.middle,
        "up": args.up,
        "classes": int(labels.max()) + 1,
    }
    torch.manual_seed(0)
    model = EDMPrecond(UNet(**config))
    channels_last(model)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint = args.out.with_suffix(".checkpoint.pt")
    parts: dict[str, Any] = {"model": model, "ema": ema, "optimiser": optimiser}
    step, seen = resume(parts, checkpoint)
    generator = torch.Generator().manual_seed(1000003 * step + rank)
    share = args.batch // workers
    saved_at = printed_at = time.time()
    printed_seen, running = seen, 0.0
    while seen < args.images:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(seen / args.images, step, args.lr)
        rows = torch.randint(len(images), (share,), generator=generator)
        loss = denoising_loss(model, images[rows], labels[rows], args, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if workers > 1:
            share_gradients(model, workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 20))
        with torch.no_grad():
            for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
                average.lerp_(parameter, 1 - decay)
        step, seen = step + 1, seen + share * workers
        running += (loss.item() - running) * 0.01
        if rank == 0 and time.time() - printed_at > 15:
            rate = (seen - printed_seen) / (time.time() - printed_at)
            print(f"images {seen:,} of {args.images:,}  loss {running:.4f}  {rate:.0f} images/s", flush=True)
            printed_at, printed_seen = time.time(), seen
        if rank == 0 and (time.time() - saved_at > 60 or seen >= args.images):
            state = {name: part.state_dict() for name, part in parts.items()} | {"step": step, "seen": seen}
            save_atomically(lambda p, state=state: torch.save(state, p), checkpoint)
            export(ema, args.out, config, seen)
            saved_at = time.time()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="npz with train_images and train_labels")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--images", type=int, default=2_400_000, help="training images to see in all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--widths", type=int, nargs=2, default=(48, 96))
    parser.add_argument("--down", type=int, default=1)
    parser.add_argument("--middle", type=int, default=3)
    parser.add_argument("--up", type=int, default=2)
    parser.add_argument("--noise-mean", type=float, default=-0.8)
    parser.add_argument("--noise-spread", type=float, default=1.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--no-bfloat16", dest="bfloat16", action="store_false", help="for processors without bfloat16 arithmetic"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
