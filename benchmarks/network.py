"""How good and how fast is the digit network that ships? `python -m benchmarks.network`

Draws 10,000 samples with 50 network calls each (SDE-DPM-Solver++ 2M on Karras times, balanced labels, report seeds) and
judges them against MNIST beside what real images score. With so many calls, fresh noise corrects what the network gets
wrong; `--solver dpmpp_2m` shows the same network without it. The samples are kept in parts of 500 under --out,
so a run that was stopped goes on where it was; the same command with other weights or options starts anew. Then it
times the network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.quality_cells import quick
from fewstep import models, networks, solvers, times
from fewstep.denoiser import Denoiser
from fewstep.files import atomic_write_bytes, atomic_write_text
from fewstep.metrics import Statistics, frechet, frechet_with_error, kernel_distance, precision_recall
from fewstep.networks.mnist import load_denoiser, shipped
from fewstep.randomness import ReportSeeds
from fewstep.report.images import image_grid, png
from fewstep.sampling import sample
from fewstep.tableau import Tableau

PART = 500
SIZES = (1_000, 2_000, 5_000, 10_000)


def draw(model: Denoiser, tableau: Tableau, n: int, folder: Path) -> dict[str, Tensor]:
    """Images (uint8), features, predicted and wanted labels of the first n report seeds, from parts on disk or anew."""
    key = f"{model.fingerprint}-{tableau.digest[:12]}"
    parts: list[dict[str, Tensor]] = []
    for offset in range(0, n, PART):
        path = folder / key / f"{offset:06d}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part")
            save_file(_draw_part(model, tableau, ReportSeeds(PART, offset)), temporary)
            os.replace(temporary, path)
            print(f"  {offset + PART:,} of {n:,} samples", flush=True)
        parts.append(load_file(path))
    return {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}


@torch.inference_mode()
def _draw_part(model: Denoiser, tableau: Tableau, seeds: ReportSeeds) -> dict[str, Tensor]:
    wanted = models.default_condition(model, seeds)
    assert wanted is not None
    images = sample(model, tableau, seeds=seeds, condition=wanted, batch_size=125)
    return {
        "images": images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8),
        "features": networks.mnist_features()(images),
        "labels": networks.mnist_classify(images),
        "wanted": wanted,
    }


def in_proportion(features: Tensor, labels: Tensor, shares: Tensor) -> Statistics:
    """Statistics of samples weighted so that the classes have the data's shares instead of equal ones."""
    weight = (shares / torch.bincount(labels, minlength=len(shares)))[labels].double()
    weight = weight / weight.sum()
    features = features.double()
    mean = weight @ features
    centred = features - mean
    cov = (centred * weight[:, None]).T @ centred / (1 - weight.square().sum())
    return Statistics.from_moments(mean, cov, len(features))


def judge(drawn: dict[str, Tensor]) -> dict[str, Any]:
    """All scores, with what real images score beside them."""
    features, reference = drawn["features"], networks.mnist_reference()
    stored, floors, n = networks.mnist_reference_features(), networks.mnist_floors(), len(features)
    distances = {str(k): frechet_with_error(features[:k], reference)._asdict() for k in SIZES if k <= n}
    subset = frechet_with_error(features, networks.mnist_reference("train_10k"))
    kernel, overlap = kernel_distance(features, stored), precision_recall(features, stored)
    return {
        "samples": n,
        "frechet_to_60000_training_images": distances,
        "frechet_to_10000_training_images": subset._asdict(),
        "frechet_in_class_shares": frechet(
            in_proportion(features, drawn["wanted"], torch.tensor(networks.CLASS_SHARES)),
            networks.mnist_reference("train_10k"),
        ),
        "floor_10000_training_to_10000_test_images": floors["train_10k_to_test"],
        "times_floor": subset.value / floors["train_10k_to_test"],
        "classified_as_label": float((drawn["labels"] == drawn["wanted"]).double().mean()),
        "kernel": kernel._asdict(),
        **overlap._asdict(),
        "real_images": floors,
    }


@torch.inference_mode()
def speed(model: Denoiser, batch: int, repeats: int, threads: int) -> dict[str, Any]:
    """Forward images a second: best and median of `repeats` calls after five to warm up."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    x, label = torch.randn(batch, *model.shape), torch.arange(batch) % 10
    seconds = []
    for k in range(repeats + 5):
        began = time.perf_counter()
        model(x, 1.0, label)
        if k >= 5:
            seconds.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    best, median = batch / min(seconds), batch / statistics.median(seconds)
    return {"threads": threads, "batch": batch, "repeats": repeats, "images_per_second": median, "best": best}


def table(result: dict[str, Any]) -> str:
    """The figures, one a line."""
    q = result["quality"]
    lines = [
        f"network {result['network']}, {result['solver']}, {result['calls']} calls a sample, {q['samples']:,} "
        "samples, seeds "
        f"{result['seeds']}"
    ]
    for n, d in q["frechet_to_60000_training_images"].items():
        real = q["real_images"]["test_to_train"].get(n, float("nan"))
        lines.append(
            f"Fréchet distance, N = {int(n):6,}, to all training images   {d['value']:.4f} ± "
            f"{d['standard_error']:.4f}   (test images {real:.4f})"
        )
    d = q["frechet_to_10000_training_images"]
    lines += [
        f"Fréchet distance to 10,000 training images              {d['value']:.4f} ± {d['standard_error']:.4f}",
        f"  with the data's class shares                          {q['frechet_in_class_shares']:.4f}",
        f"  floor: 10,000 training to 10,000 test images          {q['floor_10000_training_to_10000_test_images']:.4f}",
        f"  in floors                                             {q['times_floor']:.2f}",
        f"classified as their label                               {q['classified_as_label']:.2%}",
        f"precision, recall                                       {q['precision']:.3f}, {q['recall']:.3f}",
        f"density, coverage                                       {q['density']:.3f}, {q['coverage']:.3f}",
        f"kernel distance                                         {q['kernel']['value']:.5f} ± "
        f"{q['kernel']['standard_error']:.5f}",
    ]
    for s in result["speed"]:
        lines.append(
            f"forward, batch {s['batch']}, {s['threads']} threads: {s['images_per_second']:.0f} images/s (best "
            f"{s['best']:.0f})"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="network to judge; the one that ships by default")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--solver", choices=sorted(solvers.NAMES), default="sde_dpmpp_2m")
    parser.add_argument("--bfloat16", action="store_true", help="draw with the U-Net in bfloat16, compiled: faster")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=50, help="timed calls; 0 for no timing")
    parser.add_argument("--out", type=Path, default=Path("runs/network"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = args.weights or shipped("mnist.safetensors")
    model = load_denoiser(weights)
    tableau = solvers.NAMES[args.solver](times.karras(model.noise, args.steps)).tabulate(model.noise)
    drawer = quick(load_denoiser(weights)) if args.bfloat16 else model
    drawn = draw(drawer, tableau, args.samples, args.out)
    quality = judge(drawn)
    timed = (
        [speed(model, b, args.repeats, t) for t in sorted({1, args.threads}) for b in (64, 125, 250)]
        if args.repeats
        else []
    )
    result = {
        "network": drawer.fingerprint,
        "solver": f"{args.solver}, karras, {args.steps} steps",
        "calls": tableau.nfe,
        "seeds": repr(ReportSeeds(args.samples)),
        "quality": quality,
        "speed": timed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    cells = drawn["images"][:200].permute(0, 2, 3, 1).numpy()
    atomic_write_bytes(args.out / "samples.png", png(image_grid(cells, columns=20, scale=2)))
    atomic_write_text(args.out / "network.json", json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
