"""What a solver costs beside the network, against diffusers: `python -m benchmarks.overhead`.

One thread, network excluded (a free denoiser returns a tensor that lies there), ten steps a run; contestants take turns
within one run, so that whatever else the machine does hits all of them. Prints minimum and median per step of all in
turn (each finds the caches cold, full of what the others did), the ratios of pairs that took turns alone, the time to
tabulate a ten-step schedule of every named solver, the time of `fewstep --help`, and how many tensors of state size a
200-step teacher holds. `--scheduler` measures FewStepScheduler in a pipeline's place alone: its `step` and
`scale_model_input` against those of diffusers' schedulers, and how many tensor operations a step makes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep import from_callable, solvers, times, trajectory
from fewstep.noise import EDM, Discrete
from fewstep.tableau import Tableau

STEPS = 10
SMALL, LARGE = (1, 4, 64, 64), (16, 4, 128, 128)
SD = Discrete.scaled_linear()
Run = Callable[[], None]


class Timing(NamedTuple):
    """Seconds per step."""

    least: float
    median: float

    def __str__(self) -> str:
        return f"{self.least * 1e6:9.1f} {self.median * 1e6:9.1f}"


class Target(NamedTuple):
    """A ratio, and the most that the project promises (None: for information)."""

    what: str
    value: float
    limit: float | None = None

    def __str__(self) -> str:
        verdict = (
            ""
            if self.limit is None
            else f"  (at most {self.limit:g})  {'ok' if self.value <= self.limit else 'MISSED'}"
        )
        return f"{self.what:100} {self.value:8.4g}{verdict}"


# ------------------------------------------------------------------------------------------------------- contestants
def answers(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Network outputs that lie there; several, so that nobody reads the same one from a warm cache."""
    return itertools.cycle([torch.randn(shape) for _ in range(4)])


def free(shape: tuple[int, ...], prediction: str) -> Callable[..., Tensor]:
    """A network that costs nothing; with prediction epsilon, our wrapper's conversion to x0 is part of the bill."""
    output = answers(shape)
    if prediction == "sample":
        return lambda x, t, condition=None: next(output)
    return from_callable(lambda x, t: next(output), prediction="epsilon", noise=SD, shape=shape[1:], check=False)


def ours(tableau: Tableau, shape: tuple[int, ...], prediction: str = "sample") -> Run:
    """The whole loop over a table."""
    denoiser, start = free(shape, prediction), torch.randn(shape)

    def run() -> None:
        for _point in trajectory(denoiser, tableau, start):
            pass

    return run


def floor(tableau: Tableau, shape: tuple[int, ...]) -> Run:
    """`mul` and in-place `add_` over each row's non-zero columns: the least that eager torch can do."""
    rows = [[term.weight for term in row.terms] for row in tableau.program[1:]]
    start, output = torch.randn(shape), answers(shape)

    def run() -> None:
        state = start
        for weights in rows:
            total = torch.mul(state, weights[0])
            for weight in weights[1:]:
                total.add_(next(output), alpha=weight)
            state = total

    return run


def theirs(name: str, shape: tuple[int, ...], prediction: str = "sample", **options: Any) -> tuple[Run, Run]:
    """A diffusers scheduler's `scale_model_input` and `step`, and what has to be done before each run, untimed."""
    import diffusers

    scheduler = getattr(diffusers, name)(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type=prediction, **options,
    )  # fmt: skip
    return _as_pipeline(scheduler, shape)


def scheduled(tableau: Tableau, shape: tuple[int, ...]) -> tuple[Any, Run, Run]:
    """FewStepScheduler where `theirs` has a scheduler of diffusers: the network gives epsilon, which it converts."""
    from fewstep.diffusers import FewStepScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    scheduler = FewStepScheduler.from_config(config, tableau=tableau)
    return scheduler, *_as_pipeline(scheduler, shape)


def _as_pipeline(scheduler: Any, shape: tuple[int, ...]) -> tuple[Run, Run]:
    """The calls that a pipeline makes in its loop, and those before it, untimed."""
    start, output = torch.randn(shape), answers(shape)

    def prepare() -> None:
        scheduler.set_timesteps(STEPS)
        if hasattr(scheduler, "set_begin_index"):  # DDIM has none
            scheduler.set_begin_index(0)

    def run() -> None:
        x = start
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(next(output), t, x, return_dict=False)[0]

    return run, prepare


def nothing() -> None:
    """No preparation."""


