"""The methods of the field's table: how each is named, and how it makes a sampler for a network.

dpmpp_2m:logsnr            a named solver on named times
ipndm_4:karras:min         the same, ending at the network's least noise level instead of at a clean sample
dpmpp_3m                   a solver on its usual times
gits, oss, ld3, dmn, auto  what `fewstep.optimize` knows; gits:ipndm with one solver instead of several
s3                         a search over whole solver schedules (`fewstep.searching`)
hand, published, planned, gradient, all    groups of these
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep import compare, searching, solvers, times
from fewstep.errors import ArgumentError
from fewstep.inputs import condition_of
from fewstep.judging import checked_objective, taught
from fewstep.optimizing import optimize
from fewstep.progress import Report, silent
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.search.clock import TIME_SHARE
from fewstep.search.gradient.recipes import RECIPES
from fewstep.search.ledger import speed
from fewstep.search.parts import METHODS, PLANNED
from fewstep.search.plan import LAST, MOST_IMAGES, default_calls
from fewstep.search.teacher import CALLS
from fewstep.tableau import Tableau

if TYPE_CHECKING:
    from fewstep.clean import Data
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge

HAND, S3 = "hand", "s3"
IMAGES = (64, 256)
GRIDS: dict[str, tuple[str, dict[str, Any]]] = {"vp_uniform_2": ("vp_uniform", {"rho": 2.0})}
"""Grids with options that the field has names for: the "time uniform" one of DEIS."""
DMN_GRID = "dmn"
"""Times of DMN's bound with its authors' p = 1 for pixels, as they are: nothing is compared, no network is called."""

_LOGSNR = dict.fromkeys(("dpmpp", "dpm_solver", "sde_dpmpp", "unip"), "logsnr")
USUAL = {**_LOGSNR, "deis": "vp_uniform_2", "ddpm": "uniform"}
"""Times that the few-step literature gives a family of solvers, by the beginning of its names; the rest has EDM's."""

HAND_CRAFTED = (
    "ddim", "heun", "dpm_2", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "ipndm", "adams_bashforth", "er_sde_3",
    "sde_dpmpp_2m",
)  # fmt: skip
TOOLBOX = (
    "euler:karras:min", "heun:karras:min", "dpm_2:karras:min", "dpmpp_3m:logsnr:min", "unipc_3_bh2_data:logsnr:min",
    "deis_tab_3:vp_uniform_2:min", "ipndm_4:karras:min",
)  # fmt: skip
"""The baselines of the diff-solvers toolbox, with its times and its end."""
GROUPS: dict[str, tuple[str, ...]] = {
    "hand": HAND_CRAFTED,
    "published": TOOLBOX,
    "planned": PLANNED,
    "gradient": tuple(RECIPES),
    "all": (*HAND_CRAFTED, "dmn", "ays", "grids", *PLANNED, *RECIPES, S3, "auto"),
}
REPORTED = ("report",)
"""Stages of `optimize` that are figures of a result and no part of its search."""
STRIDE = 1_000_000
"""Between the seeds of two repetitions: they stay disjoint whatever their numbers."""
OWN_FIGURES = 900_000_000
"""Report seeds of the figures that `optimize` makes for itself begin here, away from those of the table."""


@dataclass(frozen=True)
class Method:
    """A row of the table; `kind` is `hand`, `dmn`, `ays`, `planned`, `gradient`, `s3` or `auto`."""

    name: str
    kind: str
    solver: str = ""
    times: str = ""
    end: str = "zero"

    @staticmethod
    def parsed(text: str) -> Method:
        """The method of a name.

        Errors: `ArgumentError` for one that nobody knows.
        """
        head, *rest = text.split(":")
        if head in (*METHODS, S3):
            kind = "planned" if head in PLANNED else "gradient" if head in RECIPES else head
            if len(rest) > 1 or (rest and head == S3):
                raise ArgumentError(f"method {text!r}: write {head}" + ("" if head == S3 else f", or {head}:SOLVER"))
            if rest:
                solvers.get(rest[0])
            return Method(text, kind, solver=rest[0] if rest else "")
        if head not in solvers.NAMES:
            raise ArgumentError(
                f"there is no method {text!r}: give a solver (fewstep solvers), SOLVER:TIMES, one of "
                f"{', '.join([*METHODS, S3])}, or a group: {', '.join(GROUPS)}"
            )
        grid = rest[0] if rest else usual(head)
        if grid not in GRIDS and grid != DMN_GRID:
            times.named(grid)
        if rest[1:] not in ([], ["min"], ["zero"], ["append"]):
            raise ArgumentError(f"method {text!r}: write SOLVER:TIMES, or SOLVER:TIMES:min to end above sigma 0")
        return Method(":".join([head, grid, *rest[1:]]), HAND, head, grid, rest[1] if rest[1:] else "zero")


