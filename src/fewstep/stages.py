"""The stages of one optimisation, in their order, each within its share of the budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import fewstep
from fewstep import models, remarks
from fewstep.errors import ArgumentError
from fewstep.found import Found
from fewstep.judging import report_judges, selection_judge, taught
from fewstep.learning import Lessons, require_start
from fewstep.minutes import affordable
from fewstep.progress import Event
from fewstep.randomness import ReportSeeds, SelectionSeeds
from fewstep.search.clock import EVOLUTION, FIRST, HAND_CRAFTED, LEARNING, PLANS, RACE, WAYS, Clock
from fewstep.search.compete import Competition
from fewstep.search.evolving import Breeder
from fewstep.search.judges import Judge
from fewstep.search.ledger import Ledger
from fewstep.search.methods import Source
from fewstep.search.parts import HAND
from fewstep.search.plan import LEAST, Plan, default_calls, plan
from fewstep.search.select import Candidate, finite
from fewstep.search.teacher import Teacher
from fewstep.setting import Setting
from fewstep.tableau import Tableau

FEWEST, MATCHED = 40, 24
"""Images of the first round that a distance between distributions should have; fewer say little about one. The second
is for `auto` where the teacher is compared with: it has so many parts that their best are near to one another.
"""


@dataclass
class Work:
    """One optimisation: its ground, and what it has so far; minutes that `run` is given replace its clock."""

    setting: Setting
    nfe: int
    sources: list[Source]
    out: Path | None
    ledger: Ledger
    notes: list[str] = field(default_factory=list[str])
    course: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    competition: Competition | None = None
    judge: Judge | None = None
    plan: Plan | None = None
    given: Tableau | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def kind(self) -> str:
        """What samples are compared with, as a word of `Teachers`."""
        return self.setting.teachers.kind(self.sources, self.given)

    @property
    def teacher(self) -> Teacher | None:
        """What samples are compared with."""
        return self.setting.teachers.of(self.kind)

    def run(self, minutes: float | None, max_calls: int | None) -> Found:
        """All stages."""
        ground = self.setting
        if minutes is not None:
            self.clock = Clock(60 * minutes)
        clock = self.clock
        if ground.learned:
            require_start(ground, self.nfe, self.sources)
        p = self.plan = self._plan(minutes, max_calls)
        clock.follow(p)
        self.notes.extend(remarks.left_out(ground, p))
        if ground.cache.folder is not None:
            with self.ledger.stage("probe", p.stages["probe"]):
                ground.probe.answer()
        ground.check_data(self.ledger)
        if ground.window.start is not None:
            data = ground.make_data(p.made, p.stages["data"], self.ledger)
            self.notes.append(f"Image-to-image: the samples start from {data.note}, taken by seed.")
        offset = ground.seeds.selection.offset if ground.seeds.selection else 0
        race, fresh = SelectionSeeds(p.counts[-1], offset), SelectionSeeds(p.fresh, offset + p.counts[-1])
        teacher, seeds = self.teacher, [*race, *fresh]
        self.judge = selection_judge(ground.objective, ground.known, teacher, seeds)
        scorer = ground.scorer([self.judge], race)
        lessons = Lessons(ground, p, self.ledger, self.nfe, self.judge, scorer, fresh.offset + len(fresh), clock)
        lessons.require()
        if p.taught and teacher is not None:
            with self.ledger.stage("teacher of the selection", p.stages["teacher of the selection"]):
                teacher(seeds, ground.progress)
        competition = self.competition = Competition(
            self.sources,
            scorer,
            ground.scorer([self.judge], fresh),
            p,
            self.ledger,
            ground.progress,
            self.given,
            clock,
        )
        self._take_turns(competition, p, lessons)
        winner, start, final = competition.finals()
        if clock.cut:
            self.notes.append(f"The time was over before all was done. Ended early: {', '.join(clock.cut)}.")
        self.notes.append(remarks.why(competition.race.entries, winner, final["samples"]))
        if ground.klub and ground.gram is not None:
            self.notes.extend(remarks.of_klub(ground.gram, winner, start))
        final |= {"judge": self.judge.name, "seeds": repr(fresh)}
        found = self._found(winner, start, final, self._figures(p, winner, start))
        if self.out is not None:
            found.save_all(self.out)
        return found

    def _take_turns(self, competition: Competition, p: Plan, lessons: Lessons) -> None:
        """The parts of the method, one after the other; after each the best so far is on disk."""
        ground = self.setting
        competition.begin()
        self._kept(HAND_CRAFTED)
        if p.parts.first:
            competition.learn(lessons.first)
            self._kept(FIRST)
        if ground.klub:
            if ground.gram is None:
                ground.make_data(p.made, p.stages["data"], self.ledger)
            competition.descend(ground.table(p.paths, p.levels, p.stages["KLUB table"], self.ledger))
            self._kept(WAYS)
        if p.parts.plans:
            competition.propose(ground.make_planner(p.trajectories, p.stepped, p.stages, self.ledger))
            self._kept(PLANS)
        if p.parts.evolved:
            competition.evolve(Breeder(ground.window, self.nfe))
            self._kept(EVOLUTION)
        competition.conclude()
        self._kept(RACE)
        if p.parts.learned:
            for k in range(len(p.parts.learned)):
                competition.learn(partial(lessons.last, k))
            self._kept(LEARNING)

    def _kept(self, part: str) -> None:
        """The best so far on disk, and in the record what the race stood at after this part."""
        assert self.competition is not None
        standing = [c for c in self.competition.race.standing() if c.scores]
        if not standing:
            return
        best = standing[0]
        images = max(best.scores)
        self.course.append({
            "part": part, "calls": self.ledger.calls, "seconds": round(self.ledger.seconds, 2),
            "entries": len(standing), "best": best.origin, "solver": best.solver, "method": best.method,
            "images": images, "score": finite(best.scores[images]),
        })  # fmt: skip
        self._save(standing)

    def _save(self, standing: list[Candidate]) -> None:
        """The first of the standing, as the result of a search that is not over."""
        if self.out is not None:
            start = next((c for c in standing if c.method == HAND), standing[0])
            replace(self._found(standing[0], start, {}, {}), complete=False).save_all(self.out)

    def stopped(self) -> str:
        """Save the best so far after an interrupt; says what was saved and how to go on."""
        kept = self.setting.cache.folder
        again = (
            f"run the same again to go on: what lies in {kept} is not paid twice"
            if kept
            else "give out= to keep what is done"
        )
        entries = [c for c in self.competition.race.standing() if c.scores] if self.competition else []
        if not entries or self.out is None:
            return f"stopped before a sampler was chosen; {again}"
        self._save(entries)
        return f"stopped; the best so far ({entries[0].origin}) is in {self.out}; {again}"

    def _plan(self, minutes: float | None, max_calls: int | None) -> Plan:
        ground = self.setting
        unmade = ground.unmade
        budget = max_calls or default_calls(self.nfe, learned=ground.learned)
        if minutes is not None:
            budget, note = affordable(ground, self.ledger, minutes, max_calls)
            self.notes.append(note)
        return self.divided(budget, unmade, ground.gram is None, ground.check_calls, ground.planner is not None)

    def divided(self, budget: int, made: bool, table: bool, checked: int, walked: bool) -> Plan:
        """The budget by stages.

        Args:
            budget: network calls.
            made: whether data are to be made; table: whether the KLUB table is; checked: calls to look at the data.
            walked: whether the trajectories of plans are there.

        Errors: `ArgumentError` when it is too small.
        """
        ground = self.setting
        ask = partial(
            plan,
            budget,
            nfe=self.nfe,
            batch_cost=ground.model.batch_cost,
            teacher=ground.teacher_calls,
            solvers=len(self.sources),
            made=made,
            taught=taught(ground.objective),
            most_paths=4096 if ground.data is None else len(ground.data.samples),
            paths=ground.seeds.paths,
            selection=len(ground.seeds.selection) if ground.seeds.selection else None,
            report=len(ground.seeds.report) if ground.seeds.report else None,
            table=table,
            walked_already=walked,
            checked=checked,
            fewest=FEWEST if ground.objective == "frechet" else MATCHED if ground.parts.auto else 0,
        )
        parts = ground.parts_for(max(source.steps for source in self.sources))
        try:
            return ask(parts=parts)
        except ArgumentError:
            if not (parts.auto and parts.learned):
                raise
            return ask(parts=parts.untaught())

    def _figures(self, p: Plan, winner: Candidate, start: Candidate) -> dict[str, Any]:
        """Both samplers on report seeds."""
        assert self.judge is not None
        ground = self.setting
        count = self.clock.affordable(p.report, 2 * p.image_cost, self.ledger.calls, min(p.report, LEAST))
        seeds = ReportSeeds(count, ground.seeds.report.offset if ground.seeds.report else 0)
        paired = list(ReportSeeds(min(count, p.paired), seeds.offset)) if p.paired else []
        teacher = self.teacher
        if paired and teacher is not None:
            with self.ledger.stage("teacher of the report", p.stages["teacher of the report"]):
                teacher(paired, ground.progress)
        data = ground.make_data(p.made, p.stages["data"], self.ledger) if p.made else ground.data
        scorer = ground.scorer(report_judges(self.judge, ground.known, data, teacher, paired), seeds)
        named = {"paired_seeds": repr(ReportSeeds(len(paired), seeds.offset))} if paired else {}
        figures: dict[str, Any] = {"seeds": repr(seeds)} | named
        with self.ledger.stage("report", p.stages["report"]):
            for k, (role, candidate) in enumerate((("before", start), ("after", winner))):
                figures[role] = scorer.figures(candidate.tableau, count)
                ground.progress(Event("report", k + 1, 2))
            figures["gain"] = scorer.gains(start.tableau, winner.tableau, count)
        if paired and teacher is not None:
            self.notes.extend(remarks.of_teacher(scorer, winner.tableau, teacher, paired))
        return figures

    def _found(self, winner: Candidate, start: Candidate, final: dict[str, Any], figures: dict[str, Any]) -> Found:
        assert self.judge is not None and self.plan is not None and self.competition is not None
        ground = self.setting
        notes = [*self.notes, *ground.notes]
        if not ground.window.whole:
            notes.append(f"The sampler goes from {ground.window.words}.")
        if winner is start and final:
            notes.append("No candidate beat the best hand-crafted grid in the finals: it is returned.")
        meta = {
            "model": ground.name,
            "fingerprint": ground.model.fingerprint,
            "batch_cost": ground.model.batch_cost,
            "nfe": self.nfe,
            "method": ground.method,
            "solver": winner.solver,
            "times": winner.origin,
            "window": ground.window.record(),
            "teacher_calls": ground.teacher_calls,
            "selected_by": self.judge.name,
            "selection": final,
            "report": {key: figures[key] for key in ("seeds", "after") if key in figures},
            "calls": self.ledger.calls,
            "fewstep": fewstep.__version__,
        }
        about = models.about(ground.model)
        meta |= {"network": about} if about else {}
        if ground.window.start is not None and ground.data is not None:
            meta["images"] = ground.data.note
        return Found(
            replace(winner.tableau, meta=meta),
            start.tableau,
            ground.name,
            self.nfe,
            ground.method,
            winner.solver,
            winner.origin,
            start.origin,
            self.judge.name,
            final,
            figures,
            [c.record() for c in self.competition.race.standing()],
            self.ledger.record(),
            self.plan.record() | {"teacher": self.kind},
            notes,
            start_solver=start.solver,
            window=ground.window.record(),
            course=list(self.course),
        )
