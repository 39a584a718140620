"""What one Brownian motion for each seed is worth: `python -m benchmarks.brownian`.

Samples of stochastic solvers on LogSNR times and those of their many-step reference, from the same seeds: the root mean
square distance of the digit classifier's features and the Fréchet distance of the two sets, with noise of its own for
each step and with the noise of one motion. Writes benchmarks/results/brownian.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ays import digits_judge, network
from benchmarks.ays_page import grid
from fewstep import models, solvers, times
from fewstep.files import atomic_write_text
from fewstep.metrics import Statistics, frechet
from fewstep.randomness import SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample
from fewstep.search.teacher import sde_of, stochastic_reference

RESULT = Path(__file__).parent / "results" / "brownian.md"
SOLVERS, NFES, OFFSET = ("ddim_eta1", "sde_dpmpp_2m", "er_sde_1", "er_sde_3"), (5, 10, 20), 90_000_000


@torch.no_grad()
def features(schedule: SolverSchedule, images: int, *, brownian: bool) -> Tensor:
    """Features `[images, 64]` of the samples."""
    model, seeds = network(), SelectionSeeds(images, OFFSET)
    made = sample(
        model, schedule.tabulate(model.noise), seeds=seeds, condition=models.default_condition(model, seeds),
        batch_size=100, brownian=brownian,
    )  # fmt: skip
    return digits_judge().features(made).double()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noise = network().noise
    references: dict[tuple[str, bool], Tensor] = {}
    lines: list[list[object]] = []
    for solver in SOLVERS:
        cells: list[object] = [solver]
        for nfe in NFES:
            for brownian in (False, True):
                key = ("er_sde" if solver.startswith("er_sde") else "reverse", brownian)
                if key not in references:
                    many = stochastic_reference(sde_of(solver), noise)
                    references[key] = features(many, arguments.images, brownian=brownian)
                few = features(solvers.get(solver)(times.logsnr(noise, nfe)), arguments.images, brownian=brownian)
                apart = (few - references[key]).square().sum(1).mean().sqrt().item()
                sets = frechet(Statistics.of(few), Statistics.of(references[key]))
                cells.append(f"{apart:.2f}, {sets:.3f}")
                print(solver, nfe, brownian, cells[-1], flush=True)
        lines.append(cells)
    head = ["solver", *(f"{nfe} steps, {kind}" for nfe in NFES for kind in ("own noise", "one motion"))]
    atomic_write_text(RESULT, grid(head, lines))


if __name__ == "__main__":
    main()
