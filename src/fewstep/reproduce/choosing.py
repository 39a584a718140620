"""Times for the image experiment of Align Your Steps, chosen on selection seeds; `ays_table` scores them.

Every choice is on disk before the next is made, and so is every score behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep import solvers, times
from fewstep.brownian import MOTION
from fewstep.clean import Data
from fewstep.compare import Results
from fewstep.conditions import first_rows
from fewstep.errors import ArgumentError
from fewstep.judging import checked_objective, selection_judge, taught
from fewstep.models import default_condition
from fewstep.noise import as_float64
from fewstep.progress import Report, silent
from fewstep.randomness import CalibrationSeeds, SelectionSeeds
from fewstep.search.ays import Descent, Snapshot, descents, refine, to_ratios, to_times
from fewstep.search.cache import Cache, Probe, digest
from fewstep.search.klub import Gram, ratio_grid
from fewstep.search.objective import Scorer
from fewstep.search.teacher import CALLS, Teacher, reference_schedule, sde_of, stochastic_reference
from fewstep.times.resample import log_linear

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge
    from fewstep.tableau import Tableau

SOLVERS = ("ddim_eta1", "sde_dpmpp_2m", "er_sde_1", "er_sde_2", "er_sde_3", "ddim", "dpmpp_2m")
"""The paper's seven; `ddim_eta1` is its stochastic DDIM."""
FINALISTS = 3
"""Candidates that go on from each round of the selection, at least."""
COARSE = 10
"""Steps at which the descent is stopped early; more steps come from these through the hierarchy."""
SET_STRIDE = 1_000_000
"""Offset between sets of report seeds: they stay disjoint whatever their sizes."""


@dataclass(frozen=True)
class Settings:
    """How much is spent.

    Attributes:
        solvers, nfes: rows and columns.
        levels, paths: noise levels and data samples of the KLUB table.
        per_start: snapshots scored on each way down.
        rounds: of the selection: images, and the share of the candidates that goes on (three at least).
        finals: images of the last comparison, on fresh selection seeds.
        objective: what selects, a word of `fewstep optimize`: `auto` is `faithful`, `frechet` is the paper's.
        teacher_calls: network calls of the reference that `faithful` compares with.
        images, seed_sets, offset: report seeds.
        batch: images at a time.
    """

    solvers: Sequence[str] = SOLVERS
    nfes: Sequence[int] = (5, 10, 20, 30)
    levels: int = 96
    paths: int = 512
    per_start: int = 4
    rounds: Sequence[tuple[int, float]] = ((64, 0.27), (128, 0.33), (256, 0.0))
    finals: int = 512
    objective: str = "auto"
    teacher_calls: int = CALLS
    images: int = 2000
    seed_sets: int = 3
    offset: int = 0
    batch: int = 250

    def __post_init__(self) -> None:
        for images, share in self.rounds:
            if images < 2 or not 0 <= share <= 1:
                raise ArgumentError(f"a round of {images} images that keeps {share}: give a share from 0 to 1")

    @property
    def spent(self) -> tuple[Any, ...]:
        """What a choice depends on."""
        judged = (self.objective, self.teacher_calls) if taught(self.objective) else ()
        return (self.levels, self.paths, self.per_start, tuple(map(tuple, self.rounds)), self.finals, *judged)


@dataclass(frozen=True)
class Choice:
    """Times that were chosen on selection seeds.

    Attributes:
        times: `[n+1]`; origin: where they come from, in words.
        kept: of AYS, whether it scored better than the best hand-crafted times on fresh selection seeds, so that
            `fewstep optimize` would have kept it; None where nothing was scored (the hierarchy).
        calls: network calls that the choice took, scores included.
    """

    times: Tensor
    origin: str
    kept: bool | None = None
    calls: int = 0