def usual(solver: str) -> str:
    """The times that a named solver usually has."""
    return next((grid for family, grid in USUAL.items() if solver.startswith(family)), "karras")


def chosen(names: Sequence[str]) -> tuple[Method, ...]:
    """Methods of names and groups, each once.

    Errors: `ArgumentError` for a name that nobody knows, or none at all.
    """
    found = {m.name: m for name in names for text in GROUPS.get(name, (name,)) for m in [Method.parsed(text)]}
    if not found:
        raise ArgumentError(f"methods is empty: give names or groups ({', '.join(GROUPS)})")
    return tuple(found.values())


@dataclass(frozen=True)
class Effort:
    """How much each search may spend.

    Attributes:
        solver: of the methods that take one, where the method's name says none; `auto` lets several compete.
        objective: what selects, as in `optimize`.
        minutes, max_calls: for each search; by default what `optimize` takes.
        teacher_calls: of the reference sampler.
        calibration: seeds that a search learns from; by default a tenth of its calls goes to the teacher of them.
        images: of S³'s evaluations: few first, more for the best.
        proposer: of S³.
        batch: images at a time.
        loss: what methods that learn by gradient lower; `auto` is each method's own.
    """

    solver: str = "auto"
    objective: str = "auto"
    minutes: float | None = None
    max_calls: int | None = None
    teacher_calls: int = CALLS
    calibration: int | None = None
    images: Sequence[int] = IMAGES
    proposer: str = "s3"
    batch: int = 250
    loss: str = "auto"

    @property
    def words(self) -> str:
        """For captions; samplers that were searched alike have the same."""
        parts = [f"{self.minutes:g} minutes"] if self.minutes else []
        parts += [f"{self.max_calls:,} network calls"] if self.max_calls else []
        loss = "" if self.loss == "auto" else f"loss {self.loss}, "
        budget = " or ".join(parts) or "each method's own"
        return f"solver {self.solver}, {loss}selected by {self.objective}, budget {budget}"

    def lowered(self, method: Method) -> str:
        """What a method lowers; `auto` where it does not learn by gradient."""
        return self.loss if method.kind in ("gradient", "auto") else "auto"

    def calls(self, method: Method, nfe: int) -> int:
        """Network calls of one search, where minutes do not say less."""
        return self.max_calls or default_calls(nfe, learned=method.kind in ("gradient", "auto"))

    def learned_from(self, method: Method, nfe: int, seed: int) -> CalibrationSeeds:
        """The calibration seeds of a repetition."""
        share = 32 if self.minutes is not None else int(0.1 * self.calls(method, nfe) / self.teacher_calls)
        return CalibrationSeeds(self.calibration or max(16, min(256, share)), seed * STRIDE)

    def spent(self, method: Method) -> list[Any]:
        """What a search's result depends on, besides the network and the seeds."""
        if method.kind == HAND:
            return []
        own = [self.proposer, list(self.images)] if method.kind == S3 else [method.solver or self.solver]
        own += [self.lowered(method)] if self.lowered(method) != "auto" else []
        if self.max_calls is None and self.minutes is None and method.kind not in (S3, "gradient", "auto"):
            own.append(
                str(default_calls(1))
            )  # of times alone: it was less once, and what was found with that is no other
        return [*own, self.objective, self.minutes, self.max_calls, self.teacher_calls, self.calibration]


