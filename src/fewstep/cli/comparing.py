"""`fewstep compare`: solvers, times and schedule files side by side on one model."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.common import (
    AsJson,
    Commands,
    Features,
    Guidance,
    ModelName,
    Quiet,
    Reference,
    Stopped,
    TrustPickle,
    examples,
    flat,
    guarded,
    load_table,
    model_option,
    say,
    show,
    whole_numbers,
)
from fewstep.cli.pipelines import with_pipeline_options
from fewstep.errors import ArgumentError
from fewstep.words import with_error

if TYPE_CHECKING:
    from rich.text import Text

    from fewstep.compare import Cell, Row
    from fewstep.denoiser import Denoiser
    from fewstep.models import Judge
    from fewstep.report.figures import Series

SOLVERS, GRIDS, CALLS = ("ddim", "dpmpp_2m", "unipc"), ("karras", "logsnr"), (4, 6, 8, 10)
SCORES = {"fd": "Fréchet distance", "rms": "RMS distance to the teacher", "nll": "negative log-likelihood"}
MOST_LINES = 6
AGAIN = "start the same command again to go on"


NfeOption = Annotated[
    list[str] | None, typer.Option(help="Network calls per sample, one or more.", show_default="4 6 8 10")
]
ScheduleOption = Annotated[
    list[str] | None,
    typer.Option("--schedule", metavar="FILE", help="Schedule files to set beside the named solvers."),
]
SolverOption = Annotated[
    list[str] | None, typer.Option(help="Named solvers, comma separated.", show_default=",".join(SOLVERS))
]
TimesOption = Annotated[
    list[str] | None, typer.Option(help="Their times, comma separated.", show_default=",".join(GRIDS))
]
ByOption = Annotated[str | None, typer.Option(help="fd, rms or nll; by default fd for networks, rms for problems.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="File of finished scores.", show_default="in --out, else the user's cache")
]


@guarded
@with_pipeline_options
def compare(
    model: ModelName,
    nfe: NfeOption = None,
    schedule: ScheduleOption = None,
    solver: SolverOption = None,
    times: TimesOption = None,
    samples: Annotated[int, typer.Option("--samples", "-n", min=2, help="Samples behind each score.")] = 1000,
    offset: Annotated[int, typer.Option(min=0, help="Skip this many report seeds: an independent repetition.")] = 0,
    by: ByOption = None,
    features: Features = None,
    reference: Reference = None,
    guidance: Guidance = None,
    trust_pickle: TrustPickle = False,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and compare.png.")] = None,
    cache: CacheOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples given to the network at once.")] = 250,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score solvers, times and schedule files on the same fresh seeds, and print a table.

    Scores are the Fréchet distance with its standard error where the model has features (mnist), else the root mean
    squared distance to a many-step teacher's samples of the same seeds; lower is better.
    Finished scores are kept: after Ctrl-C, or with more calls or solvers, the same command goes on where it was.
    """
    from fewstep import compare as engine
    from fewstep.features import judge_from
    from fewstep.models import about
    from fewstep.models import judge as judge_of
    from fewstep.progress import shown
    from fewstep.randomness import ReportSeeds

    network = model_option(model, guidance, trust_pickle)
    judge, metric = _judge(judge_from(network, features, reference) or judge_of(model), by, model, samples)
    cells = _cells(network, whole_numbers(nfe, "--nfe"), flat(schedule), flat(solver), flat(times))
    store = cache or _cache_file(out)
    seeds = ReportSeeds(samples, offset)
    teacher = (
        engine.teacher(network, cache=store.parent / "teacher", batch_size=min(batch_size, 64))
        if metric == "rms"
        else None
    )
    rows: list[Row] = []
    try:
        with shown(quiet=quiet or as_json) as report:
            rows.extend(
                engine.compare(
                    network, cells, seeds, judge=judge, teacher=teacher, results=engine.Results(store), by=metric,
                    batch_size=batch_size, progress=report,
                )
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Stopped(f"{len(rows)} of {len(cells)} scores are done and kept in {store}; {AGAIN}") from None
    title = f"{SCORES[metric]} on {samples:,} samples"
    weight = about(network).get("guidance", 1.0 if guidance is None else guidance)
    data = {
        "model": model, "fingerprint": network.fingerprint, "guidance": weight, "by": metric, "seeds": repr(seeds),
        "rows": [row.to_dict() for row in rows],
    }  # fmt: skip
    if out is not None:
        _write(out, data, rows, metric, title)
    show(data, "" if as_json else _text(rows, metric, f"{model}: {title}, lower is better"), as_json=as_json)


def _judge(judge: Judge | None, by: str | None, model: str, samples: int) -> tuple[Judge | None, str]:
    """What judges, and the score that the table shows."""
    from fewstep.compare import FEWEST

    if by is not None and by not in SCORES:
        raise ArgumentError(f"--by {by}: choose one of {', '.join(SCORES)}")
    if by == "fd" and judge is None:
        raise ArgumentError(f"--by fd: no feature statistics are known for {model}; use --by rms")
    if by == "nll" and (judge is None or judge.nll is None):
        raise ArgumentError(f"--by nll: the density of {model} is not known; use --by rms")
    metric = by or ("rms" if judge is None or judge.nll is not None else "fd")
    return (None if metric == "rms" and samples < FEWEST else judge), metric


def _cells(network: Denoiser, nfes: list[int], files: list[str], names: list[str], grids: list[str]) -> list[Cell]:
    """Files first, then the named solvers at each number of calls (by default, those of the files)."""
    from fewstep import compare as engine

    own: list[Cell] = []
    for name in files:
        table, path = load_table(Path(name), network), Path(name)
        label = "/".join((path / "schedule.json" if path.is_dir() else path).parts[-2:])
        own.append(engine.Cell(label, "", table.nfe, table))
    counts = nfes or sorted({c.nfe for c in own}) or list(CALLS)
    return own + engine.cells(network.noise, counts, names or SOLVERS, grids or GRIDS)


def _cache_file(out: Path | None) -> Path:
    if out is not None:
        return out / ".cache" / "compare.jsonl"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "fewstep" / "compare.jsonl"


def _text(rows: Sequence[Row], metric: str, title: str) -> str:
    """The table as text: a line for each sampler, a column for each number of calls, the best of a column marked."""
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = sorted({row.nfe for row in rows})
    best = {n: min((r.scores[metric] for r in rows if r.nfe == n and r.scores), default=None) for n in counts}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("sampler")
    for n in counts:
        table.add_column(f"{n} calls", justify="right")
    for label in dict.fromkeys(row.label for row in rows):
        here = {row.nfe: row for row in rows if row.label == label}
        own = not next(iter(here.values())).times
        shown = [_entry(here.get(n), metric, best[n]) for n in counts]
        table.add_row(Text(label, style="bold" if own else ""), *shown)
    colour = sys.stdout.isatty()
    buffer = io.StringIO()
    Console(file=buffer, width=max(100, 34 + 20 * len(counts)), force_terminal=colour, no_color=not colour).print(table)
    reasons = dict.fromkeys(row.reason for row in rows if row.reason)
    footer = ["* best of its column", *(f"n/a: {reason}" for reason in reasons)]
    return "\n".join([title, "", buffer.getvalue().rstrip(), "", *footer])


def _entry(row: Row | None, metric: str, best: float | None) -> Text:
    from rich.text import Text

    if row is None:
        return Text("")
    if not row.scores:
        return Text("n/a", style="dim")
    value = row.scores[metric]
    first = value == best
    text = with_error(value, row.scores.get(f"{metric}_error"))
    return Text(text + (" *" if first else "  "), style="bold green" if first else "")


def _write(out: Path, data: dict[str, Any], rows: Sequence[Row], metric: str, title: str) -> None:
    from fewstep.files import atomic_write_bytes, atomic_write_text
    from fewstep.report.figures import quality_figure
    from fewstep.report.style import png_of

    written = [atomic_write_text(out / "compare.json", json.dumps(data, indent=1) + "\n")]
    series = lines(rows, metric)
    if series:
        figure = quality_figure(series, judge=title)
        written.append(atomic_write_bytes(out / "compare.png", png_of(figure)))
    say("written: " + ", ".join(map(str, written)))


def lines(rows: Sequence[Row], metric: str) -> list[Series]:
    """Rows as lines of a chart: the files, the best named sampler at each number of calls, and the few best overall."""
    from fewstep.report.figures import Series

    def line(chosen: Sequence[Row], label: str, role: str = "") -> Series:
        ordered = sorted(chosen, key=lambda r: r.nfe)
        return Series(
            label, tuple(r.nfe for r in ordered), tuple(r.scores[metric] for r in ordered),
            tuple(r.scores.get(f"{metric}_error") for r in ordered), role,
        )  # fmt: skip

    scored = [row for row in rows if row.scores]
    own, named = [r for r in scored if not r.times], [r for r in scored if r.times]
    out: list[Series] = []
    if own and len({r.nfe for r in own}) == len(own):  # one file for each number of calls: one line
        out.append(line(own, own[0].label if len(own) == 1 else "the schedule files", "after"))
    else:
        out += [line([row], row.label) for row in own]
    best = [
        min((r for r in named if r.nfe == n), key=lambda r: r.scores[metric]) for n in sorted({r.nfe for r in named})
    ]
    if own and best:
        out.append(line(best, "best of the named", "before"))
    groups = {label: [r for r in named if r.label == label] for label in dict.fromkeys(r.label for r in named)}
    widest = max(map(len, groups.values()), default=0)
    whole = [g for g in groups.values() if len(g) == widest]
    whole.sort(key=lambda g: sum(math.log(max(r.scores[metric], 1e-12)) for r in g))
    return out + [line(g, g[0].label) for g in whole[:MOST_LINES]]


COMMANDS: Commands = (
    (
        "compare",
        compare,
        examples(
            "fewstep compare mnist --nfe 4 6 8 10 --schedule runs/mnist-6/schedule.json",
            "fewstep compare mnist --nfe 5 7 --solver dpmpp_2m,heun --times karras,tangent --out runs/odd",
            "fewstep compare problem:grid_8x8 --nfe 5 10 --samples 5000 --by nll",
        ),
    ),
)
