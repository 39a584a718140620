"""The digits' part of docs/s3-results.md, from the lines of `benchmarks.s3_digits`."""

from __future__ import annotations

from typing import Any

from benchmarks.s3 import RESULTS, read
from benchmarks.s3_page import TITLES, at, curves, first, spread, table, written

BUDGET = 204
TEACHERS = RESULTS.parent / "ays" / "teachers.jsonl"
TEACHER = "SDE teacher, 5000"
Line = dict[str, Any]


def section() -> str:
    """All of it that there is."""
    objective = read(RESULTS / "digits-objective.jsonl")
    runs, few = read(RESULTS / "digits.jsonl"), read(RESULTS / "digits-128.jsonl")
    fresh = {
        line["digest"]: line["scores"] for line in read(RESULTS / "digits-scores.jsonl") if line["what"] == "fresh"
    }
    parts = ["## On the digit network\n", "`python -m benchmarks.s3_digits run`, on the network that ships.\n"]
    if objective:
        parts += [
            "### What a search can see in few images\n",
            "Samplers of 5 calls whose Fréchet distance is known from 15,000 images ([quality](quality.md)), and "
            "estimates of it from few selection seeds: Kendall's tau and correlation of the two, mean difference and its "
            "deviation over the samplers. Plain distances of so few images are mostly the luck of the seeds; controlled "
            "ones (`fewstep.metrics.controlled`) take it off with the 50-call ODE teacher's samples of the same noise.\n",
            objective_table(objective),
        ]
    if runs:
        curves(runs, max(r["budget"] for r in runs), "best score so far", "s3_digits", "linear")
        parts += [
            "### Searches by 256 images\n",
            "The score is the controlled distance of 256 images of the same seeds for all; medians over the runs, lowest "
            "and highest in brackets. Excess: on 5,000 fresh images, above the teacher's.\n",
            "![Best score so far](assets/tables/s3_digits.png)\n",
            summary_table(runs, fresh),
            reached(runs),
            runs_table(runs, fresh),
        ]
    if few:
        parts += [
            "### The same by 128 images, which are too few\n",
            "A first series, with scores in units of their spread as the surrogate's targets. 128 images are twice the "
            "number of features: the regression behind the control can then be fooled, and a search finds the schedules "
            "that fool it (the winner's curse: compare the score that selected with the fresh one).\n",
            runs_table(few, fresh),
        ]
    return "\n".join(parts)


def objective_table(lines: list[Line]) -> str:
    rows = [
        [
            str(x["images"]),
            x["estimate"],
            f"{x['tau']:.2f}",
            f"{x['r']:.2f}",
            f"{x['bias']:+.3f}",
            f"{x['deviation']:.3f}",
        ]
        for x in lines
    ]
    head = ["images", "estimate", "Kendall's tau", "correlation", "mean difference", "deviation"]
    return f"{lines[0]['samplers']} samplers.\n\n" + table(head, rows)


def floor() -> float:
    """What the SDE teacher's own samples are at."""
    return next(line["scores"]["fd"] for line in read(TEACHERS) if line["key"] == TEACHER)


def summary_table(runs: list[Line], fresh: dict[str, Line]) -> str:
    """Best so far and final excess of each method over its seeds."""
    rows: list[list[str]] = []
    for nfe in sorted({r["nfe"] for r in runs}):
        start = fresh[next(r for r in runs if r["nfe"] == nfe)["published"]["digest"]]["fd"] - floor()
        rows.append([str(nfe), "best published", "", "", "", "", f"{start:.3f}"])
        for method in TITLES:
            mine = [r for r in runs if (r["nfe"], r["method"]) == (nfe, method)]
            if mine:
                by = [spread((at(r["curve"], b) for r in mine), 3) for b in (50, 100, BUDGET)]
                over = [fresh[r["best"]["digest"]]["fd"] - floor() for r in mine if r["best"]["digest"] in fresh]
                rows.append([str(nfe), TITLES[method], str(len(mine)), *by, spread(over, 3)])
    return table(["calls", "method", "runs", "50 evaluations", "100", f"{BUDGET}", "excess of the winner"], rows)


def runs_table(runs: list[Line], fresh: dict[str, Line]) -> str:
    """A line for each run, and one for the best published schedule of each number of calls."""
    rows: list[list[str]] = []
    for nfe in sorted({r["nfe"] for r in runs}):
        mine = [r for r in runs if r["nfe"] == nfe]
        rows.append([str(nfe), "best published", "", "", *told(mine[0]["published"], fresh)])
        for r in sorted(mine, key=lambda r: (list(TITLES).index(r["method"]), r["budget"], r["seed"])):
            rows.append([str(nfe), TITLES[r["method"]], str(r["seed"]), str(r["budget"]), *told(r["best"], fresh)])
    head = [
        "calls",
        "method",
        "seed",
        "evaluations",
        "score that selected",
        "fresh, 5,000 images",
        "excess",
        "schedule",
    ]
    note = (
        f"Excess: the fresh distance less {floor():.4f}, that of 5,000 samples of the 50-call SDE teacher. Times at which a "
        "step ends, basis and order, as above.\n\n"
    )
    return note + table(head, rows)


def reached(runs: list[Line]) -> str:
    """After what part of the evaluations S³ is as good as the evolution at its end, over all pairs of seeds."""
    lines: list[str] = []
    for nfe in sorted({r["nfe"] for r in runs}):
        ours, theirs = ([r for r in runs if (r["nfe"], r["method"]) == (nfe, m)] for m in ("s3", "evolution"))
        parts = [first(a["curve"], b["curve"][-1][1]) / b["budget"] for a in ours for b in theirs]
        if parts:
            lines.append(
                f"- {nfe} calls: S³ reaches the evolution's last score after {spread(parts, 2)} of its evaluations "
                f"({len(parts)} pairs of runs; inf: not reached)."
            )
    return "\n".join([*lines, ""]) if lines else ""


def told(winner: Line, fresh: dict[str, Line]) -> list[str]:
    again = fresh.get(winner["digest"])
    figures = ["–", "–"]
    if again is not None:
        figures = [f"{again['fd']:.4f} ± {again['fd_error']:.3f}", f"{again['fd'] - floor():.4f}"]
    return [f"{winner['score']:.4f}", *figures, f"{winner['origin'].split(' of ')[0]}: {written(winner['schedule'])}"]
