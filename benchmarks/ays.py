"""Align Your Steps on the digit network: `python -m benchmarks.ays PHASE`.

    teachers   10,000 samples of two 50-call teachers (ODE, SDE): the sets that few-step samples are compared with
    table      the paper's Tables 5 and 6: seven solvers x {best hand-crafted, AYS} x 5, 10, 20, 30 steps
    targets    DPM-Solver++(2M) at 5, 6, 8, 10: AYS beside EDM, LogSNR, time-uniform and tangent times at their default
               parameters, and EDM's for other rho
    optimise   what `fewstep optimize --method ays` finds at these, with its default judges and budget, three times on
               other selection seeds; and without times from the loss curve
    twenty     what it finds at 20 steps for each of the seven solvers
    guided     guidance 1, 3, 5, 7, each against its own teacher's samples
    data       the KLUB from real data and from the teacher's samples
    report     writes docs/ays-results.md

Every score is on disk (benchmarks/results/ays) before the next one begins; the same command goes on where it was
stopped. On a CPU the network is compiled, and in bfloat16 where the processor has that; on a GPU it is in float32. The
judges that may stop the descent are compared by `benchmarks.ays_judges`. `--part K/M` takes every M-th solver (or
guidance) only, for several processes.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import ays_page as page
from benchmarks.network import draw
from benchmarks.quality_cells import quick
from fewstep import models, solvers, times
from fewstep.compare import Results
from fewstep.denoiser import Denoiser
from fewstep.files import atomic_write_text
from fewstep.inputs import Data, known_data
from fewstep.metrics import Statistics, frechet_with_error
from fewstep.noise import as_float64
from fewstep.optimizing import optimize
from fewstep.progress import shown
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.reproduce.ays_table import KINDS, AysTable
from fewstep.reproduce.choosing import SOLVERS, Settings
from fewstep.sampling import sample
from fewstep.search.ays import to_ratios
from fewstep.search.cache import digest
from fewstep.search.parts import PARTS
from fewstep.search.relatives import RELATIVES
from fewstep.search.shortest import shortest

RESULTS = Path(__file__).parent / "results" / "ays"
RUNS = Path("runs")
CACHE = RUNS / "ays-cache"
TEACHERS = {"ODE teacher": "dpmpp_2m", "SDE teacher": "sde_dpmpp_2m"}
TEACHER_STEPS, TEACHER_SAMPLES = 50, 10_000
OFFSET = 5_000_000
"""Report seeds of all scores here begin there: the teachers' sets have the first ones."""
TARGET_NFES = (5, 6, 8, 10)
DEFAULTS = ("karras", "logsnr", "vp_uniform", "tangent")
"""EDM (rho 7), LogSNR, time-uniform (in the VP process's time) and tangent (c = 0.5)."""
RHOS = (3, 5, 10, 15)


device = "cpu"
"""Where the network runs; `--device` sets it."""


@cache
def network(guidance: float = 1.0) -> Denoiser:
    """The digit network, as fast as the machine computes it."""
    return quick(models.load("mnist", guidance=guidance, device=device))


def digits_judge() -> models.Judge:
    """Features and reference of the digits."""
    judge = models.judge("mnist")
    assert judge is not None
    return judge


def teacher_drawn(name: str) -> dict[str, Tensor]:
    """10,000 samples of a teacher with their features, drawn where they are not there yet."""
    model = network()
    tableau = solvers.get(TEACHERS[name])(times.karras(model.noise, TEACHER_STEPS)).tabulate(model.noise)
    return draw(model, tableau, TEACHER_SAMPLES, RUNS / "network")


def teacher_statistics(name: str) -> Statistics:
    """Moments of a teacher's samples, kept with the results."""
    path = RESULTS / f"{name.replace(' ', '-').lower()}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Statistics.of(teacher_drawn(name)["features"].double()).save(path)
    return Statistics.load(path)


def teachers(arguments: argparse.Namespace) -> None:
    """The teachers' sets, and what parts of them score against the data: the least that a student can hope for."""
    kept = Results(RESULTS / "teachers.jsonl")
    for name in TEACHERS:
        teacher_statistics(name)
        for size in (2000, 5000):
            key = f"{name}, {size}"
            if kept.get(key) is None:
                parts = teacher_drawn(name)["features"].double().split(size)
                found = [frechet_with_error(part, digits_judge().reference).value for part in parts]
                kept.add(key, {"fd": statistics.mean(found), "deviation": statistics.stdev(found), "sets": len(found)})
            print(key, kept.get(key))


def settings(arguments: argparse.Namespace, **other: Any) -> Settings:
    """What all tables share."""
    common = Settings(
        offset=OFFSET, seed_sets=arguments.seed_sets, images=arguments.images, objective="matched",
        batch=Settings.batch if device == "cpu" else 1000,
    )  # fmt: skip
    return replace(common, **other)


