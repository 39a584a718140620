"""Several solvers and numbers of network calls in one run: the KLUB table is one, the stop on its ways is each one's.

The table of inner products, the trajectories that plans are made on, the clean data and the teacher's end points belong
to the network. They are paid for once; each solver with each number of calls then has a race, finals and figures of its
own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import ArgumentError, DenoiserError
from fewstep.files import atomic_write_text
from fewstep.found import Found
from fewstep.minutes import affordable
from fewstep.optimizing import Options, check_amounts, finished, prepared
from fewstep.search.clock import Clock
from fewstep.search.dynamic_oss import calls as oss_calls
from fewstep.search.ledger import Ledger
from fewstep.search.methods import NotSoMany, Solver, Source, default_solver, sources
from fewstep.search.plan import LEVELS, default_calls, trajectories, walked
from fewstep.setting import Setting
from fewstep.stages import Work

SUMMARY_FILE = "searches.json"


@dataclass(frozen=True)
class FoundMany:
    """The results of one run, in the order of the numbers of calls, then of the solvers.

    Attributes:
        results: by (solver as asked for, network calls).
        shared: stages that all results share, each with its calls; they are in no result's own count.
        skipped: what could not be made, in words.
        notes: what a reader should know of the shared part.
    """

    results: dict[tuple[str, int], Found]
    shared: list[dict[str, Any]]
    skipped: list[str]
    notes: list[str]

    def __getitem__(self, key: tuple[str, int]) -> Found:
        """The result of a solver with a number of calls."""
        return self.results[key]

    def __iter__(self) -> Iterator[Found]:
        """The results."""
        return iter(self.results.values())

    def __len__(self) -> int:
        return len(self.results)

    @property
    def calls(self) -> int:
        """Network calls made in this run: the shared ones once, and each result's own."""
        return sum(stage["calls"] for stage in self.shared) + sum(found.calls for found in self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary: for each result its folder, times and figures; what was shared; the calls of all."""
        keep = ("model", "nfe", "method", "origin", "start_origin", "selected_by", "selection", "report", "window")
        rows = [
            {
                "solver": solver,
                "folder": folder_of(solver, nfe),
                **{name: getattr(found, name) for name in keep},
                "times": found.times,
                "digest": found.tableau.digest,
                "improved": found.improved,
                "calls": found.calls,
            }
            for (solver, nfe), found in self.results.items()
        ]
        return {
            "results": rows,
            "shared": self.shared,
            "skipped": self.skipped,
            "notes": self.notes,
            "calls": self.calls,
        }


def folder_of(solver: str, nfe: int) -> str:
    """Name of the folder of one result."""
    return f"{solver}-{nfe}"


def optimize_many(
    model: Denoiser | str,
    nfes: Sequence[int],
    solvers: str | Solver | Sequence[str | Solver] | None = None,
    method: str = "auto",
    *,
    minutes: float | None = None,
    max_calls: int | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    **options: Unpack[Options],
) -> FoundMany:
    """`optimize` for every solver with every number of network calls; what they share is made once.

    Args:
        model: the network, or its name.
        nfes: numbers of network calls per sample.
        solvers: names, or functions `times -> SolverSchedule`; `auto` as one of them lets several compete for it. By
            default as in `optimize`.
        method: as in `optimize`.
        minutes, max_calls: for all results together; by default each has the budget that it would have alone, less
            the shared part.
        out: folder; each result lies in `SOLVER-NFE` in it, and `searches.json` sums up.
        cache: as in `optimize`.
        options: further arguments of `optimize`, which hold for all.

    Errors: as in `optimize`; `ArgumentError` when no solver can make any of the numbers of calls. Single pairs that
        cannot be made are left out, and named in `skipped`.
    """
    if not nfes:
        raise ArgumentError("nfes is empty: give at least one number of network calls, e.g. [6]")
    for nfe in nfes:
        check_amounts(nfe, minutes, max_calls)
    folder = None if out is None else Path(out)
    cache = cache if cache is not None else None if folder is None else folder / ".cache"
    ground = prepared(model, method, cache=cache, **options)
    solvers = default_solver(method) if solvers is None else solvers
    asked = [solvers] if isinstance(solvers, str) or callable(solvers) else list(solvers)
    pairs, skipped = _pairs(ground, asked, nfes)
    ground.read()
    run = _Run(ground, pairs, Ledger(ground.model), folder)
    with torch.no_grad():
        return run(minutes, max_calls, skipped)


Pairs = dict[tuple[str, int], list[Source]]


def _pairs(ground: Setting, solvers: Sequence[str | Solver], nfes: Sequence[int]) -> tuple[Pairs, list[str]]:
    """What can be made, and what cannot, in words."""
    pairs: Pairs = {}
    skipped: list[str] = []
    first: NotSoMany | None = None
    for nfe in dict.fromkeys(nfes):
        for solver in solvers:
            name = solver if isinstance(solver, str) else getattr(solver, "__name__", "own").strip("<>")
            try:
                made = sources(ground.window, solver, nfe)
            except NotSoMany as error:
                first = first or error
                skipped.append(str(error))
                continue
            ground.require_grid(max(source.steps for source in made))
            if (name, nfe) in pairs:
                raise ArgumentError(f"two of the solvers are named {name}: give them different __name__s")
            pairs[name, nfe] = made
    if not pairs:
        raise first or ArgumentError("solvers is empty: give at least one, e.g. ['dpmpp_2m']")
    return pairs, skipped


@dataclass
class _Run:
    """The shared part, and then each result in turn."""

    ground: Setting
    pairs: Pairs
    ledger: Ledger
    out: Path | None

    def __call__(self, minutes: float | None, max_calls: int | None, skipped: list[str]) -> FoundMany:
        began = time.monotonic()
        try:
            budgets = self._budgets(minutes, max_calls)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped in the part that all results share; {self._again()}") from None
        except DenoiserError as error:
            raise DenoiserError(f"{error}; {self._again()}", time=error.time, rows=error.rows) from error
        results: dict[tuple[str, int], Found] = {}
        for k, ((name, nfe), made) in enumerate(self.pairs.items()):
            place = None if self.out is None else self.out / folder_of(name, nfe)
            weight = nfe / sum(calls for _, calls in [*self.pairs][k:])
            left = None if minutes is None else max(1.0, 60 * minutes - (time.monotonic() - began)) * weight
            work = Work(self.ground, nfe, made, place, Ledger(self.ground.model), clock=Clock(left))
            try:
                results[name, nfe] = finished(work, None, budgets[name, nfe])
            except KeyboardInterrupt as stop:
                raise KeyboardInterrupt(f"{len(results)} of {len(self.pairs)} results are done; {stop}") from None
        shared = self.ledger.record()
        whole = FoundMany(results, shared, skipped, list(self.ground.notes))
        if self.out is not None:
            atomic_write_text(self.out / SUMMARY_FILE, json.dumps(whole.to_dict(), indent=1) + "\n")
        return whole

    def _require(self, budgets: dict[tuple[str, int], int]) -> None:
        """Refuse what is too small before anything is paid for."""
        for (name, nfe), made in self.pairs.items():
            try:
                work = Work(self.ground, nfe, made, None, self.ledger)
                work.divided(max(1, budgets[name, nfe]), made=False, table=False, checked=0, walked=True)
            except ArgumentError as error:
                text = f"{len(self.pairs)} results share the budget, and for {name} with {nfe} calls {error}"
                raise ArgumentError(text) from None

    def _again(self) -> str:
        kept = self.ground.cache.folder
        return (
            f"run the same again: what lies in {kept} is not paid twice" if kept else "give out= to keep what is done"
        )

    def _budgets(self, minutes: float | None, max_calls: int | None) -> dict[tuple[str, int], int]:
        """Make what is shared; returns the calls that are left to each result."""
        ground, cost = self.ground, self.ground.model.batch_cost
        unmade = ground.unmade
        alone = {pair: default_calls(pair[1], learned=self.ground.learned) for pair in self.pairs}
        if minutes is not None:
            max_calls, note = affordable(ground, self.ledger, minutes, max_calls)
            ground.notes.append(note)
        levels = LEVELS if ground.klub and ground.gram is None else 0
        sample = ground.teacher_calls * cost if unmade else 0
        most = 4096 if ground.data is None else len(ground.data.samples)
        calls = ground.parts.looks * (max_calls or max(alone.values()))
        paths = walked(calls, levels * cost, sample, ground.klub, most, ground.seeds.paths)
        runs, stepped = trajectories(
            max_calls or max(alone.values()), ground.parts, ground.teacher_calls * cost, ground.most_steps, cost,
            ground.seeds.paths, ground.planner is not None,
        )  # fmt: skip
        planned = {
            "trajectories": runs * ground.teacher_calls * cost,
            "optimal steps": 2 * stepped * oss_calls(ground.teacher_calls + 1, ground.most_steps) * cost,
            "probe": cost,
            "range of the data": ground.check_calls,
            "data": paths * sample,
            "KLUB table": paths * levels * cost,
        }
        whole = sum(planned.values())
        budgets = {pair: calls - whole for pair, calls in alone.items()}
        if max_calls is not None:
            weight = sum(nfe for _, nfe in self.pairs)
            budgets = {pair: (max_calls - whole) * pair[1] // weight for pair in self.pairs}
        self._require(budgets)
        if ground.cache.folder is not None:
            with self.ledger.stage("probe", planned["probe"]):
                ground.probe.answer()
        ground.check_data(self.ledger)
        if unmade:
            ground.make_data(paths, planned["data"], self.ledger)
        if levels:
            ground.table(paths, levels, planned["KLUB table"], self.ledger)
        if runs:
            ground.make_planner(runs, stepped, planned, self.ledger)
        if self.ledger.stages and len(self.pairs) > 1:
            ground.notes.append(
                f"Data, KLUB table and trajectories are shared by {len(self.pairs)} results: their {whole:,} planned "
                "calls are counted once, and in none of the results' own."
            )
        return budgets
