"""The quality benchmark's scores as Markdown pages; every figure comes from the stored scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.quality_cells import GRIDS, NFES, RECOMMENDED, SCREEN_GRIDS, SCREEN_SOLVERS, Analytic, Job
from fewstep import solvers
from fewstep.compare import Results

NONE = "n/a"
METHOD_NAMES = {"dmn": "DMN", "ays": "AYS", "grids": "`grids`"}


class Looked(NamedTuple):
    """Jobs and where their scores are."""

    jobs: Sequence[Job]
    results: Results

    def at(self, nfe: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Scores by (solver, times), one of each seed set that was scored."""
        found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for job in self.jobs:
            scores = self.results.get(job.key)
            if scores is not None and job.cell.nfe == nfe:
                found.setdefault((job.cell.solver, job.cell.times), {})[job.key] = scores
        return {name: list(sets.values()) for name, sets in found.items()}


@dataclass(frozen=True)
class Scores:
    """Everything that was measured."""

    problems: list[tuple[Analytic, list[Job]]]
    analytic: Results
    screen: Looked
    final: Looked
    optimised: Mapping[tuple[str, int, str], dict[str, Any]]
    fingerprint: str
    floors: Mapping[str, Any]
    images: tuple[int, int]


class Figure(NamedTuple):
    """A Fréchet distance over several seed sets."""

    value: float
    error: float
    least: float
    most: float
    sets: int
    as_label: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, sets: Sequence[Mapping[str, Any]]) -> Figure:
        """The mean over the sets. Its error is the larger of two: what the jackknife of each set says, and what the
        spread between the sets says.
        """
        values, k = [float(s["fd"]) for s in sets], len(sets)
        mean = sum(values) / k
        within = math.sqrt(sum(float(s["fd_error"]) ** 2 for s in sets)) / k
        between = math.sqrt(sum((v - mean) ** 2 for v in values) / (k - 1) / k) if k > 1 else 0.0
        return cls(
            mean, max(within, between), min(values), max(values), k,
            sum(float(s["as_label"]) for s in sets) / k, tuple(values),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"

    def gain(self, other: Figure) -> str:
        """How much lower this is, over the seed sets that both have (the same noise): mean and standard error."""
        gains = [theirs - ours for ours, theirs in zip(self.values, other.values, strict=False)]
        mean = sum(gains) / len(gains)
        if len(gains) < 2:
            return f"{mean:+.3f}"
        error = math.sqrt(sum((g - mean) ** 2 for g in gains) / (len(gains) - 1) / len(gains))
        return f"{mean:+.3f} ± {error:.3f}"

    def clear_of(self, other: Figure) -> bool:
        """Whether it is lower in every seed set than the other is in any; needs two sets or more of each."""
        return min(self.sets, other.sets) >= 2 and self.most < other.least


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(head) - 1)) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def short(value: float) -> str:
    """Three digits."""
    return "∞" if math.isinf(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0e}".replace("e+0", "e")