class Chooser:
    """Hand-crafted and AYS times for a network.

    Args:
        model: the network, under its default conditions.
        judge: features and reference statistics, for whatever chooses.
        data: clean samples for the KLUB table.
        settings: how much is spent.
        results: where the choices are kept.
        cache: of the KLUB table and the scores.
        progress: told about the KLUB table.
    """

    def __init__(
        self,
        model: Denoiser,
        judge: Judge,
        data: Data,
        settings: Settings,
        *,
        results: Results,
        cache: Cache,
        progress: Report = silent,
    ) -> None:
        if len(data.samples) < settings.paths:
            raise ArgumentError(
                f"{len(data.samples)} clean samples for paths={settings.paths}: give more or fewer paths"
            )
        self.model, self.judge, self.data = model, judge, data
        objective = checked_objective(settings.objective, judge, settings.teacher_calls)
        self.settings = replace(settings, objective=str(objective))
        self._results, self._cache, self._progress = results, cache, progress
        self.condition: Callable[[Sequence[int]], Any] = lambda seeds: default_condition(model, seeds)
        self._probe = Probe(model, self.condition(range(1)))
        self._teachers: dict[str, Teacher] = {}
        self._descended: dict[int | None, list[Descent]] = {}
        self._scorers: dict[tuple[SelectionSeeds, str], Scorer] = {}

    def chosen(self, solver: str, nfe: int, kind: str) -> Choice:
        """The times of a cell; `kind` is `hand`, `ays` or `paper`, the paper's own baseline."""
        if kind == "paper":
            name = "logsnr" if solver in solvers.DETERMINISTIC else "karras"
            return Choice(self.hand_crafted(solver, nfe)[name], name)
        key = self._key(solver, nfe, kind)
        record = self._results.get(key)
        if record is None:
            before = self.model.evaluations
            choice = self._hand(solver, nfe) if kind == "hand" else self._ays(solver, nfe)
            spent = self.model.evaluations - before
            record = vars(choice) | {"times": choice.times.tolist(), "calls": spent}
            self._results.add(key, record, solver=solver, nfe=nfe, kind=kind)
        return _choice(record)

    def known(self, solver: str, nfe: int, kind: str) -> Choice | None:
        """The choice, if it was made already."""
        if kind == "paper":
            return self.chosen(solver, nfe, kind)
        record = self._results.get(self._key(solver, nfe, kind))
        return None if record is None else _choice(record)

    def _key(self, solver: str, nfe: int, kind: str) -> str:
        data = digest(self.data.samples) if kind == "ays" else ""
        network = self.model.fingerprint, self.judge.reference.mean
        # What is compared with a teacher depends on how their noise is shared; the law of the samples does not.
        motion = (MOTION,) if sde_of(solver) and taught(self.settings.objective) else ()
        return digest("choice", network, solver, nfe, kind, self.settings.spent, data, *motion)

    def hand_crafted(self, solver: str, nfe: int) -> dict[str, Tensor]:
        """Every hand-crafted grid that can be laid with so many steps."""
        steps = solvers.calls(solver, nfe)
        assert steps is not None
        grids: dict[str, Tensor] = {}
        for name, make in times.NAMES.items():
            try:
                grids[name] = make(self.model.noise, steps)
            except ArgumentError:  # too many steps for this grid
                continue
        return grids

    def snapshots(self, solver: str, nfe: int) -> dict[str, Snapshot]:
        """Some snapshots of the ways down from every hand-crafted grid."""
        ways = self._ways(solver, nfe)
        return {s.origin: s for way in ways for s in way.thinned(self.settings.per_start)}

    def _ways(self, solver: str, nfe: int) -> list[Descent]:
        steps = solvers.calls(solver, nfe)
        if steps not in self._descended:  # grids and bound are the same for all solvers with so many steps
            self._descended[steps] = descents(self.gram, self.model.noise, self.hand_crafted(solver, nfe))
        return self._descended[steps]

    def _hand(self, solver: str, nfe: int) -> Choice:
        grids = self.hand_crafted(solver, nfe)
        # They are few: the first, hasty round is left out, so that what has to be beaten is well chosen.
        best = self._best(solver, grids, self.settings.rounds[1:] or self.settings.rounds)[0]
        return Choice(grids[best], best)

    def _best(self, solver: str, grids: Mapping[str, Tensor], rounds: Sequence[tuple[int, float]]) -> list[str]:
        """The candidates that are left after these rounds, best first."""
        left = list(grids)
        for images, share in rounds:
            scores = {name: self._selection(solver, grids[name], images) for name in left}
            left = sorted(left, key=lambda name: scores[name])[: max(FINALISTS, round(share * len(left)))]
        return left

    def _ays(self, solver: str, nfe: int) -> Choice:
        if nfe > COARSE:
            coarse = self.chosen(solver, COARSE, "ays")
            return Choice(self.extended(coarse.times, nfe), f"{coarse.origin}, {COARSE} steps refined to {nfe}")
        grids = {name: snapshot.times for name, snapshot in self.snapshots(solver, nfe).items()}
        finalists = {name: grids[name] for name in self._best(solver, grids, self.settings.rounds)}
        hand = self.chosen(solver, nfe, "hand")

        def on_fresh_seeds(grid: Tensor) -> float:
            return self._scorer_of_finals(solver).score(self.tableau(solver, grid), self.settings.finals)

        scores = {name: on_fresh_seeds(grid) for name, grid in finalists.items()}
        best = min(scores, key=lambda name: scores[name])
        return Choice(finalists[best], best, scores[best] < on_fresh_seeds(hand.times))

    def extended(self, coarse: Tensor, n: int) -> Tensor:
        """More steps from given times, the paper's way: split in halves, the new points alone descend, twice; then
        read off log-linearly.
        """
        noise = self.model.noise
        ratios = log_linear(refine(self.gram.klub, to_ratios(noise, coarse)), n + 1)
        return to_times(noise, ratios, torch.cat([coarse[:1], ratios[1:-1], coarse[-1:]]))

    @cached_property
    def gram(self) -> Gram:
        """The KLUB table, from the cache where it lies there."""
        s = self.settings
        return Gram.compute(
            self.model,
            self.data.samples[: s.paths],
            seeds=CalibrationSeeds(s.paths),
            condition=first_rows(self.data.condition, s.paths),
            ratios=ratio_grid(self.model.noise, s.levels),
            batch_size=min(s.batch, 64),
            cache=self._cache,
            probe=self._probe,
            progress=self._progress,
        )

    def tableau(self, solver: str, grid: Tensor) -> Tableau:
        """A solver on times."""
        return solvers.get(solver)(grid).tabulate(self.model.noise)

    def _selection(self, solver: str, grid: Tensor, count: int) -> float:
        return self._scorer(solver).score(self.tableau(solver, grid), count)

    def _scorer(self, solver: str) -> Scorer:
        return self._scorer_on(SelectionSeeds(max(images for images, _ in self.settings.rounds)), sde_of(solver))

    def _scorer_of_finals(self, solver: str) -> Scorer:
        return self._scorer_on(SelectionSeeds(self.settings.finals, SET_STRIDE), sde_of(solver))

    def _teacher(self, kind: str) -> Teacher | None:
        """What samples are compared with: those of an SDE's solvers with its reference on the same Brownian motion."""
        calls, noise = self.settings.teacher_calls, self.model.noise
        if not taught(self.settings.objective):
            return None
        if kind not in self._teachers:
            schedule = stochastic_reference(kind, noise, calls) if kind else reference_schedule(noise, calls)
            self._teachers[kind] = Teacher(
                self.model, schedule.tabulate(noise), condition=self.condition, cache=self._cache, probe=self._probe,
                batch_size=self.settings.batch, brownian=bool(kind),
            )  # fmt: skip
        return self._teachers[kind]

    def _scorer_on(self, seeds: SelectionSeeds, kind: str) -> Scorer:
        if (seeds, kind) not in self._scorers:
            self._scorers[seeds, kind] = Scorer(
                self.model,
                [selection_judge(self.settings.objective, self.judge, self._teacher(kind), seeds)],
                seeds,
                condition=self.condition,
                cache=self._cache,
                probe=self._probe,
                batch_size=self.settings.batch,
            )
        return self._scorers[seeds, kind]


def _choice(record: dict[str, Any]) -> Choice:
    return Choice(as_float64(record["times"]), record["origin"], record["kept"], record["calls"])
