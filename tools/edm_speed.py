"""How fast a device computes EDM's CIFAR-10 network, and how far its precisions are from float32 on the CPU.

    python tools/edm_speed.py [--device cuda] [--network cifar10-32x32-uncond-vp] [--batches 64 250 500]

The weights are random, from the names' seeds (no released ones are needed): speed and rounding do not depend on them
much, quality is not looked at. Prints a row for each precision.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fewstep import models
from fewstep.denoiser import Denoiser
from fewstep.networks import edm_file
from fewstep.networks.edm import build
from tests.edm_networks import FULL, SMALL, seeded

LEVELS = (0.01, 0.5, 5.0, 80.0)
PRECISIONS = (("float32", "", False), ("float32 with TF32", "", True), ("float16", "&fp16", False))
WARM, REPEATS = 5, 6


def settled(device: str) -> float:
    """The clock, once the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def speed(model: Denoiser, batch: int, device: str) -> float:
    """Network calls a second."""
    x = torch.randn(batch, *model.shape, device=device)
    for _ in range(WARM):
        model(x, 1.0, None)
    began = settled(device)
    for _ in range(REPEATS):
        model(x, 1.0, None)
    return REPEATS * batch / (settled(device) - began)


def outputs(model: Denoiser, device: str) -> Tensor:
    """Of eight states at each of the noise levels."""
    z = torch.randn(8, *model.shape, generator=torch.Generator().manual_seed(1)).to(device)
    return torch.stack([model(z * level, level, None).float() for level in LEVELS]).cpu()


@torch.no_grad()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--network", choices=[*FULL, *SMALL], default="cifar10-32x32-uncond-vp")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 250, 500])
    asked = parser.parse_args()
    config = (FULL | SMALL)[asked.network]
    network = build(config)
    weights = seeded(network.state_dict().items())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        edm_file.EdmFile(config, dict(weights)).save(path)
        exact = outputs(models.load(f"edm:{path}?device=cpu"), "cpu")
        for name, option, tf32 in PRECISIONS:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            model = models.load(f"edm:{path}?device={asked.device}{option}")
            found = " / ".join(f"{speed(model, batch, asked.device):,.0f}" for batch in asked.batches)
            gap = (outputs(model, asked.device) - exact).abs().max().item()
            print(f"{name:20} {found} calls/s   largest difference {gap:.1e} of {exact.abs().max().item():.2g}")


if __name__ == "__main__":
    main()
