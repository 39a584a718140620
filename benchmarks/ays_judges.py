"""Which judge should stop the descent of Align Your Steps: `python -m benchmarks.ays_judges draw|study`.

    draw     samples of a solver at some numbers of steps on every hand-crafted grid, on rescaled entropic times and on
             grids from the ways down, the same seeds for all, and two teachers' end points of these seeds
    study    many times: each judge chooses on some of the images, and the choice is scored on others

A judge is compared by what its choice scores, not by its own scores. `draw` keeps what judges look at (features,
pixels projected to 256 directions) of each candidate in blocks, all candidates of a block before the next, so it can be
stopped at any time; `study` takes the blocks that are complete and writes benchmarks/results/ays/judging-SOLVER.json,
from which `python -m benchmarks.ays report` makes its section.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import ays
from fewstep import models
from fewstep.brownian import motion
from fewstep.denoiser import Denoiser
from fewstep.files import atomic_write_text
from fewstep.metrics import Statistics, frechet, sliced_wasserstein
from fewstep.metrics.kernel import polynomial
from fewstep.noise import NoiseSchedule
from fewstep.randomness import SelectionSeeds
from fewstep.reproduce.ays_table import AysTable
from fewstep.sampling import sample
from fewstep.search.ays import descents
from fewstep.search.cache import digest
from fewstep.search.judges import projection
from fewstep.search.methods import POWERS
from fewstep.search.relatives import rescaled_entropic
from fewstep.search.teacher import reference_schedule, sde_of, stochastic_reference
from fewstep.tableau import Tableau

DRAWN = ays.RUNS / "ays-judges"
NFES = {"dpmpp_2m": (5, 6, 10), "sde_dpmpp_2m": (5, 10), "er_sde_3": (5, 10)}
"""Solvers, and their numbers of steps."""
STARTS = ("karras", "logsnr", "vp_uniform", "quadratic", "cosine", "cosine_logsnr", "flow_shift", "rescaled entropic")
SWEEPS = (1, 2, 4)
"""Later ones are past the optimum."""
BLOCK, OFFSET = 250, 60_000_000
"""Images of a block; the seeds are away from all others here."""
TEACHER, SDE = "teacher", "sde teacher"
"""The deterministic one, and one that follows the Brownian motion of the candidates."""
CHOOSING, DRAWS = (64, 256), 60
"""Images that a judge chooses on, and how often."""

Rows = dict[str, Tensor]
"""Of one candidate: `features [n, 64]` and `pixels [n, 256]`."""


# --------------------------------------------------------------------------------------------------------------- draw
def candidates(work: AysTable, solver: str, nfe: int) -> dict[str, Tableau]:
    """The grids that judges choose from."""
    noise, gram = work.model.noise, work.chooser.gram
    grids = work.chooser.hand_crafted(solver, nfe)
    for power in POWERS:
        name = "rescaled entropic" if power == 1 else f"rescaled entropic, power {power:g}"
        grids[name] = rescaled_entropic(gram, noise, nfe, power=power)
    for way in descents(gram, noise, {name: grids[name] for name in STARTS}):
        for k in SWEEPS:
            if k < len(way.snapshots):
                grids[way.snapshots[k].origin] = way.snapshots[k].times
    return {name: work.chooser.tableau(solver, grid) for name, grid in grids.items()}


def folder_of(solver: str, nfe: int) -> Path:
    """Where the candidates' rows lie."""
    return DRAWN / solver / f"{nfe}"


def path_of(folder: Path, block: int, tableau: Tableau) -> Path:
    """Where a candidate's rows of a block lie."""
    return folder / f"{block}-{named(tableau)}.safetensors"


def named(tableau: Tableau) -> str:
    """A table, the network and the noise, in sixteen digits."""
    return digest(ays.network().fingerprint, tableau.digest, *motion(tableau))


@torch.no_grad()
def observed(model: Denoiser, tableau: Tableau, block: int) -> Rows:
    """What judges look at, of one block of samples."""
    seeds = SelectionSeeds(BLOCK, OFFSET + BLOCK * block)
    images = sample(
        model, tableau, seeds=seeds, condition=models.default_condition(model, seeds), batch_size=BLOCK, brownian=True
    )
    flat = images.flatten(1).double().cpu()
    turn = projection(flat.shape[1])
    return {
        "features": ays.digits_judge().features(images).double().cpu(),
        "pixels": flat if turn is None else flat @ turn,
    }


