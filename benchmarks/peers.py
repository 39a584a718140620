"""GITS and LD3 beside their authors' own code, on one network: `python -m benchmarks.peers gits|ld3|report`.

    git clone https://github.com/zju-pi/diff-sampler && git clone https://github.com/vinhsuhi/LD3
    python -m benchmarks.peers gits --code diff-sampler --nfe 4 5 6 --seeds 0 1
    python -m benchmarks.peers ld3 --code LD3 --nfe 4 5 6 --seeds 0
    python -m benchmarks.peers report

`gits`: the authors' trajectories, costs and dynamic programming, with their defaults (iPNDM of order 4, deviations,
coefficient 1.15, 61 teacher times, 256 trajectories), and their sampler; beside it this library's plan from as many
trajectories of its own teacher, and what `fewstep optimize --method gits` chooses with `--max-calls`, everything
included. On the authors' trajectories both matrices of costs and both paths are compared too.

`ld3`: the authors' trainer, with the settings of its CIFAR-10 config (UniPC of order 3, RMSprop and SGD, soft teacher,
decoupled times); LPIPS, whose weights are not at hand, is replaced by the distance in the judge's features. Beside it
this library's LD3 from the same start, pairs, held-out pairs, batch and number of updates, and what
`fewstep optimize --method ld3` chooses with `--max-calls`.

One teacher makes the pairs and judges. All are scored as tables, on the same report seeds, which nobody has seen; that
the authors' samplers make the samples of these tables is checked on `--checked` of them, and the largest difference
kept. The authors' code is read from `--code` and nothing of it is kept here. Rows lie in `--results`, one JSON line
each; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers_code import Pairs, folder_of, gits_found, gits_samples, gits_table, ld3_found, require_edm
from benchmarks.quality_cells import RESULTS
from fewstep import compare, inputs, models, optimize, solvers, times
from fewstep.errors import ArgumentError, FewstepError
from fewstep.networks.labels import classes_of
from fewstep.randomness import CalibrationSeeds, ReportSeeds, unit_noise
from fewstep.reproduce.field_scores import SCORES, Examiner, ruler_of
from fewstep.results import Results
from fewstep.rules import SolverSchedule
from fewstep.sampling import sample as sampled
from fewstep.search.cache import Cache
from fewstep.search.dynamic import cheapest
from fewstep.search.dynamic_gits import COEFFICIENT, jump_costs
from fewstep.search.gradient.learn import Learner
from fewstep.search.gradient.losses import objective
from fewstep.search.gradient.space import Start
from fewstep.search.planner import Planner
from fewstep.tableau import Tableau

AUTHORS, ALIKE, WHOLE = "authors", "alike", "whole"
"""The authors' code; ours with the same means; ours as `fewstep optimize` has it."""
LD3_SOLVER = "unipc_3_bh1_data"
STRIDE = 100_000
"""Offset between the calibration seeds of repetitions, and of the figures that `optimize` makes for itself."""

Make = Callable[[], tuple[Tableau, dict[str, Any]]]
"""A table and what is to be told of it, the calls to find it among it."""


