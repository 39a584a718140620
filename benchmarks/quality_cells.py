"""The cells of the quality benchmark: which solvers, which times, how a cell is scored, where its score is kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep import solvers, times
from fewstep.compare import Cell, Results
from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError
from fewstep.metrics import frechet_with_error, kl_to_density, paired_rmse
from fewstep.models import Judge, default_condition
from fewstep.networks.unet import channels_last
from fewstep.noise import NoiseSchedule
from fewstep.problems import Gaussian, GaussianMixture, Problem
from fewstep.randomness import Seeds, unit_noise
from fewstep.sampling import sample
from fewstep.tableau import Tableau

RESULTS = Path(__file__).parent / "results"
NFES = (5, 6, 8, 10)
GRIDS: dict[str, Callable[..., Tensor]] = {**times.NAMES, "karras_append": partial(times.karras, end="append")}
"""Every hand-crafted grid, with the default end (the last point becomes 0), and EDM's own way to end (0 appended)."""
SCREEN_SOLVERS = (
    "ddim", "heun", "dpm_solver_2", "dpmpp_2m", "dpmpp_3m", "unipc_2_bh2_data", "unipc_3_bh2_data", "deis_tab_3",
    "ipndm_3", "ipndm_4", "adams_bashforth", "er_sde_3",
)  # fmt: skip
SCREEN_GRIDS = ("karras", "karras_append", "logsnr", "vp_uniform", "flow_shift", "cosine_logsnr")
RECOMMENDED = ("dpmpp_2m", "unipc_3_bh2_data", "ipndm_3")
"""Solvers that the documentation recommends, which optimised times are measured with."""
SCREEN_IMAGES, FINAL_IMAGES, SEED_SETS, FINALISTS = 512, 5000, 3, 10
SET_STRIDE = 1_000_000
"""Offset between seed sets: they stay disjoint whatever their sizes."""


class Job(NamedTuple):
    """One score to make: a cell, a name for what it is scored with, and the function that scores it."""

    cell: Cell
    about: dict[str, Any]
    key: str
    score: Callable[[], dict[str, Any]]


def make_cell(noise: NoiseSchedule, solver: str, grid: str, nfe: int) -> Cell:
    """A solver on a grid with exactly `nfe` calls, or the reason why there is none."""
    n = solvers.calls(solver, nfe)
    if n is None:
        return Cell(solver, grid, nfe, reason="no such number of calls")
    return from_times(noise, solver, grid, nfe, GRIDS[grid](noise, n))


def from_times(noise: NoiseSchedule, solver: str, name: str, nfe: int, where: Tensor) -> Cell:
    """A solver on given times."""
    try:
        tableau = solvers.get(solver)(where).tabulate(noise)
    except ArgumentError as error:
        return Cell(solver, name, nfe, reason=str(error))
    if tableau.nfe != nfe:
        return Cell(solver, name, nfe, reason=f"makes {tableau.nfe} calls")
    return Cell(solver, name, nfe, tableau)


def key_of(*parts: object) -> str:
    """A short name of what a score depends on."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]


def rounded(scores: dict[str, float], digits: int = 5) -> dict[str, float]:
    """Scores with as many digits as mean anything."""
    return {name: float(f"{value:.{digits}g}") for name, value in scores.items()}


# ---------------------------------------------------------------------------------------------------------- networks
BFLOAT16 = "-bfloat16"
"""End of the fingerprint of a network that computes as fast as the machine can."""
HALF_FLAGS = {"avx512_bf16", "amx_bf16"}
"""What Linux calls processors that multiply in bfloat16; others emulate it, seven times slower than float32."""


class Quick(torch.nn.Module):
    """A U-Net, compiled on a CPU (on a GPU that takes longer than it saves here), under bfloat16 autocast (as it was
    trained) where the machine has that; the preconditioning around it stays float32.
    """

    def __init__(self, unet: torch.nn.Module, *, half: bool, compiled: bool) -> None:
        super().__init__()
        self.classes, self.half = unet.classes, half
        if not half:
            channels_last(unet)
        self.run = torch.compile(unet, dynamic=False) if compiled else unet

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            return self.run(x, c_noise, label).float()


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether bfloat16 is the only fast way there: a GPU has float32 too, and keeps the figures of other machines."""
    if device != "cpu":
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(HALF_FLAGS & flags)


def quick(model: Denoiser, half: bool | None = None) -> Denoiser:
    """The digit network as fast as its device computes it.

    That is bfloat16 on CPUs that have it, and float32 on others and on GPUs. The fingerprint is one and the same:
    scores of one sampler in either differ by 0.001, a twentieth of their standard error (docs/ays-results.md), and a
    table that was begun on one machine goes on on another.
    """
    name = model.fingerprint + BFLOAT16
    inner: Any = model
    while isinstance(inner, Denoiser):
        inner = inner.fn
    half = has_bfloat16(model.device.type) if half is None else half
    torch.backends.cudnn.allow_tf32 = False  # float32 is what it says
    inner.network.net = Quick(inner.network.net, half=half, compiled=model.device.type == "cpu")
    return Denoiser(
        model, noise=model.noise, shape=model.shape, null_condition=model.null_condition, fingerprint=name,
        device=model.device,
    )  # fmt: skip


