"""The stages of one optimisation, in their order, each within its share of the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fewstep
from fewstep import inputs, models
from fewstep.denoiser import Denoiser
from fewstep.found import Found
from fewstep.inputs import Data
from fewstep.judging import Objective, report_judges, selection_judge
from fewstep.progress import Event, Report
from fewstep.randomness import CalibrationSeeds, ReportSeeds, Seeds, SelectionSeeds
from fewstep.search.cache import Cache, Probe, first_rows
from fewstep.search.compete import Competition
from fewstep.search.klub import Gram, ratio_grid
from fewstep.search.ledger import Ledger, speed
from fewstep.search.methods import HAND, Source
from fewstep.search.objective import Judge, Scorer
from fewstep.search.plan import Plan, default_calls, plan
from fewstep.search.select import Candidate
from fewstep.search.teacher import ConditionOf, Teacher

MADE_OFFSET = 500_000_000
"""Calibration seeds of the teacher's own samples start here, away from those that noise them."""
TIME_SHARE = 0.8
"""Part of the given minutes that the network may take; the rest is for everything else."""


@dataclass(frozen=True)
class SeedsAsked:
    """What the user asked for; None leaves the number to the budget."""

    calibration: CalibrationSeeds | None
    selection: SelectionSeeds | None
    report: ReportSeeds | None

    @staticmethod
    def checked(calibration: Any, selection: Any, report: Any) -> SeedsAsked:
        """The three, each of its own kind.

        Errors: `SeedsError` for another kind.
        """
        for kind, seeds, argument in (
            (CalibrationSeeds, calibration, "calibration"),
            (SelectionSeeds, selection, "selection"),
            (ReportSeeds, report, "report"),
        ):
            if seeds is not None:
                kind.require(seeds, argument)
        return SeedsAsked(calibration, selection, report)


