"""How a study stands, from its contents: the counts, the best of each number of calls, and what the winners' scores
were worth.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from fewstep.study.lock import held, holder
from fewstep.study.plan import Plan
from fewstep.study.reading import Contents
from fewstep.study.records import FAILED, FINISHED, QUEUED, RUNNING, Entry
from fewstep.study.rungs import Rungs


def front(contents: Contents) -> list[dict[str, Any]]:
    """The best trial of each number of calls, fewest calls first.

    `score` selected it, on `images` images; `fresh` are its scores on fresh seeds by number of images, with standard
    errors. `curse` is the fresh score on as many images as selected it, less the score: how far that was luck. `start`
    is the best of the initial population (stage 0) on the same images.
    """
    plan = Plan.of(contents.values)
    rungs = Rungs(plan.counts, contents.entries.values())
    rows: list[dict[str, Any]] = []
    for nfe in plan.nfes:
        for number, images in rungs.best(nfe, 1):
            entry = contents.entries[number]
            score = entry.trial.scores[images]
            fresh = _fresh(entry)
            again = fresh.get(images)
            rows.append(
                {
                    "nfe": nfe, "trial": number, "origin": entry.trial.proposal.origin, "images": images,
                    "score": score, "fresh": {str(count): told for count, told in fresh.items()},
                    "curse": None if again is None else again["score"] - score,
                    "start": _start(contents, nfe, images), "digest": entry.trial.digest,
                }
            )  # fmt: skip
    return rows


def _fresh(entry: Entry) -> dict[int, dict[str, Any]]:
    return {
        key.images: {"score": e.score, "error": e.error}
        for key, e in sorted(entry.evaluations.items())
        if key.fresh and e.score is not None
    }


def _start(contents: Contents, nfe: int, images: int) -> float | None:
    scores = [
        score
        for entry in contents.entries.values()
        if entry.trial.nfe == nfe and entry.trial.proposal.stage == 0 and (score := entry.finite(images)) is not None
    ]
    return min(scores, default=None)


def status(contents: Contents, path: Path) -> dict[str, Any]:
    """Counts of trials and evaluations, failures by cause, what was learned, who writes, and the front."""
    plan = Plan.of(contents.values)
    trials = Counter(entry.status for entry in contents.entries.values())
    evaluations = list(contents.evaluations())
    done = [e for e in evaluations if e.seconds is not None]
    record = contents.record
    return {
        "study": str(path),
        "model": record.get("model"),
        "objective": record.get("objective"),
        "proposer": record.get("proposer"),
        "nfes": list(plan.nfes),
        "budget": plan.budget,
        "evaluated": sum(entry.scored for entry in contents.entries.values()),
        "trials": {state: trials[state] for state in (QUEUED, RUNNING, FINISHED, FAILED)},
        "infinite": sum(e.status == FINISHED and e.score == math.inf for e in evaluations),
        "failures": dict(Counter(e.cause for e in evaluations if e.status == FAILED)),
        "retried": sum(e.attempts for e in evaluations if e.status != FAILED),
        "images": sum(e.key.images for e in done),
        "worker_seconds": sum(e.seconds or 0.0 for e in done),
        "learned": [
            {"trials": told.trials, "seconds": told.seconds, **told.report} for told in contents.learned if told.report
        ],
        "finished": bool(contents.values.get("finished", False)),
        "writer": holder(path) if held(path) else None,
        "front": front(contents),
    }
