"""Searches over solver schedules on the mixture: `python -m benchmarks.s3 run|report`.

    run       every method, number of calls and seed: one line each in benchmarks/results/s3/mixture.jsonl, or, for
              seeds below 10, in tuning.jsonl
    report    tables and figures from these lines (docs/s3-results.md)

    --methods s3,evolution,random,uniform,tpe   which; `s3-sequence` and `s3-both` use the other surrogates, `s3-half`,
              `s3-bold` and `s3-wide` follow it less, explore more, or evolve less; `s3-all` and `evolution-all` search
              all numbers of calls at once with the sum of the budgets
    --nfes 4,5,6,8,10   --seeds 10,11,12   --budget 400   --part K/M

All methods begin with the same 36 schedules of published solvers and are judged alike. Evolution, random search and the
estimator are asked for one schedule at a time; S³ learns after each stage. A finished line is never computed again.
The seeds begin at 10: S³ was tuned on seeds 0 and 1, but for what its surrogate learns (10 and 11 were looked at).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.proposals import Proposal, Proposer, Trial
from fewstep.search.s3 import Guidance, proposer
from fewstep.search.s3.genes import concat
from fewstep.search.s3.mixture import ENDS, Mixture

RESULTS = Path(__file__).parent / "results" / "s3"
NFES = (4, 5, 6, 8, 10)
SEEDS = (10, 11, 12)
MIXTURE, TUNING = RESULTS / "mixture.jsonl", RESULTS / "tuning.jsonl"
"""Runs that are compared, and those (of seeds below 10) by which S³ was or might be tuned."""
LIMIT = 36
STAGE, STAGES = 12, 16
"""A stage of S³ holds 12 schedules, or a sixteenth of those that were evaluated."""
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "s3": ("s3", {}),
    "s3-sequence": ("s3", {"guidance": Guidance(surrogate="sequence")}),
    "s3-both": ("s3", {"guidance": Guidance(surrogate="both")}),
    "s3-half": ("s3", {"guidance": Guidance(share=0.5)}),
    "s3-bold": ("s3", {"guidance": Guidance(bonus=3.0)}),
    "s3-wide": ("s3", {"guidance": Guidance(generations=10, kept=100)}),
    "evolution": ("evolution", {}),
    "random": ("random", {}),
    "uniform": ("random", {"mode": "uniform"}),
    "tpe": ("tpe", {}),
}


def judged(problem: Mixture, proposals: list[Proposal], first: int) -> list[Trial]:
    """The proposals as finished trials."""
    genes = [problem.space.encode(p.schedule) for p in proposals]
    inside = [g for g in genes if g is not None]
    quick = iter(problem.scores(concat(inside)) if inside else ())
    out: list[Trial] = []
    for k, (proposal, g) in enumerate(zip(proposals, genes, strict=True)):
        nfe = int(g.nfe[0]) if g is not None else proposal.schedule.tabulate(problem.noise).nfe
        score = float(next(quick)) if g is not None else problem.score(proposal.schedule)
        out.append(Trial(first + k, proposal, nfe, "", {256: score}))
    return out


def search(
    strategy: Proposer,
    judge: Callable[[list[Proposal], int], list[Trial]],
    budget: int,
    seed: int,
    *,
    batch: Callable[[int], int],
    first: int = LIMIT,
) -> tuple[list[Trial], list[dict[str, Any]]]:
    """All trials, and what each stage learned; `first` of them are the initial population."""
    trials: list[Trial] = []
    stages: list[dict[str, Any]] = []
    while len(trials) < budget:
        if trials and (learned := strategy.learn(trials)):
            stages.append(learned | {"after": len(trials)})
        count = min(first - len(trials) if len(trials) < first else batch(len(trials)), budget - len(trials))
        proposals = strategy.propose(trials, count, seed * 1_000_003 + len(trials))
        if not proposals:
            break
        trials += judge(proposals, len(trials))
    return trials, stages


def best_so_far(trials: list[Trial], nfe: int) -> list[float]:
    """After each trial the best score of a number of calls (infinite before the first)."""
    return np.minimum.accumulate([t.scores[256] if t.nfe == nfe else np.inf for t in trials]).tolist()


def stage_of(name: str) -> Callable[[int], int]:
    """How many schedules a strategy is asked for after so many trials."""
    return lambda trials: max(STAGE, trials // STAGES) if name == "s3" else 1


@cache
def fresh() -> Mixture:
    return Mixture(NFES, fresh=True)


def cell(method: str, nfe: int, seed: int, budget: int) -> dict[str, Any]:
    """One search: its curves, its best schedules and their scores on fresh states."""
    whole = method.endswith("-all")
    nfes = NFES if whole else (nfe,)
    name, options = OPTIONS[method.removesuffix("-all")]
    problem = Mixture(nfes)
    strategy = proposer(
        name, noise=problem.noise, nfes=nfes, seed=seed, rates="cifar10_vp", ends=ENDS, limit=LIMIT, **options
    )
    begin = time.process_time()
    trials, stages = search(
        strategy, partial(judged, problem), budget * len(nfes), seed, batch=stage_of(name), first=LIMIT * len(nfes)
    )
    out: dict[str, Any] = {"method": method, "nfe": 0 if whole else nfe, "seed": seed, "budget": budget}
    out |= {"seconds": round(time.process_time() - begin, 1), "stages": stages, "best": {}}
    for n in nfes:
        best = min((t for t in trials if t.nfe == n), key=lambda t: t.scores[256])
        out["best"][str(n)] = {
            "score": best.scores[256], "fresh": fresh()(best.proposal.schedule), "trial": best.number,
            "origin": best.proposal.origin, "schedule": best.proposal.schedule.to_dict(),
            "curve": steps(best_so_far(trials, n)), "published": best_published(trials, n),
        }  # fmt: skip
    return out


def best_published(trials: list[Trial], nfe: int) -> dict[str, Any]:
    """The best schedule of the initial population: the best that is constant over its steps."""
    best = min((t for t in trials if t.nfe == nfe and t.proposal.stage == 0), key=lambda t: t.scores[256])
    return {
        "origin": best.proposal.origin, "score": best.scores[256], "fresh": fresh()(best.proposal.schedule),
    }  # fmt: skip


def steps(curve: list[float]) -> list[tuple[int, float]]:
    """A falling curve by its steps: `(trials, best)` where the best changed, and at the end."""
    kept = [(k + 1, v) for k, v in enumerate(curve) if np.isfinite(v) and (k == 0 or v < curve[k - 1])]
    return [*kept, (len(curve), curve[-1])]


def run(methods: list[str], nfes: list[int], seeds: list[int], budget: int, part: tuple[int, int]) -> None:
    """All cells that are not there yet."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    cells = [(m, n, s) for m in methods for s in seeds for n in ([0] if m.endswith("-all") else nfes)]
    for method, nfe, seed in cells[part[0] :: part[1]]:
        path = TUNING if seed < SEEDS[0] else MIXTURE
        if (method, nfe, seed, budget) in {(r["method"], r["nfe"], r["seed"], r["budget"]) for r in read(path)}:
            continue
        record = cell(method, nfe, seed, budget)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        shown = {n: (round(b["score"], 5), round(b["fresh"], 5)) for n, b in record["best"].items()}
        print(method, nfe, seed, budget, shown, record["seconds"], flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--methods", default="s3,evolution,random,uniform,tpe")
    parser.add_argument("--nfes", default=",".join(map(str, NFES)))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--budget", type=int, default=400)
    parser.add_argument("--part", default="0/1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "report":
        from benchmarks.s3_page import write

        write(read(MIXTURE), read(TUNING))
        return
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    first, of = map(int, options.part.split("/"))
    run(options.methods.split(","), numbers(options.nfes), numbers(options.seeds), options.budget, (first, of))


if __name__ == "__main__":
    main()