def digits_data() -> Data:
    """Real images."""
    data = known_data(network(), 512)
    assert data is not None
    return data


BY_FRECHET: dict[str, Any] = {
    "objective": "frechet", "rounds": ((128, 0.27), (384, 0.33), (1000, 0.0)), "finals": 1000,
}  # fmt: skip
"""The race by the distance to the data, which is what the paper stops by: it needs more images."""


def table_of(arguments: argparse.Namespace, **other: Any) -> AysTable:
    """The table of the unguided network."""
    with shown(quiet=True) as report:
        return AysTable(
            network(), digits_judge(), digits_data(), RESULTS / "table", settings(arguments, **other),
            others={name: teacher_statistics(name) for name in TEACHERS}, cache=CACHE, progress=report,
        )  # fmt: skip


def told(what: str, found: dict[str, Any]) -> None:
    print(what, found, flush=True)


def table(arguments: argparse.Namespace) -> None:
    """Tables 5 and 6."""
    work = table_of(arguments, **(BY_FRECHET if arguments.frechet else {}))
    mine = set(part(arguments.solver, arguments))
    for k in range(arguments.seed_sets):
        for solver, nfe, kind in work.plan():
            if solver in mine and nfe in arguments.nfe and kind in arguments.kind:
                told(f"{solver} {nfe} {kind} {work.chooser.chosen(solver, nfe, kind).origin}, set {k}:",
                     work.score(solver, nfe, kind, k))  # fmt: skip


def part(items: Any, arguments: argparse.Namespace) -> list[Any]:
    """Every M-th item from K on."""
    k, m = arguments.part
    return list(items)[k::m]