def in_turns(contestants: dict[str, tuple[Run, Run]], repeats: int) -> dict[str, Timing]:
    """Each contestant once, then each again, and so on; seconds per step."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 3):
        for name, (run, prepare) in contestants.items():
            prepare()
            began = time.perf_counter()
            run()
            if repeat >= 3:  # the first rounds warm caches and allocators
                spent[name].append((time.perf_counter() - began) / STEPS)
    return {name: Timing(min(all_), statistics.median(all_)) for name, all_ in spent.items()}


def table_of(solver: str, **options: Any) -> Tableau:
    """A named solver's ten-step table on Stable Diffusion's noise schedule."""
    return solvers.NAMES[solver](times.uniform(SD, STEPS, end="append"), **options).tabulate(SD)


def loops(shape: tuple[int, ...], prediction: str, repeats: int, *, hosts: bool) -> dict[str, Timing]:
    """All solver loops on one state shape."""
    tables = {
        "ours dpmpp_2m": table_of("dpmpp_2m"),
        "ours unipc_2": table_of("unipc", order=2),
        "ours unipc_3": table_of("unipc"),
    }
    contestants = {name: (ours(table, shape, prediction), nothing) for name, table in tables.items()}
    contestants |= {name.replace("ours", "floor"): (floor(table, shape), nothing) for name, table in tables.items()}
    if hosts:
        contestants["diffusers DPMSolverMultistep 2"] = theirs("DPMSolverMultistepScheduler", shape, prediction)
        contestants["diffusers UniPC 2"] = theirs("UniPCMultistepScheduler", shape, prediction)
        contestants["diffusers UniPC 3"] = theirs("UniPCMultistepScheduler", shape, prediction, solver_order=3)
    return in_turns(contestants, repeats)


# -------------------------------------------------------------------------------------------------- the other figures
def tabulation(repeats: int) -> dict[str, Timing]:
    """Seconds to build the schedule and its table, ten steps, for every named solver on two noise schedules."""
    found: dict[str, Timing] = {}
    for label, noise in (("edm", EDM()), ("sd", SD)):
        grid = times.logsnr(noise, STEPS)
        for name, solver in solvers.NAMES.items():
            spent: list[float] = []
            for _ in range(repeats + 1):
                began = time.perf_counter()
                try:
                    solver(grid).tabulate(noise)
                except ValueError:  # a solver that this number of steps, or this noise, does not suit
                    break
                spent.append(time.perf_counter() - began)
            if spent[1:]:
                found[f"{name} {label}"] = Timing(min(spent[1:]), statistics.median(spent[1:]))
    return found


def help_time(repeats: int) -> Timing:
    """Seconds of `fewstep --help` in a fresh process."""
    script = shutil.which("fewstep", path=str(Path(sys.executable).parent))
    program = "import sys; sys.argv = ['fewstep', '--help']; from fewstep.cli import main; main()"
    command = [script, "--help"] if script else [sys.executable, "-c", program]
    spent: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter() - began)
    return Timing(min(spent), statistics.median(spent))


class Living(TorchDispatchMode):
    """Counts the tensors of at least `size` elements that are alive."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.size:
            storage = out.untyped_storage()
            key = storage._cdata
            if key not in self._alive:  # an in-place sum returns the tensor that it was given
                self._alive.add(key)
                weakref.finalize(out, self._alive.discard, key)
        return out

    def __len__(self) -> int:
        return len(self._alive)


def teacher_memory(solver: str, steps: int = 200, **options: Any) -> int:
    """The most tensors of state size that a long run holds when the network is called, its answer included."""
    table = solvers.NAMES[solver](times.logsnr(EDM(), steps), **options).tabulate(EDM())
    living, most = Living(4096), 0

    def network(x: Tensor, t: float, condition: Any = None) -> Tensor:
        nonlocal most
        answer = x * 0.5
        most = max(most, len(living))
        return answer

    with torch.no_grad(), living:
        for point in trajectory(network, table, torch.randn(1, 4096)):
            del point
    return most


# ------------------------------------------------------------------------------------------------------------ report
def show(title: str, timings: dict[str, Timing], unit: str) -> None:
    print(f"\n{title:44} {'min ' + unit:>9} {'med ' + unit:>9}")
    for name, timing in timings.items():
        print(f"{name:44} {timing}")


def measure(repeats: int, *, hosts: bool) -> tuple[dict[str, dict[str, Timing]], list[Target]]:
    """The loops on both shapes, printed while they are measured."""
    found: dict[str, dict[str, Timing]] = {}
    targets: list[Target] = []
    for shape in (SMALL, LARGE):
        size = "x".join(map(str, shape))
        by_prediction = {p: loops(shape, p, repeats, hosts=hosts) for p in ("sample", "epsilon")}
        for prediction, got in by_prediction.items():
            title = f"{size} float32, the network predicts {prediction}"
            found[title] = got
            show(title, got, "us/step")
        got = by_prediction["sample"]
        if hosts:
            targets += pairs(shape, repeats, small=shape == SMALL)
        if shape == LARGE:
            for name in ("dpmpp_2m", "unipc_2", "unipc_3"):
                value = got[f"ours {name}"].median / got[f"floor {name}"].median
                targets.append(Target(f"{size}: loop / floor, {name}", value, 1.3))
    return found, targets


PAIRS = (
    ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", {}, 0.1),
    ("dpmpp_2m", {}, "UniPCMultistepScheduler", {}, 0.05),
    ("unipc", {"order": 2}, "UniPCMultistepScheduler", {}, None),
    ("unipc", {}, "UniPCMultistepScheduler", {"solver_order": 3}, None),
)
"""Ours, theirs, and the most that ours may cost of theirs on a small state."""


