"""Searches over solver schedules on the digit network: `python -m benchmarks.s3_digits run|report`.

    run       every method, number of calls and seed; what is worth most comes first
    report    what there is so far, as the digits' part of docs/s3-results.md

A schedule's score is the Fréchet distance of 256 images of fixed selection seeds. All runs share their evaluations,
which are known by the digest of the table; each is on disk (benchmarks/results/s3/digits-scores.jsonl) before the
next one begins. A run that was stopped is proposed again from the start, at no cost, and goes on where it was.
The winner of each run and the best schedule of the initial population are scored again on 5,000 images of report seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.quality_cells import Deadline, key_of, score_network
from benchmarks.s3 import RESULTS, best_so_far, read, search, stage_of, steps
from fewstep import models
from fewstep.compare import Results
from fewstep.evaluating import Tabulator
from fewstep.proposals import Proposal, Trial
from fewstep.randomness import ReportSeeds, Seeds, SelectionSeeds
from fewstep.rules import SolverSchedule
from fewstep.search.s3 import proposer

MODEL = "mnist"
NFES, SEEDS, METHODS = (5, 8), (1, 2, 3), ("s3", "evolution", "random", "tpe")
BUDGET, LIMIT = 200, 36
SELECTION, FRESH = SelectionSeeds(256, 20_000_000), ReportSeeds(5000, 20_000_000)
BATCH = 64
SCORES, RUNS = RESULTS / "digits-scores.jsonl", RESULTS / "digits.jsonl"


class Digits:
    """The network with its judge, and every score that was ever made of it."""

    def __init__(self) -> None:
        self.model = models.load(MODEL)
        judge = models.judge(MODEL)
        assert judge is not None
        self.judge = judge
        self.tabulate = Tabulator(self.model.noise, MODEL)
        self.results = Results(SCORES)

    def score(self, schedule: SolverSchedule, seeds: Seeds) -> dict[str, float]:
        """Fréchet distance and its error; made once for each table and set of seeds."""
        table = self.tabulate(schedule)
        key = key_of("s3", self.model.fingerprint, self.judge.name, table.digest, repr(seeds))
        known = self.results.get(key)
        if known is None:
            begin = time.process_time()
            try:
                known = score_network(self.model, self.judge, table, seeds, BATCH)
            except (ValueError, torch.linalg.LinAlgError):  # samples that are not finite
                known = {"fd": math.inf}
            seconds = round(time.process_time() - begin, 2)
            self.results.add(key, known, nfe=table.nfe, seeds=repr(seeds), digest=table.digest, seconds=seconds)
        return known

    def judged(self, proposals: list[Proposal], first: int) -> list[Trial]:
        """The proposals as finished trials."""
        return [
            Trial(first + k, p, self.tabulate(p.schedule).nfe, "", {256: self.score(p.schedule, SELECTION)["fd"]})
            for k, p in enumerate(proposals)
        ]


def cells() -> Iterator[tuple[str, int, int]]:
    """Methods, calls and seeds; what is worth most comes first."""
    pairs = ("s3", "evolution")
    for nfe in NFES:
        yield from ((m, nfe, s) for s in SEEDS for m in pairs)
    for method in METHODS:
        if method not in pairs:
            yield from ((method, n, s) for n in NFES for s in SEEDS)


def cell(digits: Digits, method: str, nfe: int, seed: int) -> dict[str, Any]:
    """One search: its curve, its winner, and both scores of it and of the best of the initial population."""
    strategy = proposer(method, noise=digits.model.noise, nfes=(nfe,), seed=seed, limit=LIMIT)
    trials, stages = search(strategy, digits.judged, BUDGET, seed, batch=stage_of(method), first=LIMIT)
    best = min(trials, key=lambda t: t.scores[256])
    published = min((t for t in trials if t.proposal.stage == 0), key=lambda t: t.scores[256])

    def both(trial: Trial) -> dict[str, Any]:
        again = digits.score(trial.proposal.schedule, FRESH)
        return {"score": trial.scores[256], "fresh": again["fd"], "fresh_error": again["fd_error"],
                "origin": trial.proposal.origin, "trial": trial.number,
                "schedule": trial.proposal.schedule.to_dict()}  # fmt: skip

    return {
        "method": method, "nfe": nfe, "seed": seed, "budget": BUDGET, "stages": stages,
        "curve": steps(best_so_far(trials, nfe)), "best": both(best), "published": both(published),
    }  # fmt: skip


def run(minutes: float | None) -> None:
    """All cells that are not there yet; a deadline stops between them."""
    torch.set_num_threads(1)
    digits, deadline = Digits(), Deadline(minutes)
    for method, nfe, seed in cells():
        if deadline.over:
            return
        if (method, nfe, seed) in {(r["method"], r["nfe"], r["seed"]) for r in read(RUNS)}:
            continue
        begin = time.monotonic()
        record = cell(digits, method, nfe, seed)
        with RUNS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        shown = {k: (round(record[k]["score"], 4), record[k]["fresh"]) for k in ("best", "published")}
        print(method, nfe, seed, shown, f"{time.monotonic() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run",))
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    run(parser.parse_args().minutes)


if __name__ == "__main__":
    main()