class Bench:
    """One network: its teacher, its judge, and the rows that are there."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.kept = args, Results(args.results)
        self.code = folder_of(args.command, args.code)
        self.model = models.load(args.model)
        require_edm(self.model)
        judge = models.judge(args.model)
        if judge is None or judge.nll is not None:
            raise ArgumentError(f"{args.model} has no features to train and judge by: give mnist")
        self.judge, self.classes = judge, classes_of(self.model) or 0
        self.cache = Cache(args.cache)
        self.teacher = compare.teacher(self.model, cache=self.cache)
        self.condition = inputs.condition_of(self.model, None)
        self.report = ReportSeeds(args.images)

    @cached_property
    def examiner(self) -> Examiner:
        return Examiner(self.model, ruler_of(self.model, self.judge), self.report, self.teacher)

    def row(self, who: str, nfe: int, seed: int, make: Make) -> dict[str, Any]:
        """What `make` finds and what it scores, unless that is there."""
        a = self.args
        about = {"method": a.command, "who": who, "model": a.model, "nfe": nfe, "seed": seed, "images": a.images}
        about |= {"trajectories": a.trajectories} if a.command == "gits" else {"pairs": a.pairs}
        about |= {"max_calls": a.max_calls} if who == WHOLE else {}
        key = "|".join(map(str, about.values()))
        if self.kept.get(key) is None:
            began = time.process_time()
            table, more = make()
            more["seconds"] = round(time.process_time() - began, 1)
            scores = self.examiner(table)
            found = {name: scores[name] for score in SCORES for name in (score, f"{score}_error")}
            told = {"times": table.times.tolist(), "model_times": table.model_times.tolist()}
            standard = {"teacher": self.examiner.teachers()["distance"]}
            self.kept.add(key, about | more | found | standard | told)
        row = self.kept.get(key)
        assert row is not None
        print(line(row), flush=True)
        return row

    def off(self, table: Tableau, theirs: torch.Tensor) -> float:
        """Largest difference of the authors' samples from the table's, on the first report seeds."""
        seeds = list(self.report)[: len(theirs)]
        ours = sampled(self.model, table, seeds=seeds, condition=self.condition(seeds))
        return (ours - theirs).abs().max().item()

    # --------------------------------------------------------------------------------------------------------- GITS
    def gits(self) -> None:
        a = self.args
        for seed in a.seeds:
            held: list[Any] = []

            def found(seed: int = seed, held: list[Any] = held) -> Any:
                if not held:
                    held.append(gits_found(self.code, self.model, self.classes, a.nfe, a.trajectories, seed))
                return held[0]

            for nfe in a.nfe:
                self.row(AUTHORS, nfe, seed, lambda n=nfe, found=found: self._gits_authors(found(), n))
                self.row(ALIKE, nfe, seed, lambda n=nfe, s=seed: self._gits_alike(n, s))
                if a.max_calls:
                    options = {"calibration": CalibrationSeeds(a.trajectories, seed * STRIDE)}
                    self.row(WHOLE, nfe, seed, lambda n=nfe, o=options: self._whole(n, "ipndm_4", **o))

    def _gits_authors(self, found: Any, nfe: int) -> tuple[Tableau, dict[str, Any]]:
        table = gits_table(found.times[nfe], self.model.noise)
        seeds = list(self.report)[: self.args.checked]
        theirs = gits_samples(self.code, self.model, self.classes, found.times[nfe], seeds, self.condition)
        ours = jump_costs(found.trajectories())
        path = cheapest(ours, nfe, discount=COEFFICIENT).path(nfe)
        return table, {
            "off": self.off(table, theirs), "checked": len(seeds), "calls": self.args.trajectories * 60,
            "costs_off": float(abs(ours - found.costs.numpy()).max() / abs(ours).max()),
            "knots": found.knots[nfe], "our_knots": path,
        }  # fmt: skip

    @cached_property
    def _planners(self) -> dict[int, Planner]:
        return {}

    def _gits_alike(self, nfe: int, seed: int) -> tuple[Tableau, dict[str, Any]]:
        a, name = self.args, "ipndm_4"
        if seed not in self._planners:
            made = self.teacher.trajectory(CalibrationSeeds(a.trajectories, seed * STRIDE))
            self._planners[seed] = Planner(self.teacher, made, max(a.nfe), 1, self.cache, 64, lambda _: None)
        plan = next(self._planners[seed].propose("gits", name, solvers.get(name), nfe))
        return solvers.get(name)(plan.times).tabulate(self.model.noise), {"calls": a.trajectories * self.teacher.cost}

    # ---------------------------------------------------------------------------------------------------------- LD3
    def pairs(self, seeds: Sequence[int]) -> Pairs:
        """Pairs of the teacher."""
        return Pairs(unit_noise(seeds, self.model.shape), self.teacher(seeds).float(), self.condition(seeds))

    def ld3(self) -> None:
        for seed in self.args.seeds:
            for nfe in self.args.nfe:
                theirs = self.row(AUTHORS, nfe, seed, lambda n=nfe, s=seed: self._ld3_authors(n, s))
                self.row(ALIKE, nfe, seed, lambda n=nfe, s=seed, u=theirs["updates"]: self._ld3_alike(n, s, u))
                if self.args.max_calls:
                    options = {"calibration": CalibrationSeeds(self.args.pairs, seed * STRIDE)}
                    self.row(WHOLE, nfe, seed, lambda n=nfe, o=options: self._whole(n, LD3_SOLVER, **o))

    @property
    def _pairs_cost(self) -> int:
        return 2 * self.args.pairs * self.teacher.cost

    def _seeds(self, seed: int) -> tuple[list[int], list[int]]:
        """Of the pairs that are learned from, and of those that choose."""
        whole, count = list(CalibrationSeeds(2 * self.args.pairs, seed * STRIDE)), self.args.pairs
        return whole[:count], whole[count:]

    def _ld3_authors(self, nfe: int, seed: int) -> tuple[Tableau, dict[str, Any]]:
        train, valid = map(self.pairs, self._seeds(seed))
        seeds = list(self.report)[: self.args.checked]
        checked = Pairs(unit_noise(seeds, self.model.shape), torch.empty(0), self.condition(seeds))
        before = self.model.evaluations
        found = ld3_found(self.code, self.model, self.judge.features, train, valid, nfe, seed, checked)
        calls = self._pairs_cost + self.model.evaluations - before - nfe * len(seeds)
        off = self.off(found.table, found.samples)
        return found.table, {"off": off, "checked": len(seeds), "updates": found.updates, "calls": calls}

    def _ld3_alike(self, nfe: int, seed: int, updates: int) -> tuple[Tableau, dict[str, Any]]:
        train, valid = self._seeds(seed)
        features = self.judge.features
        wanted = features(self.teacher([*train, *valid])[len(train) :].float())

        def score(table: Tableau) -> float:
            made = sampled(self.model, table, seeds=valid, condition=self.condition(valid))
            return (features(made) - wanted).square().mean().item()

        start: SolverSchedule = solvers.get(LD3_SOLVER)(times.logsnr(self.model.noise, nfe, end="min"))
        learner = Learner(self.teacher, train, valid, score, len(valid), cache=Cache(None))
        lowered = objective("features", features=features)
        before = self.model.evaluations
        found = learner(Start.of(start, self.model.noise), "ld3", lowered, iterations=updates, seed=seed)
        calls = self._pairs_cost + self.model.evaluations - before
        more = {"updates": found.iterations, "calls": calls, "notes": found.notes}
        return found.tableau, more | {"loss": [found.start_score, found.score]}

    # --------------------------------------------------------------------------------------------------------- both
    def _whole(self, nfe: int, solver: str, **options: Any) -> tuple[Tableau, dict[str, Any]]:
        a = self.args
        with torch.enable_grad():
            found = optimize(
                self.model, nfe, a.command, solver=solver, max_calls=a.max_calls, judge=self.judge, cache=a.cache,
                report=ReportSeeds(compare.FEWEST, STRIDE), **options,
            )  # fmt: skip
        return found.tableau, {"calls": a.max_calls, "origin": found.origin, "selected_by": found.selected_by}


# ------------------------------------------------------------------------------------------------------------ report
WORDS = {
    ("gits", AUTHORS): "the authors' code", ("gits", ALIKE): "`fewstep`, its plan, nothing chosen",
    ("gits", WHOLE): "`fewstep optimize --method gits`", ("ld3", AUTHORS): "the authors' code",
    ("ld3", ALIKE): "`fewstep`, same start, pairs and updates", ("ld3", WHOLE): "`fewstep optimize --method ld3`",
}  # fmt: skip
HEADS = {
    "to_teacher": "Fréchet distance to the teacher's samples", "distance": "to the data",
    "excess": "that less the teacher's", "rms": "RMS to the teacher",
}  # fmt: skip


def figure(rows: Sequence[dict[str, Any]], score: str) -> str:
    """Mean over the repetitions, ± the standard error of the report images, and the range over the repetitions."""
    values = [row[score] for row in rows]
    error = statistics.mean(row[f"{score}_error"] for row in rows)
    text = f"{statistics.mean(values):.3f} ± {error:.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"


def line(row: dict[str, Any]) -> str:
    """One row in words, for the terminal."""
    figures = ", ".join(f"{score} {figure([row], score)}" for score in SCORES)
    return f"{row['method']} {row['nfe']} calls, seed {row['seed']}, {row['who']}: {figures}; {row['calls']:,} calls"


def report(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a table for each method, and what was checked."""
    for method, model, images in dict.fromkeys((row["method"], row["model"], row["images"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["model"], row["images"]) == (method, model, images)]
        yield f"\n{method.upper()} on {model}: {images:,} report images; the teacher is {mine[0]['teacher']:.3f} " \
              "from the data.\n"  # fmt: skip
        yield "| network calls | sampler | " + " | ".join(HEADS.values()) + " | calls to find it | repetitions |"
        yield "| ---: | :--- |" + " ---: |" * (len(HEADS) + 2)
        for nfe in sorted({row["nfe"] for row in mine}):
            for who in (AUTHORS, ALIKE, WHOLE):
                some = [row for row in mine if (row["nfe"], row["who"]) == (nfe, who)]
                if some:
                    calls = f"{statistics.mean(row['calls'] for row in some):,.0f}"
                    cells = [str(nfe), WORDS[method, who], *(figure(some, score) for score in HEADS)]
                    yield "| " + " | ".join([*cells, calls, str(len(some))]) + " |"
        yield from checks(mine)


def checks(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What `optimize` chose, and what the authors' rows say of equality."""
    chosen = [row for row in rows if row["who"] == WHOLE]
    if chosen:
        words = "; ".join(f"{row['origin']} ({row['nfe']} calls)" for row in chosen)
        yield f"\n`fewstep optimize` chose, by {chosen[0]['selected_by']}: {words}. Its calls are its budget."
    theirs = [row for row in rows if row["who"] == AUTHORS]
    if not theirs:
        return
    off, count = max(row["off"] for row in theirs), min(row["checked"] for row in theirs)
    yield f"\nSamples of the authors' sampler and of the table that stands for it differ by at most {off:.1e} " \
          f"({count} images in each of {len(theirs)} rows, pixels in [-1, 1])."  # fmt: skip
    planned = [row for row in theirs if "knots" in row]
    if planned:
        same = sum(row["knots"] == row["our_knots"] for row in planned)
        costs = max(row["costs_off"] for row in planned)
        yield f"On the authors' trajectories this library's costs differ from theirs by at most {costs:.1e} of the " \
              f"largest, and {same} of {len(planned)} paths are the same."  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = whole.add_subparsers(dest="command", required=True)
    for name in ("gits", "ld3", "report"):
        one = commands.add_parser(name)
        one.add_argument("--results", type=Path, default=RESULTS / "peers.jsonl")
        if name == "report":
            continue
        one.add_argument("--code", type=Path, help="folder of the authors' code")
        one.add_argument("--model", default="mnist")
        one.add_argument("--nfe", nargs="+", type=int, default=[4, 5, 6], help="network calls per sample")
        one.add_argument("--seeds", nargs="+", type=int, default=[0], help="repetitions")
        one.add_argument("--images", type=int, default=1000, help="report images")
        one.add_argument("--checked", type=int, default=100, help="of them, those that the authors' sampler makes too")
        one.add_argument("--max-calls", type=int, default=40_000, help="of `optimize`; 0 leaves that row out")
        one.add_argument("--trajectories", type=int, default=256, help="that GITS plans on")
        one.add_argument("--pairs", type=int, default=50, help="that LD3 learns from, and as many that choose")
        one.add_argument("--cache", type=Path, default=RESULTS / ".cache")
    return whole


def main(argv: list[str] | None = None) -> int:
    """Run one command; 2 for bad input, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        if args.command == "report":
            rows = [*Results(args.results)]
            if not rows:
                raise ArgumentError(f"{args.results} has no rows: run gits or ld3 first")
            print("\n".join(report(rows)))
        elif args.command == "gits":
            Bench(args).gits()
        else:
            Bench(args).ld3()
    except FewstepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept: the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