def taught(noise: NoiseSchedule, solver: str) -> dict[str, Tableau]:
    """The teachers of a solver; for one of the ODE the stochastic one is shown beside."""
    sde = stochastic_reference(sde_of(solver) or "sde_dpmpp_2m", noise)
    return {TEACHER: reference_schedule(noise).tabulate(noise), SDE: sde.tabulate(noise)}


def draw(arguments: argparse.Namespace) -> None:
    """All blocks."""
    work = ays.table_of(arguments)
    teachers = taught(work.model.noise, arguments.solver)
    for block, nfe in itertools.product(range(arguments.blocks), arguments.nfe or NFES[arguments.solver]):
        tables = candidates(work, arguments.solver, nfe)
        folder = folder_of(arguments.solver, nfe)
        for name, tableau in (teachers | tables).items():
            path = path_of(DRAWN / name if name in teachers else folder, block, tableau)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(observed(work.model, tableau, block), path.with_suffix(".part"))
                os.replace(path.with_suffix(".part"), path)
        names = {named(tableau): name for name, tableau in tables.items()}
        atomic_write_text(folder / "names.json", json.dumps(names, indent=1))
        print(f"block {block}, {nfe} steps: {len(tables)} candidates", flush=True)


def drawn(solver: str, nfe: int, least: int = 1) -> tuple[dict[str, Rows], Rows]:
    """Rows of all candidates and of the teachers, from the blocks that are complete."""
    folder = folder_of(solver, nfe)
    names = json.loads((folder / "names.json").read_text())
    blocks = 0
    while all((folder / f"{blocks}-{key}.safetensors").exists() for key in names):
        blocks += 1
    if blocks < least:
        raise SystemExit(f"{blocks} complete blocks of {solver} at {nfe} steps: run draw first")

    def joined(folder: Path, key: str) -> Rows:
        parts = [load_file(folder / f"{k}-{key}.safetensors") for k in range(blocks)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    keys = {name: named(tableau) for name, tableau in taught(ays.network().noise, solver).items()}
    sde = {f"sde {name}": rows for name, rows in joined(DRAWN / SDE, keys[SDE]).items()}
    return {name: joined(folder, key) for key, name in names.items()}, joined(DRAWN / TEACHER, keys[TEACHER]) | sde


# -------------------------------------------------------------------------------------------------------------- study
Score = Callable[[Rows, Rows], float]
"""`(rows of a candidate, rows of the teacher on the same seeds) -> score`, lower is better."""


def reference() -> Statistics:
    """Of the real images."""
    return ays.digits_judge().reference


@cache
def real_features() -> Tensor:
    """Features of some real images."""
    return ays.digits_judge().reference_features[:2000].double()


@cache
def real_kernel() -> float:
    """Mean kernel among them: a constant of the kernel distance."""
    rows = real_features()
    return polynomial(rows, rows).mean().item()


def to_data(rows: Rows, teacher: Rows) -> float:
    return frechet(Statistics.of(rows["features"]), reference())


def to_teachers_set(rows: Rows, teacher: Rows) -> float:
    return frechet(Statistics.of(rows["features"]), ays.teacher_statistics("ODE teacher"))


def to_same_seeds(rows: Rows, teacher: Rows) -> float:
    return frechet(Statistics.of(rows["features"]), Statistics.of(teacher["features"]))


def to_sde_teacher(rows: Rows, teacher: Rows) -> float:
    return frechet(Statistics.of(rows["features"]), Statistics.of(teacher["sde features"]))


def kernel_to_data(rows: Rows, teacher: Rows) -> float:
    own, real = rows["features"], real_features()
    within = polynomial(own, own)
    n = len(own)
    mean = (within.sum() - within.diagonal().sum()) / (n * (n - 1))
    return float(mean + real_kernel() - 2 * polynomial(own, real).mean())


def sliced_to_data(rows: Rows, teacher: Rows) -> float:
    return sliced_wasserstein(rows["features"], real_features(), projections=64)


def faithful(rows: Rows, teacher: Rows) -> float:
    seen = frechet(Statistics.of(rows["pixels"]), Statistics.of(teacher["pixels"]))
    return math.sqrt(max(0.0, to_same_seeds(rows, teacher)) * max(0.0, seen))


def faithful_to_sde(rows: Rows, teacher: Rows) -> float:
    seen = frechet(Statistics.of(rows["pixels"]), Statistics.of(teacher["sde pixels"]))
    return math.sqrt(max(0.0, to_sde_teacher(rows, teacher)) * max(0.0, seen))


def sliced_pixels(rows: Rows, teacher: Rows) -> float:
    return sliced_wasserstein(rows["pixels"], teacher["pixels"], projections=64)


def paired_pixels(rows: Rows, teacher: Rows) -> float:
    return math.sqrt((rows["pixels"] - teacher["pixels"]).square().sum(1).mean().item())


def paired_features(rows: Rows, teacher: Rows) -> float:
    return math.sqrt((rows["features"] - teacher["features"]).square().sum(1).mean().item())


def data_and_pairs(rows: Rows, teacher: Rows) -> float:
    return to_data(rows, teacher) * paired_features(rows, teacher)


JUDGES: dict[str, Score] = {
    "FD to the data": to_data,
    "kernel distance to the data": kernel_to_data,
    "sliced Wasserstein to the data, features": sliced_to_data,
    "FD to the teacher's set": to_teachers_set,
    "FD to the teacher, same seeds": to_same_seeds,
    "its geometric mean with that of the pixels (faithful)": faithful,
    "sliced Wasserstein to the teacher, same seeds, pixels": sliced_pixels,
    "paired L2 to the teacher, pixels": paired_pixels,
    "paired L2 to the teacher, features": paired_features,
    "FD to the data times paired L2, features": data_and_pairs,
    "FD to the SDE teacher, same seeds": to_sde_teacher,
    "faithful to the SDE teacher, same seeds": faithful_to_sde,
}


def finals() -> dict[str, Callable[[Tensor], float]]:
    """What a choice is scored by, on images that did not choose."""
    others = {f"FD to the {name}'s set": ays.teacher_statistics(name) for name in ays.TEACHERS}
    return {
        name: lambda rows, statistics=statistics: frechet(Statistics.of(rows), statistics)
        for name, statistics in ({"FD to the data": reference()} | others).items()
    }


def part(rows: Rows, index: Tensor) -> Rows:
    return {name: values[index] for name, values in rows.items()}


def study(arguments: argparse.Namespace) -> None:
    """Choose and score, again and again."""
    found: dict[str, Any] = {}
    for nfe in NFES[arguments.solver]:
        rows, teacher = drawn(arguments.solver, nfe)
        total = len(teacher["features"])
        for count in [c for c in CHOOSING if c <= total // 2]:
            found[f"{nfe}, {count}"] = one_study(rows, teacher, count, arguments.draws) | {"images": total}
            print(nfe, count, json.dumps(found[f"{nfe}, {count}"]["judges"], indent=1), flush=True)
    atomic_write_text(ays.RESULTS / f"judging-{arguments.solver}.json", json.dumps(found, indent=1) + "\n")


def one_study(rows: dict[str, Rows], teacher: Rows, count: int, draws: int) -> dict[str, Any]:
    """Means over the draws of what each judge's choice scores, and of the best that there was to choose."""
    names, total = list(rows), len(teacher["features"])
    generator = torch.Generator().manual_seed(count)
    scored = finals()
    sums = {judge: torch.zeros(len(scored), dtype=torch.float64) for judge in JUDGES}
    ideal, chosen = torch.zeros(len(scored), dtype=torch.float64), {judge: dict[str, int]() for judge in JUDGES}
    for _ in range(draws):
        order = torch.randperm(total, generator=generator)
        mine, rest = order[:count], order[count:]
        fresh = torch.tensor(
            [[score(rows[name]["features"][rest]) for score in scored.values()] for name in names], dtype=torch.float64
        )
        ideal += fresh.min(0).values / draws
        own = part(teacher, mine)
        for judge, score in JUDGES.items():
            values = [score(part(rows[name], mine), own) for name in names]
            best = min(range(len(names)), key=values.__getitem__)
            sums[judge] += fresh[best] / draws
            chosen[judge][names[best]] = chosen[judge].get(names[best], 0) + 1

    def named(values: Tensor) -> dict[str, float]:
        return dict(zip(scored, map(rounded, values.tolist()), strict=True))

    return {
        "judges": {judge: named(values) for judge, values in sums.items()},
        "best there was": named(ideal),
        "chosen": {judge: _most(counts) for judge, counts in chosen.items()},
        "draws": draws,
        "candidates": len(names),
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _most(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:3])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("draw", "study"))
    parser.add_argument("--solver", choices=list(NFES), default="dpmpp_2m")
    parser.add_argument("--nfe", type=int, nargs="+", help="those to draw (all)")
    parser.add_argument("--blocks", type=int, default=4, help="of 250 images")
    parser.add_argument("--draws", type=int, default=DRAWS)
    asked = parser.parse_args(arguments, argparse.Namespace(seed_sets=3, images=2000))
    torch.set_num_threads(1)
    {"draw": draw, "study": study}[asked.phase](asked)


if __name__ == "__main__":
    main()
