"""docs/ays-results.md and its figure, from the scores of `benchmarks.ays`."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fewstep import times
from fewstep.compare import Results
from fewstep.files import atomic_write_bytes
from fewstep.reproduce.ays_table import AysTable
from fewstep.reproduce.choosing import Choice

ARROW, PLUS_MINUS, TIMES = "\N{RIGHTWARDS ARROW}", "\N{PLUS-MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
ODE, SDE = "fd ODE teacher", "fd SDE teacher"
ODE_SOLVERS = ("ddim", "dpmpp_2m")

INTRODUCTION = """# Align Your Steps on the digit network

What `fewstep` measures of Align Your Steps on the network that ships: the experiments of the paper, re-run, and what the
paper does not show. Everything on this page is written by `python -m benchmarks.ays report` from the scores of the other
phases of that command.

FD is the Fréchet distance in the 64 features of the digit classifier to the 60,000 training images. Unless said otherwise a
figure is the mean over {sets} disjoint sets of {images:,} images, on seeds that chose nothing; bold is better on every set.
The table, the targets and the guided networks ran on one NVIDIA H200 in float32 (no TF32), some 24 million network calls in
seven minutes; samples of the same seeds in float32 on a CPU differ by at most 1e-5. Judges, made data and `optimize` at 20 steps ran on a CPU. On CPUs with bfloat16 the
benchmark computes in that, as the network was trained: four cells scored in both differed by at most 0.0013 in FD.
The network makes more of a difference than it does for the networks of the
paper: its ODE at 50 calls is *worse* than its SDE, so that few-step samples can be nearer to the data than the ODE that they
follow.

{teachers}
"""


JUDGED = """What a few samples say by chance is the same for the teacher's samples of the same seeds, and cancels in a comparison with
these: 64 images so compared choose better than 256 compared with the data, *by the distance to the data too*. Of the
comparisons with the teacher those of whole sets choose better than those of pairs, which reward blur. The distances to the
data and to the teacher's statistics, which are what the papers stop by, are the worst judges here at these numbers of images.