@dataclass
class Work:
    """One optimisation: its inputs, and what it has so far."""

    model: Denoiser
    name: str
    nfe: int
    method: str
    objective: Objective
    known: models.Judge | None
    condition: ConditionOf
    cache: Cache
    probe: Probe
    batch: int
    progress: Report
    out: Path | None
    seeds: SeedsAsked
    teacher: Teacher
    sources: list[Source]
    data: Data | None
    ledger: Ledger
    notes: list[str] = field(default_factory=list[str])
    competition: Competition | None = None
    judge: Judge | None = None
    plan: Plan | None = None

    def run(self, minutes: float | None, max_calls: int | None) -> Found:
        """All stages."""
        p = self.plan = self._plan(minutes, max_calls)
        if self.cache.folder is not None:
            with self.ledger.stage("probe", p.stages["probe"]):
                self.probe.answer()
        offset = self.seeds.selection.offset if self.seeds.selection else 0
        race, fresh = SelectionSeeds(p.counts[-1], offset), SelectionSeeds(p.fresh, offset + p.counts[-1])
        self.judge = selection_judge(self.objective, self.known, self.teacher, [*race, *fresh])
        if p.taught:
            with self.ledger.stage("teacher of the selection", p.stages["teacher of the selection"]):
                self.teacher([*race, *fresh], self.progress)
        competition = self.competition = Competition(
            self.sources,
            self._scorer([self.judge], race),
            self._scorer([self.judge], fresh),
            p,
            self.method,
            self.ledger,
            self.progress,
        )
        competition.begin()
        if p.levels:
            competition.descend(self._gram(p))
        competition.conclude()
        winner, start, final = competition.finals()
        final |= {"judge": self.judge.name, "seeds": repr(fresh)}
        found = self._found(winner, start, final, self._figures(p, winner, start))
        if self.out is not None:
            found.save_all(self.out)
        return found

    def stopped(self) -> str:
        """Save the best so far after an interrupt; says what was saved and how to go on."""
        again = (
            f"run the same again to go on: what lies in {self.cache.folder} is not paid twice"
            if self.cache.folder
            else "give out= to keep what is done"
        )
        entries = [c for c in self.competition.race.standing() if c.scores] if self.competition else []
        if not entries or self.out is None:
            return f"stopped before a sampler was chosen; {again}"
        start = next(c for c in entries if c.method == HAND)
        replace(self._found(entries[0], start, {}, {}), complete=False).save_all(self.out)
        return f"stopped; the best so far ({entries[0].origin}) is in {self.out}; {again}"

    def _plan(self, minutes: float | None, max_calls: int | None) -> Plan:
        klub = self.method != "dmn"
        paths = len(self.seeds.calibration) if self.seeds.calibration else None
        if self.data is None and klub:
            self.data = inputs.known_data(self.model, paths or 1024)
        budget = max_calls or default_calls(self.nfe)
        if minutes is not None:
            budget = self._affordable(minutes, max_calls)
        return plan(
            budget,
            nfe=self.nfe,
            batch_cost=self.model.batch_cost,
            teacher=self.teacher.tableau.nfe,
            method=self.method,
            solvers=len(self.sources),
            made=self.data is None and (klub or self.known is None),
            taught=self.objective == "teacher",
            most_paths=4096 if self.data is None else len(self.data.samples),
            paths=paths,
            selection=len(self.seeds.selection) if self.seeds.selection else None,
            report=len(self.seeds.report) if self.seeds.report else None,
        )

    def _affordable(self, minutes: float, max_calls: int | None) -> int:
        """Calls that fit into the time, less those that measuring the speed took."""
        with self.ledger.stage("speed", 3 * self.batch * self.model.batch_cost):
            rate = speed(self.model, self.condition(range(self.batch)), self.batch)
        self.notes.append(
            f"The budget was set by {minutes:g} minutes at {rate:.0f} network calls a second on this machine."
        )
        affordable = int(rate * 60 * minutes * TIME_SHARE)
        return min(affordable, max_calls or affordable) - self.ledger.calls

    def _scorer(self, judges: list[Judge], seeds: Seeds) -> Scorer:
        return Scorer(
            self.model,
            judges,
            seeds,
            condition=self.condition,
            cache=self.cache,
            probe=self.probe,
            batch_size=self.batch,
        )

    def _made_data(self, p: Plan) -> Data:
        """Samples of the teacher, where there are no others."""
        seeds = CalibrationSeeds(p.made, MADE_OFFSET)
        with self.ledger.stage("data", p.stages["data"]):
            samples = self.teacher(seeds, self.progress)
        self.notes.append(f"There were no clean data: the teacher made {p.made} samples ({seeds!r}).")
        return Data(samples, self.condition(seeds), f"{p.made} samples of the teacher")

    def _gram(self, p: Plan) -> Gram:
        data = self.data = self.data or self._made_data(p)
        seeds = CalibrationSeeds(p.paths, self.seeds.calibration.offset if self.seeds.calibration else 0)
        with self.ledger.stage("KLUB table", p.stages["KLUB table"]):
            gram = Gram.compute(
                self.model,
                data.samples[: p.paths],
                seeds=seeds,
                condition=first_rows(data.condition, p.paths),
                ratios=ratio_grid(self.model.noise, p.levels),
                batch_size=self.batch,
                cache=self.cache,
                probe=self.probe,
                progress=self.progress,
            )
        self.notes.append(
            f"KLUB table: {p.paths} noising paths of {data.note}, {p.levels} noise levels; "
            f"distance from a martingale {gram.martingale_defect():.1%}."
        )
        return gram

    def _figures(self, p: Plan, winner: Candidate, start: Candidate) -> dict[str, Any]:
        """Both samplers on report seeds."""
        assert self.judge is not None
        seeds = ReportSeeds(p.report, self.seeds.report.offset if self.seeds.report else 0)
        paired = ReportSeeds(p.paired, seeds.offset)
        with self.ledger.stage("teacher of the report", p.stages["teacher of the report"]):
            self.teacher(list(paired), self.progress)
        data = self.data or (self._made_data(p) if p.made else None)
        scorer = self._scorer(report_judges(self.judge, self.known, data, self.teacher, list(paired)), seeds)
        figures: dict[str, Any] = {"seeds": repr(seeds), "paired_seeds": repr(paired)}
        with self.ledger.stage("report", p.stages["report"]):
            for k, (role, candidate) in enumerate((("before", start), ("after", winner))):
                figures[role] = scorer.figures(candidate.tableau, p.report)
                self.progress(Event("report", k + 1, 2))
            figures["gain"] = scorer.gains(start.tableau, winner.tableau, p.report)
        return figures

    def _found(self, winner: Candidate, start: Candidate, final: dict[str, Any], figures: dict[str, Any]) -> Found:
        assert self.judge is not None and self.plan is not None and self.competition is not None
        notes = list(self.notes)
        if winner is start and final:
            notes.append("No candidate beat the best hand-crafted grid in the finals: it is returned.")
        meta = {
            "model": self.name,
            "fingerprint": self.model.fingerprint,
            "batch_cost": self.model.batch_cost,
            "nfe": self.nfe,
            "method": self.method,
            "solver": winner.solver,
            "times": winner.origin,
            "selected_by": self.judge.name,
            "selection": final,
            "report": {key: figures[key] for key in ("seeds", "after") if key in figures},
            "calls": self.ledger.calls,
            "fewstep": fewstep.__version__,
        }
        return Found(
            replace(winner.tableau, meta=meta),
            start.tableau,
            self.name,
            self.nfe,
            self.method,
            winner.solver,
            winner.origin,
            start.origin,
            self.judge.name,
            final,
            figures,
            [c.record() for c in self.competition.race.standing()],
            self.ledger.record(),
            self.plan.record(),
            notes,
            start_solver=start.solver,
        )
