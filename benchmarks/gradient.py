"""Methods that learn by gradient: each against its start and the teacher, with equal network calls.

    python -m benchmarks.gradient --model problem:grid_8x8 --nfe 3 5 8 --methods times gs bns
    python -m benchmarks.gradient --model mnist --nfe 4 --starts dpmpp_2m:tangent unipc:karras \
        --methods times weights joint --losses l2 features frechet --judges frechet teacher --updates 400

    python -m benchmarks.gradient --table benchmarks/results/learned.jsonl

Every combination of start x method (space) x loss (objective) x judge is one row, so an ablation is one command. Rows
are appended to `--out` as they are made; a combination that lies there is not made again; `--table` prints what lies
there, as Markdown. Scores are on report seeds, which nobody else has seen, and the same for all judges; those in
brackets are on as many of the seeds that were learned from. Updates, not seconds, are what is bounded.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fewstep import inputs, models, solvers, times
from fewstep.errors import ArgumentError
from fewstep.judging import report_judges, selection_judge
from fewstep.learning import PARALLEL
from fewstep.lowered import batched
from fewstep.randomness import CalibrationSeeds, ReportSeeds, SelectionSeeds
from fewstep.search.cache import Cache
from fewstep.search.gradient.learn import Learner
from fewstep.search.gradient.losses import objective
from fewstep.search.gradient.midpoints import steps_of
from fewstep.search.gradient.recipes import RECIPES, Recipe
from fewstep.search.gradient.space import Start
from fewstep.search.judges import Judge, PairedJudge, SlicedJudge
from fewstep.search.objective import Scorer
from fewstep.search.teacher import Teacher, reference_schedule
from fewstep.tableau import Tableau

EXACT = 1000
SHORT = {
    "sliced Wasserstein distance to the teacher's end points of the same seeds": "matched",
    "faithful, Fréchet distance to the teacher's end points of the same seeds": "faithful",
    "Fréchet distance to the teacher's end points of the same seeds": "matched",
    "RMS distance to the teacher": "RMS",
}
"""Names of figures in the table."""
NONE: dict[str, Any] = {"before": {}, "after": {}}
"""Of rows that were made before their seeds were looked at."""


@dataclass(frozen=True)
class Row:
    """One combination; `key` names it in the file."""

    model: str
    nfe: int
    start: str
    method: str
    loss: str
    judge: str
    pairs: int
    updates: int
    seed: int

    @property
    def key(self) -> str:
        return "|".join(map(str, vars(self).values()))


class Bench:
    """One model: its teacher, judges and seeds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.net = models.load(args.model)
        self.known = inputs.judge_of(self.net)
        self.condition = inputs.condition_of(self.net, None)
        table = reference_schedule(self.net.noise, args.teacher).tabulate(self.net.noise)
        self.cache = Cache(args.cache)
        self.teacher = Teacher(self.net, table, condition=self.condition, cache=self.cache, batch_size=args.batch)
        self.selection = SelectionSeeds(args.selection)
        self.report = ReportSeeds(args.report)
        self.paired = ReportSeeds(min(args.report, args.paired))
        self.finals: dict[str, tuple[Scorer, dict[str, Any]]] = {}
        featured = self.known is not None and self.known.nll is None
        self.shown = ("matched", "faithful") if featured else ("matched",)

    def scorer(self, kind: str) -> Scorer:
        judge = selection_judge(kind, self.known, self.teacher, self.selection)
        return self._scorer([judge], self.selection)

    def final(self, kind: str) -> tuple[Scorer, dict[str, Any]]:
        """Judges of report seeds, and the teacher's figures; made once."""
        if kind not in self.finals:
            scorer = self._final(kind)
            self.finals[kind] = scorer, scorer.figures(self.teacher.tableau, len(self.paired))
        return self.finals[kind]

    def _final(self, kind: str) -> Scorer:
        judge = selection_judge(kind, self.known, self.teacher, self.paired)
        data = None if self.known is not None else inputs.known_data(self.net, 1000)
        judges = report_judges(judge, self.known, data, self.teacher, list(self.paired))
        known = {j.name for j in judges}
        shown: list[Judge] = [selection_judge(k, self.known, self.teacher, self.paired) for k in self.shown]
        judges = [*(j for j in shown if j.name not in known), *judges]
        if self.known is not None and self.known.nll is not None:  # thousands of exact samples take most of the time
            few = SlicedJudge(self.known.reference_features[:EXACT], f"sliced Wasserstein distance to {EXACT} exact")
            judges = [few if isinstance(judge, SlicedJudge) else judge for judge in judges]
        return self._scorer(judges, self.report)

    def taught(self, table: Tableau, pairs: int) -> dict[str, Any]:
        """Figures on seeds that were learned from: as many as the teacher makes of the report's."""
        seeds = CalibrationSeeds(min(pairs, len(self.paired)))
        judges = [selection_judge(k, self.known, self.teacher, seeds) for k in self.shown]
        return self._scorer([*judges, PairedJudge(self.teacher, seeds)], seeds).figures(table, len(seeds))

    def _scorer(self, judges: list[Any], seeds: Sequence[int]) -> Scorer:
        return Scorer(
            self.net, judges, seeds, condition=self.condition, cache=self.cache, batch_size=self.args.batch
        )  # fmt: skip

    def start(self, row: Row) -> tuple[Start, Recipe]:
        """The start of a row, with the paper's own solver where the method cannot begin at the one asked for."""
        recipe = RECIPES[row.method]
        solver, _, grid = row.start.partition(":")
        n, noise = row.nfe, self.net.noise
        if row.method in PARALLEL:
            n, solver = steps_of(row.nfe, PARALLEL[row.method], to_zero=True), "ddim"
        elif row.method in ("dyweight", "dc") or (row.method == "neural-solver" and solver in ("ipndm", "unipc")):
            solver = recipe.solver
        return Start.of(solvers.get(solver)(times.NAMES[grid](noise, n)), noise), recipe

    def make(self, row: Row) -> dict[str, Any]:
        start, recipe = self.start(row)
        scorer, (final, teacher) = self.scorer(row.judge), self.final(row.judge)
        learner = Learner(
            self.teacher, CalibrationSeeds(row.pairs), SelectionSeeds(64, 10_000),
            lambda table: scorer.score(table, len(self.selection)), len(self.selection), batch_size=self.args.batch,
            cache=self.cache, judged_by=f"{row.judge} of {self.selection!r}",
        )  # fmt: skip
        known: dict[str, Any] = {"shape": self.net.shape}
        if self.known is not None:
            known |= {
                "features": self.known.features, "reference": self.known.reference,
                "reference_features": self.known.reference_features, "feature_name": self.known.name,
            }  # fmt: skip
        lowered = objective(recipe.loss if row.loss == "auto" else row.loss, **known)
        before, began = self.net.evaluations, time.process_time()
        found = learner(
            start, batched(recipe, lowered), lowered, iterations=min(row.updates, recipe.iterations), seed=row.seed
        )
        calls, seconds = self.net.evaluations - before, time.process_time() - began
        count = len(self.report)
        return vars(row) | {
            "calls": calls, "seconds": seconds, "learned": found.record(), "solver": start.schedule.name,
            "before": final.figures(found.start, count), "after": final.figures(found.tableau, count),
            "gain": final.gains(found.start, found.tableau, count),
            "teacher": teacher,
            "taught": {"before": self.taught(found.start, row.pairs), "after": self.taught(found.tableau, row.pairs)},
        }  # fmt: skip


