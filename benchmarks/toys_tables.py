"""The tables of docs/ays-toys.md; every figure comes from the stored scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.quality_tables import NONE, markdown, short
from benchmarks.toys_cells import NFES, SOLVERS, TIMES, Place, Sizes, jobs_of, places, search_key
from benchmarks.toys_sets import MIXTURES, TRAINED, MixtureToy, TrainedToy, toy
from fewstep.compare import Results
from fewstep.files import atomic_write_text

TITLES = {
    "edm": "EDM", "logsnr": "LogSNR", "best": "best by hand", "ays_edm": "AYS from EDM", "ays": "AYS",
    "converged": "converged",
}  # fmt: skip
NAMES = {"grid_8x8": "8 × 8", "grid_8x4": "8 × 4", "grid_6x6": "6 × 6"}
PAPER: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("grid_8x8", "sde_dpmpp_2m"): {
        "edm": (9.018, 4.029, 1.522), "logsnr": (6.250, 1.834, 0.071), "ays": (-0.143, -0.505, -0.574),
    },
    ("grid_8x4", "ddim"): {
        "edm": (1.536, -0.144, -1.115), "logsnr": (1.446, -0.288, -1.091), "ays": (-1.999, -2.260, -2.222),
    },
    ("grid_6x6", "sde_dpmpp_1"): {
        "edm": (1.166, -0.606, -0.996), "logsnr": (-0.012, -0.978, -1.231), "ays": (-1.152, -1.376, -1.554),
    },
}  # fmt: skip
"""Table 4 of the paper: negative log-likelihood at 6, 8 and 10 calls."""
COLLAPSED = "▼"
"""Below the negative log-likelihood of exact samples: more concentrated than the data."""
DIFFERS = "✗"
"""The three schedules come in another order than in the paper."""


def two(value: float) -> str:
    """Two decimals and a proper minus."""
    return f"{value:.2f}".replace("-", "−")


class Mean(NamedTuple):
    """A score over sets of seeds."""

    value: float
    least: float
    most: float
    sets: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Mean and range."""
        return cls(sum(values) / len(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        if self.value == float("inf"):
            return "∞"
        half = f" ± {(self.most - self.least) / 2:.3f}" if self.sets > 1 else ""
        return f"{self.value:.3f}{half}".replace("-", "−")


class Measured:
    """The scores of one set, by place and times."""

    def __init__(self, a: MixtureToy | TrainedToy, kept: Results, sizes: Sizes) -> None:
        self.name, self.entropy_known = a.name, isinstance(a, MixtureToy)
        found: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
        for job in jobs_of(a, kept, sizes, places()):
            scores = kept.get(job.key)
            if scores is not None:
                cell = (job.cell.solver, job.cell.times, job.cell.nfe)
                found.setdefault(cell, {})[str(job.about["seeds"])] = scores
        self._found = {cell: list(sets.values()) for cell, sets in found.items()}
        self.searches = {p: kept.get(search_key(a, p, sizes)) for p in places((a.name,))}

    def at(self, solver: str, kind: str, nfe: int, score: str) -> Mean | None:
        """One score, or None where it was not made."""
        sets = self._found.get((solver, kind, nfe))
        return None if not sets else Mean.of([float(s[score]) for s in sets])

    def exact(self, score: str) -> Mean | None:
        """What exact samples score."""
        return self.at("exact", "", 0, score)


def ranking(values: dict[str, float]) -> list[str]:
    """Names from the lowest value to the highest."""
    return sorted(values, key=lambda name: values[name])


def disagreements(measured: dict[str, Measured]) -> list[tuple[Place, list[str], list[str]]]:
    """Where the order of the paper's three schedules is not the paper's: the place, our order, the paper's."""
    out: list[tuple[Place, list[str], list[str]]] = []
    for (name, solver), rows in PAPER.items():
        for k, nfe in enumerate(NFES):
            ours = {kind: measured[name].at(solver, kind, nfe, "nll") for kind in rows}
            theirs = ranking({kind: values[k] for kind, values in rows.items()})
            known = {kind: mean.value for kind, mean in ours.items() if mean is not None}
            if len(known) == len(rows) and ranking(known) != theirs:
                out.append((Place(name, solver, nfe), ranking(known), theirs))
    return out


def paper_table(measured: dict[str, Measured]) -> str:
    """Ours beside the paper's Table 4, in brackets."""
    differs = {place for place, *_ in disagreements(measured)}
    rows: list[list[str]] = []
    for (name, solver), paper in PAPER.items():
        for kind, theirs in paper.items():
            row = [f"{NAMES[name]}, {SOLVERS[solver]}", TITLES[kind]]
            for k, nfe in enumerate(NFES):
                mean = measured[name].at(solver, kind, nfe, "nll")
                mark = f" {DIFFERS}" if Place(name, solver, nfe) in differs else ""
                shown = NONE if mean is None else two(mean.value)
                row.append(f"{shown} ({two(theirs[k])}){mark}")
            rows.append(row)
    floors = ", ".join(
        f"{NAMES[name]}: {floor.value:.3f}".replace("-", "−")
        for name in MIXTURES
        if (floor := measured[name].exact("nll")) is not None
    )
    head = ["grid, solver", "times", *(f"{nfe} calls" for nfe in NFES)]
    return f"{markdown(head, rows)}\nExact samples score (the entropy): {floors}.\n\n{in_words(measured)}"


def in_words(measured: dict[str, Measured]) -> str:
    """The disagreements as sentences."""
    found = disagreements(measured)
    if not found:
        return "In all nine columns the three schedules come in the paper's order.\n"
    lines = [
        f"- {NAMES[p.name]}, {SOLVERS[p.solver]}, {p.nfe} calls: ours {' < '.join(TITLES[k] for k in ours)}, "
        f"the paper's {' < '.join(TITLES[k] for k in theirs)}"
        for p, ours, theirs in found
    ]
    some = "one" if len(found) == 1 else str(len(found))
    return f"In {some} of the nine columns the order is not the paper's ({DIFFERS}):\n\n" + "\n".join(lines) + "\n"


def score_table(m: Measured, score: str, *, floor: Mean | None = None) -> str:
    """One score of every solver and number of calls; the lowest of a row is bold (not for likelihoods)."""
    rows: list[list[str]] = []
    for solver, title in SOLVERS.items():
        for nfe in NFES:
            means = {kind: m.at(solver, kind, nfe, score) for kind in TIMES}
            known = [mean.value for mean in means.values() if mean is not None]
            row = [f"{title}, {nfe}"]
            for mean in means.values():
                text = NONE if mean is None else str(mean)
                if mean is not None and floor is not None and mean.most < floor.least:
                    text += f" {COLLAPSED}"
                if mean is not None and floor is None and mean.value == min(known):
                    text = f"**{text}**"
                row.append(text)
            rows.append(row)
    return markdown(["solver, calls", *TITLES.values()], rows)


def misled(m: Measured) -> str:
    """Where the lower likelihood goes with the higher divergence, AYS against the converged times."""
    lines: list[str] = []
    for solver, title in SOLVERS.items():
        for nfe in NFES:
            pairs = [(m.at(solver, kind, nfe, "nll"), m.at(solver, kind, nfe, "kl")) for kind in ("ays", "converged")]
            (nll, kl), (nll_end, kl_end) = pairs
            if not (nll and kl and nll_end and kl_end):
                continue
            if nll_end.value < nll.value and kl_end.value > kl.value:
                likelihoods, divergences = (
                    f"{two(a.value)} against {two(b.value)}" for a, b in ((nll_end, nll), (kl_end, kl))
                )
                lines.append(f"- {title}, {nfe} calls: {likelihoods}, but KL {divergences}")
    if not lines:
        return ""
    return "The converged times have the better likelihood and the worse law:\n\n" + "\n".join(lines) + "\n"


def grid_block(m: Measured) -> str:
    """Everything about one grid of Gaussians."""
    floor, kl, sw = m.exact("nll"), m.exact("kl"), m.exact("sw")
    if floor is None or kl is None or sw is None:
        return "Not measured yet.\n"
    parts = [
        f"Negative log-likelihood (exact samples: {floor}; {COLLAPSED} below that):",
        score_table(m, "nll", floor=floor),
        misled(m),
        f"KL divergence of the samples from the data (exact samples: {kl}):",
        score_table(m, "kl"),
        f"Sliced Wasserstein distance (exact samples: {sw}):",
        score_table(m, "sw"),
    ]
    return "\n".join(part if part.endswith("\n") else part + "\n" for part in parts if part)


def trained_block(m: Measured) -> str:
    """Everything about one set with a trained network."""
    kl, sw = m.exact("kl"), m.exact("sw")
    if kl is None or sw is None:
        return "Not measured yet.\n"
    parts = [
        f"KL divergence of the samples from the data, by nearest neighbours (fresh data: {kl}):\n",
        score_table(m, "kl"),
        f"Sliced Wasserstein distance (fresh data: {sw}):\n",
        score_table(m, "sw"),
    ]
    return "\n".join(parts)


def wins_block(measured: dict[str, Measured]) -> str:
    """How often AYS is better than what it started from, by both figures; the cells where it is not."""
    lost: list[str] = []
    gains: dict[str, list[float]] = {"kl": [], "sw": []}
    cells = 0
    for name, m in measured.items():
        for solver, title in SOLVERS.items():
            for nfe in NFES:
                for score, word in (("kl", "KL"), ("sw", "sliced Wasserstein")):
                    ours, best = m.at(solver, "ays", nfe, score), m.at(solver, "best", nfe, score)
                    if ours is None or best is None:
                        continue
                    cells += score == "kl"
                    gains[score].append(best.value / ours.value)
                    if ours.value > best.value:
                        where = f"{NAMES.get(name, name)}, {title}, {nfe} calls"
                        lost.append(f"- {where}: {word} {short(ours.value)} against {short(best.value)}")
    if not cells:
        return "Not measured yet.\n"
    middle = {score: sorted(values)[len(values) // 2] for score, values in gains.items()}
    text = (
        f"Against the best hand-crafted times of each place (chosen on selection samples), over {cells} places: the KL "
        f"divergence is {middle['kl']:.2f} times lower in the median (from {min(gains['kl']):.2f} to "
        f"{max(gains['kl']):.2f}), the sliced Wasserstein distance, which nothing was chosen by, "
        f"{middle['sw']:.2f} times (from {min(gains['sw']):.2f} to {max(gains['sw']):.2f}).\n"
    )
    if lost:
        text += "\nWhere AYS is worse than the best hand-crafted times on fresh samples:\n\n" + "\n".join(lost) + "\n"
    return text


def origins_block(measured: dict[str, Measured]) -> str:
    """Where the chosen times come from."""
    rows = [
        [NAMES.get(place.name, place.name), SOLVERS[place.solver], str(place.nfe), found["origin"]["best"],
         found["origin"]["ays"].removeprefix("AYS from "), ", ".join(f"{t:.3g}" for t in found["times"]["ays"][1:-1])]
        for m in measured.values() for place, found in m.searches.items() if found is not None
    ]  # fmt: skip
    return markdown(["set", "solver", "calls", "best by hand", "AYS: start and sweeps", "interior times"], rows)


def replace(page: str, name: str, text: str) -> str:
    """The page with the block of that name written anew.

    Raises:
        ValueError: the page has no such block.
    """
    pattern = re.compile(rf"(<!-- toys:{name} -->\n).*?(<!-- /toys:{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no block toys:{name}")
    return pattern.sub(lambda m: f"{m[1]}\n{text.strip()}\n\n{m[2]}", page)


def blocks(kept: Results, sizes: Sizes) -> dict[str, str]:
    """Every block of the page."""
    measured = {name: Measured(toy(name), kept, sizes) for name in (*MIXTURES, *TRAINED)}
    grids, trained = ({n: measured[n] for n in names} for names in (MIXTURES, TRAINED))
    return {
        "paper": paper_table(grids),
        "wins": wins_block(measured),
        **{name: grid_block(m) for name, m in grids.items()},
        **{name: trained_block(m) for name, m in trained.items()},
        "origins": origins_block(measured),
    }


def write(page: Path, kept: Results, sizes: Sizes) -> None:
    """Write the page's blocks anew; what stands between them stays."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks(kept, sizes).items():
        text = replace(text, name, block)
    atomic_write_text(page, text)