# --------------------------------------------------------------------------------------------------------- analytic
def analytic_rows(jobs: Sequence[Job], results: Results, nfe: int) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by solver and grid; solvers with the same tables share a row, under all their names."""
    table: dict[str, dict[str, str]] = {}
    for job in jobs:
        if job.cell.nfe == nfe:
            table.setdefault(job.cell.solver, {})[job.cell.times] = job.key
    names: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for solver, keys in table.items():
        names.setdefault(tuple(sorted(keys.items())), []).append(solver)
    return {
        ", ".join(same): {grid: scores for grid, key in keys if (scores := results.get(key)) is not None}
        for keys, same in names.items()
    }


def unreachable(jobs: Sequence[Job], nfe: int) -> str:
    """A line on the solvers that cannot make this number of calls."""
    there = {job.cell.solver for job in jobs if job.cell.nfe == nfe}
    missing = [name for name in solvers.DETERMINISTIC if name not in there]
    return f"\nNot with {nfe} calls: {', '.join(missing)}.\n" if missing else ""


ALL_CELLS = """
Written by `python -m benchmarks.quality report` from the scores that `python -m benchmarks.quality analytic` made. Each
cell: root mean square distance to the exact end points of the same starts · KL divergence of the law of the samples, in
nats. Lower is better; the best of each column is bold, by RMS. Solvers that make the same table share a row. Times end
at 0: the last point of a grid is replaced by it (`karras_append`: 0 is appended, EDM's own way).
"""


def analytic_page(scores: Scores) -> str:
    """All cells of both problems."""
    parts = [
        "# Analytic problems, all cells\n",
        ALL_CELLS,
    ]
    for problem, jobs in scores.problems:
        floor = (scores.analytic.get(problem.floor().key) or {"kl": math.nan})["kl"]
        parts.append(f"\n## {problem.problem.name}\n\n{problem.problem.description}\n")
        parts.append(
            f"\n{len(problem.seeds)} starts, float64, EDM noise from 80 to 0.002; "
            f"the exact end points score KL {short(floor)}.\n"
        )
        for nfe in NFES:
            rows = analytic_rows(jobs, scores.analytic, nfe)
            best = {g: min((s[g]["rms"] for s in rows.values() if g in s), default=math.inf) for g in GRIDS}
            body = [
                [name, *(_pair(found.get(grid), best[grid]) for grid in GRIDS)]
                for name, found in sorted(
                    rows.items(), key=lambda item: min((s["rms"] for s in item[1].values()), default=9e9)
                )
            ]
            parts.append(f"\n### {problem.problem.name}, {nfe} network calls\n\n" + markdown(["solver", *GRIDS], body))
            parts.append(unreachable(jobs, nfe))
    return "".join(parts)


def _pair(scores: Mapping[str, float] | None, best: float) -> str:
    if scores is None:
        return NONE
    text = f"{short(scores['rms'])} · {short(scores['kl'])}"
    return f"**{text}**" if scores["rms"] <= best else text


def analytic_best(scores: Scores, count: int = 5) -> str:
    """The best few cells of each problem by either judge."""
    parts: list[str] = []
    for problem, jobs in scores.problems:
        rows: list[list[str]] = []
        for nfe in NFES:
            cells = [
                (name.split(", ")[0], grid, found)
                for name, grids in analytic_rows(jobs, scores.analytic, nfe).items()
                for grid, found in grids.items()
            ]
            for judge in ("rms", "kl"):
                ranked = sorted(cells, key=lambda cell: cell[2][judge])[:count]
                texts = [f"{solver} · {grid} {short(found[judge])}" for solver, grid, found in ranked]
                rows.append([f"{nfe} by {judge.upper()}", *texts])
        parts.append(f"\n### {problem.problem.name}\n\n" + markdown(["calls", *map(str, range(1, count + 1))], rows))
    return "".join(parts)


# ---------------------------------------------------------------------------------------------------------- network
def screen_tables(scores: Scores) -> str:
    """The screen: a matrix for each number of calls."""
    parts: list[str] = []
    for nfe in NFES:
        found = {name: Figure.of(sets) for name, sets in scores.screen.at(nfe).items()}
        best = min((f.value for f in found.values()), default=0.0)

        def cell(solver: str, grid: str, found: dict[tuple[str, str], Figure] = found, best: float = best) -> str:
            figure = found.get((solver, grid))
            return (
                NONE if figure is None else f"**{figure.value:.2f}**" if figure.value == best else f"{figure.value:.2f}"
            )

        rows = [[s, *(cell(s, g) for g in SCREEN_GRIDS)] for s in SCREEN_SOLVERS]
        error = sorted(f.error for f in found.values())
        typical = f" (standard error about {error[len(error) // 2]:.2f})" if error else ""
        parts.append(f"\n### {nfe} network calls{typical}\n\n" + markdown(["solver", *SCREEN_GRIDS], rows))
    return "".join(parts)


def final_tables(scores: Scores, count: int = 14) -> str:
    """The final: the best cells of each number of calls."""
    parts: list[str] = []
    for nfe in NFES:
        found = sorted(
            ((Figure.of(sets), name) for name, sets in scores.final.at(nfe).items()), key=lambda item: item[0].value
        )
        rows = [
            [
                f"{solver} · {METHOD_NAMES.get(grid, grid)}",
                str(f),
                f"{f.least:.3f} to {f.most:.3f}",
                str(f.sets),
                f"{f.as_label:.1%}",
            ]
            for f, (solver, grid) in found[:count]
        ]
        head = ["solver · times", "Fréchet distance", "over the sets", "sets", "as its label"]
        parts.append(f"\n### {nfe} network calls\n\n" + markdown(head, rows))
    return "".join(parts)


def added(scores: Scores) -> str:
    """What optimised times add, for every recommended solver: over its own best hand-crafted times, and over the best
    hand-crafted sampler of all.
    """
    rows: list[list[str]] = []
    wins: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for nfe in NFES:
        found = {name: Figure.of(sets) for name, sets in scores.final.at(nfe).items()}
        by_hand = {name: f for name, f in found.items() if name[1] in GRIDS}
        for solver in RECOMMENDED:
            own = min((n for n in by_hand if n[0] == solver), key=lambda n: by_hand[n].value, default=None)
            if own is None:
                continue
            best = min(by_hand, key=lambda n: by_hand[n].value)
            row = [str(nfe), solver, f"{by_hand[own]} ({own[1]})"]
            for method in METHOD_NAMES:
                figure = found.get((solver, method))
                if figure is None:
                    row.append(NONE)
                    continue
                margins = figure.clear_of(by_hand[own]), figure.clear_of(by_hand[best])
                wins.setdefault((solver, method), []).append(margins)
                row.append(f"{figure} ({figure.gain(by_hand[own])}; {figure.gain(by_hand[best])})")
            rows.append([*row, f"{by_hand[best]} ({best[0]} · {best[1]})"])
    head = ["calls", "solver", "its best hand-crafted times", *METHOD_NAMES.values(), "best hand-crafted of all"]
    lines = [
        f"- {METHOD_NAMES[method]} with {solver}: lower in every seed set than this solver's best hand-crafted "
        f"times in any, at {sum(own for own, _ in margins)} of {len(margins)} numbers of calls; than the best "
        f"hand-crafted sampler of all, at {sum(best for _, best in margins)}."
        for (solver, method), margins in wins.items()
    ]
    return markdown(head, rows) + "\n" + "\n".join(lines) + "\n"


def costs(scores: Scores) -> str:
    """What the searches took."""
    rows = [
        [
            f"{METHOD_NAMES[method]}, {solver}, {nfe} calls",
            f"{record['calls']:,}",
            f"{record['seconds']:.0f}",
            record["origin"],
            " ".join(f"{t:.4g}" for t in record["times"]),
        ]
        for (solver, nfe, method), record in scores.optimised.items()
    ]
    return markdown(["search", "network calls", "seconds", "from", "times"], rows)


ADDED = """
Digit network (fingerprint {fingerprint}), Fréchet distance in 64 features of a digit classifier to the training images,
{final:,} images in each of up to {sets} disjoint sets of report seeds, balanced labels, no guidance.{floor} The value
is the mean over the sets; ± is its standard error, the larger of what the jackknife within the sets and the spread
between them say. In brackets: how much lower it is than the solver's own best hand-crafted times, and than the best
hand-crafted sampler of all, mean and standard error over the seed sets, which are the same noise in both."""
COSTS = """
Everything included: the passes over noised data, the race, the finals, the figures of the report. What several searches
share comes from a cache and is counted once. They chose by the Fréchet distance to the data, and AYS went down from
hand-crafted grids alone; what the program does now is measured in [Align Your Steps](ays-results.md)."""
FINAL = (
    "The ten best of the screen, and the recommended solvers with the times of DMN, AYS and `grids`, on fresh seeds."
)
SCREEN = """
{screened} images of selection seeds. With so few images the distance is biased upwards: real test images in this number
score {bias:.2f}."""
ANALYTIC = """
Best cells by root mean square distance to the exact end points, and by KL divergence: the two judges disagree. All
cells: [analytic problems](quality-analytic.md)."""
HEAD = """# Quality tables

Written by `python -m benchmarks.quality report`; the scores are in `benchmarks/results`, and
`python -m benchmarks.quality --help` says how they are made. Real network calls per sample. Times end at 0: the last
point of a grid is replaced by it (`karras_append`: 0 is appended, EDM's own way).
"""


def quality_page(scores: Scores) -> str:
    """The page of the documentation."""
    screened, final = scores.images
    floors = scores.floors.get("test_to_train", {})
    floor = f" Real test images in the same number score {floors[str(final)]:.3f}." if str(final) in floors else ""
    sets = max((Figure.of(s).sets for nfe in NFES for s in scores.final.at(nfe).values()), default=0)
    added_text = ADDED.format(fingerprint=scores.fingerprint, final=final, floor=floor, sets=sets)
    sections = (
        ("What optimised times add", added_text, added),
        ("The searches behind them", COSTS, costs),
        ("Digit network: the best", FINAL, final_tables),
        (
            "Digit network: the screen",
            SCREEN.format(screened=screened, bias=floors.get(str(screened), 0.5)),
            screen_tables,
        ),
        ("Analytic problems: the best", ANALYTIC, analytic_best),
    )
    return HEAD + "".join(f"\n## {title}\n\n{text.strip()}\n\n{body(scores)}" for title, text, body in sections)