def pairs(shape: tuple[int, ...], repeats: int, *, small: bool) -> list[Target]:
    """Medians of ours over theirs, the two alone taking turns. The promise is about the loop (the network gives x0) and
    schedulers as they come (the network gives epsilon, which they convert); with our wrapper's conversion, and with
    schedulers that need none, for information.
    """
    found: list[Target] = []
    size = "x".join(map(str, shape))
    for solver, options, host, host_options, limit in PAIRS:
        table = table_of(solver, **options)
        for what, mine, peer in (
            ("our loop / scheduler", "sample", "epsilon"),
            ("both of x0", "sample", "sample"),
            ("both of epsilon", "epsilon", "epsilon"),
        ):
            contestants = {
                "ours": (ours(table, shape, mine), nothing),
                "theirs": theirs(host, shape, peer, **host_options),
            }
            got = in_turns(contestants, repeats)
            promised = None if what != "our loop / scheduler" else limit if small else limit and 0.2
            label = f"{size}: {solver}{options or ''} / {host} {host_options or ''}, {what}"
            found.append(Target(label, got["ours"].median / got["theirs"].median, promised))
    return found


SCHEDULERS = (
    ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", {}, 1 / 9),
    ("dpmpp_2m", {}, "UniPCMultistepScheduler", {}, 1 / 20),
    ("unipc", {"order": 2}, "UniPCMultistepScheduler", {}, None),
    ("ddim", {}, "DDIMScheduler", {"clip_sample": False}, None),
)
"""FewStepScheduler's table, diffusers' scheduler, and the most that a step may cost of theirs on a small state."""


def schedulers(repeats: int) -> list[Target]:
    """A step in a pipeline, ours over theirs, in alternation: ratios of the least and of the median times."""
    found: list[Target] = []
    print(f"\n{'one step in a pipeline, 1x4x64x64 float32':60} {'min us':>9} {'med us':>9} {'tensor operations':>18}")
    for solver, options, host, host_options, limit in SCHEDULERS:
        _, run, prepare = scheduled(table_of(solver, **options), SMALL)
        contestants = {"ours": (run, prepare), "theirs": theirs(host, SMALL, "epsilon", **host_options)}
        got = in_turns(contestants, repeats)
        for name, label in (("ours", f"FewStepScheduler, {solver} {options or ''}"), ("theirs", host)):
            print(f"{label:60} {got[name]} {operations(*contestants[name]):18.1f}")
        for which in ("least", "median"):
            ratio = getattr(got["ours"], which) / getattr(got["theirs"], which)
            found.append(Target(f"FewStepScheduler {solver} {options or ''} / {host}, {which}", ratio, limit))
    return found


def operations(run: Run, prepare: Run) -> float:
    """Tensor operations (calls of ATen from Python, as torch.profiler counts them) per step."""
    prepare()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = [e for e in profile.events() if e.name.startswith("aten::") and e.cpu_parent is None]
    return (len(events) - 1) / STEPS  # one unbinds the timesteps


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--repeats", type=int, default=60, help="runs of each contestant")
    parser.add_argument("--scheduler", action="store_true", help="FewStepScheduler against diffusers' alone")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        import diffusers

        hosts, host = True, f"diffusers {diffusers.__version__}"
    except ImportError:
        hosts, host = False, "diffusers is not installed: ours alone"
    print(f"torch {torch.__version__}, {host}, one thread, {arguments.repeats} repeats")
    if arguments.scheduler:
        with torch.no_grad():
            for target in schedulers(arguments.repeats):
                print(target)
        return
    with torch.no_grad():
        found, targets = measure(arguments.repeats, hosts=hosts)
        targets += schedulers(arguments.repeats) if hosts else []
        tabulated = tabulation(max(5, arguments.repeats // 5))
    slowest = dict(sorted(tabulated.items(), key=lambda item: -item[1].median)[:8])
    show(f"tabulate {STEPS} steps: the slowest of {len(tabulated)}", slowest, "us")
    targets.append(
        Target("tabulate: slowest named solver, median ms", max(t.median for t in tabulated.values()) * 1e3, 5)
    )
    began = help_time(max(5, arguments.repeats // 5))
    targets.append(Target("fewstep --help, median s", began.median, 0.3))
    for solver, options, most in (
        ("dpmpp_3m", {}, 5),
        ("unip", {"order": 3}, 5),
        ("deis", {"order": 3}, 8),
        ("adams_bashforth", {"order": 3}, 8),
    ):
        targets.append(
            Target(f"200-step teacher, {solver} order 3: tensors held at once", teacher_memory(solver, **options), most)
        )
    print("\nTargets")
    for target in targets:
        print(target)
    if arguments.json:
        record = {"loops": found, "tabulate": tabulated, "help": began, "targets": [t._asdict() for t in targets]}
        arguments.json.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