@dataclass(frozen=True)
class Made:
    """A method's sampler; `origin` in words, `kept` whether a search found nothing better than it began with.

    `figures` are network calls that were no part of the search, `backward` those that were differentiated.
    """

    tableau: Tableau
    origin: str
    kept: bool = False
    figures: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Maker:
    """Makes samplers for one network: `maker(method, nfe, seed, folder)`; `name` stands for the network in files."""

    model: Denoiser
    name: str
    judge: Judge | None
    data: Data | None
    effort: Effort
    progress: Report = silent

    def __call__(self, method: Method, nfe: int, seed: int, folder: Path) -> Made:
        """The sampler.

        Args:
            method, nfe, seed: of the cell; another seed has other calibration and selection seeds.
            folder: of the cell, whose cache is that of `cache(method, folder)`.

        Raises:
            ArgumentError: the method has none with so many calls, or not with this effort.
            DenoiserError: the network fails.
            KeyboardInterrupt: stopped; called again, the method goes on.
        """
        if method.kind == HAND:
            return self._hand(method, nfe)
        return (self._searched if method.kind == S3 else self._found)(method, nfe, seed, folder)

    @staticmethod
    def cache(method: Method, folder: Path) -> Path:
        """Where a method keeps what cost network calls."""
        return folder / ("study.sqlite.cache" if method.kind == S3 else ".cache")

    def _hand(self, method: Method, nfe: int) -> Made:
        noise, (grid, options) = self.model.noise, GRIDS.get(method.times, (method.times, {}))
        if grid == DMN_GRID:
            cell = compare.dmn_cell(noise, method.solver, nfe, "min" if method.end == "min" else "zero")
        else:
            cell = compare.cell(noise, method.solver, grid, nfe, end=method.end, **options)
        if cell.tableau is None:
            raise ArgumentError(cell.reason)
        return Made(cell.tableau, method.name)

    def _found(self, method: Method, nfe: int, seed: int, folder: Path) -> Made:
        effort = self.effort
        found = optimize(
            self.model, nfe, method.name.partition(":")[0], solver=method.solver or effort.solver,
            minutes=effort.minutes, max_calls=effort.max_calls, objective=effort.objective, judge=self.judge,
            data=None if self.data is None else self.data.samples, loss=effort.lowered(method),
            data_condition=None if self.data is None else self.data.condition,
            calibration=effort.learned_from(method, nfe, seed),
            selection=SelectionSeeds(2 * LAST * MOST_IMAGES, seed * STRIDE),
            report=ReportSeeds(compare.FEWEST, OWN_FIGURES + seed * compare.FEWEST),
            cache=self.cache(method, folder), batch_size=effort.batch, progress=self.progress,
            teacher_calls=effort.teacher_calls,
        )  # fmt: skip
        figures = sum(stage["calls"] for stage in found.stages if stage["stage"] in REPORTED)
        return Made(found.tableau, f"{found.solver}, {found.origin}", not found.improved, figures, found.backward)

    def _searched(self, method: Method, nfe: int, seed: int, folder: Path) -> Made:
        effort, study = self.effort, folder / "study.sqlite"
        if study.exists():
            search = searching.resume(study, network=self.model, judge=self.judge)
        else:
            search = searching.start(
                study, self.name, nfes=(nfe,), budget=self._trials(method, nfe), proposer=effort.proposer,
                objective=self._searched_by, images=effort.images, fresh=0, seed=seed, batch_size=effort.batch,
                teacher_calls=effort.teacher_calls, offset=seed * STRIDE, network=self.model, judge=self.judge,
            )  # fmt: skip
        with search:
            front = search.run(progress=self.progress)
        files = searching.save_front(study, folder / "front")
        if not files:
            raise ArgumentError("no schedule of the search could be scored: give more calls")
        return Made(Tableau.load(files[0]), front[0]["origin"], kept=front[0]["score"] == front[0]["start"])

    @property
    def _searched_by(self) -> Any:
        """What S³ is judged by: as `auto` is, for a search's usual `controlled` costs more than one cell may spend."""
        return checked_objective(self.effort.objective, self.judge, self.effort.teacher_calls)

    def _trials(self, method: Method, nfe: int) -> int:
        """Schedules that the budget pays for: all on few images, and most of them, in a short search, on all."""
        effort, cost = self.effort, self.model.batch_cost
        calls = effort.calls(method, nfe)
        if effort.minutes is not None:
            rate = speed(self.model, condition_of(self.model, None)(range(effort.batch)), effort.batch)
            calls = int(rate * 60 * effort.minutes * TIME_SHARE)
            calls = min(calls, effort.max_calls or calls)
        few, most = effort.images[0], effort.images[-1]
        teacher = most * effort.teacher_calls * cost if taught(self._searched_by) else 0
        trials = int((calls - teacher) / (nfe * cost * (few + (most - few) * 2 / 3)))
        if trials < 1:
            raise ArgumentError(
                f"{calls} network calls are too few for a search with evaluations of {few} to {most} images: give "
                "more calls, or fewer images"
            )
        return trials