def target_grids(work: AysTable, solver: str, nfe: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Times by name, those that are to be beaten first; then the relatives of AYS that need the KLUB table only."""
    noise = work.model.noise
    for name in DEFAULTS:
        yield name, partial(times.named(name), noise, nfe)
    for rho in RHOS:
        yield f"karras, rho {rho}", partial(times.karras, noise, nfe, rho=float(rho))
    for name, relative in RELATIVES.items():
        yield name.replace("_", " "), partial(kept_grid, work, name, relative, nfe)
    yield "least KLUB of all", partial(kept_grid, work, "shortest", shortest, nfe)
    yield "best hand-crafted", lambda: work.chooser.chosen(solver, nfe, "hand").times
    yield page.BY_FRECHET, lambda: work.chooser.chosen(solver, nfe, "ays").times
    if (found := optimised().get(str(nfe))) is not None:
        yield page.OPTIMISED, lambda: as_float64(found["times"])


def kept_grid(work: AysTable, name: str, relative: Callable[..., Tensor], nfe: int) -> Tensor:
    """Times that come from the KLUB table, kept: another machine's table differs in its last digits."""
    chosen = work.settings
    kept = Results(RESULTS / "table" / "relatives.jsonl")
    key = digest("relative", work.model.fingerprint, name, nfe, chosen.levels, chosen.paths, digits_data().samples)
    if kept.get(key) is None:
        kept.add(key, {"name": name, "nfe": nfe, "times": relative(work.chooser.gram, work.model.noise, nfe).tolist()})
    return as_float64((kept.get(key) or {})["times"])


def optimised() -> Results:
    """What `fewstep optimize --method ays` found, by number of steps."""
    return Results(RESULTS / "optimised.jsonl")


DESCENT = page.DESCENT
PARTS[DESCENT] = replace(PARTS["ays"], curve=False)
"""The same without times from the loss curve of the KLUB table."""
REPETITIONS = 3
APART = 100_000
"""Selection seeds of one repetition begin so far from those of the one before; report seeds are the same for all."""


def optimised_key(nfe: int, method: str, repetition: int) -> str:
    """In `optimised`."""
    return str(nfe) if (method, repetition) == ("ays", 0) else f"{nfe}, {method}, {repetition}"


def optimise(arguments: argparse.Namespace) -> None:
    """What a user gets: `fewstep optimize --method ays` with its default judges and budget, scored like the others; and
    the same without the loss curve, all of it again on other selection seeds.
    """
    work, kept = table_of(arguments), optimised()
    nfes = arguments.nfe if arguments.nfe != Settings().nfes else TARGET_NFES
    for repetition, method, nfe in part(itertools.product(range(REPETITIONS), ("ays", DESCENT), nfes), arguments):
        key = optimised_key(nfe, method, repetition)
        if kept.get(key) is None:
            seeds = SelectionSeeds(APART, APART * repetition) if repetition else None
            search(key, nfe, method, selection=seeds)
        score_optimised(work, key, "dpmpp_2m", arguments.seed_sets)


def search(key: str, nfe: int, method: str, **options: Any) -> None:
    """What a search finds, kept under a key."""
    with shown(quiet=True) as report:
        found = optimize(
            network(), nfe, method, judge=digits_judge(), progress=report,
            out=RUNS / f"ays-optimised-{key.replace(', ', '-').replace(' ', '-')}", **options,
        )  # fmt: skip
    assert found.tableau.schedule is not None
    record = {
        "times": found.tableau.schedule.times.tolist(), "origin": found.origin, "start": found.start_origin,
        "calls": found.calls, "selection": found.selection, "report": found.report,
    }  # fmt: skip
    optimised().add(key, record)


def score_optimised(work: AysTable, key: str, solver: str, sets: int) -> None:
    """The scores of what was found, on seeds that chose nothing."""
    for k in range(sets):
        grid = as_float64((optimised().get(key) or {})["times"])
        told(f"{key} {page.OPTIMISED}, set {k}:", work.scored(solver, grid, page.OPTIMISED, k))


TWENTY = 20


def twenty(arguments: argparse.Namespace) -> None:
    """What a user gets with 20 steps, to be compared with the paper's baseline at 30."""
    work = table_of(arguments)
    for solver in part(arguments.solver, arguments):
        key = f"{solver}, {TWENTY}"
        if optimised().get(key) is None:
            search(key, TWENTY, "ays", solver=solver)
        score_optimised(work, key, solver, arguments.seed_sets)


def found_at_twenty(work: AysTable, solver: str, score: str) -> list[float]:
    """Its scores."""
    record = optimised().get(f"{solver}, {TWENTY}")
    return [] if record is None else [f[score] for f in work.found(solver, as_float64(record["times"]))]


def repeated(work: AysTable, nfe: int, method: str, score: str) -> list[tuple[str, list[float]]]:
    """Where the times of each repetition came from, and their scores."""
    kept = (optimised().get(optimised_key(nfe, method, r)) for r in range(REPETITIONS))
    return [
        (record["origin"], [f[score] for f in work.found("dpmpp_2m", as_float64(record["times"]))])
        for record in kept
        if record is not None
    ]


def targets(arguments: argparse.Namespace) -> None:
    """What is promised of DPM-Solver++(2M)."""
    work = table_of(arguments, **BY_FRECHET)
    for k in range(arguments.seed_sets):
        for nfe in part(TARGET_NFES, arguments):
            for name, grid in target_grids(work, "dpmpp_2m", nfe):
                told(f"{nfe} {name}, set {k}:", work.scored("dpmpp_2m", grid(), name, k))


# ------------------------------------------------------------------------------------------------------------- guided
GUIDANCE = (1.0, 3.0, 5.0, 7.0)
GUIDED_STEPS, GUIDED_SAMPLES = 30, 2500


def guided_path(weight: float) -> Path:
    """Moments of the samples of the teacher at this guidance."""
    return RESULTS / f"guided-{weight:g}.safetensors"


def guided_table(arguments: argparse.Namespace, weight: float) -> AysTable:
    """The table of one guidance weight; the reference is its own teacher's set."""
    model = network(weight)
    tableau = solvers.get("dpmpp_2m")(times.logsnr(model.noise, GUIDED_STEPS)).tabulate(model.noise)
    path = guided_path(weight)
    if not path.exists():
        seeds = CalibrationSeeds(GUIDED_SAMPLES, 300_000_000)
        rows = [
            digits_judge().features(sample(model, tableau, seeds=some, condition=models.default_condition(model, some)))
            for start in range(0, GUIDED_SAMPLES, 250)
            if (some := seeds[start : start + 250])
        ]
        Statistics.of(torch.cat(rows).double()).save(path)
    judge = replace(digits_judge(), reference=Statistics.load(path), name=f"teacher at guidance {weight:g}")
    chosen = settings(arguments, solvers=("dpmpp_2m",), nfes=(5, 10))
    return AysTable(model, judge, digits_data(), RESULTS / f"guided-{weight:g}", chosen, cache=CACHE)


@torch.no_grad()
def guided(arguments: argparse.Namespace) -> None:
    """Guidance 1, 3, 5, 7."""
    for weight in part(GUIDANCE, arguments):
        work = guided_table(arguments, weight)
        for k in range(arguments.seed_sets):
            for nfe, kind in itertools.product(work.settings.nfes, ("hand", "ays")):
                told(f"guidance {weight:g}, {nfe} {kind}, set {k}:", work.score("dpmpp_2m", nfe, kind, k))


# --------------------------------------------------------------------------------------------------------------- data
MADE = 512


def made_table(arguments: argparse.Namespace) -> AysTable:
    """The table of DPM-Solver++(2M) whose KLUB comes from the teacher's own samples."""
    model = network()
    tableau = solvers.get("dpmpp_2m")(times.karras(model.noise, TEACHER_STEPS)).tabulate(model.noise)
    seeds = CalibrationSeeds(MADE, 400_000_000)
    path = RUNS / "ays-made.safetensors"
    if not path.exists():
        labels = models.default_condition(model, seeds)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": sample(model, tableau, seeds=seeds, condition=labels, batch_size=250)}, path)
    data = Data(load_file(path)["images"], models.default_condition(model, seeds), f"{MADE} samples of the teacher")
    chosen = settings(arguments, solvers=("dpmpp_2m",), nfes=(5, 10))
    return AysTable(
        model, digits_judge(), data, RESULTS / "made", chosen, cache=CACHE,
        others={name: teacher_statistics(name) for name in TEACHERS},
    )  # fmt: skip


@torch.no_grad()
def data(arguments: argparse.Namespace) -> None:
    """Real data or the teacher's samples behind the KLUB."""
    work, kept = made_table(arguments), Results(RESULTS / "made" / "gap.jsonl")
    for k in range(arguments.seed_sets):
        for nfe in work.settings.nfes:
            told(f"made data, {nfe}, set {k}:", work.score("dpmpp_2m", nfe, "ays", k))
    for nfe in work.settings.nfes:  # the samples are not kept with the results, so the page has these from here
        kept.add(f"scores, {nfe}", {s: page.scores(work, "dpmpp_2m", nfe, "ays", s) for s in ("fd", page.ODE)})
    if kept.get("klub") is None:
        real, made = table_of(arguments).chooser.gram, work.chooser.gram
        noise = work.model.noise
        rows = {}
        for nfe in (5, 10):
            ratios = to_ratios(noise, times.karras(noise, nfe))
            rows[str(nfe)] = [*real.total_with_error(ratios), *made.total_with_error(ratios)]
        defects = [real.martingale_defect(), made.martingale_defect()]
        kept.add("klub", {"klub of karras: real, error, made, error": rows, "martingale defects": defects})


def report(arguments: argparse.Namespace) -> None:
    """The page, from what there is."""
    work, kept = table_of(arguments), Results(RESULTS / "teachers.jsonl")
    wide = table_of(arguments, nfes=TARGET_NFES, **BY_FRECHET)
    grids = {nfe: [name for name, _ in target_grids(wide, "dpmpp_2m", nfe)] for nfe in TARGET_NFES}

    def found(nfe: int, name: str, score: str) -> list[float]:
        kind = {page.BY_FRECHET: "ays", "best hand-crafted": "hand"}.get(name)
        if kind is not None and wide.chooser.known("dpmpp_2m", nfe, kind) is None:
            return []
        where = dict(target_grids(wide, "dpmpp_2m", nfe)).get(name)
        return [] if where is None else [f[score] for f in wide.found("dpmpp_2m", where())]

    teacher = (kept.get("SDE teacher, 2000") or {"fd": 0.0})["fd"]
    text = "\n".join(
        [
            page.INTRODUCTION.format(
                sets=arguments.seed_sets, images=arguments.images, teachers=page.teachers_text(kept)
            ),
            page.targets_text(wide, TARGET_NFES, grids.__getitem__, found, teacher),
            page.repeated_text(TARGET_NFES, grids.__getitem__, found, partial(repeated, wide)),
            page.solvers_text(work, partial(found_at_twenty, work)),
            page.choices_text(work),
            page.by_frechet_text(table_of(arguments, nfes=(5, 10), **BY_FRECHET)),
            page.judging_text(RESULTS),
            page.guided_text({w: guided_table(arguments, w) for w in GUIDANCE if guided_path(w).exists()}),
            page.data_text(work, Results(RESULTS / "made" / "gap.jsonl")),
        ]
    )
    atomic_write_text(arguments.docs / "ays-results.md", text)
    page.figure(work, arguments.docs / "assets" / "tables" / "ays_steps.png")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ays", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    phases = {f.__name__: f for f in (teachers, table, targets, optimise, twenty, guided, data, report)}
    parser.add_argument("phase", choices=list(phases))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the network, as cuda; scores begun elsewhere go on there")
    parser.add_argument("--images", type=int, default=2000, help="of each seed set")
    parser.add_argument("--seed-sets", type=int, default=3)
    parser.add_argument("--nfe", type=int, nargs="+", default=Settings().nfes, help="columns of the table")
    parser.add_argument("--solver", nargs="+", default=SOLVERS, help="rows of the table")
    parser.add_argument("--kind", nargs="+", default=KINDS, help="cells of the table")
    parser.add_argument(
        "--frechet", action="store_true", help="a table whose times are raced by the distance to the data"
    )
    parser.add_argument("--part", type=lambda text: tuple(map(int, text.split("/"))), default=(0, 1), metavar="K/M")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    global device
    device = arguments.device
    phases[arguments.phase](arguments)


if __name__ == "__main__":
    main()