For a stochastic solver that is true only where the teacher draws the same noise: the deterministic teacher of the same seeds
is hardly a better reference than the data. The stochastic one on
[one Brownian motion](theory/sde.md#one-brownian-motion-whatever-the-times) with the candidates chooses best by all three
scores.

`fewstep optimize` selects by the geometric mean of two such distances, of the features and of the samples themselves
(`--objective faithful`), with a teacher of the solver's own kind; where no features are known, by the sliced one. In the
tables above, which see features only, the distance of features alone (`matched`) chooses a little better, and the table of
seven solvers is raced by it. The default counts the samples too, because features hardly see fine noise. The
rows `fewstep optimize` at the top of this page are what the default finds, within 150,000 network calls of which the teacher's
are a part; the rows `AYS, raced by FD` were raced by the distance to the data of up to 1,000 images. The judges part where
samples get nearer to the data than the ODE teacher's own are, as here at all four numbers of steps: the race by FD follows the
data and ends further from the teacher than the best default, `fewstep optimize` ends nearest to the teacher, and at 8 and 10
steps no nearer to the data than time-uniform times. Who trusts a distance to the data more than the teacher has
`--objective frechet`.
"""
"""What follows from the table."""

READ = """With 5 steps and a solver of second or third order (DPM-Solver++(2M), ER-SDE-2 and 3) AYS is nearest by every
distance. Solvers of first order get no nearer to the data than with the best hand-crafted times at 5 and 10 steps. With SDE-DPM-Solver++(2M) at 5 steps it is nearer
to the data, and no nearer to either teacher, which is what the race looks at. From 10 steps on most cells are undecided: solvers
of higher order move on to the ODE teacher, and with it away from the data, so that times that are nearer to the teacher are
further from the data. So are SDE-DPM-Solver++(2M)'s, whose 20 and 30 steps inherit what is best at 10. `fewstep optimize` returns
the better of the two on fresh selection seeds, so an asterisk means that its user gets the hand-crafted times.

Twenty steps of AYS that come from ten are as near to the data as thirty of the paper's baseline for five solvers of seven; the
two DPM-Solver++(2M) are not among them. Against the best hand-crafted thirty that is a tie for those five. Where `optimize` was
asked for 20 steps itself (ER-SDE-3 was not), DPM-Solver++(2M) is as near as its baseline at thirty, to the data and to its teacher
(rescaled entropic times); SDE-DPM-Solver++(2M) is nearer to the ODE teacher and still further from the data; the others are as near
to the data, two of them clearly nearer. For `ddim` and `ddim_eta1` it kept a hand-crafted grid.
"""
"""What the table of seven solvers says."""

OPTIMISED, BY_FRECHET = "fewstep optimize", "AYS, raced by FD"
"""The rows of what a user gets, and of times that were raced by the distance to the data."""
DESCENT = "ays, descent alone"
"""The method without times from the loss curve."""
LINES = (
    ("paper", "#c9a36a", "the paper's baseline"),
    ("hand", "#8a8a8a", "best hand-crafted"),
    ("ays", "#0b6e99", "AYS"),
)


class Band(NamedTuple):
    """Mean, least and most over the seed sets."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Band:
        """Of these values."""
        kept = list(values)
        return Band(statistics.mean(kept), min(kept), max(kept))

    def __str__(self) -> str:
        return self.text("one set")

    def text(self, one: str, digits: int = 3) -> str:
        """Mean, and least to most; `one` where they are one."""
        spread = f"{self.low:.{digits}f}\N{EN DASH}{self.high:.{digits}f}" if self.low < self.high else one
        return f"{self.mean:.{digits}f} ({spread})"


def row(cells: Sequence[object]) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def grid(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    return "\n".join([row(header), "|---" * len(header) + "|", *map(row, rows)]) + "\n"


def teachers_text(kept: Results) -> str:
    """What the teachers' samples score."""
    rows = []
    for name in ("ODE teacher", "SDE teacher"):
        found = [kept.get(f"{name}, {size}") for size in (2000, 5000)]
        rows.append(
            [name, *(f"{f['fd']:.3f} {PLUS_MINUS} {f['deviation']:.3f} ({f['sets']} sets)" for f in found if f)]
        )
    return grid(["50 calls", "FD of 2,000 samples", "FD of 5,000 samples"], rows)


def solvers_text(work: AysTable, twenty: Callable[[str, str], list[float]]) -> str:
    """The paper's Tables 5 and 6."""
    lines = [
        "## Seven solvers, the paper's Tables 5 and 6\n",
        f"FD with the paper's baseline (EDM's times for stochastic solvers, LogSNR for the others) {ARROW} with the best hand-crafted times {ARROW} with AYS. The best of {len(times.NAMES)} hand-crafted grids was "
        "chosen for each solver and number of steps on selection seeds. AYS at 5 and "
        "10 steps descends from all of them, and snapshots of every way are raced; 20 and 30 steps come from the 10 through the "
        "hierarchy, without another score. Both races are by `matched`, the distance of the same features to the teacher's "
        "samples of the same seeds (of a stochastic solver: to a stochastic teacher's on the same Brownian motion), on 64 to "
        "256 selection seeds; the best three of AYS meet on 512 others. An asterisk marks AYS times that `fewstep optimize` would not have kept, because they did not "
        "beat the hand-crafted ones on fresh selection seeds.\n",
        work.markdown(),
        "The same against the ODE teacher's samples (what the deterministic solvers converge to):\n",
        work.markdown(ODE),
        "And against the SDE teacher's:\n",
        work.markdown(SDE),
        verdict(work),
        as_thirty(work, twenty),
        READ,
        "![FD against steps: best hand-crafted and AYS](assets/tables/ays_steps.png)\n",
    ]
    return "\n".join(lines)


def scores(work: AysTable, solver: str, nfe: int, kind: str, score: str = "fd") -> list[float]:
    """A cell's scores, one for each set."""
    known = work.known(solver, nfe, kind)
    return [] if known is None else [found[score] for found in known[1]]


def verdict(work: AysTable) -> str:
    """Won, lost, undecided."""
    lines = []
    for score, said in (("fd", "the data"), (ODE, "the ODE teacher's samples"), (SDE, "the SDE teacher's")):
        won = lost = open_ = 0
        for solver, nfe, kind in work.plan():
            before, after = (scores(work, solver, nfe, which, score) for which in ("hand", "ays"))
            if kind == "ays" and before and after:
                won, lost = won + (max(after) < min(before)), lost + (max(before) < min(after))
                open_ += not (max(after) < min(before) or max(before) < min(after))
        lines.append(
            f"To {said}: AYS is nearer than the best hand-crafted times on every set (where there is one set: on that) in {won} "
            f"cells, further in {lost}, undecided in {open_}.\n"
        )
    return "\n".join(lines)


def as_thirty(work: AysTable, twenty: Callable[[str, str], list[float]]) -> str:
    """20 steps against 30: through the hierarchy from 10, and found at 20."""
    lines = [
        "Is AYS at 20 steps as good as 30 (the paper's 1.5 times fewer)? Through the hierarchy from 10 steps, and as `fewstep "
        "optimize --nfe 20 --method ays` finds it, by its own judge; the last columns divide the baseline at 30 by these: "
        "above 1 says yes.\n"
    ]
    for score, said in (("fd", "FD to the data"), (ODE, "FD to the ODE teacher's samples")):
        rows = []
        for solver in work.settings.solvers:
            sets = [scores(work, solver, *cell, score) for cell in ((20, "ays"), (30, "paper"), (30, "hand"))]
            sets.insert(1, twenty(solver, score))
            if sets[0] and sets[2] and sets[3]:
                means = [statistics.mean(values) if values else None for values in sets]
                ratios = [f"{means[2] / mean:.2f}" if mean and means[2] else "..." for mean in means[:2]]
                rows.append([solver, *(Band.of(values) if values else "..." for values in sets), *ratios])
        head = (said, "AYS from 10, 20", "optimize, 20", "baseline, 30", "best hand-crafted, 30", "from 10", "optimize")
        lines.append(grid(head, rows))
    return "\n".join(lines)


def by_frechet_text(work: AysTable) -> str:
    """The same table, raced by the distance to the data."""
    return "\n".join(
        [
            "### Raced by the distance to the data\n",
            "The paper stops by FID. The same cells where both races, of the hand-crafted times and of the snapshots, are by "
            "the FD of 128 to 1,000 images:\n",
            work.markdown(),
            "And against the ODE teacher's samples:\n",
            work.markdown(ODE),
        ]
    )


def choices_text(work: AysTable) -> str:
    """Which times were chosen, and what it cost."""
    rows = []
    for solver in work.settings.solvers:
        cells: list[object] = [solver]
        for nfe in work.settings.nfes:
            hand, ays = (work.chooser.known(solver, nfe, kind) for kind in ("hand", "ays"))
            cells.append("..." if hand is None or ays is None else f"{hand.origin}; {ays.origin} ({ays.calls:,} calls)")
        rows.append(cells)
    head = "<details><summary>The times behind the table: best hand-crafted; AYS (network calls made for it; what other searches had made lay in the cache)</summary>\n"
    return head + "\n" + grid(["solver", *(f"{n} steps" for n in work.settings.nfes)], rows) + "\n</details>\n"


def targets_text(work: AysTable, nfes: Sequence[int], grids: Callable[[int], Iterable[str]],
                 found: Callable[[int, str, str], list[float]], teacher: float) -> str:  # fmt: skip
    """DPM-Solver++(2M): AYS beside the defaults and a sweep over rho."""
    parts = ["## DPM-Solver++(2M) at 5, 6, 8 and 10 steps\n"]
    for score, said in (("fd", "FD to the data"), (ODE, "FD to the ODE teacher's samples")):
        names = list(grids(nfes[0]))
        rows = []
        for name in names:
            bands = [found(nfe, name, score) for nfe in nfes]
            rows.append([name, *(Band.of(values) if values else "..." for values in bands)])
        parts += [f"{said}, mean (least\N{EN DASH}most):\n", grid(["times", *(f"{n} steps" for n in nfes)], rows)]
    rows = []
    for nfe, own in product(nfes, (BY_FRECHET, OPTIMISED)):
        cells: list[object] = [nfe, own]
        for score, floor in (("fd", teacher), (ODE, 0.0)):
            ours = found(nfe, own, score)
            rivals = {name: found(nfe, name, score) for name in list(grids(nfe))[:4]}
            if not ours or not all(rivals.values()):
                break
            best = min(rivals, key=lambda name: statistics.mean(rivals[name]))
            mine, theirs = statistics.mean(ours), statistics.mean(rivals[best])
            cells += [best, f"{theirs / mine:.2f}"]
            if score == "fd":
                known = f"{(theirs - floor) / (mine - floor):.2f}" if mine > floor else "none left"
                cells.append(known if floor else "...")
            cells.append("yes" if max(ours) < min(rivals[best]) else "no")
        else:
            rows.append(cells)
    parts += [
        "How many times nearer AYS is, raced by the distance to the data and as `fewstep optimize --method ays` finds it, than "
        "the best (by that distance) of EDM (rho 7), LogSNR, time-uniform and tangent times at their default parameters. To the "
        "data: in FD, in its excess over the SDE teacher's FD for as many samples, and whether all sets are apart. Then the same "
        "to the ODE teacher's samples: what DPM-Solver++(2M) converges to, and what decides where, as here, students are nearer "
        "to the data than that teacher (whose own FD is 0.23).\n",
        grid(["steps", "times", "best by FD", "FD", "excess", "apart", "best by ODE teacher", "to it", "apart"], rows),
    ]
    return "\n".join(parts)


Repeated = Callable[[int, str, str], list[tuple[str, list[float]]]]


def repeated_text(nfes: Sequence[int], grids: Callable[[int], Iterable[str]], found: Callable[[int, str, str], list[float]],
                  repeated: Repeated) -> str:  # fmt: skip
    """What `fewstep optimize --method ays` finds on other selection seeds, and with the descent alone."""
    rows = []
    for nfe, (method, said) in product(nfes, (("ays", "all"), (DESCENT, "descent alone"))):
        cells: list[object] = [nfe, said]
        for score in (ODE, "fd"):
            rivals = [
                statistics.mean(found(nfe, name, score)) for name in list(grids(nfe))[:4] if found(nfe, name, score)
            ]
            means = [statistics.mean(values) for _, values in repeated(nfe, method, score)]
            cells += (
                [Band.of(means).text("alike"), Band.of(min(rivals) / mean for mean in means).text("alike", 2)]
                if means and rivals
                else ["...", "..."]
            )
        origins = Counter(origin for origin, _ in repeated(nfe, method, "fd"))
        rows.append([*cells, "; ".join(f"{origin} ({n})" if n > 1 else origin for origin, n in origins.items())])
    head = ("steps", "entrants", "to ODE teacher", "times nearer", "to the data", "times nearer", "found")
    return "\n".join(
        [
            "### Again on other selection seeds, and the descent alone\n",
            "`fewstep optimize --method ays` lets times from the loss curve of its KLUB table enter (rescaled entropic, three "
            "powers), and descends from them too. Three searches each on disjoint selection seeds, with these and without "
            "(hand-crafted starts and their ways down alone); the mean FD over the sets, its mean and spread (least\N{EN DASH}most) over "
            "the searches, how many times nearer that is than the best default, and what was found (how often):\n",
            grid(head, rows),
        ]
    )


def judging_text(folder: Path) -> str:
    """Which judge should choose."""
    parts = [
        "## Which judge should stop the descent\n",
        "A judge is worth what its choice scores. Samples of each of many candidates (all hand-crafted grids, rescaled "
        "entropic times, and sweeps 1, 2 and 4 of the ways down from eight of them; the same seeds for all) were drawn once. "
        "Then, many times: each judge sees a few random images of every candidate and chooses one, and the choice is scored on "
        "all the other images. The tables show how far the choices are above the best candidate that there was: the mean over "
        "the draws of each score, divided by the mean of the best, less 1, averaged over the numbers of steps "
        "(`python -m benchmarks.ays_judges draw` and `study`). The teacher of the comparisons is the deterministic one of "
        "`fewstep optimize`, or, where it says so, a stochastic one on the Brownian motion of the candidates; 60 calls each.\n",
    ]
    for solver in ("dpmpp_2m", "sde_dpmpp_2m", "er_sde_3"):
        path = folder / f"judging-{solver}.json"
        if path.exists():
            parts += judged(solver, json.loads(path.read_text()))
    return "\n".join([*parts, JUDGED])


def judged(solver: str, found: dict[str, Any]) -> list[str]:
    """The tables of one solver."""
    first = next(iter(found.values()))
    labels = list(first["best there was"])
    nfes = ", ".join(dict.fromkeys(key.split(", ")[0] for key in found))
    parts: list[str] = []
    for count in sorted({int(key.split(", ")[1]) for key in found}):
        cells = [cell for key, cell in found.items() if int(key.split(", ")[1]) == count]
        rows = []
        for judge in first["judges"]:
            excess = [
                statistics.mean(cell["judges"][judge][label] / cell["best there was"][label] for cell in cells) - 1
                for label in labels
            ]
            rows.append((judge, excess))
        best = [min(excess[k] for _, excess in rows) for k in range(len(labels))]
        lines = [
            [judge, *(f"**{e:+.0%}**" if e == best[k] else f"{e:+.0%}" for k, e in enumerate(excess))]
            for judge, excess in rows
        ]
        said = (
            f"`{solver}` at {nfes} steps, {first['candidates']} candidates of {first['images']:,} images, {first['draws']} "
            f"draws, choosing on {count} images:\n"
        )
        parts += [said, grid(["judge", *labels], lines)]
    return parts


def said(choice: Choice | None) -> str:
    """Where times come from, with an asterisk where the selection would not have kept them."""
    return "" if choice is None else choice.origin + ("*" if choice.kept is False else "")


def guided_text(works: dict[float, AysTable]) -> str:
    """Guidance."""
    rows = []
    for weight, work in works.items():
        for nfe in work.settings.nfes:
            before, after = scores(work, "dpmpp_2m", nfe, "hand"), scores(work, "dpmpp_2m", nfe, "ays")
            if before and after:
                names = [work.chooser.known("dpmpp_2m", nfe, kind) for kind in ("hand", "ays")]
                label = [statistics.mean(scores(work, "dpmpp_2m", nfe, kind, "as_label")) for kind in ("hand", "ays")]
                rows.append([f"{weight:g}", nfe, names[0].origin if names[0] else "", Band.of(before),
                             said(names[1]), Band.of(after),
                             f"{label[0]:.1%} {ARROW} {label[1]:.1%}"])  # fmt: skip
    text = (
        "## Guided\n\nDPM-Solver++(2M) under classifier-free guidance, each weight with its own KLUB (of the guided network) and "
        "judged against 2,500 samples of its own 30-step teacher (LogSNR times). Raced as the seven solvers are; an "
        "asterisk as there.\n"
    )
    head = [
        "guidance",
        "steps",
        "best hand-crafted",
        "FD to the teacher's set",
        "AYS",
        "FD to the teacher's set",
        "as label",
    ]
    return text + "\n" + grid(head, rows)


def data_text(real: AysTable, made: Results) -> str:
    """Real data or the teacher's."""
    rows, gap = [], made.get("klub")
    for nfe in (5, 10):
        found = made.get(f"scores, {nfe}") or {"fd": [], ODE: []}
        bands = [b for s in ("fd", ODE) for b in (scores(real, "dpmpp_2m", nfe, "ays", s), found[s])]
        rows.append([nfe, *(Band.of(b) if b else "..." for b in bands)])
    text = (
        "## Without data\n\nThe KLUB of 512 noised real images, or of 512 samples of the teacher (50 calls each): AYS's times for "
        "DPM-Solver++(2M), raced as the seven solvers are. Equal figures are equal times: a sweep chooses among eleven positions for "
        "each point, and both tables chose the same.\n"
    )
    head = ["steps", "FD, real data", "FD, made data", "FD to ODE set, real", "FD to ODE set, made"]
    parts = [text, grid(head, rows)]
    if gap is not None:
        first, second = gap["martingale defects"]
        lines = [
            [n, f"{a:.4g} {PLUS_MINUS} {b:.2g}", f"{c:.4g} {PLUS_MINUS} {d:.2g}"]
            for n, (a, b, c, d) in gap["klub of karras: real, error, made, error"].items()
        ]
        parts += [
            f"KLUB of EDM's times (rho 7) by both tables; distances from a martingale {first:.1%} and {second:.1%} of the largest "
            "loss.\n",
            grid(["steps", "real data", "made data"], lines),
        ]
    return "\n".join(parts)


def figure(work: AysTable, path: Path) -> None:
    """FD against steps for every solver."""
    import io

    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    names = work.settings.solvers
    figure_, axes = plt.subplots(2, 4, figsize=(12, 5.6), sharex=True, layout="constrained")
    for name, axis in zip(names, axes.flat, strict=False):
        for kind, colour, said in LINES:
            known = [(n, Band.of(v)) for n in work.settings.nfes if (v := scores(work, name, n, kind))]
            if known:
                mean = [band.mean for _, band in known]
                spread = [[b.mean - b.low for _, b in known], [b.high - b.mean for _, b in known]]
                axis.errorbar(
                    [n for n, _ in known], mean, spread, color=colour, label=said, capsize=2, marker="o", ms=3
                )
        axis.set(title=name, yscale="log", xscale="log", xticks=work.settings.nfes)
        axis.set_xticklabels(work.settings.nfes)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("FD")
    last = axes.flat[-1]
    last.axis("off")
    last.legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    buffer = io.BytesIO()
    figure_.savefig(buffer, dpi=90)
    plt.close(figure_)
    atomic_write_bytes(path, buffer.getvalue())