def line(record: dict[str, Any]) -> str:
    """One row of the table: every judge's start -> found (teacher), with standard errors."""
    parts = []
    for name, after in record["after"].items():
        before, teacher = record["before"][name], record["teacher"].get(name)
        told = "" if teacher is None or "teacher" in name else f" (teacher {teacher['value']:.4g})"
        parts.append(
            f"{name}: {before['value']:.4g} ± {before['standard_error']:.2g} -> {after['value']:.4g} ± "
            f"{after['standard_error']:.2g}{told}"
        )
    name = f"{record['method']} from {record['solver']} ({record['start']})"
    about = f"{record['learned']['size']} numbers, {record['learned']['iterations']} updates, {record['seconds']:.0f} s"
    return f"{record['nfe']:2d} {name:44s} {record['loss']:10s} {record['judge']:8s} {about}; " + "; ".join(parts)


def page(records: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: for each start its own figures, then those of what was learned from it."""
    names = list(dict.fromkeys(name for record in records for name in record["after"]))
    told = lambda figures, taught: [  # noqa: E731
        f"{figures[n]['value']:.3g} ± {figures[n]['standard_error']:.1g}"
        + (f" ({taught[n]['value']:.3g})" if n in taught else "")
        if n in figures
        else "–"
        for n in names
    ]
    short = [next((new for old, new in SHORT.items() if n.endswith(old)), n) for n in names]
    lines = [["calls", "start", "method", "loss", "judge", *short], ["---"] * (5 + len(names))]
    starts = dict.fromkeys((r["nfe"], r["solver"], r["start"]) for r in records)
    for nfe, solver, start in starts:
        rows = [r for r in records if (r["nfe"], r["solver"], r["start"]) == (nfe, solver, start)]
        label = f"{solver} on {start.partition(':')[2]}"
        lines.append([str(nfe), label, "–", "–", "–", *told(rows[0]["before"], rows[0].get("taught", NONE)["before"])])
        for r in rows:
            figures = told(r["after"], r.get("taught", NONE)["after"])
            lines.append([str(nfe), label, r["method"], r["loss"], r["judge"], *figures])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by their keys; a line that was not finished is none."""
    records = [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
    return {record["key"]: record for record in records}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="problem:grid_8x8")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5])
    parser.add_argument("--starts", nargs="+", default=["dpmpp_2m:logsnr"], help="SOLVER:TIMES")
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--losses", nargs="+", default=["auto"])
    parser.add_argument(
        "--judges", nargs="+", default=["teacher"], choices=["teacher", "frechet", "matched", "faithful"]
    )
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--selection", type=int, default=256, help="selection seeds")
    parser.add_argument("--report", type=int, default=512, help="report seeds")
    parser.add_argument("--paired", type=int, default=256, help="report seeds that the teacher makes too")
    parser.add_argument("--teacher", type=int, default=60, help="network calls of the teacher")
    parser.add_argument("--batch", type=int, default=256, help="samples through the network at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="orders of the pairs")
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines")
    parser.add_argument("--table", type=Path, default=None, help="print the rows of this file, and do no more")
    args = parser.parse_args(argv)
    if args.table is not None:
        print(page([*read(args.table).values()]))
        return 0
    torch.set_num_threads(1)
    bench = Bench(args)
    kept = read(args.out) if args.out is not None and args.out.exists() else {}
    for nfe, start, method, loss, judge, seed in product(
        args.nfe, args.starts, args.methods, args.losses, args.judges, args.seeds
    ):
        row = Row(args.model, nfe, start, method, loss, judge, args.pairs, args.updates, seed)
        key = "|".join([row.key, *map(str, (args.selection, args.report, args.paired, args.teacher, args.batch))])
        if key not in kept:
            try:
                record = bench.make(row) | {"key": key}
            except ArgumentError as error:
                print(f"{nfe:2d} {method}: left out: {error}", file=sys.stderr, flush=True)
                continue
            if args.out is not None:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            kept[key] = record
        print(line(kept[key]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