@torch.no_grad()
def score_network(model: Denoiser, judge: Judge, tableau: Tableau, seeds: Seeds, batch: int = 250) -> dict[str, float]:
    """Fréchet distance with its standard error, and the share of samples that are classified as their label."""
    features: list[Tensor] = []
    right = 0
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        labels = default_condition(model, part)
        images = sample(model, tableau, seeds=part, condition=labels)
        features.append(judge.features(images).double())
        if judge.classify is not None and labels is not None:
            right += int((judge.classify(images) == labels).sum())
    value, error = frechet_with_error(torch.cat(features), judge.reference)
    return rounded({"fd": value, "fd_error": error, "as_label": right / len(seeds)})


def network_jobs(model: Denoiser, judge: Judge, cells: Iterable[Cell], seeds: Seeds) -> Iterator[Job]:
    """A job for every cell that has a table."""
    for cell in cells:
        if cell.tableau is not None:
            about = {"solver": cell.solver, "times": cell.times, "nfe": cell.nfe, "seeds": repr(seeds)}
            key = key_of("network", model.fingerprint, judge.name, cell.tableau.digest, repr(seeds))
            yield Job(cell, about, key, partial(score_network, model, judge, cell.tableau, seeds))


# --------------------------------------------------------------------------------------------------------- analytic
class Analytic:
    """A problem with starts, the ODE's exact (or very fine) end points, and a figure for the law of the samples."""

    def __init__(self, problem: Problem, seeds: Seeds) -> None:
        self.problem, self.seeds = problem, seeds
        self.model = problem.denoiser(dtype=torch.float64)
        level = float(problem.noise.sigma(problem.noise.t_max))
        self.start = unit_noise(seeds, problem.shape).double() * level

    @cached_property
    def exact(self) -> Tensor:
        """End points of the ODE from the starts: in closed form, or by 2,000 calls of Heun's method."""
        noise = self.problem.noise
        if isinstance(self.problem, Gaussian):
            return self.problem.ode_solution(self.start, noise.t_max, noise.t_clean)
        fine = solvers.heun(times.logsnr(noise, 1000)).tabulate(noise)
        return sample(self.model, fine, start=self.start)

    @torch.no_grad()
    def score(self, tableau: Tableau) -> dict[str, float]:
        """Root mean square distance to the exact end points of the same starts; KL divergence of the law.

        For the Gaussian the divergence is exact, `KL(exact || samples)`; for the mixture it is estimated from the
        samples, `KL(samples || exact)`, and exact samples score its noise, not 0.
        """
        made = sample(self.model, tableau, start=self.start)
        found = {"rms": float(paired_rmse(made, self.exact).square().mean().sqrt())}
        if isinstance(self.problem, Gaussian):
            found["kl"] = float(self.problem.kl(tableau))
        elif isinstance(self.problem, GaussianMixture):
            found["kl"] = self._divergence(made)
        return rounded(found, 4)

    def _divergence(self, samples: Tensor) -> float:
        try:
            return kl_to_density(samples, self.problem.log_density).value
        except ArgumentError:  # samples that coincide or are not finite
            return float("inf")

    def floor(self) -> Job:
        """What the exact end points score."""
        about = {"problem": self.problem.name, "solver": "exact", "times": "", "nfe": 0}
        key = key_of("floor", self.model.fingerprint, repr(self.seeds))
        exact_kl = 0.0 if isinstance(self.problem, Gaussian) else None

        def score() -> dict[str, float]:
            return rounded({"kl": self._divergence(self.exact) if exact_kl is None else exact_kl}, 4)

        return Job(Cell("exact", "", 0), about, key, score)

    def jobs(self, cells: Iterable[Cell]) -> Iterator[Job]:
        """A job for every cell that has a table."""
        for cell in cells:
            if cell.tableau is not None:
                about = {"problem": self.problem.name, "solver": cell.solver, "times": cell.times, "nfe": cell.nfe}
                key = key_of("analytic", self.model.fingerprint, cell.tableau.digest, repr(self.seeds))
                yield Job(cell, about, key, partial(self.score, cell.tableau))


# --------------------------------------------------------------------------------------------------------------- run
class Deadline:
    """Whether there is time for another cell."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def over(self) -> bool:
        return self.end is not None and time.monotonic() > self.end


def work(jobs: Sequence[Job], results: Results, deadline: Deadline, *, quiet: bool = False) -> int:
    """Make the scores that are missing, each on disk before the next begins; returns how many are left."""
    unique: dict[str, Job] = {}
    for job in jobs:  # two names of one table are one job
        unique.setdefault(job.key, job)
    waiting = [job for job in unique.values() if results.get(job.key) is None]
    began = time.monotonic()
    for done, job in enumerate(waiting, 1):
        if deadline.over:
            return len(waiting) - done + 1
        scores = job.score()
        results.add(job.key, scores, **job.about)
        if not quiet or done % 100 == 0:
            left = (time.monotonic() - began) / done * (len(waiting) - done) / 60
            where = f"{job.cell.label}, {job.cell.nfe} calls"
            print(f"{done}/{len(waiting)}, {left:.1f} min left: {where}: {scores}", flush=True)
    return 0
